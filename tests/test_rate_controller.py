"""Tests of `rate_controller`: the arithmetic of both sides, against exact fractions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from areplay._ingest.rate_controller import RateController, buffer_steps, check_limiter
from areplay.limiters import MinSize, SamplesPerInsert


def opened(
    ratio: float = 1.0,
    min_size: int = 1,
    buffer: float | None = 100.0,
    batch_size: int = 4,
    rows: int = 0,
) -> RateController:
    """The controller of an open stream."""
    limiter = SamplesPerInsert(ratio, min_size, buffer)
    return RateController(limiter, batch_size, rows, nullcontext())


def test_a_controller_is_named_by_the_numbers_that_hold() -> None:
    """For messages: the buffer that was left out, too, and what was put in place since."""
    assert repr(opened(0.5, 30, 64)) == (
        "SamplesPerInsert(0.5, min_size_to_sample=30, error_buffer=64)"
    )
    controller = opened(3.0, 5, None, batch_size=4)
    assert repr(controller).endswith("error_buffer=112)")
    controller.replace(SamplesPerInsert(2.0, 5, 7.0))
    assert repr(controller) == "SamplesPerInsert(2, min_size_to_sample=5, error_buffer=7)"
    assert (controller.limiter, controller.buffer_steps) == (SamplesPerInsert(2.0, 5, 7.0), 7)


def test_the_default_buffer_is_sixteen_batches_and_sixteen_inserts() -> None:
    """Of the stream; also when a limiter without one takes the place of another."""
    for batch_size in (4, 32, 1):
        controller = opened(3.0, 5, None, batch_size)
        assert controller.statistics().error_buffer == 16 * (batch_size + 3.0)
        controller.replace(SamplesPerInsert(2.0, 5))
        assert controller.statistics().error_buffer == 16 * (batch_size + 2.0)
        controller.replace(SamplesPerInsert(2.0, 5, 50.0))
        assert controller.statistics().error_buffer == 50.0


@pytest.mark.parametrize(
    ("ratio", "buffer", "batch_size", "steps"),
    [(2.0, 32.0, 8, 32), (2.0, 32.5, 8, 33), (100.0, 52.0, 4, 2), (1e-9, 1e6, 4, 1 << 40)],
)
def test_the_buffer_spans_steps(ratio: float, buffer: float, batch_size: int, steps: int) -> None:
    """From where the learner has to wait to where the writers have to, rounded up, at most 2^40."""
    assert buffer_steps(SamplesPerInsert(ratio, 1, buffer), batch_size) == steps
    assert opened(ratio, 1, buffer, batch_size).buffer_steps == steps


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
        check_limiter(limiter, batch_size)
        opened(float(ratio), min_size, float(buffer), batch_size)
        return
    with pytest.raises(ValueError, match=r"wait for each other for ever") as refused:
        check_limiter(limiter, batch_size)
    with pytest.raises(ValueError, match=r"wait for each other for ever"):
        opened(float(ratio), min_size, float(buffer), batch_size)
    least = (batch_size + ratio) / 2
    assert f"batches of {batch_size} and samples_per_insert={float(ratio):g} " in str(refused.value)
    assert str(refused.value).endswith(f"at least {float(least):g}")
    opened(float(ratio), min_size, float(least), batch_size)


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
    limiter = opened(1.0, 2, 30.0, 4, 2)
    limiter.sample()
    ratio, buffer, error = Fraction(1), Fraction(30), Fraction(-4)
    for what, value in changes:
        if what == "insert" and error + ratio <= buffer:
            assert limiter.room > 0
            limiter.insert(1)
            error += ratio
        elif what == "sample" and error - 4 >= -buffer:
            assert limiter.can_sample
            limiter.sample()
            error -= 4
        else:
            wanted = (value, buffer) if what == "ratio" else (ratio, 4 * value)
            other = SamplesPerInsert(float(wanted[0]), 2, float(wanted[1]))
            if 2 * wanted[1] >= 4 + wanted[0]:
                limiter.replace(other)
                ratio, buffer = wanted
            else:
                with pytest.raises(ValueError, match="for ever"):
                    limiter.replace(other)
        record = limiter.statistics()
        assert (record.samples_per_insert, record.error_buffer) == (float(ratio), float(buffer))
        assert Fraction(limiter.error) == error
        assert (limiter.room > 0) == (error + ratio <= buffer)
        assert limiter.can_sample == (error - 4 >= -buffer)


def test_a_ratio_changed_before_the_first_batch_waits_for_just_min_size_rows() -> None:
    """Nothing was sampled by the old ratio, and so the first batch needs neither more nor fewer
    rows than it said."""
    limiter = opened(1.0, 10, 20.0, 4)
    limiter.insert(5)
    assert limiter.error == -5.0
    limiter.replace(SamplesPerInsert(4.0, 10, 20.0))
    assert limiter.error == -20.0
    limiter.insert(5)
    assert limiter.error == 0.0


def test_a_ratio_raised_before_the_first_batch_keeps_the_error_within_the_buffer() -> None:
    """ "It holds for what is inserted from then on": steps above min_size keep the ratio by which
    they came in."""
    limiter = opened(1.0, 10, 20.0, 4)
    limiter.insert(limiter.room)
    assert limiter.error == 20.0
    limiter.replace(SamplesPerInsert(8.0, 10, 20.0))
    assert limiter.error <= 20.0


def test_inserts_meanwhile_are_not_lost_when_the_ratio_is_changed() -> None:
    """Another thread inserts; the error counts each step once."""
    registry = threading.Lock()
    option = SamplesPerInsert(1.0, 1, 1e12)
    limiter = RateController(option, 4, 1, registry)
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
            limiter.replace(option)
        is_over.set()
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert limiter.error == inserted - 4


def test_what_cannot_take_the_place_of_a_limiter_is_refused() -> None:
    """Another `min_size_to_sample`, or no ratio; nothing has changed."""
    limiter = opened(1.0, 2, 30.0, 4, 2)
    limiter.insert(3)
    before = limiter.statistics()
    with pytest.raises(ValueError, match=r"min_size_to_sample=2 cannot change .* got 3"):
        limiter.replace(SamplesPerInsert(1.0, 3, 30.0))
    with pytest.raises(TypeError, match=r"got MinSize"):
        limiter.replace(MinSize(2))
    assert limiter.statistics() == before
    limiter.insert(24)
    assert limiter.room == 3


# Going on after a checkpoint.


def test_a_controller_goes_on_with_the_counts_of_another() -> None:
    """With those of the same options; the error is brought within the present buffer."""
    before = opened(2.0, 5, 30.0, 4, 5)
    before.insert(14)
    before.sample()
    state = before.state()
    same, narrow = opened(2.0, 5, 30.0), opened(2.0, 5, 8.0)
    assert same.resume(state) and narrow.resume(state)
    assert same.statistics() == before.statistics()
    assert (before.error, narrow.error, narrow.room) == (24.0, 8.0, 0)
    assert same.has_begun and narrow.has_begun and not opened().has_begun
    for other in (opened(1.0, 5, 30.0), opened(2.0, 6, 30.0)):
        untouched = other.statistics()
        assert not other.resume(state)
        assert other.statistics() == untouched


def test_counts_from_before_the_first_batch_wait_for_just_min_size_rows() -> None:
    """Whatever the error was by another ratio or buffer."""
    before = opened(2.0, 100, 30.0, 4, 5)
    after = opened(2.0, 100, 8.0, 4, 0)
    assert after.resume(before.state())
    assert (after.error, after.room) == (-190.0, 99)


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
