"""Tests of `_base.forks`."""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest

from areplay._base import forks
from areplay._shm.doorbell import EventFd
from areplay._shm.layout import Layout
from areplay._shm.range_locks import BlockLocks
from areplay._shm.segment import Segment
from areplay.errors import WrongProcess
from tests.forked import end, fork, in_child


def test_a_child_is_another_process() -> None:
    """What was opened before is recognised there, at any depth of forks, and what it opens itself
    is its own."""
    origin = forks.current

    def look() -> tuple[Any, int, bool]:
        own = forks.current
        forks.check(own, "this")
        return (
            _raised(lambda: forks.check(origin, "that")),
            own.pid,
            in_child(lambda: forks.current is own),
        )

    error, pid, is_same = in_child(look)
    assert (error.what, error.pid) == ("that", os.getpid())
    assert pid != os.getpid() and not is_same
    forks.check(origin, "this")
    assert forks.current is origin


def test_a_resource_that_cannot_be_let_go_of_does_not_keep_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each gets its turn; it is logged in the child."""

    class Broken:
        def after_fork(self) -> None:
            raise ZeroDivisionError

    read, write = os.pipe()
    resources = [Broken(), forks.Descriptor(read), forks.Descriptor(write), Broken()]
    for broken in (resources[0], resources[3]):
        forks.register(broken)
    assert in_child(
        lambda: [thing.number for thing in resources if isinstance(thing, forks.Descriptor)]
    ) == [-1, -1]
    assert in_child(lambda: "ZeroDivisionError" in caplog.text)
    os.fstat(read), os.fstat(write)
    for thing in resources:
        if isinstance(thing, forks.Descriptor):
            thing.close()
            thing.close()


def test_a_lock_that_a_thread_holds_is_free_in_a_child() -> None:
    """That thread is not there, and would never give it back."""
    lock, held, over = forks.register_lock(threading.Lock()), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait(30.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30.0)
    try:
        assert in_child(lambda: lock.acquire(timeout=0.0))
        assert not lock.acquire(timeout=0.0)
    finally:
        over.set()
        thread.join()


def test_stores_of_a_child_do_not_reach_the_memory_of_its_parent() -> None:
    """It reads what is there, at the same addresses, and keeps its own changes to itself; a spawned
    one shares."""
    segment = Segment(Layout("ring", {"a": ((100_000,), np.int64)}), "a test")
    array = segment.arrays["a"]
    array[:] = 7

    def write() -> list[int]:
        before = array[[0, 99_999]].tolist()
        array[:] = 8
        return [*before, int(array.sum())]

    assert in_child(write) == [7, 7, 800_000]
    assert array.sum() == 700_000
    array[:] = 9
    assert in_child(lambda: int(array[50_000])) == 9
    assert isinstance(in_child(lambda: _raised(lambda: pickle.dumps(segment))), WrongProcess)
    segment.close()


def test_locks_of_blocks_end_with_their_holder_though_a_child_lives() -> None:
    """A child has no copy of the descriptor, unlocks nothing, and its parent's close gives back
    all."""
    segment = Segment(Layout("ring", {"holders": ((8,), np.int64)}), "a test")
    holders = segment.arrays["holders"]
    ours, others = (BlockLocks(segment.descriptor, holders) for _ in range(2))
    assert ours.try_exclusive(3) and ours.try_shared(5)
    assert in_child(lambda: [ours.release(3), ours.close()]) == [None, None]
    assert not others.try_exclusive(3)
    copy = os.dup(ours._descriptor)  # as a child has one that was forked by other means
    pid = fork()
    if pid == 0:
        _wait_for_the_end()
    try:
        ours.close()
        assert others.try_exclusive(3) and others.try_exclusive(5)
    finally:
        end(pid)
        os.close(copy)
        others.close()
        segment.close()


def test_a_child_wakes_no_process() -> None:
    """Its eventfd is closed: to ring does nothing, and to pass it on is a typed error."""
    event = EventFd("a test")
    assert isinstance(
        in_child(lambda: (event.notify(), _raised(lambda: pickle.dumps(event)))[1]), WrongProcess
    )
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event.descriptor)
    event.close()


def test_handlers_and_the_signal_mask_are_those_of_before_in_a_child() -> None:
    """And its signals are not heard by the parent's event loop."""
    before, mask = (
        signal.signal(signal.SIGTERM, signal.SIG_DFL),
        signal.pthread_sigmask(signal.SIG_BLOCK, []),
    )
    handlers = forks.Handlers()
    read, write = os.pipe()
    os.set_blocking(write, False)
    old = signal.set_wakeup_fd(write)
    try:
        with handlers.replacing(signal.SIGTERM):
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        ours = signal.getsignal(signal.SIGTERM)
        for _ in range(20):  # at once, so that it may come before the child runs anything
            pid = fork()
            if pid == 0:
                _wait_for_the_end()
            os.kill(pid, signal.SIGTERM)
            assert _exit_code(pid) == -signal.SIGTERM
        # so that there is something to read; SIGCHLD may be heard, if a test before handles it
        os.write(write, b"\0")
        assert signal.SIGTERM not in os.read(read, 4_096)
        assert in_child(lambda: set(signal.pthread_sigmask(signal.SIG_BLOCK, []))) == set(mask)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        assert in_child(lambda: signal.set_wakeup_fd(-1)) == -1
        assert signal.getsignal(signal.SIGTERM) is ours
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the user's, set after ours
        assert in_child(lambda: signal.getsignal(signal.SIGTERM)) == signal.SIG_IGN
    finally:
        signal.set_wakeup_fd(old)
        signal.signal(signal.SIGTERM, before)
        os.close(read)
        os.close(write)


def _wait_for_the_end() -> NoReturn:
    """A child does nothing, until a signal ends it: one that went on would take itself for its
    parent."""
    time.sleep(60)
    os._exit(3)


def _exit_code(pid: int) -> int:
    """Of a child that ends by itself, and is killed if it does not."""
    watch = os.pidfd_open(pid)
    try:
        if not select.select([watch], [], [], 20)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(watch)


def _raised(act: Callable[[], object]) -> BaseException | None:
    try:
        act()
    except BaseException as error:
        return error
    return None
