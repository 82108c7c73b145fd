"""The rate limiter: how exactly it keeps its ratio, what the learner waits, and that whoever waits
costs no CPU.

Over a minute each: actors that are faster than the learner, and a learner that is faster than the
actors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import areplay
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.options import Options
from benchmarks.learners import WAIT_S, WaitLog
from benchmarks.workloads import CARTPOLE, push_chunks, push_paced_chunks

RATIO, MIN_SIZE, ACTORS, CHUNK_ROWS = 8.0, 1_000, 2, 32
SLOW_ROWS_PER_S = 2_000.0  # of each actor: 125 batches/s of 256 at 8 samples per insert
MINUTE_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Running = tuple[areplay.Replay, areplay.Batches, areplay.SamplesPerInsert]


async def run(options: Options) -> list[Figure]:
    """The ratio within 1 %, whoever is faster; the learner's wait; the CPU of held actors and of a
    held learner."""
    seconds = MINUTE_S if options.rounds > 1 else 4 * options.seconds
    async with _running(None, options) as running:
        ahead, log = await _measure(running, seconds, options.learner_s)
        actors_share = await _held_actors(running[0], options.seconds)
    async with _running(SLOW_ROWS_PER_S, options) as running:
        behind, slow_log = await _measure(running, seconds, 0.0)
    learner_share = await _held_learner(options)
    return [
        *_figures("actors ahead", ahead, log),
        Figure(
            "limiter: actors ahead, CPU of a held one",
            (100 * actors_share,),
            "",
            Target("<=", 2),
            "per cent",
        ),
        *_figures("learner ahead", behind, slow_log),
        Figure(
            "limiter: learner ahead, CPU of a held one",
            (100 * learner_share,),
            "",
            Target("<=", 2),
            "per cent",
        ),
    ]


def _figures(who: str, ratio: float, log: WaitLog) -> list[Figure]:
    error = 100 * abs(ratio / RATIO - 1)
    beside = {"p50": log.wait_us(50), "batches/s": log.steps_per_s}
    return [
        Figure(
            f"limiter: {who}, ratio of 8 missed by",
            (error,),
            "",
            Target("<=", 1),
            "per cent",
            {"ratio": ratio},
        ),
        Figure(f"limiter: {who}, learner's wait p99", (log.wait_us(99),), "us", beside=beside),
    ]


@asynccontextmanager
async def _running(rows_per_s: float | None, options: Options) -> AsyncIterator[Running]:
    """Actors that hand in rows, as fast as they may or at that pace, and a limited stream of
    batches."""
    limiter = areplay.SamplesPerInsert(RATIO, MIN_SIZE)
    async with areplay.Replay(CARTPOLE.spec(), capacity=options.capacity, seed=0) as replay:
        if rows_per_s is None:
            actors = replay.actors(push_chunks, ACTORS, args=(CARTPOLE, CHUNK_ROWS))
        else:
            actors = replay.actors(
                push_paced_chunks, ACTORS, args=(CARTPOLE, CHUNK_ROWS, rows_per_s)
            )
        stream = replay.batches(
            batch_size=options.batch_size, prefetch=options.prefetch, limiter=limiter
        )
        async with actors, stream as batches:
            (await batches.get(timeout_s=WAIT_S)).release()
            await _measure((replay, batches, limiter), options.warmup_s, options.learner_s)
            yield replay, batches, limiter


async def _measure(running: Running, seconds: float, learner_s: float) -> tuple[float, WaitLog]:
    """Samples per insert over that time, as counted from batches taken and rows in the ring, and
    the waits."""
    replay, batches, _ = running
    log, taken, inserted = WaitLog(), 0, replay.statistics().rows_inserted
    start = asked = time.perf_counter()
    async for batch in batches:
        log.add(time.perf_counter() - start, time.perf_counter() - asked, 0.0)
        taken += len(batch.indices)
        if time.perf_counter() - start >= seconds:
            break
        if learner_s:
            time.sleep(learner_s)  # noqa: ASYNC251  as a training step does
        asked = time.perf_counter()
    return taken / max(1, replay.statistics().rows_inserted - inserted), log


async def _held_actors(replay: areplay.Replay, seconds: float) -> float:
    """Share of a core that an actor takes while it waits for the learner."""
    async with asyncio.timeout(WAIT_S):
        while not all(record.waited_s for record in replay.statistics().actors):  # noqa: ASYNC110  no event for it
            await asyncio.sleep(0.01)
    pids = [record.pid for record in replay.statistics().actors]
    before, start = sum(map(_cpu_s, pids)), time.perf_counter()
    await asyncio.sleep(seconds)
    return (sum(map(_cpu_s, pids)) - before) / len(pids) / (time.perf_counter() - start)


async def rest(actor: areplay.Actor, rows: int) -> None:
    """Hand in so many rows, and then none."""
    await actor.extend(CARTPOLE.columns(rows, actor.seed))
    while not actor.stopping:  # noqa: ASYNC110  likewise
        await asyncio.sleep(0.05)


def _is_held(batches: areplay.Batches) -> bool:
    limiter = batches.statistics().limiter
    return limiter is not None and limiter.holds_learner


async def _held_learner(options: Options) -> float:
    """Share of a core that the learner's process takes while it waits for rows, with the
    coordinator's thread."""
    limiter = areplay.SamplesPerInsert(RATIO, MIN_SIZE)
    async with areplay.Replay(CARTPOLE.spec(), capacity=options.capacity, seed=0) as replay:
        actors = replay.actors(rest, 1, args=(2 * MIN_SIZE,))
        async with (
            actors,
            replay.batches(batch_size=options.batch_size, limiter=limiter) as batches,
        ):
            for seconds in (WAIT_S, options.seconds):
                before, start = time.process_time(), time.perf_counter()
                with contextlib.suppress(areplay.WaitTimeout):
                    while not _is_held(batches) or seconds == options.seconds:
                        (await batches.get(timeout_s=seconds)).release()
    return (time.process_time() - before) / (time.perf_counter() - start)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
