"""Tests of `_shm.doorbell`: no ring is lost, none is made in vain."""

from __future__ import annotations

import errno
import os
import pickle
import select
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import FailsAt, descriptors_pass_by_pickle, open_descriptors

from areplay._shm import doorbell as doorbell_module
from areplay._shm.doorbell import Doorbell, EventFd
from areplay.errors import ResourceUnavailable


@pytest.fixture
def event() -> Iterator[EventFd]:
    """An eventfd."""
    event = EventFd("a test's doorbell")
    yield event
    event.close()


def is_readable(event: EventFd) -> bool:
    """Whether who sleeps on it would wake."""
    return bool(select.select([event.descriptor], [], [], 0)[0])


class Sides:
    """A sleeper's and a notifier's view of one doorbell, and the shared word between them."""

    def __init__(self, event: EventFd) -> None:
        self.word = np.zeros(1, np.int64)
        self.event = event
        self.sleeper, self.notifier = self.side(), self.side()

    def side(self) -> Doorbell:
        """One more process's view."""
        return Doorbell(self.event, self.word.data)

    def rings(self) -> int:
        """How often the eventfd was written since the last look."""
        try:
            return os.eventfd_read(self.event.descriptor)
        except BlockingIOError:
            return 0


def test_a_notified_descriptor_is_readable_until_it_is_cleared(event: EventFd) -> None:
    """Several notifications are cleared at once, and clearing a clear one does nothing."""
    assert not is_readable(event)
    event.notify()
    event.notify()
    assert is_readable(event)
    event.clear()
    assert not is_readable(event)
    event.clear()


def test_a_full_counter_is_notified_without_waiting(event: EventFd) -> None:
    """A sleeper that never looked: the next ring neither waits nor raises."""
    os.eventfd_write(event.descriptor, (1 << 64) - 2)
    event.notify()
    assert is_readable(event)


def test_an_event_passes_to_another_process_and_stays_the_same(event: EventFd) -> None:
    """What one side notifies, the other sees, by a descriptor of its own."""
    with descriptors_pass_by_pickle():
        twin = pickle.loads(pickle.dumps(event))
    assert twin.descriptor != event.descriptor
    event.notify()
    assert is_readable(twin)
    twin.clear()
    assert not is_readable(event)
    twin.close()
    event.notify()
    assert is_readable(event)


def test_closing_gives_back_the_descriptor_and_may_be_repeated() -> None:
    """Once, whether closed or dropped; the number may be somebody else's by then."""
    before = open_descriptors()
    event = EventFd("a test's doorbell")
    event.close()
    somebody_elses = os.dup(0)
    event.close()
    os.close(somebody_elses)
    dropped = EventFd("a test's doorbell")
    del dropped
    assert open_descriptors() == before


def test_a_refused_eventfd_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the call and what it was for."""
    monkeypatch.setattr(os, "eventfd", FailsAt(os.eventfd, 1, errno.EMFILE))
    with pytest.raises(ResourceUnavailable) as caught:
        EventFd("the learner's doorbell")
    assert (caught.value.call, caught.value.what) == ("eventfd", "the learner's doorbell")


def test_a_descriptor_is_not_inherited_by_exec(event: EventFd) -> None:
    """Only who unpickles it gets it."""
    assert not os.get_inheritable(event.descriptor)


def test_a_sleeper_is_woken_once(event: EventFd) -> None:
    """However often it is rung for one sleep, the notifier makes one system call."""
    sides = Sides(event)
    sides.sleeper.arm()
    for _ in range(5):
        sides.notifier.notify()
    assert sides.rings() == 1


def test_who_is_awake_is_not_rung(event: EventFd) -> None:
    """Before the first sleep, and between two, a ring costs no system call."""
    sides = Sides(event)
    sides.notifier.notify()
    sides.sleeper.arm()
    sides.sleeper.disarm()
    sides.notifier.notify()
    assert sides.rings() == 0


def test_every_sleep_can_be_ended(event: EventFd) -> None:
    """Sleep after sleep, with and without waking in between, a ring arrives."""
    sides = Sides(event)
    for turn in range(6):
        sides.sleeper.arm()
        sides.notifier.notify()
        assert sides.rings() == 1
        if turn % 2:
            sides.sleeper.disarm()


def test_several_ringers_ring_each_for_itself(event: EventFd) -> None:
    """What one notifier has rung says nothing about another: each wakes the sleeper."""
    sides = Sides(event)
    other = sides.side()
    sides.sleeper.arm()
    sides.notifier.notify()
    other.notify()
    assert sides.rings() == 2


def test_the_successor_of_a_dead_sleeper_can_be_woken(event: EventFd) -> None:
    """A sleeper that died asleep, or awake, leaves a number behind; its successor never uses one
    twice."""
    sides = Sides(event)
    for dies_awake in (False, True):
        sides.sleeper.arm()
        sides.notifier.notify()
        if dies_awake:
            sides.sleeper.disarm()
        sides.rings()
        sides.sleeper = sides.side()  # the successor knows nothing but the shared word
        sides.sleeper.arm()
        sides.notifier.notify()
        assert sides.rings() == 1


def test_to_disarm_twice_or_without_a_sleep_does_nothing(event: EventFd) -> None:
    """A sleeper that is awake stays awake."""
    sides = Sides(event)
    sides.sleeper.disarm()
    sides.notifier.notify()
    sides.sleeper.arm()
    sides.sleeper.disarm()
    sides.sleeper.disarm()
    sides.notifier.notify()
    assert sides.rings() == 0
    sides.sleeper.arm()
    sides.notifier.notify()
    assert sides.rings() == 1


def test_the_sleeper_fences_between_its_store_and_its_look(
    event: EventFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the fence inside `arm` the word is already set: whatever comes later sees it."""
    sides = Sides(event)
    seen: list[int] = []
    monkeypatch.setattr(doorbell_module, "fence", lambda: seen.append(int(sides.word[0])))
    sides.sleeper.arm()
    assert len(seen) == 1 and seen[0] > 0


def test_the_ringer_fences_before_it_reads_the_word(
    event: EventFd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sleeper that falls asleep just before the notifier's fence is rung."""
    sides = Sides(event)
    monkeypatch.setattr(doorbell_module, "fence", lambda: sides.word.__setitem__(0, 1))
    sides.notifier.notify()
    assert sides.rings() == 1


@given(steps=st.lists(st.sampled_from(["arm", "disarm", "ring", "other", "die"]), max_size=30))
def test_no_ring_is_lost(steps: list[str]) -> None:
    """After any history: a sleep that has just begun is ended by the next ring of each notifier,
    and by no other."""
    event = EventFd("a test's doorbell")
    try:
        sides = Sides(event)
        notifiers = {"ring": sides.notifier, "other": sides.side()}
        asleep, heard = False, {"ring": True, "other": True}
        do: dict[str, Callable[[], None]] = {
            "arm": lambda: sides.sleeper.arm(),
            "disarm": lambda: sides.sleeper.disarm(),
        }
        for step in [*steps, "arm", "ring", "other"]:
            if step in notifiers:
                notifiers[step].notify()
                assert sides.rings() == (asleep and not heard[step])
                heard[step] = True
            elif step == "die":
                sides.sleeper = sides.side()
            else:
                do[step]()
                asleep = step == "arm"
                heard = dict.fromkeys(heard, False) if asleep else heard
    finally:
        event.close()
