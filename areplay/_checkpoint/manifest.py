"""Manifests: reads `manifest.json`, and refuses what is no manifest before anything uses it.

Rule: a checkpoint's directory may hold anything, a pipe, a device, a file without an end, JSON of a
million brackets. Reading takes bounded time and memory, and each value has the type and range that
the rest of areplay relies on. `areplay._checkpoint.reader`, which knows the rows, checks what a
table holds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from io import FileIO
from typing import Any

from areplay._shm.resource_limits import check_memory
from areplay.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointMissing,
    MemoryLimitExceeded,
    ResourceUnavailable,
)

FORMAT, VERSION = "areplay checkpoint", 1
MANIFEST = "manifest.json"
OWN_FILES = re.compile(
    r"block-\d{1,19}-\d{1,19}-(\d{1,18})\.npys"
    r"|(?:blocks|masses-\d{1,9}|delivered-\d{1,9})-(\d{1,18})\.npy"
    r"|manifest\.json\.new"
)
"""The names of the files of a checkpoint; the groups are the number of the save."""
MOST_BYTES = 8 << 20
"""Of a manifest: some fifty thousand fields."""
MOST_SAVES = 10**15
"""No save writes a file with a larger number in its name."""

_ASK_FROM_BYTES = 64 << 20  # an allocation that is compared with the memory that is left
_MOST = 1 << 62  # of a serial, or a count
# what `Replay` takes, the first rounded up to blocks
_MOST_CAPACITY_ROWS, _MOST_BLOCK_ROWS = 1 << 41, 1 << 20
_MOST_TIME_S = 1 << 37  # in the year 6325
_NO_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

Manifest = dict[str, Any]


def manifest_checksum(manifest: Manifest) -> int:
    """The CRC-32 of all that the manifest says but the checksum itself."""
    content = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(path: str) -> tuple[Manifest, int]:
    """The manifest of the checkpoint in that directory, and its size in bytes.

    Raises:
        CheckpointMissing: the directory has no manifest.
        CheckpointDamaged: it is no manifest, or not as it was written; says what.
        CheckpointMismatch: a newer version of areplay wrote it.
        ResourceUnavailable: no descriptor or memory is left.
    """
    text = _read_text(path)
    try:
        manifest = _parsed(path, text)
        is_whole = _whole(manifest, "crc32") == manifest_checksum(manifest)
        if is_whole:
            _check(manifest)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointDamaged(path, MANIFEST, f"cannot be understood ({_short(error)})") from None
    except MemoryError:
        raise ResourceUnavailable(
            "allocating memory", f"the checkpoint in {path}", "no memory is left"
        ) from None
    if not is_whole:
        raise CheckpointDamaged(path, MANIFEST, "has another checksum than it says")
    return manifest, len(text)


def _read_text(path: str) -> bytes:
    """The bytes of `manifest.json`: no more than a manifest may have, whatever its size is said to
    be."""
    try:
        with opened(path, MANIFEST) as (file, size):
            if size > MOST_BYTES:
                raise CheckpointDamaged(
                    path, MANIFEST, f"has {size:,} bytes, a manifest has at most {MOST_BYTES:,}"
                )
            text = b""
            while len(text) <= MOST_BYTES and (piece := file.read(MOST_BYTES + 1 - len(text))):
                text += piece
            return text
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointMissing(path) from None


def _parsed(path: str, text: bytes) -> Manifest:
    """The manifest of a version that we know; its values are not checked yet."""
    manifest = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"it is no {FORMAT}")
    if (version := _whole(manifest, "version")) > VERSION:
        raise CheckpointMismatch(path, {"version": f"expected at most {VERSION}, got {version}"})
    return manifest


@contextlib.contextmanager
def opened(path: str, name: str) -> Iterator[tuple[FileIO, int]]:
    """Open a regular file in a checkpoint's directory to read it; the file and its size.

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist.
        CheckpointDamaged: it is no regular file, or cannot be read.
        ResourceUnavailable: no descriptor or memory is left.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer, or a line that is down, would wait for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(os.path.join(path, name), flags)
        # not with a FileIO from here on: of a folder's descriptor it makes none, and leaves it open
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointDamaged(path, name, "is no file")
            with FileIO(descriptor, closefd=False) as file:
                yield file, status.st_size
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise lack_of_means(error, path) or CheckpointDamaged(
            path, name, f"cannot be read ({error})"
        ) from None


def lack_of_means(error: OSError, path: str) -> ResourceUnavailable | None:
    """The error to raise if descriptors or memory have run out; None for other errors."""
    if error.errno not in _NO_MEANS:
        return None
    return ResourceUnavailable("opening a file", f"the checkpoint in {path}", str(error))


def allocated(path: str, name: str, size: int) -> bytearray:
    """Allocate memory for a file of `size` bytes.

    Raises:
        MemoryLimitExceeded, ResourceUnavailable: that much is not left.
    """
    # The kernel promises more than it has, and a file with holes takes no room on the disk.
    if size >= _ASK_FROM_BYTES:
        check_memory(f"reading {name} of the checkpoint in {path}", {name: size})
    try:
        return bytearray(size)
    except (MemoryError, OverflowError):
        raise MemoryLimitExceeded(
            f"reading {name} of the checkpoint in {path}",
            size,
            0,
            "this process's address space",
            {name: size},
        ) from None


def check_spec_kinds(spec: Any) -> None:
    """Raise `ValueError` if `spec` is no description of a spec: names, shapes and dtypes as lists,
    numbers and strings."""
    if not isinstance(spec, dict) or not isinstance(spec.get("fields"), list):
        raise ValueError("spec: expected its fields, a list")
    for field in spec["fields"]:
        is_right = isinstance(field, list) and len(field) == 3 and isinstance(field[1], list)
        if not (is_right and isinstance(field[0], str) and isinstance(field[2], str)):
            raise ValueError(f"spec: expected [name, shape, dtype] of a field, got {_short(field)}")
        if not all(_is_whole(axis) and 0 < axis < _MOST for axis in field[1]):
            raise ValueError(f"spec: {field[0]} has shape {_short(field[1])}")
    kinds = spec["steps"]
    if kinds is None:
        return
    if not isinstance(kinds, dict) or not all(
        _is_names(kinds.get(kind)) for kind in ("obs", "action", "extras")
    ):
        raise ValueError(f"spec: expected names of obs, action and extras, got {_short(kinds)}")
    named = [*kinds["obs"], *kinds["action"], *kinds["extras"], "reward", "terminated", "truncated"]
    if sorted(named) != sorted(field[0] for field in spec["fields"]):
        raise ValueError("spec: obs, action and extras do not name the fields of its steps")


def _check(manifest: Manifest) -> None:
    """Raise `ValueError`, `TypeError` or `KeyError` if a value has not the type and the range that
    the rest of areplay relies on."""
    _text(manifest, "id")
    _whole(manifest, "save", most=MOST_SAVES)
    _number(manifest, "time", least=-_MOST_TIME_S, most=_MOST_TIME_S)
    check_spec_kinds(manifest["spec"])
    if not _is_names(manifest["columns"]):
        raise ValueError(f"columns: expected names, got {_short(manifest['columns'])}")
    _check_ring(manifest)
    _check_counts(_table(manifest, "counts"))
    _check_file(_table(manifest, "blocks"))
    for masses in _list(manifest, "masses"):
        _number(masses, "exponent", least=0, most=1)
        _number(masses, "largest", least=0)
        _check_file(masses)
    for stream in _list(manifest, "streams"):
        _check_stream(stream)


def _check_ring(manifest: Manifest) -> None:
    _whole(manifest, "capacity_rows", least=1, most=_MOST_CAPACITY_ROWS)
    _whole(manifest, "block_rows", least=1, most=_MOST_BLOCK_ROWS)
    is_given = manifest["block_rows_given"]
    if not isinstance(is_given, bool):
        raise ValueError(f"block_rows_given: expected true or false, got {_short(is_given)}")
    counters = _table(manifest, "counters")
    for key in ("next_serial", "next_stream", "rows_inserted"):
        _whole(counters, key)


def _check_counts(counts: Manifest) -> None:
    for key in ("priorities_updated", "priorities_stale", "made"):
        _whole(counts, key)
    entropy = counts["entropy"]
    for number in entropy if isinstance(entropy, list) else [entropy]:
        if not _is_whole(number) or number < 0:
            raise ValueError(
                f"entropy: expected whole numbers of at least 0, got {_short(entropy)}"
            )
    _table(counts, "generator")


def _check_stream(stream: Manifest) -> None:
    _text(stream, "what")
    _whole(stream, "batches_delivered")
    if stream["limiter"] is not None:
        limiter = _table(stream, "limiter")
        required = ("samples_per_insert", "min_size_to_sample", "inserts", "samples", "error")
        for key in (*limiter, *required):
            _number(limiter, key)
    if stream["delivered"] is not None:
        _check_file(_table(stream, "delivered"))


def _check_file(entry: Manifest) -> None:
    name = _text(entry, "file")
    if not OWN_FILES.fullmatch(name):
        raise ValueError(f"names {_short(name)}, which is no file of a checkpoint")
    _whole(entry, "bytes")
    _whole(entry, "crc32", most=0xFFFF_FFFF)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _whole(table: Manifest, key: str, least: int = 0, most: int = _MOST) -> int:
    value = table[key]
    if not _is_whole(value) or not least <= value <= most:
        raise ValueError(
            f"{key}: expected a whole number from {least:,} to {most:,}, got {_short(value)}"
        )
    return int(value)


def _number(table: Manifest, key: str, least: float = -math.inf, most: float = math.inf) -> None:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(
            f"{key}: expected a number from {least:g} to {most:g}, got {_short(value)}"
        )
    float(value)  # an integer may be too large for one: OverflowError


def _text(table: Manifest, key: str) -> str:
    if not isinstance(table[key], str):
        raise ValueError(f"{key}: expected text, got {_short(table[key])}")
    return str(table[key])


def _table(table: Manifest, key: str) -> Manifest:
    value = table[key]
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object, got {_short(value)}")
    return value


def _list(table: Manifest, key: str) -> list[Manifest]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{key}: expected a list of objects, got {_short(value)}")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is no finite number")
    return value


def _short(value: object) -> str:
    """For a message, however long it is."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, RecursionError) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
