"""The ring of blocks: where rows live, who may write them, and how a reader knows that they are
still the same.

A block is a fixed run of rows of one stream. Blocks get ever-growing *serials*; a block's *place*
is `serial % blocks`. A row's *index* is `serial * block_rows + offset`: it names that row for ever,
and since a recycled place gets a new serial, a stale index is recognised. `index % capacity_rows`
is the row's *position* in the columns.

        take a serial        first chunk        later chunks         its place is due again
  FREE ----------------> RECYCLING ------> OPEN ----------> OPEN/FULL ---------------> RECYCLING
          end = -1      end = first + n   end grows

Four blocks of 4 rows; serial 5 is being written, serial 6 is due next:

    place       0            1            2            3
    serial      4            5            2            3
              |16 17 18 19|20 21  .  .| 8  9 10 11|12 13 14 15|      next_serial = 6
    end        20           22           12           16

Shared words and arrays (int64). The owner's process alone writes them, in the thread that holds
what is named; every process reads them without a lock. If the owner dies, everything here ends with
it.

    next_serial         under the registry, before anything else of a block that is recycled:
                        serial, end = -1, fence, rows. So a block is whole as long as the serial
                        that is due after it is not taken. A reader that sees an old value misses
                        the newest block.
    rows_now, rows_inserted, next_stream   under the registry. For statistics and gates; never
                                           trusted for memory safety.
    ends[place]         under the block's lock. The index after that of the block's last committed
                        row, which tells its serial and the number of its rows in one store; -1
                        while its rows are being replaced.
    streams, previous, following [place]   under the registry: the chain of blocks of a stream, by
                                           serial, -1 at its ends.
                        Good as long as the block in that place is the one that was asked for.

The tables have room for the smallest blocks that there may be: `Ring.split` makes blocks smaller
while only this thread uses them, see `WriterRegistry.begin_use`.

Readers take no lock. A row exists if its block's end lies behind it, by no more than a block. They
look, copy, and look again: if the row exists still, what was copied is whole, since a writer sets
the end to -1 before it touches a row. A writer never waits either. It leaves a block that a reader
has locked (see `areplay._sampling.reader`), or that is pinned (`BlockPins`), for another lap, and
takes the next.
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
from areplay._storage.block_split import BlockTables, split_tables
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

    Attributes:
        columns: field name -> (capacity_rows, *shape).
        ends: (blocks,) int64, see above.
        next_serial, rows_now, rows_inserted, next_stream: words, see above.
        checksums: (capacity_rows,) uint32, of each row, in debug mode; else None.
    """

    def __init__(
        self, spec: Spec, blocks: int, block_rows: int, finest_rows: int | None = None
    ) -> None:
        self.spec = spec
        self.blocks = blocks
        self.block_rows = block_rows
        self.finest_rows = block_rows if finest_rows is None else finest_rows
        capacity = blocks * block_rows
        most_blocks = capacity // self.finest_rows
        columns = {f"column:{f.name}": ((capacity, *f.shape), f.dtype) for f in spec.rows.values()}
        tables = dict.fromkeys(BlockTables._fields, ((most_blocks,), np.int64))
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
        for table in (self.tables.ends, self.tables.previous, self.tables.following):
            table.fill(-1)

    def _view(self) -> None:
        arrays = self.segment.arrays
        words = arrays["words"]
        self.capacity_rows = self.blocks * self.block_rows
        self.next_serial = int64_word(words, 0)
        self.rows_now = int64_word(words, 1)
        self.rows_inserted = int64_word(words, 2)
        self.next_stream = int64_word(words, 3)
        self._view_tables()
        self.checksums: NDArray[np.uint32] | None = arrays.get("checksums")
        self.columns: Columns = {name: arrays[f"column:{name}"] for name in self.spec.rows}

    def _view_tables(self) -> None:
        arrays = self.segment.arrays
        self.tables = BlockTables(*(arrays[name][: self.blocks] for name in BlockTables._fields))
        self.ends: Indices = self.tables.ends

    def split(self, block_rows: int, open_places: Collection[int]) -> dict[int, int]:
        """Split each block into blocks of `block_rows` rows; every row keeps its index, its
        position and its neighbours.

        Under the writers' registry, and only while nothing else uses the blocks, in any process.

        Args:
            open_places: of blocks to which rows may still be appended.

        Returns:
            for each of those the place of the part into which its next row falls.
        """
        parts = self.block_rows // block_rows
        split, moved = split_tables(self.tables, self.block_rows, block_rows, open_places)
        self.next_serial[0] *= parts
        self.blocks *= parts
        self.block_rows = block_rows
        self._view_tables()
        for table, values in zip(self.tables, split, strict=True):
            table[:] = values
        order()
        return moved

    def block_locks(self) -> BlockLocks:
        """Locks of the blocks, for one thread of this process."""
        return BlockLocks(self.segment.descriptor, self.segment.arrays["holders"])

    def index_range(self) -> tuple[int, int]:
        """`(first, end)`: every row that readers may draw has an index in that range. Not every
        index in it has a row."""
        end = self.next_serial[0]
        return max(0, end - self.blocks) * self.block_rows, end * self.block_rows

    def positions(self, indices: Indices) -> Indices:
        """The positions in the columns of the rows of these indices, if they exist."""
        return indices % self.capacity_rows

    def committed(self, indices: Indices) -> Mask:
        """Mask of the indices that name a row which is written and not yet overwritten."""
        ahead = self.ends.take(indices % self.capacity_rows // self.block_rows, mode="clip")
        order()  # this look before the copy that relies on it
        # A row exists if index < end <= index + block_rows: a further end is that of a newer block,
        # a nearer one that of an older block, or of one with fewer rows. One comparison for both,
        # since a negative number is huge when read as unsigned.
        ahead -= indices
        ahead -= 1
        exists: Mask = ahead.view(np.uint64) < self.block_rows
        exists &= indices >= 0  # an end of -1, of a recycled place, is within reach of these
        return exists

    def unchanged(self, indices: Indices) -> Mask:
        """Mask of the indices, all committed before, that still name the same row. Call it after
        copying."""
        order()
        return self.committed(indices)

    def all_current(self, indices: Indices) -> bool:
        """Whether no writer has taken a serial that is due to recycle the block of one of the
        indices, all committed before.

        Then all of them still name the same rows. Call it after copying: a writer takes its serial
        before it touches a row, and touches none if it was lapped before it had the lock. One look
        for all indices; if the answer is no, `unchanged` tells which rows changed.
        """
        order()
        due = (self.next_serial[0] - self.blocks) * self.block_rows
        return bool(np.minimum.reduce(indices, initial=due) >= due)

    def occupied(self) -> tuple[Indices, Indices]:
        """The serials of all blocks that hold rows, and for each the number of its rows."""
        # First: if this thread then stands still for a lap, it finds newer blocks, not none.
        floor = max(0, self.next_serial[0] - self.blocks)
        ends = self.ends.copy()
        ends = ends[ends > floor * self.block_rows]
        serials = (ends - 1) // self.block_rows
        return serials, ends - serials * self.block_rows

    def table(self, pinned: Mask | None) -> Blocks:
        """All blocks that hold rows which can be sampled, and those in places that are `pinned`.
        Under the registry."""
        serials = (self.ends - 1) // self.block_rows
        is_wanted = serials >= max(0, self.next_serial[0] - self.blocks)
        if pinned is not None:
            is_wanted |= pinned
        places = np.flatnonzero(is_wanted & (self.ends > 0))
        places = places[np.argsort(serials[places])]
        serials = serials[places]
        rows = self.ends[places] - serials * self.block_rows
        _, streams, previous, following = self.tables
        return Blocks(serials, rows, streams[places], previous[places], following[places])

    def restore(
        self, blocks: Blocks, next_serial: int, next_stream: int, rows_inserted: int
    ) -> None:
        """Make rows visible that were written into the columns already. Only in a ring that only
        this thread uses yet."""
        places = blocks.serials % self.blocks
        self.tables.streams[places] = blocks.streams
        self.tables.previous[places] = blocks.previous
        self.tables.following[places] = blocks.following
        self.next_serial[0] = next_serial
        self.next_stream[0] = next_stream
        self.rows_inserted[0] = rows_inserted
        self.rows_now[0] = int(blocks.rows.sum())
        for place, rows in zip(places.tolist(), blocks.rows.tolist(), strict=True):
            first = place * self.block_rows
            debug.record_checksums(self, self.spec, self.columns, first, rows)
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
        _, streams, previous, following = self.tables
        found = int(streams[place]), int(previous[place]), int(following[place])
        order()
        if self.block(place)[0] != serial:
            raise KeyError(serial)
        return found

    def neighbours(self, serials: Indices, *, following: bool) -> tuple[Indices, Indices]:
        """The rows of the blocks with these serials, and the serials of the next (or previous)
        blocks of their streams: two arrays (n,) int64.

        A row count of 0 means that the block does not exist (any more). -1 means that there is no
        next block yet; once there is one, the row count of the block before it is final.
        """
        places = serials % self.blocks
        chain = self.tables.following if following else self.tables.previous
        found = chain.take(places, mode="clip")
        # The chain before the look at whose it is: recycling changes them in the other order.
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
