"""Tests of `_ingest.coordinator`, with inboxes whose actors are in this very process."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from kit import cancel_at_every_tick, memory_descriptors, ticks, until

from areplay._ingest import coordinator as coordinator_module
from areplay._ingest import feed_tasks
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.destination import Destination
from areplay._ingest.inbox import Inboxes
from areplay._processes import waiter as waiter_module
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.errors import Closed, ResourceUnavailable, Stalled
from areplay.spec import Spec

SPEC = Spec(actor=((), "int64"), number=((), "int64"))
INBOX_ROWS = 16


class Scene:
    """A ring, three inboxes, and their coordinator."""

    def __init__(self) -> None:
        self.ring = Ring(SPEC, 64, 32)
        self.inboxes = Inboxes(SPEC, 3, INBOX_ROWS)
        self.inbox = [self.inboxes.inbox(k) for k in range(3)]
        self.told = self.failed = 0
        registry = WriterRegistry()
        self.admission = Admission(registry)
        destination = Destination(self.ring, registry, self.admission, lambda: self.on_rows())
        self.coordinator = Coordinator(destination, self.on_failure)
        self.put = [0, 0, 0]

    def on_rows(self) -> None:
        """Called in the coordinator's thread."""
        assert threading.current_thread().name == "areplay-coordinator"
        self.told += 1

    def on_failure(self) -> None:
        """Likewise."""
        self.failed += 1

    def hand_in(self, actor: int, rows: int) -> None:
        """As an actor does, as long as there is room."""
        for _ in range(rows):
            self.inbox[actor].put({"actor": actor, "number": self.put[actor]})
            self.put[actor] += 1

    @property
    def inserted(self) -> int:
        """Rows in the ring."""
        return int(self.ring.rows_inserted[0])

    def streams(self) -> dict[int, list[tuple[int, int]]]:
        """Stream number -> `(actor, number)` of its rows, in order, by the ring's chains."""
        found: dict[int, list[tuple[int, int]]] = {}
        serials, rows = self.ring.occupied()
        for serial, count in sorted(zip(serials.tolist(), rows.tolist(), strict=True)):
            at = self.ring.positions(np.arange(serial * 32, serial * 32 + count))
            pairs = zip(
                *(self.ring.columns[name][at].tolist() for name in ("actor", "number")), strict=True
            )
            found.setdefault(self.ring.chain(serial)[0], []).extend(pairs)
        return found

    def rows_of(self, actor: int) -> list[int]:
        """The numbers of an actor's rows, stream after stream."""
        return [number for rows in self.streams().values() for who, number in rows if who == actor]

    async def close(self) -> None:
        """Everything is given back."""
        await self.coordinator.stop()
        self.inboxes.close()
        self.ring.segment.close()


@pytest.fixture(autouse=True)
def looks_only_when_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits never looks again by itself: what brings rows in must be a ring."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 1_000.0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Nothing attached yet."""
    scene = Scene()
    yield scene
    await scene.close()


async def test_rows_are_moved_in_order_each_once(scene: Scene) -> None:
    """Of several actors at once, singly and in bursts, over many rounds of the inboxes; a stream
    has one actor."""
    for k in range(3):
        await scene.coordinator.attach(scene.inbox[k], f"actor {k}")
    rng = np.random.default_rng(3)
    while min(scene.put) < 300:
        actor = int(rng.integers(3))
        scene.hand_in(actor, int(rng.integers(0, scene.inbox[actor].room + 1)))
        await asyncio.sleep(0)
    await until(lambda: scene.inserted == sum(scene.put))
    await until(lambda: all(inbox.used == 0 for inbox in scene.inbox))
    for actor in range(3):
        assert scene.rows_of(actor) == list(range(scene.put[actor]))
    assert all(len({who for who, _ in rows}) == 1 for rows in scene.streams().values())
    assert scene.told > 0


async def test_groups_may_be_attached_at_the_same_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes while the thread is starting waits for it, and is served like the first."""
    all_have_come, new_event_loop = threading.Event(), coordinator_module.uvloop.new_event_loop

    def slowly() -> asyncio.AbstractEventLoop:
        all_have_come.wait(20)
        return new_event_loop()

    monkeypatch.setattr(coordinator_module.uvloop, "new_event_loop", slowly)
    tasks = [
        asyncio.create_task(scene.coordinator.attach(inbox, "an actor")) for inbox in scene.inbox
    ]
    await ticks(3)
    all_have_come.set()
    await asyncio.gather(*tasks)
    for actor in range(3):
        scene.hand_in(actor, 5)
    await until(lambda: scene.inserted == 15, within=5)
    assert [scene.rows_of(actor) for actor in range(3)] == [list(range(5))] * 3


async def test_rows_come_in_while_the_learners_loop_is_blocked(scene: Scene) -> None:
    """A training step that lets no task run does not stop the flow of rows."""
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    end = time.monotonic() + 20
    while scene.put[0] < 200 and time.monotonic() < end:
        scene.hand_in(0, scene.inbox[0].room)
        time.sleep(0.0005)  # noqa: ASYNC251  the blocked loop is what this is about
    assert scene.put[0] >= 200


async def test_a_single_row_does_not_wait_for_others_for_long(scene: Scene) -> None:
    """It lingers for company, and is then taken alone, without a word from its actor."""
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    for number in range(3):
        scene.hand_in(0, 1)
        await until(lambda number=number: scene.inserted == number + 1)


async def test_rows_wait_unless_there_is_a_chunk_or_a_request(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an endless patience for company: a quarter of an inbox is taken at once, less when the
    actor hurries."""
    monkeypatch.setattr(feed_tasks, "BATCHING_DELAY_S", 1_000.0)
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    scene.hand_in(0, 4)
    await until(lambda: scene.inserted == 4)
    scene.hand_in(0, 3)
    for _ in range(20):
        await asyncio.sleep(0.001)
        assert scene.inserted == 4
    scene.inbox[0].request_flush()
    await until(lambda: scene.inserted == 7)
    assert scene.rows_of(0) == list(range(7))


async def test_rows_are_announced_after_they_are_there(scene: Scene) -> None:
    """And the time of the last ones is known: never before the first."""
    assert scene.coordinator.last_rows_at == 0.0
    before = time.monotonic()
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    assert scene.coordinator.last_rows_at == 0.0
    scene.hand_in(0, 4)
    await until(lambda: scene.told > 0)
    assert scene.inserted > 0
    assert before <= scene.coordinator.last_rows_at <= time.monotonic()


async def test_what_a_dead_actor_left_is_taken_and_its_stream_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settling takes everything at once; what its successor hands in is a stream of its own."""
    monkeypatch.setattr(feed_tasks, "BATCHING_DELAY_S", 1_000.0)
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    scene.hand_in(0, 3)
    await scene.coordinator.mark_stream_end(scene.inbox[0])
    assert scene.rows_of(0) == [0, 1, 2]
    scene.hand_in(0, 4)
    await until(lambda: scene.inserted == 7)
    assert sorted(scene.streams().values()) == [
        [(0, n) for n in range(3)],
        [(0, n) for n in range(3, 7)],
    ]


async def test_detaching_takes_all_and_then_nothing_more(scene: Scene) -> None:
    """Rows handed in later stay in the inbox; the others are served on; detaching again does
    nothing."""
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    await scene.coordinator.attach(scene.inbox[1], "actor 1")
    scene.hand_in(0, 9)
    await scene.coordinator.detach(scene.inbox[0])
    assert scene.rows_of(0) == list(range(9))
    scene.hand_in(0, 9)
    scene.hand_in(1, 9)
    await until(lambda: scene.inserted == 18)
    await scene.coordinator.detach(scene.inbox[0])
    await scene.coordinator.mark_stream_end(scene.inbox[0])
    await scene.coordinator.detach(scene.inbox[2])
    assert (scene.rows_of(0), scene.inbox[0].used) == (list(range(9)), 9)


async def test_stopping_takes_all_rows_of_all_inboxes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing handed in is lost, the thread is gone, and everything but another start may
    follow."""
    monkeypatch.setattr(feed_tasks, "BATCHING_DELAY_S", 1_000.0)
    for k in range(3):
        await scene.coordinator.attach(scene.inbox[k], f"actor {k}")
        scene.hand_in(k, 2 + k)
    await scene.coordinator.stop()
    assert [scene.rows_of(k) for k in range(3)] == [list(range(2 + k)) for k in range(3)]
    assert "areplay-coordinator" not in [thread.name for thread in threading.enumerate()]
    await scene.coordinator.stop()
    await scene.coordinator.mark_stream_end(scene.inbox[0])
    await scene.coordinator.detach(scene.inbox[0])
    with pytest.raises(Closed):
        await scene.coordinator.attach(scene.inbox[0], "actor 0")
    assert scene.failed == 0 and scene.coordinator.failure is None


async def test_a_coordinator_that_was_never_needed_has_no_thread(scene: Scene) -> None:
    """Without actors there is nothing to stop."""
    names = [thread.name for thread in threading.enumerate()]
    assert "areplay-coordinator" not in names
    await scene.coordinator.mark_stream_end(scene.inbox[0])
    await scene.coordinator.detach(scene.inbox[0])
    await scene.coordinator.stop()


async def test_attaching_cancelled_at_any_tick_leaves_nothing() -> None:
    """Attached or not, stopping gives everything back, and rows that were handed in before are kept
    if it was."""
    before = memory_descriptors()
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        scenes[-1].hand_in(0, 3)
        return scenes[-1]

    def check(scene: Scene) -> None:
        assert scene.failed == 0

    assert await cancel_at_every_tick(
        build, lambda scene: scene.coordinator.attach(scene.inbox[0], "a"), check, 40
    )
    for scene in scenes:
        await scene.close()
        assert scene.rows_of(0) in ([], [0, 1, 2])
        assert scene.inserted + scene.inbox[0].used == 3
    del scene
    scenes.clear()
    await until(lambda: memory_descriptors() <= before)


class Broken(Exception):
    """An accident in the coordinator's thread."""


async def test_a_failure_is_kept_and_announced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error while rows are moved: the learner's side is told why no more rows come, nothing
    waits for ever, and closing works."""

    def fail(*_: Any) -> None:
        raise Broken("no")

    descriptors = memory_descriptors()
    await scene.coordinator.attach(scene.inbox[0], "actor 0")
    await scene.coordinator.attach(scene.inbox[1], "actor 1")
    assert memory_descriptors() == descriptors + 2
    monkeypatch.setattr(StreamWriter, "write", fail)
    with caplog.at_level(logging.ERROR, "areplay._ingest.coordinator"):
        scene.hand_in(0, 8)
        await until(lambda: scene.failed == 1)
    assert isinstance(scene.coordinator.failure, Broken)
    assert "no more rows come in" in caplog.text
    assert scene.inbox[0].used == 8, "taken only if written"
    assert memory_descriptors() == descriptors, "the writers' locks were given back"
    async with asyncio.timeout(10):
        await scene.coordinator.mark_stream_end(scene.inbox[0])
        await scene.coordinator.detach(scene.inbox[1])
        with pytest.raises(Stalled, match="the coordinator has failed: no"):
            await scene.coordinator.attach(scene.inbox[2], "actor 2")
        await scene.coordinator.stop()


async def test_a_thread_that_cannot_begin_is_an_error_and_no_endless_wait(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event loop needs descriptors, which may have run out: whoever attaches is told."""

    def refused() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(coordinator_module.uvloop, "new_event_loop", refused)
    task = asyncio.create_task(scene.coordinator.attach(scene.inbox[0], "actor 0"))
    await asyncio.wait({task}, timeout=5)
    if not task.done():  # and it cannot be cancelled either: set the future free that it waits for
        for thing in gc.get_objects():
            if (
                isinstance(thing, asyncio.Future)
                and not isinstance(thing, asyncio.Task)
                and not thing.done()
            ):
                thing.cancel()
        await asyncio.wait({task})
        pytest.fail("it waited for ever")
    with pytest.raises(ResourceUnavailable, match="Too many open files"):
        task.result()


async def test_without_a_thread_there_is_an_error_and_stopping_works(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on processes counts threads, too."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(ResourceUnavailable, match="can't start new thread"):
            await scene.coordinator.attach(scene.inbox[0], "actor 0")
    await scene.coordinator.detach(scene.inbox[0])
    await scene.coordinator.stop()


async def test_rows_between_admission_and_ring_are_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are admitted, until all streams were told of them; also where the write fails."""
    seen: list[bool] = []
    coordinator, admission = scene.coordinator, scene.admission

    def looking(work: Any) -> Any:
        def look(*what: Any) -> Any:
            seen.append(coordinator.is_writing)
            return work(*what)

        return look

    monkeypatch.setattr(admission, "admit_rows", looking(admission.admit_rows))
    monkeypatch.setattr(scene, "on_rows", looking(scene.on_rows))
    await coordinator.attach(scene.inbox[0], "actor 0")
    assert not coordinator.is_writing
    scene.hand_in(0, 3)
    await until(lambda: scene.told > 0 and not coordinator.is_writing)
    assert seen[-2:] == [True, True]
    monkeypatch.setattr(admission, "admit_rows", lambda *what: 1 / 0)
    scene.hand_in(0, 3)
    await until(lambda: scene.failed > 0)
    assert not coordinator.is_writing
