"""Checkpoints, read: found, checked, and their rows brought back into a ring.

Whatever is wrong is found before a row can be seen: `Checkpoint.fill` makes rows visible in its
last step. `areplay._checkpoint.format` describes the files, `areplay._checkpoint.restore_plan`
where rows go, and `areplay._checkpoint.writer` writes what is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices
from areplay._base.hooks import Progress
from areplay._checkpoint.files import CheckpointFiles
from areplay._checkpoint.format import (
    HEADER_BYTES,
    TABLE,
    CancelToken,
    FileEntry,
    read_column,
)
from areplay._checkpoint.manifest import MANIFEST, read_manifest
from areplay._checkpoint.restore_plan import Geometry, Move, Plan, plan_restore
from areplay._storage.ring import Ring
from areplay.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    MemoryLimitExceeded,
    ResourceUnavailable,
    WouldBlock,
)
from areplay.spec import Spec

_MASS = np.dtype("<f4")
_FLAG = np.dtype("?")
# The most bytes of a row in a table that has a value a row.
_MOST_VALUE_BYTES = 4


class StoredMasses(NamedTuple):
    """The masses of one priority exponent.

    Attributes:
        exponent: masses are `|priority| ** exponent`.
        largest: the largest mass that a row was given.
        parts: `(at, masses)` of all rows, from position `at` of the ring on.
    """

    exponent: float
    largest: float
    parts: list[tuple[int, NDArray[np.float32]]]


class Checkpoint:
    """A checkpoint that was found, its manifest and table read and checked; `fill` reads its rows.

    Args:
        path: of its directory.
        stop: makes the reading of the table give up.

    Attributes:
        manifest_bytes: the size of `manifest.json`.
        manifest: what `manifest.json` says.
        capacity_rows, block_rows: of the ring that was saved.
        has_given_block_rows: whether the user had said how large its blocks are.
        table: of its blocks, oldest first, of dtype `TABLE`.
        spec: of the rows.
        counters: of the ring.
        counts: of the replay.
        streams: the states of streams of batches.

    Raises:
        CheckpointMissing: the directory has no checkpoint.
        CheckpointDamaged: something is not as it was written.
        CheckpointMismatch: a newer version of areplay wrote it.
        MemoryLimitExceeded, ResourceUnavailable: memory or descriptors are missing to read it.
        WouldBlock: told to stop.
    """

    def __init__(self, path: str, stop: CancelToken | None = None) -> None:
        self.path = path
        self._files = CheckpointFiles(path, CancelToken() if stop is None else stop)
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
            self._check_columns()
            self._check_ring()
            self.table = self._read_table()
            self._check_geometry()
        except (WouldBlock, CheckpointDamaged, MemoryLimitExceeded, ResourceUnavailable):
            raise
        # numpy has an error of its own for each way in which a dtype or a number is wrong.
        except Exception as error:
            raise self._files.damaged(MANIFEST, f"cannot be understood ({error!r})") from None

    @property
    def id(self) -> str:
        """Identifies this checkpoint: no other has the same."""
        return str(self.manifest["id"])

    @property
    def size_bytes(self) -> int:
        """The size of the files of all blocks."""
        return int(self.table["bytes"].sum())

    @property
    def _blocks(self) -> int:
        """Blocks of the ring that was saved."""
        return self.capacity_rows // self.block_rows

    @property
    def _rows(self) -> int:
        """Rows in all blocks."""
        return int(self.table["rows"].sum())

    def check_spec(self, expected: Spec) -> None:
        """Raise `CheckpointMismatch` if the rows have another spec than `expected`."""
        if differences := expected.differences(self.spec):
            raise CheckpointMismatch(self.path, differences)

    def plan(self, blocks: int, block_rows: int) -> Plan:
        """Plan where the rows go in a ring of `blocks` blocks of `block_rows` rows; the newest
        rows, if they are too many."""
        before = Geometry(self._blocks, self.block_rows)
        return plan_restore(self.table, self.counters, before, Geometry(blocks, block_rows))

    # Reading.

    def fill(
        self, ring: Ring, plan: Plan, stop: CancelToken, progress: Progress | None = None
    ) -> None:
        """Read the rows into a ring that only this thread uses yet. They are visible when all of
        them were read and found whole.

        Args:
            plan: for this ring.
            stop: makes the reading give up.
            progress: called after each block with the bytes that are done, and those of all blocks.

        Raises:
            CheckpointDamaged: no row is visible.
            WouldBlock: told to stop; no row is visible.
        """
        self._files.stop = stop
        # Used for one block after the other.
        buffer = bytearray(max(map(self._most_bytes, self.table), default=0))
        done_bytes = 0
        for entry, moves in zip(self.table, plan.moves, strict=True):
            stop.check()
            file = FileEntry.of_block(entry)
            if moves:
                image = self._files.read(file, self._most_bytes(entry), buffer)
                self._place(ring, file.name, image, int(entry["rows"]), moves)
            done_bytes += file.bytes
            if progress is not None:
                progress(done_bytes, self.size_bytes)
        rows_inserted = self.counters["rows_inserted"]
        ring.restore(plan.blocks, plan.next_serial, plan.next_stream, rows_inserted)

    def files(self) -> Iterator[FileEntry]:
        """The files that belong to it, but for the manifest: tables, then blocks."""
        delivered = [stream["delivered"] for stream in self.streams]
        for table in (self.manifest["blocks"], *self._masses, *delivered):
            if table is not None:
                yield FileEntry.of_table(table)
        for entry in self.table:
            yield FileEntry.of_block(entry)

    def damages(self, progress: Progress | None = None) -> Iterator[CheckpointDamaged]:
        """Read all files, and give an error for each that is not as it was written."""
        files = list(self.files())
        size_bytes = sum(file.bytes for file in files)
        done_bytes = 0
        tables = HEADER_BYTES + max(self._blocks * TABLE.itemsize, _MOST_VALUE_BYTES * self._rows)
        most_bytes = max([tables, *map(self._most_bytes, self.table)])
        for file in files:
            try:
                self._files.read(file, most_bytes)
            except CheckpointDamaged as damage:
                yield damage
            done_bytes += file.bytes
            if progress is not None:
                progress(done_bytes, size_bytes)

    def masses(self, plan: Plan) -> Iterator[StoredMasses]:
        """The masses of each priority exponent that was saved."""
        for entry in self._masses:
            parts = list(self._parts(plan, self._read_values(entry, _MASS)))
            yield StoredMasses(entry["exponent"], entry["largest"], parts)

    def delivered(self, plan: Plan, stream: int, ring: Ring) -> Indices | None:
        """The indices of the rows whose items a stream of batches has delivered, (n,) int64; None
        if its selector is no `Fifo`.

        Args:
            stream: its number among `streams`.
        """
        entry = self.streams[stream]["delivered"]
        if entry is None:
            return None
        found = [np.empty(0, np.int64)]
        serial_at = np.full(ring.blocks, -1)
        serial_at[plan.blocks.serials % ring.blocks] = plan.blocks.serials
        for at, part in self._parts(plan, self._read_values(entry, _FLAG)):
            serial = int(serial_at[at // ring.block_rows])
            first = serial * ring.block_rows + at % ring.block_rows
            found.append(first + np.flatnonzero(part))
        return np.concatenate(found)

    def _parts(self, plan: Plan, values: Array) -> Iterator[tuple[int, Array]]:
        """`(at, values)` of the rows of a table that has a value a row."""
        firsts = np.cumsum(self.table["rows"]) - self.table["rows"]
        for first, moves in zip(firsts.tolist(), plan.moves, strict=True):
            for move in moves:
                yield move.at, values[first + move.start : first + move.stop]

    def _place(
        self, ring: Ring, name: str, image: memoryview, rows: int, moves: list[Move]
    ) -> None:
        """Copy the rows of a block's file to where they go."""
        at = 0
        for field in ring.spec.rows.values():
            try:
                column, at = read_column(image, at)
                is_right_type = column.dtype.newbyteorder("=") == field.dtype
                if column.shape != (rows, *field.shape) or not is_right_type:
                    raise ValueError(f"{field.name} has shape {column.shape} of {column.dtype}")
            except ValueError as error:
                raise self._files.damaged(name, f"cannot be understood ({error})") from None
            target = ring.columns[field.name]
            for move in moves:
                part = column[move.start : move.stop]
                target[move.at : move.at + len(part)] = part

    def _read_table(self) -> Array:
        entry = self.manifest["blocks"]
        table = self._files.read_array(entry, self._blocks * TABLE.itemsize)
        if table.dtype != TABLE or table.ndim != 1:
            raise self._files.damaged(entry["file"], f"is no table of blocks, but {table.dtype}")
        return table

    def _read_values(self, entry: dict[str, Any], dtype: np.dtype[Any]) -> Array:
        """A table with a value a row."""
        values = self._files.read_array(entry, self._rows * dtype.itemsize)
        if values.dtype != dtype or values.shape != (self._rows,):
            what = f"has shape {values.shape} of {values.dtype}"
            raise self._files.damaged(entry["file"], what)
        return values

    def _most_bytes(self, entry: np.void) -> int:
        """The size that the file of a block may have."""
        return int(entry["rows"]) * self.spec.row_bytes + HEADER_BYTES * len(self.spec.rows)

    # What a manifest and a table may say.

    def _check_columns(self) -> None:
        if self.manifest["columns"] != list(self.spec.rows):
            raise ValueError(f"its columns are not those of its spec, {', '.join(self.spec.rows)}")

    def _check_ring(self) -> None:
        if self.capacity_rows % self.block_rows:
            raise ValueError(f"a ring of {self.capacity_rows} rows in blocks of {self.block_rows}")

    def _check_geometry(self) -> None:
        """Raise `ValueError` if these blocks cannot have been together in one ring."""
        table = self.table
        serials = table["serial"]
        is_right = (serials >= 0) & (serials < self.counters["next_serial"]) & (table["bytes"] >= 0)
        is_right &= (table["rows"] > 0) & (table["rows"] <= self.block_rows)
        has_place_of_its_own = len(np.unique(serials % self._blocks)) == len(table)
        is_sorted = bool((np.diff(serials) > 0).all())
        if not (is_right.all() and has_place_of_its_own and is_sorted):
            raise ValueError("a table of blocks that no ring can have had")

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path!r}: {self._rows:,} rows in {len(self.table)} blocks>"
