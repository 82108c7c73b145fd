"""The format of a checkpoint: a replay as a directory of files.

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
written, and belongs to a checkpoint only if its manifest names it. So a save writes its files
beside those of the checkpoint before, and the one step that counts is the renaming of the manifest.
See docs/checkpoints.md.
"""

from __future__ import annotations

import math
import threading
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from areplay._base.arrays import Array
from areplay.errors import WouldBlock

TABLE = np.dtype(
    [
        (name, "<i8")
        for name in ("serial", "rows", "stream", "previous", "following", "save", "bytes", "crc32")
    ]
)
"""The table of blocks: the block as it was in the ring, and its file."""
HEADER_BYTES = 4_096
"""The most bytes of the header of an array."""
PIECE_BYTES = 1 << 20
"""Bytes that are read or written, and summed up, in one go: they are in the processor's cache
still."""


class CancelToken(threading.Event):
    """Set to make a save or a load give up at the next block."""

    def check(self) -> None:
        """Raise `WouldBlock` if it is set."""
        if self.is_set():
            raise WouldBlock("told to stop")


class FileEntry(NamedTuple):
    """A file of a checkpoint: its name, its size, and the CRC-32 of its bytes."""

    name: str
    bytes: int
    crc32: int

    @classmethod
    def of_block(cls, entry: np.void) -> FileEntry:
        """The file of a block in the table."""
        return cls(block_name(entry), int(entry["bytes"]), int(entry["crc32"]))

    @classmethod
    def of_table(cls, entry: dict[str, Any]) -> FileEntry:
        """The file of a table that the manifest names."""
        return cls(entry["file"], entry["bytes"], entry["crc32"])


def block_name(entry: np.void) -> str:
    """The name of the file of a block in the table."""
    return f"block-{entry['serial']}-{entry['rows']}-{entry['save']}.npys"


def array_header(column: Array, rows: int) -> bytes:
    """What np.save writes before the numbers of an array of `rows` rows, of the dtype and row shape
    of `column`."""
    file = BytesIO()
    description = np.lib.format.header_data_from_array_1_0(column[:0])
    shape = (rows, *column.shape[1:])
    np.lib.format.write_array_header_1_0(file, {**description, "shape": shape})
    return file.getvalue()


def read_column(image: memoryview, at: int) -> tuple[Array, int]:
    """The array that np.save has written from byte `at` on, a view of the bytes, and the byte
    behind it.

    Raises:
        ValueError: the bytes are no array.
    """
    file = BytesIO(image[at : at + HEADER_BYTES])
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"np.save's format {version}")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise
    # numpy reads it as Python's own text, which can be wrong in more ways.
    except Exception as error:
        raise ValueError(f"a header of np.save ({error!r})") from None
    count = math.prod(shape)
    start = at + file.tell()
    stop = start + count * dtype.itemsize
    is_right = not is_fortran and not dtype.hasobject and all(axis >= 0 for axis in shape)
    if not is_right or stop > len(image):
        raise ValueError(f"an array of {dtype} and shape {shape}")
    return np.frombuffer(image, dtype, count, start).reshape(shape), stop
