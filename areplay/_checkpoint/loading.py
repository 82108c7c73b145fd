"""Loading: what a checkpoint holds, on its way into a replay that is being opened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from areplay._base.arrays import Indices, Mask
from areplay._base.hooks import Progress
from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.reader import Checkpoint
from areplay._storage.priorities import Priorities
from areplay._storage.ring import Ring


class Loading:
    """A checkpoint on its way into a replay that is being opened.

    Attributes:
        checkpoint: what is loaded.
        streams: what it kept of streams of batches, as `Snapshot.streams`. Known after `fill`.
        is_in_place: whether each row has its place of before, so that the next save into the
            directory writes new blocks only. Known after `fill`.
        stop: makes `fill` give up.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        self.checkpoint = checkpoint
        self._progress = progress
        self.streams: list[tuple[dict[str, Any], Callable[[Indices], Mask] | None]] = []
        self.stop = CancelToken()
        self.is_in_place = False

    def fill(self, ring: Ring) -> dict[float, Priorities]:
        """Read everything into the ring, in a thread; the priorities of the rows, by exponent.

        Raises:
            CheckpointDamaged: nothing was left allocated here.
            WouldBlock: `stop` was set. Nothing was left allocated here.
        """
        checkpoint = self.checkpoint
        plan = checkpoint.plan(ring.blocks, ring.block_rows)
        self.is_in_place = plan.is_in_place
        for number, stream in enumerate(checkpoint.streams):
            rows = checkpoint.delivered(plan, number, ring)
            is_over = None if rows is None else partial(np.isin, test_elements=rows)
            self.streams.append((stream, is_over))
        tables: dict[float, Priorities] = {}
        try:
            for exponent, largest, parts in checkpoint.masses(plan):
                tables[exponent] = Priorities(ring, exponent)
                tables[exponent].restore(largest, parts)
            # Page by page, at first use, takes ten times as long.
            if 2 * int(plan.blocks.rows.sum()) > ring.capacity_rows:
                ring.segment.prefault(lambda done_bytes, size_bytes: self.stop.check())
            checkpoint.fill(ring, plan, self.stop, self._progress)
        except BaseException:
            for table in tables.values():
                table.close()
            raise
        return tables
