"""Writes single rows into columns: the fast way in, for one row at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from areplay._base.arrays import Columns
from areplay._base.field import Field
from areplay.spec import Spec

_INTEGER_SCALARS = (
    int,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
)


class RowWriter:
    """Writes checked single rows into the columns of a `Spec`: the fast way in, for one row at a
    time."""

    def __init__(self, spec: Spec, columns: Columns) -> None:
        self._spec = spec
        self._fields = [
            # The columns' dtype objects, since one that was unpickled with the spec is not numpy's
            # own.
            (
                name,
                columns[name],
                field.shape,
                columns[name].dtype,
                *_scalars_taken_as_they_are(field),
            )
            for name, field in spec.items()
        ]
        self._count = len(self._fields)

    def write(self, at: int, row: Mapping[str, Any]) -> None:
        """Write `row` into position `at` of each column.

        If it raises, some fields of position `at` may have been written: the caller has not
        published the row yet.

        Raises:
            SpecMismatch: a field is missing or extra, or has the wrong shape or dtype.
        """
        if len(row) != self._count:
            self._spec.check_names(row)
        for name, column, shape, dtype, types, low, high in self._fields:
            try:
                value = row[name]
            except KeyError:
                self._spec.check_names(row)
                raise
            kind = type(value)
            if (kind in types and low <= value <= high) or (
                kind is np.ndarray and value.dtype is dtype and value.shape == shape
            ):
                column[at] = value
            else:
                column[at] = self._spec[name].convert(value)


def _scalars_taken_as_they_are(field: Field) -> tuple[frozenset[type], Any, Any]:
    """The scalar types and the range that need no further look; whatever lies outside goes through
    `convert`."""
    if field.shape != () or field.dtype.kind == "c":
        return frozenset(), 0, 0
    if field.dtype.kind == "b":
        return frozenset({bool, np.bool_}), False, True
    if field.dtype.kind == "f":
        largest = float(np.finfo(field.dtype).max)
        return frozenset({float, np.float64, field.dtype.type}), -largest, largest
    return (
        frozenset(_INTEGER_SCALARS),
        int(np.iinfo(field.dtype).min),
        int(np.iinfo(field.dtype).max),
    )
