"""The writer of one stream: rows go into blocks of its own, each under the block's lock.

Who writes and who reads the shared words, and in which order, stands in `areplay._storage.ring`.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping

import numpy as np

from areplay._base import debug
from areplay._base.arrays import Array, Columns, Indices
from areplay._base.failpoints import failpoint
from areplay._shm.memory_order import fence, order
from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.row_writer import RowWriter
from areplay.errors import WouldBlock

logger = logging.getLogger(__name__)


_ALL_HELD_S = 0.001


_FEW_ROWS = 2  # the last step of an episode, and its final observation


class StreamWriter:
    """Writes the rows of one stream, in order, into blocks of its own. One thread at a time uses
    it.

    Args:
        locks: this writer's own, closed with it.
    """

    def __init__(self, ring: Ring, locks: BlockLocks, registry: WriterRegistry) -> None:
        self._ring, self._locks, self._registry = ring, locks, registry
        with registry:
            self.stream: int = ring.next_stream[0]
            ring.next_stream[0] = self.stream + 1
            registry.goes_on_in(self.stream, -1)
        self._next = -1  # the index of our next row, in our open block; -1 if we have none
        self._last = -1  # the index of our last row, -1 if there is none
        self._reserved = 0  # places promised to us
        fields = ring.spec.rows
        self._few = {
            name: np.empty((_FEW_ROWS, *field.shape), field.dtype) for name, field in fields.items()
        }
        self._few_priorities = np.full(_FEW_ROWS, np.nan)
        self._row_writer = RowWriter(fields, self._few)

    def write(
        self, columns: Columns, start: int, stop: int, priorities: Array | None = None
    ) -> Indices:
        """Append rows `start` to `stop` of `columns` (checked arrays, as of
        `Spec.convert_columns`); their indices.

        Each chunk is visible to readers when it is whole; a chunk is the part that goes into one
        block. They are fewer if then all blocks are kept; see `reserve`.

        Args:
            priorities: float64, of the rows of `columns`; NaN: none given.
        """
        self._registry.begin_use(self._ring)
        try:
            return self._write(columns, start, stop, priorities)
        finally:
            self._registry.end_use(self._ring)

    def _write(self, columns: Columns, start: int, stop: int, priorities: Array | None) -> Indices:
        ring, registry = self._ring, self._registry
        written: list[Indices] = []
        done = start
        if priorities is not None and (on_priorities := registry.on_priorities) is not None:
            on_priorities(priorities[start:stop])
        while done < stop:
            try:
                place = self._lock_open_block()
            except WouldBlock:
                break
            try:
                at = self._next % ring.capacity_rows
                n = min(stop - done, ring.block_rows - at % ring.block_rows)
                failpoint("ring.write")
                for name, column in ring.columns.items():
                    column[at : at + n] = columns[name][done : done + n]
                debug.seal(ring, ring.spec, ring.columns, at, n)
                first = self._publish(place, n)
                part = None if priorities is None else priorities[done : done + n]
                for watcher in registry.watchers:
                    watcher.written(at, n, part)
                if place in registry.left:  # the ring passed it by while we wrote
                    self._tell_left(place)
            finally:
                self._locks.release(place)
            written.append(np.arange(first, first + n))
            done += n
        return (
            written[0] if len(written) == 1 else np.concatenate([np.empty(0, np.int64), *written])
        )

    @property
    def has_open_block(self) -> bool:
        """Whether there is room in a block of ours that nobody has recycled."""
        ring = self._ring
        return self._next >= max(0, (ring.next_serial[0] - ring.blocks) * ring.block_rows)

    def reserve(self, rows: int) -> bool:
        """Make sure that the next `rows` rows find room; `False`, with nothing changed, if it
        cannot be promised now.

        Then `write` writes all of them, or, if they would have gone into our open block and that
        was taken away, none; fewer only if a keeper came in between.

        Call `unreserve` when they are written.
        """
        with self._registry:
            kept = self._registry.kept()
            if kept is None:
                return True
            # As if we had no open block, which may be taken away before we come to it; but not for
            # the few rows that it has room for: then `write` writes nothing, and we come again.
            room = (
                self._ring.block_rows - self._next % self._ring.block_rows
                if self.has_open_block
                else 0
            )
            places = 0 if rows <= room else -(-rows // self._ring.block_rows)
            if self._registry.sure(kept) - self._registry.reserved < places:
                return False
            self._registry.reserved += places
            self._reserved += places
            return True

    def unreserve(self) -> None:
        """Give back what was reserved and not used."""
        with self._registry:
            self._registry.reserved -= self._reserved
            self._reserved = 0

    def write_rows(self, *rows: Mapping[str, object], priority: float = math.nan) -> int:
        """Append a row, or two; the index of the first.

        Args:
            priority: of the first; NaN: none given.

        Raises:
            SpecMismatch: a row does not fit the spec. Nothing was appended, and no block recycled
                for it.
            WouldBlock: all blocks are kept. Nothing was appended; see `reserve`.
        """
        for k, row in enumerate(rows):
            self._row_writer.write(k, row)
        self._few_priorities[0] = priority
        indices = self.write(
            self._few, 0, len(rows), None if math.isnan(priority) else self._few_priorities
        )
        if len(indices) == 0:
            raise WouldBlock("all blocks are kept")
        return int(indices[0])

    def begin_stream(self) -> None:
        """End the stream: what is written next belongs to a new one."""
        self._end_stream()
        with self._registry:
            self.stream = self._ring.next_stream[0]
            self._ring.next_stream[0] = self.stream + 1
            self._registry.goes_on_in(self.stream, -1)

    def seal(self) -> None:
        """End the open block, full or not: the next row goes into a new one."""
        self._next = -1
        with self._registry:
            if self.stream in self._registry.streams:
                self._registry.goes_on_in(self.stream, -1)

    def close(self) -> None:
        """End the stream, and give back the locks."""
        self._end_stream()
        self._locks.close()

    def check(self) -> None:
        """Assert what must always hold."""
        ring, registry = self._ring, self._registry
        with registry:
            ends = np.where(ring.ends > 0, ring.ends, 0)
            rows = ends - np.maximum(ends - 1, 0) // ring.block_rows * ring.block_rows
            rows[list(registry.left)] = 0
            assert ring.rows_now[0] == rows.sum(), ring
            assert (
                rows.sum() <= ring.capacity_rows
                and ends.max() <= ring.next_serial[0] * ring.block_rows
            ), ring
            assert -1 <= self._next < ring.next_serial[0] * ring.block_rows, ring
            assert 0 <= self._reserved <= registry.reserved, ring

    def _end_stream(self) -> None:
        with self._registry:
            used = self._next % self._ring.block_rows
            if self.has_open_block and used > 0:
                self._registry.ended.append((self._next - used, self._ring.block_rows - used))
            if self.stream in self._registry.streams:
                self._registry.forget_stream(self.stream)
        self._next = self._last = -1
        for watcher in self._registry.watchers:
            watcher.ended(self.stream)

    def _publish(self, place: int, n: int) -> int:
        """Make `n` rows after the used ones visible; the index of the first of them."""
        ring, first = self._ring, self._next
        # Rows, then the end. A reader that sees the old end misses the newest rows, which is
        # harmless; the reverse order would show it garbage. The large copies before end with a
        # fence of their own, so that on x86-64 plain stores keep that order.
        order()
        self._last = first + n - 1
        is_full = (first + n) % ring.block_rows == 0
        self._next = -1 if is_full else first + n
        registry = self._registry
        with registry.lock:
            if is_full:
                registry.goes_on_in(self.stream, -1)
            ring.ends[place] = first + n
            ring.rows_inserted[0] += n
            if place not in registry.left:
                ring.rows_now[0] += n
        debug.check_step(self)
        return first

    def _lock_open_block(self) -> int:
        """The place of our open block, with room for a row, and locked exclusively."""
        ring = self._ring
        if self._next >= 0:
            serial = self._next // ring.block_rows
            place = serial % ring.blocks
            if self._locks.try_exclusive(place):
                # While nobody held it, other writers may have gone once around the ring and
                # recycled it.
                if serial >= ring.next_serial[0] - ring.blocks:
                    return place
                self._locks.release(place)
            self.seal()  # a full block was sealed when its last row was published
        return self._lock_new_block()

    def _lock_new_block(self) -> int:
        """Recycle the oldest block that nobody holds; its place, locked exclusively and empty."""
        ring = self._ring
        for attempt in itertools.count(1):
            # a ring of which every block is held: few blocks, and writers in each
            if attempt % ring.blocks == 0:
                time.sleep(_ALL_HELD_S)
            with self._registry.lock:
                serial, skipped = self._next_serial()
            for left in skipped:
                self._tell_left(left)
            place = serial % ring.blocks
            if self._locks.try_exclusive(place):
                # Before we had the lock others may have gone once around the ring, and written a
                # newer block there. Whoever comes from now on finds it locked.
                if serial < ring.next_serial[0] - ring.blocks:
                    self._locks.release(place)
                    continue
                # Or somebody may have written to it, and those rows be needed.
                if not self._registry.keepers or not self._is_kept(place):
                    break
                self._locks.release(place)
            # A reader copies under the lock, or another writer is in it: leave it for another lap,
            # wait for nobody.
            with self._registry.lock:
                is_new = self._leave(place)
            if is_new:
                self._tell_left(place)
            # a holder that is stuck is named once
            level = logging.WARNING if is_new else logging.DEBUG
            logger.log(
                level,
                "block %d is held by process %d, left for another lap",
                place,
                self._locks.holder(place),
            )
        # -1 before anything else changes: a reader that copied before or during what follows will
        # see it. The fence is for the non-temporal stores of a large copy, which could overtake
        # this one.
        with self._registry.lock:
            if place in self._registry.left:
                self._registry.left.remove(place)
            else:
                ring.rows_now[0] -= ring.block(place)[1]
            ring.ends[place] = -1
            ring._streams[place] = self.stream
            last_serial = self._last // ring.block_rows  # -1 of -1
            ring._previous[place] = last_serial
            ring._following[place] = -1
            last_place = last_serial % ring.blocks
            if last_serial >= 0 and ring.block(last_place)[0] == last_serial:
                ring._following[last_place] = serial
            self._registry.take_away(place)
            self._registry.goes_on_in(self.stream, place)
            if self._reserved:
                self._reserved -= 1
                self._registry.reserved -= 1
        fence()
        for watcher in self._registry.watchers:
            watcher.cleared(place * ring.block_rows, ring.block_rows)
        self._next = serial * ring.block_rows
        failpoint("ring.recycle")
        return place

    def _next_serial(self) -> tuple[int, list[int]]:
        """The serial of the next place that nobody keeps, now ours, and the places that were left.
        Under the registry.

        Raises:
            WouldBlock: there is none, or all that there are were promised to others. Nothing
                changed.
        """
        ring, registry = self._ring, self._registry
        serial: int = ring.next_serial[0]
        kept, left = registry.kept(), []
        if kept is not None:
            free = np.flatnonzero(~kept)
            if not registry.has_place_among(kept, registry.reserved - self._reserved):
                raise WouldBlock("all blocks are kept")
            skipped = int(((free - serial) % ring.blocks).min())
            places = [passed % ring.blocks for passed in range(serial, serial + skipped)]
            left = [place for place in places if self._leave(place)]
            serial += skipped
        ring.next_serial[0] = serial + 1
        return serial, left

    def _tell_left(self, place: int) -> None:
        """Nothing is drawn any more by the rows of a block that was left for another lap."""
        for watcher in self._registry.watchers:
            watcher.cleared(place * self._ring.block_rows, self._ring.block_rows)

    def _is_kept(self, place: int) -> bool:
        with self._registry:
            kept = self._registry.kept()
            return kept is not None and bool(kept[place])

    def _leave(self, place: int) -> bool:
        """Leave the block in that place for another lap; whether it was not left before. Under the
        registry."""
        left = self._registry.left
        self._registry.take_away(place)
        if place in left:
            return False
        left.add(place)
        self._ring.rows_now[0] -= self._ring.block(place)[1]
        return True
