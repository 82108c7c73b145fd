"""Row 27: forks of a learner, an actor and a sampler, by whatever makes forks. The child gets a
typed error for every use, and nothing that it does or leaves undone reaches its parent."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._status.client import fetch_report, running_replays
from tests.faults import fork_workers
from tests.forked import end, fork, in_child, outcome
from tests.processes import workers
from tests.processes.oracle import SPEC as ORACLE_SPEC
from tests.processes.watching import is_running, until

SPEC = fork_workers.SPEC


def assert_foreign(found: dict[str, Any]) -> None:
    """Each outcome is the typed error, and names this process."""
    for name, error in found.items():
        assert isinstance(error, areplay.WrongProcess) and error.pid == os.getpid(), (
            f"{name}: {error!r}"
        )


def in_parts(uses: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The outcome of each use in one forked child."""
    return dict(in_child(lambda: {name: outcome(use) for name, use in uses.items()}))


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_every_use_of_a_learners_objects_is_a_typed_error(tmp_path: Path) -> None:
    """In a forked child; closing does nothing there, a repr says whose it is, and the parent's
    things are as before."""
    limiter, prioritized = areplay.SamplesPerInsert(1.0, 1, error_buffer=1e6), areplay.Prioritized()
    weights, fifo = areplay.Weights({"w": np.zeros(3)}), areplay.Fifo()
    async with areplay.Replay(SPEC, 1_024, seed=0) as replay:
        await replay.extend({"x": np.arange(500)})
        own = replay.sample(4, selector=prioritized)
        replay.sample(4, selector=fifo)
        waiting = replay.add(x=1)
        async with (
            replay.checkpoints(tmp_path / "ck", 1_000.0) as checkpoints,
            replay.actors(fork_workers.idle, 1, weights=weights) as actors,
            replay.batches(batch_size=4, limiter=limiter, selector=prioritized) as batches,
        ):
            batch = await anext(batches)
            copy, held = batch.copy(), await batches.get()
            foreign = in_parts(
                {
                    "sample": lambda: replay.sample(4),
                    "sample with Fifo": lambda: replay.sample(4, selector=fifo),
                    "update_priorities": lambda: replay.update_priorities(np.arange(4), np.ones(4)),
                    "add": lambda: replay.add(x=-1),
                    "add, begun by the parent": lambda: waiting,
                    "extend": lambda: replay.extend({"x": np.arange(9)}),
                    "len": lambda: len(replay),
                    "statistics": replay.statistics,
                    "save": lambda: replay.save(tmp_path / "other"),
                    "checkpoints": lambda: replay.checkpoints(tmp_path / "other", 1.0),
                    "actors": lambda: replay.actors(fork_workers.idle),
                    "batches": replay.batches,
                    "autoreset_mode": lambda: replay.autoreset_mode,
                    "end_episode": lambda: replay.end_episode(),
                    "enter replay": replay.__aenter__,
                    "enter actors": actors.__aenter__,
                    "enter batches": batches.__aenter__,
                    "enter checkpoints": checkpoints.__aenter__,
                    "reports": actors.reports,
                    "alive": lambda: actors.alive,
                    "failures": lambda: actors.failures,
                    "wait": actors.wait,
                    "actors' statistics": actors.statistics,
                    "anext": batches.__anext__,
                    "get": batches.get,
                    "batches' statistics": batches.statistics,
                    "batch": lambda: batch["x"],
                    "indices": lambda: held.indices,
                    "batch.copy": batch.copy,
                    "version": lambda: weights.version,
                    "latest": weights.latest,
                    "publish": lambda: weights.publish({"w": np.ones(3)}),
                    "pickle weights": lambda: pickle.dumps(weights),
                    "exponent": lambda: batches.importance_sampling_exponent,
                    "exponent =": lambda: setattr(batches, "importance_sampling_exponent", 1.0),
                    "limiter": lambda: batches.limiter,
                    "limiter =": lambda: setattr(batches, "limiter", limiter),
                }
            )
            assert_foreign(foreign)
            harmless = in_parts(
                {
                    "close batches": batches.close,
                    "close actors": actors.close,
                    "close replay": replay.close,
                    "leave checkpoints": lambda: checkpoints.__aexit__(None, None, None),
                    "leave replay": lambda: replay.__aexit__(None, None, None),
                    "release": batch.release,
                    "release another": held.release,
                    "close weights": weights.close,
                    "collect": lambda: gc.collect() and None,
                }
            )
            assert set(harmless.values()) == {"done"}, harmless
            things = (replay, batch, weights)
            for text in in_child(lambda: [repr(thing) for thing in things]):
                assert f"of process {os.getpid()}" in text
            assert in_child(lambda: [copy["x"].tolist(), own["x"].tolist()]) == [
                copy["x"].tolist(),
                own["x"].tolist(),
            ]
            before = batch["x"].copy()
            in_child(lambda: np.ndarray.fill(held._arrays.fields["x"], -1))  # type: ignore[union-attr]
            assert held["x"].min() >= 0 and (batch["x"] == before).all()

            assert await replay.add(x=7) == 500, "the next row is the parent's next row"
            assert batches.limiter is limiter and batches.importance_sampling_exponent == 0.4
            assert weights.publish({"w": np.ones(3)}) == 1
            held.release()
            for _ in range(50):
                await anext(batches)
            assert actors.alive == 1 and not actors.failures
            assert all(not record.restarts for record in replay.statistics().actors)
        waiting.close()


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_every_use_of_an_actor_is_a_typed_error() -> None:
    """In a process that it has forked; its own rows come in, and no others."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        async with replay.actors(fork_workers.uses_in_a_fork, 1, max_restarts=0) as actors:
            await actors.wait()
            (report,) = actors.reports()
        values = dict(report.values)
        pid = values.pop("pid")
        assert set(values.values()) == {f"WrongProcess of {pid}"}, values
        assert sorted(replay.sample(64)["x"].tolist()).count(0) and len(replay) == 2


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_forks_that_leave_an_actors_or_a_samplers_code_end_alone() -> None:
    """Returned, raised, exited, terminated: no child is restarted, nothing is reported as finished
    or failed."""
    twice = areplay.Transform(fork_workers.double, twice=((), "int64"))
    async with areplay.Replay(SPEC, 1_024) as replay:
        async with (
            replay.actors(fork_workers.leaves_by_forks, 1, max_restarts=0) as actors,
            replay.batches(
                batch_size=4, transform=twice, max_restarts=0, timeout_s=60.0
            ) as batches,
        ):
            for _ in range(30):
                batch = await anext(batches)
                assert (batch["twice"] == 2 * batch["x"]).all()
            reports: list[areplay.Report] = []
            await until(lambda: reports.extend(actors.reports()) or len(reports) == 4)
            codes = {report.values["way"]: report.values["code"] for report in reports}
            assert codes == {"return": 0, "raise": 1, "exit": 7, "Process": -signal.SIGTERM}
            assert actors.alive == 1 and batches.statistics().samplers_alive == 1
            assert batches.statistics().restarts == 0 and not actors.statistics()[0].has_finished
        assert len(replay) == 4


@pytest.mark.parametrize("runner", ["areplay", "asyncio", "uvloop"])
def test_forks_that_leave_a_learners_code_end_alone(runner: str, tmp_path: Path) -> None:
    """Through all of its contexts, under each way to run a coroutine: batches, rows and saves go
    on, no child of the learner's is touched, and it closes in order."""
    script = tmp_path / "program.py"
    script.write_text(fork_workers.PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script), runner, str(tmp_path / "ck")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    expected = [
        "child",
        "return 3",
        "raise 1",
        "exit 7",
        f"terminate {-signal.SIGTERM}",
        "while it closes 7",
        "parent",
    ]
    assert done.stdout.splitlines() == expected


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_fork_during_a_save_keeps_no_directory_locked(tmp_path: Path) -> None:
    """The worker lives on; the next save, and one after its learner was killed, are not told that
    it is busy."""
    async with areplay.Replay(SPEC, 20_000) as replay:
        await replay.extend({"x": np.arange(20_000)})
        saving = asyncio.create_task(replay.save(tmp_path / "ck", max_bytes_per_s=1e6))
        await until(lambda: fork_workers.has_files(str(tmp_path / "ck")))
        pid = fork()
        if pid == 0:
            signal.pause()
        try:
            await saving
            await replay.save(tmp_path / "ck", max_bytes_per_s=None)
        finally:
            end(pid)
        killed = multiprocessing.get_context("spawn").Process(
            target=fork_workers.die_in_a_save,
            args=(str(tmp_path / "killed"), str(tmp_path / "worker")),
        )
        killed.start()
        # its worker has the pipe that join() would wait for
        await until(lambda: killed.exitcode is not None)
        worker = int((tmp_path / "worker").read_text())
        try:
            assert killed.exitcode == -signal.SIGKILL and is_running(worker)
            await replay.save(tmp_path / "killed", max_bytes_per_s=None)
        finally:
            os.kill(worker, signal.SIGKILL)
            killed.close()


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_forked_child_may_open_what_is_its_own() -> None:
    """A replay that was not open, another one, and weights of its own: with actors, while its
    parent's go on."""

    def actors_of(replay: areplay.Replay) -> areplay.Actors:
        return replay.actors(workers.hand_in_until_stopped, 1, args=(0.001,))

    async def learn(replay: areplay.Replay) -> int:
        async with (
            replay,
            actors_of(replay),
            replay.batches(batch_size=4, timeout_s=60.0) as batches,
        ):
            for _ in range(3):
                await anext(batches)
        return areplay.Weights({"w": np.zeros(3)}).version

    closed = areplay.Replay(ORACLE_SPEC, 1_000)
    async with areplay.Replay(ORACLE_SPEC, 1_000) as replay, actors_of(replay) as actors:
        assert in_child(lambda: areplay.run(learn(closed))) == 0
        assert in_child(lambda: areplay.run(learn(areplay.Replay(ORACLE_SPEC, 1_000)))) == 0
        rows = replay.statistics().rows_inserted
        await until(lambda: replay.statistics().rows_inserted > rows)
        assert actors.alive == 1 and actors.statistics()[0].restarts == 0
    async with closed:
        assert len(closed) == 0


_shared: areplay.Replay | None = None


def _use_shared(_: int) -> int:
    assert _shared is not None
    return len(_shared)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_pools_and_loaders_get_the_error_across() -> None:
    """A worker of multiprocessing's or torch's raises it at the door of its parent, which goes
    on."""
    global _shared
    torch = pytest.importorskip("torch")
    async with areplay.Replay(SPEC, 1_024) as replay:
        await replay.extend({"x": np.arange(100)})

        class Rows(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: int) -> Any:
                return replay.sample(1)["x"]

        _shared = replay
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with (
                multiprocessing.get_context("fork").Pool(1) as pool,
                pytest.raises(areplay.WrongProcess) as raised,
            ):
                pool.map(_use_shared, range(1))
            assert raised.value.pid == os.getpid()
            loader = torch.utils.data.DataLoader(
                Rows(), num_workers=1, multiprocessing_context="fork"
            )
            with pytest.raises(Exception, match=f"opened by process {os.getpid()}"):
                next(iter(loader))
            del loader
        _shared = None
        assert await replay.add(x=1) == 100


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_environments_in_forked_processes_do_not_disturb_their_actor() -> None:
    """A vector of gymnasium's forks in an actor's process: each step comes in once, and the actor
    finishes."""
    pytest.importorskip("gymnasium")
    import gymnasium

    spec = areplay.Spec.from_env(gymnasium.make("CartPole-v1"))
    async with areplay.Replay(spec, 4_096) as replay:
        async with replay.actors(
            fork_workers.steps_a_vector, 1, args=(2, 40), max_restarts=0
        ) as actors:
            await actors.wait()
            (report,) = actors.reports()
            assert not is_running(int(report.values["pid"]))
            assert actors.statistics()[0].has_finished
            await until(lambda: replay.statistics().actors[0].waiting_rows == 0)
        assert len(replay) >= 80
        replay.sample(32)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_look_from_outside_is_answered_while_a_child_lives() -> None:
    """And no process listens under the replay's name once that is closed, though the child goes
    on."""
    async with areplay.Replay(SPEC, 1_024):
        pid = fork()
        if pid == 0:
            signal.pause()
        (address,) = (address for address in running_replays() if address.pid == os.getpid())
        assert (await asyncio.to_thread(fetch_report, address))["pid"] == os.getpid()
    try:
        await until(
            lambda: not [address for address in running_replays() if address.pid == os.getpid()]
        )  # once the child has run
    finally:
        end(pid)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_what_a_child_drops_waits_for_no_thread_of_its_parents() -> None:
    """A selector whose rows are kept is collected in the child, while a thread of the parent holds
    the ring's lock."""
    async with areplay.Replay(SPEC, 1_024) as replay:
        await replay.extend({"x": np.arange(100)})
        selectors = [areplay.Fifo()]
        replay.sample(4, selector=selectors[0])
        held, over = threading.Event(), threading.Event()

        registry = replay._opened().registry

        def hold() -> None:
            with registry:
                held.set()
                over.wait(30.0)

        def drop() -> int:
            selectors.clear()
            return gc.collect() * 0 + 1

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(30.0)
        try:
            assert in_child(drop) == 1
        finally:
            over.set()
            thread.join()
        assert replay.sample(4, selector=selectors[0])["x"].tolist() == [4, 5, 6, 7]
