"""Tests of `_sampling.inline_sampler`: what a learner fills itself, when, and when not."""

from __future__ import annotations

import re
import select
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kit import bound

from areplay._sampling import inline_sampler as inline_sampler_module
from areplay._sampling import reader as reader_module
from areplay._sampling.inline_sampler import MOST_BYTES, MOST_ROWS, InlineSampler, may_fill
from areplay._sampling.slots import Slots
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.items.item import BatchFields
from areplay.items.rows import Rows
from areplay.items.sequences import Sequences
from areplay.items.transform import Transform
from areplay.items.transitions import Transitions
from areplay.selectors.epochs import Epochs
from areplay.selectors.fifo import Fifo
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), twice=((), "int64"))
FIELDS = BatchFields(Rows().fields(SPEC))


class Scene:
    """A ring of four blocks of four rows, slots of two samplers and the learner's own, all played
    by the test."""

    def __init__(self) -> None:
        self.ring = Ring(SPEC, 4, 4)
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), WriterRegistry())
        self.slots = Slots(FIELDS, 8, 4, 2, has_own=True)
        self.slots.board.open_gate()
        self.own = InlineSampler(
            self.ring, self.slots, Rows(), bound(Uniform()), np.random.SeedSequence(0), 1
        )
        self.next = 0

    def write(self, count: int) -> None:
        """Rows come in, numbered."""
        numbers = np.arange(self.next, self.next + count)
        self.writer.write({"number": numbers, "twice": 2 * numbers}, 0, count)
        self.next += count

    def publish(self) -> None:
        """Sampler 1 fills one, which the learner takes and gives back."""
        slot = self.slots.lease(1)
        assert slot is not None
        self.slots.publish(slot)
        assert self.slots.lend() == slot
        self.slots.give_back(slot)

    def states(self) -> str:
        """One letter a slot."""
        return repr(self.slots).split()[1]

    def close(self) -> None:
        """Give everything back."""
        self.own.close()
        self.slots.close()
        self.writer.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Sixteen rows, and samplers that have filled a batch."""
    scene = Scene()
    scene.write(16)
    scene.publish()
    yield scene
    scene.close()


def test_it_is_filled_with_whole_rows(scene: Scene) -> None:
    """In the slot behind those of the samplers, which is the learner's until it gives it back; each
    time others."""
    seen = []
    for turn in range(1, 4):
        slot = scene.own.fill()
        assert slot == 4 and scene.own.filled == turn
        assert scene.states() == "ffffL"
        batch = scene.slots.batch(slot)
        assert (batch.indices == batch.fields["number"]).all() and (
            batch.fields["twice"] == 2 * batch.indices
        ).all()
        assert ((batch.indices >= 0) & (batch.indices < 16)).all() and (
            batch.importance_weights == 1
        ).all()
        seen.append(batch.indices.tolist())
        scene.slots.give_back(slot)
        assert scene.states() == "fffff"
    assert seen[0] != seen[1] != seen[2]


def test_there_is_one_at_a_time(scene: Scene) -> None:
    """While the learner holds its own batch, it gets no other; the samplers go on, and leave that
    slot alone."""
    assert scene.own.fill() == 4
    assert scene.own.fill() is None and scene.own.filled == 1
    assert [scene.slots.lease(0), scene.slots.lease(0), scene.slots.lease(0)] == [0, 2, None]
    assert scene.slots.recover(0) == 2
    assert scene.states() == "ffffL"


def test_giving_it_back_wakes_no_sampler(scene: Scene) -> None:
    """It is of no use to them; but a learner that waits is woken."""
    slot = scene.own.fill()
    assert slot is not None
    events = [bell.event.descriptor for bell in scene.slots.board.sampler_bells]
    for bell in scene.slots.board.sampler_bells:
        bell.event.clear()
        bell.arm()
    scene.slots.board.learner_bell.arm()
    scene.slots.give_back(slot)
    assert select.select(events, [], [], 0)[0] == []
    assert select.select([scene.slots.board.learner_bell.event.descriptor], [], [], 0)[0]
    scene.publish()
    assert select.select(events, [], [], 0)[0] == [events[1]]


def test_slots_without_an_own_one_have_none(scene: Scene) -> None:
    """All of them are the samplers'."""
    slots = Slots(FIELDS, 8, 4, 2)
    assert slots.lend_own() is None
    assert len(slots.states()) == 4
    slots.close()


def test_none_before_a_sampler_has_found_items() -> None:
    """Until then nobody knows whether there are any."""
    scene = Scene()
    scene.write(16)
    assert scene.own.fill() is None
    scene.publish()
    slot = scene.own.fill()
    assert slot is not None
    scene.slots.give_back(slot)
    assert scene.states() == "fffff" and scene.own.filled == 1
    scene.close()


def test_none_where_there_are_no_items(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be gone since a sampler found some: then the slot is free again, and for a moment
    nobody looks again."""
    now_s, ends = 100.0, scene.ring.ends.copy()
    monkeypatch.setattr(inline_sampler_module.time, "monotonic", lambda: now_s)
    scene.ring.ends[:] = -1
    assert scene.own.fill() is None
    assert scene.states() == "fffff" and scene.own.filled == 0
    scene.ring.ends[:] = ends
    now_s = 100.09
    assert scene.own.fill() is None
    now_s = 100.11
    assert scene.own.fill() == 4


def test_its_search_and_its_draws_are_short() -> None:
    """It gives up soon; and of items with windows it draws those of one batch at a time."""
    scene = Scene()
    for item, at_once in ((Rows(), 8), (Transitions(n_step=1), 1)):
        spec = (
            Spec.steps(obs=((), "int64"), action=((), "int64"))
            if isinstance(item, Transitions)
            else SPEC
        )
        ring = Ring(spec, 4, 4)
        own = InlineSampler(ring, scene.slots, item, bound(Uniform()), np.random.SeedSequence(0), 8)
        assert own._reader._most_at_once == at_once
        assert own._reader._search._limits.most_drawn == 4
        own.close()
        ring.segment.close()
    scene.close()


def test_an_error_leaves_the_slot_free(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is tried as if nothing had been."""

    def broken(point: str) -> None:
        if point == "sampler.gather":
            raise MemoryError

    monkeypatch.setattr(reader_module, "failpoint", broken)
    with pytest.raises(MemoryError):
        scene.own.fill()
    assert scene.states() == "fffff" and scene.own.filled == 0
    monkeypatch.undo()
    assert scene.own.fill() == 4


def test_rows_that_are_overwritten_meanwhile_are_drawn_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sampler; and counted."""
    done: list[str] = []

    def writer(point: str) -> None:
        if point == "sampler.gather" and not done:
            done.append(point)
            scene.write(16)

    monkeypatch.setattr(reader_module, "failpoint", writer)
    slot = scene.own.fill()
    assert slot is not None
    batch = scene.slots.batch(slot)
    assert (batch.indices >= 16).all() and (batch.fields["twice"] == 2 * batch.indices).all()
    assert scene.own.rows_redrawn == 8


def test_the_locks_of_its_reader_are_its_own_and_given_back(scene: Scene) -> None:
    """Those of a writer in the same process would not exclude it; and no descriptor is left."""
    assert scene.own._locks.try_shared(2)
    assert not scene.writer._locks.try_exclusive(2)
    scene.own.close()
    assert scene.writer._locks.try_exclusive(2)
    scene.writer._locks.release(2)


def test_a_learner_that_is_alone_for_long_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Since it does not stop, nobody would notice: after five seconds without a sampler's batch,
    then after ten; and not where samplers fill some, however few."""
    now_s = 100.0
    monkeypatch.setattr(inline_sampler_module.time, "monotonic", lambda: now_s)

    def step(to_s: float) -> int:
        nonlocal now_s
        now_s = to_s
        slot = scene.own.fill()
        assert slot is not None
        scene.slots.give_back(slot)
        return len(caplog.messages)

    assert [step(at_s) for at_s in (100.0, 104.9, 105.0, 109.0, 110.0, 119.0)] == [0, 0, 1, 1, 2, 2]
    assert caplog.messages[0].startswith(
        "no sampler has filled a batch for 5 s, the learner fills them itself: <Slots"
    )
    assert "get()" not in caplog.messages[0], "nothing was taken with it"
    scene.publish()
    assert [step(at_s) for at_s in (120.0, 124.0, 125.0)] == [2, 2, 3]
    held = scene.slots.lease(1)
    assert held is not None
    scene.slots.publish(held)
    assert scene.slots.lend() == held
    step(200.0)
    step(205.0)
    assert caplog.messages[-1].endswith("; release() batches that were taken with get()")


LARGE = BatchFields({"obs": ((1 << 20,), "uint8")})
OURS: dict[str, Any] = {
    "item": Rows(),
    "selector": bound(Uniform()),
    "transform": None,
    "fields": FIELDS,
    "batch_size": 8,
}


class Mine(Rows):
    """An item of the user's."""


class Recent(Uniform):
    """A selector of the user's."""


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"item": Transitions(n_step=3)}, True),
        ({"item": Sequences(8)}, True),
        ({"selector": bound(Prioritized())}, True),
        ({"batch_size": MOST_ROWS}, True),
        ({"batch_size": MOST_ROWS + 1}, False),
        ({"item": Sequences(8), "batch_size": MOST_ROWS // Sequences(8).window.rows}, True),
        ({"item": Sequences(8), "batch_size": MOST_ROWS // Sequences(8).window.rows + 1}, False),
        ({"fields": LARGE, "batch_size": MOST_BYTES >> 20}, True),
        ({"fields": LARGE, "batch_size": (MOST_BYTES >> 20) + 1}, False),
        ({"item": Mine()}, False),
        ({"selector": bound(Recent())}, False),
        ({"selector": bound(Fifo())}, False),
        ({"selector": bound(Epochs(1))}, False),
        ({"transform": Transform(lambda batch, out, rng: None, obs=((), "float32"))}, False),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # the same in each run
)
def test_which_batches_a_learner_may_fill(change: dict[str, Any], wanted: bool) -> None:
    """Ours, where no order is settled, and where it does not take long: here 16 bytes an item."""
    assert may_fill(**(OURS | change)) is wanted


def test_a_row_is_due_once_its_writer_has_begun(scene: Scene) -> None:
    """The writer takes the serial of the next block first: from then on `all_current` says no for
    the oldest rows, also while all ends are as they were; for the others it goes on saying yes.
    `unchanged` looks closer."""
    oldest, others = np.array([0, 3]), np.array([4, 15])
    assert scene.ring.all_current(np.concatenate([oldest, others]))
    scene.ring.next_serial[0] += 1
    assert not scene.ring.all_current(oldest) and not scene.ring.all_current(np.array([15, 3]))
    assert scene.ring.all_current(others)
    assert scene.ring.all_current(np.empty(0, np.int64))
    assert scene.ring.unchanged(oldest).all()
