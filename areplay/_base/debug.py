"""Debug mode: with `AREPLAY_DEBUG=1` in the environment, misuse and broken invariants are seen at
once.

    check_step   asserts a structure's invariants after each of its steps (`check()` of inboxes,
                 slots, writers)
    poison       fills the memory of a batch that was given back with 0xA5, so that a view kept past
                 its turn shows it
    record_checksums   stores a checksum of each row beside it, when the row is written into the
                 ring
    verify       compares the rows of a batch with theirs, when the learner gets it

Unset, all of these are empty functions and there are no checksums. Set it before areplay is
imported; children inherit it, and one that did not would be refused, since its memory is laid out
differently.

Not verified: rows that were overwritten since they were copied, and items that are put together
from several rows, by a transform or by an item kind of the user's own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IS_ON = os.environ.get("AREPLAY_DEBUG", "0") not in ("", "0")
POISON = 0xA5

Table = dict[str, tuple[tuple[int, ...], Any]]


class Checked(Protocol):
    """What has invariants."""

    def check(self) -> None:
        """Assert what must always hold."""
        ...


class Lent(Protocol):
    """The memory of a batch."""

    @property
    def memory(self) -> Iterable[NDArray[Any]]:
        """All its arrays."""
        ...


class Checksummed(Protocol):
    """Rows with checksums: a ring."""

    checksums: NDArray[np.uint32] | None

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where these rows are."""
        ...

    def committed(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of them are there."""
        ...


def _check_step(thing: Checked) -> None:
    thing.check()


def _poison(batch: Lent) -> None:
    for array in batch.memory:
        array.reshape(-1).view(np.uint8).fill(POISON)


def _tables(rows: int) -> Table:
    return {"checksums": ((rows,), np.dtype(np.uint32))}


def _record_checksums(
    ring: Checksummed,
    names: Iterable[str],
    columns: Mapping[str, NDArray[Any]],
    at: int,
    count: int,
) -> None:
    assert ring.checksums is not None
    rows = {name: columns[name][at : at + count] for name in names}
    ring.checksums[at : at + count] = row_checksums(rows, count)


def _verify(
    ring: Checksummed, fields: Mapping[str, NDArray[Any]], indices: NDArray[np.int64]
) -> None:
    assert ring.checksums is not None
    expected = ring.checksums[ring.positions(indices)]
    differs = row_checksums(fields, len(indices)) != expected
    # not those that came by other means, or of newcomers
    differs &= (expected != 0) & ring.committed(indices)
    assert not differs.any(), f"rows {indices[differs][:8].tolist()} are not what was written"


def row_checksums(rows: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.uint32]:
    """(count,) uint32: the CRC-32 of each row over all of these fields, by their names in order."""
    found = np.zeros(count, np.uint32)
    columns = [
        np.ascontiguousarray(rows[name]).reshape(count, -1).view(np.uint8) for name in sorted(rows)
    ]
    for k in range(count):
        checksum = 0
        for column in columns:
            checksum = zlib.crc32(column[k], checksum)
        found[k] = checksum
    return found


def _nothing(*_: object) -> None:
    pass


def _no_tables(rows: int) -> Table:
    return {}


check_step: Callable[[Checked], None] = _check_step if IS_ON else _nothing
poison: Callable[[Lent], None] = _poison if IS_ON else _nothing
record_checksums: Callable[
    [Checksummed, Iterable[str], Mapping[str, NDArray[Any]], int, int], None
] = _record_checksums if IS_ON else _nothing
verify: Callable[[Checksummed, Mapping[str, NDArray[Any]], NDArray[np.int64]], None] = (
    _verify if IS_ON else _nothing
)
tables: Callable[[int], Table] = _tables if IS_ON else _no_tables
