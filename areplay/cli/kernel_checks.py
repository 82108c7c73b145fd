"""Checks of `areplay doctor`: each kernel feature that areplay needs is really tried."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from areplay._shm.range_locks import BlockLocks
from areplay._status.client import running_replays
from areplay._status.server import listening_socket, peer_of
from areplay.cli.finding import FAIL, OK, WARN, Result

_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2
_MADV_POPULATE_WRITE = 23  # Linux 5.14


def _tried(
    attempt: Callable[[], str | None], meaning: str, without: str, status: str = FAIL
) -> Callable[[Path], Result]:
    """Make a check of an attempt, which raises if the feature is missing.

    Args:
        meaning: what it means that the feature works.
        without: what it means that the feature is missing.
        status: of a missing feature.
    """

    def check(root: Path) -> Result:
        try:
            return Result(OK, attempt() or "works", meaning)
        except Exception as error:
            return Result(status, _reason(error), without)

    return check


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


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
        if not (mine.try_exclusive(1) and others.try_exclusive(0)):
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
            if not select.select([descriptor], [], [], _TIMEOUT_S)[0]:
                raise RuntimeError("a child's death was not seen")
        finally:
            os.close(descriptor)
    finally:
        # Where SIGCHLD is ignored the kernel has reaped it already.
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _try_eventfd() -> None:
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        os.eventfd_write(descriptor, 1)
        if not select.select([descriptor], [], [], _TIMEOUT_S)[0]:
            raise RuntimeError("no process was woken")
    finally:
        os.close(descriptor)


def _try_death_signal() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int()
    found = ctypes.c_int()
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


def _try_status_socket() -> None:
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


CHECKS: dict[str, Callable[[Path], Result]] = {
    "Linux": _tried(_try_kernel, "what areplay is made for", "areplay runs on Linux only"),
    "sealed memory files": _tried(
        _try_memory_file,
        "rows lie in memory that no process can cut short",
        "areplay keeps its rows in them: a kernel or sandbox with memfd_create and seals is needed",
    ),
    "locks of open files": _tried(
        _try_locks,
        "a killed writer's locks come free at once",
        "blocks are locked by them: needs F_OFD_SETLK (Linux 3.15) and /proc mounted",
    ),
    "pidfd": _tried(
        _try_pidfd,
        "a child's death is noticed at once",
        "children are watched by it: needs pidfd_open (Linux 5.3), not forbidden by a sandbox",
    ),
    "eventfd": _tried(
        _try_eventfd,
        "processes that sleep are woken, without polling",
        "processes wake each other by it: the sandbox has to allow it",
    ),
    "parent death signal": _tried(
        _try_death_signal,
        "no child outlives a killed learner",
        "children are tied to their parent by it: the sandbox has to allow prctl(PR_SET_PDEATHSIG)",
    ),
    "packet sockets": _tried(
        _try_packets,
        "what children report arrives whole",
        "children report through them: the sandbox has to allow AF_UNIX with SOCK_SEQPACKET",
    ),
    "abstract sockets": _tried(
        _try_status_socket,
        "areplay top can look at running replays",
        "replays run, but areplay top cannot look at them",
        WARN,
    ),
    "populating memory": _tried(
        _try_populate,
        "prefault=True touches memory at full speed",
        "prefault=True works, but slower: MADV_POPULATE_WRITE came with Linux 5.14",
        WARN,
    ),
}
