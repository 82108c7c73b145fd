"""Tests of `_ingest.local_writer`: what the owner's process writes, and how it waits until it
may."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from kit import cancel_at_every_tick, memory_descriptors, ticks, until

from areplay._base.arrays import Mask
from areplay._ingest import local_writer as local_writer_module
from areplay._ingest.admission import Admission
from areplay._ingest.destination import Destination
from areplay._ingest.local_writer import LocalWriter
from areplay._ingest.rate_controller import RateController
from areplay._processes import waiter as waiter_module
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import Closed, ResourceUnavailable, SpecMismatch, Stalled
from areplay.limiters import SamplesPerInsert
from areplay.spec import Spec

PLAIN = Spec(number=((), "int64"), pair=((2,), "float32"))
STEPS = Spec.steps(obs=((), "float32"), action=((), "int64"))


class StreamState:
    """Pins as many places as the test says."""

    name = "Fifo()"

    def __init__(self, blocks: int) -> None:
        self.places = np.zeros(blocks, np.bool_)

    def pinned(self) -> Mask:
        """As of `BlockPins`."""
        return self.places


class Scene:
    """A ring of 4 blocks of 8 rows, the owner's rows, and perhaps a limiter: ratio 1, batches of 2,
    a buffer of 4."""

    def __init__(self, spec: Spec = PLAIN, *, limits: bool = True, keeps: bool = False) -> None:
        self.ring, self.registry, self.admission = (
            Ring(spec, 4, 8),
            (registry := WriterRegistry()),
            Admission(registry),
        )
        self.told = 0
        self.limiter = RateController(SamplesPerInsert(1.0, 1, 4.0), 2, 0, nullcontext())
        if limits:
            self.admission.add(self.limiter)
        self.keeper = StreamState(4)
        if keeps:
            self.registry.add_pins(self.keeper)
        destination = Destination(self.ring, self.registry, self.admission, self.on_rows)
        self.why_hopeless: Callable[[], str] = lambda: ""
        self.own = LocalWriter(destination, lambda: self.why_hopeless())
        self.is_closed = False

    def on_rows(self) -> None:
        """Called after rows were written."""
        self.told += 1

    @property
    def inserted(self) -> int:
        """Rows in the ring."""
        return int(self.ring.rows_inserted[0])

    def numbers(self, column: str = "number") -> list[int]:
        """What is in the ring, in the order in which it was written."""
        serials, counts = self.ring.occupied()
        found: list[int] = []
        for serial, count in sorted(zip(serials.tolist(), counts.tolist(), strict=True)):
            found += self.ring.columns[column][
                self.ring.positions(np.arange(serial * 8, serial * 8 + count))
            ].tolist()
        return found

    async def fill(self) -> None:
        """As many rows as the limiter lets pass."""
        await self.own.extend(columns(0, 5), None)
        assert self.limiter.room == 0

    def take_batch(self) -> None:
        """As the learner does: room for two."""
        assert self.limiter.can_sample
        self.limiter.sample()
        self.admission.notify()

    def untouched(self) -> tuple[Any, ...]:
        """What a call that did not succeed leaves as it was."""
        return (
            self.inserted,
            self.limiter.statistics(),
            self.registry.reserved,
            self.ring.next_serial[0],
        )

    async def close(self) -> None:
        """Everything is given back."""
        if not self.is_closed:
            self.is_closed = True
            await self.own.close()
            self.admission.close()
            self.ring.segment.close()


def row(number: int) -> dict[str, Any]:
    """A row that says its number in every field."""
    return {"number": number, "pair": np.full(2, number, np.float32)}


def columns(first: int, rows: int) -> dict[str, Any]:
    """Several of them."""
    numbers = np.arange(first, first + rows)
    return {"number": numbers, "pair": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}


def step(number: int, *, ends: bool = False) -> dict[str, Any]:
    """A step of an episode, the last one with its final observation."""
    given = {"obs": number, "action": 0, "reward": 0.0, "terminated": ends, "truncated": False}
    return given | ({"next_obs": number + 1} if ends else {})


@pytest.fixture(autouse=True)
def looks_only_when_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits never looks again by itself: what ends a wait must be a ring."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 1_000.0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """With a limiter."""
    scene = Scene()
    yield scene
    await scene.close()


async def asleep(task: asyncio.Task[Any], scene: Scene) -> None:
    """Return when that call waits for admission."""
    await until(lambda: bool(scene.own.waits()) and scene.admission.owner_bell._word[0] > 0)
    await ticks(3)
    assert not task.done()


async def test_rows_are_written_at_once_while_there_is_room(scene: Scene) -> None:
    """Without suspending; each counts, and is announced."""
    with pytest.raises(StopIteration) as stopped:
        scene.own.add(row(0), None).send(None)
    assert stopped.value.value == 0
    assert not scene.own.waits()
    with pytest.raises(StopIteration) as stopped:
        scene.own.extend(columns(1, 4), None).send(None)
    assert stopped.value.value.tolist() == [1, 2, 3, 4]
    assert (scene.numbers(), scene.limiter.statistics().inserts, scene.told) == (
        [0, 1, 2, 3, 4],
        5,
        2,
    )
    assert scene.own.any_written


async def test_without_limiter_and_keeper_nothing_is_counted() -> None:
    """Any number of rows, as many as fit."""
    scene = Scene(limits=False)
    await scene.own.extend(columns(0, 32), None)
    await scene.own.add(row(32), None)
    assert scene.inserted == 33 and scene.limiter.statistics().inserts == 0
    with pytest.raises(ValueError, match=r"at most capacity_rows = 32 rows, got 33"):
        await scene.own.extend(columns(0, 33), None)
    assert scene.inserted == 33
    await scene.close()


async def test_an_add_waits_until_the_learner_takes_a_batch(scene: Scene) -> None:
    """It says so meanwhile, with the numbers."""
    await scene.fill()
    task = asyncio.create_task(scene.own.add(row(5), None))
    await asleep(task, scene)
    (wait,) = scene.own.waits()
    assert wait.who == "owner" and 0 < wait.waited_s < 20
    assert wait.reason == (
        "Replay.add or extend waits: rows may not be written yet: SamplesPerInsert(1, "
        "min_size_to_sample=1, error_buffer=4): 5 steps inserted, 0 items handed to the learner, "
        "error 4; the learner has to take a batch"
    )
    assert scene.inserted == 5
    scene.take_batch()
    assert await task == 5
    assert scene.own.waits() == []
    assert scene.numbers() == list(range(6))


async def test_an_extend_waits_until_there_is_room_for_all_of_it(scene: Scene) -> None:
    """Not a part of it is written before."""
    await scene.fill()
    task = asyncio.create_task(scene.own.extend(columns(5, 3), None))
    await asleep(task, scene)
    scene.take_batch()
    await ticks(10)
    assert not task.done() and scene.limiter.room == 2 and scene.inserted == 5
    scene.take_batch()
    assert (await task).tolist() == [5, 6, 7]
    assert (scene.numbers(), scene.limiter.room) == (list(range(8)), 1)


async def test_calls_are_served_in_their_order(scene: Scene) -> None:
    """One that would fit does not overtake one that waits."""
    await scene.fill()
    scene.take_batch()
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(scene.own.extend(columns(5, 3), None))]
    await asleep(tasks[0], scene)
    tasks += [asyncio.create_task(scene.own.add(row(number), None)) for number in (8, 9)]
    await ticks(10)
    assert scene.inserted == 5
    while not all(task.done() for task in tasks):
        if scene.limiter.room == 0 or scene.inserted == 5:
            scene.take_batch()
        await asyncio.sleep(0)
    assert scene.numbers() == list(range(10))


CALLS: dict[str, Callable[[LocalWriter], Awaitable[Any]]] = {
    "add": lambda own: own.add(row(5), None),
    "extend": lambda own: own.extend(columns(5, 2), None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_a_call_cancelled_while_it_waits_changes_nothing(
    call: Callable[[LocalWriter], Awaitable[Any]],
) -> None:
    """At any tick; the next one goes on as if it had never been."""
    scenes: list[Scene] = []

    def build() -> Scene:
        scene = Scene()
        scenes.append(scene)
        with pytest.raises(StopIteration):
            scene.own.extend(columns(0, 5), None).send(None)
        return scene

    def check(scene: Scene) -> None:
        assert (scene.inserted, scene.limiter.statistics().inserts, scene.told) == (5, 5, 1)
        assert scene.own.waits() == []

    assert await cancel_at_every_tick(build, lambda scene: call(scene.own), check) == 12
    for scene in scenes:
        scene.take_batch()
        await scene.own.extend(columns(5, 2), None)
        assert scene.numbers() == list(range(7))
        await scene.close()


async def test_an_episode_is_broken_off_behind_the_steps_that_wait() -> None:
    """A step that was asked for before it belongs to the old episode, though it is written
    later."""
    scene = Scene(STEPS)
    for number in range(5):
        await scene.own.add(step(number), None)
    waiting = asyncio.create_task(scene.own.add(step(5), None))
    await asleep(waiting, scene)
    scene.own.break_off(None)
    after = [asyncio.create_task(scene.own.add(step(number), None)) for number in (50, 51)]
    for _ in range(3):
        scene.take_batch()
    await asyncio.gather(waiting, *after)
    assert scene.numbers("obs") == [0, 1, 2, 3, 4, 5, 50, 51]
    assert scene.ring.columns["steps.prev_offset"][:8].tolist() == [0, 1, 1, 1, 1, 1, 0, 1]
    assert (scene.ring.columns["steps.step_id"][:8] & 0xFFFFFFFF).tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        0,
        1,
    ]
    await scene.close()


async def test_rows_of_a_plain_spec_are_in_no_episode() -> None:
    """There is none to break off."""
    scene = Scene()
    with pytest.raises(
        ValueError,
        match=r"end_episode is about steps of environments; make the "
        r"spec with Spec\.steps",
    ):
        scene.own.break_off(None)
    await scene.close()


async def test_a_step_cancelled_while_it_waits_changes_nothing() -> None:
    """The episode goes on after the gap."""
    scene = Scene(STEPS)
    for number in range(5):
        await scene.own.add(step(number), None)
    before = scene.untouched()
    task = asyncio.create_task(scene.own.add(step(5), None))
    await asleep(task, scene)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.untouched() == before
    scene.take_batch()
    await scene.own.add(step(6, ends=True), None)
    assert scene.numbers("obs") == [0, 1, 2, 3, 4, 6, 7]
    await scene.close()


async def test_a_final_observation_needs_no_room() -> None:
    """By add, by extend, and in a vector: steps are counted."""
    scene = Scene(STEPS)
    scene.limiter.replace(SamplesPerInsert(1.0, 1, 8.0))  # room for nine
    await scene.own.add(step(0, ends=True), None)
    assert (scene.inserted, scene.limiter.statistics().inserts) == (2, 1)
    obs, is_end = np.arange(1, 5).astype(np.float32), np.array([False, True, False, True])
    never = np.zeros(4, np.bool_)
    given = {
        "action": np.zeros(4, np.int64),
        "reward": obs,
        "terminated": is_end,
        "truncated": never,
    }
    await scene.own.extend({"obs": obs, "next_obs": obs + 1, **given}, None)
    assert (scene.inserted, scene.limiter.statistics().inserts) == (8, 5)
    await scene.close()
    scene = Scene(STEPS)
    scene.limiter.replace(SamplesPerInsert(1.0, 1, 8.0))
    pair = np.zeros(2, np.float32)
    vector = {"obs": pair, "action": np.zeros(2, np.int64), "reward": pair, "next_obs": pair}
    vector |= {"terminated": np.ones(2, np.bool_), "truncated": np.zeros(2, np.bool_)}
    scene.own.episodes.autoreset_mode = "Disabled"
    await scene.own.add(vector, None)
    assert (scene.inserted, scene.limiter.statistics().inserts) == (4, 2)
    await scene.close()


@pytest.mark.parametrize(("limits", "keeps"), [(True, False), (False, True), (True, True)])
async def test_a_misfit_gives_back_what_it_was_admitted(limits: bool, keeps: bool) -> None:
    """The room for it, and the place: as often as one likes."""
    scene = Scene(limits=limits, keeps=keeps)
    await scene.own.add(row(0), None)
    before = scene.untouched()
    for _ in range(10):
        with pytest.raises(SpecMismatch):
            await scene.own.add({"number": 1}, None)
        with pytest.raises(SpecMismatch):
            await scene.own.extend({"number": np.arange(3)}, None)
        with pytest.raises(SpecMismatch, match="priority"):
            await scene.own.add(row(1), -1.0j)
    assert scene.untouched() == before
    assert scene.told == 1
    await scene.own.add(row(1), None)
    await scene.close()


async def test_without_a_thread_nothing_stays_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are copied off the loop, where no thread can be had: as often as one likes."""
    monkeypatch.setattr(local_writer_module, "_INLINE_BYTES", 0)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scene = Scene(keeps=True)
    await scene.own.add(row(0), None)
    before = scene.untouched()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(10):
            with pytest.raises(ResourceUnavailable, match="can't start new thread"):
                await scene.own.extend(columns(1, 3), None)
    assert scene.untouched() == before
    await scene.own.extend(columns(1, 3), None)
    assert scene.numbers() == [0, 1, 2, 3]
    await scene.close()


async def test_a_call_that_has_begun_to_write_ends_it_without_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All or none: where a second part gets no thread, it is written on the loop."""
    monkeypatch.setattr(local_writer_module, "_INLINE_BYTES", 0)
    scene = Scene(limits=False)
    write = scene.own.writer.write
    parts: list[int] = []

    async def off_loop(work: Callable[[], Any]) -> Any:
        """Writes two rows, then has no thread."""
        parts.append(scene.inserted)
        if len(parts) > 1:
            raise ResourceUnavailable("starting a thread", "Replay.extend", "refused")
        columns, start, _, priorities = work.args  # type: ignore[attr-defined]
        return write(columns, start, start + 2, priorities)

    monkeypatch.setattr(scene.own, "_off_loop", off_loop)
    indices = await scene.own.extend(columns(0, 5), None)
    assert (parts, scene.numbers(), len(set(indices.tolist()))) == ([0, 2], [0, 1, 2, 3, 4], 5)
    await scene.close()


@pytest.mark.parametrize("keeps", [False, True])
async def test_more_rows_than_the_buffer_can_ever_take_are_refused(keeps: bool) -> None:
    """With nothing changed; the largest part that can be is taken in its turn."""
    scene = Scene(keeps=keeps)
    await scene.fill()
    before = scene.untouched()
    with pytest.raises(
        ValueError,
        match=r"7 steps at once do not fit into the error_buffer of "
        r"SamplesPerInsert\(1, ",
    ):
        await scene.own.extend(columns(5, 7), None)
    assert scene.untouched() == before
    assert scene.own.waits() == []
    task = asyncio.create_task(scene.own.extend(columns(5, 6), None))
    await asleep(task, scene)
    while scene.limiter.can_sample:
        scene.take_batch()
    await task
    assert scene.numbers() == list(range(11))
    await scene.close()


async def test_before_the_first_batch_min_size_rows_go_in_at_once() -> None:
    """Though later so many would be refused."""
    scene = Scene(limits=False)
    scene.limiter = RateController(SamplesPerInsert(1.0, 20, 4.0), 2, 0, nullcontext())
    scene.admission.add(scene.limiter)
    await scene.own.extend(columns(0, 24), None)
    assert scene.limiter.room == 0
    with pytest.raises(ValueError, match="24 steps at once"):
        await scene.own.extend(columns(24, 24), None)
    await scene.close()


# Pinned blocks.


async def test_rows_wait_while_all_blocks_are_kept() -> None:
    """Until one may be recycled; what is open is written to before, if that is enough."""
    scene = Scene(limits=False, keeps=True)
    await scene.own.extend(columns(0, 4), None)
    scene.keeper.places[:] = True
    assert (await scene.own.extend(columns(4, 2), None)).tolist() == [4, 5]
    before = scene.untouched()
    task = asyncio.create_task(scene.own.extend(columns(6, 3), None))
    await asleep(task, scene)
    assert scene.untouched() == before, "the open block might be taken away before it is written to"
    assert "rows that are still needed by Fifo();" in scene.own.waits()[0].reason
    scene.keeper.places[2] = False
    scene.admission.notify()
    assert (await task).tolist() == [6, 7, 16]
    assert scene.registry.reserved == 0
    await scene.close()


async def test_more_than_half_of_a_ring_that_keeps_rows_is_refused() -> None:
    """If there is no place for them now: there might never be; less waits for its turn."""
    scene = Scene(limits=False, keeps=True)
    await scene.own.extend(columns(0, 17), None)
    scene.keeper.places[:] = True
    before = scene.untouched()
    with pytest.raises(
        ValueError,
        match=r"17 rows at once are more than half of capacity_rows = "
        r"32",
    ):
        await scene.own.extend(columns(17, 17), None)
    assert scene.untouched() == before
    task = asyncio.create_task(scene.own.extend(columns(17, 16), None))
    await asleep(task, scene)
    scene.keeper.places[:] = False
    scene.admission.notify()
    await task
    assert scene.inserted == 33 and scene.registry.reserved == 0
    await scene.close()


async def test_with_place_but_no_room_nothing_stays_reserved() -> None:
    """A call that waits for the learner takes no place from the actors meanwhile."""
    scene = Scene(keeps=True)
    await scene.fill()
    task = asyncio.create_task(scene.own.extend(columns(5, 2), None))
    await asleep(task, scene)
    assert scene.registry.reserved == 0
    scene.take_batch()
    await task
    assert scene.registry.reserved == 0
    await scene.close()


# Closing.


async def test_closing_ends_every_wait_with_closed(scene: Scene) -> None:
    """Of the call that waits for admission, and of those behind it; nothing was written, and
    nothing is after it."""
    await scene.fill()
    before, descriptors = scene.untouched(), memory_descriptors()
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(scene.own.extend(columns(5, 2), None))]
    await asleep(tasks[0], scene)
    tasks += [asyncio.create_task(scene.own.add(row(number), None)) for number in (7, 8)]
    await ticks(3)
    async with asyncio.timeout(20):
        await scene.own.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Closed] * 3
    assert scene.untouched() == before
    for call in (scene.own.add(row(5), None), scene.own.extend(columns(5, 1), None)):
        with pytest.raises(Closed, match="this replay"):
            await call
    assert scene.untouched() == before
    assert memory_descriptors() == descriptors - 1, "its locks were given back"


async def test_lifting_lets_every_waiting_row_in(scene: Scene) -> None:
    """When the replay closes, nobody is held back."""
    await scene.fill()
    task = asyncio.create_task(scene.own.extend(columns(5, 6), None))
    await asleep(task, scene)
    scene.admission.lift()
    await task
    assert scene.inserted == 11


# Large ones.


async def test_a_large_extend_is_copied_in_a_thread_all_or_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop turns meanwhile; cancelled, it is finished first; closing waits for it."""
    monkeypatch.setattr(local_writer_module, "_INLINE_BYTES", 3 * PLAIN.row_bytes)
    scene = Scene()
    threads: list[str] = []
    may_write, write = threading.Event(), StreamWriter.write

    def slowly(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        if len(args[1]["number"]) > 3:
            assert may_write.wait(20)
        return write(*args)

    monkeypatch.setattr(StreamWriter, "write", slowly)
    await scene.own.extend(columns(0, 3), None)
    assert threads == [threading.current_thread().name]
    scene.take_batch()
    task = asyncio.create_task(scene.own.extend(columns(3, 4), None))
    await until(lambda: len(threads) == 2)
    assert threads[1] != threads[0]
    assert scene.limiter.room == 0, "they count from when they were let in"
    waiting = asyncio.create_task(scene.own.add(row(7), None))
    task.cancel()
    closing = asyncio.create_task(scene.own.close())
    await ticks(10)
    assert not task.done() and not closing.done()
    may_write.set()
    outcomes = await asyncio.gather(task, waiting, closing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Closed, type(None)]
    assert scene.numbers() == list(range(7))
    assert (scene.told, scene.limiter.statistics().inserts) == (2, 7)
    await scene.close()


async def test_a_large_extend_that_is_cancelled_while_it_waits_is_not_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread was begun."""
    monkeypatch.setattr(local_writer_module, "_INLINE_BYTES", 0)
    await scene.fill()
    before = scene.untouched()
    task = asyncio.create_task(scene.own.extend(columns(5, 2), None))
    await asleep(task, scene)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scene.take_batch()
    await ticks(5)
    assert scene.inserted == before[0] and scene.limiter.room == 2


async def test_a_spec_without_steps_has_no_episodes(scene: Scene) -> None:
    """Asked for, it says what to make."""
    with pytest.raises(ValueError, match=r"Spec\.steps or from_env"):
        _ = scene.own.episodes


async def test_rows_that_are_copied_off_the_loop_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From their admission until the streams were told; the room that they take is taken by then,
    no item is there."""
    monkeypatch.setattr(local_writer_module, "_INLINE_BYTES", 0)
    scene = Scene()
    seen: list[tuple[bool, int]] = []
    write = scene.own.writer.write

    def looked_at(*what: Any) -> Any:
        seen.append((scene.own.is_writing, scene.limiter.room))
        return write(*what)

    monkeypatch.setattr(scene.own.writer, "write", looked_at)
    await scene.own.extend(columns(0, 5), None)
    assert seen == [(True, 0)] and not scene.own.is_writing
    await scene.close()


async def test_what_a_call_lacks_is_known_while_it_waits_and_after_it_was_refused() -> None:
    """A learner that comes later would wait for those rows as well; not any more when rows came in,
    or the next call begins. Nothing of a refused call is written."""
    scene, hopeless = Scene(), ""
    await scene.fill()
    scene.why_hopeless = lambda: hopeless
    assert scene.own.lacks is None
    waiting = asyncio.create_task(scene.own.extend(columns(5, 2), None))
    await ticks(3)
    assert scene.own.lacks is not None and (scene.own.lacks.steps, scene.own.lacks.blocks) == (
        2,
        False,
    )
    hopeless = "nobody takes a batch"
    before = scene.untouched()
    scene.admission.notify()
    with pytest.raises(Stalled, match="it never can, since nobody takes a batch"):
        await waiting
    assert scene.untouched() == before and scene.own.waits() == []
    assert scene.own.lacks is not None and scene.own.lacks.steps == 2
    with pytest.raises(ValueError, match="do not fit into the error_buffer"):
        await scene.own.extend(columns(5, 30), None)
    assert scene.own.lacks is None, "another call was the last thing that happened"
    hopeless = ""
    scene.take_batch()
    await scene.own.add(row(5), None)
    assert scene.own.lacks is None
    await scene.close()
