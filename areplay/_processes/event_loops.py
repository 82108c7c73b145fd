"""Event loops in forked children: a child's copy of a loop changes nothing of its parent's.

A copy shares what the kernel has for the loop: its epoll and, of uvloop, the io_uring by which
libuv changes the epoll. Whatever unwinds, turns or closes the copy would take descriptors out of
the parent's, or answer for the parent. So the child gets an empty epoll and a new io_uring, in the
same places. No descriptor wakes the copy from then on: asyncio does not let a child go on with it
anyway, but ends the tasks that are left where `asyncio.run` is left.

Rule: areplay's tasks are named `TASK_PREFIX...`. They see to children, rows and files of the
parent's, and are cancelled in the child before they run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import re
import select
import threading
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from pathlib import Path
from selectors import EpollSelector
from typing import Any

import uvloop

from areplay._base import forks

logger = logging.getLogger(__name__)

TASK_PREFIX = "areplay "

_TURN_S = 0.05
_SYS_IO_URING_SETUP = 425  # on every architecture
_NO_MMAP = 1 << 14
_SQES_OFFSET = 0x1000_0000
_MAP_FIXED = 0x10
_MASKS = re.compile(
    r"SqMask:\s*0x([0-9a-f]+)\b.*CqMask:\s*0x([0-9a-f]+)\b.*SqThread:\s*-1\b", re.DOTALL
)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


class _Parameters(ctypes.Structure):
    """`struct io_uring_params`."""

    _fields_ = (
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("others", ctypes.c_uint32 * 13),
        ("sq_array", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("sqes_address", ctypes.c_uint64),
        ("cq_offsets", ctypes.c_uint32 * 8),
        ("rings_address", ctypes.c_uint64),
    )


def leave_to_parent(loop: asyncio.AbstractEventLoop) -> None:
    """Have children that this process forks leave that loop, and areplay's tasks, alone.

    Call it in the thread that runs the loop. May be called again.
    """
    if loop not in _inherited:
        _inherited[loop] = _InheritedLoop(loop)


def abandon(loop: asyncio.AbstractEventLoop) -> None:
    """In a forked child: close its copy of the loop, and run none of the tasks that are left."""
    for task in asyncio.all_tasks(loop):
        drop_quietly(task)
    loop.close()


class _InheritedLoop:
    """What a forked child does with its copy of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._thread = threading.get_ident()
        forks.register(self)

    def after_fork(self) -> None:
        """Give the copy an epoll and an io_uring of its own, and cancel the tasks of areplay's."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        descriptor = _epoll_of(loop)
        if descriptor >= 0:
            replace_epoll(descriptor)
        if isinstance(loop, uvloop.Loop):
            _replace_io_urings_once()
        if self._thread != threading.get_ident():
            return  # the thread that ran it is not there
        _silence(loop)
        for task in asyncio.all_tasks(loop):
            if _is_ours(task):
                task.cancel()
                drop_quietly(task)
        _keep_turning(loop)


_inherited: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _InheritedLoop] = (
    weakref.WeakKeyDictionary()
)


def replace_epoll(descriptor: int) -> None:
    """Put a new, empty epoll in the place of an inherited one."""
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith("[eventpoll]"):
            return
        with select.epoll() as fresh:
            os.dup2(fresh.fileno(), descriptor, inheritable=False)
    except OSError as error:
        logger.warning("process %d shares an epoll with its parent: %s", os.getpid(), error)


def replace_io_urings() -> None:
    """Put a new io_uring in the place of each one that this process has inherited mapped.

    libuv submits one batch at a time and waits for it, so the new one may begin empty. Rings of
    kernels that do not tell which mapping belongs to which descriptor stay as they are.
    """
    try:
        mapped: dict[int, list[tuple[int, int, int]]] = {}
        with open("/proc/self/maps") as maps:
            lines = [line.split() for line in maps if line.endswith("anon_inode:[io_uring]\n")]
        for places, _, offset, _, inode, _ in lines:
            start, end = (int(place, 16) for place in places.split("-"))
            mapped.setdefault(int(inode), []).append((start, end - start, int(offset, 16)))
        rings: dict[int, list[int]] = {}
        for name in os.listdir("/proc/self/fd") if mapped else ():
            descriptor = int(name)
            if _is_io_uring(descriptor) and (number := os.fstat(descriptor).st_ino) in mapped:
                rings.setdefault(number, []).append(descriptor)
        for number, descriptors in rings.items():
            if len(descriptors) == 1:
                _replace_io_uring(descriptors[0], mapped[number])
    except OSError as error:
        logger.warning("process %d shares an io_uring with its parent: %s", os.getpid(), error)


_replaced_in: forks.Origin | None = None


def _replace_io_urings_once() -> None:
    """Replace those of all loops: each loop of this process asks for it."""
    global _replaced_in
    if _replaced_in is not forks.current:
        _replaced_in = forks.current
        replace_io_urings()


def _is_io_uring(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[io_uring]"
    except OSError:  # the one that listed them
        return False


def _replace_io_uring(descriptor: int, mapped: list[tuple[int, int, int]]) -> None:
    """Put a new ring of the same size in its place.

    The new ring takes over the descriptor, the mappings, and libuv's table of slots.
    """
    about = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    masks = _MASKS.search(about)
    # Otherwise the kernel has a thread for the ring, which libuv asks for with files.
    if masks is None:
        return
    sq_entries, cq_entries = (int(mask, 16) + 1 for mask in masks.groups())
    by_offset = {offset: (start, size) for start, size, offset in mapped}
    fresh = -1
    try:
        if by_offset.keys() == {0, _SQES_OFFSET}:
            fresh = _new_io_uring(sq_entries, cq_entries, by_offset[0], by_offset[_SQES_OFFSET])
        # Without a ring libuv aborts the child if it changes its epoll, which is better than its
        # parent.
        instead = fresh if fresh >= 0 else os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(instead, descriptor, inheritable=False)
        os.close(instead)
    except BaseException:
        forks.close(fresh)
        raise


def _new_io_uring(
    sq_entries: int, cq_entries: int, rings: tuple[int, int], sqes: tuple[int, int]
) -> int:
    """Make a ring with its memory at the places `(start, size)` of an inherited one.

    Returns its descriptor, -1 if the kernel refuses.
    """
    access = mmap.PROT_READ | mmap.PROT_WRITE
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    for start, size in (rings, sqes):
        if _libc.mmap(start, size, access, anonymous, -1, 0) != start:
            raise OSError(ctypes.get_errno(), "mmap")
    # the kernel maps no ring at an address that it is given
    parameters = _Parameters(flags=_NO_MMAP)
    parameters.sqes_address = sqes[0]
    parameters.rings_address = rings[0]
    ring: int = _libc.syscall(_SYS_IO_URING_SETUP, sq_entries, ctypes.byref(parameters))
    if ring < 0:  # an older one does, but has no IORING_SETUP_NO_MMAP
        parameters = _Parameters()
        ring = _libc.syscall(_SYS_IO_URING_SETUP, sq_entries, ctypes.byref(parameters))
        shared = mmap.MAP_SHARED | mmap.MAP_POPULATE | _MAP_FIXED
        for (start, size), offset in ((rings, 0), (sqes, _SQES_OFFSET)):
            if ring >= 0 and _libc.mmap(start, size, access, shared, ring, offset) != start:
                ring = forks.close(ring)
    if ring >= 0 and (parameters.sq_entries, parameters.cq_entries) == (sq_entries, cq_entries):
        slots = (ctypes.c_uint32 * sq_entries).from_address(rings[0] + parameters.sq_array)
        slots[:] = list(range(sq_entries))  # as libuv has filled it, once
        return ring
    return forks.close(ring)


def _epoll_of(loop: asyncio.AbstractEventLoop) -> int:
    """The descriptor of the loop's epoll; -1 if it has none that is known."""
    if isinstance(loop, uvloop.Loop):
        return int(loop._get_backend_id())  # type: ignore[attr-defined]
    if isinstance(loop, BaseSelectorEventLoop):
        selector = loop._selector  # type: ignore[attr-defined]
        # Another selector has no descriptor, and shares nothing with the parent.
        return selector.fileno() if isinstance(selector, EpollSelector) else -1
    return -1


def _is_ours(task: object) -> bool:
    return isinstance(task, asyncio.Task) and task.get_name().startswith(TASK_PREFIX)


def drop_quietly(task: asyncio.Task[Any]) -> None:
    """Say nothing if the task is collected before it is done."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does


def cancel_if_open(task: asyncio.Task[None]) -> None:
    """Cancel a task of a dropped object; only forget it if its loop is closed.

    Call it on that loop, or anywhere once the loop is closed.
    """
    if not task.get_loop().is_closed():
        # In debug mode a loop complains of another thread, which means that it will not turn.
        with contextlib.suppress(RuntimeError):
            task.cancel()


def _silence(loop: asyncio.AbstractEventLoop) -> None:
    """Drop asyncio's complaints about areplay's tasks, which end in the middle of their work."""
    handler = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if _is_ours(context.get("task") or context.get("future")):
            return
        if handler is not None:
            handler(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def _keep_turning(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop that no descriptor wakes any more look for what other threads have handed it."""
    if not loop.is_closed():
        loop.call_soon(_nothing)  # uvloop looks when it has something to call
        loop.call_later(_TURN_S, _keep_turning, loop)


def _nothing() -> None:
    pass
