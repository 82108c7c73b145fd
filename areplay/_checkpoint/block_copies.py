"""Copies of blocks: what a save takes out of a ring while writers go on.

Copy the rows of a block, then look whether it is still the same block: a writer says that it takes
a block before it touches a row. If the block was recycled, the save takes the one in its place,
with the rows that it has by then. So a checkpoint is as full as the ring, however slowly it is
written and however fast rows come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices, Mask
from areplay._checkpoint.format import array_header
from areplay._checkpoint.snapshot import Snapshot
from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import WriterRegistry

# How long a writer may be in the middle of a chunk, and the pause between two looks.
_WRITER_S, _LOOK_S = 1.0, 0.0002
# Tries to copy what is in a place, before it is left out, and the pause between two tries: a writer
# takes less to recycle a block.
_TRIES, _AGAIN_S = 8, 0.001


class BlockCopies:
    """What one save copies of a snapshot. One thread uses it.

    Args:
        registry: of the ring's writers.
        locks: of this thread, to see which blocks writers hold.

    Attributes:
        masses: for each priority exponent those of all rows, (blocks, block_rows) float32. Known
            after `copy_masses`.
        delivered: for each stream of batches with a `Fifo` whether it has delivered the item of a
            row, (blocks, block_rows) bool; None for the others. Known after `copy_delivered`.
    """

    def __init__(self, snapshot: Snapshot, registry: WriterRegistry, locks: BlockLocks) -> None:
        self._snapshot = snapshot
        self._ring = snapshot.ring
        self._registry = registry
        self._locks = locks
        self._headers: dict[int, list[bytes]] = {}  # by the number of rows
        self.masses: dict[float, NDArray[np.float32]] = {}
        self.delivered: list[Mask | None] = []

    def copy_masses(self, table: Array) -> Mask:
        """Copy the masses of all rows; which blocks of the table they belong to, (n,) bool.

        The other blocks were recycled meanwhile: `images` takes the masses of those in their
        places.
        """
        if not self._snapshot.priorities:
            return np.ones(len(table), np.bool_)
        for place in self._places(table).tolist():
            self._wait_masses(place)
        self.masses = {
            exponent: priorities.masses[: self._ring.capacity_rows]
            .copy()
            .reshape(self._ring.blocks, -1)
            for exponent, priorities in self._snapshot.priorities.items()
        }
        # As long as a block is there, the masses are those of its rows: newcomers get theirs after
        # it is recycled.
        return self._snapshot.still_there(table)

    def copy_delivered(self, table: Array) -> None:
        """Note for each stream of batches with a `Fifo` which items it has delivered."""
        self.delivered = [
            None if is_delivered is None else self._delivered(table, is_delivered)
            for _, is_delivered in self._snapshot.streams
        ]

    def images(self, table: Array, entries: Indices) -> dict[int, bytearray]:
        """Copy the blocks of these entries of the table: for each entry the bytes of its file.

        An entry whose block was recycled is renewed. One whose place was recycled again and again
        during the copies is left out.
        """
        images: dict[int, bytearray] = {}
        missing = entries
        for _ in range(_TRIES):
            for at in missing.tolist():
                if (image := self._image(table, at)) is not None:
                    images[at] = image
            missing = np.array([at for at in entries.tolist() if at not in images], np.int64)
            if not len(missing):
                break
            time.sleep(_AGAIN_S)
            missing = self._snapshot.renew(table, missing, self._registry)
            self._renew_values(self._places(table[missing]).tolist())
        return images

    def values(self, table: Array, of_ring: Array) -> Array:
        """The values of the rows of a table, in its order, of an array (blocks, block_rows)."""
        values: Array = of_ring[self._places(table)][self._is_row(table)]
        return values

    def _delivered(self, table: Array, is_delivered: Callable[[Indices], Mask]) -> Mask:
        """(blocks, block_rows) bool: the rows whose items one stream of batches has delivered."""
        ring = self._ring
        is_row = self._is_row(table)
        indices = table["serial"][:, None] * ring.block_rows + np.arange(ring.block_rows)
        of_table = np.zeros(is_row.shape, np.bool_)
        of_table[is_row] = is_delivered(indices[is_row])
        of_ring = np.zeros((ring.blocks, ring.block_rows), np.bool_)
        of_ring[self._places(table)] = of_table
        return of_ring

    def _image(self, table: Array, at: int) -> bytearray | None:
        """The bytes of the file of one block: header and numbers of each column; None if it was
        recycled meanwhile."""
        entry = table[at : at + 1]
        if not self._snapshot.still_there(entry)[0]:
            return None
        rows = int(entry["rows"][0])
        start = int(self._places(entry)[0]) * self._ring.block_rows
        columns = self._ring.columns.values()
        if rows not in self._headers:
            self._headers[rows] = [array_header(column, rows) for column in columns]
        headers = self._headers[rows]
        image = bytearray(sum(map(len, headers)) + rows * self._ring.spec.row_bytes)
        done = 0
        for header, column in zip(headers, columns, strict=True):
            image[done : done + len(header)] = header
            done += len(header)
            part = column[start : start + rows]
            target = np.frombuffer(image, part.dtype, part.size, done)
            target.reshape(part.shape)[...] = part
            done += part.nbytes
        return image if self._snapshot.still_there(entry)[0] else None

    def _renew_values(self, places: list[int]) -> None:
        """Take the masses of the blocks that are in these places now. They belong to the rows that
        `_image` copies next, if the block is still the same after that."""
        block_rows = self._ring.block_rows
        for place in places:
            if self.masses:
                self._wait_masses(place)
            rows = slice(place * block_rows, (place + 1) * block_rows)
            for exponent, masses in self.masses.items():
                masses[place] = self._snapshot.priorities[exponent].masses[rows]
            for delivered in self.delivered:
                if delivered is not None:
                    delivered[place] = False  # its rows came after the snapshot

    def _wait_masses(self, place: int) -> None:
        """Wait until the rows that are seen in that place have their masses: their writer holds the
        block until then."""
        until = time.monotonic() + _WRITER_S
        while self._locks.has_writer(place) and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _places(self, table: Array) -> Indices:
        places: Indices = table["serial"] % self._ring.blocks
        return places

    def _is_row(self, table: Array) -> Mask:
        """(blocks of the table, block_rows) bool: which rows there are."""
        is_row: Mask = np.arange(self._ring.block_rows) < table["rows"][:, None]
        return is_row
