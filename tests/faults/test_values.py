"""Rows 14 and 15: what does not fit is refused and nothing of it is stored; what fits is stored bit
for bit.

Through the whole pipeline: an actor's process, its inbox, the ring, a sampler's process, the
learner.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import areplay
from tests.processes.watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

SPEC = areplay.Spec(obs=((2, 3), "float32"), action=((), "int64"), done=((), "bool"))
GOOD: dict[str, Any] = {"obs": np.ones((2, 3), np.float32), "action": 1, "done": False}
ONE_BY_ONE = {
    "wrong shape": ("obs", GOOD | {"obs": np.ones((3, 2), np.float32)}),
    "(1,) where () is due": ("action", GOOD | {"action": np.array([1])}),
    "() where (2, 3) is due": ("obs", GOOD | {"obs": np.float32(1)}),
    "float64 in float32": ("obs", GOOD | {"obs": np.ones((2, 3))}),
    "a fraction in int64": ("action", GOOD | {"action": 1.5}),
    "too large for int64": ("action", GOOD | {"action": 1 << 63}),
    "a number in bool": ("done", GOOD | {"done": 2}),
    "byte order": ("obs", GOOD | {"obs": np.ones((2, 3), ">f4")}),
    "object dtype": ("obs", GOOD | {"obs": np.full((2, 3), None)}),
    "text": ("action", GOOD | {"action": "one"}),
    "missing": ("done", {name: value for name, value in GOOD.items() if name != "done"}),
    "extra": ("reward", GOOD | {"reward": 1.0}),
    "misspelt": ("dome", {"obs": GOOD["obs"], "action": 1, "dome": False}),
}
COLUMNS: dict[str, Any] = {
    "obs": np.ones((3, 2, 3), np.float32),
    "action": np.arange(3),
    "done": np.zeros(3, bool),
}
TOGETHER = {
    "ragged": ("action", COLUMNS | {"action": np.arange(2)}),
    "0 rows": ("obs", {name: column[:0] for name, column in COLUMNS.items()}),
    "a row's shape": ("obs", COLUMNS | {"obs": np.ones((3, 2, 2), np.float32)}),
    "one bad row": ("action", COLUMNS | {"action": [0, 1, 2.5]}),
    "byte order": ("action", COLUMNS | {"action": np.arange(3, dtype=">i8")}),
    "object dtype": ("action", COLUMNS | {"action": np.array([0, 1, None])}),
    "missing": ("done", {"obs": COLUMNS["obs"], "action": COLUMNS["action"]}),
    "extra": ("reward", COLUMNS | {"reward": np.zeros(3)}),
}


async def try_all(actor: areplay.Actor) -> None:
    """Hand in everything that is wrong; then one good row."""
    for name, (_, row) in ONE_BY_ONE.items():
        await _try(actor, name, actor.add(**row))
    for name, (_, columns) in TOGETHER.items():
        await _try(actor, f"together: {name}", actor.extend(columns))
    await actor.add(**GOOD)


async def _try(actor: areplay.Actor, name: str, call: Any) -> None:
    try:
        await call
    except areplay.SpecMismatch as error:
        actor.report(
            case=name, field=error.field, expected=error.expected, got=error.got, said=str(error)
        )
    else:
        actor.report(case=name, field="")


async def test_what_does_not_fit_is_refused_in_the_actor_and_it_goes_on() -> None:
    """Each is a SpecMismatch that names the field, what was expected and what came; not even the
    good rows of a call are stored, and the actor hands in a good one afterwards."""
    async with (
        areplay.Replay(SPEC, 100) as replay,
        replay.actors(try_all, 1, max_restarts=0) as actors,
    ):
        await actors.wait()
        seen: dict[str, dict[str, Any]] = {}

        def has_all() -> bool:
            seen.update({report.values["case"]: report.values for report in actors.reports()})
            return len(seen) == len(ONE_BY_ONE) + len(TOGETHER)

        await until(has_all, what="a report of each case")
        await until(lambda: len(replay) == 1)
        assert replay.statistics().rows_inserted == 1
        expected = {name: field for name, (field, _) in ONE_BY_ONE.items()}
        expected |= {f"together: {name}": field for name, (field, _) in TOGETHER.items()}
        for name, field in expected.items():
            values = seen[name]
            assert values["field"], f"{name} was taken"
            if name not in ("misspelt", "missing", "extra") and "0 rows" not in name:
                assert values["field"] == field, name
            assert repr(values["field"]) in values["said"] and values["got"] in values["said"]


async def test_what_does_not_fit_is_refused_in_the_owners_process() -> None:
    """The same by Replay.add and extend."""
    async with areplay.Replay(SPEC, 100) as replay:
        for name, (_, row) in ONE_BY_ONE.items():
            with pytest.raises(areplay.SpecMismatch):
                await replay.add(**row)
            assert replay.statistics().rows_inserted == 0, name
        for name, (_, columns) in TOGETHER.items():
            with pytest.raises(areplay.SpecMismatch):
                await replay.extend(columns)
            assert replay.statistics().rows_inserted == 0, name
        await replay.add(**GOOD)
        assert len(replay) == 1


FLOATS = areplay.Spec(
    half=((4,), "float16"),
    single=((2, 4), "float32"),
    double=((4,), "float64"),
    number=((), "int64"),
)
SPECIAL = {
    # a NaN with a payload, -inf, the least, -0
    "half": np.array([0x7E01, 0xFC00, 0x0001, 0x8000], np.uint16),
    # a signalling NaN among them
    "single": np.array([0x7FA00001, 0x7F800000, 0x00000001, 0x80000000], np.uint32),
    "double": np.array(
        [0x7FF0000000000001, 0xFFF0000000000000, 0x1, 0x8000000000000000], np.uint64
    ),
}


def special(number: int) -> dict[str, Any]:
    """A row of numbers that are easily changed on their way; not contiguous."""
    half = np.repeat(SPECIAL["half"], 2).view(np.float16)[::2]
    single = np.asfortranarray(np.stack([SPECIAL["single"], SPECIAL["single"][::-1]])).view(
        np.float32
    )
    double = SPECIAL["double"].view(np.float64)[::-1]
    return {"half": half, "single": single, "double": double, "number": number}


async def hand_in_special(actor: areplay.Actor) -> None:
    """Some by add, some by extend, of memory that is not contiguous."""
    for number in range(10):
        await actor.add(**special(number))
    rows = [special(number) for number in range(10, 20)]
    columns = {name: np.stack([row[name] for row in rows]) for name in FLOATS}
    columns["single"] = np.asfortranarray(columns["single"])
    columns["double"] = np.repeat(columns["double"], 2, axis=0)[::2]
    await actor.extend(columns)


async def test_values_come_through_the_whole_pipeline_bit_for_bit() -> None:
    """NaN with payloads, infinities, denormals and -0, from arrays that are not contiguous."""
    async with (
        areplay.Replay(FLOATS, 100) as replay,
        replay.actors(hand_in_special, 1) as actors,
        replay.batches(batch_size=256, min_size_to_sample=20) as batches,
    ):
        await actors.wait()
        batch = await anext(batches)
        assert set(batch["number"].tolist()) == set(range(20))
        single = np.stack([SPECIAL["single"], SPECIAL["single"][::-1]])
        assert (batch["half"].view(np.uint16) == SPECIAL["half"]).all()
        assert (batch["single"].view(np.uint32) == single).all()
        assert (batch["double"].view(np.uint64) == SPECIAL["double"][::-1]).all()
        assert os.getpid() != actors.statistics()[0].pid
