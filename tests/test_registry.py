"""Tests of `_storage.ring` where blocks are kept: they are left for another lap, and writers write
what there is room for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from areplay._base.arrays import Mask
from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))


class Pins(RowListener):
    """Pins the blocks in the places that the test says, and, if it `grows`, those that are written
    to."""

    name = "Fifo()"

    def __init__(self, *places: int, grows: bool) -> None:
        self.places, self._grows = set(places), grows

    def written(self, at: int, count: int, priorities: Any) -> None:
        """As of a `RowListener`."""
        if self._grows:
            self.places.add(at // 4)

    def pinned(self) -> Mask:
        """As of `BlockPins`."""
        return np.isin(np.arange(4), sorted(self.places))


class Rig:
    """A ring of 4 blocks of 4 rows, and writers."""

    def __init__(self) -> None:
        self.ring, self.registry = Ring(SPEC, 4, 4), WriterRegistry()
        self._next = 0
        self._open: list[StreamWriter | BlockLocks] = []

    def writer(self) -> StreamWriter:
        """The writer of a new stream."""
        self._open.append(StreamWriter(self.ring, self.ring.block_locks(), self.registry))
        return self._open[-1]  # type: ignore[return-value]

    def pin(self, *places: int, grows: bool = False) -> Pins:
        """Pin these."""
        pins = Pins(*places, grows=grows)
        self.registry.add_pins(pins)
        self.registry.add_listener(pins)
        return pins

    def write(self, writer: StreamWriter, rows: int) -> list[int]:
        """Append that many, or as many as there is room for; their indices."""
        numbers = np.arange(self._next, self._next + rows)
        indices: list[int] = writer.write({"number": numbers}, 0, rows).tolist()
        self._next += len(indices)
        return indices

    def numbers(self) -> list[int]:
        """Of all rows that are there, in ascending order."""
        places = [range(place * 4, place * 4 + self.ring.block(place)[1]) for place in range(4)]
        return sorted(
            self.ring.columns["number"][[at for place in places for at in place]].tolist()
        )

    def close(self) -> None:
        """Give everything back."""
        for thing in self._open:
            thing.close()
        self.ring.segment.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An empty ring."""
    rig = Rig()
    yield rig
    rig.close()


def test_a_kept_block_is_left_for_another_lap(rig: Rig) -> None:
    """Its rows stay and keep their names, lap after lap; they are not counted any more, until it is
    free and due."""
    writer = rig.writer()
    rig.write(writer, 16)
    pins = rig.pin(1, 2)
    assert rig.write(writer, 8) == [16, 17, 18, 19, 28, 29, 30, 31]
    assert rig.numbers() == [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]
    assert rig.ring.committed(np.arange(32)).nonzero()[0].tolist() == [
        *range(4, 12),
        *range(16, 20),
        *range(28, 32),
    ]
    assert (len(rig.ring), rig.registry.skipped) == (8, {1, 2})
    rig.write(writer, 8)
    assert (len(rig.ring), rig.registry.skipped) == (8, {1, 2})
    pins.places.clear()
    assert rig.write(writer, 16)[:4] == [48, 49, 50, 51]
    assert rig.numbers() == list(range(32, 48))
    assert (len(rig.ring), rig.registry.skipped) == (16, set())


def test_a_writer_writes_what_there_is_room_for(rig: Rig) -> None:
    """Fewer rows than given, the first ones, when all blocks are kept; on in its open block; then
    none, nothing is changed."""
    writer, other = rig.writer(), rig.writer()
    rig.write(writer, 2)
    pins = rig.pin(0, 1, 3, grows=True)
    assert rig.write(writer, 9) == [2, 3, 8, 9, 10, 11]
    state = repr(rig.ring), len(rig.ring), set(rig.registry.skipped), rig.registry.reserved
    assert rig.write(writer, 1) == rig.write(other, 5) == []
    assert (repr(rig.ring), len(rig.ring), rig.registry.skipped, rig.registry.reserved) == state
    pins.places.remove(1)
    assert rig.write(other, 5) == [20, 21, 22, 23]
    assert rig.numbers() == list(range(12))


def test_blocks_are_kept_for_whoever_wants_it(rig: Rig) -> None:
    """Of several keepers each one's; what nobody keeps any more is free at once."""
    writer = rig.writer()
    rig.write(writer, 16)
    first, second = rig.pin(0, 1), rig.pin(1, 2)
    assert rig.write(writer, 4) == [28, 29, 30, 31]
    rig.registry.remove(first)
    assert rig.write(writer, 4) == [32, 33, 34, 35]
    rig.registry.drop_pins()
    assert rig.registry.pinned() is None and second.places == {1, 2}
    assert len(rig.write(writer, 16)) == 16


def test_has_place_tells_whether_a_block_may_be_recycled(rig: Rig) -> None:
    """One that is kept by nobody, and promised to nobody."""
    writer = rig.writer()
    assert rig.registry.has_place()
    pins = rig.pin(0, 1, 2)
    assert rig.registry.has_place()
    assert writer.reserve(4)
    assert not rig.registry.has_place()
    writer.unreserve()
    assert rig.registry.has_place()
    pins.places.add(3)
    assert not rig.registry.has_place()


def test_an_open_block_has_room_while_it_is_ours(rig: Rig) -> None:
    """Until it is full, or closed, or somebody has recycled it."""
    writer, other = rig.writer(), rig.writer()
    assert not writer.has_open_block
    rig.write(writer, 3)
    assert writer.has_open_block
    rig.write(writer, 1)
    assert not writer.has_open_block
    rig.write(writer, 1)
    writer.close_block()
    assert not writer.has_open_block
    rig.write(writer, 1)
    rig.write(other, 16)
    assert not writer.has_open_block


# Reserving.


def test_reserving_is_all_or_none(rig: Rig) -> None:
    """As many rows as surely fit, or those that the open block has room for; one more is refused,
    nothing changed."""
    writer = rig.writer()
    rig.write(writer, 3)
    rig.pin(0, 1)
    assert not writer.reserve(9), "its open block may be taken away before it comes to it"
    assert rig.registry.reserved == 0
    assert writer.reserve(1)
    assert rig.registry.reserved == 0, "that one fits into its open block"
    assert writer.reserve(8)
    assert rig.registry.reserved == 2
    assert len(rig.write(writer, 8)) == 8
    writer.unreserve()
    assert rig.registry.reserved == 0


def test_without_keepers_there_is_always_room(rig: Rig) -> None:
    """Then nothing is reserved: each block may be recycled."""
    writer = rig.writer()
    assert writer.reserve(1_000)
    assert rig.registry.reserved == 0


def test_what_is_reserved_nobody_else_gets(rig: Rig) -> None:
    """Another writer gets what is beyond that; when it is given back, all."""
    writer, other = rig.writer(), rig.writer()
    rig.pin(0, grows=True)
    assert writer.reserve(8)
    assert not other.reserve(5)
    assert len(rig.write(other, 16)) == 4
    assert rig.write(other, 1) == []
    assert len(rig.write(writer, 4)) == 4
    assert rig.registry.reserved == 1
    assert rig.write(other, 1) == []
    assert len(rig.write(writer, 4)) == 4
    assert rig.registry.reserved == 0
    writer.unreserve()
    assert rig.registry.reserved == 0


def test_an_open_block_of_another_is_promised_to_nobody(rig: Rig) -> None:
    """It is not kept now, but may be after its next row: that one finds room, and what was reserved
    does, too."""
    writer, other = rig.writer(), rig.writer()
    rig.write(other, 2)
    pins = rig.pin(1, 2)
    assert not writer.reserve(8)
    assert writer.reserve(4)
    assert len(rig.write(other, 1)) == 1
    pins.places.add(0)
    assert len(rig.write(writer, 4)) == 4
    writer.unreserve()


def test_open_blocks_that_nobody_writes_to_any_more_are_free(rig: Rig) -> None:
    """A stream that has ended, or closed its block, holds nothing up."""
    writer, dead, closed = rig.writer(), rig.writer(), rig.writer()
    rig.write(dead, 2)
    rig.write(closed, 1)
    rig.pin(2, 3)
    assert not writer.reserve(4)
    dead.begin_stream()
    assert writer.reserve(4)
    writer.unreserve()
    closed.close_block()
    assert writer.reserve(8)


def test_idle_streams_stop_nobody(rig: Rig) -> None:
    """Each place has an open block of which nothing is needed: a new stream takes the oldest of
    them."""
    idle = [rig.writer() for _ in range(4)]
    for writer in idle:
        rig.write(writer, 1)
    rig.pin()
    newcomer = rig.writer()
    assert rig.registry.has_place() and not rig.registry.is_full()
    assert rig.write(newcomer, 2) == [16, 17]
    assert not idle[0].has_open_block and idle[1].has_open_block


def test_a_ring_is_full_when_nobody_can_write(rig: Rig) -> None:
    """All blocks are kept, and none of them is open; an open one that the ring has passed counts as
    none."""
    writer = rig.writer()
    rig.write(writer, 4)
    pins = rig.pin(0, 1, 2, 3)
    assert rig.registry.is_full()
    pins.places.clear()
    rig.write(writer, 2)
    pins.places |= {0, 1, 2, 3}
    assert not rig.registry.is_full()
    rig.write(writer, 2)
    assert rig.registry.is_full()
    other = rig.writer()
    pins.places.discard(2)
    rig.write(other, 1)
    assert not rig.registry.is_full()
    pins.places |= {2}
    pins.places.discard(1)
    rig.write(rig.writer(), 4)
    pins.places |= {1}
    pins.places.discard(3)
    rig.write(rig.writer(), 4)  # passes the open block of the other
    pins.places |= {3}
    assert not other.has_open_block and rig.registry.is_full()


class Locks:
    """A writer's locks, with something that happens before each exclusive one."""

    def __init__(self, locks: BlockLocks, before: Any) -> None:
        self._locks, self._before = locks, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._locks, name)

    def try_exclusive(self, place: int) -> bool:
        """As of `BlockLocks`."""
        self._before()
        return self._locks.try_exclusive(place)


def test_a_block_that_is_needed_when_its_lock_is_had_stays(rig: Rig) -> None:
    """Chosen while nobody kept it, written to by another thread before the lock was had: it is
    left, its row stays."""
    slow, fast = rig.writer(), rig.writer()
    rig.write(slow, 3)
    pins = rig.pin(1, 2, 3)
    writing, go_on, wrote = (threading.Event() for _ in range(3))

    class Told(RowListener):
        def written(self, at: int, count: int, priorities: Any) -> None:
            if at < 4:
                writing.set()
                go_on.wait(20)
                pins.places.add(0)

    def write_one() -> None:
        rig.write(slow, 1)
        wrote.set()

    rig.registry.add_listener(Told())
    thread = threading.Thread(target=write_one)
    thread.start()
    assert writing.wait(20)

    def let_it_go_on() -> None:
        go_on.set()
        assert wrote.wait(20)

    fast._places._locks = Locks(fast._locks, let_it_go_on)  # type: ignore[assignment]
    rig._next = 100
    written = rig.write(fast, 1)
    go_on.set()
    thread.join()
    assert written == []
    assert rig.numbers() == [0, 1, 2, 3]


# Listeners.


def test_watchers_that_leave_while_others_are_told_take_nobody_along(rig: Rig) -> None:
    """Each of the others is told of each row."""
    told = []

    class Leaves(RowListener):
        def written(self, at: int, count: int, priorities: Any) -> None:
            rig.registry.remove(self)

    class Stays(RowListener):
        def written(self, at: int, count: int, priorities: Any) -> None:
            told.append((at, count))

    for watcher in (Leaves(), Stays()):
        rig.registry.add_listener(watcher)
    writer = rig.writer()
    rig.write(writer, 2)
    rig.write(writer, 3)
    assert told == [(0, 2), (2, 2), (4, 1)]


def test_watchers_are_told_of_the_end_of_each_stream(rig: Rig) -> None:
    """When the next one begins, and when its writer is closed."""
    ended: list[int] = []
    watcher = RowListener()
    watcher.ended = ended.append  # type: ignore[assignment, method-assign]
    rig.registry.add_listener(watcher)
    writer = StreamWriter(rig.ring, rig.ring.block_locks(), rig.registry)
    writer.begin_stream()
    assert (ended, writer.stream, list(rig.registry.streams.places)) == ([0], 1, [1])
    writer.close()
    assert (ended, list(rig.registry.streams.places)) == ([0, 1], [])
