"""Tests of `_processes.waiter`: no silent wait, none without an end, and nothing left behind by a
cancelled one."""

from __future__ import annotations

import asyncio
import gc
import logging
import select
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import uvloop
from kit import cancel_at_every_tick, ticks, until

from areplay._processes import waiter as waiter_module
from areplay._processes.waiter import Waiter
from areplay._shm.doorbell import Doorbell, EventFd
from areplay.errors import Closed, InboxFull, WaitTimeout

LONG_S = 1_000.0


class Scene:
    """A sleeper, the word it writes, and the side that rings."""

    def __init__(self) -> None:
        self.word = np.zeros(1, np.int64)
        self.event = EventFd("a test's doorbell")
        self.sleeper = Waiter(Doorbell(self.event, self.word.data))
        self.ringer = Doorbell(self.event, self.word.data)
        self.is_ready = False
        self.looks = 0

    def look(self) -> bool:
        """The condition."""
        self.looks += 1
        return self.is_ready

    def ring(self) -> None:
        """Make the condition true and say so."""
        self.is_ready = True
        self.ringer.notify()

    @property
    def is_armed(self) -> bool:
        """Whether a ringer would write to the eventfd."""
        return bool(self.word[0] > 0)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the condition."""
        await self.sleeper.wait(self.look, lambda: "a test waits for itself", timeout_s)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A sleeper that never looks again by itself: what ends a wait must be a ring."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", LONG_S)
    scene = Scene()
    yield scene
    scene.sleeper.close()
    scene.event.close()


async def asleep(scene: Scene, task: asyncio.Task[None]) -> None:
    """Return when the task has gone to sleep."""
    await until(lambda: scene.is_armed and not task.done())
    await ticks(3)
    assert not task.done()


# Waiter.wait


def test_what_is_ready_is_not_waited_for(scene: Scene) -> None:
    """No suspension, no loop, no doorbell: one look."""
    scene.is_ready = True
    with pytest.raises(StopIteration):
        scene.wait().send(None)
    assert (scene.looks, scene.word[0]) == (1, 0)


async def test_a_ring_ends_the_wait(scene: Scene) -> None:
    """And the sleeper is awake for ringers afterwards; again and again."""
    for _ in range(3):
        task = asyncio.create_task(scene.wait())
        await asleep(scene, task)
        scene.ring()
        await task
        assert not scene.is_armed
        assert not select.select([scene.event.descriptor], [], [], 0)[0], "or the loop would spin"
        scene.is_ready = False


async def test_a_ring_without_the_condition_does_not_end_the_wait(scene: Scene) -> None:
    """The waiter looks, and can be woken again."""
    task = asyncio.create_task(scene.wait())
    for _ in range(3):
        await asleep(scene, task)
        looks = scene.looks
        scene.ringer.notify()
        await until(lambda looks=looks: scene.looks > looks)
    assert not task.done()
    scene.ring()
    await task


async def test_what_comes_between_the_look_and_the_sleep_is_not_missed(scene: Scene) -> None:
    """The doorbell is armed before the second look: a ringer that finds it unarmed has changed the
    condition before."""
    seen: list[bool] = []

    def is_ready() -> bool:
        seen.append(scene.is_armed)
        return len(seen) == 2

    await scene.sleeper.wait(is_ready, None)
    assert seen == [False, True]
    assert not scene.is_armed


async def test_a_change_that_nobody_announces_is_noticed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By looking again after a while: a dead process rings no bell."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 0.01)
    task = asyncio.create_task(scene.wait())
    await asleep(scene, task)
    scene.is_ready = True
    async with asyncio.timeout(20):
        await task


@pytest.mark.parametrize("kind", [WaitTimeout, InboxFull])
@pytest.mark.parametrize("timeout_s", [0.0, 0.02])
async def test_a_timeout_raises_with_the_reason(
    scene: Scene, kind: type[WaitTimeout], timeout_s: float
) -> None:
    """Not before its time; with who waits for whom, and the timeout that was given. Nothing is left
    behind."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(kind, match="a test waits for itself") as caught:
        await scene.sleeper.wait(scene.look, lambda: "a test waits for itself", timeout_s, kind)
    assert loop.time() >= started + timeout_s
    assert type(caught.value) is kind
    assert caught.value.timeout_s == timeout_s
    assert not scene.is_armed


async def test_who_rests_has_a_timeout_too(scene: Scene) -> None:
    """Without a reason the message still says that nothing came."""
    with pytest.raises(WaitTimeout, match="nothing came"):
        await scene.sleeper.wait(scene.look, None, 0.01)


async def test_a_condition_that_comes_true_at_the_deadline_wins(scene: Scene) -> None:
    """The look comes before the timeout: what is there is taken."""
    looks = 0

    def is_ready() -> bool:
        nonlocal looks
        looks += 1
        return looks == 2

    await scene.sleeper.wait(is_ready, None, 0.0)


async def test_a_long_wait_says_who_waits_for_whom(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning after some seconds, then after twice as long each time: not a flood."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 0.005)
    monkeypatch.setattr(waiter_module, "WARN_AFTER_S", 0.02)
    loop = asyncio.get_running_loop()
    started, said = loop.time(), []

    def reason() -> str:
        said.append(loop.time() - started)
        return f"learner waits for actor {len(said)}"

    with caplog.at_level(logging.WARNING, "areplay._processes.waiter"):
        task = asyncio.create_task(scene.sleeper.wait(scene.look, reason))
        await until(lambda: len(caplog.records) == 4)
        scene.ring()
        await task
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        f"learner waits for actor {number}" for number in (1, 2, 3, 4)
    ]
    assert all(at >= 0.02 * 2**k for k, at in enumerate(said)), (
        "each after twice the time of the one before"
    )


async def test_a_short_wait_and_a_rest_say_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning before its time, and none from one who has nothing to complain about."""
    caplog.set_level(logging.WARNING, "areplay._processes.waiter")
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 0.002)
    with pytest.raises(WaitTimeout):
        await scene.wait(0.02)
    monkeypatch.setattr(waiter_module, "WARN_AFTER_S", 0.005)
    seen = scene.looks
    await scene.sleeper.wait(lambda: scene.look() or scene.looks > seen + 10, None)
    assert caplog.records == []


async def test_a_wait_cancelled_at_any_tick_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doorbell is disarmed, no timer or future is left, and the next wait works."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", LONG_S)
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        return scenes[-1]

    def check(scene: Scene) -> None:
        assert not scene.is_armed
        assert not scene.sleeper._asleep

    assert await cancel_at_every_tick(build, Scene.wait, check) == 12
    for scene in scenes:
        task = asyncio.create_task(scene.wait())
        await asleep(scene, task)
        scene.ring()
        await task
        scene.sleeper.close()
        scene.event.close()


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_no_timer_outlives_its_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a wait ends: thousands of short ones must not pile up timers for the long time they
    might have taken."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def recorded(*args: object) -> asyncio.TimerHandle:
        timers.append(call_at(*args))  # type: ignore[arg-type]
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", recorded)
    for how in ("ring", "cancel"):
        for wait in (scene.wait, lambda: scene.sleeper.wait_briefly(scene.look, LONG_S)):
            scene.is_ready = False
            timers.clear()
            task = asyncio.create_task(wait())
            await ticks(3)
            if how == "ring":
                scene.ring()
            else:
                task.cancel()
            await asyncio.wait({task})
            assert timers and all(timer.cancelled() for timer in timers)


async def test_a_condition_that_raises_ends_the_wait(scene: Scene) -> None:
    """That is how a waiter learns that whoever it waits for is gone; the doorbell is disarmed."""
    is_closed = False

    def is_ready() -> bool:
        if is_closed:
            raise Closed("this replay")
        return False

    task = asyncio.create_task(scene.sleeper.wait(is_ready, None))
    await asleep(scene, task)
    is_closed = True
    scene.ringer.notify()
    with pytest.raises(Closed):
        await task
    assert not scene.is_armed


async def test_several_wait_on_one_doorbell(scene: Scene) -> None:
    """Each for a condition of its own; when one is done the others can still be woken, and the last
    one disarms."""
    ready: set[int] = set()
    tasks = [
        asyncio.create_task(scene.sleeper.wait(lambda k=k: k in ready, None)) for k in range(3)
    ]
    await asleep(scene, tasks[0])
    for k in (1, 0, 2):
        assert scene.is_armed
        ready.add(k)
        scene.ringer.notify()
        await tasks[k]
        await ticks(2)
        assert [task.done() for task in tasks] == [number in ready for number in range(3)]
    assert not scene.is_armed


async def test_a_cancelled_waiter_does_not_disarm_for_the_others(scene: Scene) -> None:
    """The one that is left is still woken."""
    first, second = asyncio.create_task(scene.wait()), asyncio.create_task(scene.wait())
    await asleep(scene, first)
    first.cancel()
    await asyncio.wait({first})
    scene.ring()
    await second


async def test_wake_lets_every_waiter_look_again(scene: Scene) -> None:
    """Without the doorbell, for changes that are made on the same loop."""
    tasks = [asyncio.create_task(scene.wait()) for _ in range(2)]
    await asleep(scene, tasks[0])
    scene.sleeper.wake()
    await ticks(3)
    assert not any(task.done() for task in tasks)
    scene.is_ready = True
    scene.sleeper.wake()
    scene.sleeper.wake()
    await asyncio.gather(*tasks)


# Waiter.block_until


@contextmanager
def another_thread(scene: Scene, work: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a thread does its work, as soon as the doorbell is armed."""

    def run() -> None:
        while not scene.is_armed:
            pass
        work()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def test_a_ring_ends_a_wait_that_does_not_suspend(scene: Scene) -> None:
    """Without an event loop; the doorbell is disarmed, and its descriptor not readable."""
    with another_thread(scene, scene.ring):
        assert scene.sleeper.block_until(scene.look, LONG_S)
    assert not scene.is_armed
    assert not select.select([scene.event.descriptor], [], [], 0)[0]


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_wait_that_does_not_suspend_ends_after_its_time(scene: Scene, seconds: float) -> None:
    """The caller is told that nothing came, and the doorbell disarmed."""
    assert not scene.sleeper.block_until(scene.look, seconds)
    assert not scene.is_armed


async def test_a_wait_that_does_not_suspend_takes_no_ring_from_a_coroutine(scene: Scene) -> None:
    """A coroutine waits on the same doorbell. It is woken by a ring that came meanwhile, and by one
    that comes after."""
    seen: set[str] = set()
    tasks = [
        asyncio.create_task(scene.sleeper.wait(lambda name=name: name in seen, None))
        for name in ("meanwhile", "after")
    ]
    await asleep(scene, tasks[1])

    def ring_twice() -> None:
        seen.add("meanwhile")
        scene.ringer.notify()
        while select.select([scene.event.descriptor], [], [], 0)[0] or not scene.is_armed:
            pass  # until the ring is noticed
        scene.ring()

    with another_thread(scene, ring_twice):
        assert scene.sleeper.block_until(scene.look, LONG_S)
    async with asyncio.timeout(20):
        await tasks[0]
    assert scene.is_armed and not tasks[1].done()
    seen.add("after")
    scene.ringer.notify()
    await tasks[1]
    assert not scene.is_armed


async def test_closing_lets_waiters_look_once_more_and_stops_watching(scene: Scene) -> None:
    """Then the descriptor can be closed: the loop no longer polls it."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(scene.wait())
    await asleep(scene, task)
    scene.is_ready = True
    scene.sleeper.close()
    await task
    assert not loop.remove_reader(scene.event.descriptor), "nobody watches it any more"
    scene.sleeper.close()


def test_a_sleeper_can_be_used_on_one_loop_after_the_other(scene: Scene) -> None:
    """Several event loops in one process, one at a time."""

    async def one_wait() -> None:
        scene.is_ready = False
        task = asyncio.create_task(scene.wait())
        await asleep(scene, task)
        scene.ring()
        async with asyncio.timeout(20):
            await task

    for _ in range(3):
        with asyncio.Runner() as runner:
            runner.run(one_wait())


# Waiter.wait_briefly


async def test_lingering_ends_with_the_condition_or_the_time(scene: Scene) -> None:
    """A ring before, the clock after; it never raises, and the sleeper is awake afterwards."""
    task = asyncio.create_task(scene.sleeper.wait_briefly(scene.look, LONG_S))
    await asleep(scene, task)
    scene.ring()
    await task
    assert not scene.is_armed
    scene.is_ready = False
    loop = asyncio.get_running_loop()
    started = loop.time()
    await scene.sleeper.wait_briefly(scene.look, 0.02)
    assert loop.time() >= started + 0.02
    assert not scene.is_armed


async def test_lingering_goes_on_after_a_ring_without_the_condition(scene: Scene) -> None:
    """Only its own condition ends it early."""
    task = asyncio.create_task(scene.sleeper.wait_briefly(scene.look, LONG_S))
    await asleep(scene, task)
    looks = scene.looks
    scene.ringer.notify()
    await until(lambda: scene.looks > looks)
    await asleep(scene, task)
    scene.ring()
    await task


async def test_lingering_for_what_is_ready_takes_no_time(scene: Scene) -> None:
    """At once, disarmed."""
    scene.is_ready = True
    await scene.sleeper.wait_briefly(scene.look, LONG_S)
    assert not scene.is_armed


async def test_lingering_cancelled_at_any_tick_leaves_nothing() -> None:
    """As for waiting."""
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        return scenes[-1]

    def check(scene: Scene) -> None:
        assert not scene.is_armed and not scene.sleeper._asleep
        scene.sleeper.close()
        scene.event.close()

    assert (
        await cancel_at_every_tick(
            build, lambda scene: scene.sleeper.wait_briefly(scene.look, LONG_S), check
        )
        == 12
    )


# Loops that were stopped and dropped without being closed.


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_first", ["the doorbell's descriptor", "the loop"])
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_dropped_loop_keeps_no_doorbell(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    is_first: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A task sleeps in it, and it never turns again: the doorbell's memory is free, also if its
    descriptor was closed before the loop was collected. uvloop frees no loop that was not
    closed."""
    scene = Scene()
    memory = weakref.ref(scene.word)

    def run(scene: Scene) -> None:
        loop = new_loop()
        task = loop.create_task(scene.wait())
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        while not scene.is_armed:
            loop.run_until_complete(asyncio.sleep(0))

    gc.disable()
    try:
        # not the main one, whose signals uvloop watches
        thread = threading.Thread(target=run, args=(scene,))
        thread.start()
        thread.join()
        if is_first == "the doorbell's descriptor":
            scene.event.close()
        del thread, scene
    finally:
        gc.enable()
    for _ in range(3):  # what finalizers have held meanwhile is of the next round
        gc.collect()
    assert memory() is None
    assert not caplog.records
