"""Transforms: a function of the user's over an assembled batch, run in the samplers, off the
learner's time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy as np

from areplay._base.arrays import Array
from areplay._base.field import Field, as_field
from areplay._base.hooks import text_of
from areplay._base.validation import set_checked
from areplay.items.item import BatchFields, Item
from areplay.spec import Spec

Function = Callable[[Mapping[str, Array], Mapping[str, Array], np.random.Generator], object]


@dataclass(frozen=True, init=False, repr=False)
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

    function: Function
    fields: Mapping[str, Field] = field(hash=False)

    def __init__(self, function: Function, /, **fields: tuple[tuple[int, ...], Any]) -> None:
        if not callable(function):
            raise TypeError(f"Transform needs a function(batch, out, rng), got {function!r}")
        if not fields:
            raise ValueError(
                "Transform needs the fields that it writes, such as obs=((4, 84, 84), 'float32')"
            )
        checked = {name: as_field(name, given) for name, given in fields.items()}
        set_checked(self, function=function, fields=checked)

    def __repr__(self) -> str:
        function = self.function
        name = function.__name__ if isinstance(function, FunctionType) else text_of(function)
        return f"Transform({name}, {', '.join(self.fields)})"


def split_fields(transform: Transform, item: BatchFields) -> tuple[BatchFields, dict[str, Field]]:
    """Fields of a batch after the transform, and fields of the item's own memory that are only
    needed before it.

    Raises:
        ValueError: the transform would write a field of which others are views.
    """
    kept = [name for name in item.names if name not in transform.fields]
    views = {name: item.views[name] for name in kept if name in item.views}
    sources = {view.source for view in views.values()}
    stored = {name: each for name, each in item.stored.items() if name in sources or name in kept}
    if clash := stored.keys() & transform.fields.keys():
        raise ValueError(f"Transform cannot write {clash.pop()!r}, of which other fields are views")
    after: dict[str, Any] = dict.fromkeys(item.names)  # in the item's order
    after |= {name: views.get(name, stored.get(name)) for name in kept}
    after |= transform.fields
    after |= {name: each for name, each in stored.items() if name in sources}
    return BatchFields(after), {
        name: each for name, each in item.stored.items() if name not in stored
    }


def batch_fields(item: Item, spec: Spec, transform: Transform | None) -> BatchFields:
    """What the batches of such items consist of.

    Raises:
        ValueError: the item cannot be made of rows of that spec, or the transform not be applied to
            it.
    """
    fields = BatchFields(item.fields(spec))
    return fields if transform is None else split_fields(transform, fields)[0]
