"""The reader: fills one batch with whole rows, without a lock and without waiting for a writer.

    draw indices -> copy their rows -> check that their blocks are still the same -> draw anew for the few that are not

After a few rounds in which the writer was faster, the rows that are left are copied one by one under their block's
shared lock, which no writer takes away: so progress is certain, and a writer still does not wait, it leaves that block
for later. A reader that dies holding one leaves nothing: the kernel frees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from areplay.items import Item
from areplay.kill_points import kill_point
from areplay.locks import BlockLocks
from areplay.ring import Indices, Ring
from areplay.select import Selector
from areplay.spec import Array

ROUNDS_WITHOUT_LOCK = 8


@dataclass(frozen=True)
class BatchArrays:
    """Places for a batch of B items: `indices` (B,), `weights` (B,), `probabilities` (B,), and each field (B, ...)."""

    indices: Indices
    weights: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    fields: Mapping[str, Array]

    @classmethod
    def empty(cls, count: int, fields: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]) -> BatchArrays:
        """Fresh memory for `count` items with fields of those shapes and dtypes."""
        return cls(
            np.empty(count, np.int64),
            np.empty(count, np.float32),
            np.empty(count, np.float64),
            {name: np.empty((count, *shape), dtype) for name, (shape, dtype) in fields.items()},
        )


class Reader:
    """Draws and copies batches out of a ring, for one process.

    Attributes:
        rows_redrawn: rows that were copied in vain, since their block was recycled meanwhile.
    """

    def __init__(self, ring: Ring, locks: BlockLocks, item: Item, selector: Selector, rng: np.random.Generator) -> None:
        self._ring, self._locks, self._item, self._selector, self._rng = ring, locks, item, selector, rng
        self.rows_redrawn = 0

    def fill(self, out: BatchArrays) -> bool:
        """Fill `out` with items, each whole and committed; `False`, with `out` undefined, if there is no row."""
        indices, probability = self._selector.draw(self._ring, len(out.indices), self._rng)
        if len(indices) == 0:
            return False
        kill_point("sampler.draw")
        self._item.gather(self._ring, indices, out.fields)
        kill_point("sampler.gather")
        out.indices[:] = indices
        whole = self._ring.unchanged(indices)
        if np.count_nonzero(whole) < len(whole) and not self._mend(out, np.flatnonzero(~whole)):
            return False
        out.weights.fill(1.0)
        out.probabilities.fill(probability)
        return True

    def _mend(self, out: BatchArrays, torn: NDArray[np.intp]) -> bool:
        """Replace the items at `torn` by newly drawn ones."""
        for _ in range(ROUNDS_WITHOUT_LOCK):
            self.rows_redrawn += len(torn)
            indices, _ = self._selector.draw(self._ring, len(torn), self._rng)
            if len(indices) == 0:
                return False
            self._copy(indices, out, torn)
            torn = torn[~self._ring.unchanged(indices)]
            if len(torn) == 0:
                return True
        return all(self._copy_locked(out, at) for at in torn)

    def _copy_locked(self, out: BatchArrays, at: int) -> bool:
        """Replace one item, under the shared lock of its block."""
        while True:
            indices, _ = self._selector.draw(self._ring, 1, self._rng)
            if len(indices) == 0:
                return False
            block = int(indices[0] // self._ring.block_rows % self._ring.blocks)
            if not self._locks.try_shared(block):
                continue  # its writer is at work; most others are free
            try:
                kill_point("sampler.lock")
                if self._ring.committed(indices).all():
                    self._copy(indices, out, np.array([at]))
                    return True
            finally:
                self._locks.release(block)

    def _copy(self, indices: Indices, out: BatchArrays, to: NDArray[np.intp]) -> None:
        shapes = {name: (array.shape[1:], array.dtype) for name, array in out.fields.items()}
        fresh = BatchArrays.empty(len(indices), shapes).fields
        self._item.gather(self._ring, indices, fresh)
        for name, array in out.fields.items():
            array[to] = fresh[name]
        out.indices[to] = indices
