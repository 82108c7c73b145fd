"""Items put together from single frames, against a bare `take` of the frames that they hold; and
what a step costs.

A transition with stacks of four frames holds eight frames: the bare loop takes eight neighbouring
frames a row, as a replay that stores single frames and puts nothing together would. With `n_step=1`
five of them are enough, since the two stacks share memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import numpy as np

import areplay
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.bound_selector import UniformSelector
from areplay._sampling.reader import Reader
from benchmarks.flows import wait_rows
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import Side, take_turns
from benchmarks.learners import WAIT_S, count_batches
from benchmarks.steps import STEPS, push_vector_steps

STACK, ENVIRONMENTS, STEPS_PER_S = 4, 16, 20_000
EPISODE_STEPS = 1_000
QUESTION_ROW_BYTES = 28_240
DEEP, NEXT = "n_step=3", "n_step=1"
ITEMS = {
    DEEP: areplay.Transitions(3, frame_stack=STACK),
    NEXT: areplay.Transitions(1, frame_stack=STACK),
}
TARGETS = {DEEP: Target(">=", 0.85), NEXT: Target(">=", 1.2)}
BARE = "bare take of 8 frames"


async def run(options: Options) -> list[Figure]:
    """0.85 of the bare take with three steps, 1.2 of it with one; under a fifth of a core at 20,000
    steps a second."""
    async with _filled(options) as replay:
        seen = await _measure(replay, options)
        share = await _coordinator_share(replay, options)
        row_bytes = replay.statistics().row_bytes
    return [
        *(
            _figure(f"items: {name} assembled", seen, f"assembled {name}", target)
            for name, target in TARGETS.items()
        ),
        *(_figure(f"items: {name} delivered", seen, f"delivered {name}") for name in TARGETS),
        Figure(
            "items: steps in the memory of one row of 28,240 bytes",
            (QUESTION_ROW_BYTES / row_bytes,),
            "x",
            Target(">=", 3.9),
            f"{row_bytes} bytes a step",
        ),
        Figure(
            f"items: coordinator at {STEPS_PER_S:,} steps/s", share, "of a core", Target("<=", 0.2)
        ),
    ]


@asynccontextmanager
async def _filled(options: Options) -> AsyncIterator[areplay.Replay]:
    """A full replay of frames of one environment."""
    rng = np.random.default_rng(0)
    async with areplay.Replay(STEPS, capacity=options.capacity, seed=0) as replay:
        frames = rng.integers(0, 256, (EPISODE_STEPS, 84, 84)).astype(np.uint8)
        steps = {
            "obs": frames,
            "action": np.zeros(EPISODE_STEPS, np.int64),
            "reward": np.zeros(EPISODE_STEPS, np.float32),
            "terminated": np.arange(EPISODE_STEPS) == EPISODE_STEPS - 1,
            "truncated": np.zeros(EPISODE_STEPS, np.bool_),
            "next_obs": np.roll(frames, -1, axis=0),
        }
        part = min(EPISODE_STEPS, replay.capacity_rows // 2)
        while replay.statistics().rows_inserted < replay.capacity_rows:
            for start in range(0, EPISODE_STEPS, part):
                await replay.extend(
                    {name: column[start : start + part] for name, column in steps.items()}
                )
        yield replay


async def _measure(replay: areplay.Replay, options: Options) -> dict[str, list[float]]:
    sides: dict[str, Side] = {BARE: _side(_bare(replay, options), options)}
    for name, item in ITEMS.items():
        sides[f"assembled {name}"] = _side(_assembling(replay, options, item), options)
        sides[f"delivered {name}"] = partial(_delivered_per_s, replay, options, item)
    return await take_turns(sides, options)


def _side(work: Callable[[int], object], options: Options) -> Side:
    async def per_s() -> float:
        _per_s(work, options.settle_s)
        return _per_s(work, options.seconds)

    return per_s


def _per_s(work: Callable[[int], object], seconds: float) -> float:
    start, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        work(done)
        done += 1
    return done / (now - start)


def _bare(replay: areplay.Replay, options: Options) -> Callable[[int], object]:
    """Take eight neighbouring frames a row, into one place."""
    column = replay._opened().ring.columns["obs"]
    rows = np.random.default_rng(0).integers(
        0, len(column) - 8, (256, options.batch_size, 1)
    ) + np.arange(8)
    out = np.empty((options.batch_size, 8, *column.shape[1:]), column.dtype)
    return lambda k: column.take(rows[k % len(rows)], axis=0, out=out, mode="clip")


def _assembling(
    replay: areplay.Replay, options: Options, item: areplay.Transitions
) -> Callable[[int], object]:
    """What a sampler does for a batch: draw, find the windows, put together, check; into one
    place."""
    ring = replay._opened().ring
    selector = UniformSelector(areplay.Uniform())
    rng = np.random.default_rng(0)
    reader = Reader(ring, ring.block_locks(), item, selector, rng, most_at_once=8)
    out = BatchArrays.empty(options.batch_size, reader.fields)
    return lambda k: reader.fill(out)


async def _delivered_per_s(
    replay: areplay.Replay, options: Options, item: areplay.Transitions
) -> float:
    """The same through a sampler's process and the queue."""
    async with replay.batches(
        item, batch_size=options.batch_size, prefetch=options.prefetch
    ) as batches:
        (await batches.get(timeout_s=WAIT_S)).release()
        await count_batches(batches, options.warmup_s)
        return await count_batches(batches, options.seconds)


async def _coordinator_share(replay: areplay.Replay, options: Options) -> tuple[float, ...]:
    """CPU seconds a second of the coordinator's thread, with one actor that steps a vector of
    environments."""
    shares = []
    async with replay.actors(push_vector_steps, 1, args=(ENVIRONMENTS, STEPS_PER_S)):
        await wait_rows(replay)
        (thread,) = (
            thread for thread in threading.enumerate() if thread.name == "areplay-coordinator"
        )
        assert thread.ident is not None
        cpu_clock = time.pthread_getcpuclockid(thread.ident)

        async def share() -> float:
            rows, cpu, start = (
                replay.statistics().rows_inserted,
                time.clock_gettime(cpu_clock),
                time.perf_counter(),
            )
            await asyncio.sleep(options.seconds)
            seconds = time.perf_counter() - start
            per_s = (replay.statistics().rows_inserted - rows) / seconds
            # as at the full rate
            return (time.clock_gettime(cpu_clock) - cpu) / seconds * STEPS_PER_S / per_s

        for _ in range(options.rounds):
            shares.append(await options.patience.measure(share))
    return tuple(shares)


def _figure(
    name: str, seen: dict[str, list[float]], side: str, target: Target | None = None
) -> Figure:
    beside = medians({"areplay": seen[side], BARE: seen[BARE]})
    return Figure(
        f"{name} / {BARE}", ratios(seen[side], seen[BARE]), "x", target, "batches/s", beside
    )
