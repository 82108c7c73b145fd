"""Children that die are restarted up to a limit; what cannot be started, or not again, is a typed
error."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading

import pytest

import areplay
from areplay._processes import worker as worker_module

from . import workers
from .oracle import OWNER, SPEC, lives, row, rows
from .watching import children, is_running, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_restarts_are_limited_and_backed_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that always raises is started 1 + max_restarts times, with growing pauses, and each time
    as a new stream; then wait() raises, and the learner that can get no batch any more is told why,
    with the child's traceback."""
    monkeypatch.setattr(worker_module, "_FIRST_BACK_OFF_S", 0.6)
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with (
            replay.actors(workers.hand_in_and_raise, 1, args=(10,), max_restarts=2) as actors,
            replay.batches(batch_size=8, min_size_to_sample=1_000, timeout_s=60.0) as batches,
        ):
            with pytest.raises(
                areplay.Stalled,
                match=r"(?s)30 of 1,000 rows.*no more rows can "
                r"come.*Traceback.*ValueError: enough",
            ) as stalled:
                await anext(batches)
            assert isinstance(stalled.value.__cause__, areplay.ActorFailed)
            with pytest.raises(
                areplay.ActorFailed,
                match=r"(?s)exit code 1\) failed after 2 "
                r"restarts.*ValueError: enough",
            ) as failed:
                await actors.wait()
            assert (failed.value.child, failed.value.restarts) == ("actor 0", 2)
            assert [(r.is_alive, r.restarts, r.rows) for r in actors.statistics()] == [
                (False, 2, 30)
            ]
            ends = [float(report.values["ended"]) for report in actors.reports()]
            starts_later = [after - before for before, after in itertools.pairwise(ends)]
            assert starts_later[0] > 0.6
            assert starts_later[1] > 1.2
        assert list(lives(replay).values()) == [10, 10, 10]
    assert [
        record.levelname for record in caplog.records if "ended, restarting" in record.message
    ] == ["WARNING"] * 2
    assert [record.levelname for record in caplog.records if "failed after" in record.message] == [
        "ERROR"
    ]


async def test_learner_goes_on_when_one_actor_has_failed_for_good() -> None:
    """The failure is there to be read, the other actor and the batches go on."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.first_raises_others_go_on, 2, max_restarts=0) as actors,
        replay.batches(batch_size=8, timeout_s=30.0) as batches,
    ):
        with pytest.raises(areplay.ActorFailed, match="ValueError: enough"):
            await actors.wait()
        before = actors.statistics()[1].rows
        await until(lambda: actors.statistics()[1].rows > before)
        for _ in range(50):
            await anext(batches)
        assert actors.alive == 1


async def test_actors_that_all_returned_leave_a_learner_that_needs_more_stalled() -> None:
    """No row can come any more and too few are there: Stalled, at once and with the counts; with
    enough it goes on."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in, 1, args=(20,)) as actors,
        replay.batches(batch_size=8, min_size_to_sample=21) as starved,
        replay.batches(batch_size=8, min_size_to_sample=20) as fed,
    ):
        with pytest.raises(
            areplay.Stalled,
            match=r"20 of 21 rows.*0 actors alive.*no more rows "
            r"can come",
        ):
            await anext(starved)
        await actors.wait()
        assert (await anext(fed))["number"].shape == (8,)
        await replay.add(**row(OWNER, 1, 0))  # the owner makes up for it
        assert (await anext(starved))["number"].shape == (8,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_sampler_ended_by_a_stranger_is_restarted(number: signal.Signals) -> None:
    """Whatever ends a sampler that was not asked to end, the queue is full again and batches go
    on."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 1_000))
        before = children()
        async with replay.batches(batch_size=8, prefetch=4, timeout_s=30.0) as batches:
            (pid,) = children() - before
            await anext(batches)
            os.kill(pid, number)
            await until(lambda: not is_running(pid))
            await until(lambda: batches.statistics().restarts == 1, within=10.0, what="a restart")
            for _ in range(20):
                await anext(batches)


async def test_an_actor_ended_by_a_stranger_is_restarted() -> None:
    """SIGTERM from anybody but the supervisor is a death like any other, not an actor that has done
    its work."""
    async with (
        areplay.Replay(SPEC, 100_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,)) as actors,
    ):
        os.kill(actors.statistics()[0].pid, signal.SIGTERM)
        await until(lambda: actors.statistics()[0].restarts == 1, within=10.0, what="a restart")


async def test_samplers_that_keep_failing_end_the_stream_with_their_traceback() -> None:
    """An item whose code raises in the sampler: SamplerFailed for the learner, with the traceback,
    not a hang."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        async with replay.batches(workers.BrokenItem(), 8, max_restarts=1) as batches:
            with pytest.raises(
                areplay.SamplerFailed,
                match=r"(?s)failed after 1 restarts.*ZeroDivisionError: "
                r"broken item",
            ):
                await anext(batches)
            assert batches.statistics().restarts == 1
            assert batches.statistics().samplers_alive == 0
        assert replay.sample(8).indices.shape == (8,), "the replay itself is well"


async def test_a_function_that_children_cannot_import_is_refused_at_once() -> None:
    """Lambdas and local functions: ValueError or TypeError at the call, before any child."""

    async def local(actor: areplay.Actor) -> None:
        pass

    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(ValueError, match="module level"):
            replay.actors(local)
        with pytest.raises(TypeError, match="coroutine function"):
            replay.actors(lambda actor: None)  # type: ignore[arg-type,return-value]
        with pytest.raises(TypeError, match="coroutine function"):
            replay.actors(print)  # type: ignore[arg-type]
        assert children() == before


async def test_arguments_that_do_not_pickle_are_a_typed_error() -> None:
    """The error says so and names the actor; no child was left, and other actors can be started
    after it."""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(
            areplay.ActorFailed,
            match=r"actor 0.*(?s:.*)cannot pickle "
            r"'_thread.lock' object",
        ) as failed:
            async with replay.actors(workers.hand_in, 2, args=(threading.Lock(),)):
                pass
        assert "raise the limit" not in str(failed.value), "no limit was met"
        assert "max_restarts" not in str(failed.value), "a restart would not help"
        assert children() == before
        async with replay.actors(workers.hand_in, 1, args=(3,)) as actors:
            await actors.wait()
        assert len(replay) == 3


async def test_arguments_that_do_not_unpickle_are_a_typed_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A child that ends before it is ready, restarted or not, is an error at the door, and no child
    is left."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(areplay.ActorFailed, match="before it said READY"):
            async with replay.actors(workers.hand_in, 1, args=(workers.PicklesOnly(),)):
                pass
    assert "cannot be unpickled" in capfd.readouterr().err


async def test_a_child_that_is_not_ready_in_time_is_a_typed_error() -> None:
    """start_timeout_s is an end to the wait for a child that takes too long to start."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(areplay.ActorFailed, match="READY within start_timeout_s = 1"):
            async with replay.actors(
                workers.hand_in, 1, args=(workers.SlowToUnpickle(60.0),), start_timeout_s=1.0
            ):
                pass


async def test_errors_are_logged_once_and_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """An actor's birth and end are INFO, with its pid."""
    caplog.set_level(logging.INFO, "areplay")
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hand_in, 1, args=(3,), grace_s=30.0) as actors,
    ):
        pid = actors.statistics()[0].pid
    assert f"actor 0 started, pid {pid}" in caplog.messages
    assert f"actor 0 (pid {pid}) ended with 0" in caplog.messages


async def test_a_running_learner_is_told_that_all_actors_have_failed() -> None:
    """Also after the first batch: it must not go on with the rows it has, for days, in silence."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.batches(batch_size=8, prefetch=2) as batches,
        replay.actors(workers.hand_in_and_fail, 1, args=(50,), max_restarts=0),
    ):
        with pytest.raises(areplay.Stalled, match="this actor has failed"):
            async for _ in batches:
                pass
        assert batches.statistics().batches_delivered > 0


async def test_a_place_that_cannot_be_cleared_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while a dead actor's inbox is emptied: that actor has failed, with both reasons, and
    nobody hangs."""

    async def refuse(self: object, inbox: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("areplay._ingest.coordinator.Coordinator.mark_stream_end", refuse)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in_and_fail, 1, args=(5,)) as actors,
    ):
        with pytest.raises(
            areplay.ActorFailed,
            match=r"(?s)this actor has failed.*could not be cleared.*Too many "
            r"open",
        ):
            await actors.wait()


@pytest.mark.parametrize("max_restarts", [0, 1, 3, 18, 100, 5_000])
async def test_as_many_restarts_as_are_allowed_fit_into_their_minute(max_restarts: int) -> None:
    """Pauses grow up to a longest one, which is shorter where more restarts are allowed."""
    pauses = [
        worker_module.back_off_s(deaths, max_restarts) for deaths in range(1, max_restarts + 1)
    ]
    assert pauses == sorted(pauses)
    assert sum(pauses) <= worker_module._RESTART_WINDOW_S / 2 + 1e-6
    assert worker_module.back_off_s(1_000, None) == worker_module._LONGEST_BACK_OFF_S
