"""Actors whose environments hang, and actors that fail for good: named, restarted, or raised, as
the user says."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

import areplay

from . import workers
from .oracle import SPEC, lives
from .watching import learn_until, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

QUIET = "it has handed in nothing"


def named(replay: areplay.Replay, text: str) -> list[str]:
    """Who waits for a reason in which that text is."""
    return [wait.who for wait in replay.statistics().waits if text in wait.reason]


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The warnings in which that text is."""
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelname == "WARNING" and text in r.getMessage()
    ]


async def test_an_environment_that_hangs_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The actor alone, in waits, in its statistics and in warnings that become rarer; the learner
    goes on."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.actors(workers.hang, 2, args=("step", ""), quiet_s=0.5, grace_s=0.2) as actors,
        replay.batches(batch_size=8, timeout_s=30.0) as batches,
    ):
        said = f"actor 0 (pid {actors.statistics()[0].pid}) has handed in nothing for"
        await learn_until(batches, lambda: len(warnings(caplog, said)) >= 2)
        await learn_until(batches, lambda: named(replay, QUIET) == ["actor 0"])
        hung, _ = actors.statistics()
        assert hung.quiet_s > 0.5 and hung.is_alive and hung.rows == 10
        wait = next(wait for wait in replay.statistics().waits if wait.who == "actor 0")
        assert (
            "its environment may hang; pass restart_after_s=" in wait.reason and wait.waited_s > 0.5
        )


async def test_a_first_reset_that_hangs_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing since READY counts too."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hang, 1, args=("reset", ""), quiet_s=0.2, grace_s=0.2),
    ):
        await until(lambda: warnings(caplog, "its first reset may be slow or hang"))
        assert named(replay, "first reset") == ["actor 0"]


async def test_an_actor_that_has_returned_and_lives_on_is_told_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A task of its own is the cause, and no environment."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.leave_a_task_that_does_not_end, 1, quiet_s=0.2, grace_s=0.2),
    ):
        said = "its function has returned, but a task that it started does not end"
        await until(lambda: warnings(caplog, said))
        assert named(replay, said) == ["actor 0"]
        assert not warnings(caplog, "environment")


@pytest.mark.parametrize("way", ["step", "wait"])
async def test_a_quiet_actor_is_restarted(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that blocks its loop by SIGKILL, one that only waits by SIGTERM, so that it can close
    what it has; its rows are kept, its successor goes on, and the reason is in its last failure. It
    is no more often killed than it hung."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.actors(
            workers.hang, 1, args=(way, str(tmp_path)), restart_after_s=1.2, max_restarts=1
        ) as actors,
    ):
        await until(lambda: actors.statistics()[0].rows > 1_000)
        (record,) = actors.statistics()
        assert record.restarts == 1 and record.is_alive and record.last_failure is not None
        assert record.last_failure.details.startswith("it handed in nothing for ")
        assert "restart_after_s = 1.2" in record.last_failure.details
        assert record.last_failure.exit_code == (-9 if way == "step" else 143)
        assert (tmp_path / "closed").exists() == (way == "wait")
        assert warnings(caplog, "ended, restarting")
        assert sorted(lives(replay).values())[0] == 10, "what it handed in before it hung"


async def test_a_quiet_actor_that_hangs_each_time_fails_for_good() -> None:
    """Each restart counts; with on_failure="raise" the learner that waits gets the reason."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        group = replay.actors(
            workers.hang,
            1,
            args=("reset", ""),
            restart_after_s=0.2,
            grace_s=0.1,
            max_restarts=1,
            on_failure="raise",
        )
        with pytest.raises(
            areplay.ActorFailed,
            match=r"after 1 restarts.*(?s:.*)it handed in "
            r"nothing for",
        ):
            async with group, replay.batches(batch_size=8, timeout_s=30.0) as batches:
                await anext(batches)


async def test_a_stopped_process_is_named_as_stopped() -> None:
    """With the command that lets it go on; then it is not named any more."""
    async with (
        areplay.Replay(SPEC, 1_000_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,), quiet_s=0.2) as actors,
    ):
        await until(lambda: actors.statistics()[0].rows > 10)
        pid = actors.statistics()[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(
                lambda: named(replay, f"its process is stopped; `kill -CONT {pid}`") == ["actor 0"]
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: not named(replay, QUIET) and actors.statistics()[0].quiet_s == 0.0)


async def test_actors_that_are_held_are_not_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """By a limiter, which waits tells, and by a loop of the learner's that is blocked; neither is
    killed."""
    limiter = areplay.SamplesPerInsert(2.0, min_size_to_sample=1, error_buffer=32.0)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=8, limiter=limiter) as batches,
        replay.actors(workers.hand_in_until_stopped, 2, quiet_s=0.5, restart_after_s=0.8) as actors,
    ):
        await until(lambda: all(record.waited_s > 1.2 for record in actors.statistics()))
        time.sleep(0.5)  # noqa: ASYNC251
        await until(lambda: len(named(replay, "may not be written yet")) == 2)
        for _ in range(5):
            (await batches.get(30.0)).release()
        await asyncio.sleep(0.3)
        assert [record.restarts for record in actors.statistics()] == [0, 0]
    assert warnings(caplog, "handed in nothing") == []


async def test_an_actor_that_only_reports_is_not_quiet() -> None:
    """One that evaluates hands in no rows; its reports are what it is there for."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.report_until_stopped, 1, restart_after_s=1.0) as actors,
    ):
        reports: list[areplay.Report] = []
        await until(lambda: reports.extend(actors.reports()) or len(reports) > 150)
        assert actors.statistics()[0].restarts == 0


async def test_one_failed_actor_is_raised_where_the_user_says_so() -> None:
    """At the next batch of either kind, at wait(), and on leaving; the other actor had gone on."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        group = replay.actors(
            workers.first_raises_others_go_on, 2, max_restarts=0, on_failure="raise"
        )
        with pytest.raises(areplay.ActorFailed, match=r"actor 0.*(?s:.*)ValueError: enough"):
            async with group, replay.batches(batch_size=8, timeout_s=30.0) as batches:
                with pytest.raises(areplay.ActorFailed, match="ValueError: enough"):
                    async with asyncio.timeout(30):
                        async for _ in batches:
                            pass
                with pytest.raises(areplay.ActorFailed, match="ValueError: enough"):
                    await batches.get()
                async with replay.batches(batch_size=8) as later:
                    with pytest.raises(areplay.ActorFailed, match="ValueError: enough"):
                        await anext(later)
                with pytest.raises(areplay.ActorFailed, match="ValueError: enough"):
                    await group.wait()
                assert group.alive == 1
        async with replay.batches(batch_size=8, timeout_s=30.0) as batches:
            await anext(batches)  # that group is closed


async def test_the_last_actors_failure_is_raised_as_asked_for_too() -> None:
    """ActorFailed, and not that no more rows can come: the same error whichever actor it is."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        group = replay.actors(
            workers.hand_in_and_fail, 1, args=(50,), max_restarts=0, on_failure="raise"
        )
        with pytest.raises(areplay.ActorFailed, match="this actor has failed"):
            async with replay.batches(batch_size=8, prefetch=2) as batches, group:
                async for _ in batches:
                    pass


async def test_a_learner_that_waits_is_told_of_one_failed_actor() -> None:
    """Though the others live, and more rows may come; an error of the user's own is not replaced on
    leaving."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        with pytest.raises(KeyError):
            async with (
                replay.actors(
                    workers.fail_when_told, 2, max_restarts=0, on_failure="raise"
                ) as actors,
                replay.batches(batch_size=8, min_size_to_sample=1_000) as batches,
            ):
                waiting = asyncio.create_task(batches.get())
                await until(
                    lambda: any(wait.who == "learner" for wait in replay.statistics().waits)
                )
                os.kill(actors.statistics()[1].pid, signal.SIGTERM)
                with pytest.raises(areplay.ActorFailed, match="actor 1"):
                    await waiting
                raise KeyError


async def test_one_failed_actor_is_named_while_the_others_go_on() -> None:
    """The default: an error in the log, an entry in waits for as long as it is gone, and no error
    anywhere else."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with (
            replay.actors(workers.first_raises_others_go_on, 2, max_restarts=0),
            replay.batches(batch_size=8, timeout_s=30.0) as batches,
        ):
            await until(
                lambda: (
                    named(replay, "it failed for good after 0 restarts (ValueError: enough)")
                    == ["actor 0"]
                )
            )
            for _ in range(20):
                await anext(batches)
        assert replay.statistics().waits == ()


async def test_without_a_limit_an_actor_is_restarted_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """max_restarts=None: more often than the default allows, with pauses that grow, which the
    warning tells."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(
            workers.hand_in_and_fail, 1, args=(2,), max_restarts=None, on_failure="raise"
        ) as actors,
    ):
        await until(lambda: actors.statistics()[0].restarts >= 5)
        assert actors.alive == 1 and actors.failures == []
    said = warnings(caplog, "ended, restarting")
    for pause, number in (("0.05", 1), ("0.1", 2), ("0.2", 3), ("0.4", 4)):
        assert (
            f"restarting it after {pause} s (restart {number}, end {number} within a minute)"
            in said[number - 1]
        )


async def test_wrong_options_are_refused() -> None:
    """With what is allowed; nothing is started."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(ValueError, match="on_failure must be 'go on' or 'raise', got 'stop'"):
            replay.actors(workers.hand_in, on_failure="stop")
        for options in (
            {"quiet_s": 0},
            {"quiet_s": -1.0},
            {"restart_after_s": "3"},
            {"quiet_s": True},
        ):
            with pytest.raises(
                ValueError,
                match=rf"{next(iter(options))} must be a number of "
                r"seconds above 0",
            ):
                replay.actors(workers.hand_in, **options)  # type: ignore[arg-type]
