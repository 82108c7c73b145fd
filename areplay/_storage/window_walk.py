"""The walk along the links of rows, for windows that no guess finds: distances vary, or blocks are
short.

Each window has a cursor, which goes one row at a time along the offsets that rows carry. All
windows walk at once, so a round is a handful of array operations, whatever their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, PREV_OFFSET, STEP_ID, numbers_of
from areplay._storage.ring import Ring
from areplay._storage.windows import Window

Walkers = NDArray[np.intp]
"""Which of the windows still walk, ascending."""


class Walk:
    """A walk along the links of rows, for U windows at once.

    Attributes:
        found: (U, W) int64, the indices of their rows.
        ahead, behind: (U,) int64, how many rows there are after and before the drawn one.
        valid: (U,) bool, whether all rows that the window needs were found.
        waits: (U,) bool, whether `forward` has stopped before a row that may still come.
    """

    def __init__(self, ring: Ring, window: Window, indices: Indices) -> None:
        self._ring = ring
        self._window = window
        self._step_ids: Indices = ring.columns[STEP_ID]
        self._next_offsets = ring.columns[NEXT_OFFSET]
        self._prev_offsets = ring.columns[PREV_OFFSET]
        self._drawn = indices
        self.found = np.repeat(indices[:, None], window.rows, axis=1)
        self.ahead = np.zeros(len(indices), np.int64)
        self.behind = np.zeros(len(indices), np.int64)
        self.valid = np.ones(len(indices), np.bool_)
        self.waits = np.zeros(len(indices), np.bool_)

    def forward(self) -> None:
        """Walk to the rows after the drawn ones."""
        across = self._window.across_episodes
        at = self._drawn.copy()
        walking: Walkers = np.arange(len(at))
        for column in range(self._window.back + 1, self._window.rows):
            there, walking = self._next(at[walking], walking)
            if across:
                there, walking = self._next_episode(there, walking)
            at[walking] = there
            self.ahead[walking] += 1
            self.found[:, column] = at
            if not across:
                # The others have reached their final observation, with which the window ends.
                walking = walking[self._links(self._next_offsets, there) > 0]
            if len(walking) == 0:
                self.found[:, column + 1 :] = at[:, None]
                break

    def back(self) -> None:
        """Walk to the rows before the drawn ones. Call `forward` first: it skips invalid
        windows."""
        at = self._drawn.copy()
        walking: Walkers = np.flatnonzero(self.valid)
        for column in range(self._window.back - 1, -1, -1):
            here = at[walking]
            is_first = numbers_of(self._step_ids_of(here)) == 0
            here = here[~is_first]
            walking = walking[~is_first]
            distance = self._links(self._prev_offsets, here)
            there = self._hop(here, -distance)
            is_next = (distance > 0) & self._follows(there, here)
            self.valid[walking[~is_next]] = False
            walking = walking[is_next]
            at[walking] = there[is_next]
            self.behind[walking] += 1
            self.found[:, column] = at

    def _next(self, here: Indices, walking: Walkers) -> tuple[Indices, Walkers]:
        """The rows one step on, and the windows that have one; the others are not valid."""
        there = self._hop(here, self._links(self._next_offsets, here))
        is_next = self._follows(here, there)
        self.valid[walking[~is_next]] = False
        self.waits[walking[~self._ring.committed(there)]] = True
        return there[is_next], walking[is_next]

    def _next_episode(self, there: Indices, walking: Walkers) -> tuple[Indices, Walkers]:
        """Go from final observations to the first rows of the next episodes."""
        distance = self._links(self._next_offsets, there)
        at_end = np.flatnonzero(distance < 0)
        if len(at_end) == 0:
            return there, walking
        first = self._hop(there[at_end], -distance[at_end])
        is_first = numbers_of(self._step_ids_of(np.maximum(first, 0))) == 0
        is_there = self._ring.committed(first)
        is_lost = ~(is_first & is_there)
        self.waits[walking[at_end[~is_there]]] = True
        there[at_end] = first
        self.valid[walking[at_end[is_lost]]] = False
        goes_on = np.ones(len(there), np.bool_)
        goes_on[at_end[is_lost]] = False
        return there[goes_on], walking[goes_on]

    def _follows(self, here: Indices, there: Indices) -> Mask:
        """Whether `there` is a committed row, and the one after `here` in its episode."""
        step_ids = self._step_ids_of(here)
        exists = self._ring.committed(there) & self._ring.committed(here)
        follows: Mask = exists & (self._step_ids_of(there) == step_ids + 1)
        return follows

    def _step_ids_of(self, here: Indices) -> Indices:
        return self._step_ids.take(self._ring.positions(here), mode="clip")

    def _links(self, column: Array, here: Indices) -> Indices:
        links: Indices = column.take(self._ring.positions(here), mode="clip").astype(np.int64)
        return links

    def _hop(self, here: Indices, distance: Indices) -> Indices:
        """The rows `distance` rows further on in their streams, all forwards or all backwards; -1
        where there is no block.

        Blocks of a stream may hold different numbers of rows, so a hop goes from block to block:

            serial, offset  ->  next serial, offset - rows of this block
            serial, offset  ->  previous serial, offset + rows of that block
        """
        ring = self._ring
        serials = here // ring.block_rows
        offsets = here % ring.block_rows + distance
        there = here + distance
        hopping = np.arange(len(here))
        forward = bool((distance > 0).any())
        while len(hopping):
            rows, neighbours = ring.neighbours(serials[hopping], following=forward)
            if forward:
                is_beyond = offsets[hopping] >= rows
                offsets[hopping[is_beyond]] -= rows[is_beyond]
            else:
                is_beyond = offsets[hopping] < 0
            is_lost = (rows == 0) | (is_beyond & (neighbours < 0))
            there[hopping[is_lost]] = -1
            goes_on = is_beyond & ~is_lost
            hopping = hopping[goes_on]
            neighbours = neighbours[goes_on]
            serials[hopping] = neighbours
            if not forward:
                rows_before, _ = ring.neighbours(neighbours, following=False)
                offsets[hopping] += rows_before
            there[hopping] = neighbours * ring.block_rows + offsets[hopping]
        return there
