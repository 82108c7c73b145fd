"""Tests of `actor.Actor`: a user's side of an inbox, with the coordinator played by the test.

Groups of actors are processes: see `processes/`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kit import cancel_at_every_tick, other_task, ticks, until

from areplay._base import forks
from areplay._ingest import inbox_writer
from areplay._ingest.actor_config import ActorConfig, ActorProgram
from areplay._ingest.inbox import Inboxes
from areplay._processes import waiter as waiter_module
from areplay._processes.channel import REPORT
from areplay.actor import Actor
from areplay.errors import Closed, InboxFull, SpecMismatch, WaitTimeout, WrongProcess
from areplay.spec import Spec
from areplay.weights import Weights

SPEC = Spec(number=((), "int64"), pair=((2,), "float32"))


class Channel:
    """Stands in for the way to the parent: keeps what is sent, or has no room for it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.has_room = True

    def send_nowait(self, kind: str, payload: object) -> bool:
        """As the real one."""
        if self.has_room:
            self.sent.append((kind, payload))
        return self.has_room


def config(
    inboxes: Inboxes,
    index: int = 0,
    timeout_s: float | None = None,
    weights: Weights | None = None,
    key: tuple[int, ...] = (1, 0, 3, 0),
) -> ActorConfig:
    """What an actor's process gets; the program is not run."""

    async def program(actor: Actor) -> None: ...

    seeds = np.random.SeedSequence(5, spawn_key=key)
    return ActorConfig(ActorProgram(program, (), {}, weights, timeout_s), inboxes, index, seeds)


class Scene:
    """An actor with an inbox of four rows, and the coordinator's side of that."""

    def __init__(self, timeout_s: float | None = None, weights: Weights | None = None) -> None:
        self.inboxes = Inboxes(SPEC, 4, 4)
        self.coordinator = self.inboxes.inbox(3)
        self.channel = Channel()
        self.actor = Actor(self.channel, config(self.inboxes, 3, timeout_s, weights))  # type: ignore[arg-type]

    async def fill(self) -> None:
        """Rows 0 to 3 are in the inbox, and there is no room."""
        await self.actor.extend(columns(0, 4))

    def take(self, most: int = 4) -> list[int]:
        """Take rows as the coordinator does, in one piece; their numbers."""
        rows, _, start, stop = self.coordinator.peek()
        stop = min(stop, start + most)
        numbers: list[int] = rows["number"][start:stop].tolist()
        assert rows["pair"][start:stop].tolist() == [[n, n] for n in numbers]
        self.coordinator.consume(stop - start)
        return numbers

    async def take_all(self, count: int) -> list[int]:
        """Take rows as they come, until there were so many."""
        numbers: list[int] = []
        while len(numbers) < count:
            numbers += self.take()
            await asyncio.sleep(0)
        return numbers

    async def asleep(self, task: asyncio.Task[Any]) -> None:
        """Return when the actor waits for room."""
        await until(lambda: self.coordinator.is_flush_requested and not task.done())
        await ticks(5)
        assert not task.done()

    def close(self) -> None:
        """Give everything back."""
        self.actor._writer._room.close()
        self.inboxes.close()


@pytest.fixture(autouse=True)
def looks_only_when_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits never looks again by itself: what ends a wait must be a ring."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 1_000.0)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An actor that waits as long as it takes."""
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def hasty() -> Iterator[Scene]:
    """An actor that gives up soon."""
    scene = Scene(timeout_s=0.03)
    yield scene
    scene.close()


def row(number: int) -> dict[str, Any]:
    """A row that says its number in every field."""
    return {"number": number, "pair": np.full(2, number, np.float32)}


def columns(first: int, rows: int) -> dict[str, Any]:
    """Several of them."""
    numbers = np.arange(first, first + rows)
    return {"number": numbers, "pair": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}


async def test_rows_are_handed_in_without_waiting_while_there_is_room(scene: Scene) -> None:
    """In order; no flush is requested."""
    for number in range(3):
        await scene.actor.add(**row(number))
    await scene.actor.extend(columns(3, 1))
    assert not scene.coordinator.is_flush_requested
    assert scene.take() == [0, 1, 2, 3]


async def test_an_actor_that_never_waits_lets_its_loop_turn(scene: Scene) -> None:
    """Signals, timers and other tasks of the user's run though every add finds room."""
    loop = asyncio.get_running_loop()
    end, number = loop.time() + 20, 0
    with other_task() as turns:
        while turns() < 5 and loop.time() < end:
            await scene.actor.add(**row(number))
            assert scene.take() == [number]
            number += 1
    assert turns() >= 5


async def test_adding_to_a_full_inbox_waits_for_room(scene: Scene) -> None:
    """A flush is requested, one row's room is enough, and order is kept."""
    await scene.fill()
    task = asyncio.create_task(scene.actor.add(**row(4)))
    await scene.asleep(task)
    assert scene.take(1) == [0]
    await task
    assert scene.take() + scene.take() == [1, 2, 3, 4]


async def test_a_field_may_have_the_name_of_a_methods_first_argument() -> None:
    """A row's values are named as its spec says."""
    spec = Spec(self=((), "int64"))
    inboxes = Inboxes(spec, 1, 4)
    actor = Actor(Channel(), config(inboxes))  # type: ignore[arg-type]
    await actor.add(self=7)
    assert inboxes.inbox(0).peek()[0]["self"][0] == 7
    inboxes.close()


@pytest.mark.parametrize("call", ["add", "extend"])
async def test_a_process_that_was_forked_during_a_turn_of_the_loop_hands_no_row_in(
    scene: Scene, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child must not write into the inbox of its parent."""
    scene.actor._writer._turns.period_s = 0.0
    work = scene.actor.extend(columns(0, 2)) if call == "extend" else scene.actor.add(**row(0))
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    with monkeypatch.context() as patch:
        patch.setattr(forks, "current", forks.Origin())
        with pytest.raises(WrongProcess, match="this actor"):
            await task
    assert scene.coordinator.used == 0


async def test_several_tasks_of_one_actor_may_add_at_once(scene: Scene) -> None:
    """Each row is handed in once, though all of them wait for the same room."""
    await scene.fill()
    tasks = [asyncio.create_task(scene.actor.add(**row(number))) for number in range(10, 16)]
    await scene.asleep(tasks[0])
    numbers = await scene.take_all(10)
    await asyncio.gather(*tasks)
    assert numbers[:4] == [0, 1, 2, 3]
    assert sorted(numbers[4:]) == list(range(10, 16))


async def test_extending_waits_for_room_for_all_rows(scene: Scene) -> None:
    """Not a part of them is handed in before."""
    await scene.actor.extend(columns(0, 2))
    task = asyncio.create_task(scene.actor.extend(columns(2, 3)))
    await scene.asleep(task)
    assert scene.coordinator.used == 2
    assert scene.take(1) == [0]
    await task
    assert scene.coordinator.used == 4


async def test_more_rows_than_an_inbox_has_go_in_by_pieces(scene: Scene) -> None:
    """As the coordinator takes them, in order."""
    task = asyncio.create_task(scene.actor.extend(columns(0, 19)))
    assert await scene.take_all(19) == list(range(19))
    await task


def when_it_waits(scene: Scene, work: Callable[[], object]) -> threading.Thread:
    """A thread that does its work as soon as the actor waits for room."""

    def run() -> None:
        while not scene.coordinator.waited_s:
            pass
        work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def test_many_bytes_are_not_copied_for_room_that_comes_soon(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call does not suspend, so that the caller cannot change its arrays before the end."""
    monkeypatch.setattr(inbox_writer, "_DEAR_BYTES", 3 * SPEC.row_bytes)
    monkeypatch.setattr(inbox_writer, "_BLOCKED_S", 1_000.0)
    scene.actor._writer._turns.period_s = 1_000.0
    await scene.fill()
    taking = when_it_waits(scene, scene.take)
    with pytest.raises(StopIteration):
        scene.actor.extend(columns(4, 3)).send(None)
    taking.join()
    await scene.actor.extend(columns(7, 1))
    task = asyncio.create_task(scene.actor.extend(columns(8, 2)))  # of fewer bytes
    await scene.asleep(task)
    assert scene.take() == [4, 5, 6, 7]
    await task
    assert scene.take() == [8, 9]


async def test_an_actor_that_is_asked_to_stop_waits_no_longer_for_room_that_comes_soon(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call suspends, and raises as it does whenever there is no room."""
    monkeypatch.setattr(inbox_writer, "_DEAR_BYTES", 0)
    monkeypatch.setattr(inbox_writer, "_BLOCKED_S", 1_000.0)
    scene.actor._writer._turns.period_s = 1_000.0
    await scene.fill()
    stopping = when_it_waits(scene, scene.coordinator.stop)
    with pytest.raises(Closed, match="asked to stop"):
        await scene.actor.extend(columns(4, 3))
    stopping.join()
    assert scene.take() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "held_by", ["a full inbox", "an inbox that gets no room soon", "a turn of the loop"]
)
@pytest.mark.parametrize("how", ["add", "extend", "more than an inbox"])
async def test_what_the_arrays_held_when_the_call_began_is_handed_in(
    scene: Scene, held_by: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written to them while it waits."""
    if held_by == "an inbox that gets no room soon":
        monkeypatch.setattr(inbox_writer, "_DEAR_BYTES", 0)
    if held_by != "a turn of the loop":
        scene.actor._writer._turns.period_s = 1_000.0
        await scene.fill()
    else:
        scene.actor._writer._turns.period_s = 0.0
    first = scene.coordinator.used
    rows = {"add": 1, "extend": 3, "more than an inbox": 9}[how]
    given = row(first) if how == "add" else columns(first, rows)
    given["number"] = np.array(given["number"])
    task = asyncio.create_task(
        scene.actor.add(**given) if how == "add" else scene.actor.extend(given)
    )
    await ticks(1)
    assert not task.done()
    for array in given.values():
        array[...] = -1
    assert await scene.take_all(first + rows) == list(range(first + rows))
    await task


async def test_a_vectors_arrays_may_change_while_it_waits_for_room() -> None:
    """Its values are those of the call, as they are of a step of one environment."""
    spec = Spec.steps(obs=((2,), "float32"), action=((), "int64"))
    inboxes = Inboxes(spec, 1, 4)
    coordinator = inboxes.inbox(0)
    for axes in ((2,), ()):
        actor = Actor(Channel(), config(inboxes))  # type: ignore[arg-type]
        actor._writer._turns.period_s = 1_000.0

        def step(axes: tuple[int, ...] = axes) -> dict[str, Any]:
            given = {"obs": np.full((*axes, 2), 3, np.float32), "action": np.full(axes, 4)}
            flags = {"terminated": np.zeros(axes, bool), "truncated": np.zeros(axes, bool)}
            return given | flags | {"reward": np.ones(axes, np.float32)}

        while coordinator.room >= max(1, *axes, 0):
            await actor.add(**step())
        given = step()
        task = asyncio.create_task(actor.add(**given))
        await ticks(3)
        assert not task.done()
        for array in given.values():
            array[...] = 1
        coordinator.consume(coordinator.used)
        await task
        rows, _, start, stop = coordinator.peek()
        assert rows["obs"][start:stop].tolist() == [[3, 3]] * max(1, *axes, 0)
        assert rows["action"][start:stop].tolist() == [4] * max(1, *axes, 0)
        assert not rows["terminated"][start:stop].any()
        coordinator.consume(stop - start)
        actor._writer._room.close()
    inboxes.close()


@pytest.mark.parametrize(("mode", "fits"), [("NextStep", 8), ("SameStep", 4), ("Disabled", 4)])
async def test_a_vector_of_which_a_step_may_not_fit_is_refused_at_the_first_step(
    mode: str, fits: int
) -> None:
    """Cancelled, it could leave a part of a step behind; the error names the option. What fits is
    taken."""
    spec = Spec.steps(obs=((), "float32"), action=((), "int64"))
    inboxes = Inboxes(spec, 1, 8)
    for count in (fits + 1, fits):
        actor = Actor(Channel(), config(inboxes))  # type: ignore[arg-type]
        actor.autoreset_mode = mode
        given = {"obs": np.zeros(count), "action": np.zeros(count, int), "reward": np.zeros(count)}
        given |= {"terminated": np.ones(count, bool), "truncated": np.zeros(count, bool)}
        given |= (
            {"final_obs": list(np.ones(count))}
            if mode == "SameStep"
            else {"next_obs": np.ones(count)}
        )
        if mode == "NextStep":
            del given["next_obs"]
        if count > fits:
            with pytest.raises(SpecMismatch, match="inbox_rows=") as caught:
                await actor.add(**given)
            assert caught.value.field == "terminated" and inboxes.inbox(0).used == 0
        else:
            await actor.add(**given)
            assert inboxes.inbox(0).used == 8
        actor._writer._room.close()
    inboxes.close()


@pytest.mark.parametrize("how", ["add", "extend"])
async def test_no_room_in_time_is_inbox_full_and_hands_in_nothing(hasty: Scene, how: str) -> None:
    """The message says who waits for whom, how full, and the knob; the actor can go on."""
    await hasty.fill()
    with pytest.raises(
        InboxFull, match=r"actor 3 waits for the coordinator: 4 of 4 rows .*raise add_timeout_s"
    ) as caught:
        await (hasty.actor.add(**row(4)) if how == "add" else hasty.actor.extend(columns(4, 2)))
    assert caught.value.timeout_s == 0.03
    assert hasty.take() == [0, 1, 2, 3]
    await hasty.actor.add(**row(5))
    assert hasty.take() == [5]


@pytest.mark.parametrize("how", ["add", "extend"])
async def test_handing_in_cancelled_at_any_tick_hands_in_nothing(how: str) -> None:
    """While it waits no row is in, and the next call works."""
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        scenes[-1].coordinator.extend(columns(0, 4), 0, 4)
        return scenes[-1]

    async def act(scene: Scene) -> None:
        await (scene.actor.add(**row(4)) if how == "add" else scene.actor.extend(columns(4, 2)))

    def check(scene: Scene) -> None:
        assert scene.coordinator.rows_put == 4

    assert await cancel_at_every_tick(build, act, check) == 12
    for scene in scenes:
        assert scene.take() == [0, 1, 2, 3]
        await scene.actor.add(**row(9))
        assert scene.take() == [9]
        scene.close()


async def test_handing_in_cancelled_while_there_is_room_is_all_or_nothing() -> None:
    """Before the row is in, or after: it is never half way."""
    scenes: list[Scene] = []

    def build() -> Scene:
        scenes.append(Scene())
        return scenes[-1]

    def check(scene: Scene) -> None:
        assert scene.coordinator.rows_put in (0, 3)

    await cancel_at_every_tick(build, lambda scene: scene.actor.extend(columns(0, 3)), check)
    for scene in scenes:
        scene.close()


@pytest.mark.parametrize(
    "bad", [{}, {"number": 1}, {**row(1), "more": 1}, {"number": "x", "pair": [1.0, 1.0]}]
)
async def test_a_row_that_does_not_fit_is_refused_and_the_actor_goes_on(
    scene: Scene, bad: dict[str, Any]
) -> None:
    """SpecMismatch; nothing of it is handed in."""
    with pytest.raises(SpecMismatch):
        await scene.actor.add(**bad)
    await scene.actor.add(**row(0))
    with pytest.raises(SpecMismatch):
        await scene.actor.extend({**columns(1, 2), "number": [1.5, 2.5]})
    assert scene.take() == [0]


async def test_flushing_waits_until_all_rows_were_taken(scene: Scene) -> None:
    """Those handed in before it; what comes meanwhile does not count. A flush is requested."""
    await scene.actor.flush()
    await scene.actor.extend(columns(0, 3))
    task = asyncio.create_task(scene.actor.flush())
    await scene.asleep(task)
    await scene.actor.add(**row(3))
    scene.take(2)
    await ticks(5)
    assert not task.done()
    scene.take(1)
    await task
    assert scene.coordinator.used == 1


async def test_a_flush_that_takes_too_long_is_a_timeout(hasty: Scene) -> None:
    """Not InboxFull: the inbox may have room. Nothing is lost."""
    await hasty.actor.add(**row(0))
    with pytest.raises(WaitTimeout, match="1 of 4 rows") as caught:
        await hasty.actor.flush()
    assert type(caught.value) is WaitTimeout
    assert hasty.take() == [0]


async def test_a_long_wait_is_said(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Backpressure is no secret."""
    monkeypatch.setattr(waiter_module, "_LOOK_AGAIN_S", 0.005)
    monkeypatch.setattr(waiter_module, "WARN_AFTER_S", 0.01)
    await scene.fill()
    with caplog.at_level(logging.WARNING, "areplay._processes.waiter"):
        task = asyncio.create_task(scene.actor.add(**row(4)))
        await until(lambda: bool(caplog.records))
        scene.take()
        await task
    assert "actor 3 waits for the coordinator: 4 of 4 rows" in caplog.text


async def test_an_actor_is_told_to_stop(scene: Scene) -> None:
    """By a flag that it looks at; it may still hand in rows."""
    assert not scene.actor.stopping
    scene.coordinator.stop()
    assert scene.actor.stopping
    await scene.actor.add(**row(0))
    assert scene.take() == [0]


def test_reports_are_sent_as_plain_scalars(scene: Scene) -> None:
    """numpy scalars and arrays of one element become numbers of Python's; bools and strings
    stay."""
    scene.actor.report(
        a=1, b=2.5, c=True, d="x", e=np.float32(0.5), f=np.array([7]), g=np.bool_(False), h=math.inf
    )
    ((kind, (when, values)),) = scene.channel.sent
    assert kind == REPORT and when > 1e9
    assert values == {
        "a": 1,
        "b": 2.5,
        "c": True,
        "d": "x",
        "e": 0.5,
        "f": 7,
        "g": False,
        "h": math.inf,
    }
    assert [type(value) for value in values.values()] == [
        int,
        float,
        bool,
        str,
        float,
        int,
        bool,
        float,
    ]


def test_a_scalar_may_have_any_name(scene: Scene) -> None:
    """Also that of a method's first argument."""
    scene.actor.report(self=1)
    assert scene.channel.sent[0][1][1] == {"self": 1}


def test_a_tensor_of_one_number_is_reported_as_that(scene: Scene) -> None:
    """What has to be detached first is a TypeError that says so."""
    torch = pytest.importorskip("torch")
    scene.actor.report(loss=torch.tensor(0.5), steps=torch.tensor([3]))
    assert scene.channel.sent[0][1][1] == {"loss": 0.5, "steps": 3}
    with pytest.raises(TypeError, match=r"loss=.*\.detach\(\)\.cpu\(\)"):
        scene.actor.report(loss=torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("value", [None, [1], np.zeros(2), {"a": 1}, 1j, b"x", object()])
def test_what_is_no_scalar_is_not_reported(scene: Scene, value: Any) -> None:
    """A TypeError names it, and nothing is sent."""
    with pytest.raises(TypeError, match="loss="):
        scene.actor.report(good=1, loss=value)
    assert scene.channel.sent == []


def test_a_report_for_which_there_is_no_room_is_dropped(scene: Scene) -> None:
    """It never waits, and never raises."""
    scene.channel.has_room = False
    scene.actor.report(loss=1.0)
    assert scene.channel.sent == []


def test_seeds_are_the_same_for_the_same_sequence_and_no_other() -> None:
    """An int of 32 bits and a generator, both from the one sequence."""

    def made(*key: int) -> tuple[int, int, list[int]]:
        inboxes = Inboxes(SPEC, 4, 4)
        actor = Actor(Channel(), config(inboxes, 3, key=key))  # type: ignore[arg-type]
        inboxes.close()
        return actor.index, actor.seed, actor.rng.integers(0, 1 << 60, 4).tolist()

    assert made(1, 0, 0, 0) == made(1, 0, 0, 0)
    different = [made(1, 0, 0, 0), made(1, 0, 0, 1), made(1, 0, 1, 0), made(1, 1, 0, 0)]
    assert all(index == 3 and 0 <= seed < 1 << 32 for index, seed, _ in different)
    assert len({seed for _, seed, _ in different}) == 4
    assert len({tuple(numbers) for *_, numbers in different}) == 4


def test_weights_are_those_of_the_learner() -> None:
    """Or a ValueError that says how to get some."""
    weights = Weights({"w": np.ones(3)})
    scene = Scene(weights=weights)
    assert scene.actor.weights.latest()[1]["w"].tolist() == [1.0] * 3
    scene.close()
    weights.close()
    without = Scene()
    with pytest.raises(ValueError, match="weights="):
        _ = without.actor.weights
    without.close()
