"""Tests of `_engine.standstill`: it is said only where it is certain. Real streams are in
`faults/`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from areplay._engine.producers import Producers
from areplay._engine.standstill import Standstill
from areplay._ingest.local_admission import Lacks


class Limiter:
    """With room for so many steps."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __repr__(self) -> str:
        return "Limiter()"


class Scene:
    """A replay that stands still: a limiter without room, and a stream without a batch. Tests
    change that."""

    def __init__(self) -> None:
        self.ring: Any = SimpleNamespace(rows_inserted=np.array([30]), blocks=4)
        self.registry: Any = SimpleNamespace(
            is_full=lambda besides=None: besides == self.full_besides, besides=None
        )
        self.full_besides: Any = "nothing"
        self.limiters = [Limiter(0)]
        self.admission: Any = SimpleNamespace(limiters=self.limiters, reason=lambda: "Limiter()")
        self.own: Any = SimpleNamespace(lacks=None, is_writing=False, any_written=True, waits=list)
        self.coordinator: Any = SimpleNamespace(
            is_writing=False,
            has_free_rows=False,
            has_rows=False,
            last_rows_at=0.0,
            failure=None,
            held=list,
        )
        self.stream: Any = SimpleNamespace(
            may_let_rows_in=False, may_find_items=False, is_waited_for=False, is_beginning=False
        )
        self.sampler: Any = SimpleNamespace(has_batch=False)
        self.group: Any = SimpleNamespace(alive=0, is_open=True, failures=[])
        self.producers = Producers(self.admission, self.own, self.coordinator, [self.group])
        self.standstill = Standstill(
            self.ring,
            self.registry,
            self.producers,
            [self.stream],
            self.sampler,
        )

    @property
    def why(self) -> str:
        """What a learner is told."""
        return self.standstill.why_barred()


def waits_for(scene: Scene, steps: int, blocks: bool = False) -> None:
    """The owner's call waits for room for so many steps."""
    scene.own.lacks = Lacks(steps, blocks, 7)


def test_a_limiter_without_room_bars_everybody() -> None:
    """Actors, too, whether they are alive or not."""
    scene = Scene()
    scene.group.alive = 3
    assert scene.why == (
        "Limiter() lets none in before a batch is taken: raise min_size_to_sample or error_buffer"
    )


def test_less_room_than_a_call_needs_at_once_bars_it() -> None:
    """Only the call that waits; whether it does or not, and by which of the limiters."""
    scene = Scene()
    scene.limiters[:] = [Limiter(16), Limiter(11)]
    assert scene.why == ""
    waits_for(scene, 11)
    assert scene.why == ""
    waits_for(scene, 16)
    assert scene.why == (
        "Limiter() lets no more than 11 steps in before a batch is taken, and add or extend has 16 "
        "at once: raise error_buffer, or hand in fewer at once"
    )


def test_full_blocks_bar_everybody() -> None:
    """But a writer with an open block; that of the call that waits is too small."""
    scene = Scene()
    scene.limiters.clear()
    assert scene.why == ""
    scene.full_besides = None
    assert scene.why.startswith("all 4 blocks hold rows that are still needed: raise capacity")
    scene.full_besides = 7
    assert scene.why == ""
    waits_for(scene, 1, blocks=False)
    assert scene.why == ""
    waits_for(scene, 1, blocks=True)
    assert scene.why.startswith("all 4 blocks")


@pytest.mark.parametrize(
    ("whose", "what", "value"),
    [
        ("group", "alive", 1),
        ("group", "is_open", False),
        ("own", "any_written", True),
        ("coordinator", "has_rows", True),
    ],
)
def test_a_failed_actor_is_why_no_rows_come_once_there_is_no_other_writer(
    whose: str, what: str, value: object
) -> None:
    """Actors that live, the owner, and rows on their way bring more rows."""
    scene, lost = Scene(), RuntimeError("the actor")
    scene.own.any_written = False
    assert scene.producers.failure() is None
    assert scene.standstill.producer_state().is_exhausted
    scene.group.failures = [lost, RuntimeError("another one")]
    assert scene.producers.failure() is lost
    assert scene.standstill.producer_state().failure is lost
    setattr(getattr(scene, whose), what, value)
    assert scene.producers.failure() is None
    assert not scene.standstill.producer_state().is_exhausted
    scene.coordinator.failure = MemoryError("the coordinator")
    assert scene.producers.failure() is scene.coordinator.failure


def test_a_ring_is_not_full_while_a_queue_only_begins() -> None:
    """It keeps all blocks until it has taken in what is there; a stream that waits for `min_size`
    must not open."""
    scene = Scene()
    assert not scene.standstill.producer_state().is_stuck()
    scene.full_besides = None
    assert scene.standstill.producer_state().is_stuck()
    scene.stream.is_beginning = True
    assert not scene.standstill.producer_state().is_stuck()


def test_too_few_free_blocks_bar_a_call_that_needs_more() -> None:
    """It hands in all or nothing."""
    scene = Scene()
    scene.limiters.clear()
    waits_for(scene, 20, blocks=True)
    assert "more rows at once than there is room for" in scene.why
    assert scene.standstill.producer_state().is_stuck(), "so the ring is as full as it will be"
    scene.group.alive = 1
    assert scene.why == "", "an actor may fill the block that is free"
    assert not scene.standstill.producer_state().is_stuck()


ENDS: dict[str, Callable[[Scene], object]] = {
    "a batch that a learner could take": lambda scene: vars(scene.stream).update(
        may_let_rows_in=True
    ),
    "a batch that sample could take": lambda scene: vars(scene.sampler).update(has_batch=True),
    "rows of ours being written": lambda scene: vars(scene.own).update(is_writing=True),
    "rows of actors being written": lambda scene: vars(scene.coordinator).update(is_writing=True),
    "a final observation that is due": lambda scene: vars(scene.coordinator).update(
        has_free_rows=True
    ),
    "rows that came in between": lambda scene: vars(scene.admission).update(limiters=Moving(scene)),
}


class Moving(list[Limiter]):
    """Limiters; when they are looked at, rows come in."""

    def __init__(self, scene: Scene) -> None:
        super().__init__([Limiter(0)])
        self._rows = scene.ring.rows_inserted

    def __iter__(self) -> Any:
        self._rows[0] += 1
        return super().__iter__()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_whatever_may_go_on_is_no_standstill(end: Callable[[Scene], object]) -> None:
    """Each by itself; neither for a learner nor for who writes."""
    scene = Scene()
    assert scene.why and scene.standstill.why_hopeless()
    end(scene)
    assert scene.why == scene.standstill.why_hopeless() == ""


@pytest.mark.parametrize("end", ["actors", "rows in inboxes"])
def test_who_may_use_the_room_that_is_left_is_no_standstill(end: str) -> None:
    """An actor writes as many rows as there is room for, be it part of a step."""
    scene = Scene()
    scene.limiters[:] = [Limiter(11)]
    waits_for(scene, 16)
    assert scene.why
    if end == "actors":
        scene.group.alive = 1
    else:
        scene.coordinator.has_rows = True
    assert scene.why == ""


@pytest.mark.parametrize("what", ["may_find_items", "is_waited_for"])
def test_who_writes_is_not_told_where_a_learner_is_or_items_may_be_found(what: str) -> None:
    """The learner is told then."""
    scene = Scene()
    setattr(scene.stream, what, True)
    assert scene.why and scene.standstill.why_hopeless() == ""


def test_what_is_held_is_said() -> None:
    """The owner's call, or whose rows stay in their inbox; nothing else."""
    scene = Scene()
    assert scene.standstill.producer_state().why_held() == ""
    scene.coordinator.held = lambda: [(None, "actor 3", 1.0)]
    assert (
        scene.standstill.producer_state().why_held()
        == "rows of actor 3 may not be written yet: Limiter()"
    )
    scene.own.waits = lambda: [SimpleNamespace(reason="Replay.add or extend waits")]
    assert scene.standstill.producer_state().why_held() == "Replay.add or extend waits"
