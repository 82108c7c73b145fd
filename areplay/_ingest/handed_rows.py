"""Handed rows: the values of one call, as long as the caller could still change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from areplay._base.arrays import Array, Columns, own_columns


class HandedRows:
    """The checked rows of one call.

    Args:
        given: what the caller handed in, if `columns` may share memory with it; None if they do
            not.

    Attributes:
        columns: field name -> array of shape (n, *field.shape).
        priorities: (n,) float64, NaN where a row has none; None if no row has one.
    """

    def __init__(
        self, columns: Columns, priorities: Array | None, given: Mapping[str, Any] | None
    ) -> None:
        self.columns = columns
        self.priorities = priorities
        self._given = given

    def __len__(self) -> int:
        return row_count(self.columns)

    @property
    def may_change(self) -> bool:
        """Whether the caller can still change the values."""
        return self._given is not None

    def detach(self) -> None:
        """Copy what the caller could still change."""
        if self._given is not None:
            self.columns = own_columns(self.columns, self._given)
            self._given = None


def row_count(columns: Columns) -> int:
    """The number of rows in checked columns."""
    return len(next(iter(columns.values())))
