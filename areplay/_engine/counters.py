"""What a replay counts, and its checkpoints with it: random numbers, and updates of priorities.

There before the replay is opened, since a checkpoint that is loaded counts on from where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np

from areplay._base.validation import whole_number


class Draws(IntEnum):
    """Kinds of random generators. A number never changes: it is part of each seed."""

    OWNER = 0
    ACTORS = 1
    BATCHES = 2
    BATCH_PLANS = 3


class Counters:
    """Counts and random numbers of one replay.

    Args:
        seed: of all random numbers; None: of the operating system's.

    Attributes:
        generator: of the batches that this process draws.
        priorities_updated: rows that got a new priority.
        priorities_stale: rows that were overwritten before they got one.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is not None:
            seed = whole_number("seed", seed, at_least=0)
        self._entropy = np.random.SeedSequence(seed).entropy
        self._made = 0
        self.generator = np.random.default_rng(self.seeds(Draws.OWNER))
        self.priorities_updated = 0
        self.priorities_stale = 0

    def next_number(self) -> int:
        """Give the next group of actors, or stream of batches, its number, from 0."""
        self._made += 1
        return self._made - 1

    def seeds(self, draws: Draws, *key: int) -> np.random.SeedSequence:
        """The seeds of one generator."""
        return _seeds(self._entropy, draws, *key)

    def next_seeds(self, draws: Draws) -> np.random.SeedSequence:
        """The seeds of one more generator of that kind, under the next number."""
        return self.seeds(draws, self.next_number())

    def seeds_of_children(
        self, draws: Draws, number: int
    ) -> Callable[[int, int], np.random.SeedSequence]:
        """A function of a child's index and of its run, from 0, that gives its seeds."""
        return partial(_seeds, self._entropy, draws, number)

    def record(self) -> dict[str, Any]:
        """The counts, ready for a checkpoint's manifest."""
        return {
            "priorities_updated": self.priorities_updated,
            "priorities_stale": self.priorities_stale,
            "entropy": self._entropy,
            "made": self._made,
            "generator": self.generator.bit_generator.state,
        }

    def restore(self, record: dict[str, Any], has_new_seed: bool) -> None:
        """Count on from a record.

        Args:
            has_new_seed: whether the user gave a seed: then random numbers stay as they are.

        Raises:
            Exception: it is no record; numpy has several types for it.
        """
        self.priorities_updated = record["priorities_updated"]
        self.priorities_stale = record["priorities_stale"]
        if not has_new_seed:
            self._entropy = record["entropy"]
            self._made = record["made"]
            self.generator.bit_generator.state = record["generator"]


def _seeds(entropy: Any, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy, spawn_key=tuple(int(number) for number in key))
