"""Tests of `_sampling.pacing`: what the learner may take, and what the writers hear of it. Writers,
samplers and plan are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from areplay._ingest.admission import Admission
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.pacing import LimitedPacing, Pacing, PlannedPacing, pacing_of
from areplay._sampling.stream_records import StreamState
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import EndOfEpochs, Stalled
from areplay.items.item import BatchFields
from areplay.limiters import Limiter, MinSize, SamplesPerInsert
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))
BATCH_SIZE = 4
LIMITER = SamplesPerInsert(1.0, 6, 8.0)


class Plan:
    """Of ten items in batches of four: the last one has two. The test says how many are there."""

    takes_in = True

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.items = 10
        self.complete = 0
        self.delivered = 0
        self.without: object = "not begun"
        self.log = SimpleNamespace(appended=3, released=8, is_over=self._is_over)

    @staticmethod
    def _is_over(released: int, indices: Any) -> Any:
        return indices < released

    def keep(self) -> None:
        """As of `BatchPlan`."""
        self.steps.append("keep")

    def begin(self, without: object) -> None:
        """As of `BatchPlan`."""
        self.steps.append("begin")
        self.without = without

    def close(self) -> None:
        """As of `BatchPlan`."""
        self.steps.append("close")

    def size(self, number: int) -> int:
        """As of `BatchPlan`."""
        return max(0, min(BATCH_SIZE, self.items - BATCH_SIZE * number))

    def has_batch(self, number: int) -> bool:
        """As of `BatchPlan`."""
        return 0 < BATCH_SIZE * number + self.size(number) <= self.complete

    def on_delivered(self, batches: int) -> None:
        """As of `BatchPlan`."""
        self.delivered = batches

    def items_left(self, batches: int) -> int:
        """As of `BatchPlan`."""
        return self.complete - BATCH_SIZE * batches


class Scene:
    """A ring, its admission, and one pacing over it."""

    def __init__(
        self,
        limiter: Limiter | None = None,
        plan: Plan | None = None,
        resumed: StreamState | None = None,
    ) -> None:
        self.ring = Ring(SPEC, 4, 8)
        registry = WriterRegistry()
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), registry)
        self.admission = Admission(registry)
        self.changes = 0
        self.admission.on_change = self._note_change
        self.learner_was_woken = False
        self.gate: Any = SimpleNamespace(min_size=6, wake_learner=self._wake_learner)
        self.steps: list[Callable[[], object]] = []
        self.holdings: Any = SimpleNamespace(push=lambda *steps: self.steps.extend(steps))
        host: Any = SimpleNamespace(ring=self.ring, admission=self.admission)
        config: Any = SimpleNamespace(
            limiter=MinSize(6) if limiter is None else limiter,
            batch_size=BATCH_SIZE,
            selector="Fifo()",
            new_batch_plan=None if plan is None else lambda: plan,
        )
        self.pacing = pacing_of(host, config, self.gate, resumed)

    def _note_change(self) -> None:
        self.changes += 1

    def _wake_learner(self) -> None:
        self.learner_was_woken = True

    def write(self, rows: int) -> None:
        """Rows come into the ring."""
        self.writer.write({"number": np.zeros(rows, np.int64)}, 0, rows)

    async def begin(self) -> None:
        """The stream is opened."""
        await self.pacing.begin(self.holdings)

    @property
    def rate(self) -> Any:
        """The counts of its limiter."""
        assert isinstance(self.pacing, LimitedPacing)
        return self.pacing.rate

    def tells_writers(self, step: Callable[[], object]) -> bool:
        """Whether writers that wait are woken by that step."""
        bells = self.admission.coordinator_bell, self.admission.owner_bell
        for bell in bells:
            bell.event.clear()
            bell.arm()
        step()
        return all(bell._rung == bell._word[0] for bell in bells)

    def close(self) -> None:
        """Give everything back."""
        self.admission.close()
        self.writer.close()
        self.ring.segment.close()


scenes: list[Scene] = []


def scene_of(**options: Any) -> Scene:
    """A scene that is given back after the test."""
    scenes.append(Scene(**options))
    return scenes[-1]


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """All scenes of the test."""
    yield
    while scenes:
        scenes.pop().close()


# Neither limiter nor plan.


async def test_without_limiter_and_plan_neither_side_waits() -> None:
    """Every batch that is ready may be taken, and no writer hears of it."""
    scene = scene_of()
    await scene.begin()
    pacing = scene.pacing
    assert type(pacing) is Pacing
    assert pacing.may_take() and not pacing.lacks_rows and not pacing.holds_writers
    assert pacing.could_take(True) and not pacing.could_take(False)
    assert not scene.tells_writers(pacing.on_delivered)
    assert pacing.delivered == 1
    assert (pacing.limiter_statistics(), pacing.items_left(), pacing.next_batch) == (None, None, "")
    assert scene.steps == [] and scene.admission.limiters == ()
    with pytest.raises(TypeError, match="SamplesPerInsert"):
        pacing.replace_limiter(LIMITER)


async def test_what_is_delivered_is_added_to_what_a_checkpoint_counted() -> None:
    """And what else it kept is passed on, for a stream that has the options for it again."""
    counts = {"samples": 3.0}
    scene = scene_of(resumed=StreamState("what", 7, counts, np.isfinite))
    scene.pacing.on_delivered()
    assert scene.pacing.state("what") == StreamState("what", 8, counts, np.isfinite)
    fresh = scene_of().pacing
    fresh.on_delivered()
    assert fresh.state("what") == StreamState("what", 1, None, None)


# With a limiter.


async def test_a_limiter_begins_with_the_rows_that_waited_in_inboxes() -> None:
    """They come in first, unlimited, and count like those of the ring; meanwhile little more may
    wait. Rows above `min_size` do not count."""
    scene = scene_of(limiter=LIMITER)
    scene.write(2)
    seen: list[object] = []

    async def take_waiting() -> None:
        await asyncio.sleep(0)
        seen.append((scene.admission.limiters, scene.admission.rows_that_may_wait(32)))
        seen.append(scene.pacing.holds_writers)
        scene.write(3)

    scene.admission.take_waiting = take_waiting
    assert scene.admission.rows_that_may_wait(32) is None
    await scene.begin()
    assert seen == [((), 16), False]
    assert scene.admission.limiters == (scene.rate,)
    assert scene.rate.statistics().inserts == 5
    assert scene.admission.rows_that_may_wait(32) == 16, "by the limiter, not announced any more"
    full = scene_of(limiter=LIMITER)
    full.write(8)
    await full.begin()
    assert full.rate.statistics().inserts == 6


async def test_a_limiter_that_cannot_begin_is_announced_no_more() -> None:
    """Inboxes are as large as before, and nothing counts."""
    scene = scene_of(limiter=LIMITER)

    async def take_waiting() -> None:
        raise asyncio.CancelledError

    scene.admission.take_waiting = take_waiting
    with pytest.raises(asyncio.CancelledError):
        await scene.begin()
    assert scene.admission.rows_that_may_wait(32) is None
    assert scene.admission.limiters == () and not scene.pacing.holds_writers
    scene.pacing.end()


async def test_a_limiter_lets_both_sides_on_in_turn() -> None:
    """The learner takes a batch where it may; then writers hear that there is room."""
    scene = scene_of(limiter=LIMITER)
    scene.write(6)
    await scene.begin()
    pacing = scene.pacing
    taken = 0
    while pacing.may_take():
        assert not pacing.lacks_rows and pacing.could_take(True) and not pacing.could_take(False)
        assert scene.tells_writers(pacing.on_delivered)
        taken += 1
    assert taken == pacing.delivered == 2, "a buffer of eight samples"
    assert pacing.lacks_rows and not pacing.could_take(True)
    assert pacing.why_rows_are_lacking().startswith("4 steps are missing until the next batch, by")
    scene.rate.insert(4)
    assert pacing.may_take() and pacing.could_take(True)


async def test_a_limiter_holds_writers_from_its_beginning_to_its_end() -> None:
    """Before and after, they are not bound, and there are no statistics; its counts stay for a
    checkpoint."""
    scene = scene_of(limiter=LIMITER)
    scene.write(6)
    pacing = scene.pacing
    assert not pacing.holds_writers and pacing.limiter_statistics() is None
    assert pacing.state("what").limiter is None, "nothing has begun"
    await scene.begin()
    assert pacing.holds_writers and pacing.limiter_statistics() is not None
    pacing.on_delivered()
    counts = pacing.state("what").limiter
    assert counts is not None and (counts["inserts"], counts["samples"]) == (6, 4)
    changes = scene.changes
    assert scene.tells_writers(pacing.end)
    assert scene.changes > changes
    assert scene.admission.limiters == ()
    assert not pacing.holds_writers and pacing.limiter_statistics() is None
    assert pacing.state("what").limiter == counts


async def test_a_dropped_stream_lets_its_limiter_go() -> None:
    """By the step that its holdings got, without the pacing."""
    scene = scene_of(limiter=LIMITER)
    await scene.begin()
    for step in scene.steps:
        step()
    assert scene.admission.limiters == ()


@pytest.mark.parametrize(("samples", "min_size"), [(0, 6), (12, 1)])
async def test_a_limiter_goes_on_with_the_counts_of_a_checkpoint(
    samples: int, min_size: int
) -> None:
    """Not with the rows of the ring; and once it has handed out a batch, the next one needs no
    `min_size_to_sample` again."""
    counts = {"samples_per_insert": 1.0, "min_size_to_sample": 6.0, "inserts": 18.0}
    counts |= {"samples": samples, "error": 0.0}
    scene = scene_of(limiter=LIMITER, resumed=StreamState("what", 3, counts, None))
    scene.write(4)
    assert scene.pacing.state("what").limiter == counts
    await scene.begin()
    seen = scene.rate.statistics()
    assert (seen.inserts, seen.samples) == (18, samples)
    assert scene.gate.min_size == min_size


async def test_counts_of_other_options_are_not_gone_on_with() -> None:
    """Then the ring's rows count, as for a new stream."""
    counts = {"samples_per_insert": 2.0, "min_size_to_sample": 6.0, "inserts": 18.0}
    counts |= {"samples": 12.0, "error": 0.0}
    scene = scene_of(limiter=LIMITER, resumed=StreamState("what", 3, counts, None))
    scene.write(4)
    await scene.begin()
    assert scene.rate.statistics().inserts == 4 and scene.gate.min_size == 6


async def test_both_sides_look_again_when_a_limiter_is_replaced() -> None:
    """Either of them may go on by it."""
    scene = scene_of(limiter=LIMITER)
    await scene.begin()
    changes = scene.changes
    other = SamplesPerInsert(1.0, 6, 20.0)
    assert scene.tells_writers(lambda: scene.pacing.replace_limiter(other))
    assert scene.changes > changes and scene.learner_was_woken
    assert scene.rate.limiter is other


# With a plan.


async def test_a_plan_keeps_the_blocks_before_it_takes_in_what_is_there() -> None:
    """Until then it is beginning. Writers hear of both."""
    plan = Plan()
    scene = scene_of(plan=plan)
    pacing = scene.pacing
    assert isinstance(pacing, PlannedPacing) and pacing.plan is plan  # type: ignore[comparison-overlap]
    seen: list[object] = []
    begin = plan.begin

    def watched(without: object) -> None:
        seen.append((pacing.is_beginning, scene.changes))
        begin(without)

    plan.begin = watched  # type: ignore[method-assign]
    assert pacing.is_beginning and pacing.holds_writers
    bells = scene.admission.coordinator_bell, scene.admission.owner_bell
    for bell in bells:
        bell.arm()
    await scene.begin()
    assert all(bell._rung == bell._word[0] for bell in bells)
    assert seen == [(True, 1)] and not pacing.is_beginning
    assert plan.steps == ["keep", "begin"] and plan.without is None
    for step in scene.steps:
        step()
    assert plan.steps[-1] == "close", "what a dropped stream leaves"


async def test_the_end_of_a_beginning_wakes_the_writers() -> None:
    """They may have found all blocks kept meanwhile."""
    plan = Plan()
    scene = scene_of(plan=plan)
    bells = scene.admission.coordinator_bell, scene.admission.owner_bell
    begin = plan.begin

    def found_all_kept(without: object) -> None:
        for bell in bells:
            bell.arm()
        begin(without)

    plan.begin = found_all_kept  # type: ignore[method-assign]
    await scene.begin()
    assert all(bell._rung == bell._word[0] for bell in bells)


async def test_batches_of_a_plan_come_in_its_order_and_size() -> None:
    """Each once its items are there; the last may be smaller; then there are no more."""
    plan = Plan()
    scene = scene_of(plan=plan)
    await scene.begin()
    pacing = scene.pacing
    arrays = BatchArrays.empty(BATCH_SIZE, BatchFields(dict(SPEC)))
    for number, size in enumerate((4, 4, 2)):
        assert pacing.may_take() and pacing.lacks_rows and not pacing.could_take(True)
        assert pacing.next_batch == f"batch {number + 1} of 'Fifo()'"
        plan.complete += size - 1
        assert pacing.lacks_rows
        assert pacing.why_rows_are_lacking() == f"{size - 1} of 4 items for a batch of 'Fifo()'"
        plan.complete += 1
        assert not pacing.lacks_rows and pacing.could_take(False)
        assert pacing.items_left() == size
        assert scene.tells_writers(pacing.on_delivered)
        assert plan.delivered == pacing.delivered == number + 1
        assert len(pacing.part_of(arrays).indices) == size
    with pytest.raises(EndOfEpochs, match="Fifo"):
        pacing.may_take()


async def test_a_plan_without_a_batch_is_refused_when_it_begins() -> None:
    """It says of how many items."""
    plan = Plan()
    plan.items = 0
    scene = scene_of(plan=plan)
    with pytest.raises(Stalled, match="of 3 items"):
        await scene.begin()
    changes = scene.changes
    scene.pacing.end()
    assert plan.steps[-1] == "close" and scene.changes > changes


async def test_a_checkpoint_keeps_what_a_plan_has_delivered() -> None:
    """As it is at that moment; what it resumes while it begins, and if it takes in no rows."""

    def over_before(indices: Any) -> Any:
        return indices < 2

    before = StreamState("what", 5, None, over_before)
    plan = Plan()
    scene = scene_of(plan=plan, resumed=before)
    assert scene.pacing.state("what") == before
    await scene.begin()
    assert plan.without is over_before
    scene.pacing.on_delivered()
    state = scene.pacing.state("what")
    plan.log.released = 9
    assert state.batches_delivered == 6 and state.is_over is not None
    assert state.is_over(np.array([7, 8, 9])).tolist() == [True, False, False]
    closed = Plan()
    closed.takes_in = False
    scene = scene_of(plan=closed, resumed=before)
    await scene.begin()
    assert scene.pacing.state("what") == before
