"""Columns in shared memory for the baselines, on the same kind of memory that areplay uses.

A memfd, mapped by each process that gets the object as an argument of its start. There is nothing
to unlink: the memory is gone with its last process.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any, Self

import numpy as np

from benchmarks.workloads import Columns, Fields

LINE = 64


class SharedColumns:
    """One array for each field, `(rows, *shape)`, that spawned children see as well."""

    def __init__(self, fields: Fields, rows: int) -> None:
        self._fields, self._rows = dict(fields), rows
        self._fd = os.memfd_create("benchmark-columns", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, sum(self._column_bytes(name) for name in fields))
        self.columns = self._map()

    def fill(self, chunk: Columns) -> None:
        """Write every row, so that no page is touched for the first time while something is
        measured."""
        for name, column in self.columns.items():
            for start in range(0, self._rows, len(chunk[name])):
                part = column[start : start + len(chunk[name])]
                part[...] = chunk[name][: len(part)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        """Let go of the memory; the mapping goes with the last array that looks at it."""
        self.columns = {}
        os.close(self._fd)

    def _map(self) -> Columns:
        mapping = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        columns: Columns = {}
        offset = 0
        for name, (shape, dtype) in self._fields.items():
            count = self._rows * int(np.prod(shape, dtype=np.int64))
            columns[name] = np.frombuffer(mapping, dtype, count, offset).reshape(self._rows, *shape)
            offset += self._column_bytes(name)
        return columns

    def _column_bytes(self, name: str) -> int:
        shape, dtype = self._fields[name]
        size = self._rows * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return -(-size // LINE) * LINE

    def __getstate__(self) -> tuple[Fields, int, Any]:
        return self._fields, self._rows, DupFd(self._fd)

    def __setstate__(self, state: tuple[Fields, int, Any]) -> None:
        self._fields, self._rows = dict(state[0]), state[1]
        self._fd = state[2].detach()
        self.columns = self._map()
