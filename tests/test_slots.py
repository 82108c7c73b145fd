"""Tests of `_sampling.slots`: one owner in every state but FREE. Histories of any length are in
`models/`."""

from __future__ import annotations

import os
import pickle
import select
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from kit import FailsAt, descriptors_pass_by_pickle, open_descriptors

from areplay._base.field import Field
from areplay._sampling import slots as slots_module
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.slots import FILLING, FREE, LENT, READY, Slots
from areplay.errors import ResourceUnavailable
from areplay.items.item import BatchFields

FIELDS = {
    "obs": Field("obs", (3,), np.dtype("float32")),
    "done": Field("done", (), np.dtype("bool")),
}


@pytest.fixture
def slots() -> Iterator[Slots]:
    """Five slots of two samplers, who may begin: 0, 2 and 4 of sampler 0, 1 and 3 of sampler 1."""
    slots = Slots(BatchFields(FIELDS), 4, 5, 2)
    slots.board.open_gate()
    for event in slots.board.sampler_bells:
        event.event.clear()
    yield slots
    slots.close()


def leased(slots: Slots, sampler: int) -> int:
    """A slot that this sampler surely gets."""
    slot = slots.lease(sampler)
    assert slot is not None
    return slot


def published(slots: Slots, sampler: int) -> int:
    """A slot that is READY."""
    slot = leased(slots, sampler)
    slots.publish(slot)
    return slot


def states(slots: Slots) -> str:
    """One letter a slot, as the status line has them."""
    return repr(slots).split()[1]


def is_rung(bell: object) -> bool:
    """Whether the sleeper behind that doorbell would wake."""
    return bool(select.select([bell.event.descriptor], [], [], 0)[0])  # type: ignore[attr-defined]


def test_a_slot_goes_round(slots: Slots) -> None:
    """Free, filling, ready, lent, free: each step by whom the drawing names, as the status line
    tells."""
    assert repr(slots) == "<Slots fffff (0 ready, 0 lent)>"
    assert slots.lease(1) == 1
    assert repr(slots) == "<Slots frfff (0 ready, 0 lent)>"
    slots.publish(1)
    assert repr(slots) == "<Slots fRfff (1 ready, 0 lent)>"
    assert slots.lend() == 1
    assert repr(slots) == "<Slots fLfff (0 ready, 1 lent)>"
    slots.give_back(1)
    assert repr(slots) == "<Slots fffff (0 ready, 0 lent)>"


def test_each_sampler_has_slots_of_its_own(slots: Slots) -> None:
    """Slot k is sampler k % samplers's for ever: no slot is ever leased to another."""
    for sampler, mine in ((0, [0, 2, 4]), (1, [1, 3])):
        assert slots.can_lease(sampler)
        assert [slots.lease(sampler) for _ in mine] == mine
        assert not slots.can_lease(sampler)
        assert slots.lease(sampler) is None


def test_nothing_is_leased_before_the_gate_is_open() -> None:
    """Too few rows: samplers find no slot. The gate is opened once, and all of them are woken."""
    slots = Slots(BatchFields(FIELDS), 4, 5, 2)
    assert not slots.board.is_open
    assert slots.lease(0) is None and not slots.can_lease(0)
    assert not any(is_rung(bell) for bell in slots.board.sampler_bells)
    slots.board.open_gate()
    assert slots.board.is_open
    assert slots.can_lease(0) and slots.lease(0) == 0
    assert all(is_rung(bell) for bell in slots.board.sampler_bells)
    slots.close()


def test_slots_of_one_sampler_are_lent_in_the_order_in_which_it_filled_them(slots: Slots) -> None:
    """Whatever slot came free first; and the samplers take turns as long as each has some."""
    assert [published(slots, sampler) for sampler in (1, 0, 0, 1, 0)] == [1, 0, 2, 3, 4]
    assert [slots.lend() for _ in range(3)] == [0, 1, 2]
    for slot in (2, 0):
        slots.give_back(slot)
    assert [published(slots, 0), published(slots, 0)] == [0, 2], (
        "the lowest free slot is filled first"
    )
    assert [slots.lend() for _ in range(5)] == [3, 4, 0, 2, None]


def test_an_abandoned_slot_is_free_again(slots: Slots) -> None:
    """A sampler that found no row returns the slot, and may lease it again."""
    assert slots.lease(0) == 0
    slots.abandon(0)
    assert states(slots) == "fffff"
    assert slots.lend() is None
    assert slots.lease(0) == 0


@pytest.mark.parametrize(
    ("legal", "step"),
    [
        (FILLING, lambda slots, slot: slots.publish(slot)),
        (FILLING, lambda slots, slot: slots.abandon(slot)),
        (LENT, lambda slots, slot: slots.give_back(slot)),
    ],
    ids=["publish", "abandon", "give_back"],
)
@pytest.mark.parametrize("state", [FREE, FILLING, READY, LENT])
def test_an_illegal_step_raises_and_changes_nothing(
    slots: Slots, legal: int, step: Callable[[Slots, int], None], state: int
) -> None:
    """From any other state than its own: an assertion, and every slot is in the state it was in."""
    if state == legal:
        return
    ways: list[Callable[[], object]] = [
        lambda: slots.lease(0),
        lambda: slots.publish(0, 5),
        lambda: slots.lend(),
    ]
    for way in ways[:state]:
        way()
    before = repr(slots), slots.board.rows_redrawn
    slots.board.learner_bell.arm()
    slots.board.sampler_bells[0].arm()
    with pytest.raises(AssertionError):
        step(slots, 0)
    assert (repr(slots), slots.board.rows_redrawn) == before
    assert not is_rung(slots.board.learner_bell) and not is_rung(slots.board.sampler_bells[0])


def test_recovery_frees_what_the_dead_sampler_was_filling_and_nothing_else(slots: Slots) -> None:
    """Its ready and lent batches stay, and so does everything of the others."""
    published(slots, 0)
    assert slots.lend() == 0
    published(slots, 0)
    assert [slots.lease(0), slots.lease(1)] == [4, 1]
    assert states(slots) == "LrRfr"
    assert slots.recover(0) == 1
    assert states(slots) == "LrRff"
    assert slots.recover(0) == 0
    assert slots.recover(1) == 1
    assert states(slots) == "LfRff"
    assert [slots.lend(), slots.lend()] == [2, None]
    assert [slots.lease(0), slots.lease(1)] == [4, 1], "a successor may begin"


def test_the_slots_counted_are_those_in_that_state(slots: Slots) -> None:
    """One count a state."""
    published(slots, 0)
    slots.lend()
    published(slots, 0)
    leased(slots, 1)
    assert [slots.count(state) for state in (FREE, FILLING, READY, LENT)] == [2, 1, 1, 1]


def test_memory_of_a_slot_has_the_fields_and_overlaps_no_other(slots: Slots) -> None:
    """(B,) indices, weights, probabilities and (B, ...) fields; what is written to one slot is in
    that slot alone."""
    for slot in range(5):
        arrays = slots.batch(slot)
        shapes = [arrays.indices.shape, arrays.importance_weights.shape, arrays.probabilities.shape]
        assert shapes == [(4,)] * 3
        assert {name: (a.shape, a.dtype) for name, a in arrays.fields.items()} == {
            "obs": ((4, 3), np.float32),
            "done": ((4,), np.bool_),
        }
        for array in (
            arrays.indices,
            arrays.importance_weights,
            arrays.probabilities,
            arrays.fields["obs"],
        ):
            array[:] = slot
        arrays.fields["done"][:] = slot % 2
    for slot in range(5):
        arrays = slots.batch(slot)
        for array in (
            arrays.indices,
            arrays.importance_weights,
            arrays.probabilities,
            arrays.fields["obs"],
        ):
            assert (array == slot).all()
        assert (arrays.fields["done"] == slot % 2).all()


def test_a_sampler_process_sees_the_same_slots(slots: Slots) -> None:
    """Pickled into a child: it leases, fills and publishes, and the learner's doorbell rings
    here."""
    with descriptors_pass_by_pickle():
        child = pickle.loads(pickle.dumps(slots))
    slot = leased(child, 1)
    child.batch(slot).indices[:] = [5, 6, 7, 8]
    slots.board.learner_bell.arm()
    child.publish(slot, rows_redrawn=3)
    assert is_rung(slots.board.learner_bell)
    assert slots.lend() == slot
    assert slots.batch(slot).indices.tolist() == [5, 6, 7, 8]
    assert slots.board.rows_redrawn == 3
    child.board.sampler_bells[1].arm()
    slots.give_back(slot)
    assert is_rung(child.board.sampler_bells[1]) and not is_rung(child.board.sampler_bells[0])
    slots.board.stop()
    assert child.board.is_stopping
    assert repr(child) == repr(slots)
    child.close()


def test_only_who_sleeps_is_rung(slots: Slots) -> None:
    """A published batch wakes a learner that sleeps, a returned slot the sampler that owns it; else
    nobody."""
    slot = published(slots, 0)
    assert not is_rung(slots.board.learner_bell)
    slots.lend()
    slots.board.sampler_bells[1].arm()
    slots.give_back(slot)
    assert not any(is_rung(bell) for bell in slots.board.sampler_bells)


def test_redrawn_rows_are_summed_over_the_samplers(slots: Slots) -> None:
    """Each publication brings its sampler's count up to date."""
    slots.publish(leased(slots, 0), 3)
    slots.publish(leased(slots, 1), 10)
    assert slots.board.rows_redrawn == 13
    slots.publish(leased(slots, 0), 4)
    assert slots.board.rows_redrawn == 14


def test_a_batch_is_whole_before_it_is_ready(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the failpoint and at the fence of `publish` the slot is still FILLING, and its counts are
    there; that of `lend` stands between the look at the queue and what is read;
    at the fence of `give_back` it is still LENT: the learner's reads end before the sampler's
    writes."""
    seen: list[str] = []

    def note(name: str) -> None:
        seen.append(f"{name} {states(slots)} {slots.board.rows_redrawn}")

    monkeypatch.setattr(slots_module, "failpoint", note)
    monkeypatch.setattr(slots_module, "order", lambda: note("order"))
    slot = leased(slots, 0)
    slots.publish(slot, 9)
    assert seen == ["sampler.publish rffff 9", "order rffff 9"]
    seen.clear()
    slots.lend()
    assert seen == ["order Rffff 9"]
    seen.clear()
    slots.give_back(slot)
    assert seen == ["order Lffff 9"]


def test_closing_gives_back_every_descriptor_and_keeps_the_memory() -> None:
    """A batch that the learner still holds stays readable; closing twice is fine."""
    before = open_descriptors()
    slots = Slots(BatchFields(FIELDS), 4, 5, 2)
    arrays: BatchArrays = slots.batch(3)
    arrays.indices[:] = 7
    slots.close()
    slots.close()
    assert arrays.indices.tolist() == [7] * 4
    del slots, arrays
    assert open_descriptors() == before


@pytest.mark.parametrize("sampler_sleeps", [False, True])
def test_a_batch_given_back_after_closing_is_no_error(sampler_sleeps: bool) -> None:
    """Whoever kept a batch releases it when it pleases, even if its sampler died in its sleep."""
    slots = Slots(BatchFields(FIELDS), 4, 2, 1)
    slots.board.open_gate()
    published(slots, 0)
    slot = slots.lend()
    assert slot == 0
    if sampler_sleeps:
        slots.board.sampler_bells[0].arm()
    slots.close()
    slots.give_back(slot)
    assert states(slots) == "ff"


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "posix_fallocate", "eventfd"])
def test_slots_that_cannot_be_made_leave_nothing(call: str) -> None:
    """Each system call fails once, at its 1st, 2nd, 3rd ... time: a typed error, and descriptors as
    before."""
    for nth in range(1, 20):
        before = open_descriptors()
        with pytest.MonkeyPatch.context() as patch:
            failing = FailsAt(getattr(os, call), nth)
            patch.setattr(os, call, failing)
            try:
                Slots(BatchFields(FIELDS), 4, 5, 3).close()
            except ResourceUnavailable:
                assert failing.has_failed
            else:
                assert not failing.has_failed
                break
        assert open_descriptors() == before
    assert nth == {"eventfd": 5}.get(call, 2)


def test_the_invariant_check_notices_what_must_not_be(slots: Slots) -> None:
    """Two slots filled at once by one sampler, or a state that there is not."""
    slots.check()
    leased(slots, 0)
    slots.check()
    leased(slots, 1)
    slots.check()
    leased(slots, 0)
    with pytest.raises(AssertionError, match="sampler 0"):
        slots.check()


def test_samplers_that_looked_in_vain_are_known_by_the_rows_that_they_saw(slots: Slots) -> None:
    """All of them, and since the last row came in; one that finds an item again is none of them."""
    slots.board.open_gate()
    assert not slots.board.found_no_items and not slots.board.found_no_items_since(0)
    for sampler, seen in ((0, 7), (1, 6)):
        slot = slots.lease(sampler)
        assert slot is not None
        slots.abandon(slot, seen)
    assert slots.board.found_no_items and not slots.board.found_no_items_since(7)
    slot = slots.lease(1)
    assert slot is not None
    slots.abandon(slot, 7)
    assert slots.board.found_no_items_since(7) and not slots.board.found_no_items_since(8)
    slot = slots.lease(0)
    assert slot is not None
    slots.publish(slot)
    assert slots.board.found_no_items and not slots.board.found_no_items_since(7)
