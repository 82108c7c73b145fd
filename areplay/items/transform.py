"""Transforms: a function of the user's over an assembled batch, run in the samplers, off the
learner's time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from areplay._base.arrays import Array
from areplay._base.field import Field, as_field
from areplay.items.item import BatchFields, Item
from areplay.spec import Spec

Function = Callable[[Mapping[str, Array], Mapping[str, Array], np.random.Generator], object]


class Transform:
    """A function and the fields that it writes:
    `Transform(normalise, obs=((4, 84, 84), "float32"))`.

    `function(batch, out, rng)` reads `batch["obs"]` and writes `out["obs"]`, arrays with a batch
    axis; a field that it declares takes the place of the item's of that name, all others stay as
    they are. It is called once a batch, after the rows were found to be whole; `rng` is the
    sampler's own generator. What it raises ends the sampler.

    Args:
        function: one that can be imported, at the top level of its module.
        fields: `(shape, dtype)` of one item's value, as in a `Spec`. At least one, of any name.

    Raises:
        ValueError, TypeError: no function, or no such fields.
    """

    def __init__(self, function: Function, /, **fields: tuple[tuple[int, ...], Any]) -> None:
        if not callable(function):
            raise TypeError(f"Transform needs a function(batch, out, rng), got {function!r}")
        if not fields:
            raise ValueError(
                "Transform needs the fields that it writes, such as obs=((4, 84, 84), 'float32')"
            )
        self.function = function
        self.fields = {name: as_field(name, given) for name, given in fields.items()}

    def split(self, item: BatchFields) -> tuple[BatchFields, dict[str, Field]]:
        """The fields of a batch after this, and those of the item's own memory that are only needed
        before it."""
        kept = [name for name in item.names if name not in self.fields]
        views = {name: item.views[name] for name in kept if name in item.views}
        sources = {view.source for view in views.values()}
        stored = {
            name: field for name, field in item.stored.items() if name in sources or name in kept
        }
        if clash := stored.keys() & self.fields.keys():
            raise ValueError(
                f"Transform cannot write {clash.pop()!r}, of which other fields are views"
            )
        after: dict[str, Any] = dict.fromkeys(item.names)  # in the item's order
        after |= {name: views.get(name, stored.get(name)) for name in kept} | self.fields
        after |= {name: field for name, field in stored.items() if name in sources}
        return BatchFields(after), {
            name: field for name, field in item.stored.items() if name not in stored
        }

    def __repr__(self) -> str:
        return (
            f"Transform({getattr(self.function, '__name__', self.function)!s}, "
            f"{', '.join(self.fields)})"
        )


def batch_fields(item: Item, spec: Spec, transform: Transform | None) -> BatchFields:
    """What the batches of such items consist of.

    Raises:
        ValueError: the item cannot be made of rows of that spec, or the transform not be applied to
            it.
    """
    fields = BatchFields(item.fields(spec))
    return fields if transform is None else transform.split(fields)[0]
