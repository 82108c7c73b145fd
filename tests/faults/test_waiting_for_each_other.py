"""Row 17: every wait has a reason and an end, also where a limiter or a queue that keeps its rows holds one side up."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
import pytest

import areplay
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, lives, row, rows
from tests.processes.watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


NEVER_OPEN = [
    (lambda: areplay.SamplesPerInsert(1.0, 100, error_buffer=4.0), r"error_buffer=4 could let learner and actors"),
    (lambda: areplay.SamplesPerInsert(64.0, 1, error_buffer=35.0), r"must be at least 36"),
    (lambda: areplay.SamplesPerInsert(1.0, 100_000), r"min_size_to_sample must be"),
    (lambda: areplay.MinSize(100_000), r"min_size_to_sample must be"),
    (lambda: areplay.SamplesPerInsert(0.0, 1), r"samples_per_insert must be a number above 0"),
    (lambda: areplay.SamplesPerInsert(float("nan"), 1), r"samples_per_insert must be a number above 0"),
    (lambda: areplay.SamplesPerInsert(1.0, 0), r"min_size_to_sample must be"),
    (lambda: areplay.SamplesPerInsert(1.0, 1, error_buffer=-1.0), r"error_buffer must be a number above 0"),
]


async def test_a_limiter_that_could_never_open_is_refused_at_construction() -> None:
    """By itself, or where its batches are known; nothing was opened, and another stream can be."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        for limiter, said in NEVER_OPEN:
            with pytest.raises(ValueError, match=said):
                replay.batches(batch_size=8, limiter=limiter())
        await replay.extend(rows(OWNER, 1, 0, 10))
        async with replay.batches(batch_size=8, timeout_s=30.0) as batches:
            await anext(batches)


async def test_a_learner_that_a_limiter_holds_is_told_and_can_give_up() -> None:
    """timeout_s of the loop and of get(); the limiter's numbers are in the text; with the missing rows it goes on."""
    limiter = areplay.SamplesPerInsert(1.0, min_size_to_sample=10, error_buffer=16.0)
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 10))
        async with replay.batches(batch_size=8, limiter=limiter, timeout_s=0.1) as batches:
            for _ in range(2):
                await anext(batches)
            said = r"8 steps are missing until the next batch, by SamplesPerInsert\(1.*10 steps inserted, 16 items"
            with pytest.raises(areplay.WaitTimeout, match=said):
                await anext(batches)
            with pytest.raises(areplay.WaitTimeout, match=said):
                await batches.get(0.05)
            await replay.extend(rows(OWNER, 1, 10, 18))
            await batches.get(30.0)
            assert batches.statistics().limiter is not None


async def test_actors_that_a_limiter_holds_are_told_and_can_give_up() -> None:
    """InboxFull after timeout_s, while the owner's side says which limiter it is; the rows that waited are stored once
    when the learner goes on."""
    limiter = areplay.SamplesPerInsert(4.0, min_size_to_sample=10, error_buffer=64.0)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=64, limiter=limiter, timeout_s=30.0) as batches,
        replay.actors(workers.report_full_inbox, 1, args=(200,), inbox_rows=16, timeout_s=0.2) as actors,
    ):
        reports: list[areplay.Report] = []
        await until(lambda: reports.extend(actors.reports()) or reports)
        assert "16 of 16 rows of its inbox are not yet taken" in str(reports[0].values["error"])
        (wait,) = (wait for wait in replay.statistics().waits if wait.who == "actor 0")
        assert "its rows may not be written yet: SamplesPerInsert(4" in wait.reason
        assert wait.waited_s > 0
        assert replay.statistics().rows_inserted == 26, "10, and what the buffer allows"
        waiting = asyncio.create_task(actors.wait())
        while not waiting.done():
            with suppress(areplay.WaitTimeout, areplay.Stalled):  # stalled once the actor has returned
                (await batches.get(0.1)).release()
        await waiting
        await until(lambda: replay.statistics().rows_inserted == 200)
        assert list(lives(replay).values()) == [200]


async def test_the_owner_that_a_limiter_holds_can_be_cancelled() -> None:
    """Nothing of a cancelled add or extend is written or counted; the next one is."""
    limiter = areplay.SamplesPerInsert(1.0, min_size_to_sample=1, error_buffer=16.0)
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.batches(batch_size=8, limiter=limiter, timeout_s=30.0) as batches,
    ):
        await replay.extend(rows(OWNER, 1, 0, 17))
        for call in (replay.add(**row(OWNER, 1, 17)), replay.extend(rows(OWNER, 1, 17, 20))):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, 0.05)
        assert replay.statistics().rows_inserted == 17
        assert replay.statistics().waits == ()
        await anext(batches)
        await replay.extend(rows(OWNER, 1, 17, 25))
        assert list(lives(replay).values()) == [25]
        waiting = asyncio.create_task(replay.add(**row(OWNER, 1, 25)))
        await until(lambda: any(wait.who == "owner" for wait in replay.statistics().waits))
        await batches.close()
        await waiting  # with the stream goes what it asked for


async def test_the_owner_is_told_of_the_limiter_that_has_room_for_a_part_of_its_rows() -> None:
    """An extend waits for room for all of its steps; where there is room for some, nothing else is blamed."""
    limiter = areplay.SamplesPerInsert(1.0, min_size_to_sample=1, error_buffer=16.0)
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.batches(batch_size=8, limiter=limiter, timeout_s=30.0) as batches,
    ):
        await replay.extend(rows(OWNER, 1, 0, 10))
        waiting = asyncio.create_task(replay.extend(rows(OWNER, 1, 10, 22)))
        await until(lambda: replay.statistics().waits)
        (wait,) = replay.statistics().waits
        assert wait.who == "owner" and "not be written yet: SamplesPerInsert(1, " in wait.reason
        await anext(batches)
        await waiting
        assert replay.statistics().waits == ()


async def test_a_learner_whose_limiter_no_actor_can_open_any_more_is_stalled() -> None:
    """All actors have returned, and what they left is not enough for another batch."""
    limiter = areplay.SamplesPerInsert(1.0, min_size_to_sample=5, error_buffer=8.0)
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.batches(batch_size=8, limiter=limiter, timeout_s=60.0) as batches,
        replay.actors(workers.hand_in, 1, args=(8,)) as actors,
    ):
        await actors.wait()
        with pytest.raises(areplay.Stalled, match=r"steps are missing.*0 actors alive.*no more rows can come"):
            while True:
                await anext(batches)
        assert batches.statistics().batches_delivered == 1


async def test_a_selector_of_rows_that_are_gone_makes_nobody_wait_without_a_word() -> None:
    """Of a user's, that remembers indices: `sample` says it, a learner in a stream waits with the reason, its loop
    turning, and goes on when the rows come; the sampler that finds nothing ends when it is asked to."""
    async with areplay.Replay(SPEC, 64, block_rows=16) as replay:
        await replay.extend(rows(OWNER, 1, 0, 64))
        await replay.extend(rows(OWNER, 1, 64, 96))
        selector = workers.Remembered([3, 5, 130])
        with pytest.raises(areplay.Stalled, match=r"64 rows, of which Remembered\(\) drew none that makes Rows\(\)"):
            replay.sample(16, selector=selector)
        async with replay.batches(batch_size=8, selector=selector, grace_s=20.0) as batches:
            taking = asyncio.create_task(anext(batches))
            said = r"learner waits: Remembered() has drawn none of the 64 rows that makes Rows() yet"
            await until(lambda: any(said in wait.reason for wait in replay.statistics().waits))
            await replay.extend(rows(OWNER, 1, 96, 140))
            assert set((await taking).indices.tolist()) == {130}
        assert [member.child.exit.code for member in batches._crew.members] == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "way, said", [("raises", "LookupError: no such rows"), ("floats", "TypeError: Remembered.draw must return int64")]
)
async def test_a_selector_that_draws_what_it_may_not_ends_its_sampler_with_its_words(way: str, said: str) -> None:
    """In a stream SamplerFailed with the traceback; in `sample` the error itself, and the next call works."""
    selector = workers.Remembered([3, 5], way)
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(rows(OWNER, 1, 0, 64))
        with pytest.raises((LookupError, TypeError), match=said.split(": ")[1]):
            replay.sample(16, selector=selector)
        async with replay.batches(batch_size=8, selector=selector, max_restarts=0, timeout_s=30.0) as batches:
            with pytest.raises(areplay.SamplerFailed, match=said):
                await anext(batches)
        assert len(replay.sample(16)) > 0


async def test_a_queue_in_order_that_nobody_takes_from_holds_its_writers() -> None:
    """Fifo keeps what was not delivered: the owner's add waits, says so, can be cancelled, and goes on when the learner
    takes what is there."""
    async with (
        areplay.Replay(SPEC, 64, block_rows=16) as replay,
        replay.batches(batch_size=8, selector=areplay.Fifo(), prefetch=2, timeout_s=30.0) as batches,
    ):
        number = 0
        with pytest.raises(TimeoutError):
            while True:
                await asyncio.wait_for(replay.add(**row(OWNER, 1, number)), 0.3)
                number += 1
        assert 32 <= number <= 64
        assert replay.statistics().rows_inserted == number
        seen: list[int] = []
        while len(seen) + 8 <= number:
            seen += (await anext(batches))["number"].tolist()
        await replay.add(**row(OWNER, 1, number))
        assert seen == np.arange(len(seen)).tolist()
