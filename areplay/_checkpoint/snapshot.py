"""Snapshots: the state of a replay at one moment.

A snapshot knows which rows there are: the serial of each block, and the number of its rows at that
moment. Those rows never change until their block is recycled, so a save copies them later, without
a lock, and looks whether the block is still the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from areplay._base.arrays import Array, Indices, Mask
from areplay._checkpoint.format import TABLE
from areplay._storage.priorities import Priorities
from areplay._storage.registry import Blocks, WriterRegistry
from areplay._storage.ring import Ring

_OF_BLOCKS = ("serial", "rows", "stream", "previous", "following")
"""The columns of the table that say what a block is, in the order of `Blocks`."""


@dataclass
class Snapshot:
    """A replay at one moment. Its rows are still in the ring, and its masses are not copied yet.

    Attributes:
        priorities: the masses of each priority exponent.
        manifest: what else belongs to it.
        streams: for each stream of batches its state, for the manifest, and a function that says
            of which rows a `Fifo` has delivered the items; None for other selectors.
        table: the blocks that hold rows, oldest first, of dtype `TABLE`.
    """

    ring: Ring
    priorities: dict[float, Priorities]
    manifest: dict[str, Any]
    streams: list[tuple[dict[str, Any], Callable[[Indices], Mask] | None]]
    table: Array = field(init=False)

    def take_blocks(self, registry: WriterRegistry) -> None:
        """Note which rows there are at this moment; takes some microseconds."""
        # Before the blocks: of rows that come in between, the checkpoint may hold more than it
        # counts, never fewer.
        inserted = self.ring.rows_inserted[0]
        blocks = registry.blocks(self.ring)
        self.table = np.zeros(len(blocks.serials), TABLE)
        _enter(self.table, slice(None), blocks, slice(None))
        self._count()
        self.manifest["counters"]["rows_inserted"] = inserted

    def still_there(self, table: Array) -> Mask:
        """Which blocks of the table were not recycled, (n,) bool."""
        return self.ring.unchanged(table["serial"] * self.ring.block_rows)

    def renew(self, table: Array, at: Indices, registry: WriterRegistry) -> Indices:
        """Put the blocks that are now in the places of the entries `at` into these entries.

        They were begun after the snapshot, so the counters are raised above their serials.

        Returns:
            the entries whose place has a block.
        """
        blocks = registry.blocks(self.ring)
        newest = np.full(self.ring.blocks, -1)
        newest[blocks.serials % self.ring.blocks] = np.arange(len(blocks.serials))
        found = newest[table["serial"][at] % self.ring.blocks]
        has_block = found >= 0
        renewed: Indices = at[has_block]
        _enter(table, renewed, blocks, found[has_block])
        self._count()
        return renewed

    def _count(self) -> None:
        # Read after the blocks: a serial or a stream that is not used after all does no harm.
        counters = {
            "next_serial": self.ring.next_serial[0],
            "next_stream": self.ring.next_stream[0],
        }
        self.manifest["counters"] = {"rows_inserted": self.ring.rows_inserted[0]} | counters


def _enter(table: Array, at: Indices | slice, blocks: Blocks, which: Indices | slice) -> None:
    """Write these blocks into the entries `at` of the table."""
    for name, column in zip(_OF_BLOCKS, blocks, strict=True):
        table[name][at] = column[which]
