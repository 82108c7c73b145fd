"""Rates of a replay in full work: rows coming in through actors, batches going out through
samplers, and both.

Streams of batches stay open while their sides take turns: a stream that nobody takes from fills its
queue and then sleeps. So a turn can be short, and the drift of a noisy machine hits all sides
alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import areplay
from areplay.selectors import AnySelector
from benchmarks.harness.options import Options
from benchmarks.learners import WAIT_S, count_batches
from benchmarks.workloads import Workload, filled_replay, push_paced_rows

# within a minute: where children are killed on purpose, each has to have a successor
MAX_RESTARTS = 1_000

Actors = Callable[[], AbstractAsyncContextManager[object]]  # starts actors when called


@dataclass(frozen=True)
class Rates:
    """Rows in and batches out, each second of the same time."""

    rows_per_s: float
    batches_per_s: float


@asynccontextmanager
async def warm_batches(
    replay: areplay.Replay,
    options: Options,
    samplers: int = 1,
    selector: AnySelector | None = None,
) -> AsyncIterator[areplay.Batches]:
    """A stream of rows whose samplers have mapped what they read."""
    stream = replay.batches(
        areplay.Rows(),
        options.batch_size,
        samplers=samplers,
        prefetch=options.prefetch,
        selector=selector,
        max_restarts=MAX_RESTARTS,
    )
    async with stream as batches:
        (await batches.get(timeout_s=WAIT_S)).release()
        await count_batches(batches, options.warmup_s)
        yield batches


@asynccontextmanager
async def loaded(
    workload: Workload, options: Options, samplers: int = 1, actors: int = 1
) -> AsyncIterator[tuple[areplay.Replay, areplay.Batches, areplay.Actors]]:
    """A full replay, rows that come in at a steady rate one by one, and a warm stream of
    batches."""
    rate = options.rows_per_s / actors
    async with filled_replay(workload, options) as replay:
        group = replay.actors(
            push_paced_rows, actors, args=(workload, rate), max_restarts=MAX_RESTARTS
        )
        async with group as pushing, warm_batches(replay, options, samplers) as batches:
            yield replay, batches, pushing


async def delivered_per_s(batches: areplay.Batches, options: Options) -> float:
    """Batches each second, with nothing coming in."""
    await count_batches(batches, options.settle_s)
    return await count_batches(batches, options.seconds)


async def ingested_per_s(replay: areplay.Replay, options: Options, start_actors: Actors) -> float:
    """Rows each second that reach the blocks, with nobody sampling."""
    async with start_actors():
        await wait_rows(replay)
        await asyncio.sleep(options.settle_s)
        before, start = replay.statistics().rows_inserted, time.perf_counter()
        await asyncio.sleep(options.seconds)
        return (replay.statistics().rows_inserted - before) / (time.perf_counter() - start)


async def rates_at_once(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, start_actors: Actors
) -> Rates:
    """Rows in and batches out while the samplers run flat out and the learner takes every batch."""
    async with start_actors():
        await wait_rows(replay)
        await count_batches(batches, options.settle_s)
        before, start = replay.statistics().rows_inserted, time.perf_counter()
        batches_per_s = await count_batches(batches, options.seconds)
        rows = replay.statistics().rows_inserted - before
        return Rates(rows / (time.perf_counter() - start), batches_per_s)


async def wait_rows(replay: areplay.Replay) -> None:
    """Wait until rows come in."""
    before = replay.statistics().rows_inserted
    async with asyncio.timeout(WAIT_S):
        while replay.statistics().rows_inserted == before:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.01)
