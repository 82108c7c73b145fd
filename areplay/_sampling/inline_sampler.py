"""Own batches: the learner fills one itself where no sampler has one ready, rather than wait for
theirs.

The samplers go on meanwhile. So where they are slower than the learner, two fill instead of one,
and nobody has to be woken; and while the only sampler is being restarted, the learner goes on. What
it draws is as good as theirs: the same reader, over the same rows, with a random generator of its
own.

Not where it is settled which sampler fills what (`Fifo`, `Epochs`); not with what is the user's, a
transform above all, which runs in samplers only; and not where one batch would block the learner's
loop for long, be it to copy it or to find its items.
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

MOST_BYTES, MOST_ROWS = 16 << 20, 16_384
"""Of a batch, with all rows of its items' windows: to fill one so large takes 3 to 5 ms."""

RELEASE = "; release() batches that were taken with get()"
"""The remedy where lent slots keep the samplers from filling any."""

_ITEMS = (Rows, Transitions, Sequences)
_MOST_DRAWN = 4  # rows a batch's item, in search of those that can be made
_REST_S = 0.1  # if they were too few
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
    """What a learner fills itself, of one stream of batches. One thread uses it.

    Args:
        slots: with one that is the learner's own.
        most_at_once: as of `Reader`.

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
        self._slots, self._locks = slots, ring.block_locks()
        rng = np.random.default_rng(seeds)
        at_once = most_at_once if item.window.rows == 1 else 1  # long windows take long to find
        limits = SearchLimits(most_drawn=_MOST_DRAWN)
        self._reader = Reader(
            ring, self._locks, item, selector, rng, most_at_once=at_once, limits=limits
        )
        self.filled = 0
        self._has_begun, self._rest_until_s = False, 0.0
        self._published, self._published_s, self._warn_after_s = -1, 0.0, _WARN_AFTER_S

    @property
    def rows_redrawn(self) -> int:
        """Rows that were copied in vain."""
        return self._reader.rows_redrawn

    def fill(self) -> int | None:
        """The learner's own slot, LENT and filled; `None` if the samplers must be waited for.

        That is so while the learner still holds its last own batch, before a sampler has filled its
        first, and for a moment after a search for items that was given up, since few or none can be
        made: to find them takes long.
        """
        slots = self._slots
        self._has_begun = self._has_begun or slots.all_published > 0
        if (
            not self._has_begun
            or time.monotonic() < self._rest_until_s
            or (slot := slots.lend_own()) is None
        ):
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
        self._warn_if_alone()
        return slot

    def close(self) -> None:
        """Give back the locks."""
        self._locks.close()

    def _warn_if_alone(self) -> None:
        """Say so when samplers fill nothing for long: the learner goes on, and nobody would
        notice."""
        now_s = time.monotonic()
        if now_s - self._published_s < self._warn_after_s:
            return
        published = self._slots.all_published
        if published != self._published:
            self._published, self._published_s, self._warn_after_s = published, now_s, _WARN_AFTER_S
            return
        self._warn_after_s *= 2
        logger.warning(
            "no sampler has filled a batch for %.0f s, the learner fills them itself: %r%s",
            now_s - self._published_s,
            self._slots,
            # beside our own slot, which is lent by now
            RELEASE if self._slots.count(LENT) > 1 else "",
        )
