"""Closing from every state: whatever ends the learner's body, nothing is left and the reason
arrives as it is."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import areplay

from . import workers
from .oracle import OWNER, SPEC, lives, rows
from .watching import children, descriptors, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])
both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


class BodyError(Exception):
    """What goes wrong in a learner's body."""


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    """After a test, the loop has no task but the test's own."""
    before = asyncio.all_tasks()
    yield
    left = {
        task
        for task in asyncio.all_tasks() - before
        if task is not asyncio.current_task() and not task.done()
    }
    assert not left


@asynccontextmanager
async def pipeline(
    min_size: int = 1, grace_s: float = 2.0, pause_s: float = 0.0
) -> AsyncIterator[tuple[areplay.Replay, areplay.Actors, areplay.Batches]]:
    """One actor that never stops by itself, one sampler."""
    async with (
        areplay.Replay(SPEC, 50_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1, args=(pause_s,), grace_s=grace_s) as actors,
        replay.batches(batch_size=32, prefetch=4, min_size_to_sample=min_size) as batches,
    ):
        yield replay, actors, batches


@both_loops
async def test_an_exception_in_the_body_arrives_as_it_is() -> None:
    """The learner's own exception, not wrapped in a group and with no other in its place."""
    with pytest.raises(BodyError, match="learning went wrong") as raised:
        async with pipeline() as (_, _, batches):
            async for batch in batches:
                assert batch["number"].shape == (32,)
                raise BodyError("learning went wrong")
    assert raised.value.__cause__ is None


async def test_an_empty_body_closes() -> None:
    """Everything is opened and closed at once, before a row or a batch was seen."""
    before = children()
    async with pipeline() as (replay, _, _):
        pass
    assert children() == before
    assert repr(replay) == "<Replay closed>"
    with pytest.raises(areplay.Closed):
        len(replay)


async def test_break_from_the_loop_closes() -> None:
    """A batch that the learner still holds, and others that are ready, do not keep anything
    open."""
    async with pipeline() as (_, _, batches):
        kept = await batches.get(30.0)
        async for batch in batches:
            assert not batch.is_released
            break
    assert kept["number"].shape == (32,)
    kept.release()
    with pytest.raises(areplay.Closed):
        await anext(batches)
    with pytest.raises(areplay.Closed):
        await batches.get()


@both_loops
async def test_cancelled_while_waiting_for_a_batch() -> None:
    """The learner's task ends by CancelledError, and all is closed by then."""
    before = children()
    entered = asyncio.Event()

    async def learn() -> None:
        async with pipeline(min_size=50_000, pause_s=0.001) as (_, _, batches):
            entered.set()
            await anext(batches)

    async def learn_from_nothing() -> None:
        async with areplay.Replay(SPEC, 1_000) as replay, replay.batches() as batches:
            entered.set()
            await anext(batches)

    for learner in (learn, learn_from_nothing):
        entered.clear()
        task = asyncio.create_task(learner())
        await entered.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == before


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
async def test_cancelled_while_starting_children(after_s: float) -> None:
    """Cancelled at several moments of the start: no child is left, and the replay can start
    others."""
    before = children()
    async with areplay.Replay(SPEC, 10_000) as replay:
        for start in (
            replay.actors(workers.hand_in_until_stopped, 2, grace_s=0.5),
            replay.batches(samplers=2, grace_s=0.5),
        ):
            task = asyncio.create_task(start.__aenter__())
            await asyncio.sleep(after_s)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(outcome, asyncio.CancelledError):  # it was faster
                assert outcome is start
                await start.__aexit__(None, None, None)
            assert children() == before
        assert (await replay.extend(rows(OWNER, 1, 0, 3))).shape == (3,)


async def test_cancelled_while_closing_closes_all_the_same() -> None:
    """A cancellation that comes while the context is being left is delivered when everything is
    closed."""
    before = children()
    leaving = asyncio.Event()

    async def learn() -> None:
        async with (
            areplay.Replay(SPEC, 10_000) as replay,
            replay.actors(
                workers.stop_slowly, 1, args=(["waits for something else"],), grace_s=0.4
            ),
        ):
            leaving.set()

    task = asyncio.create_task(learn())
    await leaving.wait()
    for _ in range(3):
        await asyncio.sleep(0.05)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before


async def test_closing_wakes_whoever_waits_for_a_batch() -> None:
    """A task that waits in the loop over batches gets Closed when another one closes the replay, or
    the stream."""
    for close_all in (True, False):
        async with areplay.Replay(SPEC, 1_000) as replay, replay.batches() as batches:
            waiter = asyncio.create_task(batches.__anext__())
            await until(lambda stream=batches: stream.statistics().learner_waits == 1)
            await (replay.close() if close_all else batches.close())
            with pytest.raises(areplay.Closed, match="stream of batches"):
                await waiter


async def test_closing_wakes_whoever_waits_for_the_actors() -> None:
    """Actors.wait() returns when its group is closed by another task."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors = replay.actors(workers.hand_in_until_stopped, 1, args=(0.01,))
        await actors.__aenter__()
        waiter = asyncio.create_task(actors.wait())
        await asyncio.sleep(0)
        await replay.close()
        await asyncio.wait_for(waiter, 10.0)


async def test_contexts_may_be_left_in_any_order() -> None:
    """Outer before inner, one twice, by hand: each close finds its own work done or does it; rows
    are kept."""
    for order in (
        ("replay", "actors", "batches"),
        ("batches", "replay", "actors"),
        ("actors", "actors", "replay"),
    ):
        before = children()
        replay = areplay.Replay(SPEC, 50_000)
        await replay.__aenter__()
        # the ring is not to go round
        actors = replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,))
        batches = replay.batches(batch_size=32)
        await asyncio.gather(actors.__aenter__(), batches.__aenter__())
        await anext(batches)
        for name in order:
            await {"replay": replay, "actors": actors, "batches": batches}[name].__aexit__(
                None, None, None
            )
            if order[0] != "replay" and name == "actors" and order[-1] == "replay":
                assert list(lives(replay).values()) == [actors.statistics()[0].rows]
        assert children() == before


async def test_nothing_can_be_entered_after_the_replay_has_closed() -> None:
    """Groups and streams made before: entering them raises Closed, and leaves nothing behind."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors, batches = replay.actors(workers.hand_in, 1, args=(3,)), replay.batches()
    with pytest.raises(areplay.Closed, match="replay"):
        await actors.__aenter__()
    with pytest.raises(areplay.Closed, match="replay"):
        await batches.__aenter__()


@both_loops
async def test_nothing_is_left_when_the_replay_closes_while_children_start() -> None:
    """Closing by another task in the middle of a start: who enters gets Closed (or was faster), no
    child is left."""
    before = children()
    for after_s in (0.0, 0.01, 0.2):
        async with areplay.Replay(SPEC, 1_000) as replay:
            starting = [
                asyncio.create_task(replay.actors(workers.hand_in_until_stopped, 1).__aenter__()),
                asyncio.create_task(replay.batches().__aenter__()),
            ]
            await asyncio.sleep(after_s)
            await replay.close()
            for outcome in await asyncio.gather(*starting, return_exceptions=True):
                assert isinstance(outcome, areplay.Closed | areplay.Actors | areplay.Batches)
                if not isinstance(outcome, areplay.Closed):
                    assert repr(outcome) is not None
        assert children() == before


async def test_a_group_that_fails_to_start_leaves_the_others_running() -> None:
    """One group's error at the door is that group's: the rest of the pipeline goes on, and
    closes."""
    async with pipeline() as (replay, actors, batches):
        with pytest.raises(areplay.ActorFailed):
            async with replay.actors(workers.hand_in, 1, args=(workers.PicklesOnly(),)):
                pass
        await anext(batches)
        assert actors.alive == 1


async def test_descriptors_and_memory_stay_flat_over_many_lives() -> None:
    """Replays opened and closed again and again, with children now and then, leave no descriptor
    and no mapping."""

    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return sum("memfd:areplay" in line for line in file)

    baseline = descriptors(), mappings()
    for life in range(24):
        async with AsyncExitStack() as stack:
            replay = await stack.enter_async_context(areplay.Replay(SPEC, 5_000))
            await replay.extend(rows(OWNER, os.getpid(), 0, 500))
            assert replay.sample(16)["number"].shape == (16,)
            if life % 8 == 0:
                await stack.enter_async_context(replay.actors(workers.hand_in, 1, args=(10,)))
                batches = await stack.enter_async_context(replay.batches(batch_size=8))
                await anext(batches)
                del batches
            del replay
        del stack
    gc.collect()
    assert mappings() == baseline[1]
    assert {fd: name for fd, name in descriptors().items() if baseline[0].get(fd) != name} == {}


async def test_a_failure_of_the_coordinator_reaches_the_learner(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If rows cannot be written any more, a waiting learner gets Stalled with the cause, and
    closing still works."""
    before = children()
    with pytest.raises(areplay.Stalled, match="disk on fire") as stalled:
        async with (
            areplay.Replay(SPEC, 10_000) as replay,
            replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,), grace_s=0.5),
            replay.batches(batch_size=8, min_size_to_sample=9_000) as batches,
        ):
            monkeypatch.setattr(areplay._storage.stream_writer.StreamWriter, "write", _fail)
            await anext(batches)
    assert stalled.value.__cause__ is not None
    assert children() == before
    assert any(record.levelname == "ERROR" for record in caplog.records)


def _fail(*_: object) -> None:
    raise OSError("disk on fire")


async def test_closing_is_prompt_while_everything_is_busy() -> None:
    """Full queue, full inbox, samplers at work: how long leaving takes is printed, and is not the
    grace period."""
    async with pipeline(grace_s=30.0) as (_, _, batches):
        for _ in range(20):
            await anext(batches)
        started = time.monotonic()
    elapsed = time.monotonic() - started
    print(f"closed in {elapsed:.2f} s")
    assert elapsed < 15.0, "nobody had to be terminated"
