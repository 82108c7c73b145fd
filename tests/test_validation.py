"""Tests of `_base.validation`."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from areplay._base.validation import (
    flag,
    fraction,
    one_priority,
    optional_rate,
    optional_seconds,
    priority_column,
    priority_values,
    seconds,
    whole_number,
)
from areplay.errors import SpecMismatch


@pytest.mark.parametrize("value", [1, 7, 10, np.int64(7), np.uint8(7)])
def test_a_whole_number_within_the_bounds_passes_as_an_int(value: int) -> None:
    """The result is a plain int of the same value, also for numpy integers and at both bounds."""
    number = whole_number("size", value, at_least=1, at_most=10)
    assert type(number) is int
    assert number == value


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        11,
        True,
        False,
        np.True_,
        2.5,
        2.0,
        1e9,
        float("nan"),
        "3",
        None,
        [3],
        Decimal(3),
        Fraction(3),
    ],
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


def test_a_number_in_an_array_without_axes_is_that_number() -> None:
    """Of numpy or torch; with an axis it is none, and what has no array is a ValueError that says
    what to do."""
    assert whole_number("size", np.array(5)) == 5
    assert seconds("grace_s", np.array(0.5)) == 0.5
    assert flag("inline_sampling", np.array(False)) is False
    for wrong in (np.array([5]), np.array("5"), np.array(None), np.array(5 + 0j)):
        with pytest.raises(ValueError, match="size must be"):
            whole_number("size", wrong)
    torch = pytest.importorskip("torch")
    assert (
        whole_number("size", torch.tensor(5)) == 5 and fraction("gamma", torch.tensor(0.5)) == 0.5
    )
    with pytest.raises(ValueError, match=r"gamma must be .*\.detach\(\)\.cpu\(\)"):
        fraction("gamma", torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_beyond_all_floats_is_refused_like_others(value: int) -> None:
    """No OverflowError."""
    for check in (fraction, seconds, optional_rate):
        if check is not optional_rate or value < 0:
            with pytest.raises(ValueError, match="x must be"):
                check("x", value)
    with pytest.raises(SpecMismatch):
        one_priority(value)


# Priorities.

BIG = (1 << 53) + 1


@pytest.mark.parametrize(
    "value", [1, 0.5, -2, 1 << 60, np.float32(0.5), np.int8(3), np.array(2.0), Fraction(1, 4)]
)
def test_a_finite_number_is_a_priority(value: Any) -> None:
    """As a float, whatever kind of number it is."""
    assert one_priority(value) == float(value) and type(one_priority(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        BIG,
        np.int64(BIG),
        np.array(BIG),
        True,
        np.True_,
        "1",
        None,
        [1.0],
        np.ones(1),
        math.nan,
        math.inf,
        1j,
    ],
)
def test_what_is_no_finite_number_is_no_priority(value: Any) -> None:
    """Nor is a whole number that a float would round."""
    with pytest.raises(SpecMismatch) as caught:
        one_priority(value)
    assert caught.value.field == "priority"


@pytest.mark.parametrize(
    "values", [[1, BIG], [0.5, BIG], np.array([1, BIG]), np.array([1, BIG], np.uint64)]
)
def test_priorities_are_not_rounded(values: Any) -> None:
    """Neither those of a call, nor those of an update."""
    assert priority_values(np.array([1, 1 << 53]), 2).tolist() == [1, 1 << 53]
    with pytest.raises(SpecMismatch):
        priority_values(values, 2)
    with pytest.raises(SpecMismatch):
        priority_column(values, 2, 2)


def test_tensors_are_priorities() -> None:
    """On the CPU, by value; others are refused with the way to make them so."""
    torch = pytest.importorskip("torch")
    assert one_priority(torch.tensor(2.0)) == 2.0 and one_priority(torch.tensor(3)) == 3.0
    assert priority_values(torch.ones(2), 2).tolist() == [1, 1]
    column = priority_column(torch.ones(2), 2, 3)
    assert column is not None and column[:2].tolist() == [1, 1]
    mask = torch.tensor([[True, False]])
    assert priority_values(torch.ones(1, 2), 1, 1.0, mask).tolist() == [1]
    for wrong in (
        torch.ones(2, requires_grad=True),
        torch.ones(2).bfloat16(),
        torch.ones(2, device="meta"),
    ):
        for call in (
            lambda wrong=wrong: priority_values(wrong, 2),
            lambda wrong=wrong: priority_column(wrong, 2, 2),
            lambda wrong=wrong: one_priority(wrong[0]),
            lambda wrong=wrong: priority_values(np.ones((1, 2)), 1, 1.0, wrong[None]),
        ):
            with pytest.raises(SpecMismatch) as caught:
                call()
            assert ".detach().cpu()" in caught.value.remedy or caught.value.field == "mask"
