"""What runs in the actors and samplers of the tests of forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import areplay
from tests.forked import fork, in_child, outcome

SPEC = areplay.Spec(x=((), "int64"))


def say(found: Any) -> str:
    """An outcome in words."""
    return (
        f"{type(found).__name__} of {found.pid}"
        if isinstance(found, areplay.WrongProcess)
        else repr(found)
    )


async def idle(actor: areplay.Actor) -> None:
    """Hand nothing in."""
    while not actor.stopping:  # noqa: ASYNC110  shared memory sets no event
        await asyncio.sleep(0.01)


async def uses_in_a_fork(actor: areplay.Actor) -> None:
    """Report what each use of the actor does in a forked child, and go on here."""
    await actor.add(x=0)

    def use() -> dict[str, str]:
        uses = {
            "add": lambda: actor.add(x=1),
            "extend": lambda: actor.extend({"x": [1]}),
            "flush": lambda: actor.flush(),
            "end_episode": lambda: actor.end_episode(),
            "autoreset_mode": lambda: actor.autoreset_mode,
            "report": lambda: actor.report(x=1),
            "stopping": lambda: actor.stopping,
            "weights": lambda: actor.weights,
        }
        return {name: say(outcome(each)) for name, each in uses.items()}

    actor.report(pid=os.getpid(), **in_child(use))
    await actor.add(x=1)


def _say_nothing() -> None:
    """The traceback of a forked child is not news."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _sleep() -> None:
    time.sleep(100.0)


async def leaves_by_forks(actor: areplay.Actor) -> None:
    """Forked children return, raise and exit through the actor's code, and are terminated; the
    actor goes on."""
    for number, way in enumerate(("return", "raise", "exit", "Process")):
        await actor.add(x=number)
        if way == "Process":
            worker = multiprocessing.get_context("fork").Process(target=_sleep, daemon=True)
            worker.start()
            worker.terminate()
            worker.join(30.0)
            actor.report(way=way, code=worker.exitcode)
            continue
        pid = fork()
        if pid == 0:
            _say_nothing()
            if way == "return":
                return
            if way == "raise":
                raise ValueError
            sys.exit(7)
        actor.report(way=way, code=_exit_code(pid))
    while not actor.stopping:  # noqa: ASYNC110  shared memory sets no event
        await asyncio.sleep(0.01)


def double(batch: Mapping[str, Any], out: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Fork, now and then; the child leaves the sampler's code by an exception, or exits."""
    global _batches
    _batches += 1
    if _batches in (2, 4):
        pid = fork()
        if pid == 0:
            _say_nothing()
            if _batches == 2:
                raise ValueError
            sys.exit(7)
        os.waitpid(pid, 0)
    out["twice"][:] = 2 * batch["x"]


_batches = 0


async def steps_a_vector(actor: areplay.Actor, environments: int, steps: int) -> None:
    """Hand in steps of environments that live in forked processes."""
    import gymnasium

    envs = gymnasium.vector.AsyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * environments, context="fork"
    )
    actor.autoreset_mode = envs.metadata["autoreset_mode"]
    obs, _ = envs.reset(seed=1)
    for _ in range(steps):
        action = envs.action_space.sample()
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        await actor.add(
            obs=obs, action=action, reward=reward, terminated=terminated, truncated=truncated
        )
        obs = next_obs
    processes = [process.pid for process in envs.processes]
    envs.close()
    actor.report(pid=processes[0])


PROGRAM = """
import asyncio, os, signal, sys, uvloop
import numpy as np
import areplay
from tests.faults.fork_workers import SPEC
from tests.forked import fork

async def act(actor):
    number = 0
    while not actor.stopping:
        await actor.add(x=number)
        number += 1
        await asyncio.sleep(0.001)

def pids(replay):
    seen = replay.statistics()
    return [each.pid for each in (*seen.actors, *seen.batches[0].samplers)], [each.restarts for each in seen.actors]

async def main():
    async with areplay.Replay(SPEC, 5_000) as replay:
        async with (
            replay.checkpoints(sys.argv[2], 0.2),
            replay.actors(act, 3) as actors,
            replay.batches(batch_size=8, prefetch=4, selector=areplay.Fifo(), timeout_s=50.0) as batches,
        ):
            before = pids(replay)
            await anext(batches)
            for way in ("return", "raise", "exit", "terminate"):
                pid = fork()
                if pid == 0:
                    sys.stderr = open(os.devnull, "w")
                    if way == "return": return "child"
                    if way == "raise": raise ValueError(way)
                    if way == "exit": sys.exit(7)
                    signal.pause()
                if way == "terminate":
                    os.kill(pid, signal.SIGTERM)
                print(way, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
                for _ in range(5):
                    await anext(batches)
            assert pids(replay) == before, (before, pids(replay))
            closing = asyncio.create_task(actors.close())
            for _ in range(3):
                await asyncio.sleep(0)
            pid = fork()
            if pid == 0:
                sys.stderr = open(os.devnull, "w")
                sys.exit(7)
            print("while it closes", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            await closing
    return "parent"

if __name__ == "__main__":
    runs = {"areplay": areplay.run, "asyncio": asyncio.run, "uvloop": uvloop.run}
    who = runs[sys.argv[1]](main())
    print(who, flush=True)
    os._exit(3) if who == "child" else None
"""


def has_files(path: str) -> bool:
    """Whether there is a directory with something in it."""
    return Path(path).is_dir() and any(Path(path).iterdir())


def die_in_a_save(path: str, ready: str) -> None:
    """A learner that is killed while it saves, and leaves a forked worker, whose id it writes into
    that file."""

    async def main() -> None:
        async with areplay.Replay(SPEC, 100_000) as replay:
            await replay.extend({"x": np.arange(100_000)})
            saving = asyncio.create_task(replay.save(path, max_bytes_per_s=1e4))
            while not has_files(path):  # noqa: ASYNC110  another thread writes them
                await asyncio.sleep(0.01)
            worker = fork()
            if worker == 0:
                time.sleep(100.0)  # noqa: ASYNC251
                os._exit(0)
            Path(ready).write_text(str(worker))  # noqa: ASYNC240
            os.kill(os.getpid(), signal.SIGKILL)
            await saving

    asyncio.run(main())
