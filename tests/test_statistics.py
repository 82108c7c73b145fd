"""Tests of `areplay.statistics`."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from areplay.statistics import ActorStatistics, BatchesStatistics, LimiterStatistics, Statistics, Wait

ACTOR = ActorStatistics(0, 17, True, 1, 100, 3, 16, 0.0)
LIMITER = LimiterStatistics(8.0, 1_000, 512.0, -12.0, 2_000, 8_012, False, False)
BATCHES = BatchesStatistics(256, 16, 8, 0.5, 1, 99, 2, 1, 0, 5, 0.25, 0.1, LIMITER, None)
WAIT = Wait("learner", "for rows", 1.5)
WHOLE = Statistics(90, 128, 100, 45, 8, 16, 9, 0, 0, (ACTOR,), (BATCHES,), (WAIT,))
Record = ActorStatistics | BatchesStatistics | LimiterStatistics | Wait | Statistics


@pytest.mark.parametrize("record", [ACTOR, LIMITER, BATCHES, WAIT, WHOLE], ids=lambda record: type(record).__name__)
def test_a_record_is_of_one_moment(record: Record) -> None:
    """Frozen, comparable, and it can be sent elsewhere or turned into a dictionary for a log."""
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, 5)
    assert pickle.loads(pickle.dumps(record)) == record
    assert dataclasses.replace(record) == record
    assert dataclasses.asdict(record)[name] == getattr(record, name)


def test_a_whole_record_contains_those_of_its_parts() -> None:
    """By actor and by stream of batches."""
    plain = dataclasses.asdict(WHOLE)
    assert plain["actors"][0]["inbox_rows"] == 16
    assert plain["batches"][0]["peak_learner_wait_s"] == 0.1
    assert plain["batches"][0]["limiter"]["error_buffer"] == 512.0
    assert plain["waits"][0]["who"] == "learner"
