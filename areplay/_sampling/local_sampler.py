"""Batches that the owner's process draws at once: `Replay.sample`.

A `Fifo` or `Epochs` goes on from call to call, and keeps rows meanwhile, for as long as the
selector lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import numpy as np

from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._ingest.admission import Admission
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import LocalBatchPlan, LocalBatchPlans, PlannedSelector
from areplay._sampling.binding import bind
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.reader import Reader
from areplay._sampling.requests import checked_item
from areplay._storage.priority_tables import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import Stalled
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.selectors import AnySelector


class LocalSampler:
    """Draws batches for `Replay.sample`.

    Args:
        longest_window: rows that an item may span.
        generator: draws the rows.
        new_seeds: called for the seeds of each new plan.

    Attributes:
        plans: what each `Fifo` and `Epochs` goes on with.
    """

    def __init__(
        self,
        ring: Ring,
        registry: WriterRegistry,
        tables: PriorityTables,
        admission: Admission,
        longest_window: int,
        generator: np.random.Generator,
        new_seeds: Callable[[], np.random.SeedSequence],
    ) -> None:
        self._ring = ring
        self._registry = registry
        self._tables = tables
        self._admission = admission
        self._longest_window = longest_window
        self._generator = generator
        self._new_seeds = new_seeds
        self._locks = ring.block_locks()
        self.plans = LocalBatchPlans()

    def sample(
        self,
        batch_size: int,
        item: Item | None,
        selector: AnySelector | None,
        transform: Transform | None,
    ) -> BatchArrays:
        """Draw a batch; see `Replay.sample`.

        Args:
            batch_size: items of the batch, from 1 to `max_batch_size`.
        """
        spec = self._ring.spec
        item, given = checked_item(spec, self._longest_window, item, selector, transform)
        with self._registry.use(self._ring):
            chosen = self.bind(given)
            rows = None
            if isinstance(chosen, PlannedSelector):
                rows = self._planned_rows(chosen, item, batch_size)
            reader = Reader(self._ring, self._locks, item, chosen, self._generator, transform)
            arrays = BatchArrays.empty(batch_size if rows is None else len(rows), reader.fields)
            is_filled = reader.fill(arrays, rows)
        if not is_filled:
            raise Stalled(self._why_empty(item, chosen))
        plan = self.plans.get(given)
        if plan is not None:
            plan.on_taken()
            self._admission.notify()
        return arrays

    @property
    def has_batch(self) -> bool:
        """Whether a call that goes on with a `Fifo` or `Epochs` would get a batch."""
        return any(plan.has_batch for plan in self.plans.all())

    def close(self) -> None:
        """Keep no rows any more, and give the descriptors back."""
        self._locks.close()
        self.plans.close()

    def bind(self, selector: AnySelector) -> BoundSelector:
        """Make what runs of a user's selector for this replay."""
        return bind(selector, self._tables.of_exponent)

    def _planned_rows(self, selector: PlannedSelector, item: Item, batch_size: int) -> Indices:
        plan = self.plans.get(selector.given)
        if plan is not None:
            return plan.next_rows(item, batch_size)
        plan = self._new_plan(selector, item, batch_size)
        # The next call begins anew, with the rows that are there by then.
        if plan.is_hopeless:
            try:
                return plan.next_rows(item, batch_size)
            finally:
                plan.close()
        admission = weakref.ref(self._admission)
        self.plans.add(selector.given, plan, partial(_let_look_again, admission))
        self._admission.changed()  # the plan keeps rows from now on
        return plan.next_rows(item, batch_size)

    def _new_plan(self, selector: PlannedSelector, item: Item, batch_size: int) -> LocalBatchPlan:
        selector.check(batch_size, item.window, self._ring.capacity_rows)
        seeds = self._new_seeds()
        plan = selector.batch_plan(self._ring, self._registry, item.window, batch_size, seeds)
        return LocalBatchPlan(repr(selector), item, plan)

    def _why_empty(self, item: Item, selector: BoundSelector) -> str:
        rows: int = self._ring.rows_now[0]
        if rows and selector.obstacle:
            return f"sample() by {selector!r}: {selector.obstacle}"
        if not rows:
            what = "a replay without rows"
        elif selector.is_of_user:
            what = f"{rows:,} rows, of which {selector!r} drew no row that makes {text_of(item)}"
        else:
            what = f"{rows:,} rows of which no {selector.items_text(item)} can be made"
        return f"sample() on {what}; add some first, or use batches(), which waits for them"


def _let_look_again(admission: weakref.ref[Admission]) -> None:
    """Let writers look again that waited for a plan's rows. Their replay may be gone, too."""
    if (living := admission()) is not None:
        living.changed()
