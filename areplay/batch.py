"""Batches as the learner sees them: arrays by name, in a slot's memory or in memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from areplay.errors import BatchReleased
from areplay.reader import BatchArrays
from areplay.ring import Indices
from areplay.spec import Array


class Batch(Mapping[str, Array]):
    """B items: `batch["obs"]` is an array of shape `(B, *shape)`, dtype as in the spec.

    One that comes from `async for` is a view into shared memory, valid until the next step of the loop: after that its
    arrays show other items. `copy()` keeps it; `release()` gives its memory back earlier.
    """

    __slots__ = ("_arrays", "_give_back")

    def __init__(self, arrays: BatchArrays, give_back: Callable[[], None] | None = None) -> None:
        self._arrays: BatchArrays | None = arrays
        self._give_back = give_back

    @property
    def indices(self) -> Indices:
        """(B,) int64: the name of each item's row, never used again for another row."""
        return self._whole().indices

    @property
    def weights(self) -> NDArray[np.float32]:
        """(B,) float32: importance-sampling weights, all 1 for uniform sampling."""
        return self._whole().weights

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(B,) float64: the probability with which each item was drawn."""
        return self._whole().probabilities

    def copy(self) -> Batch:
        """The same in memory of its own, valid for as long as it lives."""
        arrays = self._whole()
        fields = {name: array.copy() for name, array in arrays.fields.items()}
        return Batch(BatchArrays(arrays.indices.copy(), arrays.weights.copy(), arrays.probabilities.copy(), fields))

    def release(self) -> None:
        """Give the memory back now. Reading the batch after that raises `BatchReleased`. May be called twice."""
        give_back, self._give_back = self._give_back, None
        self._arrays = None
        if give_back is not None:
            give_back()

    @property
    def is_released(self) -> bool:
        """Whether its memory was given back, by `release` or by the next step of the loop."""
        return self._arrays is None

    def __getitem__(self, name: str) -> Array:
        return self._whole().fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole().fields)

    def __len__(self) -> int:
        return len(self._whole().fields)

    def _whole(self) -> BatchArrays:
        if self._arrays is None:
            raise BatchReleased
        return self._arrays

    def __repr__(self) -> str:
        if self._arrays is None:
            return "<Batch, released>"
        return f"<Batch of {len(self._arrays.indices)}: {', '.join(self._arrays.fields)}>"
