"""Uniform draws among the rows that are there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from areplay._base.arrays import Indices
from areplay._storage.mass_tree import Masses
from areplay._storage.ring import Ring


@dataclass(frozen=True)
class Uniform:
    """Draw each committed row with the same probability, with replacement.

    That is 1 / rows, final observations counted; items have the same probability among themselves.
    Overwritten rows are gone.
    """

    def draw(
        self, ring: Ring, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `Selector.draw`."""
        first, end = ring.index_range()
        rows = max(1, ring.rows_now[0])
        if 2 * rows < end - first:  # mostly empty blocks: guessing would rarely hit a row
            return self._draw_counted(ring, count, rng), 1 / rows
        # Guess names and keep those that exist: each that is kept is uniform among those that
        # exist. A few more guesses than needed make up for the open blocks' ends. 12 us for 256,
        # however many blocks there are.
        guesses = _integers(rng, first, end, count + count // 16 + 8)
        indices = guesses[ring.committed(guesses)][:count]
        if len(indices) < count:
            others = self._draw_counted(ring, count - len(indices), rng)
            indices = np.concatenate([indices, others]) if len(others) else others
        return indices, 1 / rows

    def _draw_counted(self, ring: Ring, count: int, rng: np.random.Generator) -> Indices:
        """The same by counting the rows of all blocks: hits always, but takes longer the more
        blocks there are."""
        serials, rows = ring.occupied()
        if len(serials) == 0:
            return np.empty(0, np.int64)
        ends = np.cumsum(rows)
        ordinals = _integers(rng, 0, int(ends[-1]), count)
        blocks = ends.searchsorted(ordinals, side="right")
        return serials[blocks] * ring.block_rows + ordinals - (ends[blocks] - rows[blocks])


def _integers(rng: np.random.Generator, low: int, high: int, count: int) -> Indices:
    """`count` integers from `low` below `high`, by way of doubles: half the time of `rng.integers`
    for so few.

    53 random bits over a span of n leave a bias of n / 2^53 at most, below 1e-6 for any replay that
    fits in memory.
    """
    doubles = rng.random(count)
    doubles *= high - low
    integers: Indices = doubles.astype(np.int64)
    integers += low
    return integers
