"""How long and how large measurements are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from benchmarks.harness.quiet import Patience

Progress = Callable[[str], None]
"""Called with a line about what is going on."""


@dataclass(frozen=True)
class Options:
    """How long and how large a run is."""

    rounds: int = 9
    capacity: int = 100_000
    seconds: float = 1.5  # measured, each side and round
    settle_s: float = 0.5  # thrown away before that, each side and round
    warmup_s: float = 3.0  # thrown away once: a fresh sampler first has to map the pages it reads
    steps: int = 600  # of the learner that blocks, each round
    learner_s: float = 0.005
    rows_per_s: int = 20_000  # coming in beside that learner
    prefetch: int = 16
    batch_size: int = 256
    # of a series whose points take longer and longer: then the rest is left out
    budget_s: float = 90.0
    max_actors: int = 64
    max_rows: int = 10_000_000
    block_rows: tuple[int, ...] = (16, 64, 256, 1_024, 4_096)
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    picture: str | None = None  # where queue_fill draws, if it is to draw

    def record(self) -> dict[str, object]:
        """The lengths and sizes, for a JSON file."""
        return {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("patience", "picture")
        }

    @classmethod
    def quick(cls) -> Self:
        """Everything once and tiny: shows that the code runs, measures nothing."""
        return cls(
            rounds=1,
            capacity=2_048,
            seconds=0.1,
            settle_s=0.02,
            warmup_s=0.05,
            steps=10,
            prefetch=4,
            budget_s=10.0,
            max_actors=2,
            max_rows=10_000,
            block_rows=(16, 256),
        )
