"""A whole program with actors and samplers, to be interrupted and killed by tests:
`python program.py '{options}'`.

Prints a line when it begins to start children, one when it takes batches, one when it takes no
more, one when it has closed in order.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import struct
import sys
import time
from contextlib import suppress

import numpy as np

import areplay

OPTIONS = {
    "actors": 2,
    "samplers": 1,
    "import_s": 0.0,  # how long its children take to import this module
    "busy": False,  # its learner computes on and on, and says when it has been interrupted
    "stubborn": False,  # actors do not look at `stopping`, and block
    "grace_s": 30.0,
    "rows": 10_000,
    "row_bytes": 64,
    "prefault": False,
    "cleanup_s": 0.0,  # how long an actor takes to clean up
    "forks": False,  # its learner forks a process that lives on
    "padding": "",  # for a long command line
    "death_signal": "",  # actors have it "cleared", or it is "refused" to all children
    **(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}),
}

if __name__ == "__mp_main__":
    if OPTIONS["import_s"]:
        print("importing", os.getpid(), time.monotonic(), flush=True)
    time.sleep(OPTIONS["import_s"])


async def act(actor: areplay.Actor, row_bytes: int, stubborn: bool, cleanup_s: float) -> None:
    """Hand in rows for ever."""
    obs = np.zeros(row_bytes, np.uint8)
    if OPTIONS["death_signal"] == "cleared":
        assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0
    try:
        while not actor.stopping:
            await actor.add(obs=obs)
            if stubborn:
                time.sleep(1_000)  # noqa: ASYNC251  that is the point
            await asyncio.sleep(0.001)
    finally:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(cleanup_s)


def refuse_death_signals() -> None:
    """Let the kernel refuse prctl(PR_SET_PDEATHSIG, ...) from now on, to this process and its
    children."""
    prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
    program = (  # if it is prctl, and its first argument is 1: EPERM; or else: go on
        (0x20, 0, 0, 0),
        (0x15, 0, 3, prctl),
        (0x20, 0, 0, 16),
        (0x15, 0, 1, 1),
        (0x06, 0, 0, 0x00050001),
        (0x06, 0, 0, 0x7FFF0000),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0, "no new privileges"
    assert libc.prctl(22, 2, header, 0, 0) == 0, "seccomp"


def say(word: str) -> None:
    """Tell the test."""
    print(word, os.getpid(), f"{time.monotonic():.4f}", flush=True)


def compute() -> None:
    """A step of learning that does not end; say when it has been interrupted."""
    task = asyncio.current_task()
    assert task is not None
    while not task.cancelling():
        pass
    say("busy")
    while True:
        pass


async def main() -> None:
    """Learn for ever."""
    spec = areplay.Spec(obs=((OPTIONS["row_bytes"],), "uint8"))
    weights = areplay.Weights({"w": np.zeros(1_000)})
    try:
        async with areplay.Replay(spec, OPTIONS["rows"], prefault=OPTIONS["prefault"]) as replay:
            await replay.extend({"obs": np.zeros((10, OPTIONS["row_bytes"]), np.uint8)})
            say("starting")
            args = (OPTIONS["row_bytes"], OPTIONS["stubborn"], OPTIONS["cleanup_s"])
            async with (
                replay.actors(
                    act, OPTIONS["actors"], args=args, weights=weights, grace_s=OPTIONS["grace_s"]
                ),
                replay.batches(
                    batch_size=8, samplers=OPTIONS["samplers"], grace_s=OPTIONS["grace_s"]
                ) as batches,
            ):
                taken = 0
                if OPTIONS["forks"] and os.fork() == 0:
                    while True:
                        time.sleep(1_000)  # noqa: ASYNC251
                try:
                    async for _ in batches:
                        taken += 1
                        if taken == 10:
                            say("learning")
                            if OPTIONS["busy"]:
                                compute()
                finally:
                    say("leaving")
    finally:
        say("closed")


if __name__ == "__main__":
    if OPTIONS["death_signal"] == "refused":
        refuse_death_signals()
    areplay.run(main())
