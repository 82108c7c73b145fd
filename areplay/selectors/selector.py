"""Selectors: which rows items are drawn by, and with which probability.

A selector draws indices of rows that are committed at that moment. By the time they are copied some
may be gone, and by some no item can be drawn; `areplay._sampling.reader` notices and draws again.

A selector of your own is any object with a `draw` that can be pickled. This one draws recent rows
more often::

    class Recent:
        def __init__(self, mean_age):
            self.mean_age = mean_age  # rows

        def draw(self, ring, count, rng):
            serials, rows = ring.occupied()  # the blocks, and how many rows are in each
            newest_first = np.argsort(-serials)
            serials, rows = serials[newest_first], rows[newest_first]
            ends = np.cumsum(rows)
            if len(ends) == 0:
                return np.empty(0, np.int64), 1.0
            chance = 1 / self.mean_age
            ages = (rng.geometric(chance, count) - 1) % ends[-1]
            blocks = ends.searchsorted(ages, side="right")
            indices = serials[blocks] * ring.block_rows + ends[blocks] - 1 - ages
            return indices, (1 - chance) ** ages * chance / (1 - (1 - chance) ** ends[-1])

Rows that it draws and that are not there, or not any more, are left out, and it is asked again,
some hundred times at most. What it returns otherwise is a `TypeError` or `ValueError` that names
it.

Each sampler has its own copy of such a selector, and a restarted sampler begins with a new one. So
what must be exact is not drawn but planned, as `Fifo` and `Epochs` do it (see
`areplay._sampling.batch_plan`).

areplay's own selectors are options, which never change. What runs is made from them, see
`areplay._sampling.bound_selector`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from areplay._base.arrays import Indices
from areplay._storage.mass_tree import Masses
from areplay._storage.ring import Ring


@runtime_checkable
class Selector(Protocol):
    """Draws rows. A batch gets importance weights if it also has an attribute
    `importance_sampling_exponent`, a float from 0 to 1."""

    def draw(
        self, ring: Ring, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """Draw about `count` indices of committed rows, and say how probable each was.

        areplay asks for more than it needs where some rows make no item, and asks again if the rows
        that do are too few.

        Returns:
            (n,) int64, and the probability that each row had in one draw: a float from 0 to 1 for
            all of them, or (n,). n = 0: there is nothing to draw from.
        """
        ...


@runtime_checkable
class WeightedSelector(Selector, Protocol):
    """A selector whose batches get importance weights."""

    importance_sampling_exponent: float
