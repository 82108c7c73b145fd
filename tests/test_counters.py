"""Tests of `_engine.counters`: random numbers that go on after a checkpoint."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from areplay._engine.counters import Counters, Draws


def test_the_same_seed_gives_the_same_numbers_and_another_draw_others() -> None:
    """Each kind, number, child and run has seeds of its own."""
    first, second = Counters(5), Counters(5)
    assert first.generator.integers(1 << 60) == second.generator.integers(1 << 60)
    children = first.seeds_of_children(Draws.ACTORS, 3)
    expected = np.random.SeedSequence(5, spawn_key=(1, 3, 0, 2)).generate_state(4)
    np.testing.assert_array_equal(children(0, 2).generate_state(4), expected)
    states = {
        tuple(second.seeds(draws, *key).generate_state(2))
        for draws in Draws
        for key in [(), (0,), (1,), (0, 1)]
    }
    assert len(states) == 4 * len(Draws)


def test_a_record_goes_on_where_it_was_taken() -> None:
    """Numbers, seeds, draws of the owner, and counts of priorities."""
    counters = Counters(None)
    counters.next_number()
    counters.generator.random(10)
    counters.priorities_updated, counters.priorities_stale = 7, 2
    record = copy.deepcopy(counters.record())
    later = Counters(None)
    later.restore(record, has_new_seed=False)
    assert (later.priorities_updated, later.priorities_stale) == (7, 2)
    assert later.next_number() == counters.next_number() == 1
    assert later.generator.random() == counters.generator.random()
    for draws in Draws:
        found, expected = (each.next_seeds(draws).generate_state(4) for each in (later, counters))
        np.testing.assert_array_equal(found, expected)


def test_a_new_seed_keeps_its_random_numbers() -> None:
    """Only the counts of priorities are those of the record."""
    record = Counters(1).record() | {"priorities_updated": 3, "made": 9}
    counters = Counters(2)
    counters.restore(record, has_new_seed=True)
    assert counters.priorities_updated == 3
    assert counters.next_number() == 0
    assert counters.generator.random() == Counters(2).generator.random()


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    """From 0."""
    with pytest.raises((ValueError, TypeError), match="seed"):
        Counters(seed)  # type: ignore[arg-type]
