"""Tests of `statistics`, and of what a replay puts into the records."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import areplay
from areplay import statistics
from areplay.statistics import (
    ActorStatistics,
    BatchesStatistics,
    ChildExit,
    LimiterStatistics,
    SamplerStatistics,
    SaveResult,
    SavesStatistics,
    Statistics,
    Wait,
)

EXIT = ChildExit(16, -9, "signal 9 ended it", 1_700_000_000.0)
ACTOR = ActorStatistics(0, 17, True, 1, 100, 3, 16, 0.0, 0, False, False, EXIT, 0.0)
SAMPLER = SamplerStatistics(0, 18, True, 0, False, False, None, 107, 8, 0)
LIMITER = LimiterStatistics(8.0, 1_000, 512.0, -12.0, 2_000, 8_012, False, False)
COUNTS = (256, 16, 8, 0.5, 1, 99, 3, 2, 1, 0, 5, 0.25, 0.1)
BATCHES = BatchesStatistics(
    *COUNTS, LIMITER, None, 1, "Rows() by Uniform()", 18, 1, 4_096, (SAMPLER,)
)
WAIT = Wait("learner", "for rows", 1.5)
SAVED = SaveResult(90, 8, 2, 1, 5_000, 0.3)
SAVES = SavesStatistics(
    2, 1, 0, SAVED, "runs/1", 1_700_000_100.0, "the disk is full", 1_700_000_050.0
)
WHOLE = Statistics(
    90,
    128,
    100,
    45,
    8,
    16,
    9,
    0,
    0,
    (ACTOR,),
    (BATCHES,),
    (WAIT,),
    1_700_000_000.0,
    9_000,
    1_700_000_200.0,
    SAVES,
)
RECORDS: list[Any] = [EXIT, ACTOR, SAMPLER, LIMITER, BATCHES, WAIT, SAVED, SAVES, WHOLE]


def test_there_is_an_example_of_every_record() -> None:
    """What follows is about all of them, but what actors report, which is no state of a replay."""
    kinds = {kind for _, kind in inspect.getmembers(statistics, dataclasses.is_dataclass)}
    assert {type(record) for record in RECORDS} == kinds


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_of_one_moment(record: Any) -> None:
    """Frozen, comparable, and it can be sent elsewhere or turned into a dictionary for a log."""
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, 5)
    assert pickle.loads(pickle.dumps(record)) == record
    assert dataclasses.replace(record) == record
    assert dataclasses.asdict(record)[name] == getattr(record, name)


def test_a_whole_record_contains_those_of_its_parts() -> None:
    """By actor, by stream of batches, by sampler; as plain data, which JSON takes."""
    plain = dataclasses.asdict(WHOLE)
    assert plain["actors"][0]["inbox_rows"] == 16
    assert plain["actors"][0]["last_failure"]["exit_code"] == -9
    assert plain["batches"][0]["peak_learner_wait_s"] == 0.1
    assert plain["batches"][0]["limiter"]["error_buffer"] == 512.0
    assert plain["batches"][0]["samplers"][0]["batches_filled"] == 107
    assert plain["waits"][0]["who"] == "learner"
    assert plain["saves"]["last"]["bytes_written"] == 5_000
    assert json.loads(json.dumps(plain))["saves"] == plain["saves"]


SPEAK_FOR_THEMSELVES = {
    "index",
    "pid",
    "rows",
    "is_alive",
    "restarts",
    "exit_code",
    "batch_size",
    "row_bytes",
    "blocks",
}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_field_is_documented(record: Any) -> None:
    """By a docstring beneath it, unless its name says all; and in the table of
    docs/observing.md."""
    (body,) = [
        node.body
        for node in ast.parse(Path(statistics.__file__).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == type(record).__name__
    ]
    documented = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
    }
    names = {field.name for field in dataclasses.fields(record)}
    assert names <= documented | SPEAK_FOR_THEMSELVES
    page = (Path(__file__).parent.parent / "docs" / "observing.md").read_text()
    section = page.split(f"### `{type(record).__name__}`")[1].split("### ")[0]
    assert names == {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in [line.split("`")[1]]
    }


async def test_what_is_not_there_yet_is_none_or_zero() -> None:
    """A stream that was never entered has no slots and no samplers."""
    async with areplay.Replay(areplay.Spec(x=((), "int64")), 64) as replay:
        batches = replay.batches(batch_size=8)  # one that is dropped is not counted any more
        (stream,) = replay.statistics().batches
        assert not batches.is_closed
        assert (
            stream.number,
            stream.slots,
            stream.filling,
            stream.slots_bytes,
            stream.samplers,
        ) == (0, 0, 0, 0, ())
        assert stream.what == "Rows() by Uniform()"


async def test_saves_are_counted_with_their_last_and_their_failures(tmp_path: Path) -> None:
    """What `save` returned, where and when; and why one failed. The sums of the shared memory
    include priorities."""
    async with areplay.Replay(areplay.Spec(x=((), "int64")), 64) as replay:
        await replay.extend({"x": np.arange(20)})
        saved = await replay.save(tmp_path / "here")
        (tmp_path / "file").write_text("")
        with pytest.raises(areplay.CheckpointFailed) as failed:
            await replay.save(tmp_path / "file")
        saves = replay.statistics().saves
        assert (saves.saves, saves.failures, saves.saving) == (1, 1, 0)
        assert (saves.last, saves.last_path) == (saved, str(tmp_path / "here"))
        assert saves.last_failure == str(failed.value)
        assert 1_700_000_000 < saves.last_saved_at_s <= saves.last_failed_at_s
        before = replay.statistics().memory_bytes
        replay.sample(4, selector=areplay.Prioritized())
        assert replay.statistics().memory_bytes >= before + 64 * 4
