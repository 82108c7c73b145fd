"""Tests of `_storage.block_sizes`, and of blocks that are split as streams become more.

The oracle is what was written: which rows are the newest, and what each of them holds. It knows
nothing of blocks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import bound
from models.episode_oracle import Stack
from models.episode_world import PLAIN, World

import areplay
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.reader import Reader
from areplay._storage.block_sizes import finest_block_rows, fitting_block_rows, most_streams
from areplay._storage.priorities import Priorities
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.selectors.uniform import Uniform

SPEC = areplay.Spec(x=((), "int64"))


def stream_writer(replay: areplay.Replay) -> StreamWriter:
    """A writer of a new stream of that replay."""
    engine = replay._opened()
    return StreamWriter(engine.ring, engine.ring.block_locks(), engine.registry)


def on_one_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Not once with each kind of event loop: it says nothing about those."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


@given(
    st.integers(1, 1 << 34),
    st.sampled_from([16, 64, 512, 4_096]),
    st.integers(1, 2_000),
    st.integers(0, 2_000),
)
def test_blocks_are_halved_until_they_are_small_enough(
    blocks: int, rows: int, streams: int, ended: int
) -> None:
    """No further than that, and no further than the tables reach; up to 1,024 streams get nine rows
    in ten."""
    capacity = blocks * rows
    finest = finest_block_rows(capacity, rows)
    got = fitting_block_rows(capacity, rows, finest, streams, ended)
    assert finest <= got <= rows and rows % got == 0 and (rows // got).bit_count() == 1
    assert got == rows or streams + ended > most_streams(capacity, rows)
    assert got == finest or streams + ended <= most_streams(capacity, got)
    if capacity >= 50_000 and streams <= 1_000 and not ended:
        assert streams * (got - 1) <= 0.1 * capacity
    assert finest >= 4 and capacity // finest <= max(2 * 12 * 1_024, blocks, capacity // 4)


class Scene:
    """A ring of 6 blocks of 16 rows, several streams, and each row as it was written: its number in
    field and mass."""

    def __init__(self, finest_rows: int = 2) -> None:
        self.ring, self.registry = Ring(SPEC, 6, 16, finest_rows), WriterRegistry()
        self.priorities = Priorities(self.ring, 1.0)
        self.registry.add_listener(self.priorities)
        self.rows: dict[int, tuple[int, int]] = {}  # index -> number, stream
        self.chains: dict[int, list[int]] = {}  # stream -> indices
        self.writers: list[StreamWriter] = []

    def begin(self) -> StreamWriter:
        """One more stream."""
        self.writers.append(StreamWriter(self.ring, self.ring.block_locks(), self.registry))
        return self.writers[-1]

    def write(self, writer: StreamWriter, count: int) -> None:
        """Append rows."""
        numbers = np.arange(1, 1 + count) + max([0, *(number for number, _ in self.rows.values())])
        indices = writer.write({"x": numbers}, 0, count, numbers.astype(float))
        for index, number in zip(indices.tolist(), numbers.tolist(), strict=True):
            assert index not in self.rows
            self.rows[index] = number, writer.stream
            self.chains.setdefault(writer.stream, []).append(index)

    def there(self) -> list[int]:
        """The rows that are there, as far as readers are told."""
        names = np.array(sorted(self.rows), np.int64)
        return names[self.ring.committed(names)].tolist()

    def check(self) -> None:
        """Each row that is there has its value, its mass, and its neighbours in the chain of its
        stream."""
        ring = self.ring
        there = np.array(self.there(), np.int64)
        numbers = [self.rows[index][0] for index in there.tolist()]
        assert ring.columns["x"][ring.positions(there)].tolist() == numbers
        masses = np.where(
            there >= ring.index_range()[0], numbers, 0
        )  # others are in blocks that were left for another lap
        assert self.priorities.masses[ring.positions(there)].tolist() == masses.tolist()
        assert self.priorities.total == masses.sum()
        serials, rows = ring.occupied()
        assert rows.sum() == len(ring) == np.count_nonzero(there >= ring.index_range()[0])
        self.priorities.check()
        for serial, count in zip(serials.tolist(), rows.tolist(), strict=True):
            stream, previous, following = ring.chain(serial)
            chain = self.chains[stream]
            at = chain.index(serial * ring.block_rows)
            assert chain[at : at + count] == list(range(chain[at], chain[at] + count))
            if at:
                before = chain[at - 1] // ring.block_rows
                assert previous == before or ring.block(before % ring.blocks)[0] != before
            if at + count < len(chain):
                assert following == chain[at + count] // ring.block_rows
            elif following >= 0:
                assert following * ring.block_rows == chain[at + count - 1] + 1, (
                    "the part that comes next, still empty"
                )

    def close(self) -> None:
        """Give everything back."""
        for writer in self.writers:
            writer.close()
        self.priorities.close()
        self.ring.segment.close()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_rows_keep_index_place_mass_and_neighbours_when_blocks_are_split(
    data: st.DataObject,
) -> None:
    """Whatever was written before: streams that go on in the middle of a block, at its end, that
    have ended."""
    scene = Scene()
    for _ in range(data.draw(st.integers(1, 3))):
        scene.write(scene.begin(), data.draw(st.integers(0, 40)))
    for _ in range(data.draw(st.integers(1, 12))):
        step = data.draw(
            st.sampled_from(["write", "write", "write", "begin", "end", "split", "seal", "leave"])
        )
        writer = data.draw(st.sampled_from(scene.writers))
        if step == "write":
            scene.write(writer, data.draw(st.integers(1, 40)))
        elif step == "begin":
            scene.begin()
        elif step == "end":
            writer.begin_stream()
        elif step == "seal":
            writer.close_block()
        elif step == "leave":
            held, place = scene.ring.block_locks(), scene.ring.next_serial[0] % scene.ring.blocks
            assert held.try_shared(place)
            scene.write(writer, 20)
            held.close()
        elif scene.ring.block_rows > 2:
            before = {index: scene.ring.positions(np.array([index]))[0] for index in scene.there()}
            with scene.registry:
                scene.registry._split(
                    scene.ring,
                    max(2, scene.ring.block_rows // data.draw(st.sampled_from([2, 2, 4]))),
                )
            assert {
                index: scene.ring.positions(np.array([index]))[0] for index in scene.there()
            } == before
        scene.check()
    scene.close()


@pytest.mark.parametrize("streams", [400, 1_000])
@pytest.mark.parametrize("pace", ["lockstep", "random"])
@on_one_loop
async def test_many_streams_leave_nine_rows_in_ten(streams: int, pace: str) -> None:
    """From the first row on, and the rows that are there are the newest of the streams together."""
    rng = np.random.default_rng(streams)
    async with areplay.Replay(SPEC, 60_000, seed=0) as replay:
        ring = replay._opened().ring
        writers = [
            StreamWriter(ring, ring.block_locks(), replay._opened().registry)
            for _ in range(streams)
        ]
        written = 0
        while written < 2.2 * replay.capacity_rows:
            for writer in writers:
                count = 40 if pace == "lockstep" else int(rng.geometric(1 / 40))
                writer.write({"x": np.arange(written, written + count)}, 0, count)
                written += count
        assert 0.9 * replay.capacity_rows <= len(replay) <= replay.capacity_rows
        drawn = replay.sample(20_000)["x"]
        # A block goes when its first row is the oldest: what is in it is younger by as long as it
        # took to be filled.
        newest = written - replay.capacity_rows - streams * 40 * (2 + ring.block_rows // 40)
        assert np.mean(drawn >= newest) > (0.999 if pace == "lockstep" else 0.97)
        assert len(np.unique(drawn // 1_000)) >= 0.8 * replay.capacity_rows / 1_000
        for writer in writers:
            writer.close()


@on_one_loop
async def test_streams_that_come_and_go_leave_nine_rows_in_ten() -> None:
    """An actor that is restarted again and again leaves a block behind each time, in part empty."""
    async with areplay.Replay(SPEC, 100_000, seed=0) as replay:
        rng = np.random.default_rng(0)
        for _ in range(2 * 500):
            count = int(rng.integers(100, 300))
            writer = stream_writer(replay)
            writer.write({"x": np.arange(count)}, 0, count)
            writer.close()
        assert replay._opened().ring.next_serial[0] > replay._opened().ring.blocks
        assert len(replay) >= 0.9 * replay.capacity_rows


async def test_few_streams_have_blocks_of_the_default_size() -> None:
    """As large as they are for one, and as they were given."""
    async with (
        areplay.Replay(SPEC, 1 << 18) as replay,
        areplay.Replay(SPEC, 1 << 18, block_rows=512) as given_one,
    ):
        for one, streams in ((replay, 16), (given_one, 600)):
            writers = [stream_writer(one) for _ in range(streams)]
            for writer in writers:
                writer.write({"x": np.arange(10)}, 0, 10)
                writer.close()
        assert replay.statistics().block_rows == 1_024
        assert given_one.statistics().block_rows == 512


@on_one_loop
async def test_streams_that_ended_count_for_a_lap() -> None:
    """After it the blocks that they left are others', so blocks need not be smaller for them."""
    async with areplay.Replay(SPEC, 1 << 18) as replay:
        for _ in range(3):
            for _ in range(15):
                writer = stream_writer(replay)
                writer.write({"x": np.arange(3)}, 0, 3)
                writer.close()
            await replay.extend({"x": np.arange(1 << 18)})
        assert replay.statistics().block_rows == 1_024


ITEMS: list[tuple[Any, Callable[[Any], dict[int, Any]]]] = [
    (areplay.Transitions(n_step=3, gamma=0.5), lambda oracle: oracle.transitions(3, 0.5, Stack())),
    (areplay.Sequences(8, period=3), lambda oracle: oracle.sequences(8, 0, 3, Stack())),
]


@pytest.mark.parametrize(("item", "valid"), ITEMS, ids=[repr(item) for item, _ in ITEMS])
@pytest.mark.parametrize("ahead", [0, 37, 330])
@on_one_loop
async def test_items_reach_over_blocks_that_were_split(
    item: Any, valid: Callable[[Any], dict[int, Any]], ahead: int, tmp_path: Path
) -> None:
    """All that can be made of the rows, and no other, whenever blocks were split; also after a save
    and a load."""
    async with areplay.Replay(PLAIN.spec, 2_000, seed=1) as replay:
        world = World(replay, PLAIN)
        first = world.player("one", [[(23, "terminated"), (40, "truncated"), (5, "terminated")]])
        for _ in range(ahead):
            await first.play(gives_next=False)
        await replay.save(tmp_path)
        lengths = [[(9, "terminated"), (30, "truncated")], [(4, "truncated")]]
        players = [first, *(world.player(("one", "NextStep")[k % 2], lengths) for k in range(40))]
        block_rows = replay._opened().ring.block_rows
        for turn in range(40):
            for player in players:
                await player.play(gives_next=False)
                if turn == 20 and player in players[5:9]:
                    player.die()
        assert replay._opened().ring.block_rows < block_rows
        check(replay._opened().ring, item, set(valid(world.oracle())))
        await replay.save(tmp_path)
        expected = set(valid(world.oracle()))
        world.close()
        async with await areplay.Replay.load(tmp_path) as loaded:
            assert loaded._opened().ring.block_rows == replay._opened().ring.block_rows
            check(loaded._opened().ring, item, expected)


def check(ring: Ring, item: Any, expected: set[int]) -> None:
    """Exactly these items are drawn."""
    locks = ring.block_locks()
    reader = Reader(ring, locks, item, bound(Uniform()), np.random.default_rng(3))
    out = BatchArrays.empty(30 * len(expected), reader.fields)
    assert reader.fill(out)
    assert set(out.indices.tolist()) == expected
    locks.close()


async def test_a_save_after_a_split_takes_no_block_of_the_save_before(tmp_path: Path) -> None:
    """The names of blocks are others then, though a small one may have the serial and the length of
    a large one."""
    async with areplay.Replay(SPEC, 4_096, seed=0) as replay:
        await replay.extend({"x": np.arange(36)})  # two blocks of 16, and 4 in the third
        await replay.save(tmp_path)
        writers = [stream_writer(replay) for _ in range(100)]
        await replay.add(x=36)
        assert replay.statistics().block_rows == 4
        await replay.save(tmp_path)
        for writer in writers:
            writer.close()
    async with await areplay.Replay.load(tmp_path) as replay:
        batch = replay.sample(4_000)
        assert batch["x"].tolist() == batch.indices.tolist() and set(batch.indices.tolist()) == set(
            range(37)
        )


async def test_priorities_and_indices_of_rows_outlive_a_split() -> None:
    """A learner may still update what it drew before."""
    async with areplay.Replay(SPEC, 4_096, seed=0) as replay:
        indices = await replay.extend({"x": np.arange(1_000)}, priorities=1.0 + np.arange(1_000))
        selector = areplay.Prioritized(1.0)
        replay.sample(1, selector=selector)
        writers = [stream_writer(replay) for _ in range(100)]
        assert replay.statistics().block_rows == 16
        await replay.add(x=1_000, priority=1e-9)
        assert replay.statistics().block_rows == 4
        assert replay.update_priorities(indices[::2], np.full(500, 1e-9)) == (500, 0)
        assert set(replay.sample(2_000, selector=selector).indices.tolist()) <= set(
            indices[1::2].tolist()
        )
        for writer in writers:
            writer.close()


@pytest.mark.parametrize("user", ["Fifo", "samplers", "a writer"])
async def test_blocks_that_somebody_uses_are_not_split(
    user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are when that has ended; a warning says what is lost meanwhile, and what to do."""
    async with areplay.Replay(SPEC, 4_096, seed=0) as replay:
        ring, registry = replay._opened().ring, replay._opened().registry
        await replay.extend({"x": np.arange(100)})
        fifo = areplay.Fifo()

        async def with_many() -> list[StreamWriter]:
            writers = [StreamWriter(ring, ring.block_locks(), registry) for _ in range(100)]
            for writer in writers:
                writer.write({"x": np.arange(3)}, 0, 3)
            assert ring.block_rows == 16
            return writers

        with caplog.at_level(logging.WARNING, "areplay._storage.registry"):
            if user == "samplers":
                async with asyncio.timeout(60), replay.batches(batch_size=8) as batches:
                    writers = await with_many()
                    assert len(await anext(batches)) == 1
            elif user == "Fifo":
                assert len(replay.sample(8, selector=fifo)["x"]) == 8
                writers = await with_many()
                del fifo
            else:
                with registry.use(ring):
                    writers = await with_many()
                    assert not registry.hold(ring), "samplers are started a moment later"
        assert (
            "37 % of the 4096 rows of capacity stay unused; enter the context of actors before that"
            in caplog.text
        )
        await replay.add(x=1)
        assert ring.block_rows == 4
        for writer in writers:
            writer.close()
