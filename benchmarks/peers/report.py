"""The page about the peers, made from the JSON and a template; the same JSON gives the same page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from areplay.measures.measurement import number
from benchmarks.peers import explanations
from benchmarks.peers.environments import PEERS
from benchmarks.peers.protocol import FLAT, FLOOD, STEPS
from benchmarks.peers.results import figure, ratio
from benchmarks.peers.works import WORKS

TEMPLATE = Path(__file__).parent / "page.md"
PRODUCERS = ("alone", "1 producer", "2 producers")
COLUMNS = {  # of a work's table: mode, quantity, heading, factor from the stored unit
    "batches/s, flat out": (FLAT, "batches_per_s", 1.0),
    "wait behind 5 ms steps, p50 us": (STEPS, "p50_us", 1.0),
    "mean us": (STEPS, "mean_us", 1.0),
    "p99 us": (STEPS, "p99_us", 1.0),
    "longest us": (STEPS, "max_us", 1.0),
    "rows/s, insert only": (FLOOD, "rows_per_s", 1.0),
    "CPU s / million rows": (FLAT, "cpu_s_per_million_rows", 1.0),
    "memory, MB": (FLAT, "memory_bytes", 1e-6),
}
AT_THE_LEARNER = {"batches_per_s", "p50_us", "mean_us", "p99_us"}
EVEN = 0.97  # a ratio that is nearer to 1 than the rounds can tell apart


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results))


def page(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    return TEMPLATE.read_text().format(
        machine=_machine(results),
        missing=_missing(results),
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
            f"Measured on {machine['cores']} cores of {machine['processor']} with Python {machine['python']}: "
            f"{plan['rounds']} rounds of {plan['seconds']} s for each side and mode."
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
            parts = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
            versions.append(f"{title} ({parts})")
    return " ".join([*lines, f"Versions: {'; '.join(versions)}."])


def _missing(results: Mapping[str, Any]) -> str:
    """What could not be measured as a whole; the last line of its reason."""
    lines = [
        f"- **{PEERS[name].title}** {about['reason']}"
        for name, about in results["peers"].items()
        if name in PEERS and about["reason"]
    ]
    return "\n".join(lines) or "All peers could be installed, but for rlpyt, whose scheme was written anew."


def _work(name: str, results: Mapping[str, Any]) -> str:
    pairs = dict(pairs_of(name, results))
    work = next(iter(pairs.values()))["work"]
    lines = [
        f"## {WORKS[name].title}",
        "",
        f"{work['capacity']:,} rows of {work['row_bytes']:,} bytes; producers hand in {work['rows_per_s']:,} rows/s "
        f"together, in chunks of {work['chunk_rows']}. Each cell: areplay / the peer, and the ratio.",
        "",
        "| peer | " + " | ".join(["", "rows/s in", *COLUMNS]) + " |",
        "|---" * 2 + "|---:" * (len(COLUMNS) + 1) + "|",
    ]
    for peer, pair in pairs.items():
        for producers, words in enumerate(PRODUCERS):
            if f"{producers}/{FLAT}" in pair["cells"]:
                cells = [_came_in(pair, producers), *(_cell(pair, producers, *column) for column in COLUMNS.values())]
                lines.append(f"| {PEERS[peer].title} | {words} | " + " | ".join(cells) + " |")
    reasons = list(_reasons(pairs))
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def _cell(pair: Mapping[str, Any], producers: int, mode: str, quantity: str, factor: float) -> str:
    cell = pair["cells"].get(f"{producers}/{mode}")
    if cell is None:
        return ""
    if cell["reason"]:
        return "none"
    ours, theirs, times = figure(cell, "areplay", quantity), figure(cell, "peer", quantity), ratio(cell, quantity)
    if ours is None or theirs is None:
        return ""
    text = f"{number(ours * factor)} / {number(theirs * factor)}"
    if times is None:
        return text
    return f"**{text} ({number(times)}x)**" if times < EVEN else f"{text} ({number(times)}x)"


def _came_in(pair: Mapping[str, Any], producers: int) -> str:
    cell = pair["cells"].get(f"{producers}/{FLAT}")
    if cell is None or cell["reason"] or not producers:
        return ""
    values = (figure(cell, side, "rows_per_s") for side in ("areplay", "peer"))
    return " / ".join(number(value or 0.0) for value in values)


def _reasons(pairs: Mapping[str, Any]) -> Iterator[str]:
    """Why cells are empty, once for each peer and reason."""
    for peer, pair in pairs.items():
        reasons: dict[str, list[str]] = {}
        for name, cell in pair["cells"].items():
            if cell["reason"]:
                reasons.setdefault(cell["reason"], []).append(name)
        for reason, names in reasons.items():
            where = "" if len(names) == len(pair["cells"]) else f" ({', '.join(_in_words(name) for name in names)})"
            yield f"- {PEERS[peer].title}, no figures{where}: {reason}"


def _in_words(name: str) -> str:
    producers, mode = name.split("/")
    modes = {FLAT: "flat out", STEPS: "5 ms steps", FLOOD: "insert only"}
    return f"{PRODUCERS[int(producers)]}, {modes[mode]}"


def _ahead(results: Mapping[str, Any]) -> str:
    """A sentence for each row in which a peer is ahead: those at the learner while somebody writes come first."""
    first, others = [], []
    for work in WORKS:
        for peer, pair in pairs_of(work, results):
            for heading, (mode, quantity, _) in COLUMNS.items():
                behind = {}
                for producers, words in enumerate(PRODUCERS):
                    cell = pair["cells"].get(f"{producers}/{mode}")
                    if cell is not None and (times := ratio(cell, quantity)) is not None and times < EVEN:
                        behind[words] = f"{words} {number(times)}x"
                if behind:
                    why = explanations.explanation(peer, work, quantity) or "No explanation yet."
                    line = f"- {PEERS[peer].title}, {work}, {heading}: {', '.join(behind.values())}. {why}"
                    is_first = quantity in AT_THE_LEARNER and set(behind) != {PRODUCERS[0]}
                    (first if is_first else others).append(line)
    parts = ["At the learner while producers write:", ""]
    parts += first or ["- none"]
    parts += ["", "Elsewhere:", ""]
    return "\n".join([*parts, *(others or ["- none"])])


def _choices(results: Mapping[str, Any]) -> str:
    lines = []
    for name in ("areplay", *PEERS):
        for choice in results["peers"].get(name, {}).get("choices", ()):
            lines.append(f"- {choice}")
    lines.append("- All: the learner's step is a sleep, as it is for a process that waits for a GPU.")
    lines.append("- Where a library has producer processes or threads, they are the same loop with the same pace.")
    return "\n".join(lines)
