"""Batches that the owner's process draws at once: `Replay.sample`.

A `Fifo` or `Epochs` goes on from call to call, and keeps rows meanwhile, for as long as the
selector lives.
"""

from __future__ import annotations

import weakref

from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters, Draws
from areplay._ingest.admission import Admission
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import LocalBatchPlan, PlannedSelector, close_each
from areplay._sampling.reader import Reader
from areplay._sampling.requests import checked_item
from areplay._storage.priorities import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import Stalled
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.selectors.prioritized import BUILT_IN, items_of
from areplay.selectors.selector import Selector


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
        self.plans: weakref.WeakKeyDictionary[PlannedSelector, LocalBatchPlan] = (
            weakref.WeakKeyDictionary()
        )

    def sample(
        self,
        batch_size: int,
        item: Item | None,
        selector: Selector | PlannedSelector | None,
        transform: Transform | None,
    ) -> BatchArrays:
        """Draw a batch; see `Replay.sample`.

        Args:
            batch_size: items of the batch, from 1 to `max_batch_size`.
        """
        config = self._config
        item, chosen = checked_item(config.spec, config.longest_window, item, selector, transform)
        with self._registry.use(self._ring):
            self.bind(chosen)
            rows = None
            if isinstance(chosen, PlannedSelector):
                rows = self._planned_rows(chosen, item, batch_size)
            generator = self._counters.generator
            reader = Reader(self._ring, self._locks, item, chosen, generator, transform)
            arrays = BatchArrays.empty(batch_size if rows is None else len(rows), reader.fields)
            is_filled = reader.fill(arrays, rows)
        if not is_filled:
            raise Stalled(self._why_empty(item, chosen))
        if isinstance(chosen, PlannedSelector):
            self.plans[chosen].on_taken()
            self._admission.notify()
        return arrays

    def close(self) -> None:
        """Keep no rows any more, and give the descriptors back."""
        self._locks.close()
        close_each(self.plans)

    def bind(self, selector: Selector | PlannedSelector) -> None:
        bind = getattr(selector, "bind", None)
        if bind is not None:
            bind(self._tables.of_exponent)

    def _planned_rows(self, selector: PlannedSelector, item: Item, batch_size: int) -> Indices:
        plan = self.plans.get(selector)
        if plan is not None:
            return plan.next_rows(item, batch_size)
        plan = self._new_plan(selector, item, batch_size)
        # The next call begins anew, with the rows that are there by then.
        if plan.is_hopeless:
            try:
                return plan.next_rows(item, batch_size)
            finally:
                plan.close()
        self.plans[selector] = plan
        weakref.finalize(selector, _forget, plan, weakref.ref(self._admission))
        self._admission.changed()  # the plan keeps rows from now on
        return plan.next_rows(item, batch_size)

    def _new_plan(self, selector: PlannedSelector, item: Item, batch_size: int) -> LocalBatchPlan:
        selector.check(batch_size, item.window, self._config.capacity_rows)
        seeds = self._counters.seeds(Draws.BATCH_PLANS, self._counters.next_number())
        plan = selector.batch_plan(self._ring, self._registry, item.window, batch_size, seeds)
        return LocalBatchPlan(text_of(selector), item, plan)

    def _why_empty(self, item: Item, selector: Selector | PlannedSelector) -> str:
        rows: int = self._ring.rows_now[0]
        if rows and (obstacle := getattr(selector, "obstacle", "")):
            return f"sample() by {text_of(selector)}: {obstacle}"
        if not rows:
            what = "a replay without rows"
        elif type(selector) in BUILT_IN:
            what = f"{rows:,} rows of which no {items_of(selector, item)} can be made"
        else:
            what = (
                f"{rows:,} rows, of which {text_of(selector)} drew no row that makes "
                f"{text_of(item)}"
            )
        return f"sample() on {what}; add some first, or use batches(), which waits for them"


def _forget(plan: LocalBatchPlan, admission: weakref.ref[Admission]) -> None:
    """Keep no rows any more for a selector that is gone; its replay may be gone, too."""
    plan.close()
    if (living := admission()) is not None:
        living.changed()
