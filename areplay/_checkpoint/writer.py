"""Saves: how a snapshot gets into a checkpoint while writers and readers go on.

The steps of a save, in this order:

    copy_blocks        write files of the blocks that the checkpoint before does not have
    write_tables       write the tables, and sync all that was written
    commit             write the new manifest under a name of its own, sync it, rename it over the
                       old one, sync the directory
    collect_garbage    delete the files that the new manifest does not name

Killed at any point, the directory has the old manifest or the new one, and all files that it names.
A save takes no lock of the ring, and writers pass no block by for it: see
`areplay._checkpoint.block_copies`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._base.failpoints import failpoint
from areplay._base.hooks import Progress
from areplay._checkpoint.block_copies import BlockCopies
from areplay._checkpoint.format import CancelToken, block_name
from areplay._checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    MOST_BYTES,
    OWN_FILES,
    VERSION,
    lack_of_means,
    manifest_checksum,
)
from areplay._checkpoint.reuse import (
    block_names,
    checkpoint_before,
    next_number,
    own_files,
    reuse_files,
)
from areplay._checkpoint.save_files import SaveFiles
from areplay._checkpoint.snapshot import Snapshot
from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import WriterRegistry
from areplay.errors import CheckpointFailed
from areplay.statistics import SaveResult

# After each block, so that other threads get the interpreter however small blocks are.
_REST_S = 0.0005
# Bytes of blocks that are copied at once and then written one after the other: rows that come in
# fast would recycle the blocks meanwhile.
_COPIED_AT_ONCE = 16 << 20

Manifest = dict[str, Any]


class Save:
    """One save of a snapshot into a directory; `run` blocks its thread for as long as that takes.

    Args:
        registry: of the ring's writers.
        locks: of this thread, to see which blocks writers hold.
        known: the id of the checkpoint whose blocks are ours; "" if there is no such checkpoint.
        max_bytes_per_s: write no more than that; None: as fast as it goes.
        progress: called as `progress(done_bytes, size_bytes)` after each block that had to be
            written.
        stop: makes the save give up at the next block.

    Attributes:
        id: of the new checkpoint, once it has replaced the old one; "" before.
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
        self.id = ""
        self._path = path
        self._snapshot = snapshot
        self._ring = snapshot.ring
        self._known = known
        self._progress = progress
        self._stop = stop
        self._copies = BlockCopies(snapshot, registry, locks)
        self._files = SaveFiles(path)
        self._pace = _Pace(max_bytes_per_s, stop)
        self._origin = forks.current
        self._started = time.monotonic()

    def run(self) -> SaveResult:
        """Write the checkpoint; what was done.

        Raises:
            CheckpointBusy: another save writes into that directory.
            CheckpointFailed: the checkpoint could not be written; the one before is whole.
            ResourceUnavailable: no descriptor or memory is left; the checkpoint before is whole.
            WouldBlock: told to stop; the checkpoint before is whole.
        """
        try:
            with self._files.locked() as directory:
                return self._run(directory)
        except OSError as error:
            failure = lack_of_means(error, self._path)
            raise failure or CheckpointFailed(self._path, str(error)) from error

    def _run(self, directory: int) -> SaveResult:
        table = self._snapshot.table
        first_new_serial = self._snapshot.manifest["counters"]["next_serial"]
        # Blocks without masses of their own are copied, even if the directory has their rows: they
        # were recycled, so the copy renews them.
        has_masses = self._copies.copy_masses(table)
        self._copies.copy_delivered(table)
        is_new = ~(self._reuse(table) & has_masses)
        is_there = self._copy_blocks(table, is_new)
        table = table[is_there]
        # Oldest first, also those that came in the places of others.
        table = table[np.argsort(table["serial"])]
        manifest = self._write_tables(table)
        self._commit(manifest, directory)
        self._collect_garbage(table, manifest)
        return SaveResult(
            int(table["rows"].sum()),
            len(table),
            int(np.count_nonzero(is_new & is_there)),
            int(np.count_nonzero(table["serial"] >= first_new_serial)),
            self._files.bytes_written,
            time.monotonic() - self._started,
        )

    def _reuse(self, table: Array) -> Mask:
        """Enter the files of blocks that the directory has already; for which blocks, (n,) bool."""
        sizes = own_files(self._path)
        self._files.number = next_number(sizes)
        before = checkpoint_before(self._path, has_files=bool(sizes))
        is_ours = before is not None and before.id == self._known
        # If blocks were split meanwhile, their serials are others.
        if before is None or not is_ours or before.block_rows != self._ring.block_rows:
            return np.zeros(len(table), np.bool_)
        return reuse_files(table, before, sizes)

    # The steps.

    def _copy_blocks(self, table: Array, is_new: Mask) -> Mask:
        """Write the blocks that are new; which blocks of the table have a file then, (n,) bool."""
        # As of the snapshot: a renewed entry may have another number of rows.
        block_bytes = table["rows"] * self._ring.spec.row_bytes
        size_bytes = int(block_bytes[is_new].sum())
        done_bytes = 0
        is_there = np.ones(len(table), np.bool_)
        for group in _groups(np.flatnonzero(is_new), block_bytes):
            images = self._copies.images(table, group)
            for at in group.tolist():
                self._stop.check()
                image = images.get(at)
                is_there[at] = image is not None
                if image is not None:
                    self._write_block(table, at, image)
                done_bytes += int(block_bytes[at])
                self._report(done_bytes, size_bytes)
                if image is not None:
                    self._pace.rest(len(image))
        self._files.sync()
        failpoint("save.blocks_synced")
        return is_there

    def _write_tables(self, table: Array) -> Manifest:
        """Write and sync all but the blocks and the manifest; the manifest."""
        snapshot = self._snapshot
        copies = self._copies
        manifest: Manifest = {
            "format": FORMAT,
            "version": VERSION,
            "id": uuid.uuid4().hex,
            "save": self._files.number,
            "time": time.time(),
            "spec": self._ring.spec.description(),
            "columns": list(self._ring.columns),
            "capacity_rows": self._ring.capacity_rows,
            "block_rows": self._ring.block_rows,
            **snapshot.manifest,
            "blocks": self._files.write_array("blocks", table),
            "masses": [],
            "streams": [],
        }
        for k, (exponent, masses) in enumerate(copies.masses.items()):
            largest = snapshot.priorities[exponent].largest
            entry = self._files.write_array(f"masses-{k}", copies.values(table, masses))
            manifest["masses"].append({"exponent": exponent, "largest": largest, **entry})
        for k, delivered in enumerate(copies.delivered):
            file = None
            if delivered is not None:
                values = copies.values(table, delivered)
                file = self._files.write_array(f"delivered-{k}", values)
            state, _ = snapshot.streams[k]
            manifest["streams"].append({**state, "delivered": file})
        self._files.sync()
        return manifest

    def _commit(self, manifest: Manifest, directory: int) -> None:
        """Make the written files the checkpoint, by putting the new manifest in the place of the
        old one."""
        self._stop.check()
        # First the names of the files that the manifest names.
        os.fsync(directory)
        manifest["crc32"] = manifest_checksum(manifest)
        text = json.dumps(manifest, indent=1).encode()
        if len(text) > MOST_BYTES:
            raise CheckpointFailed(
                self._path,
                f"its {MANIFEST} would have {len(text):,} of at most {MOST_BYTES:,} bytes",
            )
        self._files.replace_manifest(text)
        self.id = manifest["id"]
        failpoint("save.renamed")
        os.fsync(directory)

    def _collect_garbage(self, table: Array, manifest: Manifest) -> None:
        """Delete the files that belong to no checkpoint any more."""
        named = {MANIFEST, *block_names(table), *_tables_of(manifest)}
        self._files.remove(
            [
                name
                for name in os.listdir(self._path)
                if OWN_FILES.fullmatch(name) and name not in named
            ]
        )
        failpoint("save.cleaned")

    # Parts of them.

    def _write_block(self, table: Array, at: int, image: bytearray) -> None:
        """Write the file of one block, and enter it into the table."""
        table["save"][at] = self._files.number
        table["bytes"][at] = len(image)
        with memoryview(image) as view:
            table["crc32"][at] = self._files.write(block_name(table[at]), view)

    def _report(self, done_bytes: int, size_bytes: int) -> None:
        if self._progress is not None:
            self._progress(done_bytes, size_bytes)
            # The user's code may have forked.
            forks.check(self._origin, f"the save into {self._path!r}")


class _Pace:
    """How fast a save writes.

    Args:
        bytes_per_s: at most; None: as fast as it goes.
        stop: ends a rest early.
    """

    def __init__(self, bytes_per_s: float | None, stop: CancelToken) -> None:
        self._bytes_per_s = bytes_per_s
        self._stop = stop
        self._due = time.monotonic()

    def rest(self, size: int) -> None:
        """Sleep after `size` bytes, for as long as the pace demands."""
        now = time.monotonic()
        if self._bytes_per_s is not None:
            self._due = max(self._due, now - _REST_S) + size / self._bytes_per_s
        self._stop.wait(max(_REST_S, self._due - now))


def _groups(entries: Indices, block_bytes: Indices) -> list[Indices]:
    """The entries of a table in groups of about `_COPIED_AT_ONCE` bytes."""
    ends = block_bytes[entries].cumsum()
    firsts = np.flatnonzero(np.diff(ends // _COPIED_AT_ONCE)) + 1
    return np.split(entries, firsts)


def _tables_of(manifest: Manifest) -> list[str]:
    """The names of the files of tables that a manifest names."""
    delivered = [stream["delivered"] for stream in manifest["streams"]]
    entries = [manifest["blocks"], *manifest["masses"], *delivered]
    return [entry["file"] for entry in entries if entry is not None]
