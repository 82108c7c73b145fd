"""Claims of places: where a writer puts its next block.

A place whose block is locked or pinned is *skipped*: its rows stay, out of every reader's range,
until it is due again a lap later.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from areplay._shm.range_locks import BlockLocks
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import WouldBlock

logger = logging.getLogger(__name__)

# The rest after a lap in which every block was held: few blocks, and writers in each.
_ALL_HELD_S = 0.001


class PlaceClaims:
    """Claims places of a ring for one writer.

    Args:
        locks: of that writer.
    """

    def __init__(self, ring: Ring, locks: BlockLocks, registry: WriterRegistry) -> None:
        self._ring = ring
        self._locks = locks
        self._registry = registry

    def claim(self, own_reserved: int) -> int:
        """Take serials until the place of one can be locked exclusively; that serial.

        A place that a reader or another writer holds, or that is pinned, is skipped for a lap: a
        writer waits for no process.

            serials      ... 20   21   22   23 ...          next_serial = 20
            places            0    1    2    3
                           pinned held free                 20 and 21 are skipped, 22 is claimed

        Args:
            own_reserved: places that are promised to the caller.

        Raises:
            WouldBlock: all places are pinned, or promised to other writers. Nothing changed.
        """
        ring = self._ring
        attempt = 0
        while True:
            attempt += 1
            if attempt % ring.blocks == 0:
                time.sleep(_ALL_HELD_S)
            with self._registry.lock:
                serial, skipped = self._take_serial(own_reserved)
            for passed in skipped:
                self.tell_cleared(passed)
            place = serial % ring.blocks
            if self._locks.try_exclusive(place):
                # Before we had the lock, others may have gone once around the ring and written a
                # newer block there. From now on they find it locked.
                is_lapped = serial < ring.next_serial[0] - ring.blocks
                # Or its writer may have written more to it, and those rows are pinned.
                if not is_lapped and not self._is_pinned(place):
                    return serial
                self._locks.release(place)
                if is_lapped:
                    continue
            self._skip_held(place)

    def _take_serial(self, own_reserved: int) -> tuple[int, list[int]]:
        """Take the serial of the next place that is not pinned. Under the registry.

        Returns:
            the serial, and the places that are skipped from now on.

        Raises:
            WouldBlock: all places are pinned, or promised to other writers. Nothing changed.
        """
        ring = self._ring
        registry = self._registry
        serial: int = ring.next_serial[0]
        skipped: list[int] = []
        pinned = registry.pinned()
        if pinned is not None:
            if not registry.has_place_among(pinned, registry.reserved - own_reserved):
                raise WouldBlock("all blocks are pinned")
            free = np.flatnonzero(~pinned)
            distance = int(((free - serial) % ring.blocks).min())
            passed = [number % ring.blocks for number in range(serial, serial + distance)]
            skipped = [place for place in passed if self._skip(place)]
            serial += distance
        ring.next_serial[0] = serial + 1
        return serial, skipped

    def _skip_held(self, place: int) -> None:
        """Leave a block that a reader or another writer holds for another lap."""
        with self._registry.lock:
            is_new = self._skip(place)
        if is_new:
            self.tell_cleared(place)
        # A process that does not let go is named once.
        level = logging.WARNING if is_new else logging.DEBUG
        logger.log(
            level,
            "block %d is held by process %d, left for another lap",
            place,
            self._locks.holder(place),
        )

    def _skip(self, place: int) -> bool:
        """Take the block in that place out of every reader's range until it is due again; whether
        it was in range before. Under the registry."""
        registry = self._registry
        registry.streams.close_place(place)
        if place in registry.skipped:
            return False
        registry.skipped.add(place)
        self._ring.rows_now[0] -= self._ring.block(place)[1]
        return True

    def tell_cleared(self, place: int) -> None:
        """Tell the listeners that nothing is drawn any more by the rows in that place."""
        block_rows = self._ring.block_rows
        for listener in self._registry.listeners:
            listener.cleared(place * block_rows, block_rows)

    def _is_pinned(self, place: int) -> bool:
        if not self._registry.pins:
            return False
        with self._registry:
            pinned = self._registry.pinned()
            return pinned is not None and bool(pinned[place])
