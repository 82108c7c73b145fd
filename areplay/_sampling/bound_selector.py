"""Bound selectors: what a reader draws rows by, made from a user's selector for one replay.

    Uniform      -> UniformSelector       every row with the same probability
    Prioritized  -> PrioritizedSelector   in proportion to the priorities of a replay
    Fifo, Epochs -> PlannedSelector       draws nothing: a plan says which rows are in which batch
    the user's   -> UserSelector          calls its `draw` and checks what it returns

`BoundSelector` is the whole protocol, with a default for each part that only some of them have. A
bound selector pickles into a sampler that is being spawned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._storage.mass_tree import Masses
from areplay._storage.ring import Ring
from areplay.selectors.selector import Selector, WeightedSelector
from areplay.selectors.uniform import Uniform

# Batches that a sampler draws at once at most, where a draw does not get old.
MOST_AT_ONCE = 8
# Sums of floats may come out a little above 1.
_MOST_PROBABLE = 1 + 1e-6


class BoundSelector:
    """Chooses the rows of the items of one stream of batches, or of calls of `Replay.sample`.

    Args:
        given: the user's selector.

    Attributes:
        is_of_user: its draws may be slow, and of rows that do not exist.
        is_planned: a plan says which rows are in which batch; nothing is drawn.
        changes_without_rows: a new draw may have other chances though no row was written.
    """

    is_of_user = False
    is_planned = False
    changes_without_rows = False

    def __init__(self, given: object) -> None:
        self.given = given

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """Draw as `batches` draws of `count` rows one after the other, all from the rows of this
        moment."""
        raise NotImplementedError

    def batches_at_once(self, prefetch: int, samplers: int) -> int:
        """How many batches a sampler may draw at once.

        Each batch waits in the queue for all that are filled before it. One that is drawn with
        others also waits for those.
        """
        return 1

    @property
    def importance_sampling_exponent(self) -> float:
        """The exponent of the importance weights; 0: all weights are 1."""
        return 0.0

    def set_exponent(self, value: float) -> None:
        """Use another importance sampling exponent from the next batch on.

        Raises:
            TypeError: this selector has no such exponent.
            ValueError: `value` is not a number from 0 to 1.
        """
        raise TypeError(f"only Prioritized has an importance_sampling_exponent, not {self!r}")

    def weigh(self, probabilities: Masses, out: NDArray[np.float32]) -> None:
        """Write the importance weights (B,) of items that were drawn with `probabilities` (B,)."""
        weigh(probabilities, self.importance_sampling_exponent, out)

    def close(self) -> None:
        """Give back what it holds of the replay. Its samplers have ended. May be called twice."""

    def on_delivered(self, batches: int) -> None:
        """Follow the schedule, if there is one, after `batches` batches of the stream."""

    @property
    def obstacle(self) -> str:
        """Why nothing can be drawn whatever rows there are, and what to do; "" if something can."""
        return ""

    @property
    def stream_name(self) -> str:
        """Names the selector in checkpoints. A stream of the same name and item goes on with the
        counts of the earlier one."""
        return type(self.given).__name__

    def items_text(self, item: object) -> str:
        """Which items it draws, for a message that there is none."""
        return text_of(item)

    def __repr__(self) -> str:
        return text_of(self.given)


class UniformSelector(BoundSelector):
    """Draws as `Uniform` does."""

    def __init__(self, given: Uniform) -> None:
        super().__init__(given)
        self._uniform = given

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `BoundSelector.draw_batches`."""
        return self._uniform.draw(ring, batches * count, rng)

    def batches_at_once(self, prefetch: int, samplers: int) -> int:
        """See `BoundSelector.batches_at_once`."""
        return MOST_AT_ONCE


class UserSelector(BoundSelector):
    """Draws as a selector of the user's does, and checks what it returns."""

    is_of_user = True
    changes_without_rows = True

    def __init__(self, given: Selector) -> None:
        super().__init__(given)
        self._selector = given

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """Draw (n,) int64 and (n,) float64, arrays of our own.

        Raises:
            TypeError, ValueError: the user's selector returned no indices and probabilities.
        """
        drawn = self._selector.draw(ring, batches * count, rng)
        is_weighted = self.importance_sampling_exponent != 0
        return checked_draw(self._selector, drawn, is_weighted=is_weighted)

    @property
    def importance_sampling_exponent(self) -> float:
        """The user's, if it has one."""
        selector = self._selector
        return (
            selector.importance_sampling_exponent if isinstance(selector, WeightedSelector) else 0.0
        )


def checked_draw(selector: object, drawn: object, *, is_weighted: bool) -> tuple[Indices, Masses]:
    """Return what a user's selector has drawn as arrays (n,) int64 and (n,) float64, of our own.

    Args:
        is_weighted: whether weights are made of the probabilities; then 0 is refused.

    Raises:
        TypeError, ValueError: it is no pair of indices and their probabilities.
    """
    method = f"{type(selector).__name__}.draw"
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(
            f"{method} must return a tuple (indices, probabilities), got {type(drawn).__name__}"
        )
    try:
        indices = np.asarray(drawn[0])
        probabilities = np.asarray(drawn[1], np.float64)
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
    if len(indices):
        _check_probabilities(method, probabilities, is_weighted=is_weighted)
    if indices.dtype.kind == "u":
        # an index that no int64 can be names no row
        indices = np.minimum(indices, np.iinfo(np.int64).max)
    return indices.astype(np.int64), np.broadcast_to(probabilities, indices.shape).copy()


def _check_probabilities(method: str, probabilities: Masses, *, is_weighted: bool) -> None:
    # A very small probability may be rounded to 0. That is harmless unless weights are made of it.
    least = np.finfo(np.float64).tiny if is_weighted else 0.0
    wrong = ~((probabilities >= least) & (probabilities <= _MOST_PROBABLE))
    if wrong.any():
        allowed = "above 0" if is_weighted else "from 0"
        raise ValueError(
            f"{method} must return probabilities {allowed} to 1, got "
            f"{probabilities[wrong].ravel()[0]}"
        )


def weigh(probabilities: Masses, exponent: float, out: NDArray[np.float32]) -> None:
    """Write importance weights `(N p) ** -exponent`, divided by the largest of the batch.

    Schaul et al., Prioritized Experience Replay, 2016, section 3.4: then steps only shrink. N
    cancels out.
    """
    if exponent == 0:
        out.fill(1.0)
        return
    # x ** -e as exp(-e log x), the last of it in float32: half the time. The least probable item
    # gets exactly 1.
    logarithms = np.log(probabilities)
    out[:] = (np.minimum.reduce(logarithms) - logarithms) * exponent
    np.exp(out, out=out)
