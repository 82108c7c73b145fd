"""Any history of an inbox, against a plain list: an actor puts, is killed and replaced; the
coordinator takes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models.parts import machine_in_parts

from areplay._ingest import inbox as inbox_module
from areplay._ingest.inbox import Inboxes
from areplay.errors import SpecMismatch, WouldBlock
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), pair=((2,), "float32"))


class Killed(BaseException):
    """A death, in the place of one."""


class InboxMachine(RuleBasedStateMachine):
    """The inbox from both sides, and what must come out of it."""

    @initialize(inbox_rows=st.integers(1, 6))
    def build(self, inbox_rows: int) -> None:
        self.inbox_rows = inbox_rows
        self.inboxes = Inboxes(SPEC, 2, inbox_rows)
        self.actor, self.coordinator = self.inboxes.inbox(0), self.inboxes.inbox(0)
        self.neighbour = self.inboxes.inbox(1)
        self.neighbour.put(self.row(-1))
        self.waiting: list[int] = []
        self.put = self.taken = self.hurried_to = 0
        self.wake_at = 0
        self.may_wait = inbox_rows
        self.is_stopping = False
        self.coordinator_sleeps = self.actor_sleeps = False
        self.coordinator_heard = self.actor_heard = True

    @staticmethod
    def row(number: int) -> dict[str, Any]:
        """A row that says its number in every field."""
        return {"number": number, "pair": np.full(2, number, np.float32)}

    def chunk(self, count: int, skip: int) -> dict[str, Any]:
        """The next rows, with others around them."""
        numbers = np.array([-5] * skip + list(range(self.put, self.put + count)) + [-5])
        return {"number": numbers, "pair": np.stack([numbers, numbers], 1).astype(np.float32)}

    def published(self, count: int) -> None:
        """What the oracle makes of rows that are safe now."""
        self.waiting += range(self.put, self.put + count)
        self.put += count
        if self.put >= self.wake_at:
            self.ring_the_coordinator()

    def ring_the_coordinator(self) -> None:
        """Only who sleeps is rung, and once a sleep."""
        rung = self.rings(self.coordinator.rows_bell)
        assert rung == (self.coordinator_sleeps and not self.coordinator_heard)
        self.coordinator_heard = True

    @staticmethod
    def rings(bell: Any) -> bool:
        """Whether the doorbell was rung since the last look."""
        try:
            os.eventfd_read(bell.event.descriptor)
        except BlockingIOError:
            return False
        return True

    @property
    def room(self) -> int:
        """Rows that can be put: into an empty inbox as many as it holds, else up to those that may
        wait."""
        return self.inbox_rows if not self.waiting else max(0, self.may_wait - len(self.waiting))

    # The actor.

    @rule()
    def put_a_row(self) -> None:
        if self.room:
            self.actor.put(self.row(self.put))
            self.published(1)
        else:
            with pytest.raises(WouldBlock):
                self.actor.put(self.row(self.put))

    @rule(count=st.integers(0, 7), skip=st.integers(0, 2))
    def put_a_chunk(self, count: int, skip: int) -> None:
        if count == 0 or count <= self.room:
            self.actor.extend(self.chunk(count, skip), skip, skip + count)
            self.published(count)
        else:
            with pytest.raises(WouldBlock):
                self.actor.extend(self.chunk(count, skip), skip, skip + count)

    @precondition(lambda self: self.room)
    @rule(
        bad=st.sampled_from(
            [{"number": 1}, {"number": 0.5, "pair": [1, 1]}, {"number": 1, "pair": [1, 1], "z": 1}]
        )
    )
    def put_a_row_that_does_not_fit(self, bad: dict[str, Any]) -> None:
        with pytest.raises(SpecMismatch):
            self.actor.put(bad)

    @precondition(lambda self: self.room)
    @rule(
        point=st.sampled_from(["add.before", "add.written", "add.published"]),
        as_chunk=st.booleans(),
    )
    def die_while_putting(self, point: str, as_chunk: bool) -> None:
        def failpoint(at: str) -> None:
            if at == point:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inbox_module, "failpoint", failpoint)
            with pytest.raises(Killed):
                if as_chunk:
                    self.actor.extend(self.chunk(1, 0), 0, 1)
                else:
                    self.actor.put(self.row(self.put))
        if point == "add.published":
            self.published(1)
        self.actor = self.inboxes.inbox(0)
        self.coordinator_heard = False  # the successor does not know that its predecessor has rung

    @rule()
    def request_flush(self) -> None:
        self.actor.request_flush()
        self.hurried_to = self.put
        self.ring_the_coordinator()

    @rule()
    def the_actor_falls_asleep(self) -> None:
        self.actor.room_bell.arm()
        self.actor_sleeps, self.actor_heard = True, False

    @rule()
    def the_actor_wakes(self) -> None:
        self.actor.room_bell.disarm()
        self.actor_sleeps = False

    # The coordinator.

    @rule(most=st.integers(1, 7))
    def take_a_piece(self, most: int) -> None:
        columns, _, start, stop = self.coordinator.peek()
        expected = min(len(self.waiting), self.inbox_rows - self.taken % self.inbox_rows)
        assert stop - start == expected, "as many as lie in one piece"
        count = min(most, expected)
        assert columns["number"][start : start + count].tolist() == self.waiting[:count]
        assert columns["pair"][start : start + count].tolist() == [
            [n, n] for n in self.waiting[:count]
        ]
        self.coordinator.consume(count)
        del self.waiting[:count]
        self.taken += count
        assert self.rings(self.actor.room_bell) == (self.actor_sleeps and not self.actor_heard)
        self.actor_heard = True

    @rule()
    def take_more_than_there_is(self) -> None:
        with pytest.raises(AssertionError):
            self.coordinator.consume(len(self.waiting) + 1)

    @rule(rows=st.integers(0, 5))
    def the_coordinator_falls_asleep(self, rows: int) -> None:
        self.coordinator.set_wake(rows)
        self.wake_at = self.taken + rows
        self.coordinator.rows_bell.arm()
        self.coordinator_sleeps, self.coordinator_heard = True, False

    @rule()
    def the_coordinator_wakes(self) -> None:
        self.coordinator.rows_bell.disarm()
        self.coordinator_sleeps = False

    @rule(rows=st.integers(0, 7))
    def limit_waiting(self, rows: int) -> None:
        before, self.may_wait = self.may_wait, min(rows, self.inbox_rows)
        self.coordinator.limit_waiting(rows)
        rung = self.rings(self.actor.room_bell)
        assert rung == (self.may_wait > before and self.actor_sleeps and not self.actor_heard), (
            "who gets room is told"
        )
        self.actor_heard = self.actor_heard or rung

    @rule()
    def stop(self) -> None:
        self.coordinator.stop()
        self.is_stopping = True
        assert self.rings(self.actor.room_bell)

    # What must hold.

    @invariant()
    def both_sides_count_alike(self) -> None:
        """Used, room, put and taken are those of the list, on either side; nobody else's inbox has
        changed."""
        for side in (self.actor, self.coordinator):
            side.check()
            assert (side.used, side.room) == (len(self.waiting), self.room)
            assert side.may_wait == self.may_wait
            assert side.rows_put == self.put == self.taken + len(self.waiting)
            assert side.is_stopping == self.is_stopping
            assert side.is_flush_requested == (self.hurried_to > self.taken)
            assert repr(side) == (
                f"<Inbox {len(self.waiting)} of {self.inbox_rows} rows, {self.taken} taken>"
            )
        assert (
            self.neighbour.used,
            self.neighbour.is_stopping,
            self.neighbour.is_flush_requested,
        ) == (1, False, False)

    @invariant()
    def nobody_is_rung_in_vain(self) -> None:
        """Every ring so far was accounted for by the step that caused it."""
        assert not self.rings(self.coordinator.rows_bell)
        assert not self.rings(self.actor.room_bell)

    def teardown(self) -> None:
        if hasattr(self, "inboxes"):
            self.inboxes.close()


TestInbox = machine_in_parts(InboxMachine, max_examples=80, stateful_step_count=50, print_blob=True)
