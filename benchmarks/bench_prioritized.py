"""Prioritised sampling: the draw alone, how it grows with the ring, updates; and all of it end to end beside cpprb."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

import areplay
from areplay.priorities import Priorities
from areplay.ring import Ring
from areplay.select import weigh
from benchmarks.harness import Figure, Options, Side, Target, medians, ratios, take_turns
from benchmarks.learners import WAIT_S
from benchmarks.peers import reason_missing
from benchmarks.workloads import CARTPOLE, filled_replay

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
OURS, PEER = "areplay, out of process", "cpprb PrioritizedReplayBuffer, in process"
AGAINST_PEER = "prioritized: CartPole rows, sample and update / cpprb"


async def run(options: Options) -> list[Figure]:
    """120 us a draw from a million rows, 60 us an update, and twice cpprb's batches end to end."""
    sizes = [rows for rows in ROWS if options.rounds > 1 or rows <= 100_000]  # tiny runs are for show
    return [*await _alone(sizes, options), *await _end_to_end(options)]


async def _alone(sizes: list[int], options: Options) -> list[Figure]:
    sides: dict[str, Side] = {}
    for rows in sizes:
        draw, update = _work(rows, options.batch_size)
        sides[f"draw, {rows:,} rows"] = partial(_us, draw, options.seconds / 4)
        sides[f"update, {rows:,} rows"] = partial(_us, update, options.seconds / 4)
    seen = await take_turns(sides, options)
    middle = sizes[min(2, len(sizes) - 1)]
    base, largest = sizes[min(1, len(sizes) - 1)], sizes[-1]
    draws = medians({f"{rows:,}": seen[f"draw, {rows:,} rows"] for rows in sizes})
    return [
        Figure(f"prioritized: draw and weigh {options.batch_size} of {middle:,}",
               tuple(seen[f"draw, {middle:,} rows"]), "us", Target("<=", 120), beside=draws),
        Figure(f"prioritized: draw of {largest:,} / of {base:,}",
               ratios(seen[f"draw, {largest:,} rows"], seen[f"draw, {base:,} rows"]), "x", Target("<=", 2)),
        Figure(f"prioritized: update of {options.batch_size} of {middle:,}",
               tuple(seen[f"update, {middle:,} rows"]), "us", Target("<=", 60)),
    ]  # fmt: skip


def _work(rows: int, batch_size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A draw of a batch with its weights, and an update of a batch, of a full ring with priorities of all sizes."""
    block_rows = 4_096 if rows >= 1_000_000 else 64
    ring = Ring(areplay.Spec(x=((), "uint8")), rows // block_rows, block_rows)
    ring.next_serial[0], ring.rows_now[0] = ring.blocks, ring.capacity_rows
    ring.ends[:] = np.arange(1, ring.blocks + 1) * block_rows
    priorities, rng = Priorities(ring, 0.6), np.random.default_rng(0)
    priorities.begin()
    for start in range(0, ring.capacity_rows, 1 << 16):
        indices = np.arange(start, min(start + (1 << 16), ring.capacity_rows))
        priorities.update(indices, rng.random(len(indices)) ** 3)
    drawn = [priorities.draw(batch_size, rng)[0] for _ in range(64)]
    errors, weights, turn = rng.random(batch_size), np.empty(batch_size, np.float32), iter(range(1 << 62))

    def draw() -> None:
        _, probabilities = priorities.draw(batch_size, rng)
        weigh(probabilities, 0.4, weights[: len(probabilities)])

    def update() -> None:
        indices = drawn[next(turn) % len(drawn)]
        priorities.update(indices, errors[: len(indices)])

    return draw, update


async def _us(work: Callable[[], object], seconds: float) -> float:
    """Microseconds a call, at the median."""
    times, end_at = [], time.perf_counter() + seconds
    while time.perf_counter() < end_at or not times:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


async def _end_to_end(options: Options) -> list[Figure]:
    missing = reason_missing()
    selector = areplay.Prioritized(0.6, 0.4)
    async with (
        filled_replay(CARTPOLE, options) as replay,
        replay.batches(areplay.Rows(), options.batch_size, selector=selector, prefetch=options.prefetch) as batches,
    ):
        (await batches.get(timeout_s=WAIT_S)).release()
        errors = np.random.default_rng(0).random(options.batch_size)

        async def ours(seconds: float) -> float:
            start, done = time.perf_counter(), 0
            async for batch in batches:
                replay.update_priorities(batch.indices, errors)
                done += 1
                if time.perf_counter() - start >= seconds:
                    break
            return done / (time.perf_counter() - start)

        await ours(options.warmup_s)
        sides: dict[str, Side] = {OURS: partial(ours, options.seconds)}
        if missing:
            seen = await take_turns(sides, options)
            return [Figure(AGAINST_PEER, (), target=Target(">=", 2), note=missing, beside=medians(seen))]
        with _cpprb_per_s(errors, options) as peer:
            seen = await take_turns(sides | {PEER: peer}, options)
    return [
        Figure(AGAINST_PEER, ratios(seen[OURS], seen[PEER]), "x", Target(">=", 2), "batches/s", medians(seen)),
    ]


@contextmanager
def _cpprb_per_s(errors: Any, options: Options) -> Iterator[Side]:
    module = importlib.import_module("cpprb")
    fields = {name: {"shape": shape or 1, "dtype": dtype} for name, (shape, dtype) in CARTPOLE.fields.items()}
    buffer = module.PrioritizedReplayBuffer(options.capacity, fields, alpha=0.6)
    chunk = CARTPOLE.columns(256)
    for _ in range(-(-options.capacity // 256)):
        buffer.add(**chunk)

    async def per_s() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < options.seconds:
            batch = buffer.sample(options.batch_size, beta=0.4)
            buffer.update_priorities(batch["indexes"], errors)
            done += 1
        return done / (time.perf_counter() - start)

    yield per_s
