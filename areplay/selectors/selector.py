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

What a selector remembers is its own in each sampler, and gone when that one is restarted: what has
to be exact is not drawn but settled beforehand, as `Fifo` and `Epochs` do it (see
`areplay._sampling.batch_plan`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Indices
from areplay._storage.priorities import Masses
from areplay._storage.ring import Ring


class Selector(Protocol):
    """A way to draw. With an attribute `importance_sampling_exponent` a batch gets weights, see
    `weigh`."""

    def draw(
        self, ring: Ring, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """About `count` indices of committed rows, (n,) int64, and the probability that each of
        them had in one draw: a float from 0 to 1 for all of them, or (n,).

        More are asked for than are used where no item can be drawn by some rows, and it is asked
        again if they are too few. None: there is nothing to draw from.
        """
        ...


class BatchSelector(Selector, Protocol):
    """A selector that may be asked for a few batches at once."""

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """As `batches` draws of `count` one after the other, all from the rows as they are now."""
        ...


def checked_draw(selector: object, drawn: object) -> tuple[Indices, Masses]:
    """Return what a user's selector has drawn as arrays (n,) int64 and (n,) float64, of our own.

    Raises:
        TypeError, ValueError: it is no pair of indices and their probabilities.
    """
    method = f"{type(selector).__name__}.draw"
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(
            f"{method} must return a tuple (indices, probabilities), got {type(drawn).__name__}"
        )
    given, chances = drawn
    try:
        indices = np.asarray(given)
        probabilities = np.asarray(chances, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{method} must return arrays of indices and of probabilities: {error}"
        ) from None
    if indices.ndim != 1:
        raise ValueError(f"{method} must return indices of shape (n,), got shape {indices.shape}")
    if len(indices) and indices.dtype.kind not in "iu":
        raise TypeError(
            f"{method} must return int64 indices, got {indices.dtype}; convert them "
            "with astype(np.int64)"
        )
    if probabilities.shape not in ((), indices.shape):
        raise ValueError(
            f"{method} must return one probability, or one for each of {len(indices)} indices, got "
            f"shape {probabilities.shape}"
        )
    # Sums of floats may come out a little above 1. 0 may be what is left of a very small one, but
    # has no weight.
    least = (
        0.0
        if not getattr(selector, "importance_sampling_exponent", 0.0)
        else np.finfo(np.float64).tiny
    )
    wrong = ~((probabilities >= least) & (probabilities <= 1 + 1e-6))
    if len(indices) and wrong.any():
        allowed = "above 0" if least else "from 0"
        raise ValueError(
            f"{method} must return probabilities {allowed} to 1, got "
            f"{probabilities[wrong].ravel()[0]}"
        )
    if indices.dtype.kind == "u":  # an index that no int64 can be names no row
        indices = np.minimum(indices, np.iinfo(np.int64).max)
    return indices.astype(np.int64), np.broadcast_to(probabilities, indices.shape).copy()


def weigh(probabilities: Masses, exponent: float, out: NDArray[np.float32]) -> None:
    """Importance sampling weights `(N p) ** -exponent`, divided by the largest of the batch.

    Schaul et al., Prioritized Experience Replay, 2016, section 3.4: then steps only shrink. N
    cancels out.
    """
    if exponent == 0:
        out.fill(1.0)
    else:
        # x ** -e as exp(-e log x), the last of it in float32: half the time. The least probable one
        # gets exactly 1.
        logarithms = np.log(probabilities)
        out[:] = (np.minimum.reduce(logarithms) - logarithms) * exponent
        np.exp(out, out=out)
