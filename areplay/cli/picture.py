"""The picture of a running replay that `areplay top` shows: bars, rates, children, and who waits
for whom.

Made of the replay's answer (see docs/observing.md) and of the rates between two answers; knows
nothing of where they come from. It fits into 100 columns; only a reason to wait may take more than
a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from areplay.cli.terminal import bar, clean, size, span

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Answer = dict[str, Any]

_LABEL, _BAR, _NUMBER, _PLACE = 10, 26, 18, 8  # columns
_MOST_CHILDREN = 24  # lines; more are counted
_MOST_WAITS = 8
_REASON_CHARACTERS = 1_000
_LEAST_WAIT_S = 0.1  # who waits shorter just waits for the next row
_WARN_WAIT_S, _LONG_WAIT_S = 1.0, 5.0


def picture(answer: Answer, speed: Answer) -> RenderableType:
    """All of it."""
    from rich.console import Group
    from rich.text import Text

    statistics = answer["statistics"]
    parts: list[RenderableType] = [_heading(answer), Text(), _ring(answer, speed)]
    for stream, rate in zip(statistics["batches"], speed["batches"], strict=True):
        parts += [Text(), _stream(stream, rate)]
    children = list(_children(statistics, speed))
    if children:
        parts += [Text(), _table(children, speed["seconds"])]
    parts += [Text(), _waits(statistics["waits"], speed["seconds"])]
    failures = list(_failures(statistics))
    if failures:
        parts += [Text(), *failures]
    return Group(*parts)


def command_of(answer: Answer) -> str:
    """The command line of the replay's process, short and harmless."""
    words = [os.path.basename(word) if k == 0 else word for k, word in enumerate(answer["argv"])]
    text = clean(" ".join(words)).replace("\n", " ")
    return text if len(text) <= 50 else text[:49] + "…"


def _heading(answer: Answer) -> Text:
    from rich.text import Text

    facts = (
        f"pid {answer['pid']} · up {span(answer['uptime_s'])} · areplay "
        f"{answer['versions'].get('areplay')}"
    )
    return Text.assemble((command_of(answer), "bold"), "  ", (clean(facts), "dim"))


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", width=_LABEL, no_wrap=True)
    grid.add_column(width=_BAR)
    grid.add_column(justify="right", width=_NUMBER, no_wrap=True)
    grid.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    return grid


def _gauge(share: float, colour: str, width: int = _BAR) -> Text:
    from rich.text import Text

    return Text(bar(share, width), f"{colour} on grey27")


def _ring(answer: Answer, speed: Answer) -> Table:
    grid, now, saves = _grid(), answer["statistics"], answer["statistics"]["saves"]
    rows, capacity = now["rows"], now["capacity_rows"]
    grid.add_row("ring", _gauge(rows / capacity, "cyan"), f"{rows:,} rows", f"of {capacity:,}")
    bytes_per_s = speed["rows_per_s"] * now["row_bytes"]
    grid.add_row(
        "",
        "",
        f"{_rate(speed['rows_per_s'])} rows/s",
        f"{size(bytes_per_s)}/s, {now['row_bytes']:,} bytes each",
    )
    grid.add_row(
        "", "", f"{now['rows_inserted']:,} so far", f"{size(now['memory_bytes'])} of shared memory"
    )
    counts = f"{saves['saves']:,} saves, {saves['failures']:,} failed"
    if saves["last"] is not None:
        ago = span(max(0.0, answer["time_s"] - saves["last_saved_at_s"]))
        took = f"{size(saves['last']['bytes_written'])} in {span(saves['last']['seconds'])}"
        grid.add_row("checkpoint", "", f"{ago} ago", f"{took}; {counts}")
    elif saves["saving"] or saves["failures"]:
        grid.add_row("checkpoint", "", "none yet", counts)
    return grid


def _stream(stream: Answer, rate: Answer) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    grid = _grid()
    # More than `prefetch` may be ready: there is a slot for the learner besides, and one a sampler.
    slots = (
        f"full from {stream['prefetch']:,}; {stream['filling']} being filled, {stream['lent']} lent"
    )
    grid.add_row("queue", _gauge(stream["fill"], "green"), f"{stream['ready']:,} ready", slots)
    counts = f"{_rate(rate['items_per_s'])} items/s; {stream['batches_delivered']:,} batches"
    grid.add_row("", "", f"{_rate(rate['batches_per_s'])} batches/s", counts)
    waits = f"{_times(stream['learner_waits'])}, the longest {span(stream['peak_learner_wait_s'])}"
    grid.add_row(
        "learner",
        _gauge(rate["waiting_share"], "yellow"),
        f"{100 * rate['waiting_share']:.1f} % waiting",
        waits,
    )
    if own := stream.get("filled_by_learner"):  # which an older replay does not say
        grid.add_row("", "", f"{own:,} batches", "filled by itself, since none was ready")
    limiter = stream["limiter"]
    if limiter is not None:
        # From -error_buffer, where the learner has to wait, to +error_buffer, where the actors have
        # to.
        share = 0.5 + limiter["error"] / (2 * limiter["error_buffer"])
        held = (
            "learner"
            if limiter["holds_learner"]
            else "actors"
            if limiter["holds_writers"]
            else "nobody"
        )
        counts = (
            f"{limiter['samples_per_insert']:g} a step: {limiter['inserts']:,} in, "
            f"{limiter['samples']:,} out"
        )
        grid.add_row("limiter", _gauge(share, "magenta"), f"holds {held}", counts)
    if stream["items_left"] is not None:
        grid.add_row("", "", f"{stream['items_left']:,} items left", "")
    what = f"stream {stream['number']}: {stream['batch_size']} of {clean(stream['what'])}"
    return Group(Text(what, "dim", no_wrap=True, overflow="ellipsis"), grid)


def _rate(per_s: float) -> str:
    """With a decimal where that tells something."""
    return f"{per_s:,.1f}" if per_s < 100 else f"{per_s:,.0f}"


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count:,} times")


def _children(
    statistics: Answer, speed: Answer
) -> Iterator[tuple[str, Answer, str, str, Any, str]]:
    """`(name, child, rate, total, gauge, its numbers)` of all actors and samplers."""
    actors, samplers = _named_actors(statistics), _named_samplers(statistics)
    for (name, actor), rate in zip(actors, speed["actors"], strict=True):
        gauge = _gauge(actor["waiting_rows"] / actor["inbox_rows"], "cyan", _PLACE)
        inbox = f"inbox {actor['waiting_rows']:,}"
        yield (
            name,
            actor,
            f"{_rate(rate['rows_per_s'])} rows/s",
            f"{actor['rows']:,} rows",
            gauge,
            inbox,
        )
    places = [stream["prefetch"] for stream in statistics["batches"] for _ in stream["samplers"]]
    speeds = [rate for stream in speed["batches"] for rate in stream["samplers"]]
    for (name, sampler), rate, prefetch in zip(samplers, speeds, places, strict=True):
        gauge = _gauge(sampler["ready"] / prefetch, "green", _PLACE)
        ready, filled = f"{sampler['ready']:,} ready", f"{sampler['batches_filled']:,} batches"
        yield name, sampler, f"{_rate(rate['batches_per_s'])} batches/s", filled, gauge, ready


def _named_actors(statistics: Answer) -> list[tuple[str, Answer]]:
    """Each with its name, which has the number of its group if there are several."""
    several = len({actor["group"] for actor in statistics["actors"]}) > 1
    return [
        (
            f"actor {actor['group']}.{actor['index']}" if several else f"actor {actor['index']}",
            actor,
        )
        for actor in statistics["actors"]
    ]


def _named_samplers(statistics: Answer) -> list[tuple[str, Answer]]:
    """Each with its name, which has the number of its stream if there are several."""
    several = len(statistics["batches"]) > 1
    return [
        (
            f"sampler {stream['number']}.{sampler['index']}"
            if several
            else f"sampler {sampler['index']}",
            sampler,
        )
        for stream in statistics["batches"]
        for sampler in stream["samplers"]
    ]


def _table(children: list[tuple[str, Answer, str, str, Any, str]], seconds: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("restarts", justify="right", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("so far", justify="right", no_wrap=True)
    table.add_column("waiting", width=_PLACE, no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    for name, child, rate, total, gauge, place in children[:_MOST_CHILDREN]:
        restarts = Text(f"{child['restarts']:,}", "yellow" if child["restarts"] else "dim")
        table.add_row(
            name,
            str(child["pid"] or "-"),
            _state(child, seconds),
            restarts,
            rate,
            total,
            gauge,
            place,
        )
    if len(children) > _MOST_CHILDREN:
        more = [child for _, child, *_ in children[_MOST_CHILDREN:]]
        table.add_row(f"{len(more)} more", "", f"{sum(child['is_alive'] for child in more)} alive")
    return table


def _least_wait_s(seconds: float) -> float:
    """How long an actor must have waited to be called waiting: longer than from one look to the
    next.

    An actor that a limiter lets step once in a while waits most of the time, and steps all the
    same.
    """
    return min(max(seconds, _LEAST_WAIT_S), _LONG_WAIT_S)


def _state(child: Answer, seconds: float) -> Text:
    """In a word; `seconds` passed since the look before."""
    from rich.text import Text

    if child["is_alive"]:
        if quiet_s := child.get("quiet_s", 0.0):  # of an actor, by a replay that says it
            return Text(f"quiet {span(quiet_s)}", "bold yellow")
        waited_s, least_s = child.get("waited_s", 0.0), max(_WARN_WAIT_S, _least_wait_s(seconds))
        return (
            Text(f"waits {span(waited_s)}", "yellow")
            if waited_s > least_s
            else Text("alive", "green")
        )
    if child["has_failed"]:
        return Text("failed", "bold red")
    return Text("done", "dim") if child["has_finished"] else Text("starting", "yellow")


def _waits(waits: list[Answer], seconds: float) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    least_s = {True: _least_wait_s(seconds), False: _LEAST_WAIT_S}
    long = [wait for wait in waits if wait["waited_s"] >= least_s[wait["who"].startswith("actor")]]
    if not long:
        return Text(f"nobody waits longer than {span(_LEAST_WAIT_S)}", "dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold yellow", width=_LABEL)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for wait in long[:_MOST_WAITS]:
        table.add_row(
            Text(_shortened(wait["who"])),
            f"waits {span(wait['waited_s'])}",
            Text(_shortened(wait["reason"])),
        )
    if len(long) > _MOST_WAITS:
        table.add_row(f"{len(long) - _MOST_WAITS} more", "", "")
    return table


def _shortened(text: str) -> str:
    return clean(text[:_REASON_CHARACTERS])


def _failures(statistics: Answer) -> Iterator[Text]:
    """How children ended last that should not have ended so."""
    from rich.text import Text

    children = _named_actors(statistics) + _named_samplers(statistics)
    failed = [
        (name, child["last_failure"])
        for name, child in children
        if child["last_failure"] is not None
    ]
    for name, exit_ in sorted(failed, key=lambda pair: pair[1]["exited_at_s"])[-_MOST_WAITS:]:
        *_, last = exit_["details"].strip().splitlines() or [""]
        code = "an unknown code" if exit_["exit_code"] is None else exit_["exit_code"]
        what = f"{name} (pid {exit_['pid']}) ended with {code}: {clean(last)}"
        yield Text(what, "red", no_wrap=True, overflow="ellipsis")
