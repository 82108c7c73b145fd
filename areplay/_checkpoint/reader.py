"""Checkpoints: a replay as a directory of files, how they are named and read, and how rows come
back into a ring.

    manifest.json               what the checkpoint is, and which other files belong to it
    blocks-<save>.npy           a table: for each block its serial, rows and stream, and its file's
                                size and checksum
    block-<serial>-<rows>-<save>.npys    the rows of one block: its columns one after the other, as
                                         np.save writes them
    masses-<k>-<save>.npy       of the k-th priority exponent: a mass a row, in the order of the
                                table
    delivered-<k>-<save>.npy    of the k-th stream of batches: which rows a Fifo has delivered
                                already

`<save>` is the number of the save that wrote the file. Rule: a file is never changed once it is
written, and belongs to a checkpoint only if its manifest names it. So a save that writes beside it
disturbs nobody, and the one step that counts is the renaming of the manifest. See
docs/checkpoints.md; `areplay._checkpoint.writer` writes what is read here.

Rows come back in the places that they had, if the ring has blocks of the same size and as many.
Otherwise each stream is cut anew into blocks, in its order, since the rows of an episode name each
other by their distance in their stream. Whatever is wrong is found before a row can be seen: `fill`
makes them visible in its last step.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices
from areplay._checkpoint.manifest import MANIFEST, allocated, opened, read_manifest
from areplay._storage.registry import Blocks
from areplay._storage.ring import Ring
from areplay.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    MemoryLimitExceeded,
    ResourceUnavailable,
    WouldBlock,
)
from areplay.spec import Spec

TABLE = np.dtype(
    [
        (name, "<i8")
        for name in ("serial", "rows", "stream", "previous", "following", "save", "bytes", "crc32")
    ]
)
_PIECE_BYTES = 1 << 20
_HEADER_BYTES = 4_096  # of an array's header, at most

Progress = Callable[[int, int], None]


def block_name(entry: np.void) -> str:
    """The file of a block in the table."""
    return f"block-{entry['serial']}-{entry['rows']}-{entry['save']}.npys"


class CancelToken(threading.Event):
    """Set to make a save or a load give up at the next block."""

    def check(self) -> None:
        """Raise `WouldBlock` if it is set."""
        if self.is_set():
            raise WouldBlock("told to stop")


class Move(NamedTuple):
    """Rows `start` to `stop` of a block of the table go to position `at` on."""

    start: int
    stop: int
    at: int


class Plan(NamedTuple):
    """Which rows go where: the blocks as they will be, and for each block of the table what becomes
    of its rows."""

    blocks: Blocks
    moves: list[list[Move]]
    next_serial: int
    next_stream: int
    is_in_place: bool
    """Whether every row keeps its index."""


class Checkpoint:
    """A checkpoint that was found, its manifest and table read and checked; its rows are read by
    `fill`.

    Args:
        path: of its directory.
        stop: makes the reading of the table give up.

    Attributes:
        manifest_bytes: the size of `manifest.json`.
        manifest: what `manifest.json` says.
        table: of its blocks, oldest first, a record each.
        spec: of the rows.
        counters: of the ring. counts: of the replay. streams: what it kept of streams of batches.

    Raises:
        CheckpointMissing: there is none.
        CheckpointDamaged: something is not as it was written.
        CheckpointMismatch: a newer version of areplay wrote it.
        MemoryLimitExceeded, ResourceUnavailable: memory or descriptors are missing to read it.
        WouldBlock: told to stop.
    """

    def __init__(self, path: str, stop: CancelToken | None = None) -> None:
        self.path, self._stop = path, CancelToken() if stop is None else stop
        self.manifest, self.manifest_bytes = read_manifest(path)
        self.capacity_rows: int = self.manifest["capacity_rows"]
        self.block_rows: int = self.manifest["block_rows"]
        self.has_given_block_rows: bool = self.manifest["block_rows_given"]
        self.counters: dict[str, int] = self.manifest["counters"]
        self.streams: list[dict[str, Any]] = self.manifest["streams"]
        self.counts: dict[str, Any] = self.manifest["counts"]
        self._masses: list[dict[str, Any]] = self.manifest["masses"]
        try:
            self.spec = Spec.described(self.manifest["spec"])
            if self.manifest["columns"] != list(self.spec.rows):
                raise ValueError(
                    f"its columns are not those of its spec, {', '.join(self.spec.rows)}"
                )
            self._check_ring()
            self.table = self._read_table()
            self._check_geometry()
        except (WouldBlock, CheckpointDamaged, MemoryLimitExceeded, ResourceUnavailable):
            raise
        # numpy has a type of its own for each way in which a dtype or a number is none
        except Exception as error:
            raise self._damaged(MANIFEST, f"cannot be understood ({error!r})") from None

    @property
    def id(self) -> str:
        """Which checkpoint this is: no other has the same."""
        return str(self.manifest["id"])

    @property
    def size_bytes(self) -> int:
        """Of all blocks."""
        return int(self.table["bytes"].sum())

    def check_spec(self, expected: Spec) -> None:
        """Raise `CheckpointMismatch` if the rows are of another spec than is expected."""
        if differences := expected.differences(self.spec):
            raise CheckpointMismatch(self.path, differences)

    # Where rows go.

    def plan(self, blocks: int, block_rows: int) -> Plan:
        """Where the rows go in a ring of so many blocks of so many rows; the newest ones, if they
        are too many."""
        table, floor = self.table, self.counters["next_serial"] - blocks
        runs = _runs(table)
        next_stream = self.counters["next_stream"]
        # What was left for another lap had no place among the others any more: then all get new
        # ones.
        is_in_place = block_rows == self.block_rows and blocks * block_rows == self.capacity_rows
        if is_in_place and (table["serial"] >= floor).all():
            pieces = [
                (
                    int(table["serial"][k]),
                    run,
                    int(table["rows"][k]),
                    [(k, 0, int(table["rows"][k]))],
                )
                for run, workers in enumerate(runs)
                for k in workers
            ]
            return self._planned(
                pieces, runs, blocks, block_rows, self.counters["next_serial"], next_stream, True
            )
        pieces = []
        for run, workers in enumerate(runs):
            for part in _cut(workers, table["rows"][workers].tolist(), block_rows):
                last, _, stop = part[-1]
                age = int(table["serial"][last]) * self.block_rows + stop
                pieces.append((age, run, sum(stop - start for _, start, stop in part), part))
        pieces.sort(key=lambda piece: piece[0])
        newest = pieces[-blocks:]
        renamed = [(serial, run, rows, part) for serial, (_, run, rows, part) in enumerate(newest)]
        return self._planned(renamed, runs, blocks, block_rows, len(renamed), next_stream, False)

    def _planned(
        self,
        pieces: list[tuple[int, int, int, list[tuple[int, int, int]]]],
        runs: list[Indices],
        blocks: int,
        block_rows: int,
        next_serial: int,
        next_stream: int,
        is_in_place: bool,
    ) -> Plan:
        """The plan of `(serial, run, rows, parts)`; a run that is not the first of its stream
        becomes another."""
        names: dict[int, int] = {}
        seen: set[int] = set()
        for run, workers in enumerate(runs):
            stream = int(self.table["stream"][workers[0]])
            if stream in seen:
                stream, next_stream = next_stream, next_stream + 1
            seen.add(stream)
            names[run] = stream
        moves: list[list[Move]] = [[] for _ in self.table]
        last: dict[int, int] = {}  # by run: the row of its block before
        found = np.empty((5, len(pieces)), np.int64)
        for row, (serial, run, rows, parts) in enumerate(
            sorted(pieces, key=lambda piece: piece[0])
        ):
            found[:, row] = serial, rows, names[run], -1, -1
            if run in last:
                found[3, row], found[4, last[run]] = found[0, last[run]], serial
            last[run] = row
            at = serial % blocks * block_rows
            for block, start, stop in parts:
                moves[block].append(Move(start, stop, at))
                at += stop - start
        return Plan(Blocks(*found), moves, next_serial, next_stream, is_in_place)

    # Reading.

    def fill(
        self, ring: Ring, plan: Plan, stop: CancelToken, progress: Progress | None = None
    ) -> None:
        """Read the rows into a ring that nobody else uses yet. Visible when all of them were read
        and found whole.

        Raises:
            CheckpointDamaged: nothing is visible.
            WouldBlock: told to stop; nothing is visible.
        """
        done, self._stop = 0, stop
        buffer = bytearray(max(map(self._most_bytes, self.table), default=0))
        for entry, moves in zip(self.table, plan.moves, strict=True):
            stop.check()
            if moves:
                name = block_name(entry)
                image = self._read(
                    name, int(entry["bytes"]), int(entry["crc32"]), self._most_bytes(entry), buffer
                )
                self._place(ring, name, image, int(entry["rows"]), moves)
            done += int(entry["bytes"])
            if progress is not None:
                progress(done, self.size_bytes)
        ring.restore(
            plan.blocks, plan.next_serial, plan.next_stream, self.counters["rows_inserted"]
        )

    def files(self) -> Iterator[tuple[str, int, int]]:
        """`(name, bytes, checksum)` of each file that belongs to it, but for the manifest: tables,
        then blocks."""
        delivered = [stream["delivered"] for stream in self.streams]
        for table in (self.manifest["blocks"], *self._masses, *delivered):
            if table is not None:
                yield table["file"], table["bytes"], table["crc32"]
        for entry in self.table:
            yield block_name(entry), int(entry["bytes"]), int(entry["crc32"])

    def damages(self, progress: Progress | None = None) -> Iterator[CheckpointDamaged]:
        """Read all files, and tell of each that is not as it was written. Nothing of the rows is
        kept."""
        files = list(self.files())
        total, done = sum(size for _, size, _ in files), 0
        most = max(map(self._most_bytes, self.table), default=0)
        for name, size, checksum in files:
            try:
                self._read(name, size, checksum, max(most, self._most_table_bytes))
            except CheckpointDamaged as damage:
                yield damage
            done += size
            if progress is not None:
                progress(done, total)

    def masses(
        self, plan: Plan
    ) -> Iterator[tuple[float, float, list[tuple[int, NDArray[np.float32]]]]]:
        """For each priority exponent that was kept: itself, the largest mass, and `(at, masses)` of
        all rows."""
        for entry in self._masses:
            values = self._read_rows(entry, np.dtype("<f4"))
            yield (
                entry["exponent"],
                entry["largest"],
                [(at, part) for at, part in self._parts(plan, values)],
            )

    def delivered(self, plan: Plan, stream: int, ring: Ring) -> Indices | None:
        """The indices of the rows by which that stream of batches has delivered items already;
        None: of no Fifo."""
        entry = self.streams[stream]["delivered"]
        if entry is None:
            return None
        found = [np.empty(0, np.int64)]
        serial_at = np.full(ring.blocks, -1)
        serial_at[plan.blocks.serials % ring.blocks] = plan.blocks.serials
        for at, part in self._parts(plan, self._read_rows(entry, np.dtype("?"))):
            serial = int(serial_at[at // ring.block_rows])
            found.append(serial * ring.block_rows + at % ring.block_rows + np.flatnonzero(part))
        return np.concatenate(found)

    def _parts(self, plan: Plan, values: Array) -> Iterator[tuple[int, Array]]:
        """`(at, values)` of the rows of a table that has a value a row."""
        firsts = np.cumsum(self.table["rows"]) - self.table["rows"]
        for first, moves in zip(firsts.tolist(), plan.moves, strict=True):
            for move in moves:
                yield move.at, values[first + move.start : first + move.stop]

    def _place(
        self, ring: Ring, name: str, image: memoryview, rows: int, moves: Iterable[Move]
    ) -> None:
        at = 0
        for field in ring.spec.rows.values():
            try:
                column, at = read_column(image, at)
                if (
                    column.shape != (rows, *field.shape)
                    or column.dtype.newbyteorder("=") != field.dtype
                ):
                    raise ValueError(f"{field.name} has shape {column.shape} of {column.dtype}")
            except ValueError as error:
                raise self._damaged(name, f"cannot be understood ({error})") from None
            for move in moves:
                ring.columns[field.name][move.at : move.at + move.stop - move.start] = column[
                    move.start : move.stop
                ]

    def _read_table(self) -> Array:
        entry = self.manifest["blocks"]
        table = self._read_npy(entry, self.capacity_rows // self.block_rows * TABLE.itemsize)
        if table.dtype != TABLE or table.ndim != 1:
            raise self._damaged(entry["file"], f"is no table of blocks, but {table.dtype}")
        return table

    def _check_ring(self) -> None:
        if self.capacity_rows % self.block_rows:
            raise ValueError(f"a ring of {self.capacity_rows} rows in blocks of {self.block_rows}")

    def _check_geometry(self) -> None:
        """Raise `ValueError` if these blocks cannot have been together in one ring."""
        table, serials = self.table, self.table["serial"]
        places = serials % (self.capacity_rows // self.block_rows)
        is_right = (serials >= 0) & (serials < self.counters["next_serial"]) & (table["bytes"] >= 0)
        is_right &= (table["rows"] > 0) & (table["rows"] <= self.block_rows)
        if (
            not is_right.all()
            or len(np.unique(places)) < len(table)
            or (np.diff(serials) <= 0).any()
        ):
            raise ValueError("a table of blocks that no ring can have had")

    def _read_rows(self, entry: dict[str, Any], dtype: np.dtype[Any]) -> Array:
        """A table with a value a row."""
        values = self._read_npy(entry, int(self.table["rows"].sum()) * dtype.itemsize)
        if values.dtype != dtype or values.shape != (int(self.table["rows"].sum()),):
            raise self._damaged(entry["file"], f"has shape {values.shape} of {values.dtype}")
        return values

    def _most_bytes(self, entry: np.void) -> int:
        """The size that the file of a block may have."""
        return int(entry["rows"]) * self.spec.row_bytes + _HEADER_BYTES * len(self.spec.rows)

    @property
    def _most_table_bytes(self) -> int:
        """The size that any of the tables may have."""
        blocks = self.capacity_rows // self.block_rows * TABLE.itemsize
        return _HEADER_BYTES + max(blocks, 4 * int(self.table["rows"].sum()))

    def _read_npy(self, entry: dict[str, Any], most_bytes: int) -> Array:
        """The one array in a file, of at most `most_bytes`."""
        image = self._read(
            entry["file"], entry["bytes"], entry["crc32"], most_bytes + _HEADER_BYTES
        )
        try:
            return read_column(image, 0)[0]
        except ValueError as error:
            raise self._damaged(entry["file"], f"cannot be understood ({error})") from None

    def _read(
        self, name: str, size: int, checksum: int, most_bytes: int, buffer: bytearray | None = None
    ) -> memoryview:
        """The whole file, which must have that size and that checksum; in `buffer`, if one is
        given.

        Args:
            most_bytes: that a file of its kind may have, and `buffer` has.
        """
        done = found = 0
        try:
            with opened(self.path, name) as (file, found_size):
                if found_size != size:
                    raise self._damaged(name, f"has {found_size:,} bytes instead of {size:,}")
                if size > most_bytes:
                    raise self._damaged(
                        name, f"has {size:,} bytes, its rows take at most {most_bytes:,}"
                    )
                image = memoryview(allocated(self.path, name, size) if buffer is None else buffer)[
                    :size
                ]
                # in pieces that are still in the processor's cache when they are summed up
                while done < size:
                    self._stop.check()
                    piece = image[done : done + _PIECE_BYTES]
                    count = file.readinto(piece)
                    if not count:
                        raise self._damaged(name, f"ends after {done:,} of {size:,} bytes")
                    found = zlib.crc32(piece[:count], found)
                    done += count
        except (FileNotFoundError, NotADirectoryError):
            raise self._damaged(name, "is missing") from None
        if found != checksum:
            raise self._damaged(name, "has another checksum than when it was written")
        return image

    def _damaged(self, file: str, what: str) -> CheckpointDamaged:
        return CheckpointDamaged(self.path, file, what)

    def __repr__(self) -> str:
        return (
            f"<Checkpoint {self.path!r}: {int(self.table['rows'].sum()):,} rows in "
            f"{len(self.table)} blocks>"
        )


def read_column(image: memoryview, at: int) -> tuple[Array, int]:
    """The array that np.save has written at that place of a file's bytes, a view of them, and the
    place behind it.

    Raises:
        ValueError: there is none.
    """
    file = BytesIO(image[at : at + _HEADER_BYTES])
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"np.save's format {version}")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise
    except Exception as error:  # it is read as Python's own text, which has more ways to be none
        raise ValueError(f"a header of np.save ({error!r})") from None
    count, start = math.prod(shape), at + file.tell()
    if (
        is_fortran
        or dtype.hasobject
        or any(axis < 0 for axis in shape)
        or count * dtype.itemsize > len(image) - start
    ):
        raise ValueError(f"an array of {dtype} and shape {shape}")
    return np.frombuffer(image, dtype, count, start).reshape(shape), start + count * dtype.itemsize


def _runs(table: Array) -> list[Indices]:
    """The blocks of the table that follow each other in their stream, without a gap; the first of
    each are in order."""
    order = np.lexsort((table["serial"], table["stream"]))
    stream, serial, following = (table[name][order] for name in ("stream", "serial", "following"))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (stream[1:] != stream[:-1]) | (following[:-1] != serial[1:])
    runs = np.split(order, np.flatnonzero(is_first)[1:]) if len(order) else []
    return sorted(runs, key=lambda run: int(run[0]))


def _cut(
    workers: Indices, rows: list[int], block_rows: int
) -> Iterator[list[tuple[int, int, int]]]:
    """The rows of one run in pieces of a block each: `(block of the table, start, stop)`."""
    part: list[tuple[int, int, int]] = []
    room = block_rows
    for block, count in zip(workers.tolist(), rows, strict=True):
        start = 0
        while start < count:
            n = min(room, count - start)
            part.append((block, start, start + n))
            start, room = start + n, room - n
            if room == 0:
                yield part
                part, room = [], block_rows
    if part:
        yield part
