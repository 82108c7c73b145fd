"""A check-up of the machine: what areplay needs of it, each thing really tried, and what each
finding means for a user.

`findings` yields them as they are found, for `areplay doctor`. A check never raises: what it cannot
do is its finding.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.util
import mmap
import os
import platform
import re
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

import areplay
from areplay._shm.range_locks import BlockLocks
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_AN_INBOX,
    DESCRIPTORS_TO_START,
    available_memory,
    memory_limits,
    process_limit,
    processor_quota,
)
from areplay._status.client import running_replays
from areplay._status.server import listening_socket, peer_of

OK, WARN, FAIL = "ok", "warn", "fail"

_GIB = 1 << 30
_UNLIMITED = 1 << 60  # bytes; version 1 of cgroups says "no limit" by a number
_FEW_ACTORS, _LITTLE_MEMORY_BYTES = 64, 1 << 30
_TRIAL_S = 60.0
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_MADV_POPULATE_WRITE = 23
_EXTRAS = {
    "torch": "torch",
    "jax": "jax",
    "gymnasium": "gymnasium",
    "cli": "rich",
    "metrics": "prometheus_client",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    section: str
    name: str
    status: str
    """"ok"; "warn": areplay runs, with a restriction; "fail": it cannot run."""
    value: str
    """What was found."""
    meaning: str
    """What that means for you, in one sentence."""


def findings(root: Path = Path("/")) -> Iterator[Finding]:
    """All of them, in order. The last is a trial with real processes, made if all that it needs is
    there."""
    is_fit = True
    for check in (
        *_KERNEL,
        memory,
        control_groups,
        shared_memory,
        huge_pages,
        cores,
        descriptors,
        processes,
    ):
        finding = check(root)
        is_fit &= finding.status != FAIL
        yield finding
    for finding in versions():
        is_fit &= finding.status != FAIL
        yield finding
    yield extras()
    yield (
        trial()
        if is_fit
        else Finding("Trial", "actor to batch", WARN, "not made", "what fails above comes first")
    )


def _tried(
    name: str, attempt: Callable[[], object], meaning: str, without: str, status: str = FAIL
) -> Callable[[Path], Finding]:
    """The check whether something of the kernel works: `attempt` raises if it does not, or returns
    what to say."""

    def check(root: Path) -> Finding:
        try:
            return Finding("Kernel", name, OK, str(attempt() or "works"), meaning)
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Finding("Kernel", name, status, reason or type(error).__name__, without)

    return check


# The kernel.


def _try_kernel() -> str:
    if sys.platform != "linux":
        raise OSError(0, f"{sys.platform} is not Linux")
    return f"{platform.release().split('-')[0]} {platform.machine()}"


def _try_memory_file() -> None:
    descriptor = os.memfd_create("areplay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        os.posix_fallocate(descriptor, 0, mmap.PAGESIZE)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
        mmap.mmap(descriptor, mmap.PAGESIZE).close()
        try:
            os.ftruncate(descriptor, 0)
        except PermissionError:
            return
        raise RuntimeError("a sealed file was cut short")
    finally:
        os.close(descriptor)


def _try_locks() -> None:
    with ExitStack() as stack:
        descriptor = os.memfd_create("areplay", os.MFD_CLOEXEC)
        stack.callback(os.close, descriptor)
        mine, others = (BlockLocks(descriptor, np.zeros(2, np.int64)) for _ in range(2))
        stack.callback(mine.close)
        stack.callback(others.close)
        if not mine.try_exclusive(1) or not others.try_exclusive(0):
            raise RuntimeError("a free lock could not be had")
        if others.try_exclusive(1):
            raise RuntimeError("a lock was had twice")
        mine.close()
        if not others.try_exclusive(1):
            raise RuntimeError("a lock outlived its holder")


def _try_pidfd() -> None:
    sleeper = [sys.executable, "-S", "-E", "-c", "import time; time.sleep(60)"]
    child = os.posix_spawn(sys.executable, sleeper, os.environ)
    try:
        descriptor = os.pidfd_open(child)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], 10.0)[0]:
                raise RuntimeError("a child's death was not seen")
        finally:
            os.close(descriptor)
    finally:
        # it is reaped already where SIGCHLD is ignored
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _try_eventfd() -> None:
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        os.eventfd_write(descriptor, 1)
        if not select.select([descriptor], [], [], 10.0)[0]:
            raise RuntimeError("nobody was woken")
    finally:
        os.close(descriptor)


def _try_death_signal() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    before, found = ctypes.c_int(), ctypes.c_int()
    calls = (
        (_PR_GET_PDEATHSIG, ctypes.byref(before)),
        (_PR_SET_PDEATHSIG, int(signal.SIGKILL)),
        (_PR_GET_PDEATHSIG, ctypes.byref(found)),
        (_PR_SET_PDEATHSIG, before),
    )
    for option, argument in calls:
        if libc.prctl(option, argument, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if found.value != signal.SIGKILL:
        raise RuntimeError("it was accepted and not kept")


def _try_packets() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        left.send(b"one")
        left.send(b"two")
        if (right.recv(100), right.recv(100)) != (b"one", b"two"):
            raise RuntimeError("messages did not stay whole")


def _try_watching() -> None:
    with listening_socket() as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        name = address.getsockname()
        client.connect(name)
        if peer_of(client).uid != os.geteuid():
            raise RuntimeError("the kernel does not tell who listens")
        if name[1:].decode() not in {each.name for each in running_replays()}:
            raise RuntimeError("/proc/net/unix does not list it")


def _try_populate() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        memory.madvise(_MADV_POPULATE_WRITE)


_KERNEL = (
    _tried("Linux", _try_kernel, "what areplay is made for", "areplay runs on Linux only"),
    _tried(
        "sealed memory files",
        _try_memory_file,
        "rows lie in memory that nobody can cut short",
        "areplay keeps its rows in them: a kernel or sandbox with memfd_create and seals is needed",
    ),
    _tried(
        "locks of open files",
        _try_locks,
        "a killed writer's locks come free at once",
        "blocks are locked by them: needs F_OFD_SETLK (Linux 3.15) and /proc mounted",
    ),
    _tried(
        "pidfd",
        _try_pidfd,
        "a child's death is noticed at once",
        "children are watched by it: needs pidfd_open (Linux 5.3), not forbidden by a sandbox",
    ),
    _tried(
        "eventfd",
        _try_eventfd,
        "who sleeps is woken, nobody polls",
        "processes wake each other by it: the sandbox has to allow it",
    ),
    _tried(
        "parent death signal",
        _try_death_signal,
        "no child outlives a killed learner",
        "children are tied to their parent by it: the sandbox has to allow prctl(PR_SET_PDEATHSIG)",
    ),
    _tried(
        "packet sockets",
        _try_packets,
        "what children report arrives whole",
        "children report through them: the sandbox has to allow AF_UNIX with SOCK_SEQPACKET",
    ),
    _tried(
        "abstract sockets",
        _try_watching,
        "areplay top can look at running replays",
        "replays run, but areplay top cannot look at them",
        WARN,
    ),
    _tried(
        "populating memory",
        _try_populate,
        "prefault=True touches memory at full speed",
        "prefault=True works, but slower: MADV_POPULATE_WRITE came with Linux 5.14",
        WARN,
    ),
)


# Memory.


def memory(root: Path) -> Finding:
    """How much a replay may have."""
    available, limit = available_memory(root)
    if available >= _UNLIMITED:
        return Finding(
            "Memory",
            "available",
            WARN,
            "unknown",
            "/proc/meminfo is missing: too large a replay is killed",
        )
    if available < _LITTLE_MEMORY_BYTES:
        meaning = f"little for a replay; {limit} decides"
        return Finding("Memory", "available", WARN, gib(available), meaning)
    return Finding(
        "Memory",
        "available",
        OK,
        gib(available),
        "more than that is refused before it is allocated",
    )


def control_groups(root: Path) -> Finding:
    """The limit of cgroups."""
    kinds = _words(root / "proc/self/cgroup", r"^\d+:([^:]*):")
    version = (
        "v1"
        if any("memory" in kind.split(",") for kind in kinds)
        else "v2"
        if "" in kinds
        else "none"
    )
    limits = [(limit, file) for file, limit, _ in memory_limits(root) if limit < _UNLIMITED]
    if not limits:
        return Finding(
            "Memory", "cgroup", OK, f"{version}, no limit", "only the host's memory is a limit"
        )
    limit, file = min(limits)
    meaning = f"areplay keeps below it, where the kernel would kill; it is in {file}"
    return Finding("Memory", "cgroup", OK, f"{version}, {gib(limit)}", meaning)


def shared_memory(root: Path) -> Finding:
    """What is said to matter, and does not."""
    try:
        size = os.statvfs(root / "dev/shm")
        value = gib(size.f_frsize * size.f_blocks)
    except OSError:
        value = "none"
    return Finding(
        "Memory", "/dev/shm", OK, value, "not used: 64 MiB in a container are no obstacle"
    )


def huge_pages(root: Path) -> Finding:
    """Whether shared memory comes in large pages."""
    chosen = _words(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled", r"\[(\w+)\]")
    value = chosen[0] if chosen else "none"
    if value in ("always", "within_size", "force"):
        return Finding(
            "Memory", "huge pages", OK, value, "pages of 2 MiB: fresh memory is there sooner"
        )
    return Finding(
        "Memory", "huge pages", OK, value, "pages of 4 KiB; prefault=True touches them at once"
    )


# Processors, and what there may be many of.


def cores(root: Path) -> Finding:
    """How many processes can run at a time."""
    count, usable, quota = os.cpu_count() or 1, len(os.sched_getaffinity(0)), processor_quota(root)
    value = f"{usable} of {count}" + ("" if quota is None else f", quota {quota:g}")
    if min(usable, quota or usable) < 2:
        return Finding(
            "Limits", "cores", WARN, value, "learner, samplers and actors have to take turns"
        )
    return Finding("Limits", "cores", OK, value, "for the learner, samplers and actors together")


def descriptors(root: Path) -> Finding:
    """How many actors can be opened."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return Finding(
            "Limits", "file descriptors", OK, "no limit", "enough for any number of actors"
        )
    try:
        taken = len(os.listdir(root / "proc/self/fd"))
    except OSError:
        return Finding(
            "Limits",
            "file descriptors",
            WARN,
            f"{limit:,}",
            "how many are open is not known without /proc",
        )
    free = limit - taken - DESCRIPTORS_TO_START
    actors = max(0, free // (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX))
    if actors < _FEW_ACTORS:
        more = (
            "`ulimit -n` raises it"
            if most == resource.RLIM_INFINITY or most > limit
            else "root can raise it"
        )
        return Finding(
            "Limits", "file descriptors", WARN, f"{limit:,}", f"enough for {actors} actors; {more}"
        )
    return Finding("Limits", "file descriptors", OK, f"{limit:,}", f"enough for {actors:,} actors")


def processes(root: Path) -> Finding:
    """How many children there can be."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [
        process_limit(root),
        limit if limit != resource.RLIM_INFINITY and os.geteuid() != 0 else None,
    ]
    least = min((each for each in limits if each is not None), default=None)
    if least is None:
        return Finding(
            "Limits", "processes", OK, "no limit", "as many actors as the memory is enough for"
        )
    value = f"{least:,}"
    if least < _FEW_ACTORS:
        return Finding(
            "Limits", "processes", WARN, value, "each actor and sampler is one, with some threads"
        )
    return Finding(
        "Limits", "processes", OK, value, "each actor and sampler is one, with some threads"
    )


# Software.


def versions() -> Iterator[Finding]:
    """Of Python, and of what areplay is made of, against what it asks for."""
    try:
        python, requirements = (
            metadata.metadata("areplay")["Requires-Python"],
            metadata.requires("areplay") or [],
        )
    except metadata.PackageNotFoundError:
        yield Finding(
            "Software",
            "areplay",
            WARN,
            areplay.__version__,
            "not installed, what it needs is not known",
        )
        return
    yield Finding("Software", "areplay", OK, areplay.__version__, "this is what is being tried")
    yield _version("python", platform.python_version(), python)
    for line in requirements:
        if "extra ==" in line:
            continue
        name, needed = re.match(r"([\w.-]+)(.*)", line).groups()  # type: ignore[union-attr]
        try:
            yield _version(name, metadata.version(name), needed)
        except metadata.PackageNotFoundError:
            yield Finding(
                "Software", name, FAIL, "missing", f"areplay needs it: pip install '{name}{needed}'"
            )


def _version(name: str, found: str, needed: str) -> Finding:
    least = needed.removeprefix(">=")
    if _numbers(found) < _numbers(least):
        return Finding("Software", name, FAIL, found, f"too old: areplay needs {least} or newer")
    return Finding("Software", name, OK, found, f"{least} or newer is needed")


def extras() -> Finding:
    """What is there of that which can be used, and need not."""
    there = [
        extra for extra, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None
    ]
    missing = [extra for extra in _EXTRAS if extra not in there]
    meaning = (
        f"pip install '.[{','.join(missing)}]' in a clone"
        if missing
        else "torch, jax, gymnasium, cli, metrics"
    )
    return Finding("Software", "extras", OK, f"{len(there)} of {len(_EXTRAS)}", meaning)


# All together.


def trial() -> Finding:
    """A replay with a real actor and a real sampler, from the first row to a batch."""
    started = time.monotonic()
    try:
        batches = areplay.run(_trial())
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Finding("Trial", "actor to batch", FAIL, type(error).__name__, lines[-1])
    value = f"{batches} batches, {time.monotonic() - started:.1f} s"
    return Finding("Trial", "actor to batch", OK, value, "rows of one process came out of another")


async def _trial() -> int:
    spec = areplay.Spec(number=((), "int64"))
    batches = 0
    async with (
        asyncio.timeout(_TRIAL_S),
        areplay.Replay(spec, 1_000) as replay,
        replay.actors(count_up, add_timeout_s=_TRIAL_S, max_restarts=0),
        replay.batches(batch_size=16, timeout_s=_TRIAL_S, max_restarts=0) as stream,
    ):
        while batches < 100:
            batch = await anext(stream)
            if (batch["number"] < 0).any():
                raise RuntimeError("a batch holds what was never written")
            batches += 1
    return batches


async def count_up(actor: areplay.Actor) -> None:
    """What the actor of the trial does."""
    number = 0
    while not actor.stopping:
        await actor.add(number=number)
        number += 1


def gib(size_bytes: float) -> str:
    """A size for people, in binary units."""
    for unit, size in (("GiB", _GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def _words(path: Path, pattern: str) -> list[str]:
    """What the pattern finds in a file; nothing if there is none."""
    try:
        return re.findall(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])[:3]))
