"""Workers: one place in a supervisor, and when its next child may start.

Plain decisions; what waits for them is in `areplay._processes.supervisor`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field

from areplay._base.process_state import is_stopped
from areplay._processes.child import Child
from areplay._processes.exits import Exit
from areplay.errors import ChildFailed
from areplay.statistics import ChildExit

_RESTART_WINDOW_S = 60.0
_FIRST_BACK_OFF_S = 0.05
_LONGEST_BACK_OFF_S = 5.0
_DETAILS_CHARACTERS = 4_000  # of a traceback, its end, for statistics


@dataclass
class Worker:
    """One place in a supervisor, and what became of it."""

    index: int
    child: Child | None = None
    restarts: int = 0
    is_alive: bool = False
    has_finished: bool = False
    failure: ChildFailed | None = None
    last_failure: ChildExit | None = None  # of the child that ended last as it should not have
    deaths: deque[float] = field(default_factory=deque)  # monotonic seconds, of the last minute
    failed_at: float = 0.0  # monotonic seconds, when it failed for good
    # Why its present child was told to end, so that another takes its place.
    restarted_for: str = ""

    @property
    def pid(self) -> int:
        """The pid of its present or last child; 0 before the first."""
        return 0 if self.child is None else self.child.pid

    @property
    def is_stopped(self) -> bool:
        """Whether its child is stopped, by a signal or a debugger."""
        return self.is_alive and self.child is not None and is_stopped(self.child.pid)

    @property
    def is_gone(self) -> bool:
        """Whether it has finished or failed for good."""
        return self.has_finished or self.failure is not None

    def described(self, kind: str) -> str:
        """Its number, its process, and what keeps that from working, if it is known."""
        if self.child is None or not self.is_alive:
            return f"{kind} {self.index} (being started)"
        state = f", stopped: kill -CONT {self.child.pid} lets it go on" if self.is_stopped else ""
        return f"{kind} {self.index} (pid {self.child.pid}{state})"

    def judge(self, exit_: Exit) -> Exit:
        """Count the end of a child that was told to end as a failure, and say why it was told.

        It is one even if the child's body returned on SIGTERM: that is no work done.
        """
        if not self.restarted_for:
            return exit_
        details = self.restarted_for
        self.restarted_for = ""
        return dataclasses.replace(exit_, finished=False, details=details)

    def note_failure(self, exit_: Exit) -> None:
        """Remember how a child ended that should not have ended so."""
        details = exit_.details[-_DETAILS_CHARACTERS:]
        self.last_failure = ChildExit(exit_.pid, exit_.code, details, time.time())

    def may_restart(self, max_restarts: int | None) -> bool:
        """Note a death, and say whether a successor may start.

        It may unless more than `max_restarts` children have died within a minute.
        """
        now = time.monotonic()
        self.deaths.append(now)
        while self.deaths[0] < now - _RESTART_WINDOW_S:
            self.deaths.popleft()
        return max_restarts is None or len(self.deaths) <= max_restarts


def back_off_s(deaths: int, max_restarts: int | None) -> float:
    """How long to wait before the next start.

    The pauses before `max_restarts` starts take half of a minute at most. Otherwise `max_restarts`
    deaths within a minute could never be reached.

    Args:
        deaths: how many children have died within the last minute.
    """
    longest = _LONGEST_BACK_OFF_S
    if max_restarts is not None:
        longest = min(longest, _RESTART_WINDOW_S / 2 / max(max_restarts, 1))
    return min(longest, _FIRST_BACK_OFF_S * 2.0 ** min(deaths - 1, 60))
