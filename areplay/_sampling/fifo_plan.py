"""The batches of a `Fifo`: the completion log, in order."""

from __future__ import annotations

import numpy as np

from areplay._base.arrays import Indices
from areplay._sampling.batch_plan import BatchPlan, PlannedSelector
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.windows import Window
from areplay.selectors.fifo import Fifo


class FifoSelector(PlannedSelector):
    """Plans the batches of a `Fifo`."""

    def __init__(self, given: Fifo) -> None:
        super().__init__(given)
        self._times = given.max_times_sampled

    def check(self, batch_size: int, window: Window, capacity_rows: int) -> None:
        """See `PlannedSelector.check`. The rows by which the items of a batch are drawn may take
        half of the ring."""
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
        """See `PlannedSelector.batch_plan`."""
        return FifoPlan(ring, registry, window, batch_size, repr(self), self._times)

    @property
    def stream_name(self) -> str:
        """See `BoundSelector.stream_name`. Queues of other numbers of passes do not go on with each
        other's counts."""
        return repr(self)

    def __repr__(self) -> str:
        return "Fifo()" if self._times == 1 else f"Fifo({self._times})"


class FifoPlan(BatchPlan):
    """Follows the order of the log, and gives each batch `times` times."""

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
