"""The arrays of one batch: stored fields, views of them, and what is known of each item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices
from areplay.items.item import BatchFields, FieldView


@dataclass(frozen=True)
class BatchArrays:
    """Memory for a batch of B items: `indices`, `importance_weights` and `probabilities` (B,), each
    field (B, ...).

    Attributes:
        stored: the memory of the fields, as `layout` says.
    """

    indices: Indices
    importance_weights: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    stored: Mapping[str, Array]
    layout: BatchFields

    @classmethod
    def empty(cls, count: int, fields: BatchFields) -> BatchArrays:
        """Fresh memory for `count` items."""
        stored = fields.empty(count)
        return cls(
            np.empty(count, np.int64),
            np.empty(count, np.float32),
            np.empty(count, np.float64),
            stored,
            fields,
        )

    @cached_property
    def fields(self) -> Mapping[str, Array]:
        """What the learner sees: field name -> array."""
        return self.layout.of(self.stored)

    @property
    def views(self) -> Mapping[str, FieldView]:
        """Which of the fields are parts of what is stored."""
        return self.layout.views

    @property
    def memory(self) -> tuple[Array, ...]:
        """All the arrays."""
        return self.indices, self.importance_weights, self.probabilities, *self.stored.values()

    def first(self, count: int) -> BatchArrays:
        """The places of the first `count` items."""
        if count == len(self.indices):
            return self
        stored = {name: array[:count] for name, array in self.stored.items()}
        indices, importance_weights, probabilities = (
            self.indices[:count],
            self.importance_weights[:count],
            self.probabilities[:count],
        )
        return BatchArrays(indices, importance_weights, probabilities, stored, self.layout)

    def copy(self) -> BatchArrays:
        """The same in memory of its own."""
        stored = {name: array.copy() for name, array in self.stored.items()}
        return BatchArrays(
            self.indices.copy(),
            self.importance_weights.copy(),
            self.probabilities.copy(),
            stored,
            self.layout,
        )
