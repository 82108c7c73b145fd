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

Readers take no lock. A row exists if its block's end lies behind it, by no more than a block. They look, copy, and look
again: if it exists still, what was copied is whole, since a writer sets the end to -1 before it touches a row. Nobody
ever waits: a writer that finds a block locked by a reader (see `areplay.reader`), or kept by somebody who needs its
rows (a `Keeper`), leaves that block alone for one more lap and takes the next.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from areplay import debug, forks
from areplay.errors import WouldBlock
from areplay.fence import fence, order
from areplay.kill_points import kill_point
from areplay.layout import WORDS_A_LINE, Layout, word
from areplay.locks import BlockLocks
from areplay.segment import Segment
from areplay.spec import Array, Columns, RowWriter, Spec

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

logger = logging.getLogger(__name__)

MIN_BLOCKS = 4
_ALL_HELD_S = 0.001
_FEW_ROWS = 2  # the last step of an episode, and its final observation
_TARGET_BLOCK_BYTES = 2 << 20  # a chunk is at most one block: this long one copy may keep a thread busy (0.2 ms)
_TARGET_BLOCKS = 256  # enough that recycling one forgets little at once, few enough that a sum over all is short


def default_block_rows(spec: Spec, capacity: int) -> int:
    """Rows a block: a power of two from 16 to 4,096 that makes blocks of about 2 MiB, and about 256 of them."""
    rows = min(_TARGET_BLOCK_BYTES // spec.row_bytes, capacity // _TARGET_BLOCKS)
    return 1 << (min(4_096, max(16, rows)).bit_length() - 1)


class Blocks(NamedTuple):
    """Blocks as they were at one moment, oldest first: (n,) int64 each."""

    serials: Indices
    rows: Indices
    streams: Indices
    previous: Indices
    following: Indices


class Ring:
    """The blocks as any process sees them. Reads only; `StreamWriter` writes.

    Args:
        blocks, block_rows: the geometry; `capacity_rows` is their product.
    """

    def __init__(self, spec: Spec, blocks: int, block_rows: int) -> None:
        self.spec, self.blocks, self.block_rows = spec, blocks, block_rows
        capacity = blocks * block_rows
        columns = {f"column:{f.name}": ((capacity, *f.shape), f.dtype) for f in spec.rows.values()}
        tables = dict.fromkeys(("ends", "streams", "previous", "following"), ((blocks,), np.int64))
        layout = Layout(
            "ring",
            {
                "words": ((4, WORDS_A_LINE), np.int64),
                "holders": ((blocks,), np.int64),
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
        self.ends: Indices = arrays["ends"]
        self._streams: Indices = arrays["streams"]
        self._previous: Indices = arrays["previous"]
        self._following: Indices = arrays["following"]
        self.checksums: NDArray[np.uint32] | None = arrays.get("checksums")  # of each row, in debug mode
        self.columns: Columns = {name: arrays[f"column:{name}"] for name in self.spec.rows}

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
        return {key: self.__dict__[key] for key in ("spec", "blocks", "block_rows", "segment")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        return (
            f"<Ring {self.rows_now[0]:,} of {self.capacity_rows:,} rows in {self.blocks} blocks of {self.block_rows}, "
            f"next serial {self.next_serial[0]}>"
        )


class Watcher:
    """Who keeps something about each row. Told by the thread that writes it, under the lock of its block."""

    def written(self, at: int, count: int, priorities: Array | None) -> None:
        """Rows were written to positions `at` to `at + count`, with these priorities, if any were given (NaN: none)."""

    def cleared(self, at: int, count: int) -> None:
        """No row in positions `at` to `at + count` can be drawn any more, and no new ones are there yet."""

    def ended(self, stream: int) -> None:
        """No more rows of that stream will be written."""


class Keeper(Protocol):
    """Who needs blocks to stay."""

    def kept(self) -> Mask:
        """(blocks,) bool: in which places they may not be recycled."""
        ...


class RingGuard:
    """What the writers of one ring share, in the owner's process: a lock, held for a few stores at a time.

    Attributes:
        left: places of blocks that were due to be recycled but held by somebody, until they are due again. Their rows
            are out of every reader's range, and no longer counted.
        watchers: told of rows that were written, and of those that are gone; by the thread that wrote, not guarded.
        keepers: their blocks are left for another lap; a writer that finds all of them kept writes nothing.
        reserved: how many places are promised to a writer.
        streams: those that are not ended, each with the place of its open block, -1 if it has none.
    """

    def __init__(self) -> None:
        self.left: set[int] = set()
        self.watchers: tuple[Watcher, ...] = ()  # replaced as a whole: other threads go through them meanwhile
        self.keepers: tuple[Keeper, ...] = ()
        self.reserved = 0
        self.streams: dict[int, int] = {}
        self._lock = forks.register_lock(threading.Lock())

    def watch(self, watcher: Watcher) -> None:
        """Tell it of the rows that come and go from now on."""
        with self:
            self.watchers = (*self.watchers, watcher)

    def keep(self, keeper: Keeper) -> None:
        """Recycle no block any more that it needs."""
        with self:
            self.keepers = (*self.keepers, keeper)

    def forget(self, one: Watcher | Keeper) -> None:
        """Tell it nothing any more, and keep nothing for it."""
        with self:
            self.watchers = tuple(other for other in self.watchers if other is not one)
            self.keepers = tuple(other for other in self.keepers if other is not one)

    def keep_nothing(self) -> None:
        """Recycle blocks whoever needs them, from now on."""
        with self:
            self.keepers = ()

    def kept(self) -> Mask | None:
        """The places that are kept; None if there is no keeper."""
        masks = [keeper.kept() for keeper in self.keepers]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)

    def blocks(self, ring: Ring) -> Blocks:
        """All blocks that hold rows which can be sampled, or which somebody keeps though they are left for a lap."""
        with self:
            ends, floor = ring.ends.copy(), ring.next_serial[0] - ring.blocks
            streams, previous, following = ring._streams.copy(), ring._previous.copy(), ring._following.copy()
            kept = self.kept()
        serials = (ends - 1) // ring.block_rows
        is_wanted = serials >= max(0, floor)
        if kept is not None:
            is_wanted |= kept
        places = np.flatnonzero(is_wanted & (ends > 0))
        places = places[np.argsort(serials[places])]
        serials = serials[places]
        rows = ends[places] - serials * ring.block_rows
        return Blocks(serials, rows, streams[places], previous[places], following[places])

    def has_place(self) -> bool:
        """Whether a block may be recycled that is not promised to anybody."""
        with self:
            kept = self.kept()
            return kept is None or self.has_place_among(kept, self.reserved)

    def has_place_among(self, kept: Mask, promised: int) -> bool:
        """Whether there is one beside so many that are promised to others. Under this guard."""
        return not kept.all() and (promised == 0 or self.sure(kept) > promised)

    @property
    def is_full(self) -> bool:
        """Whether no row can be written by anybody before a keeper lets a block go."""
        with self:
            kept = self.kept()
            return kept is not None and bool(kept.all()) and max(self.streams.values(), default=-1) < 0

    def take_away(self, place: int) -> None:
        """No writer goes on in the block in that place: the ring has passed it. Under this guard."""
        for stream, at in self.streams.items():
            if at == place:
                self.streams[stream] = -1

    def sure(self, kept: Mask) -> int:
        """How many places will not be kept before they are recycled: an open block may still get rows that are."""
        open_places = {place for place in self.streams.values() if place >= 0 and not kept[place]}
        return int(np.count_nonzero(~kept)) - len(open_places)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


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
            guard.streams[self.stream] = -1
        self._serial = -1  # our open block, or -1
        self._used = 0
        self._last_serial = -1  # the block before it in our chain
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
        indices = np.empty(stop - start, np.int64)
        done = start
        while done < stop:
            try:
                place = self._lock_open_block()
            except WouldBlock:
                break
            try:
                n = min(stop - done, self._ring.block_rows - self._used)
                at = place * self._ring.block_rows + self._used
                kill_point("ring.write")
                for name, column in self._ring.columns.items():
                    column[at : at + n] = columns[name][done : done + n]
                debug.seal(self._ring, self._ring.spec, self._ring.columns, at, n)
                first = self._publish(place, n)
                for watcher in self._guard.watchers:
                    watcher.written(at, n, None if priorities is None else priorities[done : done + n])
                if place in self._guard.left:  # the ring passed it by while we wrote
                    self._tell_left(place)
            finally:
                self._locks.release(place)
            indices[done - start : done - start + n] = np.arange(first, first + n)
            done += n
        return indices[: done - start]

    @property
    def has_open_block(self) -> bool:
        """Whether there is room in a block of ours that nobody has recycled."""
        ring = self._ring
        return 0 <= self._used < ring.block_rows and self._serial >= max(0, ring.next_serial[0] - ring.blocks)

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
            room = self._ring.block_rows - self._used if self.has_open_block else 0
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
        indices = self.write(self._few, 0, len(rows), self._few_priorities)
        if len(indices) == 0:
            raise WouldBlock("all blocks are kept")
        return int(indices[0])

    def begin_stream(self) -> None:
        """End the stream: what is written next belongs to a new one."""
        self._end_stream()
        with self._guard:
            self.stream = self._ring.next_stream[0]
            self._ring.next_stream[0] = self.stream + 1
            self._guard.streams[self.stream] = -1

    def seal(self) -> None:
        """End the open block, full or not: the next row goes into a new one."""
        if self._serial >= 0 and self._used > 0:
            self._last_serial = self._serial
        self._serial = -1
        if self.stream in self._guard.streams:
            self._guard.streams[self.stream] = -1

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
            assert 0 <= self._used <= ring.block_rows and self._serial < ring.next_serial[0], ring
            assert 0 <= self._reserved <= guard.reserved, ring

    def _end_stream(self) -> None:
        self.seal()
        self._last_serial = -1
        self._guard.streams.pop(self.stream, None)
        for watcher in self._guard.watchers:
            watcher.ended(self.stream)

    def _publish(self, place: int, n: int) -> int:
        """Make `n` rows after the used ones visible; the index of the first of them."""
        ring = self._ring
        first = self._serial * ring.block_rows + self._used
        # Rows, then the end. A reader that sees the old end misses the newest rows, which is harmless; the reverse
        # order would show it garbage. The large copies before end with a fence of their own, so that on x86-64 plain
        # stores keep that order.
        order()
        self._used += n
        with self._guard:
            if self._used == ring.block_rows:
                self._guard.streams[self.stream] = -1
            ring.ends[place] = first + n
            ring.rows_inserted[0] += n
            if place not in self._guard.left:
                ring.rows_now[0] += n
        debug.check_step(self)
        return first

    def _lock_open_block(self) -> int:
        """The place of our open block, with room for a row, and locked exclusively."""
        ring = self._ring
        if self._serial >= 0 and self._used < ring.block_rows:
            place = self._serial % ring.blocks
            if self._locks.try_exclusive(place):
                # While nobody held it, other writers may have gone once around the ring and recycled it.
                if self._serial >= ring.next_serial[0] - ring.blocks:
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
            ring._previous[place] = self._last_serial
            ring._following[place] = -1
            last_place = self._last_serial % ring.blocks
            if self._last_serial >= 0 and ring.block(last_place)[0] == self._last_serial:
                ring._following[last_place] = serial
            self._guard.take_away(place)
            self._guard.streams[self.stream] = place
            if self._reserved:
                self._reserved -= 1
                self._guard.reserved -= 1
        fence()
        for watcher in self._guard.watchers:
            watcher.cleared(place * ring.block_rows, ring.block_rows)
        self._serial, self._used = serial, 0
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
