"""Any history of the slots, against plain lists: samplers lease, publish, abandon, die; a learner
takes and returns."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kit import descriptors_pass_by_pickle
from models.parts import machine_in_parts

from areplay._base.field import Field
from areplay._sampling.slots import FILLING, FREE, LENT, READY, Slots
from areplay.items.item import BatchFields

FIELDS = {"x": Field("x", (), np.dtype("int64"))}


class SlotsMachine(RuleBasedStateMachine):
    """The slots, and for each of them a letter and the number of its batch."""

    @initialize(samplers=st.integers(1, 3), more=st.integers(0, 5))
    def build(self, samplers: int, more: int) -> None:
        self.samplers, self.count = samplers, samplers + more
        self.slots = Slots(BatchFields(FIELDS), 2, self.count, samplers)
        self.children = [self.a_child() for _ in range(samplers)]
        self.state = ["free"] * self.count
        self.content = [-1] * self.count
        self.batches = 0
        self.queues: list[list[int]] = [[] for _ in range(samplers)]
        self.passed_over = [0] * samplers
        self.redrawn = [0] * samplers
        self.is_open = self.is_stopping = False
        self.learner_sleeps = False
        self.heard = [True] * samplers
        self.sampler_sleeps = [False] * samplers

    def a_child(self) -> Slots:
        """The slots as a sampler's process sees them, which knows nothing but the shared words."""
        with descriptors_pass_by_pickle():
            child: Slots = pickle.loads(pickle.dumps(self.slots))
        return child

    def of(self, sampler: int) -> list[int]:
        """The slots of a sampler."""
        return [slot for slot in range(self.count) if slot % self.samplers == sampler]

    def filling(self, sampler: int) -> list[int]:
        """Those it fills; one at most, as a sampler does one thing at a time."""
        return [slot for slot in self.of(sampler) if self.state[slot] == "filling"]

    @staticmethod
    def rings(bell: Any) -> bool:
        """Whether the doorbell was rung since the last look."""
        try:
            os.eventfd_read(bell.event.descriptor)
        except BlockingIOError:
            return False
        return True

    # Samplers.

    @rule(sampler=st.integers(0, 2))
    def lease(self, sampler: int) -> None:
        sampler %= self.samplers
        if self.filling(sampler):
            return
        free = (
            [slot for slot in self.of(sampler) if self.state[slot] == "free"]
            if self.is_open
            else []
        )
        assert self.children[sampler].can_lease(sampler) == bool(free)
        slot = self.children[sampler].lease(sampler)
        if not free:
            assert slot is None
            return
        assert slot in free
        self.state[slot] = "filling"
        self.children[sampler].batch(slot).fields["x"][:] = -2

    @rule(sampler=st.integers(0, 2), redrawn=st.integers(0, 9))
    def publish(self, sampler: int, redrawn: int) -> None:
        sampler %= self.samplers
        for slot in self.filling(sampler):
            self.batches += 1
            self.children[sampler].batch(slot).fields["x"][:] = self.batches
            self.children[sampler].publish(slot, redrawn)
            self.state[slot], self.content[slot] = "ready", self.batches
            self.queues[sampler].append(slot)
            self.redrawn[sampler] = redrawn
            assert self.rings(self.slots.board.learner_bell) == (
                self.learner_sleeps and not self.heard[sampler]
            )
            self.heard[sampler] = True

    @rule(sampler=st.integers(0, 2))
    def abandon(self, sampler: int) -> None:
        sampler %= self.samplers
        for slot in self.filling(sampler):
            self.children[sampler].abandon(slot)
            self.state[slot] = "free"
            assert self.rings(self.slots.board.learner_bell) == (
                self.learner_sleeps and not self.heard[sampler]
            )
            self.heard[sampler] = True

    @rule(sampler=st.integers(0, 2))
    def die_and_be_recovered(self, sampler: int) -> None:
        sampler %= self.samplers
        torn = self.filling(sampler)
        self.children[sampler].close()
        self.children[sampler] = self.a_child()
        self.heard[sampler] = False
        assert self.slots.recover(sampler) == len(torn)
        for slot in torn:
            self.state[slot] = "free"

    @rule(sampler=st.integers(0, 2))
    def a_sampler_falls_asleep(self, sampler: int) -> None:
        sampler %= self.samplers
        self.children[sampler].board.sampler_bells[sampler].arm()
        self.sampler_sleeps[sampler] = True

    # The learner.

    @rule()
    def lend(self) -> None:
        slot = self.slots.lend()
        if not any(self.queues):
            assert slot is None
            return
        assert slot is not None
        for sampler, queue in enumerate(self.queues):
            self.passed_over[sampler] += bool(queue)
        sampler = slot % self.samplers
        assert slot == self.queues[sampler].pop(0), (
            "a sampler's batches come in the order in which it filled them"
        )
        self.state[slot] = "lent"
        self.passed_over[sampler] = 0
        assert max(self.passed_over) < self.samplers, (
            "no sampler is passed over for longer than a round"
        )

    @precondition(lambda self: "lent" in self.state)
    @rule(which=st.integers(0, 9))
    def give_back(self, which: int) -> None:
        lent = [slot for slot in range(self.count) if self.state[slot] == "lent"]
        slot = lent[which % len(lent)]
        assert self.slots.batch(slot).fields["x"].tolist() == [self.content[slot]] * 2, (
            "what was published"
        )
        self.slots.give_back(slot)
        self.state[slot] = "free"
        sampler = slot % self.samplers
        assert self.rings(self.slots.board.sampler_bells[sampler]) == self.sampler_sleeps[sampler]
        self.sampler_sleeps[sampler] = False

    @rule()
    def the_learner_falls_asleep(self) -> None:
        self.slots.board.learner_bell.arm()
        self.learner_sleeps = True
        self.heard = [False] * self.samplers

    @rule()
    def open_the_gate(self) -> None:
        self.slots.board.open_gate()
        self.is_open = True
        assert all(self.rings(bell) for bell in self.slots.board.sampler_bells)

    @rule()
    def stop(self) -> None:
        self.slots.board.stop()
        self.is_stopping = True
        assert all(self.rings(bell) for bell in self.slots.board.sampler_bells)

    @rule(slot=st.integers(0, 9), step=st.sampled_from(["publish", "abandon", "give_back"]))
    def take_an_illegal_step(self, slot: int, step: str) -> None:
        slot %= self.count
        if (
            self.state[slot]
            != {"publish": "filling", "abandon": "filling", "give_back": "lent"}[step]
        ):
            side = self.slots if step == "give_back" else self.children[slot % self.samplers]
            with pytest.raises(AssertionError):
                getattr(side, step)(slot)

    # What must hold.

    @invariant()
    def states_are_those_of_the_list(self) -> None:
        """Each slot's, their counts, and the words that all share."""
        self.slots.check()
        letters = "".join(
            {"free": "f", "filling": "r", "ready": "R", "lent": "L"}[state] for state in self.state
        )
        ready, lent = self.state.count("ready"), self.state.count("lent")
        for side in (self.slots, *self.children):
            assert repr(side) == f"<Slots {letters} ({ready} ready, {lent} lent)>"
            assert (side.board.is_open, side.board.is_stopping) == (
                self.is_open,
                self.is_stopping,
            )
        for number, state in (
            (FREE, "free"),
            (FILLING, "filling"),
            (READY, "ready"),
            (LENT, "lent"),
        ):
            assert self.slots.count(number) == self.state.count(state)
        assert self.slots.board.rows_redrawn == sum(self.redrawn)

    @invariant()
    def batches_that_are_ready_or_lent_stay_as_they_are(self) -> None:
        """Whatever others do with their slots."""
        for slot, state in enumerate(self.state):
            if state in ("ready", "lent"):
                assert self.slots.batch(slot).fields["x"].tolist() == [self.content[slot]] * 2

    @invariant()
    def nobody_is_rung_in_vain(self) -> None:
        """Every ring so far was accounted for by the step that caused it."""
        assert not any(
            self.rings(bell)
            for bell in (self.slots.board.learner_bell, *self.slots.board.sampler_bells)
        )

    def teardown(self) -> None:
        if hasattr(self, "slots"):
            for child in self.children:
                child.close()
            self.slots.close()


TestSlots = machine_in_parts(SlotsMachine, max_examples=80, stateful_step_count=50, print_blob=True)
