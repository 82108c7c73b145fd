"""Files that a save need not write, since the checkpoint before has them.

Rows never change, so the file of a block that is as full as it was then is good for the new
checkpoint, too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import numpy as np

from areplay._base.arrays import Array, Mask
from areplay._checkpoint.format import block_name
from areplay._checkpoint.manifest import MANIFEST, MOST_SAVES, OWN_FILES
from areplay._checkpoint.reader import Checkpoint
from areplay.errors import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointMismatch,
    CheckpointMissing,
)

logger = logging.getLogger(__name__)

_NAMES_AT_ONCE = 128
"""File names that are made in one go, before other threads may run."""


def own_files(path: str) -> dict[str, int]:
    """The files in a directory that have a name of a checkpoint's file, and their sizes.

    A pipe, a folder or a link has size -1: no save wrote it, but its name cannot be used again.
    """
    with os.scandir(path) as entries:
        ours = [entry for entry in entries if OWN_FILES.fullmatch(entry.name)]
    return {entry.name: _size(entry) for entry in ours}


def next_number(names: dict[str, int]) -> int:
    """A number for a save that none of these files has in its name."""
    matches = [OWN_FILES.fullmatch(name) for name in names]
    numbers = [int(number) for match in matches if match for number in match.groups() if number]
    return 1 + max((number for number in numbers if number < MOST_SAVES), default=0)


def checkpoint_before(path: str, *, has_files: bool) -> Checkpoint | None:
    """The checkpoint that is in a directory; None if it has none, or a damaged one.

    Args:
        has_files: whether the directory has files of a checkpoint.

    Raises:
        CheckpointFailed: what is there must not be replaced.
    """
    try:
        return Checkpoint(path)
    except CheckpointMissing:
        return None
    except CheckpointDamaged as damage:
        if damage.file == MANIFEST and not has_files:
            raise CheckpointFailed(
                path, f"there is a {MANIFEST} that is none of a checkpoint"
            ) from None
        logger.warning("%s; it will be replaced", damage)
        return None
    except CheckpointMismatch as mismatch:
        raise CheckpointFailed(path, f"what is there must not be replaced ({mismatch})") from None


def reuse_files(table: Array, before: Checkpoint, sizes: dict[str, int]) -> Mask:
    """Enter the files of the checkpoint before into the table, for the blocks that it has with as
    many rows; for which blocks, (n,) bool.

    Args:
        sizes: of the files in the directory. A file that was cut short is written again.
    """
    if not len(before.table):
        return np.zeros(len(table), np.bool_)
    at = before.table["serial"].searchsorted(table["serial"])
    found = before.table[np.minimum(at, len(before.table) - 1)]
    is_same: Mask = (found["serial"] == table["serial"]) & (found["rows"] == table["rows"])
    sizes_found = [sizes.get(name, -1) for name in block_names(found[is_same])]
    is_same[is_same] = np.equal(sizes_found, found["bytes"][is_same])
    for column in ("save", "bytes", "crc32"):
        table[column][is_same] = found[column][is_same]
    return is_same


def block_names(table: Array) -> Iterator[str]:
    """The names of the files of blocks. There may be many thousands, so this lets other threads run
    in between."""
    for count, entry in enumerate(table):
        if count % _NAMES_AT_ONCE == 0:
            time.sleep(0)
        yield block_name(entry)


def _size(entry: os.DirEntry[str]) -> int:
    """In bytes, of a file; -1 of anything else."""
    try:
        return entry.stat().st_size if entry.is_file(follow_symlinks=False) else -1
    except FileNotFoundError:
        return -1
