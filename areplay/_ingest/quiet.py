"""Quiet actors: which of them hand nothing in, for how long, and when to say so or to restart them.

An environment that hangs blocks the event loop of its own process, so the learner's process has to
notice it. It looks at two counts of each actor at intervals, the rows put into its inbox and its
reports; an actor pays nothing for it.

An actor is quiet while it runs, is ready, and neither count moves. It is excused while the
learner's side holds it (it waits for room in its inbox, or for its rows to be taken), while its
process starts, and once it was asked to end.

Decisions only: `areplay._ingest.quiet_watch` looks, warns and restarts.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from areplay._base.process_state import is_stopped
from areplay._base.validation import optional_seconds

_LOOKS = 4  # within the shorter of the two limits, so that a limit is exceeded by a quarter at most
_LONGEST_PAUSE_S = 1.0
_GRACE_S = 1.0  # at most, from SIGTERM to SIGKILL


@dataclass(frozen=True, slots=True)
class QuietOptions:
    """How long an actor may hand nothing in; see `Replay.actors`. None: for ever."""

    quiet_s: float | None
    restart_after_s: float | None

    @property
    def pause_s(self) -> float | None:
        """Seconds from one look to the next; None if there is nothing to look for."""
        limits = [limit for limit in (self.quiet_s, self.restart_after_s) if limit is not None]
        return min(_LONGEST_PAUSE_S, min(limits) / _LOOKS) if limits else None


def quiet_options(quiet_s: float | None, restart_after_s: float | None) -> QuietOptions:
    """The options as users pass them; `ValueError` if one is wrong."""
    return QuietOptions(
        optional_seconds("quiet_s", quiet_s),
        optional_seconds("restart_after_s", restart_after_s),
    )


class Quiet:
    """What was seen of one actor. The loop of the learner writes; any thread may ask `lasts_s`.

    Attributes:
        pid: of the process that was seen last; 0 before the first.
        asked_at: monotonic seconds when that process was told to end, so that another takes its
            place; None if it was not.
    """

    def __init__(self, options: QuietOptions) -> None:
        self.pid = 0
        self.asked_at: float | None = None
        self._options = options
        # The counts, and since when they stand still. One tuple: other threads read it.
        self._seen: tuple[int, float] | None = None
        self._warn_after_s = options.quiet_s
        self._counts_at_start = 0

    def starts(self, counts: int) -> None:
        """A process is about to be started; `counts` is what its predecessors have handed in."""
        self._counts_at_start = counts

    def look(self, now: float, pid: int, counts: int, *, is_excused: bool) -> float:
        """See the counts of a process at the monotonic second `now`.

        Returns:
            The seconds for which the actor was quiet before its counts moved; 0.0 if they did not
            move since the last look.
        """
        lasted_s = 0.0
        if pid != self.pid:
            self.pid = pid
            self.asked_at = None
            self._begin(now, counts)
        elif self._seen is None or self._seen[0] != counts or is_excused:
            if self._seen is not None and self._seen[0] != counts:
                lasted_s = now - self._seen[1]
            self._begin(now, counts)
        if is_excused:
            self._seen = None
        return lasted_s

    def lasts_s(self, now: float, counts: int) -> float:
        """Seconds for which the actor has been quiet, from `quiet_s` on; 0.0 before, and if the
        counts have moved."""
        seen = self._seen
        if seen is None or seen[0] != counts:
            return 0.0
        return _beyond(self._options.quiet_s, now - seen[1])

    def is_due(self, now: float) -> bool:
        """Whether to warn: after `quiet_s`, and each time that twice as long has passed."""
        if self._seen is None or self._warn_after_s is None:
            return False
        lasts_s = now - self._seen[1]
        if lasts_s < self._warn_after_s:
            return False
        while lasts_s >= self._warn_after_s:
            self._warn_after_s *= 2
        return True

    def overdue_s(self, now: float) -> float:
        """Seconds for which it has been quiet, if that is longer than `restart_after_s`; else
        0.0."""
        if self._seen is None:
            return 0.0
        return _beyond(self._options.restart_after_s, now - self._seen[1])

    def signal_due(self, now: float, grace_s: float) -> signal.Signals | None:
        """The signal to send at the monotonic second `now`, for its process to be restarted; None
        to send no signal.

        SIGTERM first: where only the coroutine waits it runs its `finally`, which closes the
        environment. It does nothing to a loop that is blocked, nor to a process that is stopped.
        """
        if not self.overdue_s(now):
            return None
        if self.asked_at is None:
            self.asked_at = now
            return signal.SIGTERM
        if now - self.asked_at >= min(_GRACE_S, grace_s):
            return signal.SIGKILL
        return None

    def cause(self, counts: int, *, has_returned: bool = False) -> str:
        """Why nothing may come, and what the user can do.

        Args:
            has_returned: whether the actor's function has, while its process goes on.
        """
        if is_stopped(self.pid):
            return f"its process is stopped; `kill -CONT {self.pid}` lets it go on"
        if has_returned:
            return (
                "its function has returned, but a task that it started does not end though it was "
                "cancelled; end such tasks before you return"
            )
        what = "its environment may hang"
        if counts == self._counts_at_start:
            what = "it has been ready for so long, its first reset may be slow or hang"
        return (
            f"{what}; pass restart_after_s= to Replay.actors to restart it, or raise quiet_s "
            "if a step takes so long"
        )

    def _begin(self, now: float, counts: int) -> None:
        self._seen = (counts, now)
        self._warn_after_s = self._options.quiet_s


def _beyond(limit_s: float | None, seconds: float) -> float:
    """`seconds` from `limit_s` on; 0.0 below it, and without a limit."""
    if limit_s is None or seconds < limit_s:
        return 0.0
    return seconds
