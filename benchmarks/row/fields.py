"""Rows described on a command line: `obs=4x84x84:uint8 action=:int64`, or a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

from areplay._base.field import as_field
from benchmarks.workloads import Workload

SYNTAX = "NAME=SHAPE:DTYPE, such as obs=4x84x84:uint8 or action=:int64"


class FieldMalformed(ValueError):
    """A field was described in a way that cannot be understood. The arguments are its fields."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return (
            f"field {self.field!r}: {self.reason}; write NAME=SHAPE:DTYPE, such as "
            "obs=4x84x84:uint8 or action=:int64"
        )


def rows_of(texts: Sequence[str]) -> Workload:
    """Rows with these fields, each `NAME=SHAPE:DTYPE`; the shape is axes joined by `x`, nothing for
    a single number.

    Raises:
        FieldMalformed: one of them is no such text, or its name was given before; names it.
    """
    fields: dict[str, tuple[tuple[int, ...], str]] = {}
    for text in texts:
        name, shape, dtype = _parsed(text)
        if name in fields:
            raise FieldMalformed(name, "was given before")
        fields[name] = shape, dtype
    if not fields:
        raise FieldMalformed("", "there is none")
    return Workload("own", fields)


def plain_rows(row_bytes: int) -> Workload:
    """Rows of one field of so many bytes."""
    return Workload("plain", {"data": ((row_bytes,), "uint8")})


def _parsed(text: str) -> tuple[str, tuple[int, ...], str]:
    name, equals, rest = text.partition("=")
    axes, colon, dtype = rest.partition(":")
    if not name.isidentifier():
        raise FieldMalformed(name or text, "its name must be a Python name")
    if not equals or not colon:
        raise FieldMalformed(name, f"{text!r} has no {':' if equals else '='}")
    shape = []
    for axis in axes.split("x") if axes else []:
        if not (axis.isascii() and axis.isdigit() and int(axis) > 0):
            raise FieldMalformed(
                name, f"an axis must be a whole number of at least 1, got {axis!r}"
            )
        shape.append(int(axis))
    try:
        field = as_field(name, (tuple(shape), dtype or "no dtype"))
    except ValueError as error:
        raise FieldMalformed(name, str(error).partition(": ")[2]) from None
    return name, field.shape, field.dtype.name
