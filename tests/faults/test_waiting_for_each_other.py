"""Row 17: every wait has a reason and an end, also where a limiter or a queue that keeps its rows
holds one side up."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

import numpy as np
import pytest

import areplay
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, lives, row, rows
from tests.processes.watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


NEVER_OPEN = [
    (
        lambda: areplay.SamplesPerInsert(1.0, 100, error_buffer=4.0),
        r"error_buffer=4 could let "
        r"learner and actors",
    ),
    (lambda: areplay.SamplesPerInsert(64.0, 1, error_buffer=35.0), r"must be at least 36"),
    (lambda: areplay.SamplesPerInsert(1.0, 100_000), r"min_size_to_sample must be"),
    (lambda: areplay.MinSize(100_000), r"min_size_to_sample must be"),
    (lambda: areplay.SamplesPerInsert(0.0, 1), r"samples_per_insert must be a number above 0"),
    (
        lambda: areplay.SamplesPerInsert(float("nan"), 1),
        r"samples_per_insert must be a number "
        r"above 0",
    ),
    (lambda: areplay.SamplesPerInsert(1.0, 0), r"min_size_to_sample must be"),
    (
        lambda: areplay.SamplesPerInsert(1.0, 1, error_buffer=-1.0),
        r"error_buffer must be a number "
        r"above 0",
    ),
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
    """timeout_s of the loop and of get(); the limiter's numbers are in the text; with the missing
    rows it goes on."""
    limiter = areplay.SamplesPerInsert(1.0, min_size_to_sample=10, error_buffer=16.0)
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 10))
        async with replay.batches(batch_size=8, limiter=limiter, timeout_s=0.1) as batches:
            for _ in range(2):
                await anext(batches)
            said = (
                r"8 steps are missing until the next batch, by SamplesPerInsert\(1.*10 steps "
                r"inserted, 16 items"
            )
            with pytest.raises(areplay.WaitTimeout, match=said):
                await anext(batches)
            with pytest.raises(areplay.WaitTimeout, match=said):
                await batches.get(0.05)
            await replay.extend(rows(OWNER, 1, 10, 18))
            await batches.get(30.0)
            assert batches.statistics().limiter is not None


async def test_actors_that_a_limiter_holds_are_told_and_can_give_up() -> None:
    """InboxFull after add_timeout_s; the learner's side names the limiter. The rows that waited are
    stored once when the learner goes on."""
    limiter = areplay.SamplesPerInsert(4.0, min_size_to_sample=10, error_buffer=64.0)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=64, limiter=limiter, timeout_s=30.0) as batches,
        replay.actors(
            workers.report_full_inbox, 1, args=(200,), inbox_rows=16, add_timeout_s=0.2
        ) as actors,
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
            # stalled once the actor has returned
            with suppress(areplay.WaitTimeout, areplay.Stalled):
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
    """An extend waits for room for all of its steps; where there is room for some, nothing else is
    blamed."""
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
        with pytest.raises(
            areplay.Stalled,
            match=r"steps are missing.*0 actors alive.*no more "
            r"rows can come",
        ):
            while True:
                await anext(batches)
        assert batches.statistics().batches_delivered == 1


STEPS = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))


def vector(width: int, number: int = 0) -> dict[str, np.ndarray]:
    """A step of so many environments, in which no episode ends."""
    zeros = np.zeros(width, np.int64)
    return {
        "obs": zeros + number,
        "action": zeros,
        "reward": zeros,
        "terminated": zeros > 0,
        "truncated": zeros > 0,
    }


# Of a vector of so many environments the limiter lets so many steps in; then its room is none, or
# less than a step, or the number that the first batch waits for is not reached.
ROOM = {
    "none": (areplay.SamplesPerInsert(1.0, 10, 38.0), 16, r"lets none in before a batch is taken"),
    "less than a step": (
        areplay.SamplesPerInsert(1.0, 10, 33.0),
        16,
        r"no more than 11 steps in before a batch is taken, and add or extend has 16 at once",
    ),
    "too little for min_size": (
        areplay.SamplesPerInsert(1.0, 130, 40.0),
        62,
        r"no more than 46 steps in",
    ),
}


@pytest.mark.parametrize("limiter, width, said", ROOM.values(), ids=ROOM)
async def test_a_limiter_and_a_vector_that_wait_for_each_other_are_stalled(
    limiter: areplay.SamplesPerInsert, width: int, said: str
) -> None:
    """The owner's steps, of which all of a vector or none are written: the learner is told, and
    where no learner waits the owner. Nothing of that step is written. When the stream is closed, it
    can be."""
    item = areplay.Transitions(1 if width == 62 else 5)

    async def write(replay: areplay.Replay) -> None:
        for number in range(100):
            await replay.add(**vector(width, number))

    async with areplay.Replay(STEPS, 1_024) as replay:
        replay.autoreset_mode = "Disabled"
        async with replay.batches(item, 4, limiter=limiter, timeout_s=60.0) as batches:
            writing = asyncio.create_task(write(replay))
            with pytest.raises(areplay.Stalled, match=said):
                await anext(batches)
            inserted = replay.statistics().rows_inserted
            assert inserted % width == 0
            with pytest.raises(areplay.Stalled, match=f"it never can, since .*{said}"):
                async with asyncio.timeout(60):
                    await writing
            with pytest.raises(areplay.Stalled, match="it never can"):
                await replay.add(**vector(width))
            with pytest.raises(areplay.Stalled, match=said):  # though no call waits any more
                await anext(batches)
            assert replay.statistics().rows_inserted == inserted
            assert replay.statistics().waits == ()
        await replay.add(**vector(width))


async def test_room_for_less_than_a_step_is_no_standstill_while_an_actor_is_alive() -> None:
    """It may hand in single steps; those complete items, the learner goes on, and lets the vector
    in."""
    limiter = areplay.SamplesPerInsert(1.0, 10, 33.0)
    async with (
        areplay.Replay(STEPS, 1_024) as replay,
        replay.batches(areplay.Transitions(5), 4, limiter=limiter, timeout_s=60.0) as batches,
        replay.actors(
            workers.steps_when_told,
            1,
            args=(8,),
            weights=(weights := areplay.Weights({"w": np.zeros(1)})),
        ),
    ):
        for number in range(2):
            await replay.add(**vector(16, number))
        waiting = asyncio.create_task(replay.add(**vector(16, 2)))
        taking = asyncio.create_task(anext(batches))
        slots = batches._stream.queue.slots
        await until(lambda: slots.board.found_no_items_since(32))
        batches._stream.look_again()
        said = "no Transitions(n_step=5, gamma=0.99) can be made of the 32 rows yet; 1 actors alive"
        (reason,) = (wait.reason for wait in replay.statistics().waits if wait.who == "learner")
        assert (
            said in reason
            and "Replay.add or extend waits" in reason
            and "SamplesPerInsert" in reason
        )
        assert not taking.done() and not waiting.done()
        weights.publish({"w": np.ones(1)})
        assert len((await taking).indices) == 4
        for _ in range(3):
            await anext(batches)
        await waiting


async def test_rows_that_do_not_fit_beside_those_that_a_queue_keeps_make_nobody_wait_for_ever() -> (
    None
):
    """The owner's extend needs two blocks, of which one is free, or none but what is left of its
    own; the queue lacks items for a batch. Streams that ended have left a row in each of the
    others."""
    for actors, said in (
        (2, "more rows at once than there is room for beside"),
        (3, "all 4 blocks hold rows"),
    ):
        async with (
            areplay.Replay(SPEC, 64, block_rows=16) as replay,
            replay.batches(batch_size=32, selector=areplay.Fifo(), timeout_s=60.0) as batches,
        ):
            async with replay.actors(workers.hand_in, actors, args=(1,)) as group:
                await group.wait()
            await replay.add(**row(OWNER, 1, 0))
            waiting = asyncio.create_task(replay.extend(rows(OWNER, 1, 1, 21)))
            with pytest.raises(
                areplay.Stalled,
                match=rf"{actors + 1} of 32 items for a batch of "
                rf"Fifo.*{said}",
            ):
                await anext(batches)
            with pytest.raises(areplay.Stalled, match="it never can"):
                await waiting
            with pytest.raises(areplay.Stalled, match=said):
                await anext(batches)
            assert len(replay) == actors + 1


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_full_ring_is_enough_for_the_first_batch_though_a_step_does_not_fit(
    is_late: bool,
) -> None:
    """The learner waits for as many rows as the ring has; the next step of ten does not fit beside
    those that the queue keeps. Batches come and the step is written, also where the learner comes
    late."""
    async with (
        areplay.Replay(STEPS, 256, block_rows=16) as replay,
        replay.batches(
            batch_size=8, selector=areplay.Fifo(), min_size_to_sample=256, timeout_s=60.0
        ) as batches,
    ):
        replay.autoreset_mode = "Disabled"
        for number in range(25):
            await replay.add(**vector(10, number))
        waiting = asyncio.create_task(replay.add(**vector(10, 25)))
        if is_late:
            await until(lambda: any(wait.who == "owner" for wait in replay.statistics().waits))
        while not waiting.done():
            await anext(batches)
            await asyncio.sleep(0)
        assert len(await waiting) == 10


async def test_a_queue_that_keeps_the_blocks_for_its_own_learner_makes_no_other_one_stalled() -> (
    None
):
    """Of two, one has a batch that its learner may take at any time; then rows come in, and the
    other goes on."""
    async with (
        areplay.Replay(SPEC, 64, block_rows=16) as replay,
        replay.batches(batch_size=8, selector=areplay.Fifo(), timeout_s=60.0) as slow,
        replay.batches(batch_size=30, selector=areplay.Fifo(), timeout_s=60.0) as quick,
    ):
        await replay.extend(rows(OWNER, 1, 0, 32))
        await replay.extend(rows(OWNER, 1, 32, 62))
        for _ in range(2):
            await anext(quick)
        waiting = asyncio.create_task(replay.extend(rows(OWNER, 1, 62, 92)))
        taking = asyncio.create_task(anext(quick))
        await until(
            lambda: {wait.who for wait in replay.statistics().waits} == {"owner", "learner"}
        )
        for _ in range(3):
            quick._stream.look_again()
            await asyncio.sleep(0.01)
        assert not taking.done() and not waiting.done()
        while not waiting.done():
            await anext(slow)
            await asyncio.sleep(0)
        assert (await taking)["number"].tolist() == list(range(60, 90))


async def test_a_queue_that_waits_for_one_sampler_names_it() -> None:
    """Which one, its process, what it has not filled, and that it is stopped; continued, all goes
    on in order."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        await replay.extend(rows(OWNER, 1, 0, 512))
        fifo = areplay.Fifo()
        async with replay.batches(
            batch_size=8, samplers=2, prefetch=2, selector=fifo, timeout_s=60.0
        ) as batches:
            await until(lambda: batches.statistics().ready >= 2)
            pid = batches.statistics().samplers[1].pid
            os.kill(pid, signal.SIGSTOP)
            seen, taken = [], 0

            def waits() -> str:
                return " ".join(wait.reason for wait in replay.statistics().waits)

            taking = asyncio.create_task(anext(batches))
            while "stopped" not in waits():
                if taking.done():
                    seen += taking.result()["number"].tolist()
                    taken, taking = taken + 1, asyncio.create_task(anext(batches))
                await asyncio.sleep(0.005)
            said = (
                f"learner waits: sampler 1 (pid {pid}, stopped: kill -CONT {pid} lets it go "
                "on) has not filled batch"
            )
            assert f"{said} {taken + 1} of Fifo()" in waits()
            os.kill(pid, signal.SIGCONT)
            while True:
                seen += (await taking)["number"].tolist()
                if len(seen) == 512:
                    break
                taking = asyncio.create_task(anext(batches))
            assert seen == list(range(512))


async def test_a_selector_of_rows_that_are_gone_makes_nobody_wait_without_a_word() -> None:
    """Of a user's, that remembers indices: `sample` says it, a learner in a stream waits with the
    reason, its loop turning, and goes on when the rows come; the sampler that finds nothing ends
    when it is asked to."""
    async with areplay.Replay(SPEC, 64, block_rows=16) as replay:
        await replay.extend(rows(OWNER, 1, 0, 64))
        await replay.extend(rows(OWNER, 1, 64, 96))
        selector = workers.Remembered([3, 5, 130])
        with pytest.raises(
            areplay.Stalled,
            match=r"64 rows, of which Remembered\(\) drew no row "
            r"that makes Rows\(\)",
        ):
            replay.sample(16, selector=selector)
        async with replay.batches(batch_size=8, selector=selector, grace_s=20.0) as batches:
            samplers = batches._stream.queue.supervisor.workers
            taking = asyncio.create_task(anext(batches))
            said = r"learner waits: Remembered() has drawn no row, of 64, that makes Rows() yet"
            await until(lambda: any(said in wait.reason for wait in replay.statistics().waits))
            await replay.extend(rows(OWNER, 1, 96, 140))
            assert set((await taking).indices.tolist()) == {130}
        assert [member.child.exit.code for member in samplers] == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "way, said",
    [
        ("raises", "LookupError: no such rows"),
        ("floats", "TypeError: Remembered.draw must return int64"),
    ],
)
async def test_a_selector_that_draws_what_it_may_not_ends_its_sampler_with_its_words(
    way: str, said: str
) -> None:
    """In a stream SamplerFailed with the traceback; in `sample` the error itself, and the next call
    works."""
    selector = workers.Remembered([3, 5], way)
    async with areplay.Replay(SPEC, 64) as replay:
        await replay.extend(rows(OWNER, 1, 0, 64))
        with pytest.raises((LookupError, TypeError), match=said.split(": ")[1]):
            replay.sample(16, selector=selector)
        async with replay.batches(
            batch_size=8, selector=selector, max_restarts=0, timeout_s=30.0
        ) as batches:
            with pytest.raises(areplay.SamplerFailed, match=said):
                await anext(batches)
        assert len(replay.sample(16)) > 0


async def test_a_queue_in_order_that_nobody_takes_from_holds_its_writers() -> None:
    """Fifo keeps what was not delivered: the owner's add waits, says so, can be cancelled, and goes
    on when the learner takes what is there."""
    async with (
        areplay.Replay(SPEC, 64, block_rows=16) as replay,
        replay.batches(
            batch_size=8, selector=areplay.Fifo(), prefetch=2, timeout_s=30.0
        ) as batches,
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


async def test_episodes_that_are_broken_off_keep_no_room_in_a_small_ring() -> None:
    """Long items of a vector in few blocks: steps whose episode was broken off never become items,
    so a Fifo keeps no block for them, and the learner gets all other items without `Stalled`."""
    spec = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))
    environments, steps, episodes, length = 8, 12, 6, 8
    found: list[int] = []

    async def learn(batches: areplay.Batches) -> None:
        async for batch in batches:
            found.append(int(batch["obs"][0, 0]))

    async with areplay.Replay(spec, 128) as replay:
        fifo = areplay.Fifo()
        sequences = areplay.Sequences(length)
        async with replay.batches(sequences, batch_size=1, selector=fifo) as batches:
            learner = asyncio.create_task(learn(batches))
            for number in range(episodes * steps):
                await replay.add(
                    obs=1_000 * np.arange(environments) + number,
                    action=np.zeros(environments, np.int64),
                    reward=np.zeros(environments, np.float32),
                    terminated=np.zeros(environments, bool),
                    truncated=np.zeros(environments, bool),
                )
                if number % steps == steps - 1:
                    replay.end_episode()
            begins = [
                1_000 * environment + number
                for environment in range(environments)
                for number in range(episodes * steps)
                if number % steps <= steps - length
            ]
            await until(lambda: learner.done() or len(found) >= len(begins))
            assert not learner.done(), learner.exception()
            learner.cancel()
            with suppress(asyncio.CancelledError):
                await learner
    assert sorted(found) == begins
