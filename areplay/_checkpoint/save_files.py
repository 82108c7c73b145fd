"""The files that a save writes: into one directory, under a lock, and synced together.

Each file is new: its name holds the number of the save. Until the manifest names them, a reader
knows nothing of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array
from areplay._base.failpoints import failpoint
from areplay._checkpoint.format import PIECE_BYTES
from areplay._checkpoint.manifest import MANIFEST
from areplay.errors import CheckpointBusy

logger = logging.getLogger(__name__)

# Files, or bytes, that are synced together: one step of the file system's journal serves all of
# them.
_FILES_AT_ONCE, _BYTES_AT_ONCE = 32, 16 << 20
_NEW = MANIFEST + ".new"


class SaveFiles:
    """The files of one save. One thread uses it.

    Args:
        path: of the directory.

    Attributes:
        number: of the save, in the names of its files.
        bytes_written: in all files.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0
        self.bytes_written = 0
        self._written: list[str] = []
        self._unsynced: list[forks.Descriptor] = []
        self._unsynced_bytes = 0
        self._origin = forks.current

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the directory, made if it is not there, against saves of all processes; its
        descriptor.

        If the block raises, the files that were written are removed.

        Raises:
            CheckpointBusy: another save holds the lock.
        """
        _make(self.path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        # The lock lasts as long as any copy of the descriptor, if it is not given back: forked
        # children close theirs.
        directory = forks.Descriptor(os.open(self.path, flags))
        try:
            try:
                # If this process dies, the kernel gives the lock back.
                fcntl.flock(directory.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointBusy(self.path) from None
            try:
                with self._removed_if_failed():
                    yield directory.number
            finally:
                if directory.number >= 0:  # not in a forked child
                    fcntl.flock(directory.number, fcntl.LOCK_UN)
        finally:
            directory.close()

    def write(self, name: str, image: memoryview) -> int:
        """Write a new file, to be synced later; its checksum."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self.path, name), flags, 0o666)
        self._unsynced.append(forks.Descriptor(descriptor))
        self._written.append(name)
        checksum = 0
        for start in range(0, len(image), PIECE_BYTES):
            piece = image[start : start + PIECE_BYTES]
            checksum = zlib.crc32(piece, checksum)
            while piece:
                piece = piece[os.write(descriptor, piece) :]
            failpoint("save.block")
        self.bytes_written += len(image)
        self._unsynced_bytes += len(image)
        if len(self._unsynced) >= _FILES_AT_ONCE or self._unsynced_bytes >= _BYTES_AT_ONCE:
            self.sync()
        return checksum

    def write_array(self, name: str, values: Array) -> dict[str, Any]:
        """Write a new file with one array; what the manifest says of it."""
        file = BytesIO()
        np.lib.format.write_array(
            file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False
        )
        name = f"{name}-{self.number}.npy"
        # A view of bytes, since the file may be collected before its own views.
        with memoryview(file.getvalue()) as image:
            return {"file": name, "bytes": len(image), "crc32": self.write(name, image)}

    def sync(self) -> None:
        """Sync all that was written."""
        for descriptor in self._unsynced:
            os.fsync(descriptor.number)
        self._close_written()

    def replace_manifest(self, text: bytes) -> None:
        """Put the new manifest in the place of the old one. After that the written files belong to
        the checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, _NEW))
        self.write(_NEW, memoryview(text))
        self.sync()
        failpoint("save.manifest")
        os.rename(os.path.join(self.path, _NEW), os.path.join(self.path, MANIFEST))
        self._written = []

    def remove(self, names: list[str]) -> None:
        """Delete files. One that cannot be deleted stays: the next save tries again."""
        if self._origin is not forks.current:
            return
        for name in names:
            try:
                os.unlink(os.path.join(self.path, name))
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.warning(
                    "%s of the checkpoint in %s cannot be deleted: %s", name, self.path, error
                )

    @contextlib.contextmanager
    def _removed_if_failed(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.remove(self._written)
            raise
        finally:
            self._close_written()

    def _close_written(self) -> None:
        while self._unsynced:
            self._unsynced.pop().close()
        self._unsynced_bytes = 0


def _make(path: str) -> None:
    """Make the directory, and those above it that are missing, and sync each into the one above."""
    missing = _missing_directories(path)
    made: list[str] = []
    try:
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
                made.append(directory)
            _sync_directory(os.path.dirname(directory))
    except OSError:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # another program uses it by now
                os.rmdir(directory)
        raise


def _missing_directories(path: str) -> list[str]:
    """The directories on this path that do not exist, the lowest first."""
    missing: list[str] = []
    while not os.path.isdir(path):
        with contextlib.suppress(FileNotFoundError):
            # Raises what is in the way before anything is made, as a path that is too long.
            os.stat(path)
        missing.append(path)
        above = os.path.dirname(path)
        if above == path or not above:  # of a working directory that is gone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        path = above
    return missing


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
