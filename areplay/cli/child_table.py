"""The children of a running replay in the picture of `areplay top`: a table, and their failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from areplay.cli.terminal import clean, gauge, per_s, span

if TYPE_CHECKING:
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

Answer = dict[str, Any]

_BAR = 8  # columns
_MAX_CHILDREN = 24  # lines; more are counted
_MAX_FAILURES = 8
SHORT_WAIT_S = 0.1
"""A process that waits no longer just waits for the next row."""
_WARN_WAIT_S = 1.0
_LONG_WAIT_S = 5.0


@dataclass(frozen=True)
class Row:
    """One child, and its cells in the table."""

    name: str
    child: Answer
    rate: str
    total: str
    bar: Bar
    waiting: str


def rows(statistics: Answer, rates: Answer) -> list[Row]:
    """Make a row for each actor, then one for each sampler."""
    actors = zip(_named_actors(statistics), rates["actors"], strict=True)
    made = [_actor_row(name, actor, rate) for (name, actor), rate in actors]
    prefetch = [s["prefetch"] for s in statistics["batches"] for _ in s["samplers"]]
    sampler_rates = [rate for stream in rates["batches"] for rate in stream["samplers"]]
    samplers = zip(_named_samplers(statistics), sampler_rates, prefetch, strict=True)
    made += [_sampler_row(name, sampler, *rest) for (name, sampler), *rest in samplers]
    return made


def _actor_row(name: str, actor: Answer, rate: Answer) -> Row:
    return Row(
        name=name,
        child=actor,
        rate=f"{per_s(rate['rows_per_s'])} rows/s",
        total=f"{actor['rows']:,} rows",
        bar=gauge(actor["waiting_rows"] / actor["inbox_rows"], "cyan", _BAR),
        waiting=f"inbox {actor['waiting_rows']:,}",
    )


def _sampler_row(name: str, sampler: Answer, rate: Answer, prefetch: int) -> Row:
    return Row(
        name=name,
        child=sampler,
        rate=f"{per_s(rate['batches_per_s'])} batches/s",
        total=f"{sampler['batches_filled']:,} batches",
        bar=gauge(sampler["ready"] / prefetch, "green", _BAR),
        waiting=f"{sampler['ready']:,} ready",
    )


def _named_actors(statistics: Answer) -> Iterator[tuple[str, Answer]]:
    """Name each actor; by its group, too, if there are several groups."""
    several = len({actor["group"] for actor in statistics["actors"]}) > 1
    for actor in statistics["actors"]:
        group = f"{actor['group']}." if several else ""
        yield f"actor {group}{actor['index']}", actor


def _named_samplers(statistics: Answer) -> Iterator[tuple[str, Answer]]:
    """Name each sampler; by its stream, too, if there are several streams."""
    several = len(statistics["batches"]) > 1
    for stream in statistics["batches"]:
        number = f"{stream['number']}." if several else ""
        for sampler in stream["samplers"]:
            yield f"sampler {number}{sampler['index']}", sampler


def table(rows: list[Row], seconds: float) -> Table:
    """Draw the rows; `seconds` passed between the two answers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("restarts", "rate", "so far"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("waiting", width=_BAR, no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    for row in rows[:_MAX_CHILDREN]:
        pid = str(row.child["pid"] or "-")
        count = row.child["restarts"]
        restarts = Text(f"{count:,}", "yellow" if count else "dim")
        state = _state(row.child, seconds)
        table.add_row(row.name, pid, state, restarts, row.rate, row.total, row.bar, row.waiting)
    if more := rows[_MAX_CHILDREN:]:
        alive = sum(row.child["is_alive"] for row in more)
        table.add_row(f"{len(more)} more", "", f"{alive} alive")
    return table


def least_wait_s(seconds: float) -> float:
    """How long an actor must have waited to be called waiting: longer than between two answers.

    An actor that a limiter lets step once in a while waits most of the time, and steps all the
    same.
    """
    return min(max(seconds, SHORT_WAIT_S), _LONG_WAIT_S)


def _state(child: Answer, seconds: float) -> Text:
    from rich.text import Text

    if not child["is_alive"]:
        return Text(*_state_without_process(child))
    # Only actors have these fields, and an older replay does not say how long one is quiet.
    quiet_s = child.get("quiet_s", 0.0)
    waited_s = child.get("waited_s", 0.0)
    if quiet_s:
        return Text(f"quiet {span(quiet_s)}", "bold yellow")
    if waited_s > max(_WARN_WAIT_S, least_wait_s(seconds)):
        return Text(f"waits {span(waited_s)}", "yellow")
    return Text("alive", "green")


def _state_without_process(child: Answer) -> tuple[str, str]:
    if child["has_failed"]:
        return "failed", "bold red"
    return ("done", "dim") if child["has_finished"] else ("starting", "yellow")


def failures(statistics: Answer) -> list[Text]:
    """Describe the last failures of the children that had one, oldest first."""
    children = [*_named_actors(statistics), *_named_samplers(statistics)]
    failed = [(name, child["last_failure"]) for name, child in children if child["last_failure"]]
    failed.sort(key=lambda named: named[1]["exited_at_s"])
    return [_failure(name, exit_) for name, exit_ in failed[-_MAX_FAILURES:]]


def _failure(name: str, exit_: Answer) -> Text:
    from rich.text import Text

    *_, reason = exit_["details"].strip().splitlines() or [""]
    code = "an unknown code" if exit_["exit_code"] is None else exit_["exit_code"]
    text = f"{name} (pid {exit_['pid']}) ended with {code}: {clean(reason)}"
    return Text(text, "red", no_wrap=True, overflow="ellipsis")
