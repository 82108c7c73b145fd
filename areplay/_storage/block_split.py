"""Splitting blocks: the tables of a ring after each block of B rows became B / b blocks of b rows.

Every row keeps its index, its position and its neighbours:

    serial S, offset o, of B rows   ->   serial S * parts + o // b, offset o % b

A block of 16 rows of which 11 are used, split into parts of 4:

    |a a a a|a a a a|a a a .|. . . .|
      4S      4S+1    4S+2    4S+3        the last part has no row: it does not exist yet
    previous of 4S: the last part with rows of the block before; of each other part: the part before
    following of 4S+2: the first part of the block after; of 4S and 4S+1: the part after

The tables are those of `areplay._storage.ring`, (blocks,) int64 each.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from areplay._base.arrays import Indices


class BlockTables(NamedTuple):
    """What is known of each place of a ring, (blocks,) int64 each.

    Attributes:
        ends: the index after the block's last row; -1 without a row.
        streams, previous, following: the chain of blocks of a stream, by serial; -1 at its ends.
    """

    ends: Indices
    streams: Indices
    previous: Indices
    following: Indices


def split_tables(
    tables: BlockTables, block_rows: int, part_rows: int, open_places: Collection[int]
) -> tuple[BlockTables, dict[int, int]]:
    """Split blocks of `block_rows` into parts of `part_rows`.

    Args:
        open_places: of blocks to which rows may still be appended.

    Returns:
        the tables of the parts, and for each open place the place of the part into which its next
        row falls.
    """
    parts = block_rows // part_rows
    serials = np.maximum(tables.ends - 1, -1) // block_rows
    rows = np.maximum(tables.ends, 0) - np.maximum(serials, 0) * block_rows
    # From here on (blocks, parts): part k of each block.
    kth = np.arange(parts)
    rows_of_parts = np.clip(rows[:, None] - kth * part_rows, 0, part_rows)
    serials_of_parts = serials[:, None] * parts + kth
    ends = np.where(rows_of_parts > 0, serials_of_parts * part_rows + rows_of_parts, -1)
    previous = _previous(tables, serials, rows, serials_of_parts, part_rows)
    following = _following(tables, rows, rows_of_parts, serials_of_parts, part_rows)
    next_parts = {place: int(rows[place]) // part_rows for place in open_places}
    for place, part in next_parts.items():
        if rows[place] and rows[place] % part_rows == 0:
            # The part of the last row is full, and the stream goes on in the next one.
            following[place, part - 1] = serials_of_parts[place, part]
    split = BlockTables(
        ends.reshape(-1),
        np.repeat(tables.streams, parts),
        previous.reshape(-1),
        following.reshape(-1),
    )
    return split, {place: place * parts + part for place, part in next_parts.items()}


def _previous(
    tables: BlockTables, serials: Indices, rows: Indices, serials_of_parts: Indices, part_rows: int
) -> Indices:
    """The serial of the part before each part, (blocks, parts)."""
    blocks, parts = serials_of_parts.shape
    before = tables.previous
    places = before % blocks
    is_there = (before >= 0) & (serials[places] == before)
    last_part = np.maximum(rows[places] - 1, 0) // part_rows
    # If the block before is gone, any of its parts will do: the name leads nowhere, as before.
    last_part = np.where(is_there, last_part, parts - 1)
    before_first = np.where(before >= 0, before * parts + last_part, -1)
    is_first = np.arange(parts) == 0
    return np.where(is_first, before_first[:, None], serials_of_parts - 1)


def _following(
    tables: BlockTables,
    rows: Indices,
    rows_of_parts: Indices,
    serials_of_parts: Indices,
    part_rows: int,
) -> Indices:
    """The serial of the part after each part, (blocks, parts); -1 of parts without rows."""
    _, parts = serials_of_parts.shape
    stops = (np.arange(parts) + 1) * part_rows
    is_last = (rows_of_parts > 0) & (rows[:, None] <= stops)
    is_last[:, 0] |= rows == 0  # a block that was begun, and nothing is written yet
    after = np.where(tables.following >= 0, tables.following * parts, -1)
    inner = np.where(rows[:, None] > stops, serials_of_parts + 1, -1)
    return np.where(is_last, after[:, None], inner)
