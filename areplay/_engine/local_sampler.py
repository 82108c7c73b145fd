"""Batches that the owner's process draws at once: `Replay.sample`.

A `Fifo` or `Epochs` goes on from call to call, and keeps rows meanwhile, for as long as the
selector lives.
"""

from __future__ import annotations

import weakref
from functools import partial

from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters, Draws
from areplay._ingest.admission import Admission
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import LocalBatchPlan, LocalBatchPlans, PlannedSelector
from areplay._sampling.binding import bind
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.reader import Reader
from areplay._sampling.requests import checked_item
from areplay._storage.priorities import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import Stalled
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.selectors import AnySelector


class LocalSampler:
    """Draws batches for `Replay.sample`.

    Attributes:
        plans: what each `Fifo` and `Epochs` goes on with.
    """

    def __init__(
        self,
        config: ReplayConfig,
        ring: Ring,
        registry: WriterRegistry,
        tables: PriorityTables,
        admission: Admission,
        counters: Counters,
    ) -> None:
        self._config = config
        self._ring = ring
        self._registry = registry
        self._tables = tables
        self._admission = admission
        self._counters = counters
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
        config = self._config
        item, given = checked_item(config.spec, config.longest_window, item, selector, transform)
        with self._registry.use(self._ring):
            chosen = self.bind(given)
            rows = None
            if isinstance(chosen, PlannedSelector):
                rows = self._planned_rows(chosen, item, batch_size)
            generator = self._counters.generator
            reader = Reader(self._ring, self._locks, item, chosen, generator, transform)
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
        selector.check(batch_size, item.window, self._config.capacity_rows)
        seeds = self._counters.seeds(Draws.BATCH_PLANS, self._counters.next_number())
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
    """Let writers look again for whom a plan kept rows; their replay may be gone, too."""
    if (living := admission()) is not None:
        living.changed()
