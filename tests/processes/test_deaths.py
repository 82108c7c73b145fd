"""A child that is gone is gone, whatever becomes of its exit code; one that has finished is done,
however it ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import areplay
from areplay._processes.supervisor import Supervisor

from . import workers
from .oracle import OWNER, SPEC, lives, rows
from .watching import is_running, running_actors, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@pytest.fixture
def ignored() -> Iterator[None]:
    """SIGCHLD is ignored: the kernel reaps children itself and forgets how they ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def steal(pid: int) -> None:
    """Kill a child and collect its exit code, as other code in this process might, before areplay
    looks."""
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid


async def test_deaths_are_seen_where_sigchld_is_ignored(ignored: None) -> None:
    """Actors and samplers are restarted, the exit code is None, and everything closes."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        await replay.extend(rows(OWNER, 0, 0, 100))
        async with (
            replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,)) as actors,
            replay.batches(batch_size=8, timeout_s=30.0) as batches,
        ):
            sampler = replay.statistics().batches[0].samplers[0].pid
            for pid in (actors.statistics()[0].pid, sampler):
                os.kill(pid, signal.SIGKILL)
            await until(
                lambda: actors.statistics()[0].restarts == 1 and actors.statistics()[0].is_alive
            )
            await until(
                lambda: (
                    batches.statistics().restarts == 1 and batches.statistics().samplers_alive == 1
                )
            )
            failure = actors.statistics()[0].last_failure
            assert failure is not None
            assert failure.exit_code is None
            assert "SIGCHLD is ignored" in failure.details
            await anext(batches)


async def test_children_see_the_deaths_of_their_own_children(ignored: None) -> None:
    """SIGCHLD is as usual in them. What a program is started with there has none of areplay's
    descriptors."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.start_a_program, 1) as actors,
    ):
        await actors.wait()
        (report,) = actors.reports()
        assert report.values == {"code": 3, "inheritable": 0}


async def test_an_exit_code_that_was_stolen_is_unknown() -> None:
    """The failure says so, and the others go on."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 2, args=(0.001,), max_restarts=0) as actors,
    ):
        steal(actors.statistics()[0].pid)
        with pytest.raises(
            areplay.ActorFailed, match=r"(?s)exit code unknown\) failed.*collected its exit code"
        ) as seen:
            await actors.wait()
        assert seen.value.exit_code is None
        before = actors.statistics()[1].rows
        await until(lambda: actors.statistics()[1].rows > before)


async def test_last_words_count_where_the_exit_code_is_unknown(ignored: None) -> None:
    """One that returned has finished; of one that raised the traceback and the code are known."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(workers.hand_in, 1, args=(10,)) as actors:
            await actors.wait()
            assert [(a.has_finished, a.restarts) for a in actors.statistics()] == [(True, 0)]
        async with replay.actors(
            workers.hand_in_and_raise, 1, args=(10,), max_restarts=0
        ) as actors:
            with pytest.raises(areplay.ActorFailed, match=r"(?s)exit code 1.*ValueError: enough"):
                await actors.wait()


async def test_multiprocessing_does_not_wait_for_our_children() -> None:
    """It would by number, at each start and at exit, and the number may be a stranger's by then."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1),
    ):
        assert multiprocessing.active_children() == []


async def test_a_number_that_a_stranger_has_got_is_not_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that others reaped before its pidfd was opened is gone; whoever has its number now is
    left alone."""
    opened = []

    def open_late(pid: int) -> int:
        steal(pid)
        opened.append(pid)
        return pidfd_open(os.getpid() if len(opened) == 1 else pid)  # a stranger, then nobody

    pidfd_open = os.pidfd_open
    monkeypatch.setattr(os, "pidfd_open", open_late)
    async with areplay.Replay(SPEC, 1_000) as replay:
        for _ in range(2):
            with pytest.raises(areplay.ActorFailed, match="exit code unknown"):
                await replay.actors(workers.hand_in, 1, args=(10,)).__aenter__()
    assert len(opened) == 2


async def test_a_kernel_that_cannot_wait_for_a_pidfd_tells_the_code_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux 5.3, or a sandbox."""

    def refuse(kind: int, number: int, options: int) -> Any:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "waitid", refuse)
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1) as actors,
    ):
        os.kill(actors.statistics()[0].pid, signal.SIGKILL)
        await until(lambda: actors.statistics()[0].restarts == 1)
        failure = actors.statistics()[0].last_failure
        assert failure is not None
        assert failure.exit_code == -signal.SIGKILL


async def test_a_debugger_that_is_told_first_does_not_make_the_loop_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the kernel has no exit code yet, it is asked again after a while, and only so often."""
    is_told = asyncio.Event()

    def not_yet(kind: int, number: int, options: int) -> Any:
        return waitid(kind, number, options) if options & os.WNOWAIT or is_told.is_set() else None

    waitid = os.waitid
    monkeypatch.setattr(os, "waitid", not_yet)
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hand_in_until_stopped, 1) as actors,
    ):
        child = running_actors(actors)._supervisor.workers[0].child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        asyncio.get_running_loop().call_later(0.2, is_told.set)
        await until(lambda: child.exit is not None)
        assert child.exit is not None
        assert child.exit.code == -signal.SIGKILL, "a loop that spins has given up long before"


async def test_one_that_has_returned_is_done_before_its_interpreter_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has finished at once. Closing gives it `grace_s`, then kills it, and warns of nothing."""
    caplog.set_level(logging.INFO)
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.return_and_end_late, 1, args=(str(tmp_path), 1_000.0), grace_s=0.2
        ) as actors:
            await actors.wait()
            (record,) = actors.statistics()
            assert (record.has_finished, record.is_alive, record.restarts) == (True, False, 0)
            assert list(lives(replay).values()) == [10]
            await until((tmp_path / "ending").exists)
            assert is_running(record.pid), "its exit hooks run"
        assert not is_running(record.pid)
        assert actors.statistics()[0].last_failure is None
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert [r.message for r in caplog.records if "done but has not ended" in r.message]


@pytest.mark.parametrize("way", ["hands in", "exits", "dies", "hangs"])
async def test_one_that_has_returned_is_not_restarted_for_a_task_that_it_left(way: str) -> None:
    """Its rows would be handed in again. Rows of such a task count."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(
            workers.return_and_leave_a_task,
            1,
            args=(way,),
            quiet_s=0.2,
            restart_after_s=0.5,
            grace_s=0.2,
        ) as actors:
            await actors.wait()
            (record,) = actors.statistics()
            assert (record.has_finished, record.has_failed, record.restarts) == (True, False, 0)
        assert len(replay) == (20 if way == "hands in" else 10)


async def test_closing_lets_exit_hooks_run(tmp_path: Path) -> None:
    """They may have files to write: there is `grace_s` for them."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.return_and_end_late, 1, args=(str(tmp_path), 0.3), grace_s=30.0),
    ):
        pass
    assert (tmp_path / "ended").exists()


async def test_exit_hooks_have_their_time_from_when_an_actor_has_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that returns when `grace_s` is almost over is not killed then."""
    looks: list[bool] = []

    async def almost_over(supervisor: Supervisor) -> bool:
        looks.append(True)
        if len(looks) == 1:
            await until((tmp_path / "ending").exists)
            return False
        return await all_ended(supervisor)

    all_ended = Supervisor._all_ended
    monkeypatch.setattr(Supervisor, "_all_ended", almost_over)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.return_and_end_late, 1, args=(str(tmp_path), 0.3), grace_s=30.0),
    ):
        pass
    assert (tmp_path / "ended").exists()


async def test_a_second_cancellation_kills_one_that_ends_late(tmp_path: Path) -> None:
    """As any other child: nobody waits for `grace_s`."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        actors = replay.actors(
            workers.return_and_end_late, 1, args=(str(tmp_path), 1_000.0), grace_s=1_000.0
        )
        await actors.__aenter__()
        await actors.wait()
        stopping = asyncio.create_task(running_actors(actors)._supervisor.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await actors.close()


async def test_one_that_raised_is_restarted_though_its_interpreter_does_not_end(
    tmp_path: Path,
) -> None:
    """It gets `grace_s`, then it is killed; what it said, and the code that it meant to end with,
    are kept."""
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.raise_and_not_end, 1, args=(str(tmp_path),), grace_s=0.2) as actors,
    ):
        await actors.wait()
        (record,) = actors.statistics()
        assert (record.has_finished, record.restarts) == (True, 1)
        assert record.last_failure is not None
        assert record.last_failure.exit_code == 1
        assert "ValueError: enough" in record.last_failure.details


@pytest.mark.parametrize(
    ("way", "is_lost"),
    [
        ("full", True),
        ("a pipe that nobody reads", True),
        ("its descriptor closed", True),
        ("closed", False),
        ("none", False),
    ],
)
async def test_words_that_cannot_be_written_do_not_fail_a_child(
    way: str, is_lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It has finished, its rows are there once, it ends with 0, and a line in the log says what was
    lost."""
    caplog.set_level(logging.INFO)
    async with (
        areplay.Replay(SPEC, 10_000) as replay,
        replay.actors(workers.print_and_return, 1, args=(way,), grace_s=30.0) as actors,
    ):
        await actors.wait()
        (record,) = actors.statistics()
        assert (record.has_finished, record.restarts, record.rows) == (True, 0, 10)
    assert any(f"(pid {record.pid}) ended with 0" in message for message in caplog.messages)
    assert any("stdout is lost" in message for message in caplog.messages) == is_lost
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_one_that_may_not_be_killed_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This process has changed its user, say: the kernel kills the child when its pipe closes."""

    def refuse(pidfd: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    async with areplay.Replay(SPEC, 1_000) as replay:
        async with replay.actors(workers.block, 1, grace_s=0.1) as actors:
            (record,) = actors.statistics()
            monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
        assert not is_running(record.pid)
