"""Back-off: pauses that no doorbell ends, of a process or of a coroutine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_POLL_S = 0.001
_INSIST_AFTER_S = 1.0


async def poll(is_done: Callable[[bool], bool]) -> None:
    """Ask once a millisecond for a change that comes soon and that no process announces.

    Cancelled: `is_done` is not called again.

    Args:
        is_done: called with whether a second has gone by, after which it should not insist.
    """
    late_at = time.monotonic() + _INSIST_AFTER_S
    while not is_done(time.monotonic() > late_at):  # noqa: ASYNC110  it is not announced
        await asyncio.sleep(_POLL_S)


class SleepBackoff:
    """Polling with exponential back-off, for a process that has nothing else to do.

    Each nap is as long as all naps before it. So if events arrive every T, the process notices one
    at most T / 2 late. Polling spares the producer a wake-up call: waking a process on another core
    takes 40 us or, where cores are scarce, the producer's own core.
    """

    _FIRST_S = 50e-6
    _LONGEST_S = 2e-3
    _ALL_S = 0.1

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew with the shortest nap."""
        self._napped_s = 0.0

    def nap(self) -> bool:
        """Let the whole process sleep for a moment.

        Returns False at once after 0.1 s of naps: then wait for a doorbell.
        """
        if self._napped_s > self._ALL_S:
            return False
        seconds = min(max(self._FIRST_S, self._napped_s), self._LONGEST_S)
        time.sleep(seconds)
        self._napped_s += seconds
        return True


class YieldTimer:
    """Says when a coroutine that may never have to wait should let its event loop turn.

    Attributes:
        period_s: seconds between two turns; may be changed at any time.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._last = 0.0

    def is_due(self, at_least_s: float = 0.0) -> bool:
        """Whether it is time for `await asyncio.sleep(0)`; if so, the caller must do that.

        Args:
            at_least_s: seconds between two turns, if that is more than `period_s`: for a caller
                whose turns cost much.
        """
        now = time.monotonic()
        passed_s = now - self._last
        if passed_s < self.period_s or passed_s < at_least_s:  # max() costs as much as all of this
            return False
        self._last = now
        return True
