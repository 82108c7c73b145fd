"""Checks of the options that users pass. A wrong one is a `ValueError` that says what is allowed."""

from __future__ import annotations

import numbers

import numpy as np


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
