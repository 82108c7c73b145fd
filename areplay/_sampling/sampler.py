"""Samplers: the processes that fill the slots. One loop: lease a slot, fill it, publish it; sleep
while no slot is free.

A batch plan settles the items of each batch. Then a sampler also sleeps until all items of its next
batch are complete.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import numpy as np

from areplay._processes.backoff import SleepBackoff, YieldTimer
from areplay._processes.channel import READY, Channel
from areplay._processes.waiter import Waiter
from areplay._sampling.batch_plan import BatchPlan
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.item_search import SearchLimits
from areplay._sampling.reader import Reader
from areplay._sampling.slots import Slots
from areplay._storage.ring import Ring
from areplay.items.item import Item
from areplay.items.transform import Transform

logger = logging.getLogger(__name__)

_TURN_S = 0.002  # between two looks at signals

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.02
"""Between two looks at a ring of which no item can be made, at first and at last."""


@dataclass(frozen=True)
class SamplerConfig:
    """What one sampler's process is given when it is started. Pickles into it."""

    ring: Ring
    slots: Slots
    index: int
    """Of the sampler, among those of its stream."""
    item: Item
    selector: BoundSelector
    transform: Transform | None
    plan: BatchPlan | None
    """Which items are in which batch, where that is settled beforehand."""
    seeds: np.random.SeedSequence

    def reader(self) -> Reader:
        """Draws and copies the batches of this sampler."""
        slots = self.slots
        return Reader(
            self.ring,
            self.ring.block_locks(),
            self.item,
            self.selector,
            np.random.default_rng(self.seeds),
            self.transform,
            most_at_once=self.selector.batches_at_once(slots.prefetch, slots.samplers),
            limits=SearchLimits(gives_up=lambda: slots.board.is_stopping),
        )


async def run_sampler(channel: Channel, config: SamplerConfig) -> None:
    """Fill batches in a process of its own, until the learner's process asks it to stop."""
    work = _Work(config)
    slots = config.slots
    freed = Waiter(slots.board.sampler_bells[config.index])
    naps = SleepBackoff()
    turns = YieldTimer(_TURN_S)
    pause_s = _FIRST_PAUSE_S
    channel.send(READY)
    while not slots.board.is_stopping:
        if turns.is_due():
            await asyncio.sleep(0)
        slot = work.lease()
        if slot is None:
            if not slots.board.is_open or not naps.nap():
                await freed.wait(lambda: slots.board.is_stopping or work.can_lease, None)
        elif work.fill(slot):
            naps.reset()
            pause_s = _FIRST_PAUSE_S
        else:
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)


class _Work:
    """What a sampler does between two waits."""

    def __init__(self, config: SamplerConfig) -> None:
        self._slots = config.slots
        self._index = config.index
        self._ring = config.ring
        self._plan = config.plan
        self._reader = config.reader()

    @property
    def _next_number(self) -> int:
        """Of the batch of the plan that this sampler has to fill next."""
        return self._slots.published(self._index) * self._slots.samplers + self._index

    @property
    def can_lease(self) -> bool:
        """Whether a slot is free, and the items of the next batch are there."""
        if not self._slots.can_lease(self._index):
            return False
        return self._plan is None or self._plan.has_batch(self._next_number)

    def lease(self) -> int | None:
        """A free slot for the next batch; None if there is none, or the batch lacks items."""
        if self._plan is not None and not self.can_lease:
            return None
        return self._slots.lease(self._index)

    def fill(self, slot: int) -> bool:
        """Fill a leased slot and publish it; False, and the slot is free again, if no item can be
        made of the rows."""
        rows_inserted = self._ring.rows_inserted[0]
        batch = self._slots.batch(slot)
        rows = None
        if self._plan is not None:
            number = self._next_number
            rows = self._plan.batch(number)
            batch = batch.first(self._plan.size(number))
        if self._reader.fill(batch, rows):
            self._slots.publish(slot, self._reader.rows_redrawn)
            return True
        self._slots.abandon(slot, rows_inserted)
        return False


async def recover(slots: Slots, index: int) -> None:
    """Free the slots that a dead sampler was filling, before its successor starts. In the learner's
    process."""
    if slots.recover(index):
        logger.warning(
            "sampler %d left a batch half filled; it is not delivered, its slot is free again",
            index,
        )
