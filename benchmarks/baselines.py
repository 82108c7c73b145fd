"""The two designs of the question, written as one writes them: locks over a shared buffer and a
multiprocessing queue.

                 lock(s)                                            multiprocessing.Queue
  pusher process -------->  rows in shared memory  <--------  sampler process  -------->  learner

`ONE_LOCK`: one lock over the whole buffer; the sampler gathers a whole batch under it and queues
the batch. `BLOCK_LOCKS`: a lock for each of 1,000 blocks; the sampler queues one item at a time and
the learner collects a batch.

Every loop here ends by itself: at the end of its time, when told to stop, or when a process it
needs is gone.
"""

from __future__ import annotations

import array
import fcntl
import multiprocessing
import queue
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event, Lock
from typing import Any

import numpy as np

from benchmarks.harness.clocks import clock
from benchmarks.harness.options import Options
from benchmarks.memory import SharedColumns
from benchmarks.workloads import CHUNK_ROWS, Columns, Pace, Workload, split

PATIENCE_S = 0.2  # how long anyone waits before looking whether it is over
GRACE_S = 5.0
START_S = 60.0

spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Design:
    """How the buffer is locked, and what travels through the queue."""

    name: str
    locks: int
    items_through_queue: bool


ONE_LOCK = Design("one lock", 1, items_through_queue=False)
BLOCK_LOCKS = Design("1,000 block locks", 1_000, items_through_queue=True)


@dataclass(frozen=True)
class Shared:
    """What the three processes have in common."""

    place: SharedColumns
    locks: list[Lock]
    out: Any  # multiprocessing.Queue
    stop: Event
    pushed: Any  # multiprocessing.Value
    end_at: float

    @property
    def rows(self) -> int:
        return len(next(iter(self.place.columns.values())))

    @property
    def is_over(self) -> bool:
        return self.stop.is_set() or clock() > self.end_at

    def lock_of(self, row: int) -> Lock:
        """The lock of the block that the row lies in."""
        return self.locks[row * len(self.locks) // self.rows]


class Pipeline:
    """The learner's end of a running design."""

    def __init__(
        self, shared: Shared, workload: Workload, design: Design, options: Options
    ) -> None:
        self._shared, self._workload, self._design = shared, workload, design
        self._batch_size = options.batch_size
        self._max_queued = queue_length(design, options)
        self._queue_bytes = options.prefetch * options.batch_size * workload.row_bytes

    def get(self) -> Columns:
        """Wait for the next batch."""
        if not self._design.items_through_queue:
            batch: Columns = self._next()
            return batch
        items = [self._next() for _ in range(self._batch_size)]
        return {
            name: np.stack([np.frombuffer(item[name], dtype).reshape(shape) for item in items])
            for name, (shape, dtype) in self._workload.fields.items()
        }

    def queued(self) -> float:
        """The share of the queue that `qsize` calls taken, 0 to 1.

        That counts what waits in the sampler's memory to be pickled and squeezed through a pipe, as
        well.
        """
        return min(1.0, max(0, int(self._shared.out.qsize())) / self._max_queued)

    def fill(self) -> float:
        """The share of the queue that the learner could take at once, 0 to 1: what has arrived in
        the pipe."""
        arrived = array.array("i", [0])
        fcntl.ioctl(self._shared.out._reader.fileno(), termios.FIONREAD, arrived)
        return min(1.0, int(arrived[0]) / self._queue_bytes)

    def pushed(self) -> int:
        """Rows that the pusher has written so far."""
        return int(self._shared.pushed.value)

    def wait_full(self, within_s: float) -> None:
        """Wait until the queue is as full as it gets."""
        end_at = clock() + within_s
        while self.queued() < 1.0 and clock() < end_at:
            time.sleep(0.01)

    def _next(self) -> Any:
        while not self._shared.is_over:
            try:
                return self._shared.out.get(timeout=PATIENCE_S)
            except queue.Empty:
                continue
        raise TimeoutError(f"{self._design.name}: no batch came before the end of the run")


@contextmanager
def running(
    design: Design, workload: Workload, place: SharedColumns, options: Options, max_s: float
) -> Iterator[Pipeline]:
    """Start pusher and sampler over a buffer that is full of rows; both are gone afterwards,
    whatever happens."""
    shared = Shared(
        place=place,
        locks=[spawn.Lock() for _ in range(min(design.locks, options.capacity))],
        out=spawn.Queue(queue_length(design, options)),
        stop=spawn.Event(),
        pushed=spawn.Value("q", 0, lock=False),
        end_at=clock() + START_S + max_s,
    )
    sample = sample_items if design.items_through_queue else sample_batches
    children = [
        spawn.Process(target=push, args=(shared, workload, options.rows_per_s), daemon=True),
        spawn.Process(target=sample, args=(shared, options.batch_size), daemon=True),
    ]
    try:
        for child in children:
            child.start()
        pipeline = Pipeline(shared, workload, design, options)
        pipeline.get()
        yield pipeline
    finally:
        shared.stop.set()
        end_children(children)
        shared.out.close()
        shared.out.join_thread()


def queue_length(design: Design, options: Options) -> int:
    """As many batches as areplay's prefetch, counted in what travels through the queue."""
    return options.prefetch * (options.batch_size if design.items_through_queue else 1)


def push(shared: Shared, workload: Workload, rows_per_s: float) -> None:
    """Write row after row at a steady rate, each under its lock."""
    rows = split(workload.columns(CHUNK_ROWS))
    columns, pace = shared.place.columns, Pace(rows_per_s)
    while not shared.is_over:
        time.sleep(pace.early_s())
        for _ in range(pace.due()):
            at = pace.sent % shared.rows
            with shared.lock_of(at):
                for name, value in rows[pace.sent % len(rows)].items():
                    columns[name][at] = value
            pace.sent += 1
            shared.pushed.value = pace.sent


def sample_batches(shared: Shared, batch_size: int) -> None:
    """Gather a batch under the lock and queue it, as numpy arrays."""
    rng, columns = np.random.default_rng(1), shared.place.columns
    while not shared.is_over:
        drawn = rng.integers(0, shared.rows, batch_size)
        with shared.locks[0]:
            batch = {name: column[drawn] for name, column in columns.items()}
        _put(shared, batch)
    shared.out.cancel_join_thread()


def sample_items(shared: Shared, batch_size: int) -> None:
    """Copy one row at a time under its block's lock and queue it, as bytes."""
    rng, columns = np.random.default_rng(1), shared.place.columns
    while not shared.is_over:
        for at in rng.integers(0, shared.rows, batch_size).tolist():
            with shared.lock_of(at):
                item = {name: column[at].tobytes() for name, column in columns.items()}
            _put(shared, item)
            if shared.is_over:
                break
    shared.out.cancel_join_thread()


def _put(shared: Shared, what: Any) -> None:
    while not shared.is_over:
        try:
            shared.out.put(what, timeout=PATIENCE_S)
        except queue.Full:
            continue
        return


def end_children(children: list[SpawnProcess]) -> None:
    """Wait, then terminate, then kill: only what was started here."""
    end_at = clock() + GRACE_S
    for child in children:
        if child.pid is not None:
            child.join(max(0.1, end_at - clock()))
    for child in children:
        if child.pid is not None and child.is_alive():
            child.terminate()
            child.join(GRACE_S)
        if child.pid is not None and child.is_alive():
            child.kill()
            child.join(GRACE_S)
