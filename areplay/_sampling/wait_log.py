"""The wait log: how often and how long the learner waited for batches, and since when it waits now.

The event loop of the learner writes it; any thread may read it. Waits that are over and waits that
last are replaced together, in one store, so a reader never counts a wait twice or misses one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Waits:
    """All waits at one moment. Times are `time.monotonic` seconds."""

    count: int = 0
    over_s: float = 0.0
    """Of the waits that are over, together."""
    longest_s: float = 0.0
    """Of the waits that are over."""
    since: tuple[float, ...] = ()
    """When each wait that lasts began."""

    def with_one_over(self, started: float) -> _Waits:
        """The same, with one more wait that is over, begun at `started`."""
        waited_s = time.monotonic() - started
        longest_s = max(self.longest_s, waited_s)
        return _Waits(self.count, self.over_s + waited_s, longest_s, self.since)


@dataclass(frozen=True, slots=True)
class WaitFigures:
    """Waits for statistics; those that last count up to now."""

    count: int
    total_s: float
    longest_s: float


class WaitLog:
    """The waits of one stream's learner, of which several may last at once."""

    def __init__(self) -> None:
        self._waits = _Waits()

    @property
    def is_waiting(self) -> bool:
        """Whether a wait lasts."""
        return bool(self._waits.since)

    def begin(self) -> float:
        """Begin a wait; the moment, which `end` needs."""
        before = self._waits
        started = time.monotonic()
        since = (*before.since, started)
        self._waits = _Waits(before.count + 1, before.over_s, before.longest_s, since)
        return started

    def end(self, started: float) -> None:
        """End the wait that began at `started`."""
        before = self._waits
        since = list(before.since)
        since.remove(started)
        rest = _Waits(before.count, before.over_s, before.longest_s, tuple(since))
        self._waits = rest.with_one_over(started)

    def add(self, started: float) -> None:
        """Count a wait that began at `started` and is over now."""
        before = self._waits
        counted = _Waits(before.count + 1, before.over_s, before.longest_s, before.since)
        self._waits = counted.with_one_over(started)

    def lasting_s(self) -> list[float]:
        """How long each wait that lasts has taken so far."""
        now = time.monotonic()
        return [now - started for started in self._waits.since]

    def figures(self) -> WaitFigures:
        """Count, total and longest wait, those that last included."""
        waits = self._waits
        now = time.monotonic()
        lasting_s = [now - started for started in waits.since]
        longest_s = max([waits.longest_s, *lasting_s])
        return WaitFigures(waits.count, waits.over_s + sum(lasting_s), longest_s)
