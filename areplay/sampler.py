"""Samplers: the processes that fill the slots. One loop: lease a slot, fill it, publish it; sleep if none is free."""

from __future__ import annotations

import asyncio

import numpy as np

from areplay.items import Item
from areplay.process import READY, Channel
from areplay.reader import Reader
from areplay.ring import Ring
from areplay.select import Prioritized, Selector, Uniform
from areplay.slots import Slots
from areplay.transform import Transform
from areplay.waiting import Naps, Sleeper, Turns

_TURN_S = 0.002  # so often signals are looked at
_MOST_AT_ONCE = 8
_EMPTY_RING_S = 0.001, 0.02  # between two looks at a ring of which no item can be made, at first and at last


async def run_sampler(
    channel: Channel,
    ring: Ring,
    slots: Slots,
    index: int,
    item: Item,
    selector: Selector,
    transform: Transform | None,
    seeds: np.random.SeedSequence,
) -> None:
    """What a sampler's process runs, until it is asked to stop."""
    rng = np.random.default_rng(seeds)
    at_once = batches_at_once(selector, slots)
    reader = Reader(ring, ring.block_locks(), item, selector, rng, transform, most_at_once=at_once)
    freed, naps, turns = Sleeper(slots.sampler_bells[index]), Naps(), Turns(_TURN_S)
    channel.send(READY)
    pause_s = _EMPTY_RING_S[0]
    while not slots.is_stopping:
        if turns.is_due():
            await asyncio.sleep(0)
        slot = slots.lease(index)
        if slot is None:
            if not slots.is_open or not naps.nap():
                await freed.wait(lambda: slots.is_stopping or slots.can_lease(index), None)
            continue
        rows_inserted = ring.rows_inserted[0]
        if reader.fill(slots.batch(slot)):
            slots.publish(slot, reader.rows_redrawn)
            naps.reset()
            pause_s = _EMPTY_RING_S[0]
        else:
            slots.abandon(slot, rows_inserted)
            await asyncio.sleep(pause_s)
            pause_s = min(_EMPTY_RING_S[1], 2 * pause_s)


def batches_at_once(selector: Selector, slots: Slots) -> int:
    """How many batches a sampler may draw at once.

    Each waits in the queue for all that are filled before it, and drawn so, in addition, for those that are drawn with
    it. Where priorities change with every batch, that may add half of the queue, no more.
    """
    if isinstance(selector, Uniform):
        return _MOST_AT_ONCE
    if isinstance(selector, Prioritized):
        prefetch = slots.slots - slots.samplers - 1
        return max(1, min(_MOST_AT_ONCE, prefetch // (2 * slots.samplers)))
    return 1
