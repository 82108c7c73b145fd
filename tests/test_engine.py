"""Tests of `_engine.engine`: complete or not there at all, and gone with its replay."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import memory_descriptors, open_descriptors, until

import areplay
from areplay._engine import engine as engine_module

SPEC = areplay.Spec(x=((), "int64"))
PARTS = [
    "PriorityTables",
    "Admission",
    "LocalSampler",
    "LocalWriter",
    "Coordinator",
    "Standstill",
    "Saver",
]


class PartFailed(Exception):
    """What a part raises."""


@pytest.mark.parametrize("part", PARTS)
async def test_if_a_part_fails_those_before_it_are_closed(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor and no memory is left, and the next replay opens."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise PartFailed(part)

    async with areplay.Replay(SPEC, 100):
        pass  # what is opened once for all
    before = open_descriptors(), memory_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, part, fail)
        with pytest.raises(PartFailed) as raised:
            await areplay.Replay(SPEC, 100).__aenter__()
    raised.value.__traceback__ = None  # its frames hold the parts
    del raised
    gc.collect()
    await until(lambda: (open_descriptors(), memory_descriptors()) == before)
    async with areplay.Replay(SPEC, 100) as replay:
        assert await replay.add(x=1) == 0


async def test_a_hook_that_raises_while_priorities_are_loaded_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The tables of a checkpoint are given back, too."""
    async with areplay.Replay(SPEC, 1_000, block_rows=32) as replay:
        await replay.extend({"x": np.arange(1_000)}, priorities=np.ones(1_000))
        await replay.save(tmp_path)
    before = open_descriptors(), memory_descriptors()

    def fail(done_bytes: int, size_bytes: int) -> None:
        raise PartFailed

    with pytest.raises(PartFailed) as raised:
        await areplay.Replay.load(tmp_path, on_progress=fail)
    raised.value.__traceback__ = None
    del raised
    gc.collect()
    await until(lambda: (open_descriptors(), memory_descriptors()) == before)


@pytest.mark.parametrize("is_closed", [True, False])
async def test_an_engine_goes_with_its_replay(is_closed: bool) -> None:
    """Nothing holds it in a circle: its memory does not wait for the garbage collector."""
    replay = await areplay.Replay(SPEC, 100).__aenter__()
    await replay.add(x=1)
    replay.sample(1, selector=areplay.Prioritized(1.0))
    replay.statistics()
    engine = weakref.ref(replay._opened())
    gc.collect()
    gc.disable()
    try:
        if is_closed:
            await replay.close()
        del replay
        await until(lambda: engine() is None)
    finally:
        gc.enable()


async def test_numbers_of_groups_and_streams_are_not_given_twice() -> None:
    """They are in the seeds: two streams with the same draws would be the same."""
    async with areplay.Replay(SPEC, 100, seed=1) as replay:
        await replay.extend({"x": np.arange(100)})
        counters = replay._opened().counters
        replay.sample(1, selector=areplay.Epochs(1))
        async with replay.batches(batch_size=4) as batches:
            assert batches.statistics().number == 1
        assert counters.next_number() == 2
