"""The ring of blocks: where rows live, who may write them, and how a reader knows that they are still the same.

A block is a fixed run of rows of one stream. Blocks get ever-growing *serials*; a block's place is `serial % blocks`.
A row's *index* is `serial * block_rows + offset`: it names that row for ever, and since a recycled place gets a new
serial, a stale index is recognised. `index % capacity_rows` is the row's *position* in the columns.

        reserve a serial       first chunk           later chunks            its place is due again
  FREE ------------------> RECYCLING --------> OPEN ------------> OPEN/FULL ----------------------> RECYCLING
          end = -1          end = first + n       end grows

Shared words and arrays (int64), all written by the owner's process alone, by whichever of its threads holds what is
named; read by everyone without a lock. If the owner dies, everything here ends with it.

    next_serial         under the guard, before anything else of a block that is recycled: serial, end = -1, fence,
                        rows. So a block is whole for as long as nobody took the serial that is due after it. A reader
                        that sees an old value misses the newest block.
    rows_now, rows_inserted, next_stream   under the guard. For statistics and gates; never trusted for memory safety.
    ends[place]         under the block's lock. The index after that of the block's last committed row, which tells its
                        serial and the number of its rows in one store; -1 while its rows are being replaced.
    streams, previous, following [place]   under the guard: the chain of blocks of a stream, by serial, -1 at its ends.
                        Good as long as the block in that place is the one that was asked for.

The tables have room for the smallest blocks that there may be: `Ring.split` makes blocks smaller while nobody uses
them, see `RingGuard.begin_use`.

Readers take no lock. A row exists if its block's end lies behind it, by no more than a block. They look, copy, and look
again: if it exists still, what was copied is whole, since a writer sets the end to -1 before it touches a row. Nobody
ever waits: a writer that finds a block locked by a reader (see `areplay._sampling.reader`), or kept by somebody who
needs its rows (a `Keeper`), leaves that block alone for one more lap and takes the next.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from areplay._base import debug
from areplay._processes.failpoints import kill_point
from areplay._shm.layout import WORDS_A_LINE, Layout, word
from areplay._shm.memory_order import fence, order
from areplay._shm.range_locks import BlockLocks
from areplay._shm.segment import Segment
from areplay._storage.registry import Blocks, Indices, Keeper, Mask, RingGuard, Watcher
from areplay.errors import WouldBlock
from areplay.spec import Array, Columns, RowWriter, Spec

__all__ = ["MIN_BLOCKS", "Blocks", "Indices", "Keeper", "Mask", "Ring", "RingGuard", "StreamWriter", "Watcher"]

logger = logging.getLogger(__name__)

MIN_BLOCKS = 4
_ALL_HELD_S = 0.001
_FEW_ROWS = 2  # the last step of an episode, and its final observation


class Ring:
    """The blocks as any process sees them. Reads only; `StreamWriter` writes.

    Args:
        blocks, block_rows: the geometry; `capacity_rows` is their product.
        finest_rows: down to which blocks may be split: `block_rows` halved some times. None: they stay as they are.
    """

    def __init__(self, spec: Spec, blocks: int, block_rows: int, finest_rows: int | None = None) -> None:
        self.spec, self.blocks, self.block_rows = spec, blocks, block_rows
        self.finest_rows = block_rows if finest_rows is None else finest_rows
        capacity = blocks * block_rows
        most_blocks = capacity // self.finest_rows
        columns = {f"column:{f.name}": ((capacity, *f.shape), f.dtype) for f in spec.rows.values()}
        tables = dict.fromkeys(("ends", "streams", "previous", "following"), ((most_blocks,), np.int64))
        layout = Layout(
            "ring",
            {
                "words": ((4, WORDS_A_LINE), np.int64),
                "holders": ((most_blocks,), np.int64),
                **tables,
                **debug.tables(capacity),
                **columns,
            },
        )
        self.segment = Segment(layout, f"a replay of {capacity:,} rows of {spec.row_bytes:,} bytes")
        self._view()
        for table in (self.ends, self._previous, self._following):
            table.fill(-1)

    def _view(self) -> None:
        arrays = self.segment.arrays
        words = arrays["words"]
        self.capacity_rows = self.blocks * self.block_rows
        self.next_serial, self.rows_now = word(words, 0), word(words, 1)
        self.rows_inserted, self.next_stream = word(words, 2), word(words, 3)
        self._view_tables()
        self.checksums: NDArray[np.uint32] | None = arrays.get("checksums")  # of each row, in debug mode
        self.columns: Columns = {name: arrays[f"column:{name}"] for name in self.spec.rows}

    def _view_tables(self) -> None:
        tables = self.segment.arrays
        self.ends: Indices = tables["ends"][: self.blocks]
        self._streams: Indices = tables["streams"][: self.blocks]
        self._previous: Indices = tables["previous"][: self.blocks]
        self._following: Indices = tables["following"][: self.blocks]

    def split(self, block_rows: int, open_places: Collection[int]) -> dict[int, int]:
        """Split each block into blocks of so many rows; every row keeps its index, its position and its neighbours.

        Under the writers' guard, and only while nobody else uses the blocks, in this process or another.

        Args:
            open_places: of blocks to which rows may still be appended.

        Returns:
            for each of those the place of the part into which its next row falls.
        """
        parts, rows = self.block_rows // block_rows, np.maximum(self.ends, 0)
        serials = np.maximum(self.ends - 1, -1) // self.block_rows
        rows -= np.maximum(serials, 0) * self.block_rows
        kth = np.arange(parts)
        of_parts = np.clip(rows[:, None] - kth * block_rows, 0, block_rows)
        named = serials[:, None] * parts + kth
        is_last = (of_parts > 0) & (rows[:, None] <= (kth + 1) * block_rows)
        is_last[:, 0] |= rows == 0  # begun, and nothing written yet
        # The block before: its last part that has rows. If it is gone, its name leads nowhere, as before.
        before = self._previous
        is_there = (before >= 0) & (serials.take(before % self.blocks) == before)
        last_part = np.where(is_there, np.maximum(rows.take(before % self.blocks) - 1, 0) // block_rows, parts - 1)
        previous = np.where(kth == 0, np.where(before >= 0, before * parts + last_part, -1)[:, None], named - 1)
        after = np.where(self._following >= 0, self._following * parts, -1)[:, None]
        goes_on = {place: int(rows[place]) // block_rows for place in open_places}  # in which part
        following = np.where(is_last, after, np.where(rows[:, None] > (kth + 1) * block_rows, named + 1, -1))
        for place, part in goes_on.items():
            if rows[place] and rows[place] % block_rows == 0:
                following[place, part - 1] = named[place, part]
        ends = np.where(of_parts > 0, named * block_rows + of_parts, -1)
        streams = np.repeat(self._streams, parts)
        self.next_serial[0] *= parts
        self.blocks, self.block_rows = self.blocks * parts, block_rows
        self._view_tables()
        self._streams[:], self._previous[:] = streams, previous.reshape(-1)
        self._following[:], self.ends[:] = following.reshape(-1), ends.reshape(-1)
        order()
        return {place: place * parts + part for place, part in goes_on.items()}

    def block_locks(self) -> BlockLocks:
        """Locks of the blocks, for one thread of this process."""
        return BlockLocks(self.segment.descriptor, self.segment.arrays["holders"])

    def names(self) -> tuple[int, int]:
        """`(first, end)`: every row that exists has an index in that range, but not every index in it has a row."""
        end = self.next_serial[0]
        return max(0, end - self.blocks) * self.block_rows, end * self.block_rows

    def positions(self, indices: Indices) -> Indices:
        """Where in the columns the rows of these indices are, if they exist."""
        return indices % self.capacity_rows

    def committed(self, indices: Indices) -> Mask:
        """Which of the indices name a row that is written and not yet overwritten."""
        ahead = self.ends.take(indices % self.capacity_rows // self.block_rows, mode="clip")
        order()  # this look before whatever is copied on the strength of it
        ahead -= indices
        ahead -= 1
        # 0 <= ahead < block_rows, in one comparison: a negative number is a huge one when read as unsigned.
        exists: Mask = ahead.view(np.uint64) < self.block_rows
        exists &= indices >= 0  # of a place that is being recycled the end is -1
        return exists

    def unchanged(self, indices: Indices) -> Mask:
        """Which of the indices, all committed before, still name the same row. Call it after copying."""
        order()
        return self.committed(indices)

    def is_none_due(self, indices: Indices) -> bool:
        """Whether no writer has come so far as to recycle the block of one of the indices, all committed before.

        Then all name the same rows still. Call it after copying: a writer takes its serial before it touches a row, and
        touches none if it was lapped before it had the lock. One look for all of them; where it says no, `unchanged`
        tells which.
        """
        order()
        due = (self.next_serial[0] - self.blocks) * self.block_rows
        return bool(np.minimum.reduce(indices, initial=due) >= due)

    def occupied(self) -> tuple[Indices, Indices]:
        """The serials of all blocks that hold rows, and for each the number of its rows."""
        floor = max(0, self.next_serial[0] - self.blocks)  # first: stopped here for a lap, we still find blocks
        ends = self.ends.copy()
        ends = ends[ends > floor * self.block_rows]
        serials = (ends - 1) // self.block_rows
        return serials, ends - serials * self.block_rows

    def table(self, kept: Mask | None) -> Blocks:
        """All blocks that hold rows which can be sampled, and those in places that are `kept`. Under the guard."""
        serials = (self.ends - 1) // self.block_rows
        is_wanted = serials >= max(0, self.next_serial[0] - self.blocks)
        if kept is not None:
            is_wanted |= kept
        places = np.flatnonzero(is_wanted & (self.ends > 0))
        places = places[np.argsort(serials[places])]
        serials = serials[places]
        rows = self.ends[places] - serials * self.block_rows
        return Blocks(serials, rows, self._streams[places], self._previous[places], self._following[places])

    def put_back(self, blocks: Blocks, next_serial: int, next_stream: int, rows_inserted: int) -> None:
        """Make rows visible that were written into the columns already. Only in a ring that nobody else uses yet."""
        places = blocks.serials % self.blocks
        self._streams[places], self._previous[places] = blocks.streams, blocks.previous
        self._following[places] = blocks.following
        self.next_serial[0], self.next_stream[0], self.rows_inserted[0] = next_serial, next_stream, rows_inserted
        self.rows_now[0] = int(blocks.rows.sum())
        for place, rows in zip(places.tolist(), blocks.rows.tolist(), strict=True):
            debug.seal(self, self.spec, self.columns, place * self.block_rows, rows)
        order()
        self.ends[places] = blocks.serials * self.block_rows + blocks.rows

    def block(self, place: int) -> tuple[int, int]:
        """`(serial, rows)` of the block in that place; `(-1, 0)` if it has no row or is being replaced."""
        end = int(self.ends[place])
        if end <= 0:
            return -1, 0
        serial = (end - 1) // self.block_rows
        return serial, end - serial * self.block_rows

    def chain(self, serial: int) -> tuple[int, int, int]:
        """`(stream, previous, following)` of the block with that serial; serials, or -1 at an end of the stream."""
        place = serial % self.blocks
        found = int(self._streams[place]), int(self._previous[place]), int(self._following[place])
        order()
        if self.block(place)[0] != serial:
            raise KeyError(serial)
        return found

    def neighbours(self, serials: Indices, *, following: bool) -> tuple[Indices, Indices]:
        """For each block with that serial: its rows, and the serial of the next (or previous) block of its stream.

        0 rows: it is not there, or not any more. A following serial of -1: there is none yet; whoever sees one sees the
        number of rows of the block before it as it will stay.
        """
        places = serials % self.blocks
        found = (self._following if following else self._previous).take(places, mode="clip")
        order()  # the chain before the look at whose it is: recycling changes them in the other order
        rows = self.ends.take(places, mode="clip")
        rows -= serials * self.block_rows
        rows[(rows < 0) | (rows > self.block_rows)] = 0
        return rows, found

    def __len__(self) -> int:
        """Rows that can be sampled now, about."""
        rows: int = self.rows_now[0]
        return max(0, rows)

    def __bool__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in ("spec", "blocks", "block_rows", "finest_rows", "segment")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        return (
            f"<Ring {self.rows_now[0]:,} of {self.capacity_rows:,} rows in {self.blocks} blocks of {self.block_rows}, "
            f"next serial {self.next_serial[0]}>"
        )


class StreamWriter:
    """Writes the rows of one stream, in order, into blocks of its own. One thread at a time uses it.

    Args:
        locks: this writer's own, closed with it.
    """

    def __init__(self, ring: Ring, locks: BlockLocks, guard: RingGuard) -> None:
        self._ring, self._locks, self._guard = ring, locks, guard
        with guard:
            self.stream: int = ring.next_stream[0]
            ring.next_stream[0] = self.stream + 1
            guard.goes_on_in(self.stream, -1)
        self._next = -1  # the index of our next row, in our open block; -1 if we have none
        self._last = -1  # the index of our last row, -1 if there is none
        self._reserved = 0  # places promised to us
        fields = ring.spec.rows
        self._few = {name: np.empty((_FEW_ROWS, *field.shape), field.dtype) for name, field in fields.items()}
        self._few_priorities = np.full(_FEW_ROWS, np.nan)
        self._row_writer = RowWriter(fields, self._few)

    def write(self, columns: Columns, start: int, stop: int, priorities: Array | None = None) -> Indices:
        """Append rows `start` to `stop` of `columns` (checked arrays, as of `Spec.convert_columns`); their indices.

        Each chunk is visible to readers when it is whole; a chunk is the part that goes into one block. They are fewer
        if then all blocks are kept; see `reserve`.

        Args:
            priorities: float64, of the rows of `columns`; NaN: none given.
        """
        self._guard.begin_use(self._ring)
        try:
            return self._write(columns, start, stop, priorities)
        finally:
            self._guard.end_use(self._ring)

    def _write(self, columns: Columns, start: int, stop: int, priorities: Array | None) -> Indices:
        ring, guard = self._ring, self._guard
        written: list[Indices] = []
        done = start
        while done < stop:
            try:
                place = self._lock_open_block()
            except WouldBlock:
                break
            try:
                at = self._next % ring.capacity_rows
                n = min(stop - done, ring.block_rows - at % ring.block_rows)
                kill_point("ring.write")
                for name, column in ring.columns.items():
                    column[at : at + n] = columns[name][done : done + n]
                debug.seal(ring, ring.spec, ring.columns, at, n)
                first = self._publish(place, n)
                part = None if priorities is None else priorities[done : done + n]
                if part is not None and (on_priorities := guard.on_priorities) is not None:
                    on_priorities(part)
                for watcher in guard.watchers:
                    watcher.written(at, n, part)
                if place in guard.left:  # the ring passed it by while we wrote
                    self._tell_left(place)
            finally:
                self._locks.release(place)
            written.append(np.arange(first, first + n))
            done += n
        return written[0] if len(written) == 1 else np.concatenate([np.empty(0, np.int64), *written])

    @property
    def has_open_block(self) -> bool:
        """Whether there is room in a block of ours that nobody has recycled."""
        ring = self._ring
        return self._next >= max(0, (ring.next_serial[0] - ring.blocks) * ring.block_rows)

    def reserve(self, rows: int) -> bool:
        """Make sure that the next `rows` rows find room; `False`, with nothing changed, if it cannot be promised now.

        Then `write` writes all of them, or, if they would have gone into our open block and that was taken away, none;
        fewer only if a keeper came in between.

        Call `unreserve` when they are written.
        """
        with self._guard:
            kept = self._guard.kept()
            if kept is None:
                return True
            # As if we had no open block, which may be taken away before we come to it; but not for the few rows that it
            # has room for: then `write` writes nothing, and we come again.
            room = self._ring.block_rows - self._next % self._ring.block_rows if self.has_open_block else 0
            places = 0 if rows <= room else -(-rows // self._ring.block_rows)
            if self._guard.sure(kept) - self._guard.reserved < places:
                return False
            self._guard.reserved += places
            self._reserved += places
            return True

    def unreserve(self) -> None:
        """Give back what was reserved and not used."""
        with self._guard:
            self._guard.reserved -= self._reserved
            self._reserved = 0

    def write_rows(self, *rows: Mapping[str, object], priority: float = math.nan) -> int:
        """Append a row, or two; the index of the first.

        Args:
            priority: of the first; NaN: none given.

        Raises:
            SpecMismatch: a row does not fit the spec. Nothing was appended, and no block recycled for it.
            WouldBlock: all blocks are kept. Nothing was appended; see `reserve`.
        """
        for k, row in enumerate(rows):
            self._row_writer.write(k, row)
        self._few_priorities[0] = priority
        indices = self.write(self._few, 0, len(rows), None if math.isnan(priority) else self._few_priorities)
        if len(indices) == 0:
            raise WouldBlock("all blocks are kept")
        return int(indices[0])

    def begin_stream(self) -> None:
        """End the stream: what is written next belongs to a new one."""
        self._end_stream()
        with self._guard:
            self.stream = self._ring.next_stream[0]
            self._ring.next_stream[0] = self.stream + 1
            self._guard.goes_on_in(self.stream, -1)

    def seal(self) -> None:
        """End the open block, full or not: the next row goes into a new one."""
        self._next = -1
        with self._guard:
            if self.stream in self._guard.streams:
                self._guard.goes_on_in(self.stream, -1)

    def close(self) -> None:
        """End the stream, and give back the locks."""
        self._end_stream()
        self._locks.close()

    def check(self) -> None:
        """Assert what must always hold."""
        ring, guard = self._ring, self._guard
        with guard:
            ends = np.where(ring.ends > 0, ring.ends, 0)
            rows = ends - np.maximum(ends - 1, 0) // ring.block_rows * ring.block_rows
            rows[list(guard.left)] = 0
            assert ring.rows_now[0] == rows.sum(), ring
            assert rows.sum() <= ring.capacity_rows and ends.max() <= ring.next_serial[0] * ring.block_rows, ring
            assert -1 <= self._next < ring.next_serial[0] * ring.block_rows, ring
            assert 0 <= self._reserved <= guard.reserved, ring

    def _end_stream(self) -> None:
        with self._guard:
            used = self._next % self._ring.block_rows
            if self.has_open_block and used > 0:
                self._guard.ended.append((self._next - used, self._ring.block_rows - used))
            if self.stream in self._guard.streams:
                self._guard.forget_stream(self.stream)
        self._next = self._last = -1
        for watcher in self._guard.watchers:
            watcher.ended(self.stream)

    def _publish(self, place: int, n: int) -> int:
        """Make `n` rows after the used ones visible; the index of the first of them."""
        ring, first = self._ring, self._next
        # Rows, then the end. A reader that sees the old end misses the newest rows, which is harmless; the reverse
        # order would show it garbage. The large copies before end with a fence of their own, so that on x86-64 plain
        # stores keep that order.
        order()
        self._last = first + n - 1
        is_full = (first + n) % ring.block_rows == 0
        self._next = -1 if is_full else first + n
        guard = self._guard
        with guard.lock:
            if is_full:
                guard.goes_on_in(self.stream, -1)
            ring.ends[place] = first + n
            ring.rows_inserted[0] += n
            if place not in guard.left:
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
                # While nobody held it, other writers may have gone once around the ring and recycled it.
                if serial >= ring.next_serial[0] - ring.blocks:
                    return place
                self._locks.release(place)
        self.seal()
        return self._lock_new_block()

    def _lock_new_block(self) -> int:
        """Recycle the oldest block that nobody holds; its place, locked exclusively and empty."""
        ring = self._ring
        for attempt in itertools.count(1):
            if attempt % ring.blocks == 0:  # a ring of which every block is held: few blocks, and writers in each
                time.sleep(_ALL_HELD_S)
            with self._guard:
                serial, skipped = self._next_serial()
            for left in skipped:
                self._tell_left(left)
            place = serial % ring.blocks
            if self._locks.try_exclusive(place):
                # Before we had the lock others may have gone once around the ring, and written a newer block there.
                # Whoever comes from now on finds it locked.
                if serial < ring.next_serial[0] - ring.blocks:
                    self._locks.release(place)
                    continue
                # Or somebody may have written to it, and those rows be needed.
                if not self._guard.keepers or not self._is_kept(place):
                    break
                self._locks.release(place)
            # A reader copies under the lock, or another writer is in it: leave it for another lap, wait for nobody.
            with self._guard:
                is_new = self._leave(place)
            if is_new:
                self._tell_left(place)
            level = logging.WARNING if is_new else logging.DEBUG  # a holder that is stuck is named once
            logger.log(level, "block %d is held by process %d, left for another lap", place, self._locks.holder(place))
        # -1 before anything else changes: a reader that copied before or during what follows will see it. The fence
        # is for the non-temporal stores of a large copy, which could overtake this one.
        with self._guard:
            if place in self._guard.left:
                self._guard.left.remove(place)
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
            self._guard.take_away(place)
            self._guard.goes_on_in(self.stream, place)
            if self._reserved:
                self._reserved -= 1
                self._guard.reserved -= 1
        fence()
        for watcher in self._guard.watchers:
            watcher.cleared(place * ring.block_rows, ring.block_rows)
        self._next = serial * ring.block_rows
        kill_point("ring.recycle")
        return place

    def _next_serial(self) -> tuple[int, list[int]]:
        """The serial of the next place that nobody keeps, now ours, and the places that were left. Under the guard.

        Raises:
            WouldBlock: there is none, or all that there are were promised to others. Nothing changed.
        """
        ring, guard = self._ring, self._guard
        serial: int = ring.next_serial[0]
        kept, left = guard.kept(), []
        if kept is not None:
            free = np.flatnonzero(~kept)
            if not guard.has_place_among(kept, guard.reserved - self._reserved):
                raise WouldBlock("all blocks are kept")
            skipped = int(((free - serial) % ring.blocks).min())
            places = [passed % ring.blocks for passed in range(serial, serial + skipped)]
            left = [place for place in places if self._leave(place)]
            serial += skipped
        ring.next_serial[0] = serial + 1
        return serial, left

    def _tell_left(self, place: int) -> None:
        """Nothing is drawn any more by the rows of a block that was left for another lap."""
        for watcher in self._guard.watchers:
            watcher.cleared(place * self._ring.block_rows, self._ring.block_rows)

    def _is_kept(self, place: int) -> bool:
        with self._guard:
            kept = self._guard.kept()
            return kept is not None and bool(kept[place])

    def _leave(self, place: int) -> bool:
        """Leave the block in that place for another lap; whether it was not left before. Under the guard."""
        left = self._guard.left
        self._guard.take_away(place)
        if place in left:
            return False
        left.add(place)
        self._ring.rows_now[0] -= self._ring.block(place)[1]
        return True
