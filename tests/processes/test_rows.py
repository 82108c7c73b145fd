"""Rows of real actors: in order within their stream, each exactly once, and safe once `add` has
returned."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import areplay

from . import workers
from .oracle import OWNER, SPEC, check_ledgers, ledgers, lives, rows, streams, torn
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])
both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@both_loops
async def test_rows_of_several_actors_are_stored_once_and_in_order() -> None:
    """By add and extend of several actors: all rows are there, each once and in order, when their
    context is left."""
    async with areplay.Replay(SPEC, 100_000) as replay:
        async with replay.actors(workers.hand_in_mixed, 2, args=(5_000,)) as actors:
            await actors.wait()
            assert [record.rows for record in replay.statistics().actors] == [5_000, 5_000]
        assert sorted(lives(replay).values()) == [5_000, 5_000]
        assert replay.statistics().rows_inserted == len(replay) == 10_000


async def test_flushed_rows_can_be_sampled_at_once() -> None:
    """What was flushed is in the ring, while the actor still runs and though it fills no chunk."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.actors(workers.flush_and_tell, 1, args=(7,)) as actors,
    ):
        reports: list[areplay.Report] = []
        await until(lambda: reports.extend(actors.reports()) or reports)
        assert reports[0].values == {"flushed": 7}
        assert len(replay) == 7


async def test_a_ring_smaller_than_the_rows_keeps_the_newest_in_order() -> None:
    """After many laps, the rows that are left of a stream are its last ones, without a gap."""
    async with areplay.Replay(SPEC, 1_000, block_rows=32) as replay:
        async with replay.actors(workers.hand_in, 1, args=(20_000, 250)) as actors:
            await actors.wait()
        (stream,) = streams(replay)
        assert torn(stream.columns) == 0
        assert stream.columns["number"].tolist() == list(range(20_000 - len(stream), 20_000))
        assert (
            replay.capacity_rows - replay.statistics().block_rows
            < len(replay)
            <= replay.capacity_rows
        )


async def _everyone_at_once(capacity: int) -> areplay.Statistics:
    """52,000 rows of two actors and of the owner's extend, while two streams of batches are read;
    all is checked."""
    owners, done = 12_000, asyncio.Event()
    life = os.getpid()

    async def write(replay: areplay.Replay) -> None:
        for start in range(0, owners, 300):
            await replay.extend(rows(OWNER, life, start, start + 300))
            await asyncio.sleep(0.002)
        done.set()

    async def learn(stream: areplay.Batches, enough: int) -> tuple[int, int]:
        seen = bad = 0
        async for batch in stream:
            seen, bad = seen + 1, bad + torn(batch)
            if seen >= enough and done.is_set():
                break
        return seen, bad

    async with areplay.Replay(SPEC, capacity) as replay:
        async with (
            replay.actors(workers.hand_in_mixed, 2, args=(20_000,)) as actors,
            replay.batches(batch_size=64, samplers=2, prefetch=8) as first,
            replay.batches(batch_size=32, samplers=1, prefetch=4) as second,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(write(replay))
            learners = [group.create_task(learn(stream, 200)) for stream in (first, second)]
            await actors.wait()
        for learner in learners:
            seen, bad = learner.result()
            assert seen >= 200
            assert bad == 0
        assert replay.statistics().rows_inserted == 52_000
        if capacity > 52_000:
            assert sorted(lives(replay).values()) == [12_000, 20_000, 20_000]
        else:
            # what is left has no gap: it is the end of what its writer wrote
            for stream in streams(replay):
                number = stream.columns["number"]
                assert number.tolist() == list(range(number[0], number[0] + len(stream)))
                assert torn(stream.columns) == 0
        return replay.statistics()


async def test_everyone_writes_and_reads_at_the_same_time() -> None:
    """Actors, the owner's extend, two samplers of one stream and one of another: rows exact, every
    batch whole."""
    assert (await _everyone_at_once(capacity=200_000)).rows == 52_000


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_everyone_writes_and_reads_a_small_ring_at_the_same_time() -> None:
    """The same while the ring is written round and round: what is left of each stream is its end,
    without a gap."""
    statistics = await _everyone_at_once(capacity=3_000)
    assert statistics.rows_inserted > 10 * statistics.capacity_rows


async def test_rows_of_a_killed_actor_are_those_it_was_told_are_safe(tmp_path: Path) -> None:
    """Killed from outside at any moment, again and again: acked <= stored <= pending, each once and
    in order."""
    rounds, slowest_s = 2, 0.0

    def is_busy(life: int) -> bool:
        return any(pid == life and acked > 50 for (_, pid), (acked, _) in ledgers(tmp_path).items())

    async with areplay.Replay(SPEC, 1_000_000) as replay:
        async with replay.actors(
            workers.ledgered, 2, args=(str(tmp_path),), max_restarts=100
        ) as actors:
            for _ in range(rounds):
                victims = [record.pid for record in actors.statistics()]
                await until(
                    lambda pids=victims: all(is_busy(pid) for pid in pids), what="rows of both"
                )
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                await until(
                    lambda pids=victims: all(
                        r.is_alive and r.pid not in pids for r in actors.statistics()
                    ),
                    what="their successors",
                )
                slowest_s = max(slowest_s, time.monotonic() - killed)
            await until(lambda: all(is_busy(record.pid) for record in actors.statistics()))
            assert [record.restarts for record in actors.statistics()] == [rounds, rounds]
        assert len(check_ledgers(replay, tmp_path)) == 2 + 2 * rounds
    print(f"from the death of two actors to both successors at work: {slowest_s:.2f} s at most")


@pytest.mark.parametrize("chunk", [1, 10])
async def test_a_row_is_safe_once_add_returned(tmp_path: Path, chunk: int) -> None:
    """An actor that kills itself at the very next instruction after add or extend: that row is
    stored, and no other."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.die_after, 1, args=(str(tmp_path), 170, chunk), max_restarts=1
        ) as actors:
            with pytest.raises(areplay.ActorFailed, match="killed by signal 9"):
                await actors.wait()
        stored = check_ledgers(replay, tmp_path)
        assert list(stored.values()) == [170, 170]
        assert ledgers(tmp_path) == dict.fromkeys(stored, (170, 170))


async def test_rows_left_in_an_inbox_are_stored_when_closing() -> None:
    """Rows handed in a moment before the actor is stopped are in the ring when the actors' context
    has been left."""
    async with areplay.Replay(SPEC, 100_000) as replay:
        async with replay.actors(workers.hand_in_until_stopped, 1) as actors:
            await until(lambda: actors.statistics()[0].rows > 100)
        assert replay.statistics().actors[0].waiting_rows == 0
        (count,) = lives(replay).values()
        assert count == replay.statistics().actors[0].rows


async def test_blocks_are_split_before_samplers_begin_if_actors_are_many() -> None:
    """In the order of the README, actors, then batches: samplers know the smaller blocks, and
    nearly all rows fit."""
    async with (
        asyncio.timeout(120),
        areplay.Replay(SPEC, 512, seed=0) as replay,
        replay.actors(workers.hand_in_mixed, 6, args=(600,)) as actors,
        replay.batches(batch_size=64, prefetch=2) as batches,
    ):
        assert replay.statistics().block_rows == 4
        for _ in range(20):
            assert torn(await anext(batches)) == 0
        await actors.wait()
        await until(lambda: replay.statistics().rows_inserted == 6 * 600)
        assert len(replay) >= 0.9 * 512
        for _ in range(20):
            assert torn(await anext(batches)) == 0
        assert replay.statistics().block_rows == 4
