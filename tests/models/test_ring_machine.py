"""Any history of the ring, against blocks kept as plain Python lists.

Several streams append rows and chunks, seal, end and begin, laps go round, readers hold blocks.
After each step the rows that are there, their values by index, the chains and the counts are those
of the oracle, exactly.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.parts import machine_in_parts

from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import SpecMismatch
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), pair=((2,), "int32"))


@dataclass
class Block:
    """A block, as the oracle sees it."""

    serial: int
    stream: int
    previous: int
    rows: list[int] = field(default_factory=list)
    following: int = -1


@dataclass
class Stream:
    """A stream, as the oracle sees it: its number, the block it may append to, its last block, all
    its rows ever."""

    number: int
    open: Block | None = None
    last: Block | None = None
    rows: list[int] = field(default_factory=list)


class RingMachine(RuleBasedStateMachine):
    """The ring and its oracle, side by side."""

    @initialize(blocks=st.integers(4, 6), block_rows=st.integers(1, 4))
    def build(self, blocks: int, block_rows: int) -> None:
        self.blocks, self.block_rows = blocks, block_rows
        self.ring = Ring(SPEC, blocks, block_rows)
        self.registry = WriterRegistry()
        self.reader, self.prober = self.ring.block_locks(), self.ring.block_locks()
        self.writers: list[StreamWriter] = []
        self.streams: list[Stream] = []
        self.places: list[Block | None] = [None] * blocks
        self.next_serial = self.inserted = self.streams_begun = 0
        self.held: set[int] = set()
        self.remembered: list[tuple[int, int]] = []
        self.add_stream()

    def add_stream(self) -> None:
        """One more writer, here and there."""
        self.writers.append(StreamWriter(self.ring, self.ring.block_locks(), self.registry))
        self.streams.append(Stream(self.streams_begun))
        self.streams_begun += 1

    # The oracle.

    def block_for_a_row(self, stream: Stream) -> Block:
        """Where that stream's next row goes, in plain words: on in its open block if that has room,
        is still within the last lap and is held by nobody; else into the next place that nobody
        holds."""
        block = stream.open
        if (
            block is not None
            and len(block.rows) < self.block_rows
            and block.serial % self.blocks not in self.held
            and block.serial >= self.next_serial - self.blocks
        ):
            return block
        while self.next_serial % self.blocks in self.held:
            self.next_serial += 1
        serial = self.next_serial
        self.next_serial += 1
        block = Block(serial, stream.number, -1 if stream.last is None else stream.last.serial)
        self.places[serial % self.blocks] = block
        if stream.last is not None:
            stream.last.following = serial
        stream.open = stream.last = block
        return block

    def append(self, stream: Stream, numbers: list[int]) -> list[int]:
        """Their names."""
        names = []
        for number in numbers:
            block = self.block_for_a_row(stream)
            names.append(block.serial * self.block_rows + len(block.rows))
            block.rows.append(number)
            stream.rows.append(number)
        self.inserted += len(numbers)
        return names

    def alive(self) -> list[Block]:
        """Blocks whose rows have not been overwritten."""
        return [block for block in self.places if block is not None]

    def in_reach(self) -> list[Block]:
        """Those of them that the last lap has not passed by."""
        return [block for block in self.alive() if block.serial >= self.next_serial - self.blocks]

    # What happens.

    @rule(which=st.integers(0, 99), count=st.integers(0, 9), skip=st.integers(0, 3))
    def write_a_chunk(self, which: int, count: int, skip: int) -> None:
        which %= len(self.writers)
        numbers = list(range(self.inserted, self.inserted + count))
        padded = np.array([-5] * skip + numbers + [-5], np.int64)
        columns = {"number": padded, "pair": np.stack([padded, padded], 1).astype(np.int32)}
        names = self.writers[which].write(columns, skip, skip + count)
        assert names.tolist() == self.append(self.streams[which], numbers)

    @rule(which=st.integers(0, 99))
    def write_a_row(self, which: int) -> None:
        which %= len(self.writers)
        number = self.inserted
        name = self.writers[which].write_rows({"number": number, "pair": [number, number]})
        assert [name] == self.append(self.streams[which], [number])

    @rule(
        which=st.integers(0, 99),
        bad=st.sampled_from([{"number": 1}, {"number": 1, "pair": [1]}, {"x": 1, "pair": 1}]),
    )
    def write_a_row_that_does_not_fit(self, which: int, bad: dict[str, Any]) -> None:
        with pytest.raises(SpecMismatch):
            self.writers[which % len(self.writers)].write_rows(bad)

    @rule(which=st.integers(0, 99))
    def close_block(self, which: int) -> None:
        which %= len(self.writers)
        self.writers[which].close_block()
        self.streams[which].open = None

    @precondition(lambda self: len(self.writers) < 4)
    @rule()
    def begin_a_stream(self) -> None:
        self.add_stream()

    @rule(which=st.integers(0, 99))
    def end_a_stream(self, which: int) -> None:
        which %= len(self.writers)
        self.writers.pop(which).close()
        self.streams.pop(which)
        if not self.writers:
            self.add_stream()

    @precondition(lambda self: len(self.held) < 2)
    @rule(place=st.integers(0, 99))
    def a_reader_takes_a_block(self, place: int) -> None:
        place %= self.blocks
        assert self.reader.try_shared(place)
        self.held.add(place)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def a_reader_gives_a_block_back(self, which: int) -> None:
        place = sorted(self.held)[which % len(self.held)]
        self.reader.release(place)
        self.held.remove(place)

    @rule()
    def a_reader_remembers_what_is_there(self) -> None:
        self.remembered = [
            (block.serial * self.block_rows + offset, number)
            for block in self.alive()
            for offset, number in enumerate(block.rows)
        ]

    # What must hold.

    @invariant()
    def exactly_the_rows_that_were_not_overwritten_are_there(self) -> None:
        """Of all names around the present ones, committed are those of the oracle, with the
        oracle's values."""
        expected = {
            block.serial * self.block_rows + offset: number
            for block in self.alive()
            for offset, number in enumerate(block.rows)
        }
        lowest = max(0, min(expected, default=0) - 3 * self.block_rows)
        names = np.arange(lowest, (self.next_serial + self.blocks + 1) * self.block_rows)
        there = names[self.ring.committed(names)]
        assert there.tolist() == sorted(expected)
        at = self.ring.positions(there)
        assert self.ring.columns["number"][at].tolist() == [
            expected[name] for name in there.tolist()
        ]
        assert self.ring.columns["pair"][at].tolist() == [
            [expected[name]] * 2 for name in there.tolist()
        ]

    @invariant()
    def counts_are_exact(self) -> None:
        """Rows in reach, rows ever, serials, streams."""
        found = [
            self.ring.rows_now[0],
            self.ring.rows_inserted[0],
            self.ring.next_serial[0],
            self.ring.next_stream[0],
        ]
        in_reach = sum(len(block.rows) for block in self.in_reach())
        assert found == [in_reach, self.inserted, self.next_serial, self.streams_begun]

    @invariant()
    def selectors_see_every_block_in_reach(self) -> None:
        """Serials with their numbers of rows, by block and all together; their names lie in the
        range of names."""
        for place, block in enumerate(self.places):
            assert self.ring.block(place) == (
                (-1, 0) if block is None else (block.serial, len(block.rows))
            )
        serials, rows = self.ring.occupied()
        expected = sorted((block.serial, len(block.rows)) for block in self.in_reach())
        assert sorted(zip(serials.tolist(), rows.tolist(), strict=True)) == expected
        first, end = self.ring.index_range()
        assert first == max(0, self.next_serial - self.blocks) * self.block_rows
        assert end == self.next_serial * self.block_rows

    @invariant()
    def chains_lead_through_each_stream_in_order(self) -> None:
        """Links are the oracle's; the blocks of a stream, followed forward, hold a piece of its
        rows in order."""
        for block in self.alive():
            assert self.ring.chain(block.serial) == (block.stream, block.previous, block.following)
        serials = {block.serial for block in self.alive()}
        for serial in range(max(0, self.next_serial - 2 * self.blocks), self.next_serial + 2):
            if serial not in serials:
                with pytest.raises(KeyError):
                    self.ring.chain(serial)
        for stream in self.streams:
            mine = sorted(
                (b for b in self.alive() if b.stream == stream.number),
                key=lambda block: block.serial,
            )
            if mine and mine[-1].following == -1:
                newest, followed = mine[-1].serial, []
                while newest in serials:
                    followed.append(newest)
                    newest = self.ring.chain(newest)[1]
                rows: list[int] = []
                for serial in reversed(followed):
                    place = serial % self.blocks
                    at = place * self.block_rows
                    rows += self.ring.columns["number"][
                        at : at + self.ring.block(place)[1]
                    ].tolist()
                assert rows == stream.rows[len(stream.rows) - len(rows) :]

    @invariant()
    def stale_names_are_recognised(self) -> None:
        """Of what a reader remembers, unchanged is what is still the same row."""
        if self.remembered:
            names = np.array([name for name, _ in self.remembered])
            serials = {block.serial for block in self.alive()}
            expected = [name // self.block_rows in serials for name, _ in self.remembered]
            assert self.ring.unchanged(names).tolist() == expected

    @invariant()
    def nobody_but_the_reader_holds_a_lock(self) -> None:
        """Between two steps every block that no reader holds is free."""
        for place in range(self.blocks):
            free = self.prober.try_exclusive(place)
            if free:
                self.prober.release(place)
            assert free == (place not in self.held)

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            for writer in self.writers:
                writer.close()
            self.reader.close()
            self.prober.close()
            self.ring.segment.close()


logging.getLogger("areplay._storage.ring").disabled = False
TestRing = machine_in_parts(RingMachine, max_examples=60, stateful_step_count=40, print_blob=True)
