"""Tests of `limiters`: the arithmetic of both sides, against an oracle of exact fractions."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from areplay.limiters import MinSize, SamplesPerInsert


def ignore() -> None:
    """Nobody listens."""


def opened(
    ratio: float = 1.0,
    min_size: int = 1,
    buffer: float | None = 100.0,
    batch_size: int = 4,
    rows: int = 0,
    on_change: Callable[[], None] = ignore,
) -> SamplesPerInsert:
    """A limiter of an open stream."""
    limiter = SamplesPerInsert(ratio, min_size, buffer)
    limiter.open(batch_size, rows, on_change)
    return limiter


# Options.


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", None, True, math.nan])
def test_a_min_size_that_is_no_whole_number_above_zero_is_refused(given: Any) -> None:
    """By either limiter, and the message names the option and what was given."""
    for make in (MinSize, partial(SamplesPerInsert, 1.0)):
        with pytest.raises(
            (ValueError, TypeError), match=r"min_size_to_sample.*" + str(given).replace(".", r"\.")
        ):
            make(given)


BAD_NUMBERS = [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "1", True, 1j, np.array([1.0])]


@pytest.mark.parametrize("given", BAD_NUMBERS, ids=repr)
def test_a_ratio_that_is_no_number_above_zero_is_refused(given: Any) -> None:
    """At the start and at run time; then it stays as it was."""
    with pytest.raises(ValueError, match=r"samples_per_insert must be a number above 0, got"):
        SamplesPerInsert(given, 1)
    limiter = opened(2.0)
    with pytest.raises(ValueError, match=r"samples_per_insert must be a number above 0, got"):
        limiter.samples_per_insert = given
    assert limiter.samples_per_insert == 2.0


@pytest.mark.parametrize("given", BAD_NUMBERS, ids=repr)
def test_an_error_buffer_that_is_no_number_above_zero_is_refused(given: Any) -> None:
    """Likewise."""
    with pytest.raises(ValueError, match=r"error_buffer must be a number above 0, got"):
        SamplesPerInsert(1.0, 1, given)
    limiter = opened(buffer=7.0)
    with pytest.raises(ValueError, match=r"error_buffer must be a number above 0, got"):
        limiter.error_buffer = given
    assert limiter.error_buffer == 7.0


@pytest.mark.parametrize("given", [2, 2.0, np.float32(2), np.int64(2), Fraction(2)], ids=repr)
def test_any_real_number_is_taken(given: Any) -> None:
    """As a float."""
    limiter = SamplesPerInsert(given, 1, given)
    assert (limiter.samples_per_insert, limiter.error_buffer) == (2.0, 2.0)
    assert type(limiter.samples_per_insert) is type(limiter.error_buffer) is float


def test_a_limiter_says_what_it_is() -> None:
    """With its numbers, for messages."""
    assert repr(MinSize(30)) == "MinSize(30)"
    assert repr(opened(0.5, 30, 64)) == (
        "SamplesPerInsert(0.5, min_size_to_sample=30, error_buffer=64)"
    )


def test_the_default_buffer_is_sixteen_batches_and_sixteen_inserts() -> None:
    """Of the stream that it is opened for, each time anew; one that was given stays."""
    limiter = SamplesPerInsert(3.0, 5)
    for batch_size in (4, 32, 1):
        limiter.check(batch_size)
        limiter.open(batch_size, 0, ignore)
        assert limiter.error_buffer == 16 * (batch_size + 3.0)
        limiter.close()
    limiter.error_buffer = 50.0
    limiter.open(4, 0, ignore)
    assert limiter.error_buffer == 50.0


# Who may go on.


@st.composite
def configurations(draw: st.DrawFn) -> tuple[Fraction, int, int, Fraction]:
    """`(ratio, batch_size, min_size, buffer)` that floats hold exactly, mostly with a buffer of
    about the least."""
    eighths = st.integers(1, 80).map(lambda n: Fraction(n, 8))
    ratio, batch_size, min_size = draw(eighths), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    least = (batch_size + ratio) / 2
    buffer = draw(
        st.one_of(
            st.just(least), eighths, st.integers(0, 40).map(lambda n: least + Fraction(n, 16))
        )
    )
    return ratio, batch_size, min_size, buffer


@settings(max_examples=100)
@given(configurations())
def test_a_buffer_by_which_both_could_wait_is_refused(
    configuration: tuple[Fraction, int, int, Fraction],
) -> None:
    """Exactly those below half a batch and half an insert; with the least one in the message, which
    is then taken."""
    ratio, batch_size, min_size, buffer = configuration
    limiter = SamplesPerInsert(float(ratio), min_size, float(buffer))
    if 2 * buffer >= batch_size + ratio:
        limiter.check(batch_size)
        limiter.open(batch_size, 0, ignore)
        return
    with pytest.raises(ValueError, match=r"wait for each other for ever") as refused:
        limiter.check(batch_size)
    with pytest.raises(ValueError, match=r"wait for each other for ever"):
        limiter.open(batch_size, 0, ignore)
    least = (batch_size + ratio) / 2
    assert f"batches of {batch_size} and samples_per_insert={float(ratio):g} " in str(refused.value)
    assert str(refused.value).endswith(f"at least {float(least):g}")
    limiter.error_buffer = float(least)
    limiter.open(batch_size, 0, ignore)


def reachable(
    ratio: Fraction, batch_size: int, min_size: int, buffer: Fraction, inserts: int, most: int
) -> Iterator[tuple[int, int, bool, bool]]:
    """Every state that schedules of inserts and batches can reach:
    `(inserts, batches, may insert, may sample)`."""

    def error(inserts: int, batches: int) -> Fraction:
        return ratio * (inserts - min_size) - batches * batch_size

    seen, todo = {(inserts, 0)}, [(inserts, 0)]
    while todo and len(seen) < most:
        inserts, batches = todo.pop(0)
        may_insert = error(inserts + 1, batches) <= buffer
        may_sample = error(inserts, batches + 1) >= -buffer
        yield inserts, batches, may_insert, may_sample
        for state, may in (
            ((inserts + 1, batches), may_insert),
            ((inserts, batches + 1), may_sample),
        ):
            if may and state not in seen:
                seen.add(state)
                todo.append(state)


@settings(max_examples=60)
@given(configurations(), st.integers(0, 12))
def test_from_every_reachable_state_one_side_may_go_on(
    configuration: tuple[Fraction, int, int, Fraction], rows: int
) -> None:
    """Whatever configuration is accepted: the limiter lets pass just what keeps the error within
    the buffer, and never holds both sides."""
    ratio, batch_size, min_size, buffer = configuration
    assume(2 * buffer >= batch_size + ratio)
    states = reachable(ratio, batch_size, min_size, buffer, min(rows, min_size), 120)
    for inserts, batches, may_insert, may_sample in states:
        limiter = opened(float(ratio), min_size, float(buffer), batch_size, rows)
        limiter.insert(inserts - min(rows, min_size))
        for _ in range(batches):
            limiter.sample()
        error = ratio * (inserts - min_size) - batches * batch_size
        assert Fraction(limiter.error) == error
        assert (limiter.room > 0, limiter.can_sample) == (may_insert, may_sample)
        assert may_insert or may_sample
        room = limiter.room
        assert error + room * ratio <= buffer or room == 0
        assert error + (room + 1) * ratio > buffer
        missing = limiter.inserts_missing
        assert (missing == 0) == may_sample
        if missing:
            after = error + missing * ratio - batch_size
            assert after >= -buffer > after - ratio, "so many, and not one less"
        record = limiter.statistics()
        assert (record.holds_writers, record.holds_learner) == (not may_insert, not may_sample)
        assert (record.inserts, record.samples, record.error) == (
            inserts,
            batches * batch_size,
            float(error),
        )


@settings(max_examples=100)
@given(
    st.floats(1e-3, 1e3),
    st.integers(1, 5_000),
    st.floats(1.0, 4.0),
    st.integers(1, 1_000),
    st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=40),
)
def test_with_any_floats_one_side_may_go_on_and_the_error_stays_within_the_buffer(
    ratio: float, batch_size: int, slack: float, min_size: int, schedule: list[tuple[bool, int]]
) -> None:
    """Rounding neither stops both sides nor lets the error out, but for a billionth."""
    buffer = (batch_size + ratio) / 2 * slack
    assume(2 * buffer >= batch_size + ratio)
    limiter = opened(ratio, min_size, buffer, batch_size)
    inserts = samples = 0
    exact, close = Fraction(ratio), Fraction(buffer) * Fraction(1, 10**6)
    for is_insert, most in schedule:
        assert limiter.room > 0 or limiter.can_sample
        for _ in range(most):
            if is_insert and (room := limiter.room):
                limiter.insert(room)
                inserts += room
            elif not is_insert and limiter.can_sample:
                limiter.sample()
                samples += batch_size
                assert exact * (inserts - min_size) - samples >= -Fraction(buffer) - close
            assert exact * (inserts - min_size) - samples <= Fraction(buffer) + close


def test_rows_that_are_there_count_up_to_min_size() -> None:
    """More of them let the learner have no more batches."""
    for rows, counted in ((0, 0), (3, 3), (8, 8), (9, 8), (1_000, 8)):
        limiter = opened(2.0, 8, 10.0, 4, rows)
        assert limiter.statistics().inserts == counted
        assert limiter.error == 2.0 * (counted - 8)


def test_steps_that_were_not_inserted_after_all_leave_no_trace() -> None:
    """They are counted back."""
    limiter = opened(2.0, 1, 10.0, 4, 1)
    before = limiter.statistics()
    limiter.insert(4)
    assert limiter.statistics() != before
    limiter.insert(-4)
    assert limiter.statistics() == before


@settings(max_examples=100)
@given(configurations(), st.integers(1, 40))
def test_what_can_ever_be_inserted_at_once_can_be_in_the_end(
    configuration: tuple[Fraction, int, int, Fraction], steps: int
) -> None:
    """Wherever the learner stops for want of rows, there is room for so many; else there is a place
    where there is none."""
    ratio, batch_size, min_size, buffer = configuration
    assume(2 * buffer >= batch_size + ratio)
    limiter = opened(float(ratio), min_size, float(buffer), batch_size)
    lowest = batch_size - buffer  # an error a moment below it stops the learner
    assert limiter.can_ever_insert(steps) == (lowest + steps * ratio <= buffer)
    if limiter.can_ever_insert(steps):
        limiter.insert(min_size + 20)
        while limiter.can_sample:
            limiter.sample()
        assert limiter.room >= steps


# Changed at run time.


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["insert", "sample", "ratio", "buffer"]),
        st.integers(1, 64).map(lambda n: Fraction(n, 8)),
    ),
    max_size=60,
)


@settings(max_examples=100)
@given(CHANGES)
def test_changed_at_run_time_the_error_goes_on_from_where_it_is(
    changes: list[tuple[str, Fraction]],
) -> None:
    """After the first batch a new ratio counts for later inserts alone, a refused one changes
    nothing, and both ever hold what they say."""
    told: list[None] = []
    limiter = opened(1.0, 2, 30.0, 4, 2, lambda: told.append(None))
    limiter.sample()
    ratio, buffer, error, rang = Fraction(1), Fraction(30), Fraction(-4), 0
    for what, value in changes:
        if what == "insert" and error + ratio <= buffer:
            assert limiter.room > 0
            limiter.insert(1)
            error += ratio
        elif what == "sample" and error - 4 >= -buffer:
            assert limiter.can_sample
            limiter.sample()
            error -= 4
        elif what == "ratio":
            if 2 * buffer >= 4 + value:
                limiter.samples_per_insert = float(value)
                ratio, rang = value, rang + 1
            else:
                with pytest.raises(ValueError, match="for ever"):
                    limiter.samples_per_insert = float(value)
        elif what == "buffer":
            if 8 * value >= 4 + ratio:
                limiter.error_buffer = float(4 * value)
                buffer, rang = 4 * value, rang + 1
            else:
                with pytest.raises(ValueError, match="for ever"):
                    limiter.error_buffer = float(4 * value)
        assert (limiter.samples_per_insert, limiter.error_buffer) == (float(ratio), float(buffer))
        assert Fraction(limiter.error) == error
        assert (limiter.room > 0) == (error + ratio <= buffer)
        assert limiter.can_sample == (error - 4 >= -buffer)
        assert len(told) == rang, "whoever waits looks again after a change, and only then"


def test_a_ratio_changed_before_the_first_batch_waits_for_just_min_size_rows() -> None:
    """Nothing was sampled by the old ratio, and so the first batch needs neither more nor fewer
    rows than it said."""
    limiter = opened(1.0, 10, 20.0, 4)
    limiter.insert(5)
    assert limiter.error == -5.0
    limiter.samples_per_insert = 4.0
    assert limiter.error == -20.0
    limiter.insert(5)
    assert limiter.error == 0.0


def test_a_ratio_raised_before_the_first_batch_keeps_the_error_within_the_buffer() -> None:
    """ "It holds for what is inserted from then on": steps above min_size keep the ratio by which
    they came in."""
    limiter = opened(1.0, 10, 20.0, 4)
    limiter.insert(limiter.room)
    assert limiter.error == 20.0
    limiter.samples_per_insert = 8.0
    assert limiter.error <= limiter.error_buffer


def test_inserts_meanwhile_are_not_lost_when_the_ratio_is_changed() -> None:
    """Another thread inserts; the error counts each step once."""
    registry = threading.Lock()
    limiter = SamplesPerInsert(1.0, 1, 1e12)
    limiter.open(4, 1, ignore, registry)
    limiter.sample()
    inserted, is_over = 0, threading.Event()

    def insert() -> None:
        nonlocal inserted
        while not is_over.is_set():
            with registry:  # as the admission's threads do
                limiter.insert(1)
            inserted += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=insert)
        thread.start()
        for _ in range(20_000):
            limiter.samples_per_insert = 1.0
        is_over.set()
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert limiter.error == inserted - 4


# One stream after the other.


def test_a_limiter_belongs_to_one_open_stream() -> None:
    """A second one is refused, before and when it opens, and the first one goes on as if nothing
    had been."""
    limiter = opened(1.0, 2, 30.0, 4, 2)
    limiter.insert(3)
    before = limiter.statistics()
    for attempt in (partial(limiter.check, 2), partial(limiter.open, 2, 9, ignore)):
        with pytest.raises(
            ValueError,
            match=r"limits another stream of batches; give each one of "
            r"its own",
        ):
            attempt()
    assert limiter.statistics() == before
    limiter.insert(24)
    assert limiter.room == 3


def test_after_its_stream_closed_a_limiter_begins_anew() -> None:
    """Counts, base and callback are those of the new stream."""
    told: list[str] = []
    limiter = opened(2.0, 5, 30.0, 4, 5, lambda: told.append("first"))
    limiter.insert(7)
    limiter.sample()
    limiter.samples_per_insert = 3.0
    limiter.close()
    limiter.samples_per_insert = 1.5
    assert told == ["first"], "nobody is told after it was closed"
    limiter.open(6, 2, lambda: told.append("second"))
    record = limiter.statistics()
    assert (record.inserts, record.samples, record.error) == (2, 0, 1.5 * (2 - 5))
    limiter.error_buffer = 40.0
    assert told == ["first", "second"]
    with pytest.raises(ValueError, match="batches of 6"):
        limiter.error_buffer = 3.0


def test_statistics_are_those_of_the_moment() -> None:
    """All the fields."""
    limiter = opened(2.0, 5, 12.0, 4, 5)
    limiter.insert(6)
    limiter.sample()
    record = limiter.statistics()
    assert (record.samples_per_insert, record.min_size_to_sample, record.error_buffer) == (
        2.0,
        5,
        12.0,
    )
    assert (record.inserts, record.samples, record.error) == (11, 4, 8.0)
    assert (record.holds_writers, record.holds_learner) == (False, False)
    limiter.insert(2)
    assert limiter.statistics().holds_writers
