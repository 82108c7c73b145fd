"""The batches of `Epochs`: the completion log, in a new order each epoch."""

from __future__ import annotations

import math

import numpy as np

from areplay._base.arrays import Indices
from areplay._sampling.batch_plan import BatchPlan, PlannedSelector
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.windows import Window
from areplay.selectors.epochs import Epochs


class EpochsSelector(PlannedSelector):
    """Plans the batches of `Epochs`."""

    def __init__(self, given: Epochs) -> None:
        super().__init__(given)
        self._option = given

    def batch_plan(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        seeds: np.random.SeedSequence,
    ) -> BatchPlan:
        """See `PlannedSelector.batch_plan`."""
        name = repr(self)
        return EpochsPlan(ring, registry, window, batch_size, name, self._option, seeds)

    def __repr__(self) -> str:
        drop_last = ", drop_last=True" if self._option.drop_last else ""
        return f"Epochs({self._option.epochs}{drop_last})"


class EpochsPlan(BatchPlan):
    """Gives all entries of the log, in a new order each epoch."""

    takes_in = False

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        window: Window,
        batch_size: int,
        name: str,
        option: Epochs,
        seeds: np.random.SeedSequence,
    ) -> None:
        super().__init__(ring, registry, window, batch_size, name)
        self._epochs = option.epochs
        self._drop_last = option.drop_last
        self._seeds = seeds
        # The order of one epoch, and the number of that epoch.
        self._order: tuple[int, Indices] = (-1, np.empty(0, np.int64))

    @property
    def _items(self) -> float:
        """How many items there are to deliver in all."""
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
