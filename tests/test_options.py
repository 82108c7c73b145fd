"""Tests of `areplay.options`."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from areplay.options import optional_seconds, seconds, whole_number


@pytest.mark.parametrize("value", [1, 7, 10, np.int64(7), np.uint8(7)])
def test_a_whole_number_within_the_bounds_passes_as_an_int(value: int) -> None:
    """The result is a plain int of the same value, also for numpy integers and at both bounds."""
    number = whole_number("size", value, at_least=1, at_most=10)
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize(
    "value", [0, -1, 11, True, False, np.True_, 2.5, 2.0, 1e9, float("nan"), "3", None, [3], Decimal(3), Fraction(3)]
)
def test_anything_else_is_refused_with_what_is_allowed(value: object) -> None:
    """The message names the option, the bounds and the value."""
    with pytest.raises(ValueError) as caught:
        whole_number("size", value, at_least=1, at_most=10)
    text = str(caught.value)
    assert "size" in text and "at least 1" in text and "at most 10" in text and repr(value) in text


def test_without_an_upper_bound_any_size_passes() -> None:
    """`at_most` is optional, `at_least` is 1 unless said otherwise."""
    assert whole_number("size", 1 << 80) == 1 << 80
    assert whole_number("seed", 0, at_least=0) == 0
    with pytest.raises(ValueError, match="at least 1"):
        whole_number("size", 0)


@pytest.mark.parametrize("value", [1, 0.25, np.float32(0.5), Fraction(1, 4), 5e-324])
def test_a_positive_number_of_seconds_passes_as_a_float(value: float) -> None:
    """Whatever real number is given, a float comes out."""
    number = seconds("grace_s", value)
    assert type(number) is float
    assert number == float(value)


@pytest.mark.parametrize("value", [0, -1, -0.0, math.inf, -math.inf, math.nan, True, "1", None, 1j])
def test_no_number_of_seconds_is_refused(value: object) -> None:
    """Zero, negatives, infinities, NaN, bools and strings raise, with the option's name."""
    with pytest.raises(ValueError, match=r"grace_s must be a number of seconds above 0"):
        seconds("grace_s", value)


def test_zero_seconds_pass_where_they_are_allowed() -> None:
    """`positive=False` lets 0 through and nothing below it."""
    assert seconds("wait_s", 0, positive=False) == 0.0
    with pytest.raises(ValueError, match="of at least 0"):
        seconds("wait_s", -1, positive=False)


def test_none_means_no_limit() -> None:
    """Optional seconds pass `None`, and check everything else."""
    assert optional_seconds("timeout_s", None) is None
    assert optional_seconds("timeout_s", 2) == 2.0
    with pytest.raises(ValueError, match="timeout_s"):
        optional_seconds("timeout_s", 0)
