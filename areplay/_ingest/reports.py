"""Reports: scalars that an actor sends to the learner's side."""

from __future__ import annotations

from dataclasses import dataclass

Scalar = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Report:
    """What an actor sent with `Actor.report`."""

    actor: int
    time_s: float
    """When, in seconds since the epoch, as `time.time()`."""
    values: dict[str, Scalar]
