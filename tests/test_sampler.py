"""Tests of `_sampling.sampler`, with its coroutine running beside the test instead of in a process
of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from kit import bound, ticks, until

from areplay._processes import backoff
from areplay._processes.channel import READY as SAID_READY
from areplay._sampling import reader as reader_module
from areplay._sampling.sampler import SamplerConfig, run_sampler
from areplay._sampling.slots import FILLING, FREE, READY, Slots
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.items.item import BatchFields
from areplay.items.rows import Rows
from areplay.selectors import AnySelector
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"), pair=((2,), "float32"))


class Channel:
    """Stands in for the way to the parent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, kind: str, payload: object = None) -> None:
        """As the real one."""
        self.sent.append(kind)


class Last:
    """Always the same row."""

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """See `Selector.draw`."""
        return np.full(count, ring.rows_inserted[0] - 1), 1.0


class Scene:
    """A ring with 20 rows, five slots of two samplers, and sampler 1."""

    def __init__(self) -> None:
        self.ring = Ring(SPEC, 8, 8)
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), WriterRegistry())
        self.slots = Slots(BatchFields(Rows().fields(SPEC)), 6, 5, 2)
        self.channel = Channel()
        self.task: asyncio.Task[None] | None = None
        self.written = 0

    def write(self, rows: int) -> None:
        """Rows whose number is their index."""
        numbers = np.arange(self.written, self.written + rows)
        self.written += rows
        columns = {"number": numbers, "pair": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}
        self.writer.write(columns, 0, rows)

    def start(self, item: Any = None, seed: int = 7) -> asyncio.Task[None]:
        """Sampler 1 begins."""
        config = SamplerConfig(
            ring=self.ring,
            slots=self.slots,
            index=1,
            item=item or Rows(),
            selector=bound(Uniform()),
            transform=None,
            plan=None,
            seeds=np.random.SeedSequence(seed),
        )
        self.task = asyncio.create_task(run_sampler(self.channel, config))  # type: ignore[arg-type]
        return self.task

    def batch(self, slot: int) -> list[int]:
        """The indices of a batch, which is whole."""
        arrays = self.slots.batch(slot)
        indices: list[int] = arrays.indices.tolist()
        assert arrays.fields["number"].tolist() == indices
        assert arrays.fields["pair"].tolist() == [[n, n] for n in indices]
        return indices

    async def close(self) -> None:
        """The sampler ends, and everything is given back."""
        self.slots.board.stop()
        if self.task is not None:
            await asyncio.wait({self.task})
        self.writer.close()
        self.slots.close()
        self.ring.segment.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Nothing runs yet."""
    scene = Scene()
    scene.write(20)
    yield scene
    await scene.close()


async def test_a_sampler_fills_all_its_slots_and_no_other(scene: Scene) -> None:
    """With whole rows of the ring, drawn independently; it says READY first."""
    scene.slots.board.open_gate()
    scene.start()
    await until(lambda: scene.slots.count(READY) == 2)
    assert scene.channel.sent == [SAID_READY]
    assert repr(scene.slots) == "<Slots fRfRf (2 ready, 0 lent)>"
    batches = [scene.batch(1), scene.batch(3)]
    assert batches[0] != batches[1]
    assert all(0 <= index < 20 for batch in batches for index in batch)


async def test_a_returned_slot_is_filled_again(scene: Scene) -> None:
    """While the sampler is still looking out for one, and when it has long been asleep."""
    scene.slots.board.open_gate()
    scene.start()
    seen: set[tuple[int, ...]] = set()
    for turn in range(12):
        if turn % 4 == 0:
            await until(lambda: scene.slots.count(READY) == 2)
            await asyncio.sleep(0.15)  # past its naps: asleep at its doorbell
        await until(lambda: scene.slots.count(READY) > 0)
        slot = scene.slots.lend()
        assert slot in (1, 3)
        seen.add(tuple(scene.batch(slot)))
        scene.slots.give_back(slot)
    assert len(seen) == 12


async def test_a_sampler_naps_anew_after_each_batch(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it goes to sleep at its doorbell, where to wake it costs the learner a system call."""
    naps: list[float] = []
    monkeypatch.setattr(backoff.time, "sleep", naps.append)
    scene.slots.board.open_gate()
    scene.start()
    word = scene.slots._segment.arrays["words"][3 + 1]
    for _ in range(3):
        await until(lambda: scene.slots.count(READY) == 2 and word[0] > 0)
        assert len(naps) > 5
        naps.clear()
        slot = scene.slots.lend()
        assert slot is not None
        scene.slots.give_back(slot)


async def test_nothing_is_drawn_before_the_gate_is_open(scene: Scene) -> None:
    """It sleeps, ready to begin."""
    scene.start()
    await until(lambda: scene.channel.sent == [SAID_READY])
    await ticks(20)
    assert scene.slots.count(FREE) == 5
    scene.slots.board.open_gate()
    await until(lambda: scene.slots.count(READY) == 2)


@pytest.mark.parametrize("state", ["asleep before the gate", "asleep without a slot", "at work"])
async def test_a_sampler_that_is_asked_to_stop_ends(scene: Scene, state: str) -> None:
    """From wherever it is; no slot stays half filled."""
    if state != "asleep before the gate":
        scene.slots.board.open_gate()
    task = scene.start()
    if state == "asleep without a slot":
        await until(lambda: scene.slots.count(READY) == 2)
        await asyncio.sleep(0.15)
    elif state == "asleep before the gate":
        await until(lambda: scene.channel.sent == [SAID_READY])
        await ticks(10)
    scene.slots.board.stop()
    async with asyncio.timeout(20):
        await task
    assert scene.slots.count(FILLING) == 0


async def test_a_ring_that_has_no_rows_for_a_moment_is_no_accident() -> None:
    """The slot is returned unfilled, the loop goes on, and batches come when rows are there."""
    scene = Scene()
    scene.slots.board.open_gate()
    task = scene.start()
    await until(lambda: scene.channel.sent == [SAID_READY])
    for _ in range(10):
        await asyncio.sleep(0.001)
        assert not task.done()
        assert scene.slots.count(READY) == 0
    scene.write(3)
    await until(lambda: scene.slots.count(READY) == 2)
    assert set(scene.batch(1)) <= {0, 1, 2}
    await scene.close()


async def test_a_search_that_found_nothing_is_told_with_the_rows_that_it_saw(scene: Scene) -> None:
    """Those inserted when it began: of later rows nothing is known."""
    scene.ring.ends[:] = -1  # no block has rows
    scene.slots.board.open_gate()
    scene.start()
    scene.slots.board.note_fruitless(0, 20)  # sampler 0
    await until(lambda: scene.slots.board.found_no_items_since(20))
    assert scene.slots.count(READY) == 0


async def test_a_sampler_that_always_has_work_lets_its_loop_turn(scene: Scene) -> None:
    """Otherwise neither a signal nor a request would reach it."""
    scene.slots.board.open_gate()
    task = scene.start()
    for _ in range(200):
        slot = scene.slots.lend()
        if slot is not None:
            scene.slots.give_back(slot)
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait({task})
    assert task.cancelled()


async def test_rows_copied_in_vain_are_counted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's side sees how often a writer was faster."""
    overwritten = 0

    def failpoint(point: str) -> None:
        nonlocal overwritten
        if point == "sampler.gather" and overwritten == 0:
            overwritten = 1
            scene.write(64)

    monkeypatch.setattr(reader_module, "failpoint", failpoint)
    monkeypatch.setattr(reader_module, "_STOCK_S", 1_000.0)
    scene.slots.board.open_gate()
    scene.start()
    await until(lambda: scene.slots.count(READY) == 2)
    assert scene.slots.board.rows_redrawn == 12, (
        "the next batch was drawn with it, before they were overwritten"
    )
    assert min(scene.batch(1)) >= 20
    assert min(scene.batch(3)) >= 20


async def test_the_same_seed_draws_the_same_batches() -> None:
    """And another seed others."""
    drawn = []
    for seed in (1, 1, 2):
        scene = Scene()
        scene.write(20)
        scene.slots.board.open_gate()
        scene.start(seed=seed)
        await until(lambda scene=scene: scene.slots.count(READY) == 2)
        drawn.append([scene.batch(1), scene.batch(3)])
        await scene.close()
    assert drawn[0] == drawn[1] != drawn[2]


async def test_an_item_that_raises_ends_the_sampler_with_that_error(scene: Scene) -> None:
    """It is not swallowed: the parent reports it with its traceback. The slot is left to be
    recovered."""

    class Broken(Rows):
        def assemble(self, windows: Any, out: Any) -> None:
            raise ZeroDivisionError("gather")

    scene.slots.board.open_gate()
    task = scene.start(Broken())
    with pytest.raises(ZeroDivisionError, match="gather"):
        async with asyncio.timeout(20):
            await task
    assert scene.slots.recover(1) == 1
    assert scene.slots.count(FREE) == 5


@pytest.mark.parametrize(
    ("selector", "samplers", "prefetch", "most"),
    [
        (Uniform(), 1, 1, 8),
        (Prioritized(), 1, 1, 1),
        (Prioritized(), 1, 5, 2),
        (Prioritized(), 1, 16, 8),
        (Prioritized(), 1, 64, 8),
        (Prioritized(), 4, 16, 2),
        (Prioritized(), 4, 4, 1),
        (Last(), 1, 16, 1),
    ],
)
def test_priorities_are_at_most_half_a_queue_older_by_drawing_batches_at_once(
    selector: AnySelector, samplers: int, prefetch: int, most: int
) -> None:
    """Of all samplers together; and a selector of the user's draws one batch at a time."""
    slots = Slots(BatchFields(Rows().fields(SPEC)), 4, prefetch + 1 + samplers, samplers)
    assert bound(selector).batches_at_once(slots.prefetch, samplers) == most
    slots.close()
