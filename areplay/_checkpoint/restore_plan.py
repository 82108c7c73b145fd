"""The plan of a restore: where the rows of a checkpoint go in a ring.

Rows come back in the places that they had, if the ring has blocks of the same size and as many.
Otherwise each stream is cut anew into blocks, in its order, since the rows of an episode name each
other by their distance in their stream:

    blocks of the table    | a a a a | b b b |   c c c c |     one run: each follows the one before
    pieces                 | a a a a b b | b c c c c |         with blocks of 6 rows

A *run* is a series of blocks of one stream without a gap; a *piece* is what becomes one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from areplay._base.arrays import Array, Indices
from areplay._storage.registry import Blocks


class Geometry(NamedTuple):
    """The blocks of a ring."""

    blocks: int
    block_rows: int


class Move(NamedTuple):
    """Rows `start` to `stop` of a block of the table go to the positions from `at` on."""

    start: int
    stop: int
    at: int


class Plan(NamedTuple):
    """Which rows go where.

    Attributes:
        blocks: as they will be in the ring.
        moves: for each block of the table, what becomes of its rows.
        next_serial, next_stream: of the ring.
        is_in_place: whether every row keeps its index.
    """

    blocks: Blocks
    moves: list[list[Move]]
    next_serial: int
    next_stream: int
    is_in_place: bool


class _Part(NamedTuple):
    """Rows `start` to `stop` of block `entry` of the table."""

    entry: int
    start: int
    stop: int


class _Piece(NamedTuple):
    """Rows of one run that become one block with that serial."""

    serial: int
    run: int
    parts: list[_Part]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(part.stop - part.start for part in self.parts)


def plan_restore(table: Array, counters: dict[str, int], before: Geometry, after: Geometry) -> Plan:
    """Plan where the rows of a table of blocks go; the newest ones, if they are too many.

    Args:
        table: of dtype `TABLE`, oldest block first.
        counters: of the ring that was saved.
        before: of that ring.
        after: of the ring that the rows go to.
    """
    runs = _runs(table)
    next_serial = counters["next_serial"]
    # Blocks that were left for another lap had no place among the others any more.
    are_all_current = bool((table["serial"] >= next_serial - after.blocks).all())
    is_in_place = before == after and are_all_current
    if is_in_place:
        pieces = _uncut(table, runs)
    else:
        pieces = _cut_anew(table, runs, before, after)
        next_serial = len(pieces)
    streams, next_stream = _streams(table, runs, counters["next_stream"])
    blocks = _chained(pieces, streams)
    moves = _moves(len(table), pieces, after)
    return Plan(blocks, moves, next_serial, next_stream, is_in_place)


def _runs(table: Array) -> list[Indices]:
    """The entries of the table that follow each other in their stream, without a gap; runs in the
    order of their first entries."""
    order = np.lexsort((table["serial"], table["stream"]))
    if len(order) == 0:
        return []
    stream, serial, following = (table[name][order] for name in ("stream", "serial", "following"))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (stream[1:] != stream[:-1]) | (following[:-1] != serial[1:])
    runs = np.split(order, np.flatnonzero(is_first)[1:])
    return sorted(runs, key=lambda run: int(run[0]))


def _uncut(table: Array, runs: list[Indices]) -> list[_Piece]:
    """Each block as it was, by serial."""
    pieces = [
        _Piece(int(table["serial"][entry]), run, [_Part(entry, 0, int(table["rows"][entry]))])
        for run, entries in enumerate(runs)
        for entry in entries.tolist()
    ]
    return sorted(pieces, key=lambda piece: piece.serial)


def _cut_anew(table: Array, runs: list[Indices], before: Geometry, after: Geometry) -> list[_Piece]:
    """The newest pieces of all runs that the ring has room for, oldest first, with new serials."""

    def age(piece: _Piece) -> int:
        last = piece.parts[-1]
        return int(table["serial"][last.entry]) * before.block_rows + last.stop

    pieces = [
        _Piece(-1, run, parts)
        for run, entries in enumerate(runs)
        for parts in _cut(entries.tolist(), table["rows"][entries].tolist(), after.block_rows)
    ]
    pieces.sort(key=age)
    newest = pieces[-after.blocks :]
    return [piece._replace(serial=serial) for serial, piece in enumerate(newest)]


def _cut(entries: list[int], rows: list[int], block_rows: int) -> Iterator[list[_Part]]:
    """Cut the rows of one run into blocks of `block_rows`; the last one may be shorter."""
    parts: list[_Part] = []
    room = block_rows
    for entry, count in zip(entries, rows, strict=True):
        start = 0
        while start < count:
            stop = start + min(room, count - start)
            parts.append(_Part(entry, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield parts
                parts = []
                room = block_rows
    if parts:
        yield parts


def _streams(table: Array, runs: list[Indices], next_stream: int) -> tuple[list[int], int]:
    """The stream of each run, and the next one that is free. A run that is not the first of its
    stream becomes another stream, since rows are missing in between."""
    streams: list[int] = []
    seen: set[int] = set()
    for entries in runs:
        stream = int(table["stream"][entries[0]])
        if stream in seen:
            stream = next_stream
            next_stream += 1
        seen.add(stream)
        streams.append(stream)
    return streams, next_stream


def _chained(pieces: list[_Piece], streams: list[int]) -> Blocks:
    """The blocks of the pieces, which come by serial, each linked with its neighbours in its
    run."""
    blocks = Blocks(*np.full((len(Blocks._fields), len(pieces)), -1, np.int64))
    newest: dict[int, int] = {}  # by run: the number of its piece before
    for number, piece in enumerate(pieces):
        blocks.serials[number] = piece.serial
        blocks.rows[number] = piece.rows
        blocks.streams[number] = streams[piece.run]
        if piece.run in newest:
            before = newest[piece.run]
            blocks.previous[number] = blocks.serials[before]
            blocks.following[before] = piece.serial
        newest[piece.run] = number
    return blocks


def _moves(entries: int, pieces: list[_Piece], after: Geometry) -> list[list[Move]]:
    """For each of the entries of the table where its rows go."""
    moves: list[list[Move]] = [[] for _ in range(entries)]
    for piece in pieces:
        at = piece.serial % after.blocks * after.block_rows
        for part in piece.parts:
            moves[part.entry].append(Move(part.start, part.stop, at))
            at += part.stop - part.start
    return moves
