"""Reports: scalars that an actor sends to the learner's side, and the newest of a group."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

Scalar = float | int | str | bool

MAX_REPORTS = 10_000


@dataclass(frozen=True, slots=True)
class Report:
    """What an actor sent with `Actor.report`."""

    actor: int
    time_s: float
    """When, in seconds since the epoch, as `time.time()`."""
    values: dict[str, Scalar]


class ReportLog:
    """The newest `MAX_REPORTS` reports of one group of actors. Used on the learner's loop.

    Attributes:
        counts: the number of reports of each actor so far. Any thread may read it.
    """

    def __init__(self, actors: int) -> None:
        self.counts = [0] * actors
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)

    def add(self, index: int, sent: tuple[float, dict[str, Scalar]]) -> None:
        """Keep what actor `index` has sent: when, and its values."""
        time_s, values = sent
        self.counts[index] += 1
        self._reports.append(Report(index, time_s, values))

    def take(self) -> list[Report]:
        """Remove and return the reports, oldest first."""
        taken = list(self._reports)
        self._reports.clear()
        return taken
