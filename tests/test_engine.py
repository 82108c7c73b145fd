"""Tests of `_engine.engine`: complete or not there at all, and gone with its replay."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import open_descriptors, until

import areplay
from areplay._engine import engine as engine_module

SPEC = areplay.Spec(x=((), "int64"))
PARTS = [
    "Admission",
    "LocalSampler",
    "LocalWriter",
    "Coordinator",
    "Standstill",
    "Saver",
]
MAPPINGS = 2
"""Descriptors of the mapped memory of ring and priorities: they go with the last view."""


class PartFailed(Exception):
    """What a part raises."""


async def saved(folder: Path) -> None:
    """A checkpoint with priorities."""
    async with areplay.Replay(SPEC, 1_000, block_rows=32) as replay:
        await replay.extend({"x": np.arange(1_000)}, priorities=np.ones(1_000))
        await replay.save(folder)


@pytest.mark.parametrize("part", PARTS)
async def test_if_a_part_fails_those_before_it_are_closed(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the error still refers to them by its frames; and the next replay opens."""
    await saved(tmp_path)
    gc.collect()
    before = open_descriptors()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise PartFailed(part)

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, part, fail)
        with pytest.raises(PartFailed) as raised:
            await areplay.Replay.load(tmp_path)
    assert open_descriptors() <= before + MAPPINGS
    raised.value.__traceback__ = None
    del raised
    await until(lambda: open_descriptors() == before)
    async with await areplay.Replay.load(tmp_path) as replay:
        assert len(replay) == 1_000


async def test_a_hook_that_raises_while_priorities_are_loaded_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The priorities of a checkpoint are given back, too, though the error refers to them."""
    await saved(tmp_path)
    gc.collect()
    before = open_descriptors()

    def fail(done_bytes: int, size_bytes: int) -> None:
        raise PartFailed

    with pytest.raises(PartFailed) as raised:
        await areplay.Replay.load(tmp_path, on_progress=fail)
    assert open_descriptors() <= before + MAPPINGS
    raised.value.__traceback__ = None
    del raised
    await until(lambda: open_descriptors() == before)


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
