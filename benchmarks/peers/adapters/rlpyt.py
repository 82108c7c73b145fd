"""rlpyt's scheme: written anew after its source, since it is on no package index.

Its asynchronous replay: one buffer in shared memory behind a lock for many readers or one writer.
Actors fill two arrays in turn; for each of them a process copies what is in it into the buffer,
under the write lock, while the actor fills the other one. The learner samples under the read lock,
and updates priorities under the write lock.
"""

from __future__ import annotations

import math
import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Side, serve, spawn
from benchmarks.peers.switch import Switch, produce
from benchmarks.peers.works import Columns, Fields, Work

FILL_ROWS = 256
ALPHA, BETA = 0.6, 0.4


class Shared:
    """Columns in memory that spawned processes see too."""

    def __init__(self, fields: Fields, rows: int) -> None:
        self._fields, self._rows = dict(fields), rows
        self._fd = os.memfd_create("rlpyt", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, sum(self._bytes(name) for name in self._fields))
        self._map()

    def _bytes(self, name: str) -> int:
        shape, dtype = self._fields[name]
        return -(-self._rows * math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64

    def _map(self) -> None:
        memory, offset = mmap.mmap(self._fd, os.fstat(self._fd).st_size), 0
        self.columns: Columns = {}
        for name, (shape, dtype) in self._fields.items():
            count = self._rows * math.prod(shape)
            self.columns[name] = np.frombuffer(memory, dtype, count, offset).reshape(
                self._rows, *shape
            )
            offset += self._bytes(name)

    def __del__(self) -> None:
        os.close(self._fd)

    def __getstate__(self) -> Any:
        return self._fields, self._rows, DupFd(self._fd)

    def __setstate__(self, state: Any) -> None:
        self._fields, self._rows, self._fd = state[0], state[1], state[2].detach()
        self._map()


class ReadersOrWriter:
    """Any number of readers or one writer; the first reader takes the write lock, the last one
    gives it back."""

    def __init__(self) -> None:
        self.write_lock, self._read_lock = spawn.Lock(), spawn.Lock()
        self._readers = spawn.RawValue("i")

    def __enter__(self) -> None:
        with self._read_lock:
            self._readers.value += 1
            if self._readers.value == 1:
                self.write_lock.acquire()

    def __exit__(self, *failure: object) -> None:
        with self._read_lock:
            self._readers.value -= 1
            if self._readers.value == 0:
                self.write_lock.release()


class Buffer:
    """The shared buffer: where to write next, rows, and a tree of sums where it is prioritised."""

    def __init__(self, work: Work) -> None:
        self._capacity, self._is_prioritized = work.capacity, work.is_prioritized
        self._rows, self._next = Shared(work.fields, work.capacity), spawn.RawValue("l")
        self.lock = ReadersOrWriter()
        self._leaves = 1 << (work.capacity - 1).bit_length()
        self._tree = Shared(
            {"sums": ((), "float64")}, 2 * self._leaves if work.is_prioritized else 1
        )

    def append(self, chunk: Columns) -> None:
        """Write rows at the cursor."""
        count = len(chunk["obs"])
        with self.lock.write_lock:
            at = self._next.value
            first = min(count, self._capacity - at)
            for name, column in self._rows.columns.items():
                column[at : at + first] = chunk[name][:first]
                column[: count - first] = chunk[name][first:]
            self._next.value = (at + count) % self._capacity
            if self._is_prioritized:
                self._set(np.arange(at, at + count) % self._capacity, np.ones(count))

    def sample(
        self, batch_size: int, rng: np.random.Generator
    ) -> tuple[Columns, np.ndarray[Any, Any]]:
        """A batch, and where its rows are."""
        with self.lock:
            if self._is_prioritized:
                places, chances = self._draw(rng.random(batch_size))
            else:
                places = rng.integers(0, self._capacity, batch_size)
            batch = {
                name: column.take(places, 0, mode="clip")
                for name, column in self._rows.columns.items()
            }
        if self._is_prioritized:
            weights = (1.0 / chances) ** BETA
            batch["weights"] = (weights / weights.max()).astype(np.float32)
        return batch, places

    def update(self, places: np.ndarray[Any, Any], errors: np.ndarray[Any, Any]) -> None:
        """New priorities of rows."""
        with self.lock.write_lock:
            self._set(places, errors**ALPHA)

    def _set(self, places: np.ndarray[Any, Any], masses: np.ndarray[Any, Any]) -> None:
        sums = self._tree.columns["sums"]
        nodes, first = np.unique(self._leaves + places, return_index=True)
        changes = masses[first] - sums[nodes]
        sums[nodes] = masses[first]
        while nodes[0] > 1:
            nodes = nodes >> 1
            np.add.at(sums, nodes, changes)

    def _draw(
        self, shares: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        sums = self._tree.columns["sums"]
        targets, nodes = shares * sums[1], np.ones(len(shares), np.int64)
        while nodes[0] < self._leaves:
            left = sums[2 * nodes]
            is_right = targets >= left
            targets -= left * is_right
            nodes = 2 * nodes + is_right
        places = np.minimum(nodes - self._leaves, self._capacity - 1)
        return places, sums[self._leaves + places] / sums[1]


class Handover:
    """Two arrays that an actor fills in turn, each with a process that copies it into the
    buffer."""

    def __init__(self, work: Work) -> None:
        self.arrays = [Shared(work.fields, work.chunk_rows) for _ in range(2)]
        self.is_filled = [spawn.Semaphore(0) for _ in range(2)]
        self.is_copied = [spawn.Semaphore(1) for _ in range(2)]


def copy_chunks(handover: Handover, half: int, buffer: Buffer) -> None:
    """A process that copies one of the two arrays whenever it is filled."""
    parent = os.getppid()
    while os.getppid() == parent:
        if handover.is_filled[half].acquire(timeout=1.0):
            buffer.append(handover.arrays[half].columns)
            handover.is_copied[half].release()


def push(switch: Switch, number: int, handovers: list[Handover], work: Work) -> None:
    """An actor: fills the two arrays in turn."""
    chunk, handover, sent = work.columns(work.chunk_rows, number), handovers[number], 0

    def add() -> None:
        nonlocal sent
        half = sent % 2
        handover.is_copied[half].acquire()
        for name, column in handover.arrays[half].columns.items():
            column[...] = chunk[name]
        handover.is_filled[half].release()
        sent += 1

    produce(switch, number, work.chunk_rows, add)


class Rlpyt(Side):
    """One buffer, one lock."""

    packages = ("numpy",)
    choices = (
        "rlpyt's scheme: the library is not on PyPI, so this is its asynchronous replay written "
        "anew after its source, in numpy and in one file: one shared buffer, a lock for many "
        "readers or one writer, two arrays that are filled in turn and two processes that copy "
        "them in, and a tree of sums that is adjusted by `np.add.at`.",
        "rlpyt's scheme: each actor has two arrays and two copying processes of its own, where in "
        "rlpyt all share them; rows are gathered by one `take` a field.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._work: Work | None = None
        self._buffer: Any = None
        self._copiers: list[Any] = []
        self._rng = np.random.default_rng(0)
        self._places = np.empty(0, np.int64)

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        self.end_producers()
        if work != self._work:
            self._buffer = None
            self._buffer, self._work, chunk = Buffer(work), work, work.columns(FILL_ROWS)
            for _ in range(-(-work.capacity // FILL_ROWS)):
                self._buffer.append(chunk)
        self._batch_size = work.batch_size
        self._errors = self._rng.random(work.batch_size)
        # kept: semaphores go with their owner
        self._handovers = [Handover(work) for _ in range(producers)]
        self._copiers = [
            spawn.Process(target=copy_chunks, args=(handover, half, self._buffer), daemon=True)
            for handover in self._handovers
            for half in range(2)
        ]
        for copier in self._copiers:
            copier.start()
        self.spawn_producers(producers, push, self._handovers, work)

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        batch, self._places = self._buffer.sample(self._batch_size, self._rng)
        return batch["obs"]

    def update(self) -> None:
        """See `Side.update`."""
        self._buffer.update(self._places, self._errors)

    def end_producers(self) -> None:
        """See `Side.end_producers`; then end the copying processes, none of which holds the lock by
        then."""
        super().end_producers()
        if self._copiers:
            with self._buffer.lock.write_lock:
                for copier in self._copiers:
                    copier.kill()
                    copier.join()
            self._copiers = []


if __name__ == "__main__":
    serve(Rlpyt())
