"""Inline sampling: a learner that finds no batch ready fills one itself, rather than wait.

The samplers go on meanwhile. Where they are slower than the learner, two processes fill instead of
one, and no process has to be woken; while the only sampler is restarted, the learner goes on. What
the learner draws is as good: the same reader, over the same rows, with a random generator of its
own.

Disabled for planned selectors (`Fifo`, `Epochs`), whose batches belong to certain samplers; for
items, selectors and transforms of the user, which run in samplers only; and for batches that would
block the learner's loop for more than about 5 ms.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.item_search import SearchLimits
from areplay._sampling.reader import Reader
from areplay._sampling.slots import LENT, Slots
from areplay._storage.ring import Ring
from areplay.items.item import BatchFields, Item
from areplay.items.rows import Rows
from areplay.items.sequences import Sequences
from areplay.items.transform import Transform
from areplay.items.transitions import Transitions

logger = logging.getLogger(__name__)

MOST_BYTES = 16 << 20
MOST_ROWS = 16_384
"""Limits of a batch, with all rows of its items' windows. To fill such a batch takes 3 to 5 ms."""

RELEASE = "; release() batches that were taken with get()"
"""The remedy where lent slots keep the samplers from filling any."""

_ITEMS = (Rows, Transitions, Sequences)

_MOST_DRAWN = 4
"""Rows drawn for each item of a batch, before a search gives up."""

_REST_S = 0.1
"""Between a search that gave up and the next one."""

_WARN_AFTER_S = 5.0


def may_fill(
    item: Item,
    selector: BoundSelector,
    transform: Transform | None,
    fields: BatchFields,
    batch_size: int,
) -> bool:
    """Whether a learner may fill such batches itself."""
    is_of_user = type(item) not in _ITEMS or selector.is_of_user or transform is not None
    item_bytes = sum(field.row_bytes for field in fields.stored.values())
    return (
        not is_of_user
        and not selector.is_planned
        and batch_size * item_bytes <= MOST_BYTES
        and batch_size * item.window.rows <= MOST_ROWS
    )


class InlineSampler:
    """Fills batches of one stream for its learner. One thread uses it.

    Args:
        slots: with one that is the learner's own.
        most_at_once: as for `Reader`.

    Attributes:
        filled: batches so far.
    """

    def __init__(
        self,
        ring: Ring,
        slots: Slots,
        item: Item,
        selector: BoundSelector,
        seeds: np.random.SeedSequence,
        most_at_once: int,
    ) -> None:
        self.filled = 0
        self._slots = slots
        self._locks = ring.block_locks()
        self._reader = Reader(
            ring,
            self._locks,
            item,
            selector,
            np.random.default_rng(seeds),
            # Long windows take long to find.
            most_at_once=most_at_once if item.window.rows == 1 else 1,
            limits=SearchLimits(most_drawn=_MOST_DRAWN),
        )
        self._has_begun = False
        self._rest_until_s = 0.0
        self._loneliness = _Loneliness(slots)

    @property
    def rows_redrawn(self) -> int:
        """Rows that were copied for nothing, since they were overwritten meanwhile."""
        return self._reader.rows_redrawn

    def fill(self) -> int | None:
        """Fill the learner's own slot, LENT from now on; `None` if the learner must wait for the
        samplers.

        It must while it holds the last batch that it filled itself, and before a sampler has filled
        a first one. It also must for a moment after a search that gave up: where few items or no
        item can be made, they take long to find.
        """
        slots = self._slots
        self._has_begun = self._has_begun or slots.all_published > 0
        if not self._has_begun or time.monotonic() < self._rest_until_s:
            return None
        slot = slots.lend_own()
        if slot is None:
            return None
        is_filled = False
        try:
            is_filled = self._reader.fill(slots.batch(slot))
        finally:
            if not is_filled:
                slots.give_back(slot)
        if not is_filled:
            self._rest_until_s = time.monotonic() + _REST_S
            return None
        self.filled += 1
        self._loneliness.look()
        return slot

    def close(self) -> None:
        """Give back the locks."""
        self._locks.close()


class _Loneliness:
    """Warns when samplers fill nothing for long: the learner goes on, so nothing else shows it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._published = -1  # by all samplers
        self._since_s = 0.0
        self._warn_after_s = _WARN_AFTER_S

    def look(self) -> None:
        """Warn if it is time. Call it after each batch that the learner has filled."""
        now_s = time.monotonic()
        if now_s - self._since_s < self._warn_after_s:
            return
        published = self._slots.all_published
        if published != self._published:
            self._published = published
            self._since_s = now_s
            self._warn_after_s = _WARN_AFTER_S
            return
        self._warn_after_s *= 2
        logger.warning(
            "no sampler has filled a batch for %.0f s, the learner fills them itself: %r%s",
            now_s - self._since_s,
            self._slots,
            # Beside our own slot, which is lent by now.
            RELEASE if self._slots.count(LENT) > 1 else "",
        )
