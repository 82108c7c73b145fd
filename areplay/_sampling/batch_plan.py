"""BatchPlan: which items are in which batch, settled beforehand, so that each is delivered as often
as it should be.

A selector like `Fifo` or `Epochs` does not draw. Batch number n of its stream consists of certain
entries of an item log (see `areplay._sampling.completion_log`), whoever fills it: sampler k fills
the batches k, k + samplers, ... in that order, and the learner takes them in the order of their
numbers. How many batches a sampler has filled is the very count by whose store it publishes one
(see `areplay._sampling.slots`), so a sampler that dies has either delivered a batch or not, and its
successor goes on with the next. That is all that "exactly once" takes.

Written by nobody but the owner's process; what samplers need travels to them when they are spawned.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Indices, Mask
from areplay._base.hooks import text_of
from areplay._base.identity import identity
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.completion_log import CompletionLog
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.windows import Window
from areplay.errors import EndOfEpochs, Stalled
from areplay.items.item import Item


class BatchPlan:
    """The batches of one stream. Pickles into a sampler that is being spawned, as what `batch`
    needs.

    Args:
        batch_size: items a batch.
        name: of the selector, for messages.
    """

    takes_in = True
    """Whether rows that come later belong to it."""

    def __init__(
        self, ring: Ring, registry: WriterRegistry, window: Window, batch_size: int, name: str
    ) -> None:
        self.batch_size = batch_size
        self.log = CompletionLog(ring, window, name)
        self._registry: WriterRegistry | None = registry

    def begin(self, without: Callable[[Indices], Mask] | None = None) -> None:
        """Take in what is there, and from now on, if wanted, what comes. Call `keep` before.

        Args:
            without: by which rows items were delivered already, before a checkpoint; if it takes in
                what comes.
        """
        self.log.begin(
            self._owners_registry, goes_on=self.takes_in, without=without if self.takes_in else None
        )

    def keep(self) -> None:
        """Let no block be recycled from now on that is still needed."""
        self._owners_registry.add_pins(self.log)

    def close(self) -> None:
        """Keep nothing any more."""
        self._owners_registry.remove(self.log)
        self.log.close()

    def batch(self, number: int) -> Indices | None:
        """The rows that the items of batch `number` are drawn by; None if they are not all there
        yet, or never."""
        raise NotImplementedError

    def has_batch(self, number: int) -> bool:
        """Whether all items of batch `number` are there."""
        return self.size(number) > 0

    def size(self, number: int) -> int:
        """How many items batch `number` has; 0 if there is no such batch."""
        return self.batch_size

    def on_delivered(self, batches: int) -> None:
        """So many batches were handed to the learner."""
        raise NotImplementedError

    def items_left(self, batches: int) -> int | None:
        """Items that are there and not handed out as often as they should be, after so many
        batches; None: endless."""
        raise NotImplementedError

    @property
    def _owners_registry(self) -> WriterRegistry:
        assert self._registry is not None, "a sampler keeps no blocks"
        return self._registry

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_registry": None}


class LocalBatchPlan:
    """Gives the batches of a plan to `Replay.sample`, one a call."""

    def __init__(self, name: str, item: Item, batch_plan: BatchPlan) -> None:
        self._name = name
        self._batch_size = batch_plan.batch_size
        self._item = item
        # The item may change after the first call.
        self._identity = identity(item, item.window)
        self._batch_plan: BatchPlan | None = batch_plan  # None after its last batch
        self._number = 0
        self._origin = forks.current
        try:
            batch_plan.keep()
            batch_plan.begin()
        except BaseException:
            self.close()
            raise

    @property
    def is_hopeless(self) -> bool:
        """Whether it has begun with less than a batch, and takes in no rows that come later."""
        batch_plan = self._batch_plan
        return batch_plan is not None and not batch_plan.takes_in and batch_plan.size(0) == 0

    @property
    def has_batch(self) -> bool:
        """Whether the next call would get a batch."""
        return self._batch_plan is not None and self._batch_plan.has_batch(self._number)

    def next_rows(self, item: Item, batch_size: int) -> Indices:
        """The rows that the items of the next batch are drawn by.

        Raises:
            Stalled: they are not there. EndOfEpochs: there are no more.
            ValueError: the item or the size is not that of the first call; another object of the
                same class and state is the same item.
        """
        batch_plan = self._batch_plan
        is_same = item is self._item or identity(item, item.window) == self._identity
        if batch_size != self._batch_size or not is_same:
            raise ValueError(
                f"{self._name} goes on with batches of {self._batch_size} {text_of(self._item)}, "
                f"got {batch_size} {text_of(item)}; use another selector for those"
            )
        if batch_plan is None:
            raise EndOfEpochs(self._name)
        rows = batch_plan.batch(self._number)
        if rows is None and batch_plan.size(self._number) == 0 and self._number:
            self.close()
            raise EndOfEpochs(self._name)
        if rows is None:
            left = batch_plan.items_left(self._number)
            items = batch_plan.log.appended if left is None else left
            raise Stalled(
                f"sample() of {batch_size} items by {self._name}, but {items} are there; "
                "add rows first"
            )
        return rows

    def on_taken(self) -> None:
        """The batch was copied: go on with the next."""
        assert self._batch_plan is not None
        self._number += 1
        self._batch_plan.on_delivered(self._number)

    def close(self) -> None:
        """Keep no rows any more, and give the memory back. May be called twice. Does nothing in a
        forked child."""
        batch_plan, self._batch_plan = self._batch_plan, None
        if batch_plan is not None and self._origin is forks.current:
            batch_plan.close()


class LocalBatchPlans:
    """The plans that `Replay.sample` goes on with, one for each selector object that lives.

    Equal selectors are not the same one: each begins a plan of its own.
    """

    def __init__(self) -> None:
        self._plans: dict[int, LocalBatchPlan] = {}

    def get(self, selector: object) -> LocalBatchPlan | None:
        """The plan that this object has begun."""
        return self._plans.get(id(selector))

    def add(self, selector: object, plan: LocalBatchPlan, on_gone: Callable[[], object]) -> None:
        """Go on with `plan` as long as `selector` lives.

        Args:
            on_gone: called when the plan was closed since the selector is gone. It must not refer
                to what owns these plans.
        """
        self._plans[id(selector)] = plan
        weakref.finalize(selector, _forget, self._plans, id(selector), on_gone)

    def all(self) -> list[LocalBatchPlan]:
        """The plans of all selectors."""
        return list(self._plans.values())

    def close(self) -> None:
        """Keep no rows any more."""
        for plan in self.all():
            plan.close()


def _forget(
    plans: dict[int, LocalBatchPlan], selector_id: int, on_gone: Callable[[], object]
) -> None:
    plans.pop(selector_id).close()
    on_gone()


class PlannedSelector(BoundSelector):
    """Says beforehand which items are in which batch."""

    is_planned = True

    def check(self, batch_size: int, window: Window, capacity_rows: int) -> None:
        """Raise `ValueError` if a ring of `capacity_rows` has too little room for a batch of such
        items."""

    def batch_plan(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        seeds: np.random.SeedSequence,
    ) -> BatchPlan:
        """Plan the batches of a new stream."""
        raise NotImplementedError
