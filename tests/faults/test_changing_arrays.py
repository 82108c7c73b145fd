"""Row 33: arrays that the caller changes while a call waits. What they held when the call began to
run is stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._ingest import local_writer as local_writer
from areplay._ingest.rate_controller import RateController
from areplay._storage.stream_writer import StreamWriter
from tests.processes.watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

PLAIN = areplay.Spec(number=((), "int64"), pair=((2,), "float32"))
STEPS = areplay.Spec.steps(
    obs={"image": ((2, 2), "uint8"), "speed": ((), "float32")},
    action=((), "int64"),
    tag=((), "int32"),
)
FLAT = areplay.Spec.steps(obs=((2,), "float32"), action=((), "int64"))
N = 3  # rows of an extend, environments of a vector

Arrays = list[np.ndarray[Any, Any]]


def row() -> dict[str, Any]:
    """A row of arrays, even where a number would do."""
    return {"number": np.array(7), "pair": np.array([1, 2], np.float32)}


def columns() -> dict[str, Any]:
    """Rows that need no conversion; one column is a view."""
    return {
        "number": np.arange(2 * N)[::2],
        "pair": np.arange(2 * N, dtype=np.float32).reshape(N, 2),
    }


def step(*axes: int, ends: bool = False) -> dict[str, Any]:
    """A step, of one environment or of several; with its final observation, if it ends."""

    def obs(value: int) -> dict[str, Any]:
        return {
            "image": np.full((*axes, 2, 2), value, np.uint8),
            "speed": np.full(axes, value, np.float32),
        }

    flags = {"terminated": np.full(axes, ends), "truncated": np.zeros(axes, bool)}
    given = {
        "obs": obs(3),
        "action": np.full(axes, 5),
        "reward": np.full(axes, 0.5, np.float32),
        **flags,
    }
    return given | {"tag": np.full(axes, 6, np.int32)} | ({"next_obs": obs(4)} if ends else {})


def flat_steps() -> dict[str, Any]:
    """Steps of one environment."""
    given = {"obs": np.arange(2 * N, dtype=np.float32).reshape(N, 2), "action": np.arange(N)}
    return given | {
        "reward": np.ones(N, np.float32),
        "terminated": np.zeros(N, bool),
        "truncated": np.zeros(N, bool),
    }


def arrays_in(value: Any) -> Arrays:
    """All arrays of a row."""
    if isinstance(value, dict):
        return [array for inner in value.values() for array in arrays_in(inner)]
    return [value]


def overwrite(given: dict[str, Any]) -> None:
    """Change every value of a row in place."""
    for array in arrays_in(given):
        array[...] = ~array if array.dtype == bool else array + 100


CALLS: dict[str, tuple[areplay.Spec, Callable[[], dict[str, Any]], bool]] = {
    "a row": (PLAIN, row, False),
    "columns": (PLAIN, columns, True),
    "a step": (STEPS, step, False),
    "the last step": (STEPS, lambda: step(ends=True), False),
    "steps": (FLAT, flat_steps, True),
    "a vector": (STEPS, lambda: step(N), False),
    "the last steps of a vector": (STEPS, lambda: step(N, ends=True), False),
}


async def expected_of(spec: areplay.Spec, given: dict[str, Any], is_extend: bool) -> dict[str, Any]:
    """What a call stores that does not wait, in a replay of its own."""
    async with areplay.Replay(spec, 64) as replay:
        replay_mode(replay)
        await (replay.extend(given, priorities=None) if is_extend else replay.add(**given))
        return stored(replay)


def replay_mode(replay: areplay.Replay) -> None:
    """The mode in which a vector brings its final observations along."""
    if replay.spec.is_steps:
        replay.autoreset_mode = "Disabled"


def stored(replay: areplay.Replay, first: int = 0) -> dict[str, Any]:
    """All rows from that one on, as lists; without the links, which count on."""
    ring = replay._opened().ring
    assert ring is not None
    rows = slice(first, int(ring.rows_inserted[0]))
    return {name: ring.columns[name][rows].tolist() for name in replay.spec}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("held_by", ["another call", "a limiter"])
async def test_a_call_that_waits_stores_what_its_arrays_held_when_it_began(
    call: str, held_by: str
) -> None:
    """In the owner's process: for another call, and for the learner."""
    spec, make, is_extend = CALLS[call]
    expected = await expected_of(spec, make(), is_extend)
    async with areplay.Replay(spec, 64) as replay:
        replay_mode(replay)
        option = areplay.SamplesPerInsert(1.0, 1, 4.0)
        limiter = RateController(option, 2, 0, nullcontext())  # as a stream of batches makes one
        engine = replay._opened()
        engine.admission.add(limiter)
        # The test is the learner.
        engine.local_writer._local_admission._why_hopeless = lambda: ""

        async def hand_in(given: dict[str, Any]) -> None:
            await (replay.extend(given) if is_extend else replay.add(**given))

        def take_batch() -> None:
            if limiter.can_sample:
                limiter.sample()
            replay._opened().admission.notify()

        first = None
        while first is None or first.done():  # until the limiter lets no more in
            before = replay.statistics().rows_inserted
            first = asyncio.create_task(hand_in(make()))
            await asyncio.sleep(0)
            assert not first.done() or first.exception() is None
        given = make()
        if held_by == "a limiter":
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        waiting = asyncio.create_task(hand_in(given))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        overwrite(given)
        async with asyncio.timeout(30):
            while not (waiting.done() and first.done()):
                take_batch()
                await asyncio.sleep(0)
        await waiting
        found = stored(replay, before)
    calls = 2 if held_by == "another call" else 1
    assert found == {name: values * calls for name, values in expected.items()}


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("call", ["columns", "steps"])
async def test_a_large_extend_stores_what_its_arrays_held_when_it_began(
    call: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a thread writes it; and if it is so large that it is not copied before, on the loop."""
    spec, make, _ = CALLS[call]
    expected, given = await expected_of(spec, make(), True), make()
    monkeypatch.setattr(local_writer, "_INLINE_BYTES", 0)
    if limit:
        monkeypatch.setattr(local_writer, "_COPIED_BYTES", 1)
    may_write, write, threads = threading.Event(), StreamWriter.write, []

    def late(*args: Any) -> Any:
        threads.append(threading.current_thread())
        if threads[-1] is not threading.main_thread():
            assert may_write.wait(20)
        return write(*args)

    monkeypatch.setattr(StreamWriter, "write", late)
    async with areplay.Replay(spec, 64) as replay:
        extending = asyncio.create_task(replay.extend(given))
        await until(lambda: bool(threads))
        overwrite(given)
        may_write.set()
        await extending
        assert stored(replay) == expected
    if call == "columns":
        assert (threads[0] is threading.main_thread()) == bool(limit)


async def change_meanwhile(actor: areplay.Actor, turns: int) -> None:
    """Hand in rows and columns from arrays that are overwritten as soon as the call is under
    way."""
    pair, number = np.zeros(2, np.float32), np.zeros((), np.int64)
    pairs, numbers = np.zeros((N, 2), np.float32), np.zeros(N, np.int64)
    handed_in = 0
    for turn in range(turns):
        if turn % 2:
            number[...], pair[:] = handed_in, handed_in
            call, count = actor.add(number=number, pair=pair), 1
        else:
            numbers[:] = range(handed_in, handed_in + N)
            pairs[:] = numbers[:, None]
            call, count = actor.extend({"number": numbers, "pair": pairs}), N
        task = asyncio.create_task(call)
        await asyncio.sleep(0)  # it begins to run, and waits if the inbox is full
        for array in (number, pair, numbers, pairs):
            array[...] = -1
        await task
        handed_in += count
    await actor.flush()


async def test_an_actor_that_waits_for_room_hands_in_what_its_arrays_held() -> None:
    """A real one, whose inbox is nearly always full."""
    async with areplay.Replay(PLAIN, 4_096) as replay:
        async with replay.actors(
            change_meanwhile, 1, args=(400,), inbox_rows=4, max_restarts=0
        ) as actors:
            await actors.wait()
        found = stored(replay)
        assert found["number"] == list(range(200 + 200 * N))
        assert found["pair"] == [[number, number] for number in found["number"]]
