"""The stop ladder: ask, SIGTERM, SIGKILL. Each rung has its time, and each is logged."""

from __future__ import annotations

import logging
import time

import pytest

import areplay
from areplay._processes import supervisor as supervisor
from areplay._processes import worker as worker_module

from . import workers
from .oracle import SPEC, lives
from .watching import children, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

LADDER = [
    "polite",
    "waits for something else",
    "takes its time to clean up",
    "blocks its loop",
    "swallows the cancellation",
]


async def test_each_actor_is_stopped_by_the_first_rung_that_works(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looks at `stopping` gets no signal; one that only waits gets SIGTERM, and its
    clean-up runs and may still hand in rows; only one that does not listen gets SIGKILL. All rows
    are kept, and none of it is a failure."""
    caplog.set_level(logging.DEBUG, "areplay")
    rungs, all_ended = iter([LADDER[:1], LADDER[1:3]]), supervisor.Supervisor._all_ended

    async def no_sooner(these: supervisor.Supervisor) -> bool:
        """The time of a rung begins when those have ended who are to end by it: a busy machine may
        take longer."""
        for way in next(rungs):
            member = these.workers[LADDER.index(way)]
            await until(lambda member=member: member.is_gone)
        started = time.monotonic()
        have_ended = await all_ended(these)
        assert have_ended or time.monotonic() - started >= 0.7 - 0.002, (
            "its whole grace, but for a tick of the clock"
        )
        return have_ended

    monkeypatch.setattr(supervisor.Supervisor, "_all_ended", no_sooner)
    async with areplay.Replay(SPEC, 100_000) as replay:
        async with replay.actors(
            workers.stop_slowly, len(LADDER), args=(LADDER,), grace_s=0.7
        ) as actors:
            await until(
                lambda: all(r.rows >= 10 and r.waiting_rows == 0 for r in actors.statistics())
            )
            pids = {
                ways: record.pid for ways, record in zip(LADDER, actors.statistics(), strict=True)
            }
        assert actors.failures == []
        assert [record.restarts for record in actors.statistics()] == [0] * len(LADDER)
        assert all(
            record.has_finished and record.last_failure is None for record in actors.statistics()
        )
        stored = {LADDER[actor]: count for (actor, _), count in lives(replay).items()}
    assert stored == {**dict.fromkeys(LADDER, 10), "takes its time to clean up": 11}

    def signalled(name: str) -> set[str]:
        return {
            way
            for way, pid in pids.items()
            if any(f"pid {pid}" in m and m.endswith(name) for m in caplog.messages)
        }

    assert signalled("SIGTERM") == set(LADDER) - {"polite"}
    assert signalled("SIGKILL") == {"blocks its loop", "swallows the cancellation"}
    assert any("asked" in m or "stopping" in m for m in caplog.messages), (
        "the first rung is logged, too"
    )


async def test_stopping_ends_a_pause_before_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing while an actor is due to be restarted neither waits for the pause nor starts it once
    more."""
    monkeypatch.setattr(worker_module, "_FIRST_BACK_OFF_S", 60.0)
    monkeypatch.setattr(worker_module, "_LONGEST_BACK_OFF_S", 60.0)
    async with areplay.Replay(SPEC, 1_000) as replay:
        async with replay.actors(workers.hand_in_and_raise, 1, args=(4,), max_restarts=5) as actors:
            pid = actors.statistics()[0].pid
            await until(
                lambda: actors.statistics()[0].restarts == 1 and not actors.statistics()[0].is_alive
            )
            assert actors.alive == 1, "it is going to be restarted"
        assert actors.statistics()[0].pid == pid, "no other was started"
        assert list(lives(replay).values()) == [4]


async def test_an_actor_that_waits_for_room_can_be_stopped() -> None:
    """An actor whose inbox is always full, since it is faster than the coordinator, ends when
    asked."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        async with replay.actors(workers.hand_in_until_stopped, 1, inbox_rows=2) as actors:
            await until(lambda: actors.statistics()[0].rows > 200)
        assert actors.failures == []


async def test_a_child_that_still_starts_can_be_stopped() -> None:
    """Leaving while a successor is starting ends that one, too."""
    before = children()
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(
            workers.hand_in_and_raise,
            1,
            args=(4, workers.SlowInSuccessors(60.0)),
            max_restarts=5,
            grace_s=0.3,
        ) as actors,
    ):
        first = actors.statistics()[0].pid
        await until(lambda: actors.statistics()[0].pid not in (0, first), what="its successor")
        started = time.monotonic()
    print(f"closed in {time.monotonic() - started:.2f} s")
    assert children() == before
