"""Prioritised sampling: draws and updates alone, all of it end to end beside cpprb, and how old
priorities get."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

import areplay
from areplay._base.arrays import Indices
from areplay._sampling import binding
from areplay._sampling.bound_selector import weigh
from areplay._sampling.prioritized_selector import PrioritizedSelector
from areplay._storage.mass_tree import Masses
from areplay._storage.priorities import Priorities
from areplay._storage.ring import Ring
from benchmarks.flows import wait_rows
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import Side, take_turns
from benchmarks.learners import WAIT_S
from benchmarks.memory import SharedColumns
from benchmarks.peers.cpprb_beside import (
    PeerRates,
    cpprb_buffer,
    measure_cpprb,
    reason_missing,
    times_per_s,
)
from benchmarks.workloads import CARTPOLE, filled_replay, push_paced_chunks

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
AT_ONCE = 8  # batches that a sampler draws at once, if the queue is for 16
CHUNK_ROWS = 256
PREFETCH = (1, 4, 16, 64)
# a step of the learner whose batches' priorities are aged: long enough for a full queue
LEARNER_S = 0.001
BUILT_IN, PEER = "areplay, out of process", "cpprb PrioritizedReplayBuffer, in process"
OURS_FED, PEER_FED = "areplay, 1 actor", "cpprb MPPrioritizedReplayBuffer, 1 producer"
AGAINST_PEER = "prioritized: CartPole rows, sample and update / cpprb"
AGAINST_MP_PEER = "prioritized: the same, 1 producer, / cpprb in shared memory"


async def run(options: Options) -> list[Figure]:
    """120 us a draw from a million rows, 60 us an update; twice, and with shared memory 8 times
    cpprb's batches."""
    # tiny runs are for show
    sizes = [rows for rows in ROWS if options.rounds > 1 or rows <= 100_000]
    return [*await _alone(sizes, options), *await _end_to_end(options), await _ages(options)]


async def _alone(sizes: list[int], options: Options) -> list[Figure]:
    sides: dict[str, Side] = {}
    for rows in sizes:
        draw, draw_some, update = _work(rows, options.batch_size)
        sides[f"draw, {rows:,} rows"] = partial(_us, draw, options.seconds / 4)
        sides[f"draw {AT_ONCE}, {rows:,} rows"] = partial(_us, draw_some, options.seconds / 4)
        sides[f"update, {rows:,} rows"] = partial(_us, update, options.seconds / 4)
    seen = await take_turns(sides, options)
    middle = sizes[min(2, len(sizes) - 1)]
    base, largest = sizes[min(1, len(sizes) - 1)], sizes[-1]
    draws = medians({f"{rows:,}": seen[f"draw, {rows:,} rows"] for rows in sizes})
    some = {
        f"{rows:,}": [us / AT_ONCE for us in seen[f"draw {AT_ONCE}, {rows:,} rows"]]
        for rows in sizes
    }
    return [
        Figure(
            f"prioritized: draw and weigh {options.batch_size} of {middle:,}",
            tuple(seen[f"draw, {middle:,} rows"]),
            "us",
            Target("<=", 120),
            beside=draws,
        ),
        Figure(
            f"prioritized: the same, {AT_ONCE} batches at once, each",
            tuple(some[f"{middle:,}"]),
            "us",
            Target("<=", 120),
            beside=medians(some),
        ),
        Figure(
            f"prioritized: draw of {largest:,} / of {base:,}",
            ratios(seen[f"draw, {largest:,} rows"], seen[f"draw, {base:,} rows"]),
            "x",
            Target("<=", 2),
        ),
        Figure(
            f"prioritized: update of {options.batch_size} of {middle:,}",
            tuple(seen[f"update, {middle:,} rows"]),
            "us",
            Target("<=", 60),
        ),
    ]


def _work(rows: int, batch_size: int) -> tuple[Callable[[], object], ...]:
    """A draw of a batch with its weights, one of `AT_ONCE` batches, and an update of a batch.

    Of a full ring with priorities of all sizes.
    """
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
    errors, weights, turn = (
        rng.random(batch_size),
        np.empty(batch_size, np.float32),
        iter(range(1 << 62)),
    )

    def draw(batches: int = 1) -> None:
        _, probabilities = priorities.draw(batch_size, rng, batches)
        for start in range(0, len(probabilities), batch_size):
            some = probabilities[start : start + batch_size]
            weigh(some, 0.4, weights[: len(some)])

    def update() -> None:
        indices = drawn[next(turn) % len(drawn)]
        priorities.update(indices, errors[: len(indices)])

    return draw, partial(draw, AT_ONCE), update


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
    errors = np.random.default_rng(0).random(options.batch_size)
    peers: list[PeerRates] = []
    async with AsyncExitStack() as stack:
        replay = await stack.enter_async_context(filled_replay(CARTPOLE, options))
        stream = replay.batches(
            areplay.Rows(), options.batch_size, selector=selector, prefetch=options.prefetch
        )
        batches = await stack.enter_async_context(stream)
        (await batches.get(timeout_s=WAIT_S)).release()
        await _learned_per_s(replay, batches, errors, options.warmup_s)
        sides: dict[str, Side] = {
            BUILT_IN: partial(_learned_per_s, replay, batches, errors, options.seconds)
        }
        if not missing:
            alone = stack.enter_context(
                cpprb_buffer(CARTPOLE, options, "PrioritizedReplayBuffer", alpha=0.6)
            )
            fed = stack.enter_context(
                cpprb_buffer(CARTPOLE, options, "MPPrioritizedReplayBuffer", alpha=0.6)
            )
            learn = partial(_learn_from_cpprb, fed, errors, options)

            async def peer() -> float:
                return times_per_s(
                    partial(_learn_from_cpprb, alone, errors, options), options.seconds
                )

            async def peer_fed() -> float:
                peers.append(measure_cpprb(fed, CARTPOLE, CHUNK_ROWS, options, learn))
                return peers[-1].batches_per_s

            rows_per_s = measure_cpprb(fed, CARTPOLE, CHUNK_ROWS, options, learn).rows_per_s
            ours_fed = partial(
                _learned_per_s_while_fed, replay, batches, errors, options, rows_per_s
            )
            sides |= {PEER: peer, OURS_FED: ours_fed, PEER_FED: peer_fed}
        seen = await take_turns(sides, options)
    if missing:
        return [
            Figure(AGAINST_PEER, (), target=Target(">=", 2), note=missing, beside=medians(seen)),
            Figure(AGAINST_MP_PEER, (), target=Target(">=", 8), note=missing),
        ]
    two, two_fed = (
        {name: seen[name] for name in names} for names in ((BUILT_IN, PEER), (OURS_FED, PEER_FED))
    )
    beside = medians(two_fed | {"rows/s coming in": [rates.rows_per_s for rates in peers]})
    note = "batches/s; the same rows/s coming in on both sides"
    return [
        Figure(
            AGAINST_PEER, ratios(*two.values()), "x", Target(">=", 2), "batches/s", medians(two)
        ),
        Figure(AGAINST_MP_PEER, ratios(*two_fed.values()), "x", Target(">=", 8), note, beside),
    ]


async def _learned_per_s(
    replay: areplay.Replay, batches: areplay.Batches, errors: Masses, seconds: float
) -> float:
    start, done = time.perf_counter(), 0
    async for batch in batches:
        replay.update_priorities(batch.indices, errors)
        done += 1
        if time.perf_counter() - start >= seconds:
            break
    return done / (time.perf_counter() - start)


async def _learned_per_s_while_fed(
    replay: areplay.Replay,
    batches: areplay.Batches,
    errors: Masses,
    options: Options,
    rows_per_s: float,
) -> float:
    async with replay.actors(push_paced_chunks, 1, args=(CARTPOLE, CHUNK_ROWS, rows_per_s)):
        await wait_rows(replay)
        await _learned_per_s(replay, batches, errors, options.settle_s)
        return await _learned_per_s(replay, batches, errors, options.seconds)


def _learn_from_cpprb(buffer: Any, errors: Masses, options: Options) -> None:
    batch = buffer.sample(options.batch_size, beta=0.4)
    buffer.update_priorities(batch["indexes"], errors)


class Dated(PrioritizedSelector):
    """Says in place of the probabilities how many updates had been made when a batch was drawn: 1 /
    (1 + that).

    Args:
        clock: `updates[0]`, in shared memory, written by the learner before each update.
    """

    def __init__(
        self, clock: SharedColumns, given: areplay.Prioritized, priorities: Priorities
    ) -> None:
        super().__init__(given, priorities)
        self._clock = clock

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `BoundSelector.draw_batches`."""
        # read first: rather too old than too young
        updates = float(self._clock.columns["updates"][0])
        return super().draw_batches(ring, batches, count, rng)[0], 1 / (1 + updates)


async def _ages(options: Options) -> Figure:
    """How many updates its learner made between the draw of a batch and its delivery, for queues of
    some lengths."""
    medians_of, beside = {}, {}
    for prefetch in sorted({*PREFETCH, options.prefetch}):
        ages = await _ages_with(prefetch, options)
        medians_of[prefetch] = float(np.median(ages))
        beside |= {
            f"prefetch {prefetch}": medians_of[prefetch],
            f"prefetch {prefetch}, most": max(ages),
        }
    name = f"prioritized: updates behind a batch, prefetch {options.prefetch}"
    return Figure(
        name,
        (medians_of[options.prefetch],),
        "updates",
        note="the queue is full; medians",
        beside=beside,
    )


async def _ages_with(prefetch: int, options: Options) -> list[float]:
    errors, ages = np.random.default_rng(0).random(options.batch_size), []
    options = replace(options, capacity=min(options.capacity, 20_000))
    selector = areplay.Prioritized(0.6, 0.4)
    with (
        SharedColumns({"updates": ((), "int64")}, 1) as clock,
        patch.object(binding, "PrioritizedSelector", partial(Dated, clock)),
    ):
        async with (
            filled_replay(CARTPOLE, options) as replay,
            replay.batches(
                areplay.Rows(), options.batch_size, selector=selector, prefetch=prefetch
            ) as batches,
        ):
            end_at = time.perf_counter() + options.settle_s + options.seconds
            async for batch in batches:
                ages.append(1 + float(clock.columns["updates"][0] - 1 / batch.probabilities.max()))
                time.sleep(LEARNER_S)  # noqa: ASYNC251  training blocks
                clock.columns["updates"][0] += 1
                replay.update_priorities(batch.indices, errors)
                if time.perf_counter() > end_at:
                    break
    # the first ones were drawn before there was any update
    return ages[min(len(ages) // 2, 2 * prefetch) :]
