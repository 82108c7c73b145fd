"""Row 20: every public await, cancelled at every point where it may be suspended.

The list of public awaits is checked against the classes, so that a new one cannot be forgotten. A
call is cancelled at its k-th suspension, for k = 0, 1, 2, ... until it ends before: cancelling goes
where the event loop would let it go.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

import areplay
from areplay._processes import waiter as waiting
from areplay._sampling.slots import LENT, READY
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, row, rows, torn
from tests.processes.watching import children, until

on_uvloop = pytest.mark.asyncio(loop_factories=["uvloop"])

MOST = 6  # suspensions of a call that waits for what does not come

AWAITS = {
    "Replay.__aenter__": "tests/test_replay.py::test_opening_cancelled_at_any_tick_leaves_nothing",
    "Replay.__aexit__": "tests/processes/test_closing.py::test_cancelled_while_closing_closes_all_the_same",
    "Replay.close": "tests/test_replay.py::test_a_cancelled_close_closes_all_the_same",
    "Replay.add": "tests/faults/test_cancelling.py::test_writing_cancelled_anywhere_is_all_or_nothing",
    "Replay.extend": "tests/faults/test_cancelling.py::test_writing_cancelled_anywhere_is_all_or_nothing",
    "Actors.__aenter__": "tests/faults/test_cancelling.py::test_starting_children_cancelled_anywhere_leaves_none",
    "Actors.__aexit__": "tests/processes/test_closing.py::test_cancelled_while_closing_closes_all_the_same",
    "Actors.close": "tests/faults/test_cancelling.py::test_closing_cancelled_anywhere_closes_all_the_same",
    "Actors.wait": "tests/faults/test_cancelling.py::test_waiting_cancelled_anywhere_changes_nothing",
    "Batches.__aenter__": "tests/faults/test_cancelling.py::test_starting_children_cancelled_anywhere_leaves_none",
    "Batches.__aexit__": "tests/processes/test_closing.py::test_cancelled_while_waiting_for_a_batch",
    "Batches.close": "tests/faults/test_cancelling.py::test_closing_cancelled_anywhere_closes_all_the_same",
    "Batches.__anext__": "tests/faults/test_cancelling.py::test_waiting_cancelled_anywhere_changes_nothing",
    "Batches.get": "tests/faults/test_cancelling.py::test_waiting_cancelled_anywhere_changes_nothing",
    "Actor.add": "tests/test_actor.py::test_handing_in_cancelled_at_any_tick_hands_in_nothing",
    "Actor.extend": "tests/test_actor.py::test_handing_in_cancelled_at_any_tick_hands_in_nothing",
    "Replay.save": "tests/test_checkpoint.py::test_a_cancelled_save_leaves_the_checkpoint_before",
    "Replay.load": "tests/test_checkpoint.py::test_a_cancelled_load_leaves_nothing",
    "Checkpoints.__aenter__": "tests/test_checkpoint.py::test_a_last_checkpoint_is_made_when_the_learner_fails",
    "Checkpoints.__aexit__": "tests/test_checkpoint.py::test_leaving_checkpoints_can_be_cancelled",
    "Actor.flush": "tests/faults/test_cancelling.py::test_an_actor_cancelled_in_its_calls_hands_in_all_or_nothing",
}


@pytest.fixture(autouse=True)
def eager_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits looks again all the time, and so is suspended again and again."""
    monkeypatch.setattr(waiting, "_LOOK_AGAIN_S", 0.005)


def test_every_public_await_is_listed() -> None:
    """Coroutine functions, and those that return a coroutine, of everything public."""
    found = set()
    for name in areplay.__all__:
        public = getattr(areplay, name)
        if not inspect.isclass(public):
            continue
        workers = {
            key: value for kind in reversed(public.__mro__) for key, value in vars(kind).items()
        }
        for attribute, value in workers.items():
            value = getattr(value, "__func__", value)  # of a class method
            is_public = not attribute.startswith("_") or attribute in (
                "__aenter__",
                "__aexit__",
                "__anext__",
            )
            returns = str(getattr(value, "__annotations__", {}).get("return", ""))
            if is_public and (
                inspect.iscoroutinefunction(value) or returns.startswith("Coroutine")
            ):
                found.add(f"{name}.{attribute}")
    assert found == set(AWAITS)


class CancelledAt:
    """Awaits something, and has its own task cancelled at the k-th suspension of it."""

    def __init__(self, work: Awaitable[Any], k: int) -> None:
        self._work, self._left = work, k
        self.is_over = False  # whether the suspension was never reached

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._work.__await__()
        try:
            waits_for = next(inner)
            while True:
                if self._left == 0:
                    task = asyncio.current_task()
                    assert task is not None
                    asyncio.get_running_loop().call_soon(task.cancel)
                self._left -= 1
                try:
                    sent = yield waits_for
                except BaseException as error:
                    waits_for = inner.throw(error)
                else:
                    waits_for = inner.send(sent)
        except StopIteration as stop:
            self.is_over = self._left >= 0
            return stop.value


async def cancelled_anywhere(
    act: Callable[[], Awaitable[Any]], check: Callable[[Any], Awaitable[None]], *, waits: bool
) -> None:
    """Cancel `act()` at each of its suspensions, and `check` each time what it came to.

    Args:
        waits: it does not end before it is cancelled: then the first few of them.
    """
    for k in range(MOST):
        call = CancelledAt(act(), k)
        (outcome,) = await asyncio.gather(asyncio.create_task(_await(call)), return_exceptions=True)
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
        await check(outcome)
        if call.is_over:
            assert not waits
            return
    assert waits, "it was suspended again and again"


async def _await(work: Awaitable[Any]) -> Any:
    return await work


def limiter() -> areplay.SamplesPerInsert:
    """Lets the owner write 17 rows, and then 8 for each batch of 8."""
    return areplay.SamplesPerInsert(1.0, min_size_to_sample=1, error_buffer=16.0)


@on_uvloop
@pytest.mark.parametrize("held_by", ["another call", "limiter", "fifo"])
async def test_writing_cancelled_anywhere_is_all_or_nothing(held_by: str) -> None:
    """add and extend, while another call, a limiter or a queue holds them: nothing of a cancelled
    one is written, and nothing stays reserved or counted; when it may, the next one is."""
    async with areplay.Replay(SPEC, 64, block_rows=16) as replay, AsyncExitStack() as stack:
        if held_by == "limiter":
            stream = replay.batches(batch_size=8, limiter=limiter(), timeout_s=30.0)
        else:
            stream = replay.batches(
                batch_size=8, prefetch=1, selector=areplay.Fifo(), timeout_s=30.0
            )
        if held_by != "another call":
            await stack.enter_async_context(stream)

        def inserted() -> int:
            return replay.statistics().rows_inserted

        async def add() -> None:
            await replay.add(**row(OWNER, 1, inserted()))

        async def extend() -> None:
            await replay.extend(rows(OWNER, 1, inserted(), inserted() + 5))

        for act, count in ((add, 1), (extend, 5)):
            if held_by == "another call":
                release = await _busy(replay)
            else:
                with pytest.raises(TimeoutError):
                    while True:
                        await asyncio.wait_for(add(), 0.1)
            before = inserted()

            async def check(outcome: Any, before: int = before) -> None:
                assert isinstance(outcome, asyncio.CancelledError)
                assert inserted() == before
                assert replay._opened().registry.reserved == 0
                assert replay.statistics().waits == ()

            # A lock is waited for in one suspension, which lasts.
            most = MOST if held_by != "another call" else 1
            for k in range(most):
                call = CancelledAt(act(), k)
                await check(
                    (
                        await asyncio.gather(
                            asyncio.create_task(_await(call)), return_exceptions=True
                        )
                    )[0]
                )
            task = asyncio.create_task(act())
            if held_by == "another call":
                release()
            else:
                while not task.done():
                    with suppress(areplay.WaitTimeout):
                        (await stream.get(0.02)).release()
            await task
            assert inserted() == before + count
        numbers = replay._opened().ring.columns["number"]
        assert int(numbers.max()) == inserted() - 1


async def _busy(replay: areplay.Replay) -> Callable[[], None]:
    """Keep other writers of this process waiting; what ends that."""
    await replay._opened().local_writer._lock.acquire()
    return replay._opened().local_writer._lock.release


@on_uvloop
async def test_starting_children_cancelled_anywhere_leaves_none() -> None:
    """Actors and batches, entered and cancelled at each suspension of the caller: no child is left,
    and the next group starts. (At moments of the start itself: tests/processes/test_closing.py.)"""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 10))
        for make in (
            lambda: replay.actors(workers.hand_in_until_stopped, 1, args=(0.01,), grace_s=0.5),
            lambda: replay.batches(batch_size=4, grace_s=0.5, selector=areplay.Fifo()),
        ):

            async def check(outcome: Any) -> None:
                if not isinstance(outcome, asyncio.CancelledError):
                    await outcome.__aexit__(None, None, None)
                assert children() == before
                assert replay._opened().registry.pins == ()

            await cancelled_anywhere(lambda make=make: make().__aenter__(), check, waits=False)


@on_uvloop
@pytest.mark.parametrize("what", ["actors", "batches"])
async def test_closing_cancelled_anywhere_closes_all_the_same(what: str) -> None:
    """close() of actors and of batches: wherever it is cancelled, everything is closed when it
    ends."""
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 10))
        for k in range(MOST):
            group: areplay.Actors | areplay.Batches
            if what == "actors":
                group = replay.actors(workers.hand_in_until_stopped, 1, args=(0.01,))
            else:
                group = replay.batches(batch_size=4)
            await group.__aenter__()
            call = CancelledAt(group.close(), k)
            (outcome,) = await asyncio.gather(
                asyncio.create_task(_await(call)), return_exceptions=True
            )
            assert children() == before
            assert group.is_closed
            if call.is_over:
                assert outcome is None
                break
            assert isinstance(outcome, asyncio.CancelledError)


@on_uvloop
@pytest.mark.parametrize("held_by", ["no rows", "limiter", "fifo"])
async def test_waiting_cancelled_anywhere_changes_nothing(held_by: str) -> None:
    """Batches.get and the loop over batches while there is none to be had, and while there are: no
    batch is taken that nobody has, no slot is lost, and the next call gets what this one would have
    got. And Actors.wait."""
    options: dict[str, dict[str, Any]] = {
        "limiter": {"limiter": limiter()},
        "fifo": {"selector": areplay.Fifo()},
    }
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.batches(
            batch_size=8, prefetch=2, timeout_s=30.0, **options.get(held_by, {})
        ) as batches,
    ):
        queue = batches._stream.queue
        slots = queue.slots

        async def nothing_taken(outcome: Any) -> None:
            assert isinstance(outcome, asyncio.CancelledError)
            slots.check()
            assert slots.count(LENT) == 0
            assert batches._stream.waits() == []
            assert batches.statistics().batches_delivered == delivered

        async def one_or_nothing(outcome: Any) -> None:
            if isinstance(outcome, areplay.Batch):
                assert torn(outcome) == 0
                outcome.release()
                queue.current = None
            slots.check()
            assert slots.count(LENT) == 0
            await until(lambda: slots.count(READY) > 0)

        if held_by == "limiter":
            await replay.extend(rows(OWNER, 1, 0, 1))
            for _ in range(2):
                (await batches.get(30.0)).release()
        for take in (lambda: batches.get(30.0), lambda: anext(batches)):
            delivered = batches.statistics().batches_delivered
            await cancelled_anywhere(take, nothing_taken, waits=True)
            start = replay.statistics().rows_inserted
            await replay.extend(rows(OWNER, 1, start, start + 8))
            batch = await take()
            if held_by == "fifo":
                assert batch["number"].tolist() == list(range(start, start + 8))
            batch.release()
            queue.current = None
            if held_by == "no rows":  # from here on there are always some
                await until(lambda: slots.count(READY) > 0)
                await cancelled_anywhere(take, one_or_nothing, waits=False)
                break
        if held_by == "no rows":
            await until(
                lambda: slots.count(READY) == slots.slots, what="all slots are filled again"
            )
        async with replay.actors(workers.hand_in_until_stopped, 1, args=(1.0,)) as actors:
            call = CancelledAt(actors.wait(), 0)
            (outcome,) = await asyncio.gather(
                asyncio.create_task(_await(call)), return_exceptions=True
            )
            assert isinstance(outcome, asyncio.CancelledError)
            assert actors.alive == 1


async def cancelled_calls(actor: areplay.Actor) -> None:
    """add, extend and flush, each cancelled at its first suspensions; how much was handed in is
    reported."""
    number = 0
    for turn in range(400):
        k = turn % 3
        call: Awaitable[Any]
        if turn % 10 == 9:
            call, count = actor.flush(), 0
        elif turn % 2:
            call, count = actor.add(**row(actor.index, 1, number)), 1
        else:
            call, count = actor.extend(rows(actor.index, 1, number, number + 7)), 7
        (outcome,) = await asyncio.gather(
            asyncio.create_task(_await(CancelledAt(call, k))), return_exceptions=True
        )
        if outcome is None:
            number += count
        elif not isinstance(outcome, asyncio.CancelledError):
            raise outcome
    await actor.flush()
    actor.report(handed_in=number)


@on_uvloop
async def test_an_actor_cancelled_in_its_calls_hands_in_all_or_nothing() -> None:
    """In a real process with an inbox that is always full: what returned is stored once and in
    order, what was cancelled never was."""
    async with areplay.Replay(SPEC, 10_000) as replay:
        async with replay.actors(cancelled_calls, 1, inbox_rows=8, max_restarts=0) as actors:
            await actors.wait()
            reports: list[areplay.Report] = []
            await until(lambda: reports.extend(actors.reports()) or reports)
        (stream,) = replay._opened().ring.occupied()[1].sum(keepdims=True).tolist()
        assert stream == reports[0].values["handed_in"] == replay.statistics().rows_inserted
        numbers = replay._opened().ring.columns["number"][:stream]
        assert numbers.tolist() == list(range(stream))
        print(f"{stream} rows handed in")
