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

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Indices, Mask
from areplay._base.hooks import text_of
from areplay._base.identity import identity
from areplay._base.validation import flag, whole_number
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
        assert self._registry is not None
        self.log.begin(
            self._registry, goes_on=self.takes_in, without=without if self.takes_in else None
        )

    def keep(self) -> None:
        """Let no block be recycled from now on that is still needed."""
        assert self._registry is not None
        self._registry.keep(self.log)

    def close(self) -> None:
        """Keep nothing any more."""
        assert self._registry is not None
        self._registry.forget(self.log)
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

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_registry": None}


class LocalBatchPlan:
    """BatchPlan to `Replay.sample`, one batch a call."""

    def __init__(self, name: str, item: Item, batch_plan: BatchPlan) -> None:
        self._name, self._batch_size = name, batch_plan.batch_size
        # as it was at the first call
        self._item, self._identity = item, identity(item, item.window)
        self._batch_plan: BatchPlan | None = batch_plan  # None when it is over
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
        """Whether the next call would get one."""
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
        """Keep nothing any more, and give the memory back. May be called twice. Does nothing in a
        forked child."""
        batch_plan, self._batch_plan = self._batch_plan, None
        if batch_plan is not None and self._origin is forks.current:
            batch_plan.close()


def close_each(local: Mapping[Any, LocalBatchPlan]) -> None:
    """Close those of all selectors."""
    for batch_plan in list(local.values()):
        batch_plan.close()


@runtime_checkable
class PlannedSelector(Protocol):
    """A selector that settles beforehand what is in each batch."""

    def check(self, batch_size: int, window: Window, capacity_rows: int) -> None:
        """Raise `ValueError` if batches of so many such items cannot be had from a ring of so many
        rows."""
        ...

    def batch_plan(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        seeds: np.random.SeedSequence,
    ) -> BatchPlan:
        """Those of a new stream of batches."""
        ...


class Fifo:
    """Each item exactly once, in the order in which they became complete; that is their order
    within a stream.

    The queue that on-policy learners need. A row is not overwritten before its item was handed to
    the learner: when the ring is full, the actors wait. Rows count that are in the ring when the
    stream of batches is opened, and all that come later. An item that can never be made (a step of
    it was lost) is left out. Rows that actors have handed in wait in their inboxes for their turn,
    `inbox_rows` of each actor at most: lower that for data that is more recent.

    Killed samplers and actors change nothing about it. If fewer items are there than a batch takes
    and no rows can come any more, since the actors are gone or all blocks hold rows that are still
    needed, the learner gets `Stalled`.

    Args:
        max_times_sampled: each batch comes so many times, one after the other: several passes over
            recent items.

    Raises:
        ValueError: that is no whole number above 0.
    """

    def __init__(self, max_times_sampled: int = 1) -> None:
        self.max_times_sampled = whole_number("max_times_sampled", max_times_sampled)

    def check(self, batch_size: int, window: Window, capacity_rows: int) -> None:
        """See `PlannedSelector`: the rows by which a batch's items are drawn take half of the ring
        at most."""
        needed = 2 * batch_size * window.period + window.rows - 1
        if needed > capacity_rows:
            raise ValueError(
                f"{self!r} with batch_size={batch_size:,} of such items needs a capacity of at "
                f"least {needed:,} rows, got {capacity_rows:,}: while a batch waits for its last "
                "items, actors need room for others"
            )

    def batch_plan(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        seeds: np.random.SeedSequence,
    ) -> BatchPlan:
        """See `PlannedSelector`."""
        return _InOrder(ring, registry, window, batch_size, repr(self), self.max_times_sampled)

    def __repr__(self) -> str:
        return "Fifo()" if self.max_times_sampled == 1 else f"Fifo({self.max_times_sampled})"


class Epochs:
    """Each item once an epoch, in a new random order each time: for data that is in the ring
    already.

    All items that can be made of the rows that are there when the stream of batches is opened. Rows
    that come later do not belong to it; they wait where they would overwrite one that does, until
    the last batch was handed out. Batches have `batch_size` items, also where one epoch ends and
    the next begins; only the last one of all may have fewer. After it the loop over the stream
    ends, and `get` raises `EndOfEpochs`. With no item there, or with `drop_last` less than a batch,
    `Stalled` is raised when the stream is opened, or by `sample`; both can be tried again with the
    same selector when rows came.

    Args:
        epochs: how many; None for ever.
        drop_last: leave a last batch out that would have fewer items.

    Raises:
        ValueError: an option is not what it should be.
    """

    def __init__(self, epochs: int | None = 1, *, drop_last: bool = False) -> None:
        self.epochs = None if epochs is None else whole_number("epochs", epochs)
        self.drop_last = flag("drop_last", drop_last)

    def check(self, batch_size: int, window: Window, capacity_rows: int) -> None:
        """See `PlannedSelector`: any do."""

    def batch_plan(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        seeds: np.random.SeedSequence,
    ) -> BatchPlan:
        """See `PlannedSelector`."""
        options = self.epochs, self.drop_last
        return _Shuffled(ring, registry, window, batch_size, repr(self), *options, seeds)

    def __repr__(self) -> str:
        return (
            f"Epochs({self.epochs}, drop_last=True)" if self.drop_last else f"Epochs({self.epochs})"
        )


class _InOrder(BatchPlan):
    """As the log goes, each batch `times` times."""

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        name: str,
        times: int,
    ) -> None:
        super().__init__(ring, registry, window, batch_size, name)
        self._times = times

    def batch(self, number: int) -> Indices | None:
        start = number // self._times * self.batch_size
        return self.log.entries(start, start + self.batch_size) if self.has_batch(number) else None

    def has_batch(self, number: int) -> bool:
        return (number // self._times + 1) * self.batch_size <= self.log.appended

    def on_delivered(self, batches: int) -> None:
        self.log.released = batches // self._times * self.batch_size

    def items_left(self, batches: int) -> int | None:
        return self.log.appended - batches // self._times * self.batch_size


class _Shuffled(BatchPlan):
    """All entries of the log, in a new order each epoch."""

    takes_in = False

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        name: str,
        epochs: int | None,
        drop_last: bool,
        seeds: np.random.SeedSequence,
    ) -> None:
        super().__init__(ring, registry, window, batch_size, name)
        self._epochs, self._drop_last, self._seeds = epochs, drop_last, seeds
        self._order: tuple[int, Indices] = -1, np.empty(0, np.int64)  # of the epoch of that number

    @property
    def _items(self) -> float:
        """How many there are to deliver in all."""
        if self._epochs is None:
            return math.inf if self.log.appended else 0
        items = self._epochs * self.log.appended
        return items - items % self.batch_size if self._drop_last else items

    def batch(self, number: int) -> Indices | None:
        start, parts = number * self.batch_size, []
        stop = start + self.size(number)
        while start < stop:
            epoch, at = divmod(start, self.log.appended)
            part = self._order_of(epoch)[at : at + stop - start]
            parts.append(self.log.entries_at(part))
            start += len(part)
        return np.concatenate(parts) if parts else None

    def size(self, number: int) -> int:
        return int(max(0, min(self.batch_size, self._items - number * self.batch_size)))

    def on_delivered(self, batches: int) -> None:
        if batches * self.batch_size >= self._items:
            self.log.released = self.log.appended

    def items_left(self, batches: int) -> int | None:
        return (
            None if self._epochs is None else int(max(0, self._items - batches * self.batch_size))
        )

    def _order_of(self, epoch: int) -> Indices:
        if self._order[0] != epoch:
            # Every sampler finds the same order: the seed depends on the epoch alone.
            seed = np.random.SeedSequence(
                self._seeds.entropy, spawn_key=(*self._seeds.spawn_key, epoch)
            )
            self._order = epoch, np.random.default_rng(seed).permutation(self.log.appended)
        return self._order[1]
