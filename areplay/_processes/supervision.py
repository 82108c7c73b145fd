"""Supervision: what a supervisor is told about its children."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from areplay._base.validation import seconds, whole_number
from areplay._processes.child_main import Body
from areplay.errors import ChildFailed


@dataclass(frozen=True)
class SupervisorOptions:
    """How a supervisor treats its children; see `Replay.actors` and `Replay.batches`."""

    max_restarts: int | None
    start_timeout_s: float
    grace_s: float


def supervisor_options(
    max_restarts: int | None, start_timeout_s: float, grace_s: float
) -> SupervisorOptions:
    """Check the options as users pass them.

    Raises:
        ValueError: one is out of range.
    """
    if max_restarts is not None:
        max_restarts = whole_number("max_restarts", max_restarts, at_least=0)
    return SupervisorOptions(
        max_restarts=max_restarts,
        start_timeout_s=seconds("start_timeout_s", start_timeout_s),
        grace_s=seconds("grace_s", grace_s),
    )


def _ignore(index: int, report: Any) -> None:
    pass


@dataclass(frozen=True)
class SupervisorConfig:
    """What a supervisor runs, and what it calls.

    Attributes:
        kind: what its children are called, such as "actor".
        count: how many children it keeps.
        body: what each child runs, as `body(channel, *arguments(index, run))`.
        arguments: makes them for the child at `index`; `run` is 0 for the first child there.
        options: how the children are treated.
        failure: the error that tells of a child's failure for good.
        ask: asks the child at an index to end, by other means than a signal.
        after_exit: awaited after each end of the child at an index, before its successor starts.
        on_change: called when a child finished or failed for good.
        on_report: called with the index of a child and each payload that it reports.
    """

    kind: str
    count: int
    body: Body
    arguments: Callable[[int, int], tuple[Any, ...]]
    options: SupervisorOptions
    failure: type[ChildFailed]
    ask: Callable[[int], None]
    after_exit: Callable[[int], Awaitable[None]]
    on_change: Callable[[], None]
    on_report: Callable[[int, Any], None] = _ignore
