"""Nothing is global: several replays, streams, groups and event loops in one process."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import areplay

from . import workers
from .oracle import OWNER, SPEC, lives, rows, torn
from .watching import children


async def _small_run() -> int:
    """An actor's rows, from start to end; how many."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(workers.hand_in, 1, args=(50,)) as actors:
            await actors.wait()
        assert torn(replay.sample(8)) == 0
        return len(replay)


def test_event_loops_of_both_kinds_one_after_the_other() -> None:
    """Each event loop has its replay, and nothing of the one before is in its way; areplay.run
    returns what its coroutine returns."""
    for run in (asyncio.run, asyncio.run, areplay.run, areplay.run, asyncio.run):
        assert run(_small_run()) == 50


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_two_replays_are_independent() -> None:
    """Each has its own rows, actors and batches, also when one of them is closed before the
    other."""
    async with areplay.Replay(SPEC, 10_000) as outer:
        async with (
            areplay.Replay(SPEC, 10_000) as inner,
            outer.actors(workers.hand_in, 1, args=(100,)) as outer_actors,
            inner.actors(workers.hand_in, 1, args=(30,)) as inner_actors,
            outer.batches(batch_size=8) as outer_batches,
        ):
            await asyncio.gather(outer_actors.wait(), inner_actors.wait())
            async with inner.batches(batch_size=8) as inner_batches:
                ours, theirs = (
                    set((await anext(inner_batches))["life"]),
                    set((await anext(outer_batches))["life"]),
                )
                assert len(ours) == len(theirs) == 1
                assert ours != theirs
            await inner.close()
            assert torn(await anext(outer_batches)) == 0
            await outer.extend(rows(OWNER, 1, 0, 5))
        assert sorted(lives(outer).values()) == [5, 100]


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_streams_and_groups_on_one_replay_are_independent() -> None:
    """Two groups of actors and two streams of batches on one replay: each may end without the
    others noticing."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,)) as lasting,
        replay.batches(batch_size=16, prefetch=3) as lasting_batches,
    ):
        async with (
            replay.actors(workers.hand_in, 1, args=(40,)) as passing,
            replay.batches(batch_size=4) as batches,
        ):
            await passing.wait()
            assert (await anext(batches))["number"].shape == (4,)
            statistics = replay.statistics()
            assert [record.batch_size for record in statistics.batches] == [16, 4]
            assert [record.index for record in statistics.actors] == [0, 0]
        for _ in range(10):
            assert (await anext(lasting_batches))["number"].shape == (16,)
        assert lasting.alive == 1


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_several_tasks_take_from_one_stream() -> None:
    """Batches taken with get() by several tasks go to one task each."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        async with replay.batches(batch_size=32, prefetch=6, samplers=2) as batches:

            async def take(count: int) -> list[bytes]:
                found = []
                for _ in range(count):
                    batch = await batches.get(30.0)
                    await asyncio.sleep(0)
                    assert torn(batch) == 0
                    found.append(batch.indices.tobytes())
                    batch.release()
                return found

            taken = await asyncio.gather(*(take(60) for _ in range(3)))
            assert len({each for task in taken for each in task}) == 180
            assert batches.statistics().batches_delivered == 180


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_no_process_is_started_but_the_children_asked_for() -> None:
    """Two actors and a sampler are three children: aiomultiprocess's manager is not among them."""
    before = children()
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 2, args=(0.01,)) as actors,
        replay.batches(),
    ):
        born = children() - before
        assert len(born) == 3
        assert {record.pid for record in actors.statistics()} < born


def test_importing_areplay_starts_nothing() -> None:
    """No process, no thread and no shared memory come with the import."""
    code = (
        "import areplay, threading\n"
        "from tests.processes.watching import children\n"
        "print(threading.active_count(), len(children()), 'memfd' in "
        "open('/proc/self/maps').read())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.split() == ["1", "0", "False"]


def test_others_who_use_aiomultiprocess_are_untouched() -> None:
    """areplay keeps aiomultiprocess's manager from starting for its own children, not for anybody
    else in the process, who needs it to get results."""
    code = (
        "import areplay, asyncio, aiomultiprocess\n"
        "async def main():\n"
        "    print(await aiomultiprocess.Worker(target=asyncio.sleep, args=(0, 'a result')))\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert said.stdout == "a result\n", said.stderr
