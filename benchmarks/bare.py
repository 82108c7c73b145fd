"""What the hardware allows: the copies that cannot be avoided, and nothing around them."""

from __future__ import annotations

import itertools
import queue
import time
from collections import deque
from typing import Any, Self

import numpy as np

from benchmarks.baselines import end_children, spawn
from benchmarks.memory import SharedColumns
from benchmarks.workloads import Columns, Workload

IDLE_S = 300.0


def takes_per_s(
    columns: Columns, batch_size: int, seconds: float, places: SharedColumns, count: int
) -> float:
    """Batches gathered each second by `take(out=, mode="clip")` into `count` places used in
    turn."""
    rows = len(next(iter(columns.values())))
    indices = np.random.default_rng(0).integers(0, rows, (1_024, batch_size))
    outs = [
        {
            name: place[at * batch_size : (at + 1) * batch_size]
            for name, place in places.columns.items()
        }
        for at in range(count)
    ]
    start, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        drawn, out = indices[done % len(indices)], outs[done % count]
        for name, column in columns.items():
            column.take(drawn, axis=0, out=out[name], mode="clip")
        done += 1
    return done / (now - start)


class TakingPair:
    """Two processes that do what `takes_per_s` does, at once: what two cores of this machine can
    give.

    They end when told to, and by themselves when they were not asked for anything for `IDLE_S`.
    """

    def __init__(
        self, columns: SharedColumns, batch_size: int, places: tuple[SharedColumns, SharedColumns]
    ) -> None:
        self._answers = spawn.Queue()
        self._asks = [spawn.Queue() for _ in places]
        self._children = [
            spawn.Process(
                target=_take, args=(columns, batch_size, place, ask, self._answers), daemon=True
            )
            for place, ask in zip(places, self._asks, strict=True)
        ]

    def __enter__(self) -> Self:
        for child in self._children:
            child.start()
        return self

    def __exit__(self, *failure: object) -> None:
        for ask in self._asks:
            ask.put(None)
        end_children(self._children)
        for channel in (*self._asks, self._answers):
            channel.close()
            channel.join_thread()

    def takes_per_s(self, seconds: float) -> float:
        """Batches gathered each second by both together."""
        for ask in self._asks:
            ask.put(seconds)
        return sum(float(self._answers.get(timeout=IDLE_S)) for _ in self._asks)


def _take(
    columns: SharedColumns, batch_size: int, place: SharedColumns, asks: Any, answers: Any
) -> None:
    try:
        while (seconds := asks.get(timeout=IDLE_S)) is not None:
            answers.put(takes_per_s(columns.columns, batch_size, seconds, place, 1))
    except queue.Empty:
        return


def draws_per_s(columns: Columns, batch_size: int, seconds: float) -> float:
    """Small batches drawn and gathered each second into one place, with no check and no
    hand-over."""
    rng, rows = np.random.default_rng(0), len(next(iter(columns.values())))
    out = {
        name: np.empty((batch_size, *column.shape[1:]), column.dtype)
        for name, column in columns.items()
    }
    start, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        drawn = rng.integers(0, rows, batch_size)
        for name, column in columns.items():
            column.take(drawn, axis=0, out=out[name], mode="clip")
        done += 1
    return done / (now - start)


async def hand_over_us(learner_s: float, steps: int) -> list[float]:
    """Waits, in microseconds, of a learner that takes its batches from a list in its own memory.

    It blocks as long as any other, and meanwhile its core goes to sleep and its caches go to the
    neighbours: what remains is the least that `async for` costs on this machine at this moment.
    """
    waits: list[float] = []
    asked = time.perf_counter()
    async for _ in _Nothing():
        waits.append((time.perf_counter() - asked) * 1e6)
        if len(waits) >= steps:
            break
        time.sleep(learner_s)  # noqa: ASYNC251  blocking is what is measured
        asked = time.perf_counter()
    return waits


class _Nothing:
    """An endless stream of the same object."""

    def __init__(self) -> None:
        self._ready = deque([object()])

    def __aiter__(self) -> _Nothing:
        return self

    async def __anext__(self) -> object:
        batch = self._ready.popleft()
        self._ready.append(batch)
        return batch


def copies_per_s(source: Columns, inbox: SharedColumns, blocks: Columns, seconds: float) -> float:
    """Rows copied each second from a source to an inbox and from there to the blocks, by one
    process."""
    chunk_rows = len(next(iter(source.values())))
    inbox_rows, block_rows = (len(next(iter(place.values()))) for place in (inbox.columns, blocks))
    at_inbox = itertools.cycle(range(0, inbox_rows - chunk_rows + 1, chunk_rows))
    at_block = itertools.cycle(range(0, block_rows - chunk_rows + 1, chunk_rows))
    start, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        here, there = next(at_inbox), next(at_block)
        for name, rows in source.items():
            inbox.columns[name][here : here + chunk_rows] = rows
            blocks[name][there : there + chunk_rows] = inbox.columns[name][here : here + chunk_rows]
        done += chunk_rows
    return done / (now - start)


def touched(workload: Workload, rows: int) -> SharedColumns:
    """Shared columns of which every page is in memory."""
    place = SharedColumns(workload.fields, rows)
    place.fill(workload.columns(min(rows, 256)))
    return place
