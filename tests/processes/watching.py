"""Looking at the machine from outside the library: processes, descriptors, threads, and waiting for
a condition."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import areplay

# how long a condition may take on a busy machine before a test gives up; never a promise
WATCHDOG_S = 30.0


async def let_turn() -> None:
    """Let the loop turn for a moment."""
    await asyncio.sleep(0.005)


async def until(
    condition: Callable[[], object],
    within: float = WATCHDOG_S,
    what: str = "",
    meanwhile: Callable[[], Awaitable[None]] = let_turn,
) -> None:
    """Let the loop turn, or do something else again and again, until `condition()` is true."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what or condition}"
        await meanwhile()


async def learn_until(
    batches: areplay.Batches,
    condition: Callable[[], object],
    what: str = "",
    look: Callable[[areplay.Batch], None] = lambda batch: None,
) -> None:
    """Take batches as they become ready, and look at each, until `condition()` is true.

    While nobody takes any, a sampler with a full queue does nothing.
    """

    async def learn() -> None:
        if batches.statistics().ready:
            batch = await batches.get()
            look(batch)
            batch.release()
        else:
            await let_turn()

    await until(condition, what=what, meanwhile=learn)


def until_now(condition: Callable[[], object], within: float = WATCHDOG_S, what: str = "") -> float:
    """Wait until `condition()` is true, without an event loop; how long that took, in seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + within, f"not within {within:g} s: {what or condition}"
        time.sleep(0.005)
    return time.monotonic() - started


def parent_of(pid: int) -> int | None:
    """The parent of a process, `None` if there is no such process or only what is left of it (a
    zombie)."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def is_running(pid: int) -> bool:
    """Whether that process exists and is no zombie."""
    return parent_of(pid) is not None


def state_of(pid: int) -> str:
    """The letter that the kernel gives the state of a process, such as T if it is stopped; empty if
    it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children() -> set[int]:
    """The children of this process, zombies included, without multiprocessing's resource
    tracker."""
    tracker = getattr(resource_tracker._resource_tracker, "_pid", None)
    found = set()
    for pid in _pids():
        with suppress(OSError):
            if (
                int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                == os.getpid()
            ):
                found.add(pid)
    return found - {tracker}


def marked(mark: str) -> set[int]:
    """All running processes that have `mark` in the environment they were started with, whoever
    their parent is."""
    found = set()
    for pid in _pids():
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes() and is_running(pid):
                found.add(pid)
    return found


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and what each refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def threads() -> set[str]:
    """The names of this process's threads, but for the main one and idle ones of executors."""
    return {
        t.name
        for t in threading.enumerate()
        if t is not threading.main_thread() and "asyncio_" not in t.name
    }


def shared_memory_bytes() -> int:
    """What the whole machine uses of shared memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Shmem in /proc/meminfo")


def running_actors(actors: Any) -> Any:
    """The inboxes and processes of an open group of actors."""
    running = actors._group._running
    assert running is not None
    return running
