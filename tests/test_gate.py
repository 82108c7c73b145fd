"""Tests of `_sampling.gate`: when samplers may begin, and which doorbells are rung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from areplay._sampling.gate import Gate
from areplay.limiters import Limiter, MinSize, SamplesPerInsert

LIMITERS: list[Limiter] = [MinSize(6), SamplesPerInsert(1.0, 6)]


class Scene:
    """A gate whose ring and board are the test's, which sees what is rung."""

    def __init__(self, limiter: Limiter, *, is_planned: bool = False) -> None:
        self.ring = SimpleNamespace(
            rows_now=np.zeros(1, np.int64), next_serial=np.zeros(1, np.int64), blocks=4
        )
        self.rung: list[str] = []
        self.is_stuck = False
        self.looks = 0
        self.board = SimpleNamespace(
            is_open=False,
            open_gate=self._open,
            wake_samplers=lambda: self.rung.append("samplers"),
            learner_bell=SimpleNamespace(
                notify=lambda: self.rung.append("learner"),
                event=SimpleNamespace(notify=lambda: self.rung.append("learner's descriptor")),
            ),
        )
        host: Any = SimpleNamespace(ring=self.ring, producers=self._producers)
        config: Any = SimpleNamespace(limiter=limiter, is_planned=is_planned)
        slots: Any = SimpleNamespace(board=self.board)
        self.gate = Gate(host, config, slots)

    def _open(self) -> None:
        self.board.is_open = True
        self.rung.append("gate")

    def _producers(self) -> Any:
        self.looks += 1
        return SimpleNamespace(is_stuck=lambda: self.is_stuck)


@pytest.fixture(params=LIMITERS, ids=repr)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Of either limiter, without a row."""
    yield Scene(request.param)


def test_it_opens_with_the_row_that_is_needed_and_stays_open(scene: Scene) -> None:
    """Not before; also if rows go."""
    for rows in range(6):
        scene.ring.rows_now[0] = rows
        scene.gate.on_rows()
        assert not scene.gate.is_open and scene.rung == []
    scene.ring.rows_now[0] = 6
    scene.gate.on_rows()
    assert scene.gate.is_open and scene.rung == ["gate"]
    scene.ring.rows_now[0] = 0
    scene.gate.on_rows()
    assert scene.gate.is_open and scene.rung.count("gate") == 1


def test_a_lower_number_holds_from_the_next_look_on(scene: Scene) -> None:
    """As for a stream that goes on where a checkpoint's was."""
    scene.ring.rows_now[0] = 1
    scene.gate.min_size = 1
    scene.gate.on_rows()
    assert scene.gate.is_open


def test_a_ring_that_recycles_blocks_is_full(scene: Scene) -> None:
    """It will not have more rows, however few they are. All blocks in use are no sign of it."""
    scene.ring.rows_now[0] = 5
    scene.ring.next_serial[0] = 4
    scene.gate.on_rows()
    assert not scene.gate.is_open
    scene.ring.next_serial[0] = 5
    scene.gate.on_rows()
    assert scene.gate.is_open


def test_where_a_plan_keeps_all_blocks_the_ring_is_full() -> None:
    """No writer can recycle one then. Streams without a plan leave that to the learner that waits,
    and do not ask at each row."""
    planned = Scene(MinSize(6), is_planned=True)
    planned.gate.on_rows()
    assert not planned.gate.is_open and planned.looks == 1
    planned.is_stuck = True
    planned.gate.on_rows()
    assert planned.gate.is_open
    for limiter in LIMITERS:
        scene = Scene(limiter)
        scene.is_stuck = True
        scene.gate.on_rows()
        assert not scene.gate.is_open and scene.looks == 0


@pytest.mark.parametrize(
    ("limiter", "is_planned", "wakes"),
    [(MinSize(6), False, False), (MinSize(6), True, True), (SamplesPerInsert(1.0, 6), False, True)],
)
def test_later_rows_wake_those_that_may_wait_for_them(
    limiter: Limiter, is_planned: bool, wakes: bool
) -> None:
    """With a plan samplers and learner wait for items, with a limiter the learner for inserts. With
    neither each row would ring for nothing."""
    scene = Scene(limiter, is_planned=is_planned)
    scene.gate.open()
    scene.rung.clear()
    scene.gate.on_rows()
    assert scene.rung == (["learner", "samplers"] if wakes else [])


STEPS: list[Callable[[Gate], None]] = [Gate.open, Gate.wake_learner, Gate.on_rows]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("is_open", [False, True])
def test_once_closed_it_rings_nothing(step: Callable[[Gate], None], is_open: bool) -> None:
    """The descriptors may be those of other files by then."""
    scene = Scene(SamplesPerInsert(1.0, 6))
    scene.ring.rows_now[0] = 6
    scene.board.is_open = is_open
    step(scene.gate)
    assert scene.rung != []
    scene.rung.clear()
    scene.gate.close()
    scene.board.is_open = is_open
    step(scene.gate)
    assert scene.rung == []


def test_a_learner_is_woken_whether_it_sleeps_or_not(scene: Scene) -> None:
    """A change that no doorbell announces must not be missed: it rings the descriptor itself."""
    scene.gate.wake_learner()
    assert scene.rung == ["learner's descriptor"]
