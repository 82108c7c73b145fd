"""The page about the peers, made from the JSON and a template; the same JSON gives the same
page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import number
from benchmarks.peers import explanations
from benchmarks.peers.environments import PEERS
from benchmarks.peers.pairs import MEMORY
from benchmarks.peers.protocol import FLAT, FLOOD, STEPS
from benchmarks.peers.results import SIDES, Comparison, comparison, figure, is_behind_pace
from benchmarks.peers.works import WORKS

TEMPLATE = Path(__file__).parent / "page.md"
PRODUCERS = ("alone", "1 producer", "2 producers")
Column = tuple[str, str, float]  # mode, quantity, factor from the stored unit
AT_THE_LEARNER: dict[str, Column] = {
    "batches/s, flat out": (FLAT, "batches_per_s", 1.0),
    "wait flat out, p50 us": (FLAT, "p50_us", 1.0),
    "wait flat out, p99 us": (FLAT, "p99_us", 1.0),
    "wait behind steps, p50 us": (STEPS, "p50_us", 1.0),
    "wait behind steps, mean us": (STEPS, "mean_us", 1.0),
    "wait behind steps, p99 us": (STEPS, "p99_us", 1.0),
    "wait behind steps, longest us": (STEPS, "max_us", 1.0),
}
THE_REST: dict[str, Column] = {
    "rows/s, insert only": (FLOOD, "rows_per_s", 1.0),
    "CPU s / million rows": (FLAT, "cpu_s_per_million_rows", 1.0),
    "memory, MB": (MEMORY, "memory_bytes", 1e-6),
}
IN_SUMMARY = ("batches/s, flat out", "wait behind steps, p50 us", "wait behind steps, p99 us")
BEHIND_PACE = "†"
OF_ALL = (
    "All: the learner's step is a sleep, as it is for a process that waits for a GPU.",
    "All: where a library has producer processes or threads, they are the same loop with the same "
    "pace.",
    "All: rows are noise, which does not compress. Reverb compresses what it is given, and would "
    "keep real frames in less memory.",
    "All: a batch of areplay was written by another process, on another core, and one of a library "
    "that draws in the learner's own process lies in that core's cache. The clock stops at one "
    "element of each observation, so what it costs to fetch the others is in nobody's wait; it "
    "falls on the learner's step.",
    "All, prioritised: areplay, cpprb, torchrl and rlpyt's scheme work out the importance weights "
    "of each batch. Reverb and flashbax give probabilities and leave the weights to the learner.",
    "All, prioritised: cpprb, flashbax and rlpyt's scheme draw when they are asked. areplay and "
    "Reverb draw up to `prefetch` (16) batches before, torchrl four: by priorities that are so "
    "much older.",
)


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results))


def page(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    return TEMPLATE.read_text().format(
        machine="\n\n".join(filter(None, (_machine(results), _missing(results)))),
        summary=_summary(results),
        dagger=BEHIND_PACE,
        works="\n\n".join(_work(name, results) for name in WORKS if list(pairs_of(name, results))),
        ahead=_ahead(results),
        choices=_choices(results),
    )


def pairs_of(work: str, results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The peers that have been measured on a work, in their usual order."""
    for peer in PEERS:
        if (pair := results["pairs"].get(f"{peer}/{work}")) is not None:
            yield peer, pair


def _machine(results: Mapping[str, Any]) -> str:
    """On what all of it was measured, one sentence for each machine and plan that occurs."""
    lines = []
    for pair in results["pairs"].values():
        machine, plan = pair["machine"], pair["plan"]
        line = (
            f"Measured on {machine['cores']} cores of {machine['processor']} with Python "
            f"{machine['python']}: {plan['rounds']} rounds for each side and mode, of "
            f"{plan['flat_s']} s flat out, {plan['steps_s']} s behind steps and {plan['flood_s']} "
            "s insert only."
        )
        if line not in lines:
            lines.append(line)
    busy = [pair["cores_busy_with_others"] for pair in results["pairs"].values()]
    if busy:
        lines.append(f"Meanwhile others kept {min(busy):.2f} to {max(busy):.2f} cores busy.")
    versions = []
    for name in ("areplay", *PEERS):
        about = results["peers"].get(name)
        if about and about["versions"]:
            title = PEERS[name].title if name in PEERS else name
            parts = ", ".join(
                f"{package} {version}" for package, version in about["versions"].items()
            )
            versions.append(f"{title} ({parts})")
    return " ".join([*lines, f"Versions: {'; '.join(versions)}."])


def _missing(results: Mapping[str, Any]) -> str:
    """What could not be measured as a whole; the last line of its reason."""
    lines = [
        f"- **{PEERS[name].title}** {about['reason']}"
        for name, about in results["peers"].items()
        if name in PEERS and about["reason"]
    ]
    if lines:
        return "\n".join(lines)
    is_whole = set(PEERS) <= set(results["peers"])
    return (
        "All peers could be installed, but for rlpyt, whose scheme was written anew."
        if is_whole
        else ""
    )


def _summary(results: Mapping[str, Any]) -> str:
    """One row for each peer and work, ratios only, while one producer writes."""
    columns = [AT_THE_LEARNER[heading] for heading in IN_SUMMARY]
    lines = [_row("peer", "work", *IN_SUMMARY), "|---|---" + "|---:" * len(columns) + "|"]
    for peer in PEERS:
        for work in WORKS:
            pair = results["pairs"].get(f"{peer}/{work}")
            if pair is not None:
                ratios = (_cell(pair, 1, column, is_summary=True) for column in columns)
                lines.append(_row(PEERS[peer].title, work, *ratios))
    return "\n".join(lines)


def _work(name: str, results: Mapping[str, Any]) -> str:
    pairs = dict(pairs_of(name, results))
    work = next(iter(pairs.values()))["work"]
    parts = [
        f"## {name}: {WORKS[name].title}",
        f"{work['capacity']:,} rows of {work['row_bytes']:,} bytes; producers hand in "
        f"{work['rows_per_s']:,} rows/s together, in chunks of {work['chunk_rows']}. Each cell: "
        "areplay / the peer, and the ratio.",
        "At the learner:",
        _table(pairs, AT_THE_LEARNER, has_rows_in=True),
        "The rest:",
        _table(pairs, THE_REST, has_rows_in=False),
        "\n".join(_reasons(pairs)),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(pairs: Mapping[str, Any], columns: Mapping[str, Column], has_rows_in: bool) -> str:
    rows_in = ("rows/s in, flat out",) if has_rows_in else ()
    lines = [
        _row("peer", "", *rows_in, *columns),
        "|---|---" + "|---:" * (len(columns) + len(rows_in)) + "|",
    ]
    for peer, pair in pairs.items():
        for producers, words in enumerate(PRODUCERS):
            if f"{producers}/{FLAT}" in pair["cells"]:
                came_in = (_came_in(pair, producers),) if has_rows_in else ()
                cells = (_cell(pair, producers, column) for column in columns.values())
                lines.append(_row(PEERS[peer].title, words, *came_in, *cells))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(pair: Mapping[str, Any], producers: int, column: Column, is_summary: bool = False) -> str:
    mode, quantity, factor = column
    cell = pair["cells"].get(f"{producers}/{mode}")
    if cell is None:
        return ""
    if cell["reason"]:
        return "none"
    ours, theirs = (figure(cell, side, quantity) for side in SIDES)
    if ours is None or theirs is None:
        return ""
    marks = [_mark(pair, producers, mode, side) for side in SIDES]
    text, found = (
        f"{number(ours * factor)}{marks[0]} / {number(theirs * factor)}{marks[1]}",
        comparison(cell, quantity),
    )
    if found is None:
        return text
    return f"{_ratio(found)}{max(marks)}" if is_summary else f"{text}<br>{_ratio(found)}"


def _ratio(found: Comparison) -> str:
    """`1.31x (1.2-1.5)`, in bold where the peer is ahead, in italics where the rounds do not
    tell."""
    low, high = _two_digits(found.low), _two_digits(found.high)
    spread = "" if low == high else f" ({low}-{high})"
    mark = "**" if found.is_peer_ahead else "*" if found.is_level else ""
    return f"{mark}{number(found.times)}x{spread}{mark}"


def _two_digits(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}"


def _mark(pair: Mapping[str, Any], producers: int, mode: str, side: str) -> str:
    """A dagger where a side did not take in what it was handed, so that its other figures are not
    comparable."""
    is_handed = producers and mode in (FLAT, STEPS)
    cell = pair["cells"][f"{producers}/{mode}"]
    return (
        BEHIND_PACE if is_handed and is_behind_pace(cell, side, pair["work"]["rows_per_s"]) else ""
    )


def _came_in(pair: Mapping[str, Any], producers: int) -> str:
    cell = pair["cells"].get(f"{producers}/{FLAT}")
    if cell is None or cell["reason"] or not producers:
        return ""
    return " / ".join(
        f"{number(figure(cell, side, 'rows_per_s') or 0.0)}{_mark(pair, producers, FLAT, side)}"
        for side in SIDES
    )


def _reasons(pairs: Mapping[str, Any]) -> Iterator[str]:
    """Why cells are empty, once for each peer and reason."""
    for peer, pair in pairs.items():
        reasons: dict[str, list[str]] = {}
        for name, cell in pair["cells"].items():
            if cell["reason"]:
                reasons.setdefault(cell["reason"], []).append(name)
        for reason, names in reasons.items():
            where = (
                ""
                if len(names) == len(pair["cells"])
                else f" ({', '.join(_in_words(name) for name in names)})"
            )
            yield f"- {PEERS[peer].title}, no figures{where}: {reason}"


def _in_words(name: str) -> str:
    producers, mode = name.split("/")
    modes = {FLAT: "flat out", STEPS: "5 ms steps", FLOOD: "insert only", MEMORY: "memory"}
    return f"{PRODUCERS[int(producers)]}, {modes[mode]}"


def _ahead(results: Mapping[str, Any]) -> str:
    """Why, and the cells of which it is true: those at the learner while somebody writes come
    first, then those of them where the peer's figure is better, but not in all rounds."""
    first: dict[str, list[str]] = {}
    level: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for work in WORKS:
        for peer, pair in pairs_of(work, results):
            for heading, (mode, quantity, _) in {**AT_THE_LEARNER, **THE_REST}.items():
                found = _compared(pair, mode, quantity)
                behind = {words: each for words, each in found.items() if each.is_peer_ahead}
                nearly = {
                    words: each for words, each in found.items() if each.is_level and each.times < 1
                }
                nearly.pop(PRODUCERS[0], None)
                why = explanations.explanation(peer, work, mode, quantity) or "No explanation yet."
                what = f"{PEERS[peer].title}, {work}, {heading}"
                is_first = heading in AT_THE_LEARNER and set(behind) != {PRODUCERS[0]}
                _note(first if is_first else others, why, what, behind)
                if heading in AT_THE_LEARNER:
                    _note(level, why, what, nearly)
    parts = ["At the learner while producers write:", "", *_grouped(first), ""]
    parts += [
        "The same, but not told apart, since the rounds do not agree:",
        "",
        *_grouped(level),
        "",
    ]
    return "\n".join([*parts, "Elsewhere:", "", *_grouped(others)])


def _note(
    lines: dict[str, list[str]], why: str, what: str, cells: Mapping[str, Comparison]
) -> None:
    """Put cells below their reason, if there are any."""
    if cells:
        said = ", ".join(f"{words} {number(each.times)}x" for words, each in cells.items())
        lines.setdefault(why, []).append(f"  - {what}: {said}")


def _compared(pair: Mapping[str, Any], mode: str, quantity: str) -> dict[str, Comparison]:
    """By how many producers, as far as there are figures."""
    cells = {
        words: pair["cells"].get(f"{producers}/{mode}") for producers, words in enumerate(PRODUCERS)
    }
    found = {words: comparison(cell, quantity) for words, cell in cells.items() if cell is not None}
    return {words: each for words, each in found.items() if each is not None}


def _grouped(lines: Mapping[str, list[str]]) -> list[str]:
    return [line for why, cells in lines.items() for line in (f"- {why}", *cells)] or ["- none"]


def _choices(results: Mapping[str, Any]) -> str:
    """What was chosen for each library, by its own adapter, and what is true of all."""
    given = [
        choice
        for name in ("areplay", *PEERS)
        for choice in results["peers"].get(name, {}).get("choices", ())
    ]
    return "\n".join(f"- {choice}" for choice in (*given, *OF_ALL))
