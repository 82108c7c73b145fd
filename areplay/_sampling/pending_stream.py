"""What of one stream is pending: rows whose items may still become complete.

The rows of a stream are counted from 0, by *distance* from where the completion log began. Two
bounds on the distances between rows tell which pending rows to look at, without a look at each:

    pending   r . . r . . r . . r . .      of one environment of three, shortest hop 3
                                    ^ rows so far
    An item that needs `forward` rows needs one at least `forward * shortest_hop` rows on. One whose
    rows lie further back than `2 * (forward + 1) * longest_stride` will never be complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, PREV_OFFSET

_NO_HOP = 1 << 40
"""More than any ring has rows: no row has told yet how far the next step is."""

PENDING = np.dtype([("index", np.int64), ("distance", np.int64)])
"""A pending row: its index in the ring, and its distance."""


class PendingStream:
    """The pending rows of one stream, and the blocks that they need.

    Attributes:
        pending: (n,) of dtype `PENDING`, in the order of the stream.
        rows: how many rows of the stream were taken in.
        blocks: `(place, distance of its end)` of the blocks that are pinned, oldest first.
    """

    def __init__(self) -> None:
        self.pending = np.empty(0, PENDING)
        self.rows = 0
        self.blocks: deque[tuple[int, int]] = deque()
        self._longest_stride = 1
        # The least number of rows from a step to the next step of its environment.
        self._shortest_hop = _NO_HOP
        # Episodes that are to begin: their final observations are there.
        self._announced = 0

    def take_in(self, indices: Indices) -> Array:
        """Count new rows; them, of dtype `PENDING`."""
        new = np.empty(len(indices), PENDING)
        new["index"] = indices
        new["distance"] = np.arange(self.rows, self.rows + len(indices))
        self.rows += len(indices)
        return new

    def note_strides(self, columns: Mapping[str, Array], rows: slice) -> Mask:
        """Note how far apart the rows of an environment are; which of these rows are steps.

        Args:
            rows: the positions of new rows in the columns.
        """
        strides = columns[NEXT_OFFSET][rows].astype(np.int64)
        is_step: Mask = strides > 0
        self._longest_stride = max(self._longest_stride, int(np.abs(strides).max()))
        # The last step of an episode leads to its final observation, which may be as near as the
        # next row. The hop to the next step, of an item that goes on across episodes, leads over
        # that one, which tells both parts of it.
        hops = np.where(is_step, strides, columns[PREV_OFFSET][rows] - strides)
        is_last_step = is_step & (columns["terminated"][rows] | columns["truncated"][rows])
        self._shortest_hop = int(hops[~is_last_step].min(initial=self._shortest_hop))
        return is_step

    def note_beginnings(self, columns: Mapping[str, Array], rows: slice) -> bool:
        """Count the episodes that begin; whether one begins in the place of a step that was to
        come.

        Every other beginning comes after a final observation. Those of a vector come one step after
        theirs, so counting both tells, at the latest with the rest of that step.

        Args:
            rows: the positions of new rows in the columns.
        """
        self._announced += int(np.count_nonzero(columns[NEXT_OFFSET][rows] < 0))
        self._announced -= int(np.count_nonzero(columns[PREV_OFFSET][rows] == 0))
        if self._announced >= 0:
            return False
        self._announced = 0
        return True

    def add(self, new: Array) -> None:
        """Append pending rows."""
        # As whole numbers: np.concatenate copies records field by field, 10 times slower.
        parts = [self.pending.view(np.int64), new.view(np.int64)]
        self.pending = np.concatenate(parts).view(PENDING)

    def keep(self, is_kept: Mask) -> None:
        """Drop all other pending rows."""
        self.pending = chosen(self.pending, is_kept)

    def may_be_complete(self, forward: int) -> int:
        """How many of the pending rows, from the first on, may make complete items without an
        episode's end.

        Such an item needs the row `forward` hops on, and no hop so far was shorter than the
        shortest one. Hops differ where final observations lie between the steps of a vector; there
        a few rows are looked at too early, and again with the next chunk. A guess by a row's own
        stride would look at some too late, after a step that may never come.
        """
        due = self.rows - forward * self._shortest_hop
        return int(self.pending["distance"].searchsorted(due))

    def are_lost(self, count: int, forward: int) -> Mask:
        """Which of the first `count` pending rows will never make an item, (count,) bool: each row
        that their windows need would have come by now."""
        reach = 2 * (forward + 1) * self._longest_stride
        is_lost: Mask = self.pending["distance"][:count] + reach < self.rows
        return is_lost

    def needed_from(self, back: int) -> int:
        """The distance of the first row that a pending or a coming item may need."""
        first = int(self.pending["distance"][0]) if len(self.pending) else self.rows
        return first - 2 * back * self._longest_stride


def chosen(rows: Array, is_chosen: Mask) -> Array:
    """The rows, of dtype `PENDING`, for which `is_chosen` is true: as `rows[is_chosen]`, but in a
    seventh of the time."""
    return rows.compress(is_chosen)
