"""Rate limiting of real actors, samplers and the learner: who is ahead is held, costs nothing, and
loses nothing."""

from __future__ import annotations

import asyncio
import math
import os
import re
import resource
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._processes import waiter as waiting

from . import workers
from .oracle import OWNER, SPEC, check_ledgers, ledgers, lives, rows
from .watching import is_running, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

BATCH_SIZE, RATIO, BUFFER = 8, 2.0, 32.0
HELD_AT = 1 + int(BUFFER / RATIO)  # steps, when no batch was taken


def limiter(
    ratio: float = RATIO, min_size: int = 1, buffer: float = BUFFER
) -> areplay.SamplesPerInsert:
    """So many samples for each step."""
    return areplay.SamplesPerInsert(ratio, min_size, buffer)


def the_limiter(replay: areplay.Replay) -> areplay.LimiterStatistics:
    """Its numbers, as the learner sees them."""
    record = replay.statistics().batches[0].limiter
    assert record is not None
    return record


def all_are_held(replay: areplay.Replay, actors: areplay.Actors) -> bool:
    """Whether every actor waits for room in a full inbox, and the coordinator has seen that its
    rows must wait."""
    records, names = actors.statistics(), held(replay)
    return all(
        record.waiting_rows == record.inbox_rows
        and record.waited_s > 0
        and f"actor {record.index}" in names
        for record in records
    )


def held(replay: areplay.Replay) -> set[str]:
    """Whose rows the coordinator leaves where they are."""
    return {
        wait.who for wait in replay.statistics().waits if "may not be written yet" in wait.reason
    }


def has_inserted(replay: areplay.Replay, steps: int) -> bool:
    """Whether just so many rows are in the ring."""
    return replay.statistics().rows_inserted == steps


def has_successor(actors: areplay.Actors, pid: int) -> bool:
    """Whether actor 0 is another process than that one."""
    return actors.statistics()[0].pid != pid and actors.statistics()[0].is_alive


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    """Processor time that this process has used, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def is_calm(pids: list[int], over_s: float = 0.6, most: float = 0.1) -> bool:
    """Whether neither this process nor any of those uses more than a tenth of a processor."""
    before, mine = [cpu_s(pid) for pid in pids], own_cpu_s()
    await asyncio.sleep(over_s)
    used = [cpu_s(pid) - was for pid, was in zip(pids, before, strict=True)]
    return max(own_cpu_s() - mine, *used) <= most * over_s


class Watch:
    """Counts by itself what is written and delivered, and asserts at each look that the error is
    within the buffer."""

    def __init__(
        self, replay: areplay.Replay, ratio: float = RATIO, buffer: float = BUFFER
    ) -> None:
        self.replay, self.ratio, self.buffer = replay, ratio, buffer
        self.samples = self.looks = 0
        self.lowest = self.highest = 0.0

    def look(self, samples: int = 0) -> None:
        """After so many more samples."""
        self.samples += samples
        error = self.ratio * (self.replay.statistics().rows_inserted - 1) - self.samples
        self.lowest, self.highest = min(self.lowest, error), max(self.highest, error)
        assert error <= self.buffer
        seen = the_limiter(self.replay)
        assert -self.buffer <= seen.error <= self.buffer or seen.samples == 0
        assert seen.samples == self.samples
        assert error >= -self.buffer - 64 * self.ratio or samples == 0, (
            "but for a chunk on its way into the ring"
        )
        self.looks += 1


@pytest.mark.parametrize("pace", ["learner ahead", "actors ahead"])
async def test_the_ratio_is_kept_at_each_instant(pace: str) -> None:
    """Whoever is faster, the error stays within the buffer, and in the end the counts are in the
    ratio."""
    actor_pause_s = 0.004 if pace == "learner ahead" else 0.0
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(workers.hand_in_until_stopped, 2, args=(actor_pause_s,), inbox_rows=16),
    ):
        watch, wanted = Watch(replay), 100
        for _ in range(wanted):
            async with asyncio.timeout(30):
                (await batches.get()).release()
            watch.look(BATCH_SIZE)
            if pace == "actors ahead":
                await asyncio.sleep(0.002)
                watch.look()
        seen = the_limiter(replay)
        assert abs(RATIO * (seen.inserts - 1) - wanted * BATCH_SIZE) <= BUFFER
        record = replay.statistics().batches[0]
        if pace == "learner ahead":
            assert watch.lowest < 0 and record.learner_waits > wanted / 4
        else:
            assert watch.highest > BUFFER / 2


async def test_actors_that_are_ahead_are_held_and_named() -> None:
    """The ring gets what the limiter lets pass, the inboxes fill, the statistics say who waits, how
    long and for what; and nobody uses the processor. Each batch lets some in."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(workers.hand_in_until_stopped, 3, inbox_rows=16) as actors,
    ):
        await until(lambda: all_are_held(replay, actors))
        assert replay.statistics().rows_inserted == HELD_AT
        seen = the_limiter(replay)
        assert (seen.holds_writers, seen.holds_learner, seen.inserts, seen.error) == (
            True,
            False,
            HELD_AT,
            BUFFER,
        )
        before = {wait.who: wait.waited_s for wait in replay.statistics().waits}
        assert before.keys() == {"actor 0", "actor 1", "actor 2"}
        for wait in replay.statistics().waits:
            assert wait.reason == (
                "its rows may not be written yet: SamplesPerInsert(2, min_size_to_sample=1, "
                "error_buffer=32): 17 steps inserted, 0 items handed to the learner, error 32; the "
                "learner has to take a batch"
            )
        pids = [record.pid for record in actors.statistics()]
        assert await is_calm(pids) or await is_calm(pids), "nobody waits busily"
        assert all(wait.waited_s >= before[wait.who] + 0.5 for wait in replay.statistics().waits)
        assert all(record.waited_s >= 0.5 for record in actors.statistics())
        assert replay.statistics().rows_inserted == HELD_AT
        for batch in range(1, 6):
            (await batches.get(30.0)).release()
            expected = HELD_AT + batch * int(BATCH_SIZE / RATIO)
            await until(partial(has_inserted, replay, expected))
        assert {actor for actor, _ in lives(replay)} == {0, 1, 2}, "they take turns"


async def test_a_learner_that_is_ahead_is_held() -> None:
    """It waits, without using the processor, until rows come that let it go on, and says how
    many."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter(min_size=40)) as batches,
    ):
        sampler = batches._stream.queue.supervisor.workers[0].child
        assert sampler is not None
        task = asyncio.create_task(batches.get())
        await replay.extend(rows(OWNER, 1, 0, 39))
        assert await is_calm([sampler.pid]) or await is_calm([sampler.pid])
        assert not task.done(), "one row is missing to min_size_to_sample"
        await replay.add(**{name: column[0] for name, column in rows(OWNER, 1, 39, 40).items()})
        (await task).release()
        for _ in range(3):
            (await batches.get(30.0)).release()
        assert the_limiter(replay).error == -BUFFER and the_limiter(replay).holds_learner
        task = asyncio.create_task(batches.get())
        await until(lambda: [wait.who for wait in replay.statistics().waits] == ["learner"])
        assert await is_calm([sampler.pid]) or await is_calm([sampler.pid])
        (wait,) = replay.statistics().waits
        assert wait.reason.startswith(
            "learner waits: 4 steps are missing until the next batch, by SamplesPerInsert(2, "
            "min_size_to_sample=40, error_buffer=32): 40 steps inserted, 32 items handed out; 0 "
            "actors alive"
        )
        await until(
            lambda: replay.statistics().batches[0].ready > 0,
            what="a batch is ready, and may not be had",
        )
        await replay.extend(rows(OWNER, 1, 40, 43))
        await asyncio.sleep(0.05)
        assert not task.done()
        await replay.extend(rows(OWNER, 1, 43, 44))
        async with asyncio.timeout(30):
            (await task).release()
        with pytest.raises(areplay.WaitTimeout, match=r"4 steps are missing until the next batch"):
            await batches.get(0.05)


async def test_a_killed_actor_that_was_held_loses_nothing(tmp_path: Path) -> None:
    """What it had handed in comes in when the learner goes on, in a stream of its own, as does its
    successor's."""
    async with areplay.Replay(SPEC, 100_000) as replay:
        async with replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches:
            async with replay.actors(
                workers.ledgered, 2, args=(str(tmp_path),), inbox_rows=64
            ) as actors:
                inserted = HELD_AT
                for killed in range(1, 3):
                    await until(partial(has_inserted, replay, inserted))
                    await until(lambda: held(replay) == {"actor 0", "actor 1"})
                    await until(lambda: all(record.waited_s > 0 for record in actors.statistics()))
                    pid = actors.statistics()[0].pid
                    os.kill(pid, signal.SIGKILL)
                    await until(partial(has_successor, actors, pid))
                    assert actors.statistics()[0].restarts == killed
                    assert replay.statistics().rows_inserted == inserted, "its death lets no row in"
                    for _ in range(killed * 4):
                        (await batches.get(30.0)).release()
                        inserted += int(BATCH_SIZE / RATIO)
                await until(lambda: all(record.waited_s > 0 for record in actors.statistics()))
            left = replay._opened().coordinator.has_rows
        await until(lambda: not replay._opened().coordinator.has_rows)
        assert left, "rows were held to the end"
        stored = check_ledgers(replay, tmp_path)
        assert (
            len(ledgers(tmp_path)) == 4
            and sum(stored.values()) == replay.statistics().rows_inserted
        )


async def test_actors_that_are_held_leave_quickly_and_their_rows_come_in_later(
    tmp_path: Path,
) -> None:
    """Leaving their context does not wait for the learner: as it goes on, all that was acknowledged
    comes in, by and by, and by the ratio."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
    ):
        async with replay.actors(
            workers.ledgered, 3, args=(str(tmp_path),), inbox_rows=50, grace_s=20.0
        ) as actors:
            await until(lambda: all(record.waited_s > 0 for record in actors.statistics()))
            pids = [record.pid for record in actors.statistics()]
            started = time.monotonic()
        assert time.monotonic() - started < 15.0
        assert actors.failures == [] and not any(is_running(pid) for pid in pids)
        assert replay.statistics().rows_inserted == HELD_AT
        assert {wait.who for wait in replay.statistics().waits} == {"actor 0", "actor 1", "actor 2"}
        acked = sum(count for count, _ in ledgers(tmp_path).values())
        watch = Watch(replay)
        while replay.statistics().rows_inserted < acked:
            (await batches.get(30.0)).release()
            watch.look(BATCH_SIZE)
            await asyncio.sleep(0.001)
        await until(lambda: not replay._opened().coordinator.has_rows)
        assert replay.statistics().waits == ()
        check_ledgers(replay, tmp_path)


async def test_rows_that_are_held_come_in_when_the_limiters_stream_closes(tmp_path: Path) -> None:
    """Those in inboxes without an actor, too; and actors that are held go on."""
    async with areplay.Replay(SPEC, 100_000) as replay, AsyncExitStack() as others:
        batches = await others.enter_async_context(
            replay.batches(batch_size=BATCH_SIZE, limiter=limiter())
        )
        async with replay.actors(workers.ledgered, 1, args=(str(tmp_path),), inbox_rows=50) as gone:
            await until(lambda: gone.statistics()[0].waited_s > 0)
        held = await others.enter_async_context(
            replay.actors(workers.ledgered, 1, args=(str(tmp_path),), inbox_rows=50)
        )
        await until(lambda: held.statistics()[0].waited_s > 0)
        assert replay.statistics().rows_inserted == HELD_AT
        await batches.close()
        await until(lambda: replay.statistics().rows_inserted > 2_000)
        await held.close()
        check_ledgers(replay, tmp_path)


@pytest.mark.parametrize("first", ["batches", "replay"])
async def test_leaving_the_whole_replay_while_rows_are_held_is_quick(
    tmp_path: Path, first: str
) -> None:
    """Whichever of stream and replay is left first, with the actors left to the replay. What was
    acknowledged is in."""
    async with AsyncExitStack() as stack:
        replay = await stack.enter_async_context(areplay.Replay(SPEC, 100_000))
        actors = replay.actors(
            workers.ledgered, 2, args=(str(tmp_path),), inbox_rows=50, grace_s=20.0
        )
        batches = replay.batches(batch_size=BATCH_SIZE, limiter=limiter())
        await (stack.enter_async_context(batches) if first == "batches" else batches.__aenter__())
        await actors.__aenter__()  # which the replay closes
        await until(lambda: all(record.waited_s > 0 for record in actors.statistics()))
        learner = asyncio.create_task(
            replay.add(**{n: c[0] for n, c in rows(OWNER, 1, 0, 1).items()})
        )
        await until(lambda: "owner" in {wait.who for wait in replay.statistics().waits})
        ring = replay._opened().ring
        assert ring is not None
        started = time.monotonic()
    assert time.monotonic() - started < 15.0
    (outcome,) = await asyncio.gather(learner, return_exceptions=True)
    assert isinstance(outcome, (int, areplay.Closed)), "it was written, or it was told"
    promised = ledgers(tmp_path)
    acked, pending = (sum(counts[k] for counts in promised.values()) for k in (0, 1))
    assert acked <= ring.rows_inserted[0] - isinstance(outcome, int) <= pending
    assert acked > HELD_AT


STEPS = areplay.Spec.steps(obs=((2,), "float32"), action=((), "int64"))


def steps(count: int) -> dict[str, Any]:
    """So many steps of one environment, in one episode."""
    zeros = {name: np.zeros((count, *field.shape), field.dtype) for name, field in STEPS.items()}
    return {**zeros, "next_obs": zeros["obs"]}


async def test_the_last_rows_that_there_is_room_for_are_looked_at_before_giving_up() -> None:
    """Samplers that found nothing among those before are no reason, once more rows are there."""
    async with areplay.Replay(STEPS, 1_000) as replay:
        pace = limiter(1.0, buffer=10.0)
        async with replay.batches(areplay.Sequences(10), batch_size=8, limiter=pace) as batches:
            task = asyncio.create_task(batches.get(30.0))
            await replay.extend(steps(5))
            await until(partial(batches._stream.queue.slots.board.found_no_items_since, 5))
            await replay.extend(steps(6))
            assert the_limiter(replay).holds_writers
            assert (await task)["obs"].shape == (8, 10, 2)


async def test_a_limiter_that_lets_too_few_rows_in_for_an_item_is_named() -> None:
    """No more may be written before a batch is taken, and there is no item among those that are:
    nobody could go on."""
    async with areplay.Replay(STEPS, 1_000) as replay:
        pace = limiter(1.0, buffer=10.0)
        async with replay.batches(areplay.Sequences(10), batch_size=8, limiter=pace) as batches:
            await replay.extend(steps(5))
            with pytest.raises(areplay.SpecMismatch, match="obs"):
                # no item spans what is lost there
                await replay.extend({**steps(1), "obs": np.zeros((1, 3))})
            await replay.extend(steps(6))
            with pytest.raises(
                areplay.Stalled,
                match=r"lets none in before a batch is taken: "
                r"raise .* error_buffer",
            ):
                await batches.get(30.0)


async def test_a_learner_that_can_never_go_on_gets_stalled() -> None:
    """When the actors are gone, with all of their rows written, and the limiter wants more."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(workers.hand_in, 2, args=(30,), inbox_rows=16),
    ):
        delivered = 0
        with pytest.raises(
            areplay.Stalled,
            match=r"1 steps are missing until the next batch, by .*no more rows "
            r"can come",
        ):
            async with asyncio.timeout(30):
                while True:
                    (await batches.get()).release()
                    delivered += 1
        assert replay.statistics().rows_inserted == 60
        assert delivered == (RATIO * (60 - 1) + BUFFER) // BATCH_SIZE, (
            "all that the rows were good for"
        )


async def test_rows_of_actors_that_left_keep_the_learner_from_giving_up(tmp_path: Path) -> None:
    """An actor that returned leaves a full inbox; the learner goes on until the last row of it is
    used up."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(
            workers.ledgered_calls, 1, args=(str(tmp_path), [200], 1), inbox_rows=400
        ) as actors,
    ):
        await actors.wait()
        await until(lambda: the_limiter(replay).holds_writers)
        assert replay.statistics().rows_inserted == HELD_AT and actors.alive == 0
        delivered = 0
        with pytest.raises(areplay.Stalled, match=r"no more rows can come"):
            async with asyncio.timeout(30):
                while True:
                    (await batches.get()).release()
                    delivered += 1
        assert delivered == (RATIO * (200 - 1) + BUFFER) // BATCH_SIZE
        assert list(check_ledgers(replay, tmp_path).values()) == [200]


async def test_options_can_be_changed_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger buffer lets held actors go on, a new ratio holds for what comes, a refused one
    changes nothing."""
    monkeypatch.setattr(waiting, "_LOOK_AGAIN_S", 1_000.0)  # who is held is woken by the change
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
        replay.actors(workers.hand_in_until_stopped, 2, inbox_rows=16),
    ):

        async def has_inserted(steps: int) -> None:
            await until(lambda: replay.statistics().rows_inserted >= steps)
            await until(lambda: the_limiter(replay).holds_writers)
            assert replay.statistics().rows_inserted == steps

        steps = HELD_AT
        await has_inserted(steps)
        (await batches.get(30.0)).release()
        await has_inserted(steps := steps + int(BATCH_SIZE / RATIO))
        batches.limiter = limiter(buffer=2 * BUFFER)
        await has_inserted(steps := steps + int(BUFFER / RATIO))
        with pytest.raises(ValueError, match="for ever"):
            batches.limiter = limiter(1_000.0, buffer=2 * BUFFER)
        assert the_limiter(replay).error == 2 * BUFFER
        batches.limiter = limiter(0.5, buffer=2 * BUFFER)
        assert the_limiter(replay).error == 2 * BUFFER
        for _ in range(20):
            (await batches.get(30.0)).release()
        await has_inserted(steps := steps + 20 * BATCH_SIZE * 2)
        batches.limiter = limiter(100.0, buffer=2 * BUFFER)
        for _ in range(13):  # room for a hundred samples, and so for one step
            (await batches.get(30.0)).release()
        await has_inserted(steps + 1)


async def test_a_learner_that_is_held_goes_on_when_the_buffer_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It need not be asked twice, nor look again by itself."""
    monkeypatch.setattr(waiting, "_LOOK_AGAIN_S", 1_000.0)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()) as batches,
    ):
        await replay.extend(rows(OWNER, 1, 0, 1))
        for _ in range(4):
            (await batches.get(30.0)).release()
        task = asyncio.create_task(batches.get())
        await until(lambda: replay.statistics().waits != ())
        await asyncio.sleep(0.01)
        assert not task.done()
        batches.limiter = limiter(buffer=BUFFER + BATCH_SIZE)
        async with asyncio.timeout(30):
            (await task).release()


async def test_a_long_wait_of_actors_is_warned_of_once_for_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After WARN_AFTER_S, and at growing distances: who waits, and for what, with the numbers."""
    monkeypatch.setattr(waiting, "WARN_AFTER_S", 0.3)
    monkeypatch.setattr(waiting, "_LOOK_AGAIN_S", 0.05)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()),
        replay.actors(workers.hand_in_until_stopped, 3, inbox_rows=16) as actors,
    ):
        await until(lambda: all_are_held(replay, actors))

        def warnings() -> list[str]:
            return [
                r.getMessage()
                for r in caplog.records
                if r.levelname == "WARNING" and "wait" in r.getMessage()
            ]

        await until(
            lambda: any(len(set(re.findall(r"actor \d", warning))) == 3 for warning in warnings())
        )
        count = len(warnings())
        most = 1 + math.log2(max(wait.waited_s for wait in replay.statistics().waits) / 0.3)
        assert count <= most, "after 0.3, 0.6, 1.2, ... s, and not for each actor"
        for warning in warnings():
            assert re.fullmatch(
                r"rows of (actor \d, )*actor \d wait, they may not be written yet: "
                r"SamplesPerInsert\(2, min_size_to_sample=1, error_buffer=32\): 17 steps inserted, "
                r"0 items handed to the learner, error 32; the learner has to take a batch; "
                r"waiting for \d+ s",
                warning,
            )


async def test_a_limiter_serves_one_stream_after_the_other() -> None:
    """It counts anew for each, and holds nobody in between."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        each = limiter()
        for _ in range(2):
            inserted = replay.statistics().rows_inserted
            async with replay.batches(batch_size=BATCH_SIZE, limiter=each):
                await replay.extend(rows(OWNER, 1, 0, HELD_AT - min(inserted, 1)))
                assert the_limiter(replay).holds_writers
            await replay.extend(rows(OWNER, 1, 0, 500))


async def test_streams_of_one_limiter_count_for_themselves() -> None:
    """Each is limited by its own batches; the limiter stays as it was made."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        each = limiter()
        async with (
            replay.batches(batch_size=BATCH_SIZE, limiter=each) as first,
            replay.batches(batch_size=BATCH_SIZE, limiter=each) as second,
        ):
            await replay.extend(rows(OWNER, 1, 0, HELD_AT))
            (await first.get(30.0)).release()
            first.limiter = limiter(buffer=2 * BUFFER)
            one, other = (stream.statistics().limiter for stream in (first, second))
            assert one is not None and other is not None
            assert (one.samples, one.holds_writers) == (BATCH_SIZE, False)
            assert (other.samples, other.holds_writers) == (0, True)
            assert (one.error_buffer, other.error_buffer) == (2 * BUFFER, BUFFER)
            assert second.limiter == each == limiter()


async def test_a_limiter_can_be_replaced_from_when_the_stream_is_made_until_it_is_closed() -> None:
    """Only by one of the same `min_size_to_sample`, and none where there was none: a refused one
    changes nothing."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        batches = replay.batches(batch_size=BATCH_SIZE, limiter=limiter())
        larger = limiter(buffer=2 * BUFFER)
        batches.limiter = larger
        async with batches:
            await replay.extend(rows(OWNER, 1, 0, HELD_AT + int(BUFFER / RATIO)))
            assert the_limiter(replay).holds_writers
            others: list[tuple[Any, type[Exception], str]] = [
                (areplay.MinSize(1), TypeError, "SamplesPerInsert"),
                (None, TypeError, "SamplesPerInsert"),
                (areplay.SamplesPerInsert(RATIO, 7), ValueError, "min_size_to_sample=1 cannot"),
                (limiter(buffer=1.0), ValueError, "for ever"),
            ]
            for other, error, said in others:
                with pytest.raises(error, match=said):
                    batches.limiter = other
                assert batches.limiter is larger
                assert the_limiter(replay).error_buffer == 2 * BUFFER
        with pytest.raises(areplay.Closed):
            batches.limiter = limiter()
        async with replay.batches(batch_size=BATCH_SIZE, min_size_to_sample=3) as unlimited:
            assert unlimited.limiter == areplay.MinSize(3)
            with pytest.raises(TypeError, match="place of another"):
                unlimited.limiter = larger


async def test_two_groups_of_actors_are_told_apart() -> None:
    """Each actor that waits is there, though two of them have the same number."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=BATCH_SIZE, limiter=limiter()),
        replay.actors(workers.hand_in_until_stopped, 1, inbox_rows=16) as one,
        replay.actors(workers.hand_in_until_stopped, 1, inbox_rows=16) as other,
    ):
        await until(lambda: all_are_held(replay, one) and all_are_held(replay, other))
        assert len(replay.statistics().waits) == 2


@pytest.mark.parametrize("min_size", [15, 100])
async def test_a_step_is_one_insert_whenever_it_came(min_size: int, tmp_path: Path) -> None:
    """Ten episodes of one step, of two rows each: added while the stream is open, before that, or
    loaded. A final observation is no insert."""
    spec = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))

    async def add(replay: areplay.Replay) -> None:
        for _ in range(10):
            await replay.add(
                obs=0, action=0, reward=0.0, terminated=True, truncated=False, next_obs=1
            )

    async def counted(replay: areplay.Replay, after: bool = False) -> tuple[int, float]:
        made = areplay.SamplesPerInsert(1.0, min_size, 40.0)
        async with replay.batches(batch_size=4, limiter=made):
            if after:
                await add(replay)
            seen = the_limiter(replay)
            return seen.inserts, seen.error

    async with areplay.Replay(spec, 1_024) as replay:
        assert await counted(replay, after=True) == (10, 10.0 - min_size)
        assert await counted(replay) == (10, 10.0 - min_size)
        await replay.save(tmp_path)
    async with await areplay.Replay.load(tmp_path) as replay:
        assert await counted(replay) == (10, 10.0 - min_size)
