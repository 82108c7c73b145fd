"""What runs in the children: actors that hand in the oracle's rows and misbehave in every way, and
a slow item."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import areplay
from areplay._base.arrays import Array, Indices
from areplay._storage.ring import Ring
from areplay._storage.windows import Windows

from .oracle import SPEC, Ledger, row, rows


async def hand_in(actor: areplay.Actor, count: int, chunk: int = 1) -> None:
    """`count` rows by `add`, or by `extend` in chunks; the last of them flushed."""
    life = os.getpid()
    for number in range(0, count, chunk):
        if chunk == 1:
            await actor.add(**row(actor.index, life, number))
        else:
            await actor.extend(rows(actor.index, life, number, min(count, number + chunk)))
    await actor.flush()


async def hand_in_mixed(actor: areplay.Actor, count: int) -> None:
    """`count` rows, by turns through `add` and through `extend` in chunks of many sizes."""
    life, number = os.getpid(), 0
    while number < count:
        chunk = min(int(actor.rng.integers(1, 200)), count - number)
        if chunk < 100:
            for each in range(number, number + chunk):
                await actor.add(**row(actor.index, life, each))
        else:
            await actor.extend(rows(actor.index, life, number, number + chunk))
        number += chunk


async def hand_in_until_stopped(actor: areplay.Actor, pause_s: float = 0.0) -> None:
    """Rows by `add` for as long as it may."""
    number = 0
    while not actor.stopping:
        await actor.add(**row(actor.index, os.getpid(), number))
        number += 1
        if pause_s:
            await asyncio.sleep(pause_s)


async def hand_in_chunks_until_stopped(
    actor: areplay.Actor, chunk: int = 40, pause_s: float = 0.001
) -> None:
    """Rows by `extend` for as long as it may."""
    number = 0
    while not actor.stopping:
        await actor.extend(rows(actor.index, os.getpid(), number, number + chunk))
        number += chunk
        await asyncio.sleep(pause_s)


async def flush_and_tell(actor: areplay.Actor, count: int) -> None:
    """A few rows, flushed; says so, and waits."""
    await hand_in(actor, count)
    actor.report(flushed=count)
    while not actor.stopping:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def ledgered(actor: areplay.Actor, folder: str) -> None:
    """Rows by add and by extend until stopped, each accounted for."""
    ledger, number = Ledger(folder, actor.index), 0
    while not actor.stopping:
        chunk = 1 if actor.rng.random() < 0.8 else int(actor.rng.integers(2, 50))
        ledger.pending(chunk)
        if chunk == 1:
            await actor.add(**row(actor.index, ledger.life, number))
        else:
            await actor.extend(rows(actor.index, ledger.life, number, number + chunk))
        ledger.acked(chunk)
        number += chunk


async def die_after(actor: areplay.Actor, folder: str, count: int, chunk: int) -> None:
    """So many rows, and SIGKILL right after the last was acknowledged."""
    ledger = Ledger(folder, actor.index)
    for number in range(0, count, chunk):
        ledger.pending(chunk)
        if chunk == 1:
            await actor.add(**row(actor.index, ledger.life, number))
        else:
            await actor.extend(rows(actor.index, ledger.life, number, number + chunk))
        ledger.acked(chunk)
    os.kill(os.getpid(), signal.SIGKILL)


async def ledgered_calls(actor: areplay.Actor, folder: str, calls: list[int], chunk: int) -> None:
    """So many calls of add, or of extend with chunks, each accounted for."""
    ledger = Ledger(folder, actor.index)
    for call in range(calls[actor.index]):
        ledger.pending(chunk)
        if chunk == 1:
            await actor.add(**row(actor.index, ledger.life, call))
        else:
            await actor.extend(rows(actor.index, ledger.life, call * chunk, (call + 1) * chunk))
        ledger.acked(chunk)


async def hand_in_and_raise(actor: areplay.Actor, count: int, _: None = None) -> None:
    """A few rows, and then an error; says when."""
    for number in range(count):
        await actor.add(**row(actor.index, os.getpid(), number))
    actor.report(ended=time.monotonic())
    raise ValueError("enough")


async def first_raises_others_go_on(actor: areplay.Actor) -> None:
    """Actor 0 raises at once."""
    if actor.index == 0:
        raise ValueError("enough")
    await hand_in_until_stopped(actor, 0.001)


class Unpicklable(Exception):
    """Has a lock in it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Unprintable(Exception):
    """Cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


async def _cancel_itself() -> None:
    raise asyncio.CancelledError


MISBEHAVIOURS = (
    "raises",
    "raises what cannot be pickled",
    "raises what cannot be printed",
    "raises at length",
    "raises an interrupt",
    "exits with 3",
    "exits with 0",
    "exits with words",
    "leaves with 0",
    "is cancelled by its own code",
    "breaks in native code",
    "forks and raises",
    "behaves",
    "returns at once",
    "prints a lot",
    "blocks its loop",
    "recovers from bad rows",
)


async def misbehave(actor: areplay.Actor, ways: list[str]) -> None:
    """Five rows, and then whatever is this actor's way."""
    way = ways[actor.index]
    if way == "returns at once":
        return
    await hand_in(actor, 2_000 if way == "behaves" else 5)
    if way == "raises":
        raise RuntimeError("the environment broke")
    if way == "raises what cannot be pickled":
        raise Unpicklable("with a lock")
    if way == "raises what cannot be printed":
        raise Unprintable
    if way == "raises at length":
        raise RuntimeError("🙂" * 1_000_000)
    if way == "raises an interrupt":
        raise KeyboardInterrupt
    if way == "exits with 3":
        sys.exit(3)
    if way == "exits with 0":
        sys.exit(0)
    if way == "exits with words":
        sys.exit("no more")
    if way == "leaves with 0":
        os._exit(0)
    if way == "is cancelled by its own code":
        await asyncio.create_task(_cancel_itself())
    if way == "breaks in native code":
        os.kill(os.getpid(), signal.SIGSEGV)
    if way == "forks and raises":
        _fork_and_tell(actor)
        raise RuntimeError("after the fork")
    if way == "prints a lot":
        print("x" * (1 << 20), flush=True)
    if way == "blocks its loop":
        time.sleep(1.0)  # noqa: ASYNC251  that is the point
    if way == "recovers from bad rows":
        with suppress(areplay.SpecMismatch):
            await actor.add(number=1)
        with suppress(areplay.SpecMismatch):
            await actor.extend({**rows(0, 0, 0, 3), "number": np.zeros(2, np.int64)})


def _fork_and_tell(actor: areplay.Actor) -> None:
    pid = os.fork()
    if pid == 0:  # holds every descriptor of the actor, and lives on until the test ends it
        time.sleep(120.0)
        os._exit(0)
    actor.report(forked=pid)


class BrokenItem(areplay.Rows):
    """An item whose code raises in the sampler."""

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Raise."""
        raise ZeroDivisionError("broken item")


class PicklesOnly:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("cannot be unpickled")


class SlowToUnpickle:
    """Makes a child's start take so long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (self.seconds,)


class SlowInSuccessors:
    """Makes the start of every child but the first take so long."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._pickled = seconds, 0

    def __reduce__(self) -> tuple[Any, ...]:
        self._pickled += 1
        return time.sleep, (self.seconds if self._pickled > 1 else 0.0,)


async def stop_slowly(actor: areplay.Actor, ways: list[str]) -> None:
    """Ten rows, and then whatever is this actor's way to wait and to end."""
    way = ways[actor.index]
    await hand_in(actor, 10)
    if way == "polite":
        while not actor.stopping:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    elif way == "waits for something else":
        await asyncio.sleep(1_000)
    elif way == "takes its time to clean up":
        try:
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(0.1)
            await actor.add(**row(actor.index, os.getpid(), 10))
    elif way == "blocks its loop":
        time.sleep(1_000)  # noqa: ASYNC251  that is the point
    else:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1_000)


async def report_full_inbox(actor: areplay.Actor, count: int) -> None:
    """So many rows, each tried until it is taken; the first error is reported."""
    number, has_told = 0, False
    while number < count:
        try:
            await actor.add(**row(actor.index, os.getpid(), number))
        except areplay.InboxFull as error:
            if not has_told:
                actor.report(error=str(error))
                has_told = True
        else:
            number += 1
            if not has_told:
                await asyncio.sleep(0.001)


async def steps_when_told(actor: areplay.Actor, count: int) -> None:
    """Single steps of one episode, once weights were published; then nothing until it is
    stopped."""
    while not actor.stopping and actor.weights.version < 1:  # noqa: ASYNC110  it is about shared memory
        await asyncio.sleep(0.005)
    for number in range(count):
        await actor.add(obs=number, action=0, reward=0.0, terminated=False, truncated=False)
    await actor.flush()
    while not actor.stopping:  # noqa: ASYNC110  it is about shared memory
        await asyncio.sleep(0.005)


class Remembered:
    """Draws among the rows whose indices it was given, whether they are there or not; in one way or
    another wrong."""

    def __init__(self, indices: list[int], way: str = "") -> None:
        self.indices, self.way = np.array(indices), way

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, float]:
        """Any of them."""
        if self.way == "raises":
            raise LookupError("no such rows")
        drawn = rng.choice(self.indices, count)
        return drawn.astype(float) if self.way == "floats" else drawn, 1 / len(self.indices)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return "Remembered()"


async def extend_without_pause(actor: areplay.Actor, chunk: int) -> None:
    """Rows by extend, as fast as they are taken."""
    life, start = os.getpid(), 0
    while not actor.stopping:
        await actor.extend(rows(actor.index, life, start, start + chunk))
        start += chunk


class SlowUniform(areplay.Uniform):
    """Uniform draws that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, float]:
        """Draw, and wait."""
        drawn = super().draw(ring, count, rng)
        time.sleep(self.seconds)
        return drawn


class SlowRows(areplay.Rows):
    """Rows whose copying takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Copy, and wait."""
        super().assemble(windows, out)
        time.sleep(self.seconds)


class StopsItself(areplay.Rows):
    """Rows whose n-th copying stops the process in its middle."""

    def __init__(self, at_copy: int) -> None:
        self.left = at_copy

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Copy half, stop, copy the other half."""
        half = len(windows) // 2
        super().assemble(windows.part(0, half), {name: array[:half] for name, array in out.items()})
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        for name, array in out.items():
            array[half:] = windows.columns[name][windows.positions[half:, 0]]


class StopsAtOne(SlowRows):
    """Slow rows that stop the process each time that a single one is to be copied, until a file
    says that it is enough.

    A single row is copied under its block's lock, or, now and then, when it is the only one of its
    batch that is left.
    """

    def __init__(self, seconds: float, enough: Path) -> None:
        super().__init__(seconds)
        self.enough = enough

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Stop if it is one; copy, slowly."""
        if len(windows) == 1 and not self.enough.exists():
            os.kill(os.getpid(), signal.SIGSTOP)
        super().assemble(windows, out)


async def uneven(actor: areplay.Actor, counts: list[int]) -> None:
    """As many rows as its index says."""
    await hand_in(actor, counts[actor.index])


async def tell_seed_and_raise(actor: areplay.Actor) -> None:
    """What it was given to be random with; then an error, for the sake of a restart."""
    actor.report(seed=actor.seed, number=float(actor.rng.random()))
    raise ValueError("once more")


async def tell_weights_and_raise(actor: areplay.Actor) -> None:
    """What it sees of the weights; then an error, for the sake of a restart."""
    version, arrays = actor.weights.latest()
    actor.report(version=version, sum=float(arrays["w"].sum()))
    raise ValueError("once more")


async def watch_weights(actor: areplay.Actor, enough: int = 1) -> None:
    """Look at the weights all the time; tell when it has seen enough versions, and what it saw by
    the last of them."""
    before, seen, back, torn = -1, 0, 0, 0
    while not actor.stopping:
        version, arrays = actor.weights.latest()
        if version != before:
            seen += 1
            back += version < before
            torn += bool((arrays["w"] != version).any() or (arrays["b"] != version).any())
            before = version
            if seen == enough or arrays["is_last"]:
                actor.report(version=version, seen=seen, back=back, torn=torn)
        await asyncio.sleep(0)


async def have_actors(actor: areplay.Actor) -> None:
    """A replay and an actor of its own, inside an actor."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(hand_in_until_stopped, 1, args=(0.01,)) as inner,
    ):
        actor.report(inner=inner.statistics()[0].pid)
        while not actor.stopping:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def report_and_raise(actor: areplay.Actor, count: int) -> None:
    """So many reports without a pause, a row, and an error."""
    for number in range(count):
        actor.report(number=number)
    await actor.add(**row(actor.index, os.getpid(), 0))
    raise ValueError("after the reports")


async def hand_in_and_fail(actor: areplay.Actor, count: int) -> None:
    """Hand in some rows, see them taken, and fail."""
    for sequence in range(count):
        await actor.add(**row(actor.index, 1, sequence))
    await actor.flush()
    raise RuntimeError("this actor has failed")


async def leave_a_task_that_does_not_end(actor: areplay.Actor) -> None:
    """Hand in ten rows and return; a task stays, whatever becomes of it."""

    async def stay() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1_000.0)

    actor.left = asyncio.create_task(stay())  # type: ignore[attr-defined]
    for number in range(10):
        await actor.add(**row(actor.index, os.getpid(), number))


async def hang(actor: areplay.Actor, way: str, folder: str) -> None:
    """Actor 0 hangs, in its first reset, or in a step after ten rows, which blocks its loop or only
    waits; with a folder only the first time. The others go on, and so do those who come after
    it."""
    once = Path(folder) / "hung"
    if actor.index == 0 and not (folder and once.exists()):
        if folder:
            once.touch()
        for number in range(10 if way != "reset" else 0):
            await actor.add(**row(actor.index, os.getpid(), number))
        if way != "wait":
            time.sleep(1_000)  # noqa: ASYNC251
        try:
            await asyncio.sleep(1_000)
        finally:
            (Path(folder) / "closed").touch()
    await hand_in_until_stopped(actor, 0.0001)


async def report_until_stopped(actor: areplay.Actor) -> None:
    """No rows, only reports."""
    while not actor.stopping:
        actor.report(alive=True)
        await asyncio.sleep(0.01)


async def fail_when_told(actor: areplay.Actor) -> None:
    """No rows; ends when it gets SIGTERM, or is to stop."""
    while not actor.stopping:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def hand_in_versions(actor: areplay.Actor) -> None:
    """Rows that say by which weights they were made."""
    while not actor.stopping:
        version, _ = actor.weights.latest()
        await actor.add(version=version)


async def return_and_end_late(actor: areplay.Actor, folder: str, seconds: float) -> None:
    """Ten rows; then its interpreter needs time to end, and writes a file at last."""
    atexit.register(_write_late, folder, seconds)
    await hand_in(actor, 10)


async def return_and_leave_a_task(actor: areplay.Actor, way: str) -> None:
    """Ten rows, and a task that ends in that way when it is cancelled: by itself, not at all, or
    with the process."""

    async def stay() -> None:
        try:
            await asyncio.sleep(1_000.0)
        finally:
            if way == "exits":
                sys.exit(0)
            elif way == "dies":
                os._exit(9)
            elif way == "hangs":
                await asyncio.sleep(1_000.0)
            else:
                await hand_in(actor, 10)

    task = asyncio.create_task(stay())
    await hand_in(actor, 10)
    await asyncio.sleep(0)
    assert not task.done()


def _write_late(folder: str, seconds: float) -> None:
    (Path(folder) / "ending").touch()
    time.sleep(seconds)
    (Path(folder) / "ended").touch()


async def raise_and_not_end(actor: areplay.Actor, folder: str) -> None:
    """Raises the first time, and a thread keeps its interpreter from ending; the next one
    returns."""
    if not (Path(folder) / "raised").exists():
        (Path(folder) / "raised").touch()
        threading.Thread(target=time.sleep, args=(1_000.0,)).start()
        raise ValueError("enough")
    await hand_in(actor, 10)


async def print_and_return(actor: areplay.Actor, way: str) -> None:
    """Ten rows, and words to a standard output that is not as it should be."""
    sys.stdout = os.fdopen(1, "w", closefd=False)  # with a buffer, whatever PYTHONUNBUFFERED says
    if way == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif way == "a pipe that nobody reads":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    elif way == "its descriptor closed":
        os.close(1)
    print("some words")
    if way == "closed":
        with suppress(OSError):
            sys.stdout.close()
    elif way == "none":
        sys.stdout = None
    await hand_in(actor, 10)


async def tell_size(actor: areplay.Actor, *args: Any) -> None:
    """Reports the size of what it was given, then dies the first time and returns the second."""
    actor.report(size=sum(map(len, args)))
    await hand_in(actor, 10)
    (folder,) = [arg for arg in args if isinstance(arg, str)]
    if not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os._exit(9)


async def block(actor: areplay.Actor) -> None:
    """It neither looks at `stopping` nor lets its loop turn."""
    time.sleep(1_000)  # noqa: ASYNC251


async def start_a_program(actor: areplay.Actor) -> None:
    """Reports its exit code, and how many descriptors it could have, beside the standard
    streams."""
    code = subprocess.run(["sh", "-c", "exit 3"], check=False).returncode  # noqa: ASYNC221
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    inheritable = 0
    for number in numbers:
        with suppress(OSError):  # the one that listed them
            inheritable += number > 2 and os.get_inheritable(number)
    actor.report(code=code, inheritable=inheritable)
