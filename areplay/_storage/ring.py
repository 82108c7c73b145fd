"""The ring of blocks: where rows live, who may write them, and how a reader knows that they are
still the same.

A block is a fixed run of rows of one stream. Blocks get ever-growing *serials*; a block's place is
`serial % blocks`. A row's *index* is `serial * block_rows + offset`: it names that row for ever,
and since a recycled place gets a new serial, a stale index is recognised. `index % capacity_rows`
is the row's *position* in the columns.

        reserve a serial     first chunk        later chunks         its place is due again
  FREE ----------------> RECYCLING ------> OPEN ----------> OPEN/FULL ---------------> RECYCLING
          end = -1      end = first + n   end grows

Shared words and arrays (int64), all written by the owner's process alone, by whichever of its
threads holds what is named; read by everyone without a lock. If the owner dies, everything here
ends with it.

    next_serial         under the registry, before anything else of a block that is recycled:
                        serial, end = -1, fence, rows. So a block is whole for as long as nobody
                        took the serial that is due after it. A reader that sees an old value misses
                        the newest block.
    rows_now, rows_inserted, next_stream   under its lock. For statistics and gates; never trusted
                                           for memory safety.
    ends[place]         under the block's lock. The index after that of the block's last committed
                        row, which tells its serial and the number of its rows in one store; -1
                        while its rows are being replaced.
    streams, previous, following [place]   under its lock: the chain of blocks of a stream, by
                                           serial, -1 at its ends.
                        Good as long as the block in that place is the one that was asked for.

The tables have room for the smallest blocks that there may be: `Ring.split` makes blocks smaller
while nobody uses them, see `WriterRegistry.begin_use`.

Readers take no lock. A row exists if its block's end lies behind it, by no more than a block. They
look, copy, and look again: if it exists still, what was copied is whole, since a writer sets the
end to -1 before it touches a row. Nobody ever waits: a writer that finds a block locked by a reader
(see `areplay._sampling.reader`), or kept by somebody who needs its rows (a `Keeper`), leaves that
block alone for one more lap and takes the next.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from areplay._base import debug
from areplay._base.arrays import Columns, Indices, Mask
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_word
from areplay._shm.memory_order import order
from areplay._shm.range_locks import BlockLocks
from areplay._shm.resource_limits import check_memory
from areplay._shm.segment import Segment
from areplay._storage.registry import Blocks
from areplay.spec import Spec

logger = logging.getLogger(__name__)


MIN_BLOCKS = 4


def check_ring_memory(spec: Spec, rows: int) -> None:
    """Raise `MemoryLimitExceeded` if a ring of that many rows takes more than is available."""
    parts = {field.name: field.row_bytes * rows for field in spec.rows.values()}
    check_memory(f"a replay of {rows:,} rows of {spec.row_bytes:,} bytes", parts)


class Ring:
    """The blocks as any process sees them. Reads only; `StreamWriter` writes.

    Args:
        blocks, block_rows: the geometry; `capacity_rows` is their product.
        finest_rows: down to which blocks may be split: `block_rows` halved some times. None: they
            stay as they are.
    """

    def __init__(
        self, spec: Spec, blocks: int, block_rows: int, finest_rows: int | None = None
    ) -> None:
        self.spec, self.blocks, self.block_rows = spec, blocks, block_rows
        self.finest_rows = block_rows if finest_rows is None else finest_rows
        capacity = blocks * block_rows
        most_blocks = capacity // self.finest_rows
        columns = {f"column:{f.name}": ((capacity, *f.shape), f.dtype) for f in spec.rows.values()}
        tables = dict.fromkeys(
            ("ends", "streams", "previous", "following"), ((most_blocks,), np.int64)
        )
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
        self.next_serial, self.rows_now = int64_word(words, 0), int64_word(words, 1)
        self.rows_inserted, self.next_stream = int64_word(words, 2), int64_word(words, 3)
        self._view_tables()
        # of each row, in debug mode
        self.checksums: NDArray[np.uint32] | None = arrays.get("checksums")
        self.columns: Columns = {name: arrays[f"column:{name}"] for name in self.spec.rows}

    def _view_tables(self) -> None:
        tables = self.segment.arrays
        self.ends: Indices = tables["ends"][: self.blocks]
        self._streams: Indices = tables["streams"][: self.blocks]
        self._previous: Indices = tables["previous"][: self.blocks]
        self._following: Indices = tables["following"][: self.blocks]

    def split(self, block_rows: int, open_places: Collection[int]) -> dict[int, int]:
        """Split each block into blocks of so many rows; every row keeps its index, its position and
        its neighbours.

        Under the writers' registry, and only while nobody else uses the blocks, in this process or
        another.

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
        # The block before: its last part that has rows. If it is gone, its name leads nowhere, as
        # before.
        before = self._previous
        is_there = (before >= 0) & (serials.take(before % self.blocks) == before)
        last_part = np.where(
            is_there, np.maximum(rows.take(before % self.blocks) - 1, 0) // block_rows, parts - 1
        )
        previous = np.where(
            kth == 0, np.where(before >= 0, before * parts + last_part, -1)[:, None], named - 1
        )
        after = np.where(self._following >= 0, self._following * parts, -1)[:, None]
        goes_on = {place: int(rows[place]) // block_rows for place in open_places}  # in which part
        following = np.where(
            is_last, after, np.where(rows[:, None] > (kth + 1) * block_rows, named + 1, -1)
        )
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

    def index_range(self) -> tuple[int, int]:
        """`(first, end)`: every row that exists has an index in that range, but not every index in
        it has a row."""
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
        # 0 <= ahead < block_rows, in one comparison: a negative number is a huge one when read as
        # unsigned.
        exists: Mask = ahead.view(np.uint64) < self.block_rows
        exists &= indices >= 0  # of a place that is being recycled the end is -1
        return exists

    def unchanged(self, indices: Indices) -> Mask:
        """Which of the indices, all committed before, still name the same row. Call it after
        copying."""
        order()
        return self.committed(indices)

    def all_current(self, indices: Indices) -> bool:
        """Whether no writer has come so far as to recycle the block of one of the indices, all
        committed before.

        Then all name the same rows still. Call it after copying: a writer takes its serial before
        it touches a row, and touches none if it was lapped before it had the lock. One look for all
        of them; where it says no, `unchanged` tells which.
        """
        order()
        due = (self.next_serial[0] - self.blocks) * self.block_rows
        return bool(np.minimum.reduce(indices, initial=due) >= due)

    def occupied(self) -> tuple[Indices, Indices]:
        """The serials of all blocks that hold rows, and for each the number of its rows."""
        # first: stopped here for a lap, we still find blocks
        floor = max(0, self.next_serial[0] - self.blocks)
        ends = self.ends.copy()
        ends = ends[ends > floor * self.block_rows]
        serials = (ends - 1) // self.block_rows
        return serials, ends - serials * self.block_rows

    def table(self, kept: Mask | None) -> Blocks:
        """All blocks that hold rows which can be sampled, and those in places that are `kept`.
        Under the registry."""
        serials = (self.ends - 1) // self.block_rows
        is_wanted = serials >= max(0, self.next_serial[0] - self.blocks)
        if kept is not None:
            is_wanted |= kept
        places = np.flatnonzero(is_wanted & (self.ends > 0))
        places = places[np.argsort(serials[places])]
        serials = serials[places]
        rows = self.ends[places] - serials * self.block_rows
        return Blocks(
            serials, rows, self._streams[places], self._previous[places], self._following[places]
        )

    def restore(
        self, blocks: Blocks, next_serial: int, next_stream: int, rows_inserted: int
    ) -> None:
        """Make rows visible that were written into the columns already. Only in a ring that nobody
        else uses yet."""
        places = blocks.serials % self.blocks
        self._streams[places], self._previous[places] = blocks.streams, blocks.previous
        self._following[places] = blocks.following
        self.next_serial[0], self.next_stream[0], self.rows_inserted[0] = (
            next_serial,
            next_stream,
            rows_inserted,
        )
        self.rows_now[0] = int(blocks.rows.sum())
        for place, rows in zip(places.tolist(), blocks.rows.tolist(), strict=True):
            debug.seal(self, self.spec, self.columns, place * self.block_rows, rows)
        order()
        self.ends[places] = blocks.serials * self.block_rows + blocks.rows

    def block(self, place: int) -> tuple[int, int]:
        """`(serial, rows)` of the block in that place; `(-1, 0)` if it has no row or is being
        replaced."""
        end = int(self.ends[place])
        if end <= 0:
            return -1, 0
        serial = (end - 1) // self.block_rows
        return serial, end - serial * self.block_rows

    def chain(self, serial: int) -> tuple[int, int, int]:
        """`(stream, previous, following)` of the block with that serial; serials, or -1 at an end
        of the stream."""
        place = serial % self.blocks
        found = int(self._streams[place]), int(self._previous[place]), int(self._following[place])
        order()
        if self.block(place)[0] != serial:
            raise KeyError(serial)
        return found

    def neighbours(self, serials: Indices, *, following: bool) -> tuple[Indices, Indices]:
        """For each block with that serial: its rows, and the serial of the next (or previous) block
        of its stream.

        0 rows: it is not there, or not any more. A following serial of -1: there is none yet;
        whoever sees one sees the number of rows of the block before it as it will stay.
        """
        places = serials % self.blocks
        found = (self._following if following else self._previous).take(places, mode="clip")
        # the chain before the look at whose it is: recycling changes them in the other order
        order()
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
        return {
            key: self.__dict__[key]
            for key in ("spec", "blocks", "block_rows", "finest_rows", "segment")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        return (
            f"<Ring {self.rows_now[0]:,} of {self.capacity_rows:,} rows in {self.blocks} blocks of "
            f"{self.block_rows}, next serial {self.next_serial[0]}>"
        )
