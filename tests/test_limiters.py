"""Tests of `limiters`: options that check themselves and never change."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from areplay.limiters import MinSize, SamplesPerInsert


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
    """The message names the option."""
    with pytest.raises(ValueError, match=r"samples_per_insert must be a number above 0, got"):
        SamplesPerInsert(given, 1)


@pytest.mark.parametrize("given", BAD_NUMBERS, ids=repr)
def test_an_error_buffer_that_is_no_number_above_zero_is_refused(given: Any) -> None:
    """Likewise."""
    with pytest.raises(ValueError, match=r"error_buffer must be a number above 0, got"):
        SamplesPerInsert(1.0, 1, given)


@pytest.mark.parametrize("given", [2, 2.0, np.float32(2), np.int64(2), Fraction(2)], ids=repr)
def test_any_real_number_is_taken(given: Any) -> None:
    """As a float."""
    limiter = SamplesPerInsert(given, 1, given)
    assert (limiter.samples_per_insert, limiter.error_buffer) == (2.0, 2.0)
    assert type(limiter.samples_per_insert) is type(limiter.error_buffer) is float


@pytest.mark.parametrize(
    "limiter", [MinSize(30), SamplesPerInsert(0.5, 30), SamplesPerInsert(0.5, 30, 64)], ids=repr
)
def test_a_limiter_is_a_value(limiter: MinSize | SamplesPerInsert) -> None:
    """It cannot be changed; its repr makes an equal one, and so does pickling."""
    for field in dataclasses.fields(limiter):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(limiter, field.name, 7)
    assert eval(repr(limiter)) == limiter == pickle.loads(pickle.dumps(limiter))
    assert limiter != dataclasses.replace(limiter, min_size_to_sample=31)
