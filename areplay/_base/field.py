"""A field: one named part of a row, and the check that data fits it.

Rule: data is stored bit for bit or refused. A value is refused if its shape differs or if its dtype
could lose information; plain Python numbers, lists of them and single numbers of numpy or torch
have no dtype of their own worth keeping, so they are judged by value instead. Whole numbers are
always judged by value where a float or complex field takes them: numpy calls a cast from int64 to
float64 safe, and rounds above 2^53. Nothing is broadcast, nothing is dropped, nothing is guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from areplay._base.arrays import (
    KINDS,
    Array,
    Refusal,
    as_array,
    exactly,
    shown,
    told,
    torch_tensor_in,
)
from areplay.errors import SpecMismatch


@dataclass(frozen=True)
class Field:
    """One named part of a row: `shape` without the row axis, and a native numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of this field in one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype.name}"

    def convert(
        self, value: object, rows: tuple[int, ...] = (), *, by_value: bool = False
    ) -> Array:
        """`value` as an array of shape `(*rows, *shape)` and exactly this dtype; no copy if it is
        one already.

        Args:
            by_value: judge an array by its values too, as if each were a number of its own.

        Raises:
            SpecMismatch: it is no array, its shape differs, or its dtype could lose information.
        """
        shape = rows + self.shape
        given = value if type(value) is np.ndarray else as_array(value)
        if isinstance(given, Refusal):
            raise self._mismatch(shape, given.got, given.remedy)
        if given.shape != shape:
            raise self._mismatch(
                shape, f"shape {given.shape}", "nothing is broadcast or reshaped for you"
            )
        if given.dtype == self.dtype and given.dtype.isnative:
            return given
        kind = given.dtype.kind
        if by_value or given.shape == () or isinstance(value, (list, tuple)):
            converted = exactly(given, self.dtype)
        elif (
            not given.dtype.isnative
            or kind not in KINDS
            or not np.can_cast(given.dtype, self.dtype, "safe")
        ):
            converted = None
        elif kind in "iu" and self.dtype.kind in "fc":
            converted = exactly(given, self.dtype)
        else:
            converted = given.astype(self.dtype)
        if converted is not None:
            return converted
        order = "" if given.dtype.isnative else " in foreign byte order"
        change = (
            f".to(torch.{self.dtype.name})"
            if torch_tensor_in(value) is not None
            else f".astype({self.dtype.name!r})"
        )
        raise self._mismatch(
            shape, f"{given.dtype.name}{order}", f"convert it yourself, for example {change}"
        )

    def _mismatch(self, shape: tuple[int, ...], got: str, remedy: str = "") -> SpecMismatch:
        remedy = remedy or "give an array of that shape"
        return SpecMismatch(self.name, f"shape {shape} of {self.dtype.name}", got, remedy)


def as_field(name: str, given: object) -> Field:
    """The field that `given`, a `(shape, dtype)` or another field, describes.

    Raises:
        ValueError: it describes none that could be stored.
    """
    if isinstance(given, Field):
        return replace(given, name=name)
    try:
        shape, dtype_like = cast(tuple[tuple[int, ...], DTypeLike], given)
        axes = tuple(shape)
    except Exception:  # whatever an object raises that is gone through as if it were a tuple
        raise ValueError(
            f"field {name!r} must be (shape, dtype), such as ((4,), 'float32'), got {shown(given)}"
        ) from None
    if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in axes):
        raise ValueError(
            f"field {name!r}: each axis must be a whole number of at least 1, got "
            f"shape {shown(shape)}"
        )
    try:
        dtype = np.dtype(dtype_like)
    except Exception as error:
        raise ValueError(f"field {name!r}: {told(error)}; use a name such as 'float32'") from None
    if dtype.kind not in KINDS:
        raise ValueError(
            f"field {name!r}: {dtype} cannot be shared; use a bool, integer, float or complex dtype"
        )
    if not dtype.isnative:
        raise ValueError(
            f"field {name!r}: {dtype.str} is in foreign byte order; use "
            f"{dtype.newbyteorder('=').str}"
        )
    if dtype.itemsize > 16 or dtype.char in "gG":
        raise ValueError(
            f"field {name!r}: {dtype} differs between machines; use float64 or complex128"
        )
    return Field(name, tuple(int(n) for n in axes), dtype)
