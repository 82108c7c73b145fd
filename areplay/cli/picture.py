"""The picture of a running replay that `areplay top` shows: ring, queues, children and waits.

Made of an answer (see docs/observing.md) and of the rates between two answers; knows nothing of
where they come from. It fits into 100 columns; only a reason to wait may take more than a line.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from areplay.cli import child_table
from areplay.cli.terminal import LABEL, clean, gauge, per_s, size, span

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Answer = dict[str, Any]

_BAR = 26  # columns
_NUMBER = 18  # columns
_MAX_WAITS = 8  # lines; more are counted
_COMMAND_CHARACTERS = 50
_REASON_CHARACTERS = 1_000


def picture(answer: Answer, rates: Answer) -> RenderableType:
    """Draw the whole picture."""
    from rich.console import Group
    from rich.text import Text

    statistics = answer["statistics"]
    parts: list[RenderableType] = [_heading(answer), Text(), _ring(answer, rates)]
    for stream, rate in zip(statistics["batches"], rates["batches"], strict=True):
        parts += [Text(), _stream(stream, rate)]
    if rows := child_table.rows(statistics, rates):
        parts += [Text(), child_table.table(rows, rates["seconds"])]
    parts += [Text(), _waits(statistics["waits"], rates["seconds"])]
    if failures := child_table.failures(statistics):
        parts += [Text(), *failures]
    return Group(*parts)


def command_of(answer: Answer) -> str:
    """Shorten the command line of the replay's process, without control characters."""
    program, *words = answer["argv"] or [""]
    text = clean(" ".join([os.path.basename(program), *words])).replace("\n", " ")
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + "…"


def _heading(answer: Answer) -> Text:
    from rich.text import Text

    version = f"areplay {answer['versions'].get('areplay')}"
    facts = f"pid {answer['pid']} · up {span(answer['uptime_s'])} · {version}"
    return Text.assemble((command_of(answer), "bold"), "  ", (clean(facts), "dim"))


def _grid() -> Table:
    """Make a table of label, bar, number and explanation."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", width=LABEL, no_wrap=True)
    grid.add_column(width=_BAR)
    grid.add_column(justify="right", width=_NUMBER, no_wrap=True)
    grid.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    return grid


def _ring(answer: Answer, rates: Answer) -> Table:
    grid = _grid()
    now = answer["statistics"]
    share = now["rows"] / now["capacity_rows"]
    rows = f"{now['rows']:,} rows"
    grid.add_row("ring", gauge(share, "cyan", _BAR), rows, f"of {now['capacity_rows']:,}")
    bytes_per_s = f"{size(rates['rows_per_s'] * now['row_bytes'])}/s"
    each = f"{now['row_bytes']:,} bytes each"
    grid.add_row("", "", f"{per_s(rates['rows_per_s'])} rows/s", f"{bytes_per_s}, {each}")
    memory = f"{size(now['memory_bytes'])} of shared memory"
    grid.add_row("", "", f"{now['rows_inserted']:,} so far", memory)
    _add_saves(grid, now["saves"], answer["time_s"])
    return grid


def _add_saves(grid: Table, saves: Answer, now_s: float) -> None:
    counts = f"{saves['saves']:,} saves, {saves['failures']:,} failed"
    last = saves["last"]
    if last is not None:
        age = span(max(0.0, now_s - saves["last_saved_at_s"]))
        written = f"{size(last['bytes_written'])} in {span(last['seconds'])}"
        grid.add_row("checkpoint", "", f"{age} ago", f"{written}; {counts}")
    elif saves["saving"] or saves["failures"]:
        grid.add_row("checkpoint", "", "none yet", counts)


def _stream(stream: Answer, rate: Answer) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    what = f"stream {stream['number']}: {stream['batch_size']} of {clean(stream['what'])}"
    grid = _grid()
    _add_queue(grid, stream, rate)
    _add_learner(grid, stream, rate)
    if stream["limiter"] is not None:
        _add_limiter(grid, stream["limiter"])
    if stream["items_left"] is not None:
        grid.add_row("", "", f"{stream['items_left']:,} items left", "")
    return Group(Text(what, "dim", no_wrap=True, overflow="ellipsis"), grid)


def _add_queue(grid: Table, stream: Answer, rate: Answer) -> None:
    # More than `prefetch` may be ready: the learner and each sampler have a slot besides.
    states = f"{stream['filling']} being filled, {stream['lent']} lent"
    slots = f"full from {stream['prefetch']:,}; {states}"
    bar = gauge(stream["fill"], "green", _BAR)
    grid.add_row("queue", bar, f"{stream['ready']:,} ready", slots)
    counts = f"{per_s(rate['items_per_s'])} items/s; {stream['batches_delivered']:,} batches"
    grid.add_row("", "", f"{per_s(rate['batches_per_s'])} batches/s", counts)


def _add_learner(grid: Table, stream: Answer, rate: Answer) -> None:
    bar = gauge(rate["waiting_share"], "yellow", _BAR)
    share = f"{100 * rate['waiting_share']:.1f} % waiting"
    longest = span(stream["peak_learner_wait_s"])
    waits = f"{_times(stream['learner_waits'])}, the longest {longest}"
    grid.add_row("learner", bar, share, waits)
    if filled := stream.get("filled_by_learner"):  # a replay of an older version has no such field
        grid.add_row("", "", f"{filled:,} batches", "filled by itself, since none was ready")


def _add_limiter(grid: Table, limiter: Answer) -> None:
    # The error is -error_buffer where the learner must wait, +error_buffer where the actors must.
    share = 0.5 + limiter["error"] / (2 * limiter["error_buffer"])
    held = "neither"
    if limiter["holds_writers"]:
        held = "actors"
    if limiter["holds_learner"]:
        held = "learner"
    steps = f"{limiter['samples_per_insert']:g} a step"
    counts = f"{limiter['inserts']:,} in, {limiter['samples']:,} out"
    bar = gauge(share, "magenta", _BAR)
    grid.add_row("limiter", bar, f"holds {held}", f"{steps}: {counts}")


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count:,} times")


def _waits(waits: list[Answer], seconds: float) -> RenderableType:
    """List the longer waits; `seconds` passed between the two answers."""
    from rich.table import Table
    from rich.text import Text

    long = [wait for wait in waits if _is_long(wait, seconds)]
    if not long:
        least = span(child_table.SHORT_WAIT_S)
        return Text(f"no wait is longer than {least}", "dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold yellow", width=LABEL)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for wait in long[:_MAX_WAITS]:
        who = Text(clean(wait["who"][:_REASON_CHARACTERS]))
        reason = Text(clean(wait["reason"][:_REASON_CHARACTERS]))
        table.add_row(who, f"waits {span(wait['waited_s'])}", reason)
    if len(long) > _MAX_WAITS:
        table.add_row(f"{len(long) - _MAX_WAITS} more", "", "")
    return table


def _is_long(wait: Answer, seconds: float) -> bool:
    if wait["who"].startswith("actor"):
        return bool(wait["waited_s"] >= child_table.least_wait_s(seconds))
    return bool(wait["waited_s"] >= child_table.SHORT_WAIT_S)
