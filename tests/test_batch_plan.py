"""Tests of `_sampling.batch_plan`: which items are in which batch. Samplers, actors and deaths are
in `processes/`."""

from __future__ import annotations

import asyncio
import gc
import itertools
import pickle
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from kit import bound, descriptors_pass_by_pickle, memory_descriptors, ticks
from models.episode_oracle import Lane, Oracle
from models.episode_world import MODES, Player
from models.episode_world import PLAIN as WORLD

import areplay
from areplay._base.field import Field
from areplay._ingest import local_writer as local_writer
from areplay._ingest.admission import Admission
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import BatchPlan, PlannedSelector
from areplay._sampling.slots import Slots
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.windows import Window
from areplay.items.item import BatchFields
from areplay.selectors import Epochs, Fifo
from areplay.spec import Spec

PLAIN = Spec(number=((), "int64"))


class Scene:
    """A ring of 8 blocks of 4 rows with one writer, and a batch plan of its rows."""

    def __init__(self) -> None:
        self.ring, self.registry = Ring(PLAIN, 8, 4), WriterRegistry()
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), self.registry)
        self._next = 0
        self._open: list[BatchPlan] = []

    def rows(self, count: int) -> int:
        """Append so many; how many there was room for."""
        written = len(
            self.writer.write({"number": np.arange(self._next, self._next + count)}, 0, count)
        )
        self._next += written
        return written

    def begun(self, given: Fifo | Epochs, batch_size: int, seed: int = 0) -> BatchPlan:
        """Those of that selector, from now on."""
        selector = bound(given)
        assert isinstance(selector, PlannedSelector)
        seeds = np.random.SeedSequence(seed)
        self._open.append(
            selector.batch_plan(self.ring, self.registry, Window(), batch_size, seeds)
        )
        self._open[-1].keep()
        self._open[-1].begin()
        return self._open[-1]

    def numbers(self, batch_plan: BatchPlan, number: int) -> list[int] | None:
        """What stands in the rows of that batch."""
        rows = batch_plan.batch(number)
        assert (rows is not None) == batch_plan.has_batch(number)
        if rows is None:
            return None
        assert len(rows) == batch_plan.size(number)
        found: list[int] = self.ring.columns["number"][self.ring.positions(rows)].tolist()
        return found

    def all_of(self, batch_plan: BatchPlan, at_most: int = 100) -> list[list[int]]:
        """All batches, delivered one after the other."""
        found: list[list[int]] = []
        while (
            len(found) < at_most and (numbers := self.numbers(batch_plan, len(found))) is not None
        ):
            found.append(numbers)
            batch_plan.on_delivered(len(found))
        return found

    def close(self) -> None:
        """Give everything back."""
        for batch_plan in self._open:
            batch_plan.close()
        self.writer.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty ring."""
    scene = Scene()
    yield scene
    scene.close()


# Fifo.


def test_fifo_has_a_batch_as_soon_as_its_items_are_there(scene: Scene) -> None:
    """Those that were there before, then those that come; each in one batch, in order."""
    scene.rows(5)
    fifo = scene.begun(Fifo(), 3)
    assert [scene.numbers(fifo, number) for number in range(3)] == [[0, 1, 2], None, None]
    scene.rows(1)
    assert [scene.numbers(fifo, number) for number in range(3)] == [[0, 1, 2], [3, 4, 5], None]
    assert [fifo.items_left(batches) for batches in range(3)] == [6, 3, 0]


def test_fifo_keeps_rows_until_their_batch_was_delivered(scene: Scene) -> None:
    """Nothing is overwritten before; what was delivered is."""
    fifo = scene.begun(Fifo(), 6)
    assert scene.rows(40) == 32
    fifo.on_delivered(1)
    assert scene.rows(40) == 4
    fifo.on_delivered(2)
    assert scene.rows(40) == 8
    assert scene.numbers(fifo, 2) == [12, 13, 14, 15, 16, 17]


def test_several_times_means_batch_after_batch_the_same(scene: Scene) -> None:
    """Each so often, one after the other, and kept until the last time."""
    fifo = scene.begun(Fifo(max_times_sampled=3), 8)
    assert scene.rows(40) == 32
    assert (
        scene.numbers(fifo, 0) == scene.numbers(fifo, 1) == scene.numbers(fifo, 2) == list(range(8))
    )
    assert scene.numbers(fifo, 3) == list(range(8, 16))
    fifo.on_delivered(2)
    assert (fifo.items_left(2), scene.rows(1)) == (32, 0)
    fifo.on_delivered(3)
    assert (fifo.items_left(3), scene.rows(40)) == (24, 8)
    assert scene.numbers(fifo, 12) == list(range(32, 40))
    assert scene.numbers(fifo, 15) is None


def test_what_is_closed_keeps_nothing(scene: Scene) -> None:
    """The ring goes round again, and nobody is told of rows."""
    fifo = scene.begun(Fifo(), 4)
    scene.rows(40)
    fifo.close()
    assert scene.rows(40) == 40
    assert fifo.log.appended == 32
    assert (scene.registry.pins, scene.registry.listeners) == ((), ())


# Epochs.


def test_each_item_comes_once_an_epoch(scene: Scene) -> None:
    """In another order each time, the same under the same seed; batches go over the end of an
    epoch, the last one is smaller."""
    scene.rows(10)
    batches = scene.all_of(scene.begun(Epochs(3), 4))
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    flat = [number for batch in batches for number in batch]
    epochs = [flat[:10], flat[10:20], flat[20:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(10))}) == 4
    assert scene.all_of(scene.begun(Epochs(3), 4)) == batches
    assert scene.all_of(scene.begun(Epochs(3), 4, seed=1)) != batches


def test_a_batch_may_span_several_epochs(scene: Scene) -> None:
    """If it is larger than one."""
    scene.rows(3)
    (first, second) = scene.all_of(scene.begun(Epochs(4), 8))
    flat = first + second
    assert [len(first), len(second)] == [8, 4]
    assert [sorted(flat[k : k + 3]) for k in (0, 3, 6, 9)] == [[0, 1, 2]] * 4


@pytest.mark.parametrize(("batch_size", "expected"), [(4, [4, 4]), (5, [5, 5]), (11, [])])
def test_a_smaller_last_batch_can_be_left_out(
    scene: Scene, batch_size: int, expected: list[int]
) -> None:
    """All the others have `batch_size` items."""
    scene.rows(10)
    epochs = scene.begun(Epochs(drop_last=True), batch_size)
    assert [epochs.items_left(batches) for batches in (0, 1)] == [sum(expected), sum(expected[1:])]
    assert [len(batch) for batch in scene.all_of(epochs)] == expected


def test_epochs_tell_what_is_left(scene: Scene) -> None:
    """Of all epochs; nothing if there is no end."""
    scene.rows(10)
    two, endless = scene.begun(Epochs(2), 8), scene.begun(Epochs(None), 8)
    assert [two.items_left(batches) for batches in range(4)] == [20, 12, 4, 0]
    assert endless.items_left(5) is None


def test_endless_epochs_go_on(scene: Scene) -> None:
    """And on; what they need stays."""
    scene.rows(10)
    endless = scene.begun(Epochs(None), 5)
    flat = [number for batch in scene.all_of(endless, 200) for number in batch]
    assert all(sorted(flat[at : at + 10]) == list(range(10)) for at in range(0, 1_000, 10))
    assert scene.rows(100) == 100
    assert sorted(scene.numbers(endless, 0) + scene.numbers(endless, 1)) == list(range(10))  # type: ignore[operator]


def test_rows_that_come_later_belong_to_no_epoch(scene: Scene) -> None:
    """They wait where they would overwrite one that does, until the last batch was delivered."""
    scene.rows(30)
    epochs = scene.begun(Epochs(2), 16)
    assert scene.rows(40) == 2, "the rest of the open block"
    batches = [scene.numbers(epochs, number) for number in range(4)]
    assert sorted(number for batch in batches for number in batch or ()) == sorted([*range(30)] * 2)
    for delivered in range(1, 4):
        epochs.on_delivered(delivered)
        assert scene.rows(1) == 0
    epochs.on_delivered(4)
    assert scene.rows(40) == 40


def test_each_sampler_finds_the_same_epochs(scene: Scene) -> None:
    """BatchPlan that went to another process say the same, whichever batch they are asked for
    first."""
    scene.rows(10)
    epochs = scene.begun(Epochs(None), 4)
    with descriptors_pass_by_pickle():
        twin: BatchPlan = pickle.loads(pickle.dumps(epochs))
    for number in (9, 0, 3, 2, 7):
        assert scene.numbers(twin, number) == scene.numbers(epochs, number)
    twin.log.close()
    twin.log._ring.segment.close()


# Options.


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", None])
def test_fifo_refuses_what_is_no_number_of_times(wrong: Any) -> None:
    """By the name of the option."""
    with pytest.raises((ValueError, TypeError), match="max_times_sampled"):
        Fifo(wrong)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": 1.5}, {"epochs": "1"}, {"drop_last": 1}]
)
def test_epochs_refuse_what_is_no_option(wrong: Any) -> None:
    """By the name of the option."""
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        Epochs(**wrong)


def test_selectors_tell_their_names() -> None:
    """For messages."""
    options = Fifo(), Fifo(2), Epochs(3), Epochs(None), Epochs(2, drop_last=True)
    assert [repr(bound(one)) for one in options] == [
        "Fifo()",
        "Fifo(2)",
        "Epochs(3)",
        "Epochs(None)",
        "Epochs(2, drop_last=True)",
    ]


# Through a replay.

STEPS = Spec.steps(obs=((), "int64"), action=((), "int64"))


def columns(start: int, stop: int) -> dict[str, Any]:
    """Rows with these numbers."""
    return {"number": np.arange(start, stop)}


async def test_fifo_refuses_batches_that_take_more_than_half_of_the_ring() -> None:
    """With the numbers; nothing is kept by that."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        with pytest.raises(
            ValueError,
            match=r"batch_size=33 .*needs a capacity of at least 66 "
            r"rows, got 64",
        ):
            replay.batches(batch_size=33, selector=Fifo())
        with pytest.raises(ValueError, match="needs a capacity"):
            replay.sample(33, selector=Fifo())
        replay.batches(batch_size=32, selector=Fifo())
        await replay.extend(columns(0, 64))
        await replay.extend(columns(64, 128))
        assert len(replay) == 64


async def test_samples_of_fifo_go_on_where_the_one_before_ended() -> None:
    """From the first on; too few items are an error that takes none; another selector begins
    anew."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        await replay.extend(columns(0, 10))
        fifo, other = Fifo(), Fifo(2)
        assert replay.sample(4, selector=fifo)["number"].tolist() == [0, 1, 2, 3]
        assert replay.sample(3, selector=other)["number"].tolist() == [0, 1, 2]
        assert replay.sample(4, selector=fifo)["number"].tolist() == [4, 5, 6, 7]
        assert replay.sample(3, selector=other)["number"].tolist() == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(areplay.Stalled, match=r"4 items by Fifo\(\), but 2 are there"):
                replay.sample(4, selector=fifo)
        await replay.extend(columns(10, 12))
        batch = replay.sample(4, selector=fifo)
        assert batch["number"].tolist() == [8, 9, 10, 11]
        assert batch.importance_weights.tolist() == [1.0] * 4
        assert replay.sample(3, selector=other)["number"].tolist() == [3, 4, 5]


def drained(replay: areplay.Replay, item: Any, fifo: Fifo) -> list[int]:
    """The rows of all items that it gives now, one at a time."""
    found: list[int] = []
    with suppress(areplay.Stalled):
        while True:
            found += replay.sample(1, item, fifo).indices.tolist()
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "item",
    [
        areplay.Transitions(),
        areplay.Transitions(n_step=3),
        areplay.Sequences(4, burn_in=1),
        areplay.Sequences(3, period=2),
        areplay.Sequences(5, across_episodes=True),
    ],
    ids=repr,
)
async def test_fifo_gives_each_item_with_the_step_that_completes_it(mode: str, item: Any) -> None:
    """Also where rows of final observations lie between the steps of a vector: there may never be
    another step. The oracle keeps episodes as lists."""
    lanes: list[Lane] = []
    lengths = [
        [(1, "terminated"), (9, "truncated"), (2, "terminated")],
        [(7, "terminated")],
        [(3, "truncated"), (1, "truncated"), (4, "terminated")],
    ]
    async with areplay.Replay(WORLD.spec, 1_024) as replay:
        player = Player(WORLD, replay, mode, lengths, itertools.count(1), lanes)
        fifo, given = Fifo(), list[int]()
        for step in range(40):
            await player.play(step % 3 == 0)
            given += drained(replay, item, fifo)
            # the rows of final ones have no name
            oracle, window = Oracle(lanes, {None, *range(1_024)}), item.window
            needs = (
                window.back,
                window.forward,
                window.period,
                window.min_steps,
                window.across_episodes,
            )
            assert len(given) == len(set(given))
            assert set(given) == oracle.windows(*needs).keys()
        assert len(given) > 10


async def test_samples_of_a_selector_are_all_of_one_kind() -> None:
    """Another size or item is refused, and takes nothing."""
    async with areplay.Replay(STEPS, 64, block_rows=16) as replay:
        for number in range(12):
            await replay.add(obs=number, action=0, reward=0.0, terminated=False, truncated=False)
        fifo = Fifo()
        assert replay.sample(2, selector=fifo)["obs"].tolist() == [0, 1]
        for size, item in (
            (3, None),
            (2, areplay.Sequences(2)),
            (2, areplay.Transitions(n_step=2)),
        ):
            with pytest.raises(ValueError, match="goes on with batches of 2"):
                replay.sample(size, item, fifo)
        assert replay.sample(2, selector=fifo)["next_obs"].tolist() == [3, 4]


async def test_samples_of_epochs_end() -> None:
    """The last one is smaller, then each call says that they are over; rows that came later were
    not among them."""
    async with areplay.Replay(PLAIN, 64, block_rows=16, seed=3) as replay:
        await replay.extend(columns(0, 10))
        epochs = Epochs(2)
        parts = [replay.sample(6, selector=epochs)["number"].tolist()]
        await replay.extend(columns(10, 20))
        parts += [replay.sample(6, selector=epochs)["number"].tolist() for _ in range(3)]
        assert [len(part) for part in parts] == [6, 6, 6, 2]
        assert sorted(number for part in parts for number in part) == sorted([*range(10)] * 2)
        for _ in range(2):
            with pytest.raises(areplay.EndOfEpochs, match=r"Epochs\(2\)"):
                replay.sample(6, selector=epochs)


@pytest.mark.parametrize("epochs", [Epochs(1), Epochs(2, drop_last=True), Epochs(None)], ids=repr)
async def test_epochs_of_nothing_are_stalled_until_rows_came(epochs: Epochs) -> None:
    """Not over: there was nothing to go through. Then the same selector gives what is there, also
    another size of it; from its first batch on it is as if there had been no call before."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        for size in (6, 4, 6):
            before = memory_descriptors()
            with pytest.raises(
                areplay.Stalled,
                match=rf"{size} items by Epochs\(.*, but 0 are "
                r"there; add rows first",
            ):
                replay.sample(size, selector=epochs)
            assert memory_descriptors() == before
        assert not replay._opened().registry.pins
        await replay.extend(columns(0, 8))
        found = [replay.sample(4, selector=epochs)["number"].tolist() for _ in range(2)]
        assert sorted(found[0] + found[1]) == list(range(8))
        await replay.extend(columns(8, 12))
        with suppress(areplay.EndOfEpochs):
            assert set(replay.sample(4, selector=epochs)["number"].tolist()) <= set(range(8))


async def test_epochs_of_less_than_a_batch_are_stalled_until_there_is_one() -> None:
    """Where a smaller last batch is left out, that is nothing as well."""
    epochs = Epochs(drop_last=True)
    async with areplay.Replay(STEPS, 64, block_rows=16) as replay:
        for number in range(5):
            with pytest.raises(areplay.Stalled, match="but 0 are there"):
                replay.sample(4, selector=epochs)
            await replay.add(obs=number, action=0, reward=0.0, terminated=False, truncated=False)
        assert sorted(replay.sample(4, selector=epochs)["obs"].tolist()) == [0, 1, 2, 3]
        with pytest.raises(areplay.EndOfEpochs):
            replay.sample(4, selector=epochs)


async def test_a_plan_that_cannot_begin_pins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no memory could be had: the blocks stay free, and the next call begins anew."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        await replay.extend(columns(0, 8))
        fifo = Fifo()
        with monkeypatch.context() as patch:
            patch.setattr(BatchPlan, "begin", lambda self, without=None: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                replay.sample(4, selector=fifo)
        assert not replay._opened().registry.pins
        assert replay.sample(4, selector=fifo)["number"].tolist() == [0, 1, 2, 3]


async def test_samples_are_the_same_under_the_same_seed() -> None:
    """And others under another."""
    found = []
    for seed in (1, 1, 2):
        async with areplay.Replay(PLAIN, 64, block_rows=16, seed=seed) as replay:
            await replay.extend(columns(0, 30))
            epochs = Epochs()
            found.append([replay.sample(10, selector=epochs)["number"].tolist() for _ in range(3)])
    assert found[0] == found[1] != found[2]


async def test_rows_wait_until_samples_have_made_room() -> None:
    """An `add` and an `extend` go on when a sample took the last item of a block; all of their rows
    or none."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        await replay.extend(columns(0, 8))
        fifo = Fifo()
        assert replay.sample(8, selector=fifo)["number"].tolist() == list(range(8))
        await replay.extend(columns(8, 40))
        waiting = asyncio.create_task(replay.extend(columns(40, 72)))
        await ticks(5)
        assert not waiting.done()
        (wait,) = replay.statistics().waits
        assert wait.who == "owner" and "the learner has to take" in wait.reason
        assert len(replay) <= 40
        seen = list(range(8))
        async with asyncio.timeout(20):
            while not waiting.done():
                seen += replay.sample(8, selector=fifo)["number"].tolist()
                await ticks(3)
        while len(seen) < 72:
            seen += replay.sample(8, selector=fifo)["number"].tolist()
        assert seen == list(range(72))


async def test_a_replay_with_rows_that_wait_can_be_closed() -> None:
    """Who waits for room gets `Closed`; nothing of the call was written."""
    async with areplay.Replay(PLAIN, 64, block_rows=16) as replay:
        await replay.extend(columns(0, 32))
        fifo = Fifo()
        replay.sample(8, selector=fifo)
        await replay.extend(columns(32, 48))
        waiting = asyncio.create_task(replay.extend(columns(48, 80)))
        await ticks(5)
        assert not waiting.done()
        inserted = replay.statistics().rows_inserted
        async with asyncio.timeout(20):
            await replay.close()
        assert inserted == 48
    with pytest.raises(areplay.Closed):
        await waiting


# Batches that are lent in turn.


def turned() -> Slots:
    """Six slots of two samplers, lent in turn."""
    slots = Slots(BatchFields({"obs": Field("obs", (), np.dtype("int64"))}), 4, 6, 2, in_turn=True)
    slots.board.open_gate()
    return slots


def publish(slots: Slots, sampler: int) -> int:
    """One more batch of that sampler."""
    slot = slots.lease(sampler)
    assert slot is not None
    slots.publish(slot)
    return slot


def test_batches_are_lent_in_turn() -> None:
    """One of each sampler after the other, though the next one's has to be waited for."""
    slots = turned()
    assert (slots.next_sampler, slots.published(0), slots.published(1)) == (0, 0, 0)
    second = publish(slots, 1)
    assert slots.lend() is None and slots.next_sampler == 0
    first, third = publish(slots, 0), publish(slots, 0)
    assert [slots.lend(), slots.lend(), slots.lend(), slots.lend()] == [first, second, third, None]
    assert (slots.next_sampler, slots.published(0), slots.published(1)) == (1, 2, 1)
    slots.close()


def test_what_a_sampler_has_published_is_known_to_its_successor() -> None:
    """A batch that it was still filling when it died does not count; a twin in another process has
    the same order."""
    slots = turned()
    publish(slots, 0)
    slots.lease(0)
    assert slots.published(0) == 1
    slots.recover(0)
    with descriptors_pass_by_pickle():
        twin: Slots = pickle.loads(pickle.dumps(slots))
    assert (twin.in_turn, twin.published(0), twin.published(1)) == (True, 1, 0)
    slots.lend()
    assert slots.published(0) == 1, "lent or not"
    for each in (slots, twin):
        each.close()


def test_a_smaller_batch_is_the_first_part_of_its_slot() -> None:
    """The same memory; all of it if it is not smaller."""
    arrays = BatchArrays.empty(4, BatchFields({"obs": Field("obs", (2,), np.dtype("int64"))}))
    assert arrays.first(4) is arrays
    part = arrays.first(3)
    shapes = [
        part.indices.shape,
        part.importance_weights.shape,
        part.probabilities.shape,
        part.fields["obs"].shape,
    ]
    assert shapes == [(3,), (3,), (3,), (3, 2)]
    part.fields["obs"][:] = 7
    assert (arrays.stored["obs"][:3] == 7).all() and np.shares_memory(part.indices, arrays.indices)


async def test_a_selector_that_is_gone_keeps_nothing() -> None:
    """Nor do epochs that are over: no descriptor, no block."""
    async with areplay.Replay(PLAIN, 64) as replay:
        await replay.extend({"number": np.arange(40)})
        before, watchers = memory_descriptors(), replay._opened().registry.listeners
        for _ in range(3):
            replay.sample(8, selector=areplay.Fifo())
            epochs = areplay.Epochs(1)
            for _ in range(5):
                replay.sample(8, selector=epochs)
            with pytest.raises(areplay.EndOfEpochs):
                replay.sample(8, selector=epochs)
            with pytest.raises(areplay.EndOfEpochs):
                replay.sample(8, selector=epochs)
            gc.collect()
            assert memory_descriptors() == before
        assert (
            not replay._opened().registry.pins and replay._opened().registry.listeners == watchers
        )


async def test_a_large_extend_is_whole_although_a_keeper_comes_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that are copied off the loop find no room any more: they wait for it."""
    monkeypatch.setattr(local_writer, "_INLINE_BYTES", 0)
    async with areplay.Replay(PLAIN, 64, block_rows=8) as replay:
        await replay.extend({"number": np.arange(40)})
        selector = areplay.Fifo()
        extending = asyncio.create_task(replay.extend({"number": np.arange(40, 100)}))
        await asyncio.sleep(0)
        seen = replay.sample(8, selector=selector)["number"].tolist()
        while not extending.done():
            with suppress(areplay.Stalled):
                seen += replay.sample(8, selector=selector)["number"].tolist()
            await asyncio.sleep(0)
        assert len(await extending) == 60
        assert seen == list(range(seen[0], seen[0] + len(seen)))


def test_writers_that_wait_are_told_of_the_selector_that_needs_the_rows(scene: Scene) -> None:
    """By the name that the user gave, since `statistics().waits` shows it."""
    admission = Admission(scene.registry)
    scene.begun(Fifo(), 3)
    scene.begun(Fifo(2), 3)
    scene.begun(Epochs(None, drop_last=True), 3)
    assert admission.reason(1, lacks_blocks=True) == (
        "the blocks hold rows that are still needed by Fifo(), Fifo(2), "
        "Epochs(None, drop_last=True); the learner has to take a batch"
    )
    admission.close()
