"""Checks of the options that users pass. A wrong one is a `ValueError` that says what is
allowed."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Refusal, as_array, exactly, plain, remedy_for, shown
from areplay.errors import SpecMismatch

NO_PRIORITY = math.nan
"""Stands for: none given."""


def whole_number(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """`value` as an int, if it is a whole number (no bool, no float) between the bounds, else
    `ValueError`."""
    allowed = f"a whole number of at least {at_least}" + (
        "" if at_most is None else f" and at most {at_most:,}"
    )
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise refused(f"{name} must be {allowed}", value)
    number = int(number)
    if number < at_least or (at_most is not None and number > at_most):
        raise refused(f"{name} must be {allowed}", value)
    return number


def flag(name: str, value: object) -> bool:
    """`value`, if it is a bool, else `ValueError`."""
    claim = plain(value)
    if not isinstance(claim, (bool, np.bool_)):
        raise refused(f"{name} must be True or False", value)
    return bool(claim)


def fraction(name: str, value: object) -> float:
    """`value` as a float, if it is a real number from 0 to 1, else `ValueError`."""
    # once a batch, and an abstract class is slow to ask
    if type(value) is float and 0 <= value <= 1:
        return value
    number = real_number(value)
    if not 0 <= number <= 1:
        raise refused(f"{name} must be a number from 0 to 1", value)
    return number


def seconds(name: str, value: object, *, positive: bool = True) -> float:
    """`value` as a float number of seconds, if it is a finite real number above (or, if not
    `positive`, at least) 0."""
    number = real_number(value)
    if not (0 < number < math.inf or (number == 0 and not positive)):
        raise refused(
            f"{name} must be a number of seconds {'above' if positive else 'of at least'} 0", value
        )
    return number


def optional_seconds(name: str, value: object) -> float | None:
    """As `seconds`, but `None` (no limit) passes."""
    return None if value is None else seconds(name, value)


def optional_rate(name: str, value: object) -> float | None:
    """`value` as a float, if it is a number above 0; `None` (no limit) passes."""
    if value is None:
        return None
    number = real_number(value)
    if not number > 0:
        raise refused(f"{name} must be a number above 0, or None", value)
    return number


def real_number(value: object) -> float:
    """`value` as a float, infinite if it is too large for one; NaN if it is no real number, or a
    bool."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        return math.nan
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf  # type: ignore[operator]


def plain_scalar(name: str, value: object) -> float | int | str | bool:
    """`value` as a number, bool or str of Python's, if it is one, or an array or tensor of one;
    else `TypeError`."""
    scalar = value
    if hasattr(value, "__array__"):  # numpy's and torch's scalars, and arrays
        array = as_array(value)
        scalar = array.item() if not isinstance(array, Refusal) and array.size == 1 else value
    if isinstance(scalar, (float, int, str, bool)):
        return scalar
    remedy = remedy_for(value)
    what = f"must be a number, a bool or a str, got {type(value).__name__}" + (
        f"; {remedy}" if remedy else ""
    )
    raise TypeError(f"{name} {what}")


def set_checked(option: object, **values: object) -> None:
    """Put checked values into a frozen dataclass, from its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(option, name, value)


def row_indices(indices: object) -> NDArray[np.int64]:
    """(B,) int64, if they are whole numbers, else `ValueError`."""
    names = as_array(indices)
    if isinstance(names, Refusal):
        raise ValueError(
            f"indices: expected (B,) int64, got {names.got}; {names.remedy or 'give batch.indices'}"
        )
    if names.dtype.kind not in "iu" or names.ndim != 1:
        got = f"shape {names.shape} of {names.dtype}"
        raise ValueError(
            f"indices: expected (B,) int64, got {got}; give those of the batch, batch.indices"
        )
    return names.astype(np.int64, copy=False)


def one_priority(value: Any) -> float:
    """`value` as a float, if it is a finite number that a float64 holds: a whole number is not
    rounded.

    Raises:
        SpecMismatch: it is not.
    """
    if type(value) is float and math.isfinite(value):
        return value
    number, given = real_number(value), plain(value)
    if math.isfinite(number):
        if isinstance(given, numbers.Integral):
            # Python compares an int with a float without rounding either, numpy does not
            given = int(given)
        if given == number or not isinstance(given, (int, np.longdouble)):
            return number
    remedy = remedy_for(value) or "give the error of the step, or leave it out"
    raise SpecMismatch("priority", "a finite number that a float64 holds", shown(value), remedy)


def priority_values(
    values: Any, count: int, max_mean_mix: float = 0.9, mask: Any = None
) -> NDArray[np.float64]:
    """The priorities of `count` items, (count,) float64.

    Args:
        values: (count,) finite numbers, or the errors of as many sequences, (count, T).
        max_mean_mix: the share of a sequence's largest error; the rest is the share of their mean
            (R2D2, Kapturowski et al. 2019, section 2.3).
        mask: (count, T) bool, which of the errors count; all by default.

    Raises:
        SpecMismatch: `values` are no such numbers, float64 cannot hold one of them, or `mask` does
            not fit them.
    """
    array = _priority_array(values, count)
    if array.ndim == 1 and mask is not None:
        got = f"priorities of shape {array.shape}"
        raise SpecMismatch("mask", "errors of shape (B, T) beside it", got, "leave it out")
    counts = np.ones(array.shape, np.bool_) if mask is None else _error_mask(mask, array.shape)
    if mask is not None:
        array = np.where(counts, array, 0.0)
    if not np.logical_and.reduce(np.isfinite(array), axis=None):
        remedy = "look at the loss that they come from"
        raise SpecMismatch("priorities", _priorities_of(count), "NaN or infinity", remedy)
    if array.ndim == 1 or count == 0:
        return array.reshape(count)
    errors = np.abs(array) * counts
    means: NDArray[np.float64] = errors.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    mixed: NDArray[np.float64] = max_mean_mix * errors.max(axis=1) + (1 - max_mean_mix) * means
    return mixed


def _priorities_of(count: int) -> str:
    return f"finite numbers of shape ({count},), or ({count}, T) of sequences"


def _priority_array(values: Any, count: int) -> NDArray[np.float64]:
    """`values` as float64, (count,) or (count, T)."""
    expected = _priorities_of(count)
    remedy = "give one number an item"
    array = as_array(values)
    if isinstance(array, Refusal):
        raise SpecMismatch("priorities", expected, array.got, array.remedy or remedy)
    is_number = array.dtype.kind in "iuf"
    has_shape = array.ndim in (1, 2) and len(array) == count <= array.size
    if not is_number or not has_shape:
        got = f"shape {array.shape} of {array.dtype}"
        raise SpecMismatch("priorities", expected, got, remedy)
    if array.dtype == np.float64:
        return array
    converted = exactly(array, np.dtype(np.float64))
    if converted is None:
        got = f"{array.dtype} that float64 cannot hold"
        remedy = "convert them yourself, for example .astype('float64')"
        raise SpecMismatch("priorities", expected, got, remedy)
    return converted


def _error_mask(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """`mask` as an array of that shape."""
    expected = f"shape {shape} of bool"
    remedy = "pass batch['mask']"
    counts = as_array(mask)
    if isinstance(counts, Refusal):
        raise SpecMismatch("mask", expected, counts.got, counts.remedy or remedy)
    if counts.shape != shape or counts.dtype != np.bool_:
        got = f"shape {counts.shape} of {counts.dtype}"
        raise SpecMismatch("mask", expected, got, remedy)
    return counts


def priority_column(
    values: Any, given: int, rows: int, at: NDArray[np.intp] | slice = slice(None)
) -> NDArray[np.float64] | None:
    """(rows,) float64 with the priorities of `given` steps, `NO_PRIORITY` in the rows of no step;
    None if none given.

    Args:
        at: which rows are the steps'; by default the first ones.

    Raises:
        SpecMismatch: not one finite number a step.
    """
    if values is None:
        return None
    array = as_array(values)
    if not isinstance(array, Refusal) and array.ndim != 1:
        raise SpecMismatch(
            "priority", f"shape ({given},)", f"shape {array.shape}", "give one number a step"
        )
    column = np.full(rows, NO_PRIORITY)
    column[slice(given) if isinstance(at, slice) else at] = priority_values(values, given)
    return column


def refused(allowed: str, value: object) -> ValueError:
    """The error that says what is allowed, what came, and what to do with a tensor that has no
    array."""
    remedy = remedy_for(value)
    return ValueError(f"{allowed}, got {shown(value)}" + (f"; {remedy}" if remedy else ""))
