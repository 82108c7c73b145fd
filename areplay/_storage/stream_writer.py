"""The writer of one stream: rows go into blocks of its own, each under the block's lock.

Who writes and who reads the shared words, and in which order, stands in `areplay._storage.ring`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from areplay._base import debug
from areplay._base.arrays import Array, Columns, Indices
from areplay._base.failpoints import failpoint
from areplay._shm.memory_order import fence, order
from areplay._shm.range_locks import BlockLocks
from areplay._storage.place_claims import PlaceClaims
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.row_writer import RowWriter
from areplay.errors import WouldBlock

# The last step of an episode, and its final observation.
_FEW_ROWS = 2
_NO_ROW = -1


class StreamWriter:
    """Writes the rows of one stream, in order, into blocks of its own. One thread at a time uses
    it.

    Args:
        locks: this writer's own, closed with it.

    Attributes:
        stream: the number of the stream.
    """

    def __init__(self, ring: Ring, locks: BlockLocks, registry: WriterRegistry) -> None:
        self._ring = ring
        self._locks = locks
        self._registry = registry
        self._places = PlaceClaims(ring, locks, registry)
        # The index of the next row, in the open block; -1 if there is no open block.
        self._next = _NO_ROW
        # The index of the last row; -1 if the stream has none.
        self._last = _NO_ROW
        # Places that are promised to this writer.
        self._reserved = 0
        fields = ring.spec.rows
        self._few = {
            name: np.empty((_FEW_ROWS, *field.shape), field.dtype) for name, field in fields.items()
        }
        self._few_priorities = np.full(_FEW_ROWS, np.nan)
        self._row_writer = RowWriter(fields, self._few)
        self.stream = self._new_stream()

    def write(
        self, columns: Columns, start: int, stop: int, priorities: Array | None = None
    ) -> Indices:
        """Append rows `start` to `stop` of `columns`, in chunks of one block each.

        Each chunk becomes visible to readers as a whole.

        Args:
            columns: checked arrays, as of `Spec.convert_columns`.
            priorities: float64, of the rows of `columns`; NaN: none given.

        Returns:
            (n,) int64, the indices of the rows that were written: fewer than `stop - start` if all
            blocks are pinned then, see `reserve`.
        """
        self._registry.begin_use(self._ring)
        try:
            return self._write(columns, start, stop, priorities)
        finally:
            self._registry.end_use(self._ring)

    def _write(self, columns: Columns, start: int, stop: int, priorities: Array | None) -> Indices:
        ring = self._ring
        registry = self._registry
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
                debug.record_checksums(ring, ring.spec, ring.columns, at, n)
                first = self._publish(place, n)
                part = None if priorities is None else priorities[done : done + n]
                for listener in registry.listeners:
                    listener.written(at, n, part)
                if place in registry.skipped:  # the ring passed it by while we wrote
                    self._places.tell_cleared(place)
            finally:
                self._locks.release(place)
            written.append(np.arange(first, first + n))
            done += n
        if len(written) == 1:
            return written[0]
        return np.concatenate([np.empty(0, np.int64), *written])

    @property
    def has_open_block(self) -> bool:
        """Whether the writer has a block with room that was not recycled."""
        ring = self._ring
        return self._next >= max(0, (ring.next_serial[0] - ring.blocks) * ring.block_rows)

    def reserve(self, rows: int) -> bool:
        """Make sure that the next `rows` rows find room; `False`, with nothing changed, if this
        cannot be promised now.

        Then `write` writes all of them, or, if they would have gone into the open block and that
        was taken away, none. It writes fewer only if pins were added in between.

        Call `unreserve` when they are written.
        """
        with self._registry:
            pinned = self._registry.pinned()
            if pinned is None:
                return True
            # As if there were no open block, which may be taken away before we come to it. Not so
            # for the few rows that it has room for: then `write` writes none, and the caller comes
            # again.
            block_rows = self._ring.block_rows
            room = block_rows - self._next % block_rows if self.has_open_block else 0
            places = 0 if rows <= room else -(-rows // block_rows)
            free = self._registry.free_places(pinned)
            if free - self._registry.reserved < places:
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
            WouldBlock: all blocks are pinned. Nothing was appended; see `reserve`.
        """
        for k, row in enumerate(rows):
            self._row_writer.write(k, row)
        self._few_priorities[0] = priority
        priorities = None if math.isnan(priority) else self._few_priorities
        indices = self.write(self._few, 0, len(rows), priorities)
        if len(indices) == 0:
            raise WouldBlock("all blocks are pinned")
        return int(indices[0])

    def begin_stream(self) -> None:
        """End the stream: what is written next belongs to a new one."""
        self._end_stream()
        self.stream = self._new_stream()

    def close_block(self) -> None:
        """End the open block, full or not: the next row goes into a new one."""
        self._next = _NO_ROW
        with self._registry.lock:
            if self.stream in self._registry.streams.places:
                self._registry.streams.set_place(self.stream, -1)

    def close(self) -> None:
        """End the stream, and give back the locks."""
        self._end_stream()
        self._locks.close()

    def check(self) -> None:
        """Assert what must always hold."""
        ring = self._ring
        registry = self._registry
        with registry:
            end = ring.next_serial[0] * ring.block_rows
            ends = np.where(ring.ends > 0, ring.ends, 0)
            rows = ends - np.maximum(ends - 1, 0) // ring.block_rows * ring.block_rows
            rows[list(registry.skipped)] = 0
            assert ring.rows_now[0] == rows.sum(), ring
            assert rows.sum() <= ring.capacity_rows, ring
            assert ends.max() <= end, ring
            assert -1 <= self._next < end, ring
            assert 0 <= self._reserved <= registry.reserved, ring

    def _new_stream(self) -> int:
        ring = self._ring
        with self._registry:
            stream: int = ring.next_stream[0]
            ring.next_stream[0] = stream + 1
            self._registry.streams.set_place(stream, -1)
        return stream

    def _end_stream(self) -> None:
        streams = self._registry.streams
        with self._registry:
            block_rows = self._ring.block_rows
            used = self._next % block_rows
            if self.has_open_block and used > 0:
                streams.part_empty.append((self._next - used, block_rows - used))
            streams.end(self.stream)
        self._next = _NO_ROW
        self._last = _NO_ROW
        for listener in self._registry.listeners:
            listener.ended(self.stream)

    def _publish(self, place: int, n: int) -> int:
        """Make `n` rows after the used ones visible; the index of the first of them."""
        ring = self._ring
        first = self._next
        # Rows, then the end. A reader that sees the old end misses the newest rows, which is
        # harmless; the reverse order would show it garbage. The large copies before end with a
        # fence of their own, so that on x86-64 plain stores keep that order.
        order()
        self._last = first + n - 1
        is_full = (first + n) % ring.block_rows == 0
        self._next = _NO_ROW if is_full else first + n
        registry = self._registry
        with registry.lock:
            if is_full:
                registry.streams.set_place(self.stream, -1)
            ring.ends[place] = first + n
            ring.rows_inserted[0] += n
            if place not in registry.skipped:
                ring.rows_now[0] += n
        debug.check_step(self)
        return first

    def _lock_open_block(self) -> int:
        """The place of the open block, with room for a row, and locked exclusively."""
        ring = self._ring
        if self._next >= 0:
            serial = self._next // ring.block_rows
            place = serial % ring.blocks
            if self._locks.try_exclusive(place):
                # While it was not locked, other writers may have gone once around the ring and
                # recycled it.
                if serial >= ring.next_serial[0] - ring.blocks:
                    return place
                self._locks.release(place)
            self.close_block()  # a full block was closed when its last row was published
        return self._open_new_block()

    # A new block: claim a place, retire_block, link_block.

    def _open_new_block(self) -> int:
        """Recycle the oldest block that is neither held nor pinned; its place, locked exclusively
        and empty.

        Raises:
            WouldBlock: all blocks are pinned, or promised to other writers. Nothing changed.
        """
        ring = self._ring
        registry = self._registry
        serial = self._places.claim(self._reserved)
        place = serial % ring.blocks
        with registry.lock:
            self._retire_block(place)
            self._link_block(serial, place)
            if self._reserved:
                self._reserved -= 1
                registry.reserved -= 1
        # The non-temporal stores of a large copy could overtake the end of -1.
        fence()
        self._places.tell_cleared(place)
        self._next = serial * ring.block_rows
        failpoint("ring.recycle")
        return place

    def _retire_block(self, place: int) -> None:
        """End the block in that place. Under the registry."""
        ring = self._ring
        registry = self._registry
        if place in registry.skipped:
            registry.skipped.remove(place)
        else:
            ring.rows_now[0] -= ring.block(place)[1]
        # -1 before anything else changes: a reader that copied before or during what follows will
        # see it.
        ring.ends[place] = -1
        registry.streams.close_place(place)

    def _link_block(self, serial: int, place: int) -> None:
        """Make the place the open block of the stream, after its last block. Under the registry."""
        ring = self._ring
        _, streams, previous, following = ring.tables
        last_serial = self._last // ring.block_rows  # -1 if the stream has no row
        streams[place] = self.stream
        previous[place] = last_serial
        following[place] = -1
        last_place = last_serial % ring.blocks
        if last_serial >= 0 and ring.block(last_place)[0] == last_serial:
            following[last_place] = serial
        self._registry.streams.set_place(self.stream, place)
