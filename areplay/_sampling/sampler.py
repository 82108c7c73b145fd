"""Samplers: the processes that fill the slots. One loop: lease a slot, fill it, publish it; sleep
if none is free.

With a batch plan the items of each batch are settled: then it also sleeps until all items of its
next one are there.
"""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from areplay._processes.backoff import SleepBackoff, YieldTimer
from areplay._processes.child import READY, Channel
from areplay._processes.supervisor import Supervisor
from areplay._processes.waiter import Waiter
from areplay._sampling.batch_plan import BatchPlan, PlannedSelector
from areplay._sampling.item_search import SearchLimits
from areplay._sampling.reader import Reader
from areplay._sampling.slots import Slots
from areplay._storage.ring import Ring
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.selector import Selector
from areplay.selectors.uniform import Uniform
from areplay.statistics import SamplerStatistics

logger = logging.getLogger(__name__)

_TURN_S = 0.002  # so often signals are looked at
_MOST_AT_ONCE = 8
# between two looks at a ring of which no item can be made, at first and at last
_EMPTY_RING_S = 0.001, 0.02


async def run_sampler(
    channel: Channel,
    ring: Ring,
    slots: Slots,
    index: int,
    item: Item,
    selector: Selector | PlannedSelector,
    transform: Transform | None,
    batch_plan: BatchPlan | None,
    seeds: np.random.SeedSequence,
) -> None:
    """What a sampler's process runs, until it is asked to stop."""
    rng = np.random.default_rng(seeds)
    at_once = batches_at_once(selector, slots)
    reader = Reader(
        ring,
        ring.block_locks(),
        item,
        selector,
        rng,
        transform,
        most_at_once=at_once,
        limits=SearchLimits(gives_up=lambda: slots.is_stopping),
    )
    freed, naps, turns = Waiter(slots.sampler_bells[index]), SleepBackoff(), YieldTimer(_TURN_S)
    channel.send(READY)
    pause_s = _EMPTY_RING_S[0]

    def next_number() -> int:
        """Of the batch that is ours to fill next, if it is settled which."""
        return slots.published(index) * slots.samplers + index

    def can_fill() -> bool:
        return slots.can_lease(index) and (
            batch_plan is None or batch_plan.has_batch(next_number())
        )

    while not slots.is_stopping:
        if turns.is_due():
            await asyncio.sleep(0)
        slot = slots.lease(index) if batch_plan is None or can_fill() else None
        if slot is None:
            if not slots.is_open or not naps.nap():
                await freed.wait(lambda: slots.is_stopping or can_fill(), None)
            continue
        rows_inserted = ring.rows_inserted[0]
        batch, rows = slots.batch(slot), None
        if batch_plan is not None:
            rows = batch_plan.batch(next_number())
            batch = batch.first(batch_plan.size(next_number()))
        if reader.fill(batch, rows):
            slots.publish(slot, reader.rows_redrawn)
            naps.reset()
            pause_s = _EMPTY_RING_S[0]
        else:
            slots.abandon(slot, rows_inserted)
            await asyncio.sleep(pause_s)
            pause_s = min(_EMPTY_RING_S[1], 2 * pause_s)


async def recover(slots: Slots, index: int) -> None:
    """In the learner's process: free the slots that a dead sampler was filling."""
    if slots.recover(index):
        logger.warning(
            "sampler %d left a batch half filled; it is not delivered, its slot is free again",
            index,
        )


def batches_at_once(selector: Selector | PlannedSelector, slots: Slots) -> int:
    """How many batches a sampler may draw at once.

    Each waits in the queue for all that are filled before it, and drawn so, in addition, for those
    that are drawn with it. Where priorities change with every batch, that may add half of the
    queue, no more.
    """
    if isinstance(selector, Uniform):
        return _MOST_AT_ONCE
    if isinstance(selector, Prioritized):
        prefetch = slots.slots - slots.samplers - 1
        return max(1, min(_MOST_AT_ONCE, prefetch // (2 * slots.samplers)))
    return 1


def sampler_statistics(supervisor: Supervisor, slots: Slots) -> tuple[SamplerStatistics, ...]:
    """One record a sampler, as the learner's process sees it. From any thread."""
    found = []
    for member in supervisor.workers:
        taken, filled = slots.taken(member.index), slots.published(member.index)
        found.append(
            SamplerStatistics(
                index=member.index,
                pid=member.child.pid if member.child is not None else 0,
                is_alive=member.is_alive,
                restarts=member.restarts,
                has_finished=member.has_finished,
                has_failed=member.failure is not None,
                last_failure=member.last_failure,
                batches_filled=filled,
                ready=filled - taken,
                rows_redrawn=slots.redrawn(member.index),
            )
        )
    return tuple(found)


def why_unfilled(supervisor: Supervisor, slots: Slots, batch: str = "") -> str:
    """Say why no batch is ready: how far the samplers are, and which of them are stopped.

    Args:
        batch: the one that the sampler whose turn it is has to fill, where no other may.
    """
    state = f"{slots!r}, {supervisor.alive} of {slots.samplers} samplers alive"
    if batch:
        return (
            f"{supervisor.workers[slots.next_sampler].described('sampler')} has not filled "
            f"{batch}; {state}"
        )
    stopped = [member.described("sampler") for member in supervisor.workers if member.is_stopped]
    return ", ".join([state, *stopped])
