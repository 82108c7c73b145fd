"""The reader: fills one batch with whole items, without a lock and without waiting for a writer.

    draw rows -> find their windows -> copy -> check that the rows are still the same -> draw anew
    for the few that are not

After a few rounds in which the writer was faster, the reader copies the items that are left one by
one, under the shared locks of their blocks, which writers pass by. A writer is faster then only if
it goes round the ring between a draw and its locks. If the reader dies holding a lock, the kernel
frees it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices
from areplay._base.failpoints import failpoint
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.item_search import ItemSearch, SearchLimits
from areplay._shm.range_locks import BlockLocks
from areplay._storage.ring import Ring
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Windows
from areplay.items.item import BatchFields, Item
from areplay.items.transform import Transform, split_fields

ROUNDS_WITHOUT_LOCK = 8

# Items that are drawn ahead at most, and how long they are used while a new draw would give others.
_DRAWN_AHEAD, _STOCK_S = 2_048, 0.1


@dataclass
class _Stock:
    """Items that were drawn ahead.

    Attributes:
        used: items, from the first on, that are in batches already.
        rows_inserted: of the ring when they were drawn.
        drawn_s: when they were drawn, by the monotonic clock.
    """

    windows: Windows
    rows_inserted: int
    drawn_s: float
    used: int = 0

    def has(self, count: int) -> bool:
        """Whether `count` items are left."""
        return self.used + count <= len(self.windows)

    def take(self, count: int) -> Windows:
        """The next `count` items."""
        start = self.used
        self.used += count
        return self.windows.part(start, self.used)


class Reader:
    """Draws items and copies them out of a ring, for one process.

    Args:
        locks: of this reader's thread.
        most_at_once: small batches that may be drawn at once, by the priorities of that moment.
        limits: when a search for items ends without success.

    Attributes:
        fields: of the batches that it fills.
        rows_redrawn: items that were copied and dropped again, since a block of theirs was recycled
            meanwhile.
    """

    def __init__(
        self,
        ring: Ring,
        locks: BlockLocks,
        item: Item,
        selector: BoundSelector,
        rng: np.random.Generator,
        transform: Transform | None = None,
        *,
        most_at_once: int = 1,
        limits: SearchLimits = SearchLimits(),  # noqa: B008
    ) -> None:
        self._ring = ring
        self._locks = locks
        self._item = item
        self._selector = selector
        self._rng = rng
        self._finder = WindowFinder(ring, item.window)
        self._search = ItemSearch(ring, self._finder, selector, rng, limits)
        self._item_fields = self.fields = BatchFields(item.fields(ring.spec))
        self._transform = transform
        # What the item writes and the batch does not have, but the transform reads.
        self._scratch: dict[str, Array] = {}
        if transform is not None:
            self.fields, self._scratch_fields = split_fields(transform, self._item_fields)
        self._most_at_once = most_at_once
        self._gives_up = limits.gives_up
        self._stock: _Stock | None = None
        self.rows_redrawn = 0

    def fill(self, out: BatchArrays, rows: Indices | None = None) -> bool:
        """Fill `out` with items, each whole and committed.

        Args:
            out: memory for B items.
            rows: (B,) int64, the rows to make items of instead of drawn ones. Their blocks are
                pinned.

        Returns:
            False, with `out` undefined, if there seem to be no items.

        Raises:
            TypeError, ValueError: a user's selector returned something that names no rows. No lock
                is held then.
        """
        windows = self._next(len(out.indices)) if rows is None else self._finder.find(rows)
        if windows is None:
            return False
        if rows is not None:
            assert len(windows) == len(rows), "a row that was to be delivered is gone"
        failpoint("sampler.draw")
        target = self._target(out)
        self._item.assemble(windows, target)
        failpoint("sampler.gather")
        out.indices[:] = windows.indices
        out.probabilities[:] = windows.probabilities
        torn = windows.changed()
        if len(torn):
            assert rows is None, "a row that was to be delivered was overwritten"
            if not self._mend(out, target, torn):
                return False
        self._selector.weigh(out.probabilities, out.importance_weights)
        if self._transform is not None:
            written = {name: out.stored[name] for name in self._transform.fields}
            self._transform.function(self._item_fields.of(target), written, self._rng)
        return True

    def _target(self, out: BatchArrays) -> Mapping[str, Array]:
        """The arrays that the item writes to: those of the batch, but for what a transform
        replaces."""
        if self._transform is None:
            return out.stored
        count = len(out.indices)
        for name, field in self._scratch_fields.items():
            if len(self._scratch.get(name, ())) != count:
                self._scratch[name] = np.empty((count, *field.shape), field.dtype)
        places = {**out.stored, **self._scratch}
        return {name: places[name] for name in self._item_fields.stored}

    def _next(self, count: int) -> Windows | None:
        """Take `count` items of the stock, or draw them; None if there seem to be none.

        The stock holds the items of up to `most_at_once` batches: a draw costs much the same
        however many items it draws. They are as good as those in the queue, which are older, but
        not after a pause in which rows came in, or priorities may have changed.
        """
        batches = min(self._most_at_once, _DRAWN_AHEAD // count)
        if batches < 2:
            return self._search.find(count)
        stock = self._stock
        if stock is None or not stock.has(count) or self._is_stale(stock):
            rows_inserted = self._ring.rows_inserted[0]
            drawn_s = time.monotonic()
            windows = self._search.find(count * batches, batches)
            if windows is None:
                self._stock = None
                return None
            stock = self._stock = _Stock(windows, rows_inserted, drawn_s)
        return stock.take(count)

    def _is_stale(self, stock: _Stock) -> bool:
        """Whether the stock is old, and a new draw would give other items."""
        if time.monotonic() - stock.drawn_s <= _STOCK_S:
            return False
        has_new_rows: bool = self._ring.rows_inserted[0] != stock.rows_inserted
        return has_new_rows or self._selector.changes_without_rows

    def _mend(self, out: BatchArrays, target: Mapping[str, Array], torn: NDArray[np.intp]) -> bool:
        """Replace the items at `torn` by newly drawn ones; False if there seem to be none."""
        for _ in range(ROUNDS_WITHOUT_LOCK):
            self.rows_redrawn += len(torn)
            windows = self._search.find_again(len(torn))
            if windows is None:
                return False
            self._copy(windows, out, target, torn)
            torn = torn[windows.changed()]
            if len(torn) == 0:
                return True
        return all(self._copy_locked(out, target, at) for at in torn)

    def _copy_locked(self, out: BatchArrays, target: Mapping[str, Array], at: int) -> bool:
        """Replace one item, under the shared locks of its blocks."""
        while not self._gives_up():
            windows = self._search.find_again(1)
            if windows is None:
                return False
            held: list[int] = []
            try:
                if self._lock_shared(windows.blocks(), held):
                    failpoint("sampler.lock")
                    if len(windows.changed()) == 0:
                        self._copy(windows, out, target, np.array([at]))
                        return True
            finally:
                for block in held:
                    self._locks.release(block)
        return False

    def _lock_shared(self, blocks: list[int], held: list[int]) -> bool:
        """Lock the blocks in these places and append them to `held`; False at the first one that a
        writer works in."""
        for block in blocks:
            if not self._locks.try_shared(block):
                return False
            held.append(block)
        return True

    def _copy(
        self, windows: Windows, out: BatchArrays, target: Mapping[str, Array], to: NDArray[np.intp]
    ) -> None:
        """Copy items into the places `to` of a batch."""
        fresh = self._item_fields.empty(len(windows))
        self._item.assemble(windows, fresh)
        for name, array in target.items():
            array[to] = fresh[name]
        out.indices[to] = windows.indices
        out.probabilities[to] = windows.probabilities
