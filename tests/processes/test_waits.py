"""Waits: backpressure both ways, each wait with an end, and a word about who waits for whom if it
takes long."""

from __future__ import annotations

import asyncio
import math
import os
import time

import pytest

import areplay
from areplay._processes import waiter as waiting

from . import workers
from .oracle import OWNER, SPEC, lives, rows
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_an_actor_whose_rows_nobody_takes_gets_inbox_full_and_can_go_on() -> None:
    """While the coordinator is held up, add and flush end after add_timeout_s with the counts in
    their text, nothing is handed in twice or lost, and when rows are taken again all goes on."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.report_full_inbox, 1, args=(3_000,), inbox_rows=16, add_timeout_s=0.3
        ) as actors:
            reports: list[areplay.Report] = []
            await until(lambda: len(replay) > 50)
            with replay._opened().registry:  # the coordinator needs it to write
                await until(lambda: reports.extend(actors.reports()) or reports)
                await until(lambda: actors.statistics()[0].waiting_rows == 16)
            await actors.wait()
            first = str(reports[0].values["error"])
            assert first == (
                "actor 0 waits for the coordinator: 16 of 16 rows of its inbox are not yet taken; "
                "the learner may be slower than its limiter or selector allows; "
                "gave up after 0.3 s, raise add_timeout_s to wait longer"
            )
        (stored,) = lives(replay).values()
        assert stored == 3_000


async def test_inbox_full_that_nobody_catches_ends_the_actor_with_that_text() -> None:
    """The error travels as the actor's failure; its rows are stored all the same."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.hand_in_until_stopped, 1, inbox_rows=16, add_timeout_s=0.2, max_restarts=0
        ) as actors:
            await until(lambda: len(replay) > 50 or actors.alive == 0)
            (pid,) = (record.pid for record in actors.statistics())
            with replay._opened().registry:
                await until(
                    lambda: (
                        not os.path.exists(f"/proc/{pid}") or not actors.statistics()[0].is_alive
                    )
                )
            with pytest.raises(
                areplay.ActorFailed,
                match=r"InboxFull: actor 0 waits for the "
                r"coordinator: 16 of 16",
            ):
                await actors.wait()
            handed_in = actors.statistics()[0].rows
        assert list(lives(replay).values()) == [handed_in]


async def test_a_learner_that_blocks_its_loop_holds_nobody_up() -> None:
    """Rows come in while the learner's loop is blocked: the coordinator does not live on that
    loop."""
    async with (
        areplay.Replay(SPEC, 1_000_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1, inbox_rows=64) as actors,
    ):
        await until(lambda: actors.statistics()[0].rows > 0)
        before, deadline = replay.statistics().rows_inserted, time.monotonic() + 20.0
        # ten inboxes full, and no turn of the loop
        while replay.statistics().rows_inserted < before + 640:
            assert time.monotonic() < deadline
            time.sleep(0.005)  # noqa: ASYNC251


async def test_waiting_for_a_first_batch_ends_with_the_counts() -> None:
    """timeout_s of batches() and of get(): WaitTimeout says how many rows there are, how many it
    takes, and who is alive; the stream is usable after it."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(timeout_s=0.3, min_size_to_sample=1_000) as batches,
    ):
        with pytest.raises(
            areplay.WaitTimeout,
            match=r"0 of 1,000 rows.*0 actors alive, no "
            r"row.*gave up after 0.3 s",
        ):
            await anext(batches)
        await replay.extend(rows(OWNER, 1, 0, 812))
        with pytest.raises(areplay.WaitTimeout, match=r"812 of 1,000 rows.*gave up after 0.05 s"):
            await batches.get(0.05)
        assert batches.statistics().learner_waits == 2
        assert batches.statistics().learner_waited_s >= 0.35 - 0.002, (
            "each may end a tick of the loop's clock early"
        )
        await replay.extend(rows(OWNER, 1, 812, 1_000))
        assert (await batches.get(30.0))["number"].shape == (256,)


async def test_waiting_while_all_slots_are_held_says_so() -> None:
    """A learner that holds every slot and wants one more is told to release some."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        async with replay.batches(batch_size=8, prefetch=2) as batches:
            count = batches._stream.queue.slots.slots + 1  # and the learner's own
            held = [await batches.get(30.0) for _ in range(count)]
            said = rf"{'L' * count} \(0 ready, {count} lent\).*1 of 1 samplers alive.*release\(\)"
            with pytest.raises(areplay.WaitTimeout, match=said):
                await batches.get(0.2)
            held[1].release()
            assert (await batches.get(30.0))["number"].shape == (8,)


async def test_a_long_wait_of_the_learner_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After WARN_AFTER_S, and at growing distances, a warning says who waits for whom and why; not
    before."""
    monkeypatch.setattr(waiting, "WARN_AFTER_S", 0.2)
    monkeypatch.setattr(waiting, "_LOOK_AGAIN_S", 0.1)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in, 2, args=(6,)) as actors,
        replay.batches(min_size_to_sample=1_000) as batches,
    ):
        await replay.extend(rows(OWNER, 1, 0, 800))
        await actors.wait()
        task = asyncio.create_task(batches.get(60.0))
        await until(lambda: len(_warnings(caplog)) >= 2)
        count = len(_warnings(caplog))
        assert count <= 1 + math.log2((batches.statistics().learner_waited_s + 0.002) / 0.2)
        task.cancel()
    warnings = _warnings(caplog)
    assert warnings[0].startswith(
        "learner waits: 812 of 1,000 rows needed by min_size_to_sample; 0 actors alive, last row "
    )
    assert all(
        record.levelname == "WARNING"
        for record in caplog.records
        if record.getMessage() in warnings
    )


async def test_a_learner_with_batches_is_not_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No wait, no warning, however long the pipeline runs."""
    monkeypatch.setattr(waiting, "WARN_AFTER_S", 0.2)
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        async with replay.batches(batch_size=8) as batches:
            (await batches.get(30.0)).release()
            caplog.clear()
            ends = time.monotonic() + 0.6
            async for _ in batches:
                await asyncio.sleep(0.01)
                if time.monotonic() > ends:
                    break
    assert _warnings(caplog) == []


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "waiting for" in message]


async def test_a_full_queue_holds_the_samplers_up() -> None:
    """Nobody takes batches: the samplers fill what there is and then sleep, using no processor
    time."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        async with replay.batches(batch_size=8, prefetch=4) as batches:
            count = batches._stream.queue.slots.slots
            await until(lambda: batches.statistics().ready == count)
            (member,) = batches._stream.queue.supervisor.workers
            assert member.child is not None
            await until(lambda: _is_idle(member.child.pid), what="the sampler sleeps")  # type: ignore[union-attr]
            assert batches.statistics().fill == 1.0


def _is_idle(pid: int) -> bool:
    """Whether a process uses less than a tenth of a processor over a moment."""

    def ticks() -> int:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
        return int(words[11]) + int(words[12])

    before, pause_s = ticks(), 0.3
    time.sleep(pause_s)
    return ticks() - before <= 0.1 * pause_s * os.sysconf("SC_CLK_TCK")
