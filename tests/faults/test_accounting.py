"""Resource accounting: what is opened and closed hundreds of times leaves the process as it was."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile

import numpy as np
import pytest

import areplay
from tests.faults.storm import Resources
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, rows, torn

IS_LONG = os.environ.get("AREPLAY_FAULTS") == "long"
CYCLES = 2_000 if IS_LONG else 100
CYCLES_WITH_CHILDREN = 100 if IS_LONG else 2
GROWTH_BYTES = 4 << 20  # of the interpreter's allocator, which does not give back every arena

both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def life(number: int) -> None:
    """A replay with all that hangs on it and needs no child; each kind of selector in its turn;
    some are saved."""
    weights = areplay.Weights({"w": np.zeros(100)})
    weights.publish({"w": np.ones(100)})
    selectors = areplay.Uniform(), areplay.Prioritized(), areplay.Fifo(), areplay.Epochs(2)
    async with areplay.Replay(SPEC, 5_000) as replay:
        await replay.extend(rows(OWNER, 1, 0, 500))
        await replay.add(**{name: column[0] for name, column in rows(OWNER, 1, 500, 501).items()})
        batch = replay.sample(16, selector=selectors[number % len(selectors)])
        assert torn(batch) == 0
        replay.actors(workers.hand_in, 2, args=(10,))  # never entered
        replay.batches(batch_size=8, samplers=2)
        if number % 10 == 0:  # a disk takes its time
            with tempfile.TemporaryDirectory() as path:
                await replay.save(path)
                async with await areplay.Replay.load(path) as loaded:
                    assert len(loaded) == 501
    weights.close()


async def life_with_children() -> None:
    """An actor, two samplers, a limiter; closed while all are at work."""
    weights = areplay.Weights({"w": np.zeros(100)})
    async with (
        areplay.Replay(SPEC, 5_000) as replay,
        replay.batches(
            batch_size=8,
            samplers=2,
            limiter=areplay.SamplesPerInsert(2.0, min_size_to_sample=10),
            timeout_s=30.0,
        ) as batches,
        replay.actors(workers.hand_in_until_stopped, 1, weights=weights),
    ):
        for _ in range(5):
            assert torn(await anext(batches)) == 0
    weights.close()


async def settled() -> tuple[Resources, int]:
    """What there is once callbacks have run, and how many tasks."""
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    return Resources.now(), len(asyncio.all_tasks())


@both_loops
async def test_nothing_grows_over_hundreds_of_lives() -> None:
    """Descriptors, mappings, memory, processes, threads and tasks: after some to warm up, flat."""
    for number in range(40):
        await life(number)
    before, tasks = await settled()
    for number in range(CYCLES):
        await life(number)
    after, tasks_after = await settled()
    print(f"{before}\n{after}")
    assert after.left_over(before) == []
    assert after.memory_bytes < before.memory_bytes + GROWTH_BYTES
    assert tasks_after == tasks


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_nothing_grows_over_lives_with_children() -> None:
    """The same with processes that are started and ended each time."""
    await life_with_children()
    before, tasks = await settled()
    for _ in range(CYCLES_WITH_CHILDREN):
        await life_with_children()
    after, tasks_after = await settled()
    print(f"{before}\n{after}")
    assert after.left_over(before) == []
    assert after.memory_bytes < before.memory_bytes + GROWTH_BYTES
    assert tasks_after == tasks
