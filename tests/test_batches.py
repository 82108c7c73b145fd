"""Tests of `batches`: the learner's side of the queue, with the samplers played by the test."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from kit import (
    FailsAt,
    bound,
    cancel_at_every_tick,
    memory_descriptors,
    open_descriptors,
    other_task,
    ticks,
    until,
)

from areplay._ingest.admission import Admission
from areplay._processes import waiter as waiter_module
from areplay._processes.dropped import Holdings
from areplay._processes.supervision import SupervisorConfig, SupervisorOptions
from areplay._sampling import prefetch_queue as queue_module
from areplay._sampling import stream as stream_module
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.pacing import LimitedPacing
from areplay._sampling.prefetch_queue import PrefetchQueue
from areplay._sampling.reader import Reader
from areplay._sampling.slots import FREE, LENT, READY, Slots
from areplay._sampling.stream import Stream
from areplay._sampling.stream_records import (
    ProducerState,
    StreamConfig,
    StreamHost,
    StreamState,
)
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.batch import Batch
from areplay.batches import Batches
from areplay.errors import (
    BatchReleased,
    Closed,
    DescriptorLimitExceeded,
    SamplerFailed,
    Stalled,
    WaitTimeout,
)
from areplay.items.rows import Rows
from areplay.limiters import MinSize, SamplesPerInsert
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))


class Supervisor:
    """Stands in for the samplers' supervisor: starts and stops when told, and is as alive as the
    test says."""

    def __init__(self, config: SupervisorConfig) -> None:
        self.kind = config.kind
        self.ask = config.ask
        self.after_exit = config.after_exit
        self.on_change = config.on_change
        self.workers: list[Any] = []
        self.alive = config.count
        self.failures: list[BaseException] = []
        self.steps: list[str] = []
        self.start_error: BaseException | None = None
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        supervisors.append(self)

    def note(self, holdings: Holdings) -> None:
        """It has no children."""

    async def start(self) -> None:
        """As the real one."""
        self.steps.append("start")
        await asyncio.sleep(0)
        if start_errors:
            raise start_errors.pop()

    async def stop(self) -> None:
        """As the real one."""
        self.steps.append("stop")
        self.ask(0)
        await self.may_stop.wait()
        self.alive = 0


supervisors: list[Supervisor] = []
start_errors: list[BaseException] = []


class OfTheUser(Uniform):
    """A selector that runs in samplers only."""


class Scene:
    """A ring, a stream of batches with room for three (and two slots more), and the sampler's
    hand."""

    def __init__(
        self,
        min_size: int = 1,
        timeout_s: float | None = None,
        selector: Uniform | None = None,
        limiter: MinSize | None = None,
        inline_sampling: bool = True,
    ) -> None:
        self.ring = Ring(SPEC, 4, 8)
        self.registry = WriterRegistry()
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), self.registry)
        self.supply = ProducerState(2, False, "last row 0.2 s ago", None)
        self.producers: Callable[[], ProducerState] = lambda: self.supply
        self.is_closed = False
        config = StreamConfig(
            item=Rows(),
            selector=bound(OfTheUser() if selector is None else selector),
            transform=None,
            limiter=MinSize(min_size) if limiter is None else limiter,
            batch_size=4,
            samplers=1,
            prefetch=3,
            inline_sampling=inline_sampling,
            timeout_s=timeout_s,
            supervision=SupervisorOptions(0, 1.0, 1.0),
            number=3,
            seeds=lambda index, run: np.random.SeedSequence(index),
            new_batch_plan=None,
        )
        host = StreamHost(
            self.ring,
            self.registry,
            Admission(WriterRegistry()),
            lambda: self.producers(),
            lambda: self.producers().failure,
            self.check_open,
        )
        self.stream = Stream(host, config)
        self.batches = Batches(self.stream)
        self.filled = 0

    def check_open(self) -> None:
        """What the replay says."""
        if self.is_closed:
            raise Closed("this replay")

    @property
    def slots(self) -> Slots:
        """The slots, once entered."""
        return self.queue.slots

    @property
    def queue(self) -> PrefetchQueue:
        """What there is once entered."""
        assert self.stream._queue is not None
        return self.stream._queue

    @property
    def supervisor(self) -> Supervisor:
        """The supervisor of these batches."""
        return supervisors[-1]

    def write(self, rows: int) -> None:
        """Rows come in."""
        self.writer.write({"number": np.zeros(rows, np.int64)}, 0, rows)
        self.stream.on_rows()

    def fill(self, count: int = 1) -> None:
        """Sampler 0 leaves so many batches; each says its number in every element."""
        for _ in range(count):
            slot = self.slots.lease(0)
            assert slot is not None
            self.filled += 1
            self.slots.batch(slot).fields["number"][:] = self.filled
            self.slots.publish(slot)

    async def close(self) -> None:
        """Give everything back."""
        await self.batches.close()
        self.writer.close()
        self.ring.segment.close()


def number_of(batch: Batch) -> int:
    """What all elements of that batch say."""
    (number,) = set(batch["number"].tolist())
    return int(number)


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child is started, and who waits never looks again by itself."""
    monkeypatch.setattr(queue_module, "Supervisor", Supervisor)
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 1_000.0)
    supervisors.clear()
    start_errors.clear()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """An open stream of a ring with rows, and no batch yet."""
    scene = Scene()
    scene.write(8)
    await scene.batches.__aenter__()
    yield scene
    await scene.close()


async def waiting(scene: Scene) -> asyncio.Task[Batch]:
    """A learner that sleeps because no batch is ready."""
    task = asyncio.create_task(scene.batches.get())
    await until(lambda: scene.slots._segment.arrays["words"][2, 0] > 0)
    await ticks(3)
    assert not task.done()
    return task


# Batch after batch.


async def test_batches_come_in_turn_and_the_last_one_is_given_back(scene: Scene) -> None:
    """Each is valid until the next step of the loop, and its slot is the sampler's again after
    it."""
    scene.fill(5)
    seen, last = [], None
    async for batch in scene.batches:
        if last is not None:
            assert last.is_released
            with pytest.raises(BatchReleased):
                _ = last["number"]
        assert scene.slots.count(LENT) == 1
        seen.append(number_of(batch))
        last = batch
        if len(seen) == 3:
            scene.fill(2)
        if len(seen) == 7:
            break
    assert sorted(seen) == list(range(1, 8))
    assert seen[:5] == [1, 2, 3, 4, 5]


async def test_a_batch_released_early_is_not_released_again(scene: Scene) -> None:
    """Its slot may be lent to somebody else by then."""
    scene.fill(1)
    batch = await anext(scene.batches)
    batch.release()
    assert scene.slots.count(FREE) == 5
    scene.fill(5)
    other = await scene.batches.get()
    again = await anext(scene.batches)
    assert scene.slots.count(LENT) == 2
    assert not other.is_released and not again.is_released


async def test_batches_taken_with_get_stay_until_they_are_released(scene: Scene) -> None:
    """Several at once, in any order; while one is held the queue has one slot less."""
    scene.fill(5)
    held = [await scene.batches.get() for _ in range(5)]
    assert [number_of(batch) for batch in held] == [1, 2, 3, 4, 5]
    assert scene.slots.count(LENT) == 5
    with pytest.raises(WaitTimeout, match=r"release\(\) batches"):
        await scene.batches.get(timeout_s=0.01)
    held[3].release()
    scene.fill(1)
    assert number_of(await scene.batches.get()) == 6
    assert [number_of(held[k]) for k in (0, 1, 2, 4)] == [1, 2, 3, 5]


async def test_get_is_not_named_where_nothing_was_taken_with_it(scene: Scene) -> None:
    """The batch of the loop is no reason to complain; one that is held beside it is."""
    scene.fill(2)
    await anext(scene.batches)
    with pytest.raises(WaitTimeout, match="learner waits for a batch") as waited:
        held = await scene.batches.get()
        held.release()
        await scene.batches.get(timeout_s=0.01)
    assert "get()" not in waited.value.reason
    scene.fill(1)
    held = await scene.batches.get()
    with pytest.raises(WaitTimeout, match=r"release\(\) batches"):
        await scene.batches.get(timeout_s=0.01)
    held.release()


async def test_a_ready_batch_is_taken_without_suspending(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand-over and no more, between two turns of the loop."""
    monkeypatch.setattr(queue_module, "_TURN_S", 1_000.0)
    scene.fill(2)
    first = await scene.batches.get()
    with pytest.raises(StopIteration) as stopped:
        scene.batches.get().send(None)
    assert number_of(stopped.value.value) == 2
    assert number_of(first) == 1


async def test_a_learner_that_never_waits_lets_its_loop_turn(scene: Scene) -> None:
    """Restarts, reports and the user's other tasks need it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 20
    with other_task() as turns:
        while turns() < 5 and loop.time() < end:
            scene.fill(1)
            (await scene.batches.get()).release()
    assert turns() >= 5
    assert scene.batches.statistics().learner_waits == 0


# Waiting.


async def test_a_waiting_learner_gets_the_next_batch(scene: Scene) -> None:
    """The sampler's ring ends the wait, which is counted and timed."""
    task = await waiting(scene)
    scene.fill(1)
    assert number_of(await task) == 1
    record = scene.batches.statistics()
    assert (record.learner_waits, record.batches_delivered) == (1, 1)
    assert 0 < record.peak_learner_wait_s == record.learner_waited_s


async def test_waits_add_up_and_the_longest_is_kept(scene: Scene) -> None:
    """Totals and the peak, over several waits."""
    for _ in range(3):
        task = await waiting(scene)
        scene.fill(1)
        (await task).release()
    record = scene.batches.statistics()
    assert record.learner_waits == 3
    assert (
        record.peak_learner_wait_s < record.learner_waited_s < 3 * record.peak_learner_wait_s + 1e-9
    )


# What the learner fills itself. Of the reader and its slot: `test_inline_sampler`.


@pytest.fixture
async def helped() -> AsyncIterator[Scene]:
    """As `scene`, and the learner may fill batches. Rows say 0; the sampler has filled one, which
    was taken."""
    scene = Scene(selector=Uniform())
    scene.write(8)
    async with scene.batches:
        scene.fill(1)
        (await scene.batches.get()).release()
        yield scene
    await scene.close()


async def test_a_learner_that_finds_no_batch_fills_one(helped: Scene) -> None:
    """At once, without suspending; it counts as a wait, and as a batch. What is ready comes
    first."""
    for turn in range(1, 4):
        batch = await anext(helped.batches)
        assert (
            number_of(batch) == 0
            and (batch.indices < 8).all()
            and (batch.probabilities == 1 / 8).all()
        )
        record = helped.batches.statistics()
        assert (record.filled_by_learner, record.learner_waits, record.batches_delivered) == (
            turn,
            turn,
            1 + turn,
        )
        assert (record.lent, record.ready, record.slots) == (1, 0, 6)
    assert 0 < record.peak_learner_wait_s < record.learner_waited_s
    helped.fill(2)
    assert [number_of(await anext(helped.batches)) for _ in range(3)] == [2, 3, 0]
    assert helped.batches.statistics().filled_by_learner == 4


async def test_it_suspends_for_nobody(helped: Scene) -> None:
    """A batch of its own is got between two turns of the loop; a second one, while it holds that,
    is waited for."""
    helped.queue.turns.period_s = 1_000.0
    with pytest.raises(StopIteration) as stopped:
        helped.batches.get().send(None)
    own = stopped.value.value
    with pytest.raises(WaitTimeout):
        await helped.batches.get(timeout_s=0.01)
    task = await waiting(helped)
    helped.fill(1)
    assert number_of(await task) == 2 and number_of(own) == 0
    own.release()
    assert number_of(await helped.batches.get()) == 0


async def test_it_fills_none_of_its_own_where_the_samplers_are_gone(helped: Scene) -> None:
    """Or it would go on for days at half the speed, and nobody would know."""
    helped.supervisor.alive, helped.supervisor.failures = (
        0,
        [SamplerFailed("sampler 0", 1, 1, 0, "why")],
    )
    with pytest.raises(SamplerFailed, match="why"):
        await helped.batches.get(timeout_s=20)
    assert helped.batches.statistics().filled_by_learner == 0


async def test_it_fills_none_of_its_own_where_it_may_not() -> None:
    """Told so by `inline_sampling`, or while the stream is being closed: then it waits for the
    samplers."""
    scene = Scene(selector=Uniform(), inline_sampling=False)
    scene.write(8)
    async with scene.batches:
        scene.fill(1)
        (await scene.batches.get()).release()
        assert scene.batches.statistics().slots == 5
        assert number_of(await _next_filled(scene)) == 2
    await scene.close()
    scene = Scene(selector=Uniform())
    scene.write(8)
    await scene.batches.__aenter__()
    scene.fill(1)
    (await scene.batches.get()).release()
    scene.supervisor.may_stop.clear()
    closing = asyncio.create_task(scene.batches.close())
    await ticks(3)
    assert number_of(await _next_filled(scene)) == 2
    scene.supervisor.may_stop.set()
    await closing
    await scene.close()


async def _next_filled(scene: Scene) -> Batch:
    """What a learner gets that waits, and then a sampler fills one."""
    task = await waiting(scene)
    scene.fill(1)
    return await task


async def test_a_learner_that_waits_fills_one_as_soon_as_it_may(helped: Scene) -> None:
    """When its own slot is given back, by another task, it need not wait for a sampler any more."""
    own = await helped.batches.get()
    task = await waiting(helped)
    own.release()
    async with asyncio.timeout(20):
        assert number_of(await task) == 0
    assert helped.batches.statistics().filled_by_learner == 2
    assert helped.batches.statistics().learner_waits == 2


async def test_a_learner_that_fills_its_batches_lets_its_loop_turn_often(
    helped: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have slept otherwise: other tasks of its loop get a turn every millisecond, not only
    every 20."""
    loop = asyncio.get_running_loop()
    helped.queue.turns.period_s = 1_000.0
    with other_task() as turns:
        deadline = loop.time() + 20
        while turns() < 5:
            assert loop.time() < deadline
            (await helped.batches.get()).release()
        monkeypatch.setattr(queue_module, "_OWN_TURN_S", 1_000.0)
        (await helped.batches.get()).release()
        seen, end = turns(), loop.time() + 0.05
        while loop.time() < end:
            (await helped.batches.get()).release()
        assert turns() == seen


async def test_a_learner_that_finds_batches_ready_again_lets_its_loop_turn_seldom_again(
    helped: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first one on that was ready."""
    monkeypatch.setattr(queue_module, "_OWN_TURN_S", 0.0)
    monkeypatch.setattr(queue_module, "_TURN_S", 1_000.0)
    (await helped.batches.get()).release()
    assert number_of(await helped.batches.get()) == 0, "none is ready"
    helped.fill(2)
    with other_task() as turns:
        await asyncio.sleep(0)  # it begins
        assert number_of(await helped.batches.get()) == 2
        assert turns() == 1
        assert number_of(await helped.batches.get()) == 3
        assert turns() == 1


async def test_its_own_draws_are_no_samplers_draws(helped: Scene) -> None:
    """Another generator than that of any sampler."""
    own = await helped.batches.get()
    for index in range(2):
        seeds = np.random.default_rng(np.random.SeedSequence(index))
        others = Reader(
            helped.ring, helped.ring.block_locks(), Rows(), bound(Uniform()), seeds, most_at_once=1
        )
        out = BatchArrays.empty(4, others.fields)
        assert others.fill(out)
        assert (out.indices.tolist() == own.indices.tolist()) is (index == 1), (
            "one sampler, which is number 0"
        )


async def test_rows_that_it_copied_in_vain_are_counted(helped: Scene) -> None:
    """With those of the samplers."""
    assert helped.queue._inline is not None
    helped.queue._inline._reader.rows_redrawn = 5
    helped.slots.board._redrawn[0][0] = 2
    assert helped.batches.statistics().rows_redrawn == 7


async def test_a_schedule_that_raises_leaves_its_slot_free(
    helped: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does with a sampler's."""

    def broken(batches: int) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(helped.queue._selector, "on_delivered", broken)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await helped.batches.get()
            assert helped.slots.count(LENT) == 0
    assert number_of(await helped.batches.get()) == 0


async def test_locks_that_cannot_be_opened_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the learner's own reader are opened after the slots."""
    scene = Scene(selector=Uniform())
    before = open_descriptors()
    monkeypatch.setattr(queue_module, "InlineSampler", FailsAt(queue_module.InlineSampler, 1))
    with pytest.raises(OSError):
        await scene.batches.__aenter__()
    assert open_descriptors() == before + 1, "the mapping of the slots, which goes with the stream"
    monkeypatch.undo()
    await scene.close()


async def test_closing_gives_back_the_locks_of_its_reader() -> None:
    """And all the rest."""
    scene = Scene(selector=Uniform())
    before = open_descriptors()
    async with scene.batches:
        assert open_descriptors() > before + 1
    assert open_descriptors() == before + 1, "the mapping of the slots, which goes with the stream"
    await scene.close()


async def test_a_limiter_holds_inline_batches_too() -> None:
    """And counts them."""
    limiter = SamplesPerInsert(1.0, min_size_to_sample=8, error_buffer=12)
    scene = Scene(selector=Uniform(), limiter=limiter)
    scene.write(8)
    async with scene.batches:
        scene.fill(1)
        seen = [number_of(await scene.batches.get(timeout_s=20))]
        while (
            seen_limiter := scene.batches.statistics().limiter
        ) and not seen_limiter.holds_learner:
            batch = await scene.batches.get(timeout_s=20)
            seen.append(number_of(batch))
            batch.release()
        with pytest.raises(WaitTimeout, match="steps are missing"):
            await scene.batches.get(timeout_s=0.01)
        assert seen == [1, 0, 0]
        assert seen_limiter is not None and seen_limiter.samples == 12
    await scene.close()


async def test_taking_cancelled_at_any_tick_takes_no_batch() -> None:
    """Whether one is ready or not: after a cancellation as many are ready as before, and the next
    call gets one."""
    for ready in (0, 1):
        scenes: list[Scene] = []

        async def opened() -> Scene:
            scene = Scene()
            scene.write(8)
            await scene.batches.__aenter__()
            return scene

        pool = [await opened() for _ in range(12)]
        for scene in pool:
            scene.fill(ready)

        def build(pool: list[Scene] = pool, scenes: list[Scene] = scenes) -> Scene:
            scenes.append(pool.pop())
            return scenes[-1]

        taken: list[Batch] = []

        async def act(scene: Scene, taken: list[Batch] = taken) -> None:
            taken.append(await scene.batches.get())

        def check(scene: Scene, taken: list[Batch] = taken, ready: int = ready) -> None:
            assert scene.slots.count(READY) + len(taken) == ready
            assert scene.slots.count(LENT) == len(taken)

        cancelled = await cancel_at_every_tick(build, act, check)
        assert cancelled == 12 if ready == 0 else cancelled >= 1
        for scene in scenes:
            if not taken or scene is not scenes[-1]:
                scene.fill(1 - scene.slots.count(READY))
                (await scene.batches.get()).release()
            await scene.close()
        for scene in pool:
            await scene.close()


@pytest.mark.parametrize("how", ["next", "get"])
async def test_no_batch_in_time_is_a_timeout_with_the_reason(how: str) -> None:
    """The state of the slots and of the samplers is in the message; a later batch can still be
    taken."""
    scene = Scene(timeout_s=0.02)
    scene.write(8)
    async with scene.batches as batches:
        with pytest.raises(
            WaitTimeout,
            match=r"learner waits for a batch: .*fffff.*1 of 1 "
            r"samplers alive",
        ):
            await (anext(batches) if how == "next" else batches.get(0.02))
        scene.fill(1)
        assert number_of(await anext(batches)) == 1
    await scene.close()


async def test_a_learner_that_waits_for_rows_says_how_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for whom, in numbers: so many of so many rows, actors alive, how old the last row
    is."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 0.005)
    monkeypatch.setattr(waiter_module, "WARN_AFTER_S", 0.01)
    scene = Scene(min_size=20)
    scene.write(8)
    async with scene.batches as batches:
        with caplog.at_level(logging.WARNING, "areplay._processes.waiter"):
            task = asyncio.create_task(batches.get())
            await until(lambda: bool(caplog.records))
        expected = (
            "learner waits: 8 of 20 rows needed by min_size_to_sample; 2 actors alive, "
            "last row 0.2 s ago"
        )
        assert expected in caplog.text
        scene.write(12)
        scene.fill(1)
        assert number_of(await task) == 1
    await scene.close()


# The gate.


@pytest.mark.parametrize("min_size", [1, 9, 20])
async def test_the_gate_opens_with_the_row_that_is_needed(min_size: int) -> None:
    """Not before; rows may come from another thread, and it stays open when rows go."""
    scene = Scene(min_size=min_size)
    async with scene.batches:
        for count in range(1, min_size + 1):
            thread = threading.Thread(target=scene.write, args=(1,))
            thread.start()
            thread.join()
            assert scene.slots.board.is_open == (count == min_size)
        scene.ring.rows_now[0] = 0
        scene.stream.on_rows()
        assert scene.slots.board.is_open
    await scene.close()


async def test_a_full_ring_opens_the_gate_below_the_number() -> None:
    """With several streams the open blocks keep a full ring below its capacity: it would stay shut
    for ever."""
    scene = Scene(min_size=32)
    async with scene.batches:
        for _ in range(4):
            scene.write(3)
            assert not scene.slots.board.is_open
            scene.writer.close_block()
        scene.write(1)
        assert scene.ring.rows_now[0] < 32
        assert scene.slots.board.is_open
    await scene.close()


async def test_rows_that_are_there_already_open_the_gate_at_once() -> None:
    """A stream that is opened late need not wait for a new row."""
    scene = Scene(min_size=5)
    scene.write(5)
    async with scene.batches:
        assert scene.slots.board.is_open
    await scene.close()


async def test_a_resumed_stream_does_not_wait_for_its_first_batch_again() -> None:
    """Its limiter may let no row in before a batch is taken, and fewer rows may be there than
    before."""
    for samples, is_open in ((12, True), (0, False)):
        scene = Scene(limiter=SamplesPerInsert(1.0, 20, 8.0))
        scene.write(8)
        limiter = {
            "samples_per_insert": 1.0,
            "min_size_to_sample": 20,
            "inserts": 28,
            "samples": samples,
            "error": 8.0,
        }
        scene.stream.resume(StreamState(scene.stream.what, 3, limiter, None))
        async with scene.batches:
            assert scene.slots.board.is_open == is_open
        await scene.close()


async def test_a_full_ring_of_which_nothing_may_be_overwritten_opens_the_gate() -> None:
    """No more rows will be there, whichever stream keeps its blocks."""
    scene = Scene(min_size=32)
    scene.write(30)
    async with scene.batches as batches:
        task = asyncio.create_task(batches.get())
        await ticks(5)
        assert not scene.slots.board.is_open
        scene.supply = ProducerState(2, False, "", None, is_stuck=lambda: True)
        scene.stream.look_again()
        await until(lambda: scene.slots.board.is_open)
        scene.fill(1)
        await task
    await scene.close()


async def test_a_standstill_is_told_after_one_more_look() -> None:
    """With what bars the rows; not if rows came in meanwhile that it needs."""
    for comes_in in (False, True):
        scene = Scene(min_size=20)
        scene.write(8)

        def why(scene: Scene = scene, comes_in: bool = comes_in) -> str:
            if comes_in:
                scene.writer.write({"number": np.zeros(12, np.int64)}, 0, 12)
            scene.supply = ProducerState(2, False, "", None)
            return "nobody lets any in"

        scene.supply = ProducerState(2, False, "", None, why_barred=why)
        async with scene.batches as batches:
            if comes_in:
                task = asyncio.create_task(batches.get())
                await until(lambda scene=scene: scene.slots.board.is_open)  # type: ignore[misc]
                scene.fill(1)
                await task
            else:
                with pytest.raises(
                    Stalled,
                    match=r"8 of 20 rows.*no more rows can come, since "
                    r"nobody lets any in",
                ):
                    await batches.get()
        await scene.close()


async def test_only_a_stream_with_a_batch_may_let_rows_in() -> None:
    """One that holds writers up: and also while it closes, since then it holds nobody up."""
    plain = Scene()
    plain.write(8)
    async with plain.batches:
        assert not plain.stream.may_let_rows_in, "it holds nobody up"
    await plain.close()
    limiter = SamplesPerInsert(1.0, 8, 8.0)
    scene = Scene(limiter=limiter)
    assert not scene.stream.may_let_rows_in
    async with scene.batches as batches:
        assert not scene.stream.may_let_rows_in, "it waits for rows"
        assert isinstance(scene.queue.pacing, LimitedPacing)
        scene.queue.pacing.rate.insert(8)
        scene.write(8)
        assert scene.stream.may_let_rows_in
        scene.fill(1)
        slot = scene.slots.lease(0)
        assert slot is not None
        scene.slots.abandon(slot, scene.ring.rows_inserted[0])
        assert scene.stream.may_let_rows_in, "a batch is left"
        (await batches.get()).release()
        assert not scene.stream.may_let_rows_in
        scene.supervisor.may_stop.clear()
        closing = asyncio.create_task(batches.close())
        await until(lambda: scene.stream.may_let_rows_in)
        scene.supervisor.may_stop.set()
        await closing
        assert not scene.stream.may_let_rows_in
    await scene.close()


async def test_a_stream_that_only_begins_may_let_rows_in() -> None:
    """Its plan keeps all blocks for the moment; whether it has a batch is not known yet."""
    scene = Scene(min_size=20)
    scene.write(8)
    async with scene.batches:
        assert not scene.queue.could_take, "it waits for rows"
        scene.queue.pacing.is_beginning = True
        assert scene.queue.could_take
    await scene.close()


# No batch can come any more.


async def test_without_any_producer_left_a_learner_is_stalled_and_told_why() -> None:
    """Before the gate is open: no rows can come; the failure of an actor is the cause."""
    scene = Scene(min_size=20)
    scene.write(8)
    failure = ValueError("an actor's traceback")
    async with scene.batches:
        task = await waiting(scene)
        scene.supply = ProducerState(0, True, "no row from them yet", None)
        scene.stream.look_again()
        with pytest.raises(Stalled, match=r"8 of 20 rows .*no more rows can come$"):
            await task
        scene.supply = ProducerState(1, False, "", failure)
        with pytest.raises(Stalled, match="an actor's traceback") as caught:
            await scene.batches.get()
        assert caught.value.__cause__ is failure
    await scene.close()


async def test_rows_that_come_in_between_two_looks_keep_it_from_giving_up() -> None:
    """The last rows of actors that are gone, written after the learner has seen that there are too
    few, and before it asks whether there will be more."""
    scene = Scene(min_size=20)
    scene.write(8)

    def last_rows() -> ProducerState:
        if scene.ring.rows_inserted[0] < 20:
            scene.writer.write({"number": np.zeros(12, np.int64)}, 0, 12)
        return ProducerState(0, True, "last row 0.0 s ago", None)

    async with scene.batches:
        scene.producers = last_rows
        task = await waiting(scene)
        scene.fill()
        assert number_of(await task) == 1
    await scene.close()


async def test_with_the_gate_open_batches_go_on_without_producers(scene: Scene) -> None:
    """What is there can be sampled for ever."""
    scene.supply = ProducerState(0, True, "", ValueError("all actors failed"))
    task = await waiting(scene)
    scene.stream.look_again()
    await ticks(5)
    assert not task.done()
    scene.fill(1)
    await task


async def test_failed_samplers_end_the_wait_with_their_error(scene: Scene) -> None:
    """When all are gone for good, and no batch is ready any more."""
    scene.fill(1)
    failure = SamplerFailed("sampler 0", 1, 1, 3, "its traceback")
    scene.supervisor.alive, scene.supervisor.failures = 0, [failure]
    assert number_of(await scene.batches.get()) == 1, "what is ready is still good"
    with pytest.raises(SamplerFailed, match="its traceback"):
        await scene.batches.get()


async def test_a_failure_while_the_learner_sleeps_wakes_it(scene: Scene) -> None:
    """The supervisor says that something has changed."""
    task = await waiting(scene)
    scene.supervisor.alive, scene.supervisor.failures = (
        0,
        [SamplerFailed("sampler 0", 1, 1, 3, "its traceback")],
    )
    scene.supervisor.on_change()
    with pytest.raises(SamplerFailed):
        await task


async def test_a_dead_samplers_slot_is_recovered(scene: Scene) -> None:
    """Before its successor starts."""
    assert scene.slots.lease(0) is not None
    await scene.supervisor.after_exit(0)
    assert scene.slots.count(FREE) == 5


# Opening and closing.


async def test_closing_releases_the_current_batch_and_keeps_those_of_get(scene: Scene) -> None:
    """The loop's batch is gone; what was taken with get() stays readable, and can be released as
    ever."""
    scene.fill(2)
    kept = await scene.batches.get()
    current = await anext(scene.batches)
    await scene.batches.close()
    assert current.is_released
    assert number_of(kept) == 1
    kept.release()
    for again in (scene.batches.get, scene.batches.__anext__):
        with pytest.raises(Closed, match="stream of batches"):
            await again()
    assert scene.stream.is_closed
    scene.stream.look_again()
    scene.stream.on_rows()


async def test_whoever_waits_when_it_is_closed_gets_closed(scene: Scene) -> None:
    """Not a timeout, and not for ever."""
    task = await waiting(scene)
    await scene.batches.close()
    with pytest.raises(Closed):
        await task


async def test_closing_is_done_once_and_can_be_cancelled_only_after_it(scene: Scene) -> None:
    """Several closers share one closing."""
    scene.supervisor.may_stop.clear()
    tasks = [asyncio.create_task(scene.batches.close()) for _ in range(3)]
    await ticks(4)
    tasks[0].cancel()
    await ticks(4)
    assert not any(task.done() for task in tasks)
    scene.supervisor.may_stop.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]
    assert scene.supervisor.steps == ["start", "stop"]
    assert scene.slots.board.is_stopping, "the samplers were asked"


async def test_a_stream_is_opened_once_and_only_in_an_open_replay(scene: Scene) -> None:
    """Neither twice, nor after closing, nor after the replay's end."""
    with pytest.raises(Closed, match="opened before"):
        await scene.batches.__aenter__()
    await scene.batches.close()
    with pytest.raises(Closed, match="opened before"):
        await scene.batches.__aenter__()
    other = Scene()
    other.is_closed = True
    with pytest.raises(Closed, match="this replay"):
        await other.batches.__aenter__()
    await other.close()


async def test_samplers_that_cannot_start_leave_nothing() -> None:
    """Their error is raised, the supervisor is stopped, and every descriptor is back."""
    before = memory_descriptors()
    scene = Scene()
    start_errors.append(SamplerFailed("sampler 0", 1, 1, 0, "no such module"))
    with pytest.raises(SamplerFailed, match="no such module"):
        await scene.batches.__aenter__()
    assert supervisors[-1].steps == ["start", "stop"]
    with pytest.raises(Closed):
        await scene.batches.get()
    await scene.close()
    del scene
    supervisors.clear()
    await until(lambda: memory_descriptors() <= before)


async def test_too_few_descriptors_are_noticed_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No slot, no supervisor, no child."""

    def refuse(what: str, needed: int) -> None:
        assert what == "1 samplers" and needed > 3
        raise DescriptorLimitExceeded(what, needed, 2, 100)

    monkeypatch.setattr(stream_module, "check_descriptors", refuse)
    scene = Scene()
    with pytest.raises(DescriptorLimitExceeded):
        await scene.batches.__aenter__()
    assert supervisors == []
    await scene.close()


async def test_opening_cancelled_at_any_tick_leaves_nothing() -> None:
    """The supervisor is stopped if it was there, and the stream is closed."""
    before = memory_descriptors()
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        return scenes[-1]

    def check(scene: Scene) -> None:
        if not scene.stream.is_closed:
            supervisor: Any = None if scene.stream._queue is None else scene.queue.supervisor
            assert supervisor is None or supervisor.steps == ["start"], (
                "never begun, or open before it could be cancelled"
            )

    assert await cancel_at_every_tick(build, lambda scene: scene.batches.__aenter__(), check) > 1
    for scene in scenes:
        await scene.close()
    assert all(
        supervisor.steps == ["start", "stop"] or supervisor.steps == ["stop"]
        for supervisor in supervisors
    )
    scenes.clear()
    supervisors.clear()
    del scene
    await until(lambda: memory_descriptors() <= before)


async def test_statistics_tell_the_state_of_the_queue(scene: Scene) -> None:
    """Ready and lent batches, the fill as a part of the capacity and never above 1; zero when it is
    closed."""
    record = scene.batches.statistics()
    assert (record.batch_size, record.prefetch, record.ready, record.fill, record.lent) == (
        4,
        3,
        0,
        0.0,
        0,
    )
    scene.fill(2)
    batch = await scene.batches.get()
    record = scene.batches.statistics()
    assert (record.ready, record.fill, record.lent, record.batches_delivered) == (1, 1 / 3, 1, 1)
    scene.fill(3)
    assert scene.batches.statistics().fill == 1.0
    batch.release()
    scene.fill(1)
    assert (scene.batches.statistics().ready, scene.batches.statistics().fill) == (5, 1.0)
    await scene.batches.close()
    record = scene.batches.statistics()
    assert (record.ready, record.fill, record.lent) == (0, 0.0, 0)


async def test_a_half_filled_batch_of_a_dead_sampler_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its slot is free again, the warning says what was lost; one that died between two batches has
    lost nothing."""
    scene = Scene()
    async with scene.batches as batches:
        scene.write(10)
        await scene.supervisor.after_exit(0)
        assert caplog.messages == []
        assert scene.slots.lease(0) is not None
        (record,) = [batches.statistics()]
        assert (record.filling, record.slots, record.number) == (1, 5, 3)
        await scene.supervisor.after_exit(0)
        assert caplog.messages == [
            "sampler 0 left a batch half filled; it is not delivered, its slot is free again"
        ]
        assert batches.statistics().filling == 0
    await scene.close()


async def test_a_wait_counts_while_it_lasts() -> None:
    """Whoever looks at a learner that has waited for long, and waits still, sees it in the sum and
    in the maximum."""
    scene = Scene()
    async with scene.batches as batches:
        waiting = asyncio.ensure_future(anext(batches))
        await until(lambda: batches.statistics().learner_waited_s > 0.02)
        seen = batches.statistics()
        assert (seen.learner_waits, len(scene.stream.waits())) == (1, 1)
        assert seen.peak_learner_wait_s >= 0.02
        scene.write(10)
        scene.fill()
        await waiting
        after = batches.statistics()
        assert after.learner_waited_s == after.peak_learner_wait_s >= seen.learner_waited_s
        assert scene.stream.waits() == []
        assert batches.statistics() == after
    await scene.close()
