"""Checks of the options that users pass. A wrong one is a `ValueError` that says what is allowed."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay.errors import SpecMismatch

NO_PRIORITY = math.nan
"""Stands for: none given."""


def whole_number(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """`value` as an int, if it is a whole number (no bool, no float) between the bounds, else `ValueError`."""
    allowed = f"a whole number of at least {at_least}" + ("" if at_most is None else f" and at most {at_most:,}")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    number = int(value)
    if number < at_least or (at_most is not None and number > at_most):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number


def flag(name: str, value: object) -> bool:
    """`value`, if it is a bool, else `ValueError`."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def fraction(name: str, value: object) -> float:
    """`value` as a float, if it is a real number from 0 to 1, else `ValueError`."""
    if type(value) is float and 0 <= value <= 1:  # once a batch, and an abstract class is slow to ask
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)


def seconds(name: str, value: object, *, positive: bool = True) -> float:
    """`value` as a float number of seconds, if it is a finite real number above (or, if not `positive`, at least) 0."""
    allowed = f"{name} must be a number of seconds {'above' if positive else 'of at least'} 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{allowed}, got {value!r}")
    number = float(value)
    if not (0 < number < float("inf") or (number == 0 and not positive)):
        raise ValueError(f"{allowed}, got {value!r}")
    return number


def optional_seconds(name: str, value: object) -> float | None:
    """As `seconds`, but `None` (no limit) passes."""
    return None if value is None else seconds(name, value)


def optional_rate(name: str, value: object) -> float | None:
    """`value` as a float, if it is a number above 0; `None` (no limit) passes."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) > 0:
        raise ValueError(f"{name} must be a number above 0, or None, got {value!r}")
    return float(value)


def one_priority(value: Any) -> float:
    """`value` as a float, if it is a finite number.

    Raises:
        SpecMismatch: it is not.
    """
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise SpecMismatch(
            "priority", "a finite number", repr(value)[:80], "give the error of the step, or leave it out"
        )
    return float(value)


def priority_values(values: Any, count: int, max_mean_mix: float = 0.9, mask: Any = None) -> NDArray[np.float64]:
    """(count,) float64 of as many finite numbers, or of the errors of as many sequences, (count, T).

    Raises:
        SpecMismatch: they are none.
    """
    array = np.asarray(values)
    expected = f"finite numbers of shape ({count},), or ({count}, T) of sequences"
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or len(array) != count or array.size < count:
        raise SpecMismatch("priorities", expected, f"shape {array.shape} of {array.dtype}", "give one number an item")
    array = array.astype(np.float64, copy=False)
    if array.ndim == 1 and mask is not None:
        raise SpecMismatch(
            "mask", "errors of shape (B, T) beside it", f"priorities of shape {array.shape}", "leave it out"
        )
    counts = np.ones(array.shape, np.bool_) if mask is None else np.asarray(mask)
    if counts.shape != array.shape or counts.dtype != np.bool_:
        got = f"shape {counts.shape} of {counts.dtype}"
        raise SpecMismatch("mask", f"shape {array.shape} of bool", got, "pass batch['mask']")
    if mask is not None:
        array = np.where(counts, array, 0.0)
    if not np.logical_and.reduce(np.isfinite(array), axis=None):
        raise SpecMismatch("priorities", expected, "NaN or infinity", "look at the loss that they come from")
    if array.ndim == 1 or count == 0:
        return array.reshape(count)
    errors = np.abs(array) * counts
    means: NDArray[np.float64] = errors.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    mixed: NDArray[np.float64] = max_mean_mix * errors.max(axis=1) + (1 - max_mean_mix) * means
    return mixed


def priority_column(
    values: Any, given: int, rows: int, at: NDArray[np.intp] | slice = slice(None)
) -> NDArray[np.float64] | None:
    """(rows,) float64 with the priorities of `given` steps, `NO_PRIORITY` in the rows of no step; None if none given.

    Args:
        at: which rows are the steps'; by default the first ones.

    Raises:
        SpecMismatch: not one finite number a step.
    """
    if values is None:
        return None
    column = np.full(rows, NO_PRIORITY)
    if np.ndim(values) != 1:
        raise SpecMismatch("priority", f"shape ({given},)", f"shape {np.shape(values)}", "give one number a step")
    column[slice(given) if isinstance(at, slice) else at] = priority_values(values, given)
    return column
