"""Tests of `_shm.range_locks`: who excludes whom, what it costs, and that the dead hold nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import FailsAt, open_descriptors

from areplay._shm.layout import Layout
from areplay._shm.range_locks import BlockLocks
from areplay._shm.segment import Segment
from areplay.errors import ResourceUnavailable

BLOCKS = 100_000


@pytest.fixture
def segment() -> Iterator[Segment]:
    """The memory file whose bytes stand for the blocks."""
    segment = Segment(Layout("ring", {"holders": ((BLOCKS,), np.int64)}), "a test's locks")
    yield segment
    segment.close()


@pytest.fixture
def two(segment: Segment) -> Iterator[tuple[BlockLocks, BlockLocks]]:
    """The locks as two threads, or two processes, see them."""
    pair = locks_of(segment), locks_of(segment)
    yield pair
    for locks in pair:
        locks.close()


def locks_of(segment: Segment) -> BlockLocks:
    """One more view of the locks."""
    return BlockLocks(segment.descriptor, segment.arrays["holders"])


Two = tuple[BlockLocks, BlockLocks]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("try_exclusive", "try_exclusive", False),
        ("try_exclusive", "try_shared", False),
        ("try_shared", "try_exclusive", False),
        ("try_shared", "try_shared", True),
    ],
)
def test_who_excludes_whom(two: Two, first: str, second: str, both: bool) -> None:
    """Readers share a block, a writer has it alone; each pair in both orders, and it is free again
    afterwards."""
    for one, other in (two, two[::-1]):
        assert getattr(one, first)(7)
        assert getattr(other, second)(7) is both
        one.release(7)
        if both:
            other.release(7)
        assert other.try_exclusive(7)
        other.release(7)


def test_a_refused_lock_is_not_held_afterwards(two: Two) -> None:
    """Trying in vain changes nothing: the holder keeps its lock, and gives back one that nobody
    else has."""
    one, other = two
    assert one.try_shared(3)
    assert not other.try_exclusive(3)
    one.release(3)
    assert one.try_exclusive(3)
    one.release(3)


def test_neighbours_are_independent(two: Two) -> None:
    """A block is exactly one byte: those before and after it are free."""
    one, other = two
    assert one.try_exclusive(5)
    for block in (4, 6, 0, BLOCKS - 1):
        assert other.try_exclusive(block)
    assert not other.try_shared(5)
    one.release(5)
    assert not one.try_exclusive(4), "released alone, its neighbours are still held"


def test_a_release_gives_back_that_block_only(two: Two) -> None:
    """Others that are held stay held."""
    one, other = two
    for block in (1, 2, 3):
        assert one.try_exclusive(block)
    one.release(2)
    assert [other.try_exclusive(block) for block in (1, 2, 3)] == [False, True, False]


def test_closing_frees_all_and_may_be_repeated(two: Two) -> None:
    """Whatever was held is free for others; the descriptor's number is not closed twice."""
    one, other = two
    held = (0, 17, BLOCKS - 1)
    assert all(one.try_exclusive(block) for block in held)
    assert not any(other.try_shared(block) for block in held)
    one.close()
    assert all(other.try_exclusive(block) for block in held)
    somebody_elses = os.dup(0)
    one.close()
    os.close(somebody_elses)


def test_threads_with_locks_of_their_own_exclude_each_other(two: Two) -> None:
    """A second thread is a second writer; a count that needs exclusion comes out exact."""
    count, rounds = 0, 2_000

    def add(locks: BlockLocks) -> None:
        nonlocal count
        for _ in range(rounds):
            while not locks.try_exclusive(9):
                pass
            seen = count
            os.sched_yield()
            count = seen + 1
            locks.release(9)

    threads = [threading.Thread(target=add, args=(locks,)) for locks in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 2 * rounds


def test_a_hundred_thousand_blocks_need_one_descriptor(segment: Segment) -> None:
    """Every block can be locked on its own, by one descriptor, and each is free again
    afterwards."""
    before = open_descriptors()
    locks = locks_of(segment)
    assert open_descriptors() == before + 1
    for block in range(BLOCKS):
        assert locks.try_exclusive(block)
        locks.release(block)
    assert open_descriptors() == before + 1
    locks.close()
    assert open_descriptors() == before


def test_the_last_holder_is_known(two: Two) -> None:
    """For messages: 0 before anybody had it, then the process that had it last, a reader as
    well."""
    one, other = two
    assert one.holder(11) == 0
    assert other.try_shared(11)
    assert one.holder(11) == os.getpid()
    other.release(11)
    assert one.holder(11) == os.getpid()
    assert one.holder(12) == 0


def test_locks_that_are_dropped_give_back_their_descriptor(segment: Segment) -> None:
    """Without `close`, for example after a failed start: nothing is left, neither a descriptor nor
    a lock."""
    before = open_descriptors()
    locks = locks_of(segment)
    assert locks.try_exclusive(1)
    del locks
    assert open_descriptors() == before


def test_a_refused_open_is_a_typed_error(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE becomes ResourceUnavailable, and nothing is left."""
    before = open_descriptors()
    monkeypatch.setattr(os, "open", FailsAt(os.open, 1))
    with pytest.raises(ResourceUnavailable) as caught:
        locks_of(segment)
    assert caught.value.call == "open"
    monkeypatch.undo()
    assert open_descriptors() == before


def test_other_errors_of_the_lock_call_are_not_taken_for_a_held_lock(two: Two) -> None:
    """A closed descriptor is a mistake, not a busy block."""
    one, _ = two
    one.close()
    with pytest.raises((OSError, ValueError)):
        one.try_exclusive(0)


HOLDER = """
import sys
import numpy as np
from areplay._shm.range_locks import BlockLocks
locks = BlockLocks(int(sys.argv[1]), np.zeros(100, np.int64))
print(locks.try_exclusive(5), locks.try_shared(6), locks.try_exclusive(7), flush=True)
sys.stdin.read()
"""


def test_a_killed_process_holds_nothing(segment: Segment, tmp_path: Path) -> None:
    """SIGKILL while it holds locks: the kernel frees them, and nobody had to clean up."""
    locks = locks_of(segment)
    assert locks.try_exclusive(7)
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    child = subprocess.Popen(
        [sys.executable, script, str(segment.descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[segment.descriptor],
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().split() == ["True", "True", "False"]
        assert not locks.try_exclusive(5)
        assert not locks.try_exclusive(6)
        assert locks.try_shared(6)
        locks.release(6)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    assert locks.try_exclusive(5)
    assert locks.try_exclusive(6)
    locks.close()
