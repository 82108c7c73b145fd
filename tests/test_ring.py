"""Tests of `_storage.ring`: names of rows, life of blocks, what readers can see at every instant of
a write.

What any sequence of writes leaves is in `models/test_ring_machine.py`.
"""

from __future__ import annotations

import logging
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import FailsAt, descriptors_pass_by_pickle, open_descriptors

from areplay._shm.range_locks import BlockLocks
from areplay._storage import ring as ring_module
from areplay._storage import stream_writer as writer_module
from areplay._storage.block_sizes import default_block_rows
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import SpecMismatch
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), triple=((3,), "float32"))


class Rig:
    """A ring, writers for it, and a reader's locks; everything is closed in the end."""

    def __init__(self, blocks: int = 4, block_rows: int = 8) -> None:
        self.ring = Ring(SPEC, blocks, block_rows)
        self.registry = WriterRegistry()
        self.reader = self.ring.block_locks()
        self._open: list[StreamWriter | BlockLocks] = [self.reader]
        self._next = 0

    def writer(self) -> StreamWriter:
        """The writer of a new stream."""
        writer = StreamWriter(self.ring, self.ring.block_locks(), self.registry)
        self._open.append(writer)
        return writer

    def columns(self, rows: int) -> dict[str, Any]:
        """That many rows, numbered on from all rows before: the number is in every field."""
        numbers = np.arange(self._next, self._next + rows)
        self._next += rows
        return {"number": numbers, "triple": np.repeat(numbers[:, None], 3, 1).astype(np.float32)}

    def write(self, writer: StreamWriter, rows: int) -> list[int]:
        """Append that many rows."""
        return writer.write(self.columns(rows), 0, rows).tolist()

    def row(self) -> dict[str, Any]:
        """One more row."""
        return {name: column[0] for name, column in self.columns(1).items()}

    def numbers(self, indices: list[int]) -> list[int]:
        """What stands in the columns for these indices; every field of a row says the same."""
        at = self.ring.positions(np.array(indices, np.int64))
        numbers = self.ring.columns["number"][at]
        assert (self.ring.columns["triple"][at] == numbers[:, None]).all()
        return numbers.tolist()

    def committed(self, indices: list[int]) -> list[bool]:
        """Which of them name a row."""
        return self.ring.committed(np.array(indices, np.int64)).tolist()

    def drawable(self) -> int:
        """Rows in the blocks that a selector would count."""
        return int(self.ring.occupied()[1].sum())

    def locked(self) -> list[int]:
        """Blocks that somebody else than the reader holds."""
        found = []
        for block in range(self.ring.blocks):
            if self.reader.try_exclusive(block):
                self.reader.release(block)
            else:
                found.append(block)
        return found

    def close(self) -> None:
        """Give everything back."""
        for thing in self._open:
            thing.close()
        self.ring.segment.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A ring of 4 blocks of 8 rows."""
    rig = Rig()
    yield rig
    rig.close()


# Geometry.


@given(
    st.integers(1, 1 << 40).map(lambda n: n),
    st.sampled_from([1, 45, 511, 512, 28_240, 131_072, 131_073, 1 << 20, 1 << 31]),
)
def test_default_blocks_are_powers_of_two_of_at_most_2_mib_and_a_256th(
    capacity: int, row_bytes: int
) -> None:
    """The largest power of two from 16 to 4,096 that keeps both bounds, or 16 if none does."""
    rows = default_block_rows(Spec(x=((row_bytes,), "uint8")), capacity)
    assert rows in (16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
    fits = [
        r
        for r in (32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
        if r * row_bytes <= 2 << 20 and r * 256 <= capacity
    ]
    assert rows == max(fits, default=16)


def test_a_fresh_ring_has_no_rows(rig: Rig) -> None:
    """Counts are 0, no index names a row, nothing is occupied."""
    ring = rig.ring
    assert (ring.blocks, ring.block_rows, ring.capacity_rows) == (4, 8, 32)
    assert [
        word[0] for word in (ring.rows_now, ring.rows_inserted, ring.next_serial, ring.next_stream)
    ] == [0] * 4
    assert ring.index_range() == (0, 0)
    assert not any(rig.committed(list(range(64))))
    assert [array.tolist() for array in ring.occupied()] == [[], []]
    assert repr(ring) == "<Ring 0 of 32 rows in 4 blocks of 8, next serial 0>"


# Names.


def test_an_index_is_serial_times_block_rows_plus_offset(rig: Rig) -> None:
    """The first block's rows are named 0 to 7, the next ones on from 8; positions repeat after a
    lap, names never."""
    writer = rig.writer()
    indices = rig.write(writer, 40)
    assert indices == list(range(40))
    assert rig.ring.positions(np.array([0, 31, 32, 39])).tolist() == [0, 31, 0, 7]
    assert rig.numbers(list(range(8, 40))) == list(range(8, 40))


def test_indices_are_int64_and_name_the_rows_in_order_also_over_several_blocks(rig: Rig) -> None:
    """One index a row, in the order of the columns, from `start` to `stop`."""
    first, second = rig.writer(), rig.writer()
    rig.write(first, 5)
    rig.write(second, 3)
    columns = rig.columns(12)
    indices = first.write(columns, 2, 12)
    assert indices.dtype == np.int64
    assert indices.tolist() == [5, 6, 7, 16, 17, 18, 19, 20, 21, 22]
    assert rig.numbers(indices.tolist()) == columns["number"][2:].tolist()
    assert first.write(columns, 4, 4).tolist() == []


def test_a_stale_index_is_recognised_for_ever(rig: Rig) -> None:
    """When its place is taken by another row, the old name is not committed and not unchanged, the
    new one is both."""
    writer = rig.writer()
    old = np.array(rig.write(writer, 8))
    assert rig.ring.unchanged(old).all()
    new = np.array(rig.write(writer, 32))[-8:]
    assert rig.ring.positions(new).tolist() == rig.ring.positions(old).tolist()
    assert not rig.ring.committed(old).any() and not rig.ring.unchanged(old).any()
    assert rig.ring.committed(new).all() and rig.ring.unchanged(new).all()


def test_only_rows_that_are_written_are_committed(rig: Rig) -> None:
    """The rest of an open block, blocks that were never begun and names yet to come are not."""
    writer = rig.writer()
    rig.write(writer, 3)
    assert rig.committed([0, 1, 2, 3, 7, 8, 31, 32, 35, 1 << 40]) == [True] * 3 + [False] * 7


def test_names_are_the_range_of_the_last_lap(rig: Rig) -> None:
    """`(first, end)` by whole blocks, never below 0."""
    writer = rig.writer()
    rig.write(writer, 9)
    assert rig.ring.index_range() == (0, 16)
    rig.write(writer, 32)
    assert rig.ring.index_range() == (16, 48)


def test_occupied_are_the_blocks_with_rows(rig: Rig) -> None:
    """Serials and counts, of full and open blocks alike."""
    writer = rig.writer()
    rig.write(writer, 35)
    serials, rows = rig.ring.occupied()
    assert sorted(zip(serials.tolist(), rows.tolist(), strict=True)) == [
        (1, 8),
        (2, 8),
        (3, 8),
        (4, 3),
    ]


# Streams and blocks.


def test_streams_are_numbered_and_have_blocks_of_their_own(rig: Rig) -> None:
    """Rows of two writers never share a block, whatever the order of their writes."""
    first, second = rig.writer(), rig.writer()
    assert (first.stream, second.stream) == (0, 1)
    blocks: dict[int, set[int]] = {0: set(), 1: set()}
    for _ in range(6):
        blocks[0] |= {index // 8 for index in rig.write(first, 1)}
        blocks[1] |= {index // 8 for index in rig.write(second, 1)}
    assert blocks == {0: {0}, 1: {1}}
    assert [rig.ring.chain(serial)[0] for serial in (0, 1)] == [0, 1]


def test_the_chain_tells_the_blocks_of_a_stream_in_order(rig: Rig) -> None:
    """Previous and following, by serial, -1 at the ends; another stream's blocks in between do not
    matter."""
    first, second = rig.writer(), rig.writer()
    rig.write(first, 8)
    rig.write(second, 2)
    rig.write(first, 9)
    assert rig.ring.chain(0) == (0, -1, 2)
    assert rig.ring.chain(1) == (1, -1, -1)
    assert rig.ring.chain(2) == (0, 0, 3)
    assert rig.ring.chain(3) == (0, 2, -1)


def test_a_block_that_was_recycled_is_in_no_chain(rig: Rig) -> None:
    """Its serial is unknown; its successor still names it, which tells that rows came before."""
    writer = rig.writer()
    rig.write(writer, 33)
    with pytest.raises(KeyError):
        rig.ring.chain(0)
    assert rig.ring.chain(1) == (0, 0, 2)
    with pytest.raises(KeyError):
        rig.ring.chain(99)


def test_a_sealed_block_gets_no_more_rows(rig: Rig) -> None:
    """The next row begins a new block in the same chain; sealing twice or before the first row does
    nothing."""
    writer = rig.writer()
    writer.close_block()
    assert rig.write(writer, 3) == [0, 1, 2]
    writer.close_block()
    writer.close_block()
    assert rig.write(writer, 1) == [8]
    assert rig.ring.chain(0) == (0, -1, 1)
    assert rig.ring.chain(1) == (0, 0, -1)
    assert rig.committed([2, 3, 8, 9]) == [True, False, True, False]


def test_a_block_recycled_by_others_while_open_is_not_written_to_again(rig: Rig) -> None:
    """A writer that was slow for a whole lap goes on in a new block, and forgets nothing of
    others."""
    slow, fast = rig.writer(), rig.writer()
    rig.write(slow, 3)
    kept = rig.write(fast, 32)
    assert not any(rig.committed([0, 1, 2]))
    after = rig.write(slow, 2)
    assert after == [40, 41]
    assert rig.committed(kept[8:]) == [True] * 24
    assert rig.numbers(kept[8:]) == list(range(3 + 8, 3 + 32))
    assert rig.ring.chain(5)[:2] == (slow.stream, 0)


def test_a_closed_writer_has_given_back_its_locks(rig: Rig) -> None:
    """Its descriptor is closed, its rows stay."""
    before = open_descriptors()
    writer = StreamWriter(rig.ring, rig.ring.block_locks(), rig.registry)
    indices = rig.write(writer, 3)
    writer.close()
    assert open_descriptors() == before
    assert rig.committed(indices) == [True] * 3


def test_another_process_sees_the_same_ring(rig: Rig) -> None:
    """A pickled ring is the same memory: rows, counts and chains are read there as here."""
    writer = rig.writer()
    with descriptors_pass_by_pickle():
        twin = pickle.loads(pickle.dumps(rig.ring))
    indices = np.array(rig.write(writer, 11))
    assert twin.committed(indices).all()
    assert twin.columns["number"][twin.positions(indices)].tolist() == list(range(11))
    assert twin.chain(1) == (0, 0, -1)
    assert repr(twin) == repr(rig.ring)
    assert (twin.rows_now[0], twin.rows_inserted[0], twin.next_stream[0]) == (11, 11, 1)
    locks = twin.block_locks()
    assert locks.try_exclusive(2) and not rig.reader.try_exclusive(2)
    locks.close()
    twin.segment.close()


# Counts.


def test_counts_are_exact_over_laps(rig: Rig) -> None:
    """`rows_now` loses a recycled block's rows, `rows_inserted` never loses any."""
    writer = rig.writer()
    for inserted, now in ((8, 8), (32, 32), (33, 25), (40, 32), (41, 25)):
        rig.write(writer, inserted - rig.ring.rows_inserted[0])
        assert (rig.ring.rows_inserted[0], rig.ring.rows_now[0]) == (inserted, now)
        assert rig.drawable() == now


def test_counts_are_exact_with_writers_in_several_threads() -> None:
    """Four threads write at once, round and round: nothing is counted twice or missed, no row is
    torn or lost."""
    rig = Rig(blocks=256, block_rows=8)
    writers = [rig.writer() for _ in range(4)]
    rounds, names = 300, [[] for _ in writers]

    def write(k: int) -> None:
        for turn in range(rounds):
            number = k * 1_000_000 + turn * 5
            numbers = np.arange(number, number + 5)
            columns = {
                "number": numbers,
                "triple": np.repeat(numbers[:, None], 3, 1).astype(np.float32),
            }
            names[k].extend(
                zip(writers[k].write(columns, 0, 5).tolist(), numbers.tolist(), strict=True)
            )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert rig.ring.rows_inserted[0] == 4 * rounds * 5
    everything = dict(pair for mine in names for pair in mine)
    assert len(everything) == 4 * rounds * 5, "no name was given twice"
    there = [index for index in everything if rig.committed([index])[0]]
    # A thread that was not scheduled for a lap of the others had its open block left out: not
    # counted any more.
    left = sum(rig.ring.block(place)[1] for place in rig.registry.skipped)
    assert len(there) == rig.ring.rows_now[0] + left
    assert rig.numbers(there) == [everything[index] for index in there]
    rig.close()


# Blocks that somebody holds.


def test_a_block_that_a_reader_holds_is_left_for_another_lap(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The writer does not wait: it takes the next block, and a warning names the process that holds
    the first."""
    writer = rig.writer()
    rig.write(writer, 32)
    assert rig.reader.try_shared(0)
    with caplog.at_level(logging.WARNING, "areplay"):
        indices = rig.write(writer, 8)
    assert indices == list(range(40, 48))
    assert rig.numbers(list(range(8))) == list(range(8)), "what the reader copies stays as it is"
    assert len(caplog.records) == 1
    assert "block 0" in caplog.text and f"process {rig.reader.holder(0)}" in caplog.text
    rig.reader.release(0)
    assert rig.write(writer, 32)[-8:] == list(range(72, 80)), (
        "on the next lap it is recycled like any other"
    )
    assert not any(rig.committed(list(range(8))))
    assert rig.ring.rows_now[0] == 32 == rig.drawable()


def test_what_counts_as_there_can_be_drawn(rig: Rig) -> None:
    """Rows of a block that was left for another lap are either drawn or not counted: `len` and the
    draws agree."""
    writer = rig.writer()
    rig.write(writer, 32)
    assert rig.reader.try_shared(0)
    rig.write(writer, 8)
    rig.reader.release(0)
    assert rig.ring.rows_now[0] == rig.drawable()


def test_rows_written_to_a_block_that_was_passed_by_are_not_counted(rig: Rig) -> None:
    """A writer is in the middle of a copy while another one goes round: its block is left, out of
    reach of draws, and so are the rows that it publishes then. On the next lap the block is
    recycled, and nothing is counted out twice."""
    slow, fast = rig.writer(), rig.writer()
    rig.write(slow, 3)
    laps = 0

    def lap(seam: str) -> None:
        nonlocal laps
        laps += seam == "ring.write"
        if seam == "ring.write" and laps == 1:
            rig.write(fast, 40)

    with looking(rig, lap):
        names = rig.write(slow, 2)
    assert rig.committed(names) == [True, True]
    assert rig.ring.rows_now[0] == rig.drawable() == 24
    for _ in range(8):
        rig.write(fast, 8)
        assert rig.ring.rows_now[0] == rig.drawable()
    assert rig.write(slow, 1)[0] > max(names)


def test_an_open_block_that_a_reader_holds_is_left_as_it_is(rig: Rig) -> None:
    """The writer goes on in a new one; the rows that are there stay, in the same chain."""
    writer = rig.writer()
    rig.write(writer, 3)
    assert rig.reader.try_shared(0)
    assert rig.write(writer, 2) == [8, 9]
    rig.reader.release(0)
    assert rig.write(writer, 1) == [10]
    assert rig.committed([0, 1, 2, 3]) == [True, True, True, False]
    assert rig.ring.chain(0) == (0, -1, 1)


def test_after_a_write_no_lock_is_held(rig: Rig) -> None:
    """Also between the chunks of one stream, after a refused row, and after sealing."""
    writer = rig.writer()
    rig.write(writer, 5)
    assert rig.locked() == []
    writer.write_rows(rig.row())
    assert rig.locked() == []
    with pytest.raises(SpecMismatch):
        writer.write_rows({"number": 1})
    assert rig.locked() == []
    rig.write(writer, 20)
    writer.close_block()
    assert rig.locked() == []


# Single rows, and rows that do not fit.


def test_a_single_row_is_appended_like_a_chunk_of_one(rig: Rig) -> None:
    """Same names, same counts, and chunks may follow."""
    writer = rig.writer()
    names = [writer.write_rows(rig.row()) for _ in range(9)]
    names += rig.write(writer, 2)
    assert names == list(range(11))
    assert rig.numbers(names) == list(range(11))
    assert rig.ring.rows_now[0] == rig.ring.rows_inserted[0] == 11


BAD_ROWS: list[Mapping[str, object]] = [
    {"number": 1},
    {"number": 1.5, "triple": [0.0, 0.0, 0.0]},
    {"number": 1, "triple": [0.0, 0.0]},
    {"number": 1, "triple": [0.0, 0.0, 0.0], "more": 1},
]


def state_of(ring: Ring) -> dict[str, object]:
    """Everything that readers can see of the ring, but the bytes behind an open block's rows."""
    seen = {}
    for place, (serial, n) in enumerate(map(ring.block, range(ring.blocks))):
        if serial >= 0:
            part = slice(place * ring.block_rows, place * ring.block_rows + n)
            content = {name: column[part].tolist() for name, column in ring.columns.items()}
            seen[serial] = (n, content, ring.chain(serial))
    counts = [ring.rows_now[0], ring.rows_inserted[0]]
    return {"blocks": seen, "counts": counts}


@pytest.mark.parametrize("rows_before", [0, 3, 8, 32, 35, 40])
@pytest.mark.parametrize("bad", BAD_ROWS, ids=["missing", "lossy", "shape", "extra"])
def test_a_row_that_does_not_fit_changes_nothing(
    rig: Rig, rows_before: int, bad: Mapping[str, object]
) -> None:
    """Whatever readers can see stays, also where the row would have begun a new block; then good
    rows are taken."""
    writer = rig.writer()
    if rows_before:
        rig.write(writer, rows_before)
    before = state_of(rig.ring)
    with pytest.raises(SpecMismatch):
        writer.write_rows(bad)
    assert state_of(rig.ring) == before
    index = writer.write_rows(rig.row())
    assert index == rows_before
    assert rig.numbers([index]) == [rows_before]


def test_a_stream_that_ends_after_a_refused_row_has_a_clean_end(rig: Rig) -> None:
    """No block claims to be followed by one that never came, and counts stay exact over the next
    laps."""
    writer, other = rig.writer(), rig.writer()
    rig.write(writer, 8)
    with pytest.raises(SpecMismatch):
        writer.write_rows(BAD_ROWS[0])
    writer.close()
    assert rig.ring.chain(0) == (0, -1, -1)
    for _ in range(12):
        rig.write(other, 4)
        assert rig.ring.rows_now[0] == rig.drawable()


# What can be seen at every instant of a write.


class Watched(dict[str, Any]):
    """Columns that let others look after each of them has been handed out."""

    look: Callable[[], None]

    def items(self) -> Any:
        for pair in super().items():
            yield pair
            self.look()


@contextmanager
def looking(rig: Rig, look: Callable[[str], None]) -> Iterator[None]:
    """Call `look` at every seam of a write: each fence, each failpoint, after each column."""
    watched = Watched(rig.ring.columns)
    watched.look = lambda: look("column")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("order", "fence", "failpoint"):
            for module in (ring_module, writer_module):
                if hasattr(module, name):
                    patch.setattr(
                        module, name, lambda *args, name=name: look(args[0] if args else name)
                    )
        patch.setattr(rig.ring, "columns", watched)
        yield


def test_at_every_instant_readers_see_whole_rows_only(rig: Rig) -> None:
    """Several laps of two writers, looked at after each store: what has a serial and is below the
    count is one row, the same under its name for ever."""
    first, second = rig.writer(), rig.writer()
    ring, seen, looks = rig.ring, {}, 0
    number, triple = ring.columns["number"], ring.columns["triple"]

    def look(_: str) -> None:
        nonlocal looks
        looks += 1
        for place, (serial, rows) in enumerate(map(ring.block, range(ring.blocks))):
            if serial < 0:
                continue
            assert serial % 4 == place
            assert 0 < rows <= 8
            for offset in range(rows):
                at = place * 8 + offset
                value = number[at].item()
                assert triple[at].tolist() == [value] * 3, "a torn row could be read"
                assert seen.setdefault(serial * 8 + offset, value) == value, (
                    "a name stands for another row"
                )

    with looking(rig, look):
        for turn in range(40):
            rig.write(first, turn % 11)
            second.write_rows(rig.row())
            rig.write(second, turn % 5)
            look("between")
    assert looks > 300
    assert len(seen) == ring.rows_inserted[0]


def test_a_recycled_block_is_marked_and_counted_out_before_its_first_row(rig: Rig) -> None:
    """At the fence it is nobody's any more and its old rows are whole; so it stays until the new
    rows are written."""
    writer = rig.writer()
    rig.write(writer, 32)
    seams: dict[str, tuple[object, ...]] = {}

    def look(seam: str) -> None:
        ring = rig.ring
        seams.setdefault(
            seam,
            (
                int(ring.ends[0]),
                ring.block(0),
                ring.rows_now[0],
                ring.columns["number"][:8].tolist(),
            ),
        )

    with looking(rig, look):
        rig.write(writer, 2)
    old, new = list(range(8)), [32, 33, 2, 3, 4, 5, 6, 7]
    for seam, content in (
        ("fence", old),
        ("ring.recycle", old),
        ("ring.write", old),
        ("order", new),
    ):
        assert seams[seam] == (-1, (-1, 0), 24, content)
    assert (rig.ring.ends[0], rig.ring.block(0), rig.ring.rows_now[0]) == (34, (4, 2), 26)


def test_rows_are_written_before_the_end_that_shows_them(rig: Rig) -> None:
    """A fence stands between the two. Elsewhere than on x86-64 it is a real one."""
    writer = rig.writer()
    rig.write(writer, 3)
    trace: list[tuple[int, int]] = []

    def look(seam: str) -> None:
        if seam == "order":
            trace.append((int(rig.ring.columns["number"][3]), int(rig.ring.ends[0])))

    with looking(rig, look):
        rig.write(writer, 1)
    assert trace == [(3, 3)]


class Interrupted(BaseException):
    """As Ctrl-C, at a chosen place."""


@pytest.mark.parametrize(
    ("rows_before", "seam"),
    [
        (32, "ring.recycle"),
        *((rows, seam) for rows in (3, 32) for seam in ("ring.write", "column", "order")),
    ],
)
def test_a_write_interrupted_anywhere_can_be_done_again(
    rig: Rig, rows_before: int, seam: str
) -> None:
    """The rows of the interrupted chunk never were, no lock is left after the next write, counts
    stay exact."""
    writer = rig.writer()
    rig.write(writer, rows_before)

    def look(at: str) -> None:
        if at == seam:
            raise Interrupted

    columns = rig.columns(4)
    with looking(rig, look), pytest.raises(Interrupted):
        writer.write(columns, 0, 4)
    assert rig.ring.rows_inserted[0] == rows_before
    assert rig.ring.rows_now[0] == rig.drawable()
    indices = writer.write(columns, 0, 4).tolist()
    assert rig.locked() == []
    assert rig.numbers(indices) == columns["number"].tolist()
    assert rig.committed(indices) == [True] * 4
    assert rig.ring.rows_inserted[0] == rows_before + 4
    assert rig.ring.rows_now[0] == rig.drawable()
    rig.write(writer, 64)
    assert rig.ring.rows_now[0] == rig.drawable()


@contextmanager
def a_lap_between_two_looks(rig: Rig) -> Iterator[None]:
    """At the first fence of a reader, a writer goes once around the ring."""
    writer, laps = rig.writer(), 0

    def lap() -> None:
        nonlocal laps
        laps += 1
        if laps == 1:
            rig.write(writer, 32)
            assert laps > 1, "the writer's own fences do nothing"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "order", lap)
        patch.setattr(writer_module, "order", lap)
        yield
    assert laps > 1, "the reader has no fence between its looks"


def test_what_a_lap_has_overwritten_is_not_unchanged(rig: Rig) -> None:
    """The look at the serials comes after the fence: rows copied before it that are gone are found
    out."""
    names = np.array(rig.write(rig.writer(), 32))
    with a_lap_between_two_looks(rig):
        assert not rig.ring.unchanged(names).any()


def test_names_that_a_lap_makes_stale_after_the_look_are_found_out(rig: Rig) -> None:
    """A lap right after the first look lets stale names pass it; the look after copying does
    not."""
    names = np.array(rig.write(rig.writer(), 32))
    with a_lap_between_two_looks(rig):
        assert rig.ring.committed(names).all()
    assert not rig.ring.unchanged(names).any()


def test_a_chain_that_a_lap_has_overwritten_is_no_answer(rig: Rig) -> None:
    """The serial is looked at after the links: links of another block are never returned."""
    rig.write(rig.writer(), 32)
    with a_lap_between_two_looks(rig), pytest.raises(KeyError):
        rig.ring.chain(2)


def test_a_writer_that_was_lapped_before_it_had_the_lock_leaves_the_newer_block(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken a serial, and stands still: another one goes round, and into that very place.
    When it goes on, it takes another serial, and each row stays under its name."""
    number_of: dict[int, int] = {}

    def write(writer: StreamWriter, rows: int) -> None:
        first = rig._next
        number_of.update(zip(rig.write(writer, rows), range(first, first + rows), strict=True))

    write(rig.writer(), 32)
    slow, fast = rig.writer(), rig.writer()
    try_exclusive, has_lapped = slow._locks.try_exclusive, []

    def late(place: int) -> bool:
        if not has_lapped:
            has_lapped.append(place)
            write(fast, 28)  # serials 5 to 8, of which the last is in the place of 4
            assert rig.ring.block(place)[0] == 8
        return try_exclusive(place)

    late_locks = types.SimpleNamespace(try_exclusive=late, release=slow._locks.release)
    monkeypatch.setattr(slow._places, "_locks", late_locks)
    slow_rows = rig.columns(8)
    number_of.update(
        zip(slow.write(slow_rows, 0, 8).tolist(), slow_rows["number"].tolist(), strict=True)
    )
    monkeypatch.undo()
    write(fast, 4)  # goes on in its block
    names = np.array(list(number_of))
    there = names[rig.ring.committed(names)]
    assert len(there) >= 32 - 8 and has_lapped == [0]
    assert rig.ring.columns["number"][rig.ring.positions(there)].tolist() == [
        number_of[name] for name in there.tolist()
    ]


# What a refused system call leaves.


def test_a_ring_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that cannot be opened raise; the ring stays usable and nothing leaks."""
    rig = Rig()
    before = open_descriptors()
    monkeypatch.setattr("os.open", FailsAt(open, 1))
    with pytest.raises(Exception, match="block locks"):
        rig.ring.block_locks()
    monkeypatch.undo()
    assert open_descriptors() == before
    assert rig.write(rig.writer(), 3) == [0, 1, 2]
    rig.close()
