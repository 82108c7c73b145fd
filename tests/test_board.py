"""Tests of `_sampling.board`: what one process writes, the others read; no word reaches another."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from areplay._sampling.board import Board, board_words
from areplay._shm.doorbell import Doorbell, EventFd
from areplay._shm.layout import WORDS_A_LINE

SAMPLERS = 3


class Scene:
    """The board of three samplers, as the learner's process sees it and as a sampler's does."""

    def __init__(self) -> None:
        self.words = np.zeros((board_words(SAMPLERS), WORDS_A_LINE), np.int64)
        self.events = [EventFd(f"doorbell {k}") for k in range(1 + SAMPLERS)]
        self.learner = Board(self.words, self.events)
        self.sampler = Board(self.words, self.events)

    def rung(self) -> list[int]:
        """The numbers of the doorbells that were rung since the last look: 0 is the learner's."""
        rung = [
            k
            for k, event in enumerate(self.events)
            if select.select([event.descriptor], [], [], 0)[0]
        ]
        for k in rung:
            self.events[k].clear()
        return rung


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Nothing is written."""
    scene = Scene()
    yield scene
    for event in scene.events:
        event.close()


def test_the_gate_is_shut_at_first(scene: Scene) -> None:
    """Opened, all samplers see it, and all are rung, whether they sleep or not."""
    assert not scene.sampler.is_open
    scene.learner.open_gate()
    assert scene.sampler.is_open and not scene.sampler.is_stopping
    assert scene.rung() == [1, 2, 3]


def test_to_stop_wakes_every_sampler(scene: Scene) -> None:
    """Also a sampler that has no free slot, or that does not sleep yet."""
    scene.sampler.sampler_bells[1].arm()
    assert not scene.sampler.is_stopping
    scene.learner.stop()
    assert scene.sampler.is_stopping and not scene.sampler.is_open
    assert scene.rung() == [1, 2, 3]


def test_new_items_wake_the_samplers_that_sleep(scene: Scene) -> None:
    """And cost nothing for the others."""
    scene.sampler.sampler_bells[2].arm()
    scene.learner.wake_samplers()
    assert scene.rung() == [3]


def test_each_sampler_reports_for_itself(scene: Scene) -> None:
    """A report brings the count of rows up to date; the learner sees their sum."""
    scene.sampler.note_filled(0, 3)
    scene.sampler.note_filled(2, 10)
    scene.sampler.note_filled(0, 4)
    assert [scene.learner.redrawn(k) for k in range(SAMPLERS)] == [4, 0, 10]
    assert scene.learner.rows_redrawn == 14


def test_searches_that_found_nothing_are_known_by_the_rows_that_there_were(scene: Scene) -> None:
    """`found_no_items_since` says yes only if each sampler has searched since the last row came in;
    a sampler that finds an item ends it. A ring without a row counts, too."""
    board = scene.learner
    assert not board.found_no_items and not board.found_no_items_since(0)
    for k in range(SAMPLERS):
        scene.sampler.note_fruitless(k, 0)
    assert board.found_no_items and board.found_no_items_since(0)
    scene.sampler.note_fruitless(1, 7)
    assert not board.found_no_items_since(0) and not board.found_no_items_since(7)
    for k in (0, 2):
        scene.sampler.note_fruitless(k, 7)
    assert board.found_no_items_since(7) and not board.found_no_items_since(8)
    scene.sampler.note_filled(1, 0)
    assert board.found_no_items and not board.found_no_items_since(7)


STEPS: dict[str, Callable[[Board], object]] = {
    "gate": lambda board: board.open_gate(),
    "stop": lambda board: board.stop(),
    "the learner's doorbell": lambda board: board.learner_bell.arm(),
    **{f"doorbell {k}": lambda board, k=k: board.sampler_bells[k].arm() for k in range(SAMPLERS)},
    **{f"redrawn {k}": lambda board, k=k: board.note_filled(k, 5) for k in range(SAMPLERS)},
    **{f"fruitless {k}": lambda board, k=k: board.note_fruitless(k, 5) for k in range(SAMPLERS)},
}


def test_each_word_has_a_place_of_its_own(scene: Scene) -> None:
    """One step changes one word, at the head of a cache line that no other step touches."""
    touched = []
    for step in STEPS.values():
        scene.words[:] = 0
        step(scene.learner)
        changed = np.argwhere(scene.words).tolist()
        assert len(changed) == 1 and changed[0][1] == 0
        touched.append(changed[0][0])
    assert sorted(touched) == list(range(board_words(SAMPLERS)))


def test_the_doorbells_are_those_of_their_owners(scene: Scene) -> None:
    """The learner rings sampler k at the k-th doorbell, and is rung at its own."""
    bells: list[Doorbell] = [scene.sampler.learner_bell, *scene.sampler.sampler_bells]
    for k, bell in enumerate(bells):
        [scene.learner.learner_bell, *scene.learner.sampler_bells][k].arm()
        bell.notify()
        assert scene.rung() == [k]
