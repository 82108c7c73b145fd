"""Choices: what a user asks for of a batch, as given or by default, and whether it can be had.

A wrong one is a `ValueError` or `TypeError` that says what is allowed, before anything is begun.
"""

from __future__ import annotations

import pickle

from areplay._base.hooks import text_of
from areplay._base.validation import whole_number
from areplay._ingest.rate_controller import check_limiter
from areplay._storage.windows import Window
from areplay.items.item import Item
from areplay.items.rows import Rows
from areplay.items.transform import Transform, batch_fields
from areplay.items.transitions import Transitions
from areplay.limiters import Limiter, MinSize, SamplesPerInsert
from areplay.selectors import AnySelector, Epochs, Fifo, Prioritized, Selector, Uniform
from areplay.spec import Spec


def checked_item(
    spec: Spec,
    longest_window: int,
    item: Item | None,
    selector: AnySelector | None,
    transform: Transform | None,
) -> tuple[Item, AnySelector]:
    """What to sample, and how: as given or by default, if it can be done with rows of that spec."""
    if item is None:
        item = Transitions() if spec.is_steps else Rows()
    selector = Uniform() if selector is None else selector
    if isinstance(item, type) or not isinstance(item, Item):
        raise _refused("item", "fields, assemble and window", "Rows()", item)
    if isinstance(selector, type) or not isinstance(
        selector, (Selector, Prioritized, Fifo, Epochs)
    ):
        raise _refused("selector", "draw", "Uniform()", selector)
    if transform is not None and not isinstance(transform, Transform):
        raise TypeError(f"transform must be an areplay.Transform, got {text_of(transform)}")
    window = item.window
    if not isinstance(window, Window):
        raise TypeError(
            f"item must have a window, an areplay.Window, got {text_of(window)} of {text_of(item)}"
        )
    if window.rows > 1 and not spec.is_steps:
        raise ValueError(
            f"{text_of(item)} spans several rows, which needs a spec of steps, made with Spec.steps"
        )
    if window.rows > longest_window:
        raise ValueError(
            f"{text_of(item)} spans {window.rows:,} rows, more than {longest_window:,}: half of "
            f"the ring, or a block if block_rows is given; raise capacity, or leave block_rows out"
        )
    batch_fields(item, spec, transform)
    return item, selector


def checked_limiter(
    limiter: Limiter | None,
    min_size_to_sample: int | None,
    batch_size: int,
    capacity_rows: int,
    item: Item,
    selector: AnySelector,
) -> Limiter:
    """As given or by default, if it can be had with such batches."""
    if limiter is None:
        limiter = MinSize(1 if min_size_to_sample is None else min_size_to_sample)
    elif min_size_to_sample is not None:
        raise ValueError(
            f"min_size_to_sample is given twice: {min_size_to_sample!r} and in {limiter!r}"
        )
    if not isinstance(limiter, (MinSize, SamplesPerInsert)):
        raise TypeError(f"limiter must be a SamplesPerInsert or MinSize, got {text_of(limiter)}")
    whole_number("min_size_to_sample", limiter.min_size_to_sample, at_most=capacity_rows)
    if isinstance(limiter, SamplesPerInsert):
        if isinstance(selector, (Fifo, Epochs)):
            raise ValueError(
                f"{text_of(selector)} delivers each item a fixed number of times, so {limiter!r} "
                f"would hold one side for ever; leave the limiter out, or pass MinSize"
            )
        check_limiter(limiter, batch_size, item.window.rows)
    return limiter


def check_sendable(option: str, given: object) -> None:
    """Raise `ValueError` if it cannot be pickled."""
    try:
        pickle.dumps(given)
    except Exception as error:
        raise ValueError(
            f"{option} {text_of(given)} cannot reach another process: {text_of(error)}; define it "
            "at module level"
        ) from None


def _refused(option: str, parts: str, example: str, given: object) -> TypeError:
    return TypeError(
        f"{option} must be an object with {parts}, such as {example}, got {text_of(given)}"
    )
