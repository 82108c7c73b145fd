"""Items: what the learner samples, and how it is put together from rows.

An item kind says which rows it needs around the one that it is drawn by, which fields a batch of it
has, and how they come from the rows. It never decides which rows are drawn (see
`areplay.selectors.selector`) nor whether they are still whole (see `areplay._sampling.reader`). It
runs in the samplers, off the learner's time; areplay's own ones also in a learner that would have
to wait. Two objects of one class with equal state are one kind (see `areplay._base.identity`): a
stream of batches goes on with either after a checkpoint.

A kind of your own is any object like this, that can be pickled; here the discounted sum of the next
five rewards::

    class NextRewards:
        window = areplay.Window(forward=4)

        def fields(self, spec):
            return {"obs": spec["obs"], "returns": ((), "float32")}

        def assemble(self, windows, out):
            windows.take("obs", out=out["obs"])
            # (B, 5); behind an episode's end the last row is repeated
            rewards = windows.take("reward", slice(0, 5))
            is_step = np.arange(5) < windows.steps[:, None]
            out["returns"][:] = (rewards * is_step) @ 0.99 ** np.arange(5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from areplay._base.arrays import Array
from areplay._base.field import as_field
from areplay._storage.windows import Window, Windows
from areplay.spec import Spec


@dataclass(frozen=True)
class FieldView:
    """A field that is a part of another one's memory: `source[:, start:stop]`.

    So that an observation and the next one share the frames that they have in common.

    Args:
        stack: if not 0, the field is the stacks of so many neighbours along axis 1:
            `(B, stop - start - stack + 1, stack, ...)`.
    """

    source: str
    start: int
    stop: int
    stack: int = 0

    def of(self, source: Array) -> Array:
        """The part of that array, not a copy."""
        part = source[:, self.start : self.stop]
        if not self.stack:
            return part
        windows = np.lib.stride_tricks.sliding_window_view(part, self.stack, axis=1, writeable=True)
        return np.moveaxis(windows, -1, 2)


Fields = Mapping[str, Any]
"""Field name -> `(shape, dtype)` without the batch axis, a `Field`, or a `FieldView` of another
field."""


@runtime_checkable
class Item(Protocol):
    """A kind of item."""

    @property
    def window(self) -> Window:
        """The rows that an item needs around the one that it is drawn by."""
        ...

    def fields(self, spec: Spec) -> Fields:
        """Name, shape (without the batch axis) and dtype of each field of a batch of such items.

        A field that is the source of a `FieldView` is for `assemble` only, a batch does not show
        it.

        Raises:
            ValueError: such items cannot be made of rows of that spec.
        """
        ...

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """Write item `i` of `windows` into `out[field][i]`, for each i. The rows may change
        meanwhile: never trust them further than to copy them, what was torn is written again.
        """
        ...


class BatchFields:
    """What a batch consists of: arrays that are stored, and fields that are views of them.

    Attributes:
        stored: name -> Field, of memory of its own.
        views: name -> View of one of them.
        names: of the fields that the learner sees, in order.
    """

    def __init__(self, fields: Fields) -> None:
        self.views = {name: given for name, given in fields.items() if isinstance(given, FieldView)}
        self.stored = {
            name: as_field(name, given) for name, given in fields.items() if name not in self.views
        }
        sources = {view.source for view in self.views.values()}
        self.names = tuple(name for name in fields if name not in sources)
        if not self.names or not sources <= self.stored.keys():
            raise ValueError(
                "a batch needs fields, and its views need their sources, got "
                f"{', '.join(fields) or 'none'}"
            )

    def of(self, stored: Mapping[str, Array]) -> dict[str, Array]:
        """The fields as the learner sees them, of arrays with a batch axis."""
        return {
            name: self.views[name].of(stored[self.views[name].source])
            if name in self.views
            else stored[name]
            for name in self.names
        }

    def empty(self, count: int) -> dict[str, Array]:
        """Fresh memory for `count` items."""
        return {
            name: np.empty((count, *field.shape), field.dtype)
            for name, field in self.stored.items()
        }
