"""Row 28: what is dropped without being closed is let go, wherever and whenever the last reference
goes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import uvloop

import areplay
from areplay._processes import dropped, reaper
from tests.faults.storm import Resources
from tests.forked import fork
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, row, rows, torn
from tests.processes.watching import (
    children,
    descriptors,
    is_running,
    running_actors,
    threads,
    until,
    until_now,
)

both_loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
DROPS = 20


class Opened:
    """A replay and all that hangs on it, entered by hand, as a notebook may do it, and held by
    nothing else."""

    replay: areplay.Replay
    actors: areplay.Actors
    batches: areplay.Batches
    checkpoints: areplay.Checkpoints

    async def open(self, folder: Path, *, has_children: bool = True, **options: Any) -> None:
        """Enter everything."""
        self.replay = await areplay.Replay(SPEC, 1_000).__aenter__()
        await self.replay.extend(rows(OWNER, 1, 0, 100))
        self.checkpoints = await self.replay.checkpoints(folder / "checkpoint", 0.01).__aenter__()
        if has_children:
            self.actors = await self.replay.actors(workers.hand_in_until_stopped).__aenter__()
            self.batches = await self.replay.batches(
                batch_size=4, prefetch=2, **options
            ).__aenter__()
            await anext(self.batches)


def accounting() -> Callable[[], bool]:
    """What says whether descriptors, mappings, threads and children are as they are now."""
    before = Resources.now()
    return lambda: Resources.now().left_over(before) == []


@pytest.fixture
def warnings_of_drops(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said of drops since the last call."""

    def take() -> list[str]:
        messages = [
            each.getMessage()
            for each in caplog.records
            if each.name == "areplay._processes.dropped"
        ]
        levels = {
            each.levelno for each in caplog.records if each.name == "areplay._processes.dropped"
        }
        caplog.clear()
        assert levels <= {logging.WARNING}
        return messages

    return take


def in_another_thread(work: Callable[[], object]) -> None:
    """Run it there, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@contextmanager
def collector_at_every_allocation() -> Iterator[None]:
    """The garbage collector runs as often as it can."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)


# Dropped while their loop runs.


@pytest.mark.parametrize("where", ["its own thread", "another thread"])
async def test_replays_that_are_dropped_again_and_again_leave_nothing(
    where: str, tmp_path: Path, warnings_of_drops: Callable[[], list[str]]
) -> None:
    """Twenty, the last with children: descriptors, mappings, threads and processes are as before,
    no child is left a zombie, one warning a thing names the remedy, and the next replay works."""
    nothing_held = accounting()
    for number in range(DROPS):
        opened = Opened()
        await opened.open(tmp_path, has_children=number == DROPS - 1)
        if where == "its own thread":
            del opened
        else:
            held = [opened]
            del opened
            in_another_thread(held.clear)
    await until(nothing_held)
    messages = warnings_of_drops()
    assert len(messages) == 2 * DROPS + 2
    assert all(
        "was dropped without being closed" in message and "`async with`" in message
        for message in messages
    )
    assert sum("a replay of 1,008 rows" in message for message in messages) == DROPS
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 100))
        assert torn(replay.sample(10)) == 0
    assert warnings_of_drops() == []


async def test_what_is_dropped_in_a_circle_waits_for_the_collector_only(tmp_path: Path) -> None:
    """Garbage that is found in the middle of the calls of another replay, wherever those allocate:
    nothing hangs, and the other replay does what it should."""
    nothing_held = accounting()
    gc.disable()
    try:
        for _ in range(5):
            opened = Opened()
            await opened.open(tmp_path, has_children=False)
            opened.itself = opened  # type: ignore[attr-defined]
            del opened
            with collector_at_every_allocation():
                gc.enable()
                async with areplay.Replay(SPEC, 1_000) as replay:
                    await replay.add(**row(OWNER, 2, 0))
                    await replay.extend(rows(OWNER, 2, 1, 50))
                    assert torn(replay.sample(16)) == 0
                    await replay.save(tmp_path / "other")
            gc.disable()
            del replay
    finally:
        gc.enable()
    await until(nothing_held)


async def test_the_finalizer_takes_no_lock(tmp_path: Path) -> None:
    """Collected in a thread that holds every lock there is, that of a handler of logging among
    them: it comes back at once, and what it began goes on when the locks are free."""
    nothing_held = accounting()

    class Handler(logging.Handler):
        registry = threading.Lock()  # not re-entrant, as that of a queue

        def emit(self, record: logging.LogRecord) -> None:
            with self.registry:
                pass

    handler = Handler()
    opened = Opened()
    await opened.open(tmp_path, has_children=False)
    replay = opened.replay
    locks = [
        handler.registry,
        replay._opened().registry.lock,
        replay._opened().admission.lock,
        reaper.current._lock,
    ]
    logging.getLogger("areplay._processes.dropped").addHandler(handler)
    try:
        opened.itself = opened  # type: ignore[attr-defined]
        del opened, replay
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            gc.collect()
        await until(nothing_held)
    finally:
        logging.getLogger("areplay._processes.dropped").removeHandler(handler)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("what", ["limiter", "selector"])
async def test_a_dropped_stream_leaves_its_replay_to_others(
    what: str, tmp_path: Path, warnings_of_drops: Callable[[], list[str]]
) -> None:
    """Its limiter or its Fifo holds no writer any more, its sampler is gone, the actors go on; then
    the group of actors is dropped: all rows that were handed in are there, and the replay closes in
    order."""
    opened = Opened()
    options = {
        "limiter": areplay.SamplesPerInsert(1.0, min_size_to_sample=4),
        "selector": areplay.Fifo(),
    }
    await opened.open(tmp_path, **{what: options[what]})
    replay = opened.replay
    (sampler,) = (each.pid for stream in replay.statistics().batches for each in stream.samplers)
    (actor,) = (each.pid for each in replay.statistics().actors)
    await until(lambda: replay.statistics().waits, what="a writer that is held")
    del opened.batches
    await until(lambda: sampler not in children())
    assert replay.statistics().batches == ()
    await until(lambda: replay.statistics().rows_inserted > 5_000, what="more than it would let in")
    inbox = running_actors(opened.actors)._inbox[0]
    del opened.actors
    await until(lambda: actor not in children())
    await until(
        lambda: replay.statistics().rows_inserted == 100 + inbox.rows_put,
        what="all that was handed in",
    )
    coordinator = replay._opened().coordinator
    await until(lambda: not coordinator._feeds.attached, what="no inbox that is watched")
    assert replay.statistics().actors == ()
    assert len(warnings_of_drops()) == 2
    async with replay.batches(batch_size=8) as batches:
        assert torn(await anext(batches)) == 0
    await opened.checkpoints.__aexit__(None, None, None)
    assert replay._opened().registry._holds == 0, "blocks may be split again"
    await replay.close()
    assert warnings_of_drops() == []


async def test_a_stream_keeps_its_replay() -> None:
    """Who holds only what was opened of a replay goes on with it: nothing is dropped."""

    async def stream_of_its_own() -> areplay.Batches:
        replay = await areplay.Replay(SPEC, 1_000).__aenter__()
        await replay.extend(rows(OWNER, 1, 0, 100))
        return await replay.batches(batch_size=4, prefetch=2).__aenter__()

    batches = await stream_of_its_own()
    gc.collect()
    for _ in range(20):
        assert torn(await anext(batches)) == 0
    held = Resources.now()
    del batches
    await until(lambda: Resources.now().descriptors < held.descriptors and not children())


async def test_a_context_without_a_name_is_held_by_its_block(tmp_path: Path) -> None:
    """`async with replay.actors(...):` holds it as a name would."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.hand_in_until_stopped, args=(0.001,)),
        replay.checkpoints(tmp_path, 0.01),
    ):
        gc.collect()
        rows_now = len(replay)
        await until(lambda: len(replay) > rows_now + 20 and replay.statistics().saves.saves > 1)


async def test_an_asynchronous_generator_that_is_dropped_closes_in_order(
    warnings_of_drops: Callable[[], list[str]],
) -> None:
    """The loop closes it, and waits: no warning."""
    nothing_held = accounting()

    async def batches_of_its_own() -> AsyncIterator[areplay.Batch]:
        async with areplay.Replay(SPEC, 1_000) as replay:
            await replay.extend(rows(OWNER, 1, 0, 100))
            async with replay.batches(batch_size=4, prefetch=2) as batches:
                async for batch in batches:
                    yield batch

    async for batch in batches_of_its_own():
        assert torn(batch) == 0
        break
    del batch
    await until(nothing_held)
    assert warnings_of_drops() == []


async def test_a_coroutine_that_is_destroyed_lets_go(
    warnings_of_drops: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its `async with` is left while it cannot wait: what it holds is let go, and Python complains
    of nothing."""
    nothing_held = accounting()
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    has_begun: list[bool] = []

    async def learn(at: asyncio.Future[None]) -> None:
        async with areplay.Replay(SPEC, 1_000) as replay:
            await replay.extend(rows(OWNER, 1, 0, 100))
            async with (
                replay.batches(batch_size=4, prefetch=2) as batches,
                replay.actors(workers.flush_and_tell, 1, args=(1,)),
            ):
                await anext(batches)
                has_begun.append(True)
                await at

    never = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(learn(never))
    await until(lambda: has_begun)
    coroutine: Any = task.get_coro()
    coroutine.close()  # as the collector does where the task is dropped with its loop
    never.set_result(None)
    with pytest.raises(RuntimeError):  # of asyncio: its coroutine is over
        await task
    del task, coroutine
    await until(nothing_held)
    assert complaints == []
    assert len(warnings_of_drops()) == 3


# Dropped with their loop.


def run_in(loop: asyncio.AbstractEventLoop, opened: Opened, folder: Path) -> None:
    """Open everything in that loop, and let it stand still."""
    loop.run_until_complete(opened.open(folder))


@pytest.mark.parametrize(
    ("new_loop", "closed"),
    [
        (asyncio.new_event_loop, "before"),
        (uvloop.new_event_loop, "before"),
        (uvloop.new_event_loop, "after"),
        (asyncio.new_event_loop, "never"),
        (uvloop.new_event_loop, "never"),
        (asyncio.new_event_loop, "after another thread has dropped it"),
    ],
)
def test_no_loop_is_needed(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    closed: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The user's loop was closed with everything open, or stands still for ever: all is let go, and
    asyncio says nothing of our tasks."""
    nothing_held = accounting()
    loop = new_loop()
    opened = Opened()
    run_in(loop, opened, tmp_path)
    if closed == "before":
        loop.close()
    held = [opened]
    del opened
    # which leaves the descriptors to the loop's next turn
    if closed == "after another thread has dropped it":
        in_another_thread(held.clear)
        until_now(
            lambda: (
                len(reaper.current.held) == 4
                and all(each.is_abandoned for each in reaper.current.held)
            )
        )
        loop.close()
    held.clear()
    if closed == "after":
        until_now(lambda: not children())
        loop.close()
    elif closed == "never":
        until_now(lambda: not children() and not threads(), what="without a turn of the loop")
        loop.run_until_complete(asyncio.sleep(0))  # and it still turns
        loop.close()
    del loop
    until_now(nothing_held)
    assert [each for each in caplog.records if each.name == "asyncio"] == []


def run_and_stop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Do the work in a thread in which the loop runs, as a library has one, then stop the loop and
    end the thread."""
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def dropped_loops() -> Iterator[None]:
    """Closes what uvloop leaves of a loop that was dropped without being closed, which libuv never
    frees."""
    before = descriptors()
    yield
    for descriptor, name in descriptors().items():
        if before.get(descriptor) != name:
            os.close(descriptor)


def left_by_a_stopped_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> int:
    """Count the descriptors that a loop without areplay leaves: none of asyncio, and those of
    libuv."""
    resource_tracker.ensure_running()  # its pipe is of the process
    run_and_stop(new_loop(), asyncio.sleep(0))
    before = Resources.now().descriptors
    run_and_stop(new_loop(), asyncio.sleep(0))
    return Resources.now().descriptors - before


@both_loops
@pytest.mark.parametrize("then", ["goes with it", "goes later", "turns again", "is closed"])
@pytest.mark.usefixtures("dropped_loops")
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_loop_that_was_stopped_in_another_thread_keeps_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    then: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread has ended, and another one drops everything. The children end at once, whatever
    becomes of the loop; descriptors, mappings and threads go when it turns, is closed, or goes with
    them or after them."""
    left_by_loop = left_by_a_stopped_loop(new_loop) if "goes" in then else 0
    before = Resources.now()
    before.descriptors += left_by_loop
    loops = [new_loop()]
    opened = Opened()
    run_and_stop(loops[0], opened.open(tmp_path))
    assert children()
    if then == "goes with it":
        opened.loop = loops.pop()  # type: ignore[attr-defined]
        opened.itself = opened  # type: ignore[attr-defined]
    del opened
    gc.collect()
    until_now(lambda: not children())
    if then == "turns again":
        loops[0].run_until_complete(asyncio.sleep(0))
        until_now(lambda: not threads())
    if then in ("turns again", "is closed"):
        loops[0].close()
    loops.clear()
    until_now(lambda: Resources.now().left_over(before) == [])
    assert [each for each in caplog.records if each.levelno > logging.WARNING] == []


@pytest.mark.parametrize("run", [areplay.run, asyncio.run, uvloop.run])
def test_an_error_that_leaves_a_program_keeps_nothing(
    run: Callable[..., None], tmp_path: Path
) -> None:
    """A main coroutine raises, and its replay was not entered with `async with`: collected with the
    error."""
    nothing_held = accounting()

    async def main() -> None:
        opened = Opened()
        await opened.open(tmp_path)
        raise ValueError

    with suppress(ValueError):
        run(main())
    until_now(nothing_held)


@both_loops
@pytest.mark.parametrize("at", ["while samplers start", "while it waits"])
def test_a_learner_that_waits_is_dropped_with_its_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that waits for samplers to start, or for a batch that never comes, within its
    contexts: collected with the loop, and with it all that it holds."""
    nothing_held = accounting()
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    streams: list[areplay.Batches] = []

    async def learn() -> None:
        async with (
            areplay.Replay(SPEC, 1_000) as replay,
            replay.batches(batch_size=4, prefetch=2) as batches,
        ):
            streams.append(batches)
            await anext(batches)

    def is_there() -> bool:
        return (
            bool(children())
            if at == "while samplers start"
            else bool(streams and streams[0]._stream.waits())
        )

    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: None)  # of the test's own task
    task = loop.create_task(learn())
    while not is_there():
        loop.run_until_complete(asyncio.sleep(0.001))
    streams.clear()
    loop.close()
    del task, loop
    until_now(nothing_held)
    assert complaints == []


@both_loops
def test_closing_that_is_destroyed_is_finished_by_the_reaper(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is closed while closing waits for an actor that does not end: Python complains of
    nothing."""
    nothing_held = accounting()
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def live(opened: Opened) -> None:
        async with areplay.Replay(SPEC, 1_000) as opened.replay:
            opened.actors = opened.replay.actors(
                workers.stop_slowly, args=(["blocks its loop"],), grace_s=100.0
            )
            opened.batches = opened.replay.batches(batch_size=4, prefetch=2)
            async with opened.actors, opened.batches:
                await anext(opened.batches)

    loop, opened = new_loop(), Opened()
    loop.set_exception_handler(lambda loop, context: None)  # of the test's own task
    task = loop.create_task(live(opened))
    while not (
        hasattr(opened, "actors")
        and opened.actors._group._running
        and running_actors(opened.actors)._supervisor._stopping.is_set()
    ):
        loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    del task, loop, opened
    until_now(nothing_held)
    assert complaints == []


@both_loops
def test_closing_after_the_loop_was_closed_comes_to_an_end(
    new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """`close` in another loop, since the first is closed: all is let go, and it returns when that
    is done."""
    loop, other = new_loop(), new_loop()
    opened = Opened()
    run_in(loop, opened, tmp_path)
    loop.close()

    async def close() -> None:
        async with asyncio.timeout(20.0):
            await opened.batches.close()
            await opened.actors.close()
            await opened.checkpoints.__aexit__(None, None, None)
            await opened.replay.close()

    other.run_until_complete(close())
    assert not children()
    with pytest.raises(areplay.Closed):
        opened.replay.sample(1)
    other.run_until_complete(other.shutdown_default_executor())
    other.close()


# At the end of the interpreter, and in forks.

PROGRAM = """
import asyncio, sys, threading
import numpy as np
import areplay
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, rows

kept = []

async def main(folder):
    replay = await areplay.Replay(SPEC, 1_000).__aenter__()
    await replay.extend(rows(OWNER, 1, 0, 100))
    kept.append(replay)
    kept.append(await replay.checkpoints(folder, 0.01).__aenter__())
    kept.append(await replay.actors(workers.stop_slowly, 1, args=(["blocks its loop"],)).__aenter__())
    kept.append(await replay.batches(batch_size=4).__aenter__())
    await anext(kept[-1])
    pids = [each.pid for each in replay.statistics().actors]
    pids += [each.pid for stream in replay.statistics().batches for each in stream.samplers]
    print(*pids, flush=True)
    if "circle" in sys.argv:
        kept.append(kept)
        globals().pop("kept")

if __name__ == "__main__":
    if "run" in sys.argv:
        areplay.run(main(sys.argv[1]))
    elif "lasting" in sys.argv:
        def last():
            loop = asyncio.new_event_loop()
            kept.append(loop.run_until_complete(areplay.Replay(SPEC, 1_000).__aenter__()))
            loop.close()
            threading.main_thread().join()
            print(len(kept[-1]), flush=True)
        threading.Thread(target=last).start()
    elif "thread" in sys.argv:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(main(sys.argv[1]), loop).result()
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main(sys.argv[1]))
        if "closed" in sys.argv:
            loop.close()
        if "save" in sys.argv:
            kept.append(loop.create_task(kept[0].save(sys.argv[1] + "-2", max_bytes_per_s=1)))
            loop.run_until_complete(asyncio.sleep(0.05))
            kept[-1]._log_destroy_pending = False
    if "raise" in sys.argv:
        raise SystemExit(3)
"""


def end_of_program(how: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(folder / "checkpoint"), *how]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.getcwd()])
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def complain_of_nothing(said: str) -> None:
    """Python, asyncio and areplay see no error."""
    for word in ("Traceback", "Exception", "Error", "destroyed", "never awaited"):
        assert word not in said


@pytest.mark.parametrize(
    "how", [("run", "circle"), ("thread",), ("still", "save"), ("closed", "raise")], ids=" ".join
)
def test_at_the_end_of_the_interpreter(how: tuple[str, ...], tmp_path: Path) -> None:
    """With everything open, whatever became of the loop: no traceback, a warning for each, and no
    child, when the process ends, with the exit code that the program wants. A save that would take
    hours is not waited for."""
    said = end_of_program(how, tmp_path)
    assert said.returncode == (3 if "raise" in how else 0), said.stderr
    pids = [int(word) for word in said.stdout.split()]
    assert len(pids) == 2
    until_now(lambda: not any(is_running(pid) for pid in pids))
    assert said.stderr.count("`async with`") == 4, said.stderr
    complain_of_nothing(said.stderr)


def test_a_thread_that_outlives_the_main_one_goes_on(tmp_path: Path) -> None:
    """What it uses is let go after it has ended, which the interpreter waits for."""
    said = end_of_program(("lasting",), tmp_path)
    assert (said.returncode, said.stdout) == (0, "0\n"), said.stderr
    assert said.stderr.count("`async with`") == 1, said.stderr
    complain_of_nothing(said.stderr)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_that_drops_lets_nothing_go() -> None:
    """What it drops is its parent's: there all goes on."""
    opened = Opened()
    opened.replay = await areplay.Replay(SPEC, 1_000).__aenter__()
    opened.actors = await opened.replay.actors(
        workers.hand_in_until_stopped, args=(0.001,)
    ).__aenter__()
    held, holdings = [opened], opened.actors._group._life.holdings
    before = children()
    pid = fork()
    if pid == 0:
        held.clear()
        del opened
        gc.collect()
        reaper._at_exit()
        os._exit(holdings.is_abandoned)
    assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222  it lives for a moment
    rows_now = len(opened.replay)
    await until(lambda: len(opened.replay) > rows_now + 20)
    assert children() == before
    await opened.replay.close()


class Owner:
    """What a test drops."""

    def __init__(self, *steps: Callable[[], bool | None]) -> None:
        self.holdings = dropped.Holdings("an owner")
        self.holdings.begin(self)
        for step in steps:
            self.holdings.push(step)


async def test_a_thread_that_cannot_be_started_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the next object that is opened starts it, and lets go what was dropped before."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    let_go: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        first = Owner(lambda: let_go.append(1))
    del first
    assert let_go == []
    second = Owner(lambda: let_go.append(2))
    await until(lambda: let_go == [1])
    del second
    await until(lambda: let_go == [1, 2])


async def test_a_step_that_fails_keeps_none_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, with what it was about; a step that takes time is asked again until it is
    done."""
    let_go: list[str] = []
    asked = iter([False, False, True])

    def takes_time() -> bool:
        let_go.append("asked")
        return next(asked)

    owner = Owner(lambda: let_go.append("last"), lambda: 1 // 0 > 0, takes_time)
    holdings = owner.holdings
    del owner
    await until(lambda: holdings.is_done)
    assert let_go == ["asked"] * 3 + ["last"]
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == ["an owner could not be let go in full"]
