"""The files of a checkpoint: read whole, and compared with the sizes and checksums that were noted
when they were written."""

from __future__ import annotations

import zlib
from io import FileIO
from typing import Any

from areplay._base.arrays import Array
from areplay._checkpoint.format import (
    HEADER_BYTES,
    PIECE_BYTES,
    CancelToken,
    FileEntry,
    read_column,
)
from areplay._checkpoint.manifest import allocated, opened
from areplay.errors import CheckpointDamaged


class CheckpointFiles:
    """The files in the directory of a checkpoint.

    Args:
        path: of the directory.
        stop: makes the reading give up. May be replaced.
    """

    def __init__(self, path: str, stop: CancelToken) -> None:
        self.path = path
        self.stop = stop

    def read(self, file: FileEntry, most_bytes: int, buffer: bytearray | None = None) -> memoryview:
        """The whole file, which must have its size and its checksum.

        Args:
            most_bytes: that a file of its kind may have, and `buffer` has.
            buffer: memory to read into; None: memory of its own.

        Raises:
            CheckpointDamaged: the file is missing, or not as it was written.
            MemoryLimitExceeded, ResourceUnavailable: memory or descriptors are missing to read it.
            WouldBlock: told to stop.
        """
        try:
            with opened(self.path, file.name) as (opened_file, found_bytes):
                self._check_size(file, found_bytes, most_bytes)
                if buffer is None:
                    buffer = allocated(self.path, file.name, file.bytes)
                image = memoryview(buffer)[: file.bytes]
                found_crc32 = self._read_into(image, opened_file, file.name)
        except (FileNotFoundError, NotADirectoryError):
            raise self.damaged(file.name, "is missing") from None
        if found_crc32 != file.crc32:
            raise self.damaged(file.name, "has another checksum than when it was written")
        return image

    def read_array(self, entry: dict[str, Any], most_bytes: int) -> Array:
        """The one array in a file that the manifest names, of at most `most_bytes`."""
        file = FileEntry.of_table(entry)
        image = self.read(file, most_bytes + HEADER_BYTES)
        try:
            return read_column(image, 0)[0]
        except ValueError as error:
            raise self.damaged(file.name, f"cannot be understood ({error})") from None

    def damaged(self, name: str, what: str) -> CheckpointDamaged:
        """The error for a file that is not as it was written."""
        return CheckpointDamaged(self.path, name, what)

    def _check_size(self, file: FileEntry, found_bytes: int, most_bytes: int) -> None:
        # Before any memory is allocated: the manifest may be damaged, too.
        if found_bytes != file.bytes:
            raise self.damaged(file.name, f"has {found_bytes:,} bytes instead of {file.bytes:,}")
        if file.bytes > most_bytes:
            raise self.damaged(
                file.name, f"has {file.bytes:,} bytes, its rows take at most {most_bytes:,}"
            )

    def _read_into(self, image: memoryview, file: FileIO, name: str) -> int:
        """Fill `image` from the file; the checksum of its bytes."""
        checksum = 0
        done = 0
        while done < len(image):
            self.stop.check()
            piece = image[done : done + PIECE_BYTES]
            count = file.readinto(piece)
            if not count:
                raise self.damaged(name, f"ends after {done:,} of {len(image):,} bytes")
            checksum = zlib.crc32(piece[:count], checksum)
            done += count
        return checksum
