"""Children are started by a thread: the learner's loop goes on meanwhile, and whatever happens,
none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import areplay
from areplay._processes.child import Child
from areplay._processes.launcher import Launcher
from areplay._processes.spawned import SpawnedProcess
from areplay._processes.starting import starter
from areplay._processes.supervision import SupervisorConfig, SupervisorOptions
from areplay._processes.supervisor import Supervisor
from areplay._sampling.sampler import run_sampler

from . import workers
from .oracle import OWNER, SPEC, rows
from .watching import WATCHDOG_S, children, threads, until, until_now

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

STARTER = "areplay-sampler-starter"


class Gate:
    """Holds up each start of a child from now on until it is opened."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        """Wait until it is open. Where a start is done on the loop, nobody can open it."""
        self.reached.set()
        assert self._opened.wait(20.0), "the loop stood still while a child was to be started"

    def open(self) -> None:
        """Let them start."""
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """One that is open at last."""
    gate, start = Gate(), SpawnedProcess.start

    def start_later(process: SpawnedProcess) -> Launcher:
        gate.pass_through()
        return start(process)

    monkeypatch.setattr(SpawnedProcess, "start", start_later)
    yield gate
    gate.open()


async def test_the_loop_goes_on_while_a_successor_is_started(gate: Gate) -> None:
    """The other sampler's batches reach the learner meanwhile; then there are two again."""
    gate.open()
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 0, 0, 100))
        async with replay.batches(batch_size=8, samplers=2, prefetch=4, timeout_s=30.0) as batches:
            gate.reached.clear()
            gate._opened.clear()
            os.kill(_pid_of_a_sampler(batches), signal.SIGKILL)
            await until(gate.reached.is_set, what="its successor is to be started")
            for _ in range(20):
                assert len((await anext(batches)).indices) == 8
            assert batches.statistics().samplers_alive == 1
            gate.open()
            await until(lambda: batches.statistics().samplers_alive == 2)


async def test_cancelled_while_a_child_is_started_it_is_killed_and_reaped(gate: Gate) -> None:
    """The start cannot be called off, so what it started is brought to its end; no child and no
    thread is left."""
    before, threads_before = children(), threads()
    async with areplay.Replay(SPEC, 1_000) as replay:
        stream = replay.batches(batch_size=8)
        opening = asyncio.create_task(stream.__aenter__())
        await until(gate.reached.is_set)
        opening.cancel()
        await asyncio.sleep(0)
        assert not opening.done(), "it waits for the start"
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert children() == before
        assert not {name for name in threads() - threads_before if name.startswith(STARTER[:15])}


async def test_cancelled_while_it_is_started_a_child_is_still_watched(gate: Gate) -> None:
    """Whoever cancels the task that keeps it kills it, and its end is seen."""
    thread = starter("child")
    child = Child("child 0", run_sampler, (), 0, lambda report: None, thread)
    starting = asyncio.create_task(child.start(60.0))
    await until(gate.reached.is_set)
    starting.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await starting
    child.kill()
    async with asyncio.timeout(30.0):
        assert (await child.wait_exit()).code == -signal.SIGKILL
    thread.shutdown()


async def test_a_thread_that_cannot_be_had_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No child, and no descriptor of one, is left."""

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(STARTER):
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    async with areplay.Replay(SPEC, 1_000) as replay:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(
                areplay.SamplerFailed,
                match=r"ResourceUnavailable.*can't start new "
                r"thread",
            ):
                await replay.batches(batch_size=8).__aenter__()
        async with replay.batches(batch_size=8) as batches:
            assert batches.statistics().samplers_alive == 1


async def test_the_thread_lives_as_long_as_its_children() -> None:
    """They would die with it; afterwards it is gone."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        async with replay.batches(batch_size=8):
            assert [
                thread.name for thread in threading.enumerate() if thread.name.startswith(STARTER)
            ]
        assert not [
            thread.name for thread in threading.enumerate() if thread.name.startswith(STARTER)
        ]


class Stuck:
    """A child that unpickles it gets no further, and does not read what follows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (1_000.0,)


@pytest.fixture
def large_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds: it is handed on to each child."""
    monkeypatch.setattr(sys, "argv", [*sys.argv, "x" * 300_000])


@pytest.mark.usefixtures("large_command_line")
async def test_a_start_that_is_stuck_before_the_arguments_are_read_ends_in_time() -> None:
    """No thread waits until a child reads: `start_timeout_s` counts for each of several, whatever
    their size."""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors = replay.actors(
            workers.tell_size, 2, args=(Stuck(), bytes(5_000_000)), start_timeout_s=0.5
        )
        with pytest.raises(
            areplay.ActorFailed,
            match=r"did not say READY within start_timeout_s = "
            r"0\.5 s",
        ):
            await actors.__aenter__()
        assert children() == before


@pytest.mark.usefixtures("large_command_line")
async def test_a_start_that_is_stuck_can_be_cancelled() -> None:
    """At once, and nothing is left."""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors = replay.actors(
            workers.tell_size, 2, args=(Stuck(), bytes(5_000_000)), start_timeout_s=1_000.0
        )
        opening = asyncio.create_task(actors.__aenter__())
        await until(lambda: len(children() - before) == 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert children() == before


@pytest.mark.usefixtures("large_command_line")
async def test_arguments_of_any_size_reach_each_successor(tmp_path: Path) -> None:
    """A child that died is started with the same."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.tell_size, 1, args=(bytes(20_000_000), str(tmp_path))) as actors,
    ):
        await actors.wait()
        sizes = [report.values["size"] for report in actors.reports()]
        assert sizes == [20_000_000 + len(str(tmp_path))] * 2


class SlowToPickle:
    """Takes until it is told to be pickled."""

    begun = threading.Event()
    may_end = threading.Event()
    was_waited_for = threading.Event()

    def __reduce__(self) -> tuple[Any, ...]:
        self.begun.set()
        if not self.may_end.wait(WATCHDOG_S):
            self.was_waited_for.set()
        return SlowToPickle, ()


@pytest.fixture
def slow_to_pickle() -> Iterator[SlowToPickle]:
    """One whose pickling ends with the test at the latest, and the thread that does it, too."""
    SlowToPickle.begun.clear()
    SlowToPickle.may_end.clear()
    SlowToPickle.was_waited_for.clear()
    yield SlowToPickle()
    assert not SlowToPickle.was_waited_for.is_set(), "the loop stood still, or a task waited"
    SlowToPickle.may_end.set()
    until_now(lambda: not any(name.startswith("areplay-actor-starter") for name in threads()))


async def test_arguments_that_block_while_they_are_pickled_end_a_start_in_time(
    slow_to_pickle: SlowToPickle,
) -> None:
    """`start_timeout_s` counts for each of several actors, though one thread starts them all. What
    that thread starts when it can go on does not live."""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors = replay.actors(
            workers.tell_size, 2, args=(slow_to_pickle,), start_timeout_s=0.3, grace_s=0.1
        )
        with pytest.raises(
            areplay.ActorFailed, match=r"not pickled within start_timeout_s = 0\.3 s"
        ):
            await actors.__aenter__()
        assert children() == before
        SlowToPickle.may_end.set()
        await until(lambda: not any("actor-starter" in name for name in threads()))
        assert children() == before
        async with replay.actors(workers.hand_in, 1, args=(6,)) as others:
            await others.wait()


async def test_a_start_that_is_stuck_in_pickling_can_be_cancelled(
    slow_to_pickle: SlowToPickle,
) -> None:
    """It ends after `grace_s`, however long `start_timeout_s` is."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        actors = replay.actors(
            workers.tell_size, 2, args=(slow_to_pickle,), start_timeout_s=1_000.0, grace_s=0.1
        )
        opening = asyncio.create_task(actors.__aenter__())
        await until(SlowToPickle.begun.is_set)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not children()


async def test_a_start_that_is_stuck_in_pickling_ends_at_once_when_stopping_is_cancelled(
    slow_to_pickle: SlowToPickle,
) -> None:
    """As by a second Ctrl-C."""

    async def nothing(index: int) -> None: ...

    supervisor = Supervisor(
        SupervisorConfig(
            kind="actor",
            count=1,
            body=run_sampler,
            arguments=lambda index, run: (slow_to_pickle,),
            options=SupervisorOptions(max_restarts=0, start_timeout_s=1_000.0, grace_s=1_000.0),
            failure=areplay.ActorFailed,
            ask=lambda index: None,
            after_exit=nothing,
            on_change=lambda: None,
        )
    )
    starting = asyncio.create_task(supervisor.start())
    await until(SlowToPickle.begun.is_set)
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    async with asyncio.timeout(WATCHDOG_S):
        await starting
    assert not children()


async def test_arguments_that_do_not_pickle_leave_nothing() -> None:
    """The error names them; no child, no descriptor and no memory file is left."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        with pytest.raises(areplay.ActorFailed, match=r"could not be started.*cannot pickle"):
            await replay.actors(
                workers.tell_size, 1, args=(bytes(100_000), threading.Lock())
            ).__aenter__()


def _pid_of_a_sampler(batches: areplay.Batches) -> int:
    child = batches._stream.queue.supervisor.workers[0].child
    assert child is not None
    return child.pid
