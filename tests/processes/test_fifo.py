"""Each item exactly once, in order, through a ring so small that the actors wait: and everybody may
die."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.episode_oracle import Item, Lane, Oracle, Stack

import areplay
from areplay._processes import worker as worker_module

from . import steppers, workers
from .oracle import OWNER, SPEC, ledgers, rows, torn
from .test_items import replayed
from .watching import children, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

CAPACITY: dict[str, Any] = {"capacity": 256, "block_rows": 16}
Seen = dict[tuple[int, int], list[int]]


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that die are replaced soon."""
    monkeypatch.setattr(worker_module, "_LONGEST_BACK_OFF_S", 0.05)


def take_down(batch: areplay.Batch, seen: Seen) -> None:
    """The rows of a batch, by who handed them in."""
    assert torn(batch) == 0
    for actor, life, number in zip(
        *(batch[name].tolist() for name in ("actor", "life", "number")), strict=True
    ):
        seen.setdefault((actor, life), []).append(number)


def in_order(seen: Seen) -> bool:
    """Whether of each life all rows came, from the first on, each once, in order."""
    return all(numbers == list(range(len(numbers))) for numbers in seen.values())


@pytest.mark.parametrize("samplers", [1, 3])
async def test_each_row_is_delivered_once_and_in_order(samplers: int) -> None:
    """Of three actors through a ring of which a sixth part is a batch; what was there before comes
    first. Then there are too few for a batch, and no more can come."""
    counts, seen = [600, 400, 233], Seen()
    async with areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        async with (
            asyncio.timeout(60),
            replay.batches(
                batch_size=40, samplers=samplers, prefetch=samplers, selector=areplay.Fifo()
            ) as batches,
            replay.actors(workers.uneven, 3, args=(counts,), inbox_rows=16) as actors,
        ):
            first = (await anext(batches))["actor"].tolist()
            assert first == [OWNER] * 40
            seen[OWNER, 1] = list(range(40))
            for _ in range((100 + sum(counts)) // 40 - 1):
                take_down(await anext(batches), seen)
            await actors.wait()
            assert batches.statistics().items_left == (100 + sum(counts)) % 40
            assert replay.statistics().blocks_started > 2 * replay.statistics().blocks
    assert in_order(seen)
    assert sum(len(numbers) for numbers in seen.values()) == (100 + sum(counts)) // 40 * 40


async def test_when_the_actors_are_done_the_rest_is_delivered_and_then_it_is_stalled() -> None:
    """Whatever was left in their inboxes; the error tells how many items there are."""
    seen = Seen()
    async with (
        asyncio.timeout(60),
        areplay.Replay(SPEC, **CAPACITY) as replay,
        replay.batches(batch_size=32, samplers=2, prefetch=2, selector=areplay.Fifo()) as batches,
        replay.actors(workers.uneven, 2, args=([500, 410],), inbox_rows=64) as actors,
    ):
        await until(
            lambda: any(wait.who == "actor 0" for wait in replay.statistics().waits),
            what="a full ring",
        )
        with pytest.raises(
            areplay.Stalled,
            match=r"14 of 32 items for a batch of Fifo\(\).*no "
            r"more rows can come",
        ):
            async for batch in batches:
                take_down(batch, seen)
        await actors.wait()
    assert in_order(seen) and sorted(len(numbers) for numbers in seen.values())[0] > 380
    assert sum(len(numbers) for numbers in seen.values()) == 896


async def test_each_batch_comes_as_often_as_wanted() -> None:
    """One after the other, and the samplers share them."""
    async with (
        asyncio.timeout(60),
        areplay.Replay(SPEC, **CAPACITY) as replay,
        replay.batches(batch_size=50, samplers=2, prefetch=3, selector=areplay.Fifo(3)) as batches,
        replay.actors(workers.uneven, 1, args=([600],), inbox_rows=16),
    ):
        for number in range(12):
            for _ in range(3):
                batch = await anext(batches)
                assert batch["number"].tolist() == list(range(50 * number, 50 * number + 50))
        assert batches.statistics().items_left == 0


KINDS: dict[str, tuple[Any, Any]] = {
    "transitions": (
        areplay.Transitions(n_step=3, gamma=0.5, frame_stack=4),
        lambda oracle: oracle.transitions(3, 0.5, Stack({"obs": 4})),
    ),
    "sequences": (
        areplay.Sequences(6, burn_in=1, first_step_only=("version",)),
        lambda oracle: oracle.sequences(6, 1, 1, Stack(), ("version",)),
    ),
}
MODES = ["NextStep", "SameStep", "Disabled", "one"]


@pytest.mark.parametrize("kind", list(KINDS))
async def test_items_of_actors_that_died_are_delivered_once_and_in_order(
    kind: str, tmp_path: Path
) -> None:
    """Vectors of environments in each mode and a single one, each actor killed once: all items of
    the oracle, right in each field, those of an environment in its order; the learner is told when
    there are no more."""
    item, valid = KINDS[kind]
    steps, batches_of = [53, 61], 8
    found: list[areplay.Batch] = []
    async with (
        asyncio.timeout(60),
        areplay.Replay(steppers.KIND.spec, 512, block_rows=16) as replay,
        replay.batches(
            item, batches_of, samplers=2, prefetch=4, selector=areplay.Fifo()
        ) as batches,
        replay.actors(steppers.step_and_die, 4, args=(str(tmp_path), MODES, steps), inbox_rows=32),
    ):
        with pytest.raises(areplay.Stalled):
            async for batch in batches:
                found.append(batch.copy())
        left = batches.statistics().items_left
        assert replay.statistics().blocks_started > replay.statistics().blocks
    lanes: list[Lane] = []
    for actor, mode in enumerate(MODES):
        for life, count in enumerate(steps):
            await replayed(lanes, actor, mode, life, count)
    for episode in itertools.chain.from_iterable(lanes):  # by an observation's own number
        episode.names = [observation["number"] for observation in episode.observations]
    everything = {name for lane in lanes for episode in lane for name in episode.names if name}
    expected: dict[int, Item] = {
        each["version"]: each for each in valid(Oracle(lanes, everything)).values()
    }
    delivered = [version for batch in found for version in batch["version"].tolist()]
    assert len(set(delivered)) == len(delivered) == len(expected) - (left or 0)
    for batch in found:
        for at, version in enumerate(batch["version"].tolist()):
            for name, array in batch.items():
                assert array[at].tolist() == expected[version][name], name
    lane_of = {
        step["version"]: k for k, lane in enumerate(lanes) for each in lane for step in each.steps
    }
    by_lane: dict[int, list[int]] = {}
    for version in delivered:  # they count downwards
        by_lane.setdefault(lane_of[version], []).append(-version)
    assert len(by_lane) == len(lanes) and all(
        numbers == sorted(numbers) for numbers in by_lane.values()
    )


@pytest.mark.parametrize("point", ["sampler.draw", "sampler.gather", "sampler.publish"])
async def test_a_sampler_killed_at_any_point_delivers_each_row_once(
    point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both samplers die in their third batch; the batches go on where they were."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 256))
        monkeypatch.setenv("AREPLAY_KILL", f"{point}:3")
        async with replay.batches(
            batch_size=16, samplers=2, prefetch=4, selector=areplay.Fifo()
        ) as batches:
            for number in range(16):
                batch = await anext(batches)
                assert batch["number"].tolist() == list(range(16 * number, 16 * number + 16))
            assert batches.statistics().restarts == 2


async def test_a_storm_of_kills_delivers_each_row_once_and_in_order(tmp_path: Path) -> None:
    """Random SIGKILLs of actors and samplers: of each life a prefix, in order, with all that was
    acknowledged."""
    seed, kills, seen = random.randrange(1 << 32), 10, Seen()
    print(f"seed {seed}")
    chance = random.Random(seed)
    many: dict[str, Any] = {"max_restarts": 1_000}
    async with areplay.Replay(SPEC, **CAPACITY) as replay:
        before = children()
        async with replay.batches(
            batch_size=24, samplers=3, prefetch=4, selector=areplay.Fifo(), **many, timeout_s=60.0
        ) as batches:

            async def learn() -> None:
                async for batch in batches:
                    take_down(batch, seen)

            learner = asyncio.create_task(learn())
            async with replay.actors(
                workers.ledgered, 2, args=(str(tmp_path),), inbox_rows=64, **many
            ) as actors:
                for _ in range(kills):
                    await asyncio.sleep(chance.uniform(0.0, 0.3))
                    if born := sorted(children() - before):
                        with suppress(ProcessLookupError):
                            os.kill(chance.choice(born), signal.SIGKILL)
                restarts = batches.statistics().restarts + sum(
                    one.restarts for one in actors.statistics()
                )
            await until(
                lambda: batches.statistics().items_left in range(24) or learner.done(),
                what="all delivered",
            )
            await until(lambda: not replay._opened().coordinator.has_rows, what="all written")
            await until(
                lambda: batches.statistics().items_left in range(24) or learner.done(),
                what="all delivered",
            )
            left, inserted = batches.statistics().items_left, replay.statistics().rows_inserted
            learner.cancel()
            (outcome,) = await asyncio.gather(learner, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError), outcome
    assert in_order(seen)
    total, lost = sum(len(numbers) for numbers in seen.values()), 0
    assert total + (left or 0) == inserted
    for life, (acked, pending) in ledgers(tmp_path).items():
        assert len(seen.get(life, [])) <= pending
        lost += max(0, acked - len(seen.get(life, [])))
    assert lost <= (left or 0), "what was acknowledged and not delivered waits for a whole batch"
    print(f"{restarts} restarts, {total:,} rows of {len(seen)} lives")


async def test_a_sampler_that_failed_for_good_is_told_when_it_is_its_turn() -> None:
    """The other one is alive, but has not the batch that comes next: nobody waits for ever."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 200))
        async with replay.batches(
            workers.BrokenItem(),
            batch_size=16,
            samplers=2,
            prefetch=2,
            selector=areplay.Fifo(),
            max_restarts=0,
        ) as batches:
            with pytest.raises(areplay.SamplerFailed, match="broken item"):
                await anext(batches)


async def test_a_sampler_killed_for_good_is_told_when_it_is_its_turn() -> None:
    """What it had published is delivered in turn; then the learner gets the failure, though the
    other one is alive."""
    async with asyncio.timeout(60), areplay.Replay(SPEC, **CAPACITY) as replay:
        await replay.extend(rows(OWNER, 1, 0, 256))
        async with replay.batches(
            batch_size=16, samplers=2, prefetch=2, selector=areplay.Fifo(), max_restarts=0
        ) as batches:
            await until(lambda: batches.statistics().ready == 5)
            child = batches._stream.queue.supervisor.workers[1].child
            assert child is not None
            os.kill(child.pid, signal.SIGKILL)
            await until(lambda: batches.statistics().samplers_alive == 1)
            got = []
            with pytest.raises(areplay.SamplerFailed, match="sampler 1"):
                async for batch in batches:
                    got += batch["number"].tolist()
            assert got == list(range(5 * 16)), "sampler 1 had published two batches"


@pytest.mark.parametrize("first", ["actors", "batches", "sample"])
async def test_contexts_may_be_left_in_any_order_while_the_ring_is_full(first: str) -> None:
    """Actors before the stream of batches or after it, or the replay with both: it returns soon,
    and leaves nobody."""
    async with areplay.Replay(SPEC, **CAPACITY) as replay:
        fifo = areplay.Fifo()
        batches = replay.batches(batch_size=16, prefetch=1, selector=fifo)
        actors = replay.actors(workers.hand_in_until_stopped, 2, inbox_rows=16)
        if first == "sample":
            await replay.extend(rows(OWNER, 1, 0, 16))
            replay.sample(16, selector=fifo)
        else:
            await batches.__aenter__()
        await actors.__aenter__()
        await until(
            lambda: any("actor" in wait.who for wait in replay.statistics().waits),
            what="a full ring",
        )
        async with asyncio.timeout(20):
            if first == "actors":
                await actors.close()
                await batches.close()
            elif first == "batches":
                await batches.close()
                before = replay.statistics().rows_inserted
                await until(
                    lambda: replay.statistics().rows_inserted > before + 256,
                    what="rows come in again",
                )
                await actors.close()
            await replay.close()


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """Everybody who was started is gone."""
    before = children()
    yield
    assert children() <= before


async def test_samples_of_fifo_are_whole_while_actors_wait_for_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What `sample` copies is kept until it is copied; and a replay can be closed in the middle of
    all that."""
    async with areplay.Replay(SPEC, 512, seed=1) as replay:
        actors = replay.actors(workers.hand_in_until_stopped, 2, inbox_rows=64)
        async with actors:
            selector, seen = areplay.Fifo(), Seen()
            async with asyncio.timeout(60):
                for _ in range(200):
                    while True:
                        try:
                            batch = replay.sample(32, selector=selector)
                            break
                        except areplay.Stalled:
                            # the coordinator's thread needs the interpreter for its rows
                            await asyncio.sleep(0.001)
                    take_down(batch, seen)
            assert seen  # from the first row on that was in the ring then
            assert all(each == list(range(each[0], each[0] + len(each))) for each in seen.values())
            async with replay.batches(batch_size=32, selector=areplay.Fifo()) as batches:
                await anext(batches)
                await replay.close()
    assert not [record for record in caplog.records if "ended, restarting it" in record.message]


async def test_a_limiter_beside_a_fixed_number_of_times_is_refused() -> None:
    """Either would make the other wait for ever. So would one that lets no item in before the first
    batch."""
    async with areplay.Replay(SPEC, 512) as replay:
        limiter = areplay.SamplesPerInsert(2.0, 10)
        for selector in (areplay.Fifo(), areplay.Epochs(2)):
            with pytest.raises(ValueError, match="leave the limiter out, or pass MinSize"):
                replay.batches(batch_size=8, selector=selector, limiter=limiter)
        replay.batches(batch_size=8, selector=areplay.Fifo(), limiter=areplay.MinSize(16))
    steps = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))
    async with areplay.Replay(steps, 512) as replay:
        narrow = areplay.SamplesPerInsert(8.0, 1, error_buffer=20)
        with pytest.raises(
            ValueError,
            match="an item spans up to 6 rows, but min_size_to_sample=1 and error_buffer=20",
        ):
            replay.batches(areplay.Transitions(n_step=5), 32, limiter=narrow)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
async def test_an_actor_and_a_learner_that_wait_for_each_other_go_on(mode: str) -> None:
    """An actor makes three steps of two environments and waits for new weights; the learner gets
    the two transitions over two steps that are complete by then, though no further step comes, and
    publishes."""
    weights = areplay.Weights({"w": np.zeros(1)})
    async with (
        asyncio.timeout(60),
        areplay.Replay(steppers.TWO, 1_024) as replay,
        replay.batches(areplay.Transitions(n_step=2), 2, selector=areplay.Fifo()) as batches,
        replay.actors(steppers.three_steps_and_wait, 1, args=(mode,), weights=weights) as actors,
    ):
        assert sorted((await anext(batches))["obs"].tolist()) == [0, 1_000]
        weights.publish({"w": np.ones(1)})
        await actors.wait()
        assert batches.statistics().items_left == 0
