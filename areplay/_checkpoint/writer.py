"""Snapshots: the state of a replay at one moment, and how it gets into a checkpoint while writers
and readers go on.

A snapshot knows which rows there are: a block's serial and the number of its rows by then. Those
rows never change until their block is recycled. So saving takes no lock, and no writer passes a
block by for it: copy a block's rows, look whether it is the same block still, and only then sum
them up and write them. Of a block that was recycled before its turn came, the one that has taken
its place is saved, with the rows that it has by then: so a checkpoint is as full as the ring,
however slowly it is written and however fast rows come. What else came after the snapshot is left
out.

What a save writes, in this order: files of blocks that the checkpoint before does not have; the
tables; the new manifest, under a name of its own; all of them synced. Then that is renamed over the
old one, the directory synced, and files that nobody names any more are deleted. Killed at any
point, the directory has the old manifest or the new one, and all that it names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._base.failpoints import failpoint
from areplay._checkpoint.format import TABLE, CancelToken, Progress, array_header, block_name
from areplay._checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    MOST_BYTES,
    MOST_SAVES,
    OWN_FILES,
    VERSION,
    lack_of_means,
    manifest_checksum,
)
from areplay._checkpoint.reader import Checkpoint
from areplay._shm.range_locks import BlockLocks
from areplay._storage.priorities import Priorities
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import (
    CheckpointBusy,
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointMismatch,
    CheckpointMissing,
)
from areplay.statistics import SaveResult

logger = logging.getLogger(__name__)

StoredMasses = NDArray[np.float32]
Over = Mask  # both (blocks of the ring, block_rows), a value for each position

_PIECE_BYTES = 1 << 20  # what is summed up and written in one go
_REST_S = 0.0005  # after each block, so that others get the interpreter however small blocks are
_FILES_AT_ONCE, _BYTES_AT_ONCE = 32, 16 << 20  # that are synced together
_COPIED_AT_ONCE = 16 << 20  # bytes of blocks
_NAMES_AT_ONCE = 128  # of files; then too
# for how long a writer may be in the middle of a chunk, and how often we look
_WRITER_S, _LOOK_S = 1.0, 0.0002
_NEW = MANIFEST + ".new"
_OF_BLOCKS = ("serial", "rows", "stream", "previous", "following")
_TRIES, _AGAIN_S = 8, 0.001  # to copy what is in a place, before it is left out


@dataclass
class Snapshot:
    """A replay at one moment. Its rows are in the ring still, and its masses are not copied yet.

    Attributes:
        table: the blocks that hold rows, oldest first.
        manifest: what else belongs to it.
        streams: for each stream of batches what to keep of it, for the manifest, and by which rows
            a `Fifo` has delivered items; None of other selectors.
    """

    ring: Ring
    priorities: dict[float, Priorities]
    manifest: dict[str, Any]
    streams: list[tuple[dict[str, Any], Callable[[Indices], Mask] | None]]
    table: Array = field(init=False)

    def take_blocks(self, registry: WriterRegistry) -> None:
        """Note which rows there are at this moment; takes some microseconds."""
        inserted = self.ring.rows_inserted[0]
        blocks = registry.blocks(self.ring)
        self.table = np.zeros(len(blocks.serials), TABLE)
        for name, column in zip(_OF_BLOCKS, blocks, strict=True):
            self.table[name] = column
        self._count()
        self.manifest["counters"]["rows_inserted"] = inserted

    def still_there(self, table: Array) -> Mask:
        """Which of these blocks were not recycled."""
        return self.ring.unchanged(table["serial"] * self.ring.block_rows)

    def renew(self, table: Array, at: Indices, registry: WriterRegistry) -> Indices:
        """Put into the table, in the entries `at`, the blocks that are in those places now; the
        entries that have one.

        Their serials are those of blocks that were begun after the snapshot, so the counters are
        raised above them.
        """
        blocks = registry.blocks(self.ring)
        newest = np.full(self.ring.blocks, -1)
        newest[blocks.serials % self.ring.blocks] = np.arange(len(blocks.serials))
        found = newest[table["serial"][at] % self.ring.blocks]
        at, found = at[found >= 0], found[found >= 0]
        for name, column in zip(_OF_BLOCKS, blocks, strict=True):
            table[name][at] = column[found]
        self._count()
        return at

    def _count(self) -> None:
        # Read after the blocks: a serial or a stream that is not used after all does no harm.
        counters = {
            "next_serial": self.ring.next_serial[0],
            "next_stream": self.ring.next_stream[0],
        }
        self.manifest["counters"] = {"rows_inserted": self.ring.rows_inserted[0]} | counters


class Save:
    """One save of a snapshot into a directory; `run` blocks its thread for as long as that takes.

    Args:
        registry: of the ring's writers.
        locks: of this thread, to see where writers are.
        known: the id of the checkpoint whose blocks are ours, if we know one; "" otherwise.
        max_bytes_per_s: write no more than that; None: as fast as it goes.
        progress: called as `progress(done_bytes, size_bytes)` after each block that had to be
            written.

    Attributes:
        id: of the new checkpoint, once it is the one that is there; "" before.
    """

    def __init__(
        self,
        path: str,
        snapshot: Snapshot,
        registry: WriterRegistry,
        locks: BlockLocks,
        known: str,
        max_bytes_per_s: float | None,
        progress: Progress | None,
        stop: CancelToken,
    ) -> None:
        self._path, self._snapshot, self._registry, self._locks, self._known = (
            path,
            snapshot,
            registry,
            locks,
            known,
        )
        self._bytes_per_s, self._progress, self._stop = max_bytes_per_s, progress, stop
        self.id = ""
        self._columns = snapshot.ring.columns
        self._written: list[str] = []
        self._origin = forks.current
        self._unsynced: list[forks.Descriptor] = []
        self._unsynced_bytes = self._number = self._bytes = 0
        self._due = self._started = time.monotonic()
        self._headers: dict[int, list[bytes]] = {}  # by the number of rows

    def run(self) -> SaveResult:
        """Write the checkpoint; what was done.

        Raises:
            CheckpointBusy: somebody else is writing into that directory.
            CheckpointFailed: it could not be written; the checkpoint before is whole.
            ResourceUnavailable: no descriptor or memory is left; the checkpoint before is whole.
            WouldBlock: told to stop; the checkpoint before is whole.
        """
        try:
            with self._locked_directory() as directory:
                try:
                    return self._run(directory)
                except BaseException:
                    self._remove(self._written)
                    raise
                finally:
                    self._close_written()
        except OSError as error:
            raise lack_of_means(error, self._path) or CheckpointFailed(
                self._path, str(error)
            ) from error

    def _run(self, directory: int) -> SaveResult:
        table, next_serial = (
            self._snapshot.table,
            self._snapshot.manifest["counters"]["next_serial"],
        )
        masses, has_masses = self._masses(table)
        is_over = self._is_over(table)
        is_new = self._reuse(table) | ~has_masses
        rows = table["rows"].copy()
        row_bytes = self._snapshot.ring.spec.row_bytes
        size_bytes, done_bytes, is_there = (
            int(rows[is_new].sum()) * row_bytes,
            0,
            np.ones(len(table), np.bool_),
        )
        # Copied a few at once, and written one after the other: rows that come in fast would
        # recycle them meanwhile.
        new = np.flatnonzero(is_new)
        for group in np.split(
            new, np.flatnonzero(np.diff((rows[new] * row_bytes).cumsum() // _COPIED_AT_ONCE)) + 1
        ):
            images = self._images(table, group, masses, is_over)
            for at in group.tolist():
                self._stop.check()
                image = images.get(at)
                if image is not None:
                    table["save"][at], table["bytes"][at] = self._number, len(image)
                    with memoryview(image) as view:
                        table["crc32"][at] = self._write(block_name(table[at]), view)
                is_there[at] = image is not None
                done_bytes += int(rows[at]) * row_bytes
                if self._progress is not None:
                    self._progress(done_bytes, size_bytes)
                    # the user's code may have forked
                    forks.check(self._origin, f"the save into {self._path!r}")
                if image is not None:
                    self._rest(len(image))
        self._sync_written()
        failpoint("save.blocks_synced")
        blocks_written, table = int(np.count_nonzero(is_new & is_there)), table[is_there]
        blocks_renewed = int(np.count_nonzero(table["serial"] >= next_serial))
        # oldest first, also those that came in others' places
        table = table[np.argsort(table["serial"])]
        manifest = self._write_tables(table, masses, is_over)
        self._sync_written()
        names = {MANIFEST, *self._names(table), *self._tables_of(manifest)}
        self._stop.check()
        os.fsync(directory)
        self._write_manifest(manifest)
        self._written, self.id = [], manifest["id"]  # from here on they are the checkpoint
        failpoint("save.renamed")
        os.fsync(directory)
        self._remove(
            [
                name
                for name in os.listdir(self._path)
                if OWN_FILES.fullmatch(name) and name not in names
            ]
        )
        failpoint("save.cleaned")
        seconds = time.monotonic() - self._started
        return SaveResult(
            int(table["rows"].sum()),
            len(table),
            blocks_written,
            blocks_renewed,
            self._bytes,
            seconds,
        )

    @contextlib.contextmanager
    def _locked_directory(self) -> Iterator[int]:
        """The directory, made if it is not there; nobody else saves into it meanwhile, in no
        process."""
        _make(self._path)
        # The lock lasts as long as any copy of the descriptor, if it is not given back: forked
        # children close theirs.
        directory = forks.Descriptor(
            os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        )
        try:
            try:
                # given back by the kernel if we die
                fcntl.flock(directory.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointBusy(self._path) from None
            try:
                yield directory.number
            finally:
                if directory.number >= 0:  # not in a forked child
                    fcntl.flock(directory.number, fcntl.LOCK_UN)
        finally:
            directory.close()

    def _masses(self, table: Array) -> tuple[dict[float, StoredMasses], Mask]:
        """Of each exponent the masses of all rows, and of which blocks they are: the others were
        recycled meanwhile."""
        snapshot, ring = self._snapshot, self._snapshot.ring
        if not snapshot.priorities:
            return {}, np.ones(len(table), np.bool_)
        for place in (table["serial"] % ring.blocks).tolist():
            self._wait_masses(place)
        masses = {
            key: priorities.masses[: ring.capacity_rows].copy().reshape(ring.blocks, -1)
            for key, priorities in snapshot.priorities.items()
        }
        # Of a block that is there still, the masses are those of its rows: newcomers get theirs
        # after it is recycled.
        return masses, snapshot.still_there(table)

    def _wait_masses(self, place: int) -> None:
        """Wait until the rows that are seen in that place have their masses: their writer lets go
        after that."""
        until = time.monotonic() + _WRITER_S
        while self._locks.has_writer(place) and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _reuse(self, table: Array) -> Mask:
        """Note the files of blocks that are there already; which blocks have none."""
        with os.scandir(self._path) as entries:
            ours = [entry for entry in entries if OWN_FILES.fullmatch(entry.name)]
        # A pipe, a folder or a link of such a name is no file of a save, but keeps its name from
        # being used again.
        sizes = {entry.name: _size(entry) for entry in ours}
        matches = [match for name in sizes if (match := OWN_FILES.fullmatch(name))]
        numbers = [int(number) for match in matches for number in match.groups() if number]
        self._number = 1 + max((number for number in numbers if number < MOST_SAVES), default=0)
        is_new = np.ones(len(table), np.bool_)
        before = self._before(bool(matches))
        if before is None or before.id != self._known or not len(before.table):
            return is_new
        # blocks were split: their serials are others
        if before.block_rows != self._snapshot.ring.block_rows:
            return is_new
        at = np.minimum(before.table["serial"].searchsorted(table["serial"]), len(before.table) - 1)
        found = before.table[at]
        is_same = (found["serial"] == table["serial"]) & (found["rows"] == table["rows"])
        there = [sizes.get(name, -1) for name in self._names(found[is_same])]
        # what somebody cut short is written again
        is_same[is_same] = np.equal(there, found["bytes"][is_same])
        for column in ("save", "bytes", "crc32"):
            table[column][is_same] = found[column][is_same]
        is_new[is_same] = False
        return is_new

    def _before(self, has_files: bool) -> Checkpoint | None:
        """The checkpoint that is there."""
        try:
            return Checkpoint(self._path)
        except CheckpointMissing:
            return None
        except CheckpointDamaged as damage:
            if damage.file == MANIFEST and not has_files:
                raise CheckpointFailed(
                    self._path, f"there is a {MANIFEST} that is none of a checkpoint"
                ) from None
            logger.warning("%s; it will be replaced", damage)
            return None
        except CheckpointMismatch as mismatch:
            raise CheckpointFailed(
                self._path, f"what is there must not be replaced ({mismatch})"
            ) from None

    def _images(
        self,
        table: Array,
        group: Indices,
        masses: dict[float, StoredMasses],
        is_over: list[Over | None],
    ) -> dict[int, bytearray]:
        """What the files of these blocks hold, by their place in the table; of those that were
        recycled, renewed there.

        One whose place was recycled again and again while we tried to copy it is left out.
        """
        images: dict[int, bytearray] = {}
        left, block_rows = group, self._snapshot.ring.block_rows
        for _ in range(_TRIES):
            for at in left.tolist():
                if (image := self._image(table, at)) is not None:
                    images[at] = image
            left = np.array([at for at in group.tolist() if at not in images], np.int64)
            if not len(left):
                break
            time.sleep(_AGAIN_S)  # whoever is recycling a block is done with it in less
            left = self._snapshot.renew(table, left, self._registry)
            for place in (table["serial"][left] % self._snapshot.ring.blocks).tolist():
                if masses:
                    self._wait_masses(place)
                # of its rows, if it is the same block still when they were copied
                for key, of_all in masses.items():
                    of_rows = self._snapshot.priorities[key].masses[
                        place * block_rows : (place + 1) * block_rows
                    ]
                    of_all[place] = of_rows
                for over in is_over:
                    if over is not None:
                        over[place] = False  # they came after the snapshot
        return images

    def _image(self, table: Array, at: int) -> bytearray | None:
        """What the file of one block holds; None if it was recycled meanwhile."""
        ring, entry = self._snapshot.ring, table[at]
        if not self._snapshot.still_there(table[at : at + 1])[0]:
            return None
        rows, start = int(entry["rows"]), int(entry["serial"]) % ring.blocks * ring.block_rows
        headers = self._headers.setdefault(
            rows, [array_header(column, rows) for column in self._columns.values()]
        )
        size = sum(map(len, headers)) + rows * ring.spec.row_bytes
        image, place = bytearray(size), 0
        for header, column in zip(headers, self._columns.values(), strict=True):
            image[place : place + len(header)] = header
            place += len(header)
            part = column[start : start + rows]
            np.frombuffer(image, part.dtype, part.size, place).reshape(part.shape)[...] = part
            place += part.nbytes
        return image if self._snapshot.still_there(table[at : at + 1])[0] else None

    def _is_over(self, table: Array) -> list[Over | None]:
        """For each stream of batches with a `Fifo`, by which rows of the blocks it has delivered
        items."""
        ring, places = self._snapshot.ring, table["serial"] % self._snapshot.ring.blocks
        found: list[Over | None] = []
        for _, is_over in self._snapshot.streams:
            if is_over is None:
                found.append(None)
                continue
            is_row = self._is_row(table)
            indices = table["serial"][:, None] * ring.block_rows + np.arange(ring.block_rows)
            of_table = np.zeros(is_row.shape, np.bool_)
            of_table[is_row] = is_over(indices[is_row])
            over = np.zeros((ring.blocks, ring.block_rows), np.bool_)
            over[places] = of_table
            found.append(over)
        return found

    def _is_row(self, table: Array) -> Mask:
        """(blocks of the table, block_rows) bool: which rows there are."""
        is_row: Mask = np.arange(self._snapshot.ring.block_rows) < table["rows"][:, None]
        return is_row

    def _write_tables(
        self, table: Array, masses: dict[float, StoredMasses], all_over: list[Over | None]
    ) -> dict[str, Any]:
        """Write all but the blocks and the manifest, and return that."""
        snapshot = self._snapshot
        places, is_row = table["serial"] % snapshot.ring.blocks, self._is_row(table)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "id": uuid.uuid4().hex,
            "save": self._number,
            "time": time.time(),
            "spec": snapshot.ring.spec.description(),
            "columns": list(self._columns),
            "capacity_rows": snapshot.ring.capacity_rows,
            "block_rows": snapshot.ring.block_rows,
            **snapshot.manifest,
            "blocks": self._write_array("blocks", table),
            "masses": [],
            "streams": [],
        }
        for k, (exponent, values) in enumerate(masses.items()):
            largest = snapshot.priorities[exponent].largest
            entry = self._write_array(f"masses-{k}", values[places][is_row])
            manifest["masses"].append({"exponent": exponent, "largest": largest, **entry})
        for k, ((state, _), is_over) in enumerate(zip(snapshot.streams, all_over, strict=True)):
            file = (
                None
                if is_over is None
                else self._write_array(f"delivered-{k}", is_over[places][is_row])
            )
            manifest["streams"].append({**state, "delivered": file})
        return manifest

    def _write_array(self, name: str, values: Array) -> dict[str, Any]:
        file = BytesIO()
        np.lib.format.write_array(
            file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False
        )
        name = f"{name}-{self._number}.npy"
        # of bytes: the file may be collected before the views of it
        with memoryview(file.getvalue()) as image:
            return {"file": name, "bytes": len(image), "crc32": self._write(name, image)}

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        manifest["crc32"] = manifest_checksum(manifest)
        text = json.dumps(manifest, indent=1).encode()
        if len(text) > MOST_BYTES:
            raise CheckpointFailed(
                self._path,
                f"its {MANIFEST} would have {len(text):,} of at most {MOST_BYTES:,} bytes",
            )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._path, _NEW))
        self._write(_NEW, memoryview(text))
        self._sync_written()
        failpoint("save.manifest")
        os.rename(os.path.join(self._path, _NEW), os.path.join(self._path, MANIFEST))

    def _write(self, name: str, image: memoryview) -> int:
        """Write a new file, to be synced later; its checksum."""
        checksum = done = 0
        descriptor = os.open(
            os.path.join(self._path, name),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o666,
        )
        self._unsynced.append(forks.Descriptor(descriptor))
        self._written.append(name)
        while done < len(image):
            piece = image[done : done + _PIECE_BYTES]
            checksum = zlib.crc32(piece, checksum)
            while piece:
                count = os.write(descriptor, piece)
                piece, done = piece[count:], done + count
            failpoint("save.block")
        self._bytes += len(image)
        self._unsynced_bytes += len(image)
        if len(self._unsynced) >= _FILES_AT_ONCE or self._unsynced_bytes >= _BYTES_AT_ONCE:
            self._sync_written()
        return checksum

    def _sync_written(self) -> None:
        """Sync what was written. Some files together: one step of the file system's journal serves
        all of them."""
        for descriptor in self._unsynced:
            os.fsync(descriptor.number)
        self._close_written()

    def _close_written(self) -> None:
        while self._unsynced:
            self._unsynced.pop().close()
        self._unsynced_bytes = 0

    def _rest(self, size: int) -> None:
        """Sleep for as long as it takes not to be too fast."""
        now = time.monotonic()
        if self._bytes_per_s is not None:
            self._due = max(self._due, now - _REST_S) + size / self._bytes_per_s
        self._stop.wait(max(_REST_S, self._due - now))

    def _names(self, table: Array) -> Iterator[str]:
        """The files of blocks. There may be many thousands: let others run meanwhile."""
        for count, entry in enumerate(table):
            if count % _NAMES_AT_ONCE == 0:
                time.sleep(0)
            yield block_name(entry)

    @staticmethod
    def _tables_of(manifest: dict[str, Any]) -> Iterator[str]:
        delivered = [stream["delivered"] for stream in manifest["streams"]]
        for entry in (manifest["blocks"], *manifest["masses"], *delivered):
            if entry is not None:
                yield entry["file"]

    def _remove(self, names: list[str]) -> None:
        if self._origin is not forks.current:
            return
        for name in names:
            try:
                os.unlink(os.path.join(self._path, name))
            except FileNotFoundError:
                pass
            except OSError as error:  # the next save will try again
                logger.warning(
                    "%s of the checkpoint in %s cannot be deleted: %s", name, self._path, error
                )


def _make(path: str) -> None:
    """Make the directory, and those above it, if it is not there; each is entered for good in the
    one above it."""
    missing: list[str] = []
    while not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            # raises what is in the way before anything is made, as a path that is too long
            os.stat(path)
        missing.append(path)
        above = os.path.dirname(path)
        if above == path or not above:  # of a working directory that is gone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        path = above
    made: list[str] = []
    try:
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
                made.append(directory)
            _sync(os.path.dirname(directory))
    except OSError:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # another program uses it by now
                os.rmdir(directory)
        raise


def _size(entry: os.DirEntry[str]) -> int:
    """In bytes, of a file; -1 of anything else."""
    try:
        return entry.stat().st_size if entry.is_file(follow_symlinks=False) else -1
    except FileNotFoundError:
        return -1


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
