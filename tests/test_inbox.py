"""Tests of `_ingest.inbox`: what is published is safe, in order, once. Histories of any length are
in `models/`."""

from __future__ import annotations

import os
import pickle
import select
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import FailsAt, descriptors_pass_by_pickle, open_descriptors

from areplay._ingest import inbox as inbox_module
from areplay._ingest.inbox import Inbox, Inboxes, default_inbox_rows
from areplay.errors import ResourceUnavailable, SpecMismatch, WouldBlock
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), pair=((2,), "float32"))


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    """Three inboxes of four rows."""
    inboxes = Inboxes(SPEC, 3, 4)
    yield inboxes
    inboxes.close()


@pytest.fixture
def inbox(inboxes: Inboxes) -> Inbox:
    """One of them."""
    return inboxes.inbox(1)


def row(number: int) -> dict[str, Any]:
    """A row that says its number in every field."""
    return {"number": number, "pair": np.full(2, number, np.float32)}


def columns(*numbers: int) -> dict[str, Any]:
    """Several of them."""
    return {
        "number": np.array(numbers),
        "pair": np.repeat(np.array(numbers)[:, None], 2, 1).astype(np.float32),
    }


def taken(inbox: Inbox, most: int = 1 << 30) -> list[int]:
    """Take all rows, in pieces of at most `most`; their numbers."""
    numbers: list[int] = []
    while inbox.used:
        rows, _, start, stop = inbox.peek()
        stop = min(stop, start + most)
        assert stop > start
        piece = rows["number"][start:stop].tolist()
        assert rows["pair"][start:stop].tolist() == [[n, n] for n in piece]
        numbers += piece
        inbox.consume(stop - start)
    return numbers


def counts(inbox: Inbox) -> tuple[int, int, int]:
    """Used, room, put since the start."""
    return inbox.used, inbox.room, inbox.rows_put


def is_rung(bell: Any) -> bool:
    """Whether the sleeper behind that doorbell would wake; clears it."""
    rung = bool(select.select([bell.event.descriptor], [], [], 0)[0])
    bell.event.clear()
    return rung


@given(st.integers(1, 1 << 27))
def test_default_inboxes_hold_about_16_mib(row_bytes: int) -> None:
    """From 16 to 8,192 rows, and in between as many as fit into 16 MiB."""
    rows = default_inbox_rows(Spec(x=((row_bytes,), "uint8")))
    assert 16 <= rows <= 8_192
    if 16 < rows < 8_192:
        assert rows * row_bytes <= 16 << 20 < (rows + 1) * row_bytes
    elif rows == 16:
        assert 17 * row_bytes > 16 << 20
    else:
        assert 8_192 * row_bytes <= 16 << 20


def test_rows_come_out_as_they_went_in(inbox: Inbox) -> None:
    """In order, each once, over several times round the ring, singly and in chunks."""
    number = 0
    for turn in range(30):
        before = number
        for _ in range(turn % 3):
            inbox.put(row(number))
            number += 1
        chunk = range(number, number + min(inbox.room, turn % 4))
        if chunk:
            inbox.extend(columns(*chunk), 0, len(chunk))
            number = chunk.stop
        assert inbox.rows_put == number
        assert taken(inbox, 1 + turn % 2) == list(range(before, number))
    assert repr(inbox) == f"<Inbox 0 of 4 rows, {number} taken>"


def test_counts_follow_every_step(inbox: Inbox) -> None:
    """Used and room add up to the capacity; what was put is never uncounted."""
    assert counts(inbox) == (0, 4, 0)
    inbox.put(row(0))
    inbox.extend(columns(1, 2), 0, 2)
    assert counts(inbox) == (3, 1, 3)
    inbox.consume(2)
    assert counts(inbox) == (1, 3, 3)
    inbox.check()


def test_a_full_inbox_refuses_and_changes_nothing(inbox: Inbox) -> None:
    """WouldBlock, and no row was touched; of a chunk all rows are put or none."""
    inbox.extend(columns(0, 1, 2), 0, 3)
    with pytest.raises(WouldBlock, match="full"):
        inbox.extend(columns(3, 4), 0, 2)
    assert counts(inbox) == (3, 1, 3)
    inbox.put(row(3))
    with pytest.raises(WouldBlock, match="full"):
        inbox.put(row(4))
    with pytest.raises(WouldBlock):
        inbox.extend(columns(4), 0, 1)
    assert counts(inbox) == (4, 0, 4)
    assert taken(inbox) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "bad", [{"number": 1}, {**row(1), "more": 1}, {"number": 0.5, "pair": [1.0, 1.0]}]
)
def test_a_row_that_does_not_fit_is_not_put(inbox: Inbox, bad: Mapping[str, object]) -> None:
    """SpecMismatch; the rows before and after it are whole, and the actor can go on."""
    inbox.put(row(0))
    with pytest.raises(SpecMismatch):
        inbox.put(bad)
    assert counts(inbox) == (1, 3, 1)
    inbox.put(row(1))
    assert taken(inbox) == [0, 1]


def test_part_of_the_columns_can_be_put(inbox: Inbox) -> None:
    """From `start` to `stop`, also over the seam of the ring."""
    inbox.extend(columns(0, 1, 2), 0, 3)
    assert taken(inbox) == [0, 1, 2]
    inbox.extend(columns(90, 91, 92, 93, 94, 95), 1, 5)
    rows, _, start, stop = inbox.peek()
    assert (start, stop) == (3, 4), "the oldest rows, as many as lie in one piece"
    assert rows["number"][start:stop].tolist() == [91]
    assert taken(inbox) == [91, 92, 93, 94]
    inbox.extend(columns(1), 1, 1)
    assert counts(inbox) == (0, 4, 7)


def test_peeking_takes_nothing(inbox: Inbox) -> None:
    """The same rows again, until they are consumed; none if there are none."""
    _, _, start, stop = inbox.peek()
    assert start == stop
    inbox.extend(columns(0, 1), 0, 2)
    assert inbox.peek()[2:] == inbox.peek()[2:] == (0, 2)
    assert inbox.used == 2


@pytest.mark.parametrize("count", [-1, 3])
def test_only_rows_that_are_there_can_be_consumed(inbox: Inbox, count: int) -> None:
    """An assertion, and nothing changed."""
    inbox.extend(columns(0, 1), 0, 2)
    with pytest.raises(AssertionError):
        inbox.consume(count)
    assert taken(inbox) == [0, 1]


def test_inboxes_do_not_touch_each_other(inboxes: Inboxes) -> None:
    """Rows, counts, requests and doorbells of one are no other's."""
    one, two, three = (inboxes.inbox(k) for k in range(3))
    for k, box in enumerate((one, two, three)):
        box.extend(columns(*range(10 * k, 10 * k + k + 1)), 0, k + 1)
    two.stop()
    two.request_flush()
    assert [box.is_stopping for box in (one, two, three)] == [False, True, False]
    assert [box.is_flush_requested for box in (one, two, three)] == [False, True, False]
    assert [is_rung(box.room_bell) for box in (one, two, three)] == [False, True, False]
    assert [taken(box) for box in (one, two, three)] == [[0], [10, 11], [20, 21, 22]]


def test_the_two_sides_share_an_inbox_across_processes(inboxes: Inboxes) -> None:
    """What the actor's process puts, the coordinator takes; what it takes makes room there; a
    successor goes on."""
    coordinator = inboxes.inbox(2)
    with descriptors_pass_by_pickle():
        child = pickle.loads(pickle.dumps(inboxes))
        successor = pickle.loads(pickle.dumps(inboxes))
    assert child.spec == SPEC and (child.count, child.inbox_rows) == (3, 4)
    actor = child.inbox(2)
    for number in range(4):
        actor.put(row(number))
    assert taken(coordinator) == [0, 1, 2, 3]
    actor.put(row(4))
    again = successor.inbox(2)
    again.put(row(5))
    assert counts(coordinator) == (2, 2, 6)
    assert taken(coordinator) == [4, 5]
    coordinator.stop()
    assert again.is_stopping
    child.close()
    successor.close()


# Who wakes whom.


def test_the_actor_rings_from_the_row_that_was_asked_for(inbox: Inbox) -> None:
    """Not before the coordinator's wish, and not while it is awake: no system call a row."""
    inbox.set_wake(3)
    inbox.rows_bell.arm()
    inbox.put(row(0))
    inbox.put(row(1))
    assert not is_rung(inbox.rows_bell)
    inbox.put(row(2))
    assert is_rung(inbox.rows_bell)
    inbox.consume(2)
    inbox.set_wake(2)
    inbox.rows_bell.disarm()
    inbox.put(row(3))
    assert not is_rung(inbox.rows_bell)
    inbox.rows_bell.arm()
    inbox.put(row(4))
    assert is_rung(inbox.rows_bell)


def test_a_chunk_that_passes_the_mark_rings(inbox: Inbox) -> None:
    """The mark need not be hit exactly."""
    inbox.set_wake(2)
    inbox.rows_bell.arm()
    inbox.extend(columns(0), 0, 1)
    assert not is_rung(inbox.rows_bell)
    inbox.extend(columns(1, 2, 3), 0, 3)
    assert is_rung(inbox.rows_bell)


def test_room_is_announced_to_an_actor_that_sleeps(inbox: Inbox) -> None:
    """Consuming rings; an actor that is awake is left alone."""
    inbox.extend(columns(0, 1), 0, 2)
    inbox.consume(1)
    assert not is_rung(inbox.room_bell)
    inbox.room_bell.arm()
    inbox.consume(1)
    assert is_rung(inbox.room_bell)


def test_a_request_notifies_whatever_the_mark(inbox: Inbox) -> None:
    """Hurried until all that was put by then is taken, and no longer."""
    inbox.set_wake(100)
    inbox.rows_bell.arm()
    inbox.extend(columns(0, 1), 0, 2)
    assert not inbox.is_flush_requested and not is_rung(inbox.rows_bell)
    inbox.request_flush()
    assert inbox.is_flush_requested and is_rung(inbox.rows_bell)
    inbox.put(row(2))
    inbox.consume(1)
    assert inbox.is_flush_requested
    inbox.consume(1)
    assert not inbox.is_flush_requested, "the row that came after the request is not requested"


def test_to_stop_wakes_the_actor(inbox: Inbox) -> None:
    """Also one that sleeps for room, or that is not asleep yet."""
    inbox.stop()
    assert inbox.is_stopping and is_rung(inbox.room_bell)


# At every instant.


def test_a_row_is_published_when_it_is_whole(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever instant the actor is killed at: the tail counts whole rows only, and all of them
    once it has moved."""
    seen: list[str] = []

    def note(name: str) -> None:
        seen.append(f"{name} {inbox.rows_put}")

    monkeypatch.setattr(inbox_module, "failpoint", note)
    monkeypatch.setattr(inbox_module, "order", lambda: note("order"))
    inbox.put(row(0))
    assert seen == ["add.before 0", "add.written 0", "order 0", "add.published 1"]
    seen.clear()
    inbox.extend(columns(1, 2), 0, 2)
    assert seen == ["add.before 1", "add.written 1", "order 1", "add.published 3"]
    seen.clear()
    inbox.consume(2)
    assert seen == ["order 3"]
    seen.clear()
    inbox.peek()
    assert seen == ["order 3"], "the tail before the rows that it shows"
    monkeypatch.undo()
    assert taken(inbox) == [2]


class Killed(BaseException):
    """A death, in the place of one."""


@pytest.mark.parametrize("point", ["add.before", "add.written", "add.published"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_successor_goes_on_where_the_dead_actor_stopped(
    inboxes: Inboxes, point: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before publication: the rows never were. After it: all of them are kept."""
    actor = inboxes.inbox(0)
    actor.extend(columns(0), 0, 1)

    def kill(at: str) -> None:
        if at == point:
            raise Killed

    monkeypatch.setattr(inbox_module, "failpoint", kill)
    with pytest.raises(Killed):
        if rows == 1:
            actor.put(row(1))
        else:
            actor.extend(columns(1, 2, 3), 0, 3)
    monkeypatch.undo()
    successor = inboxes.inbox(0)
    kept = rows if point == "add.published" else 0
    assert successor.used == 1 + kept
    if successor.room:
        successor.put(row(9))
    assert taken(inboxes.inbox(0)) == [*range(1 + kept), *([9] if kept < 3 else [])]


def test_the_rows_are_read_before_their_room_is_given_back(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the fence of `consume` the head has not moved: the actor cannot be writing there yet."""
    inbox.extend(columns(0, 1, 2, 3), 0, 4)
    rooms: list[int] = []
    monkeypatch.setattr(inbox_module, "order", lambda: rooms.append(inbox.room))
    inbox.consume(3)
    assert rooms == [0] and inbox.room == 3


# Descriptors.


def test_closing_gives_back_every_descriptor_and_keeps_the_memory() -> None:
    """Two doorbells an inbox and the segment; rows that are there stay readable for who has the
    inbox."""
    before = open_descriptors()
    inboxes = Inboxes(SPEC, 3, 4)
    inbox = inboxes.inbox(0)
    inbox.put(row(5))
    inboxes.close()
    inboxes.close()
    rows, priorities, start, stop = inbox.peek()
    assert rows["number"][start:stop].tolist() == [5]
    del inboxes, inbox, rows, priorities
    assert open_descriptors() == before


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "posix_fallocate", "eventfd"])
def test_inboxes_that_cannot_be_made_leave_nothing(call: str) -> None:
    """Each system call fails once, at its 1st, 2nd, 3rd ... time: a typed error, and descriptors as
    before."""
    for nth in range(1, 20):
        before = open_descriptors()
        with pytest.MonkeyPatch.context() as patch:
            failing = FailsAt(getattr(os, call), nth)
            patch.setattr(os, call, failing)
            try:
                Inboxes(SPEC, 3, 4).close()
            except ResourceUnavailable:
                assert failing.has_failed
            else:
                assert not failing.has_failed
                break
        assert open_descriptors() == before
    assert nth == {"eventfd": 7}.get(call, 2)
