"""The search for windows: which rows belong to the items that some rows name.

Three ways, each for what the one before leaves open:

    all in the own block     index arithmetic alone                        here, most windows
    neighbouring blocks      the same, where the next block is known       window_guess
    anything else            row by row, along the links                   window_walk
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Indices
from areplay._base.episode_links import NEXT_OFFSET, STEP_ID, numbers_of
from areplay._shm.memory_order import order
from areplay._storage.ring import Ring
from areplay._storage.window_guess import DrawnSteps, guess_windows
from areplay._storage.window_walk import Walk
from areplay._storage.windows import Elsewhere, Window, Windows


class WindowFinder:
    """Finds windows in a ring."""

    def __init__(self, ring: Ring, window: Window) -> None:
        self._ring = ring
        self._window = window
        self._offsets = np.arange(-window.back, window.forward + 1)
        if ring.spec.is_steps:
            self._step_ids: Indices = ring.columns[STEP_ID]
            self._next_offsets = ring.columns[NEXT_OFFSET]

    def find(self, indices: Indices, probabilities: NDArray[np.float64] | float = 1.0) -> Windows:
        """The windows of these committed rows that are valid, in the order of the rows.

        Args:
            indices: (n,) int64.
            probabilities: the probability with which each row was drawn, (n,) or one for all.
        """
        ring = self._ring
        if not isinstance(probabilities, np.ndarray):
            probabilities = np.full(len(indices), probabilities)
        positions = ring.positions(indices)
        if not ring.spec.is_steps:
            zeros = np.zeros(len(indices), np.int64)
            return Windows(ring, 0, indices, positions[:, None], zeros, zeros, probabilities)
        step_ids = self._step_ids.take(positions, mode="clip")
        strides = self._next_offsets.take(positions, mode="clip")
        # A final observation leads to another episode: no item is drawn by it.
        is_drawable = strides > 0
        if self._window.period > 1:
            is_drawable &= numbers_of(step_ids) % self._window.period == 0
        if np.count_nonzero(is_drawable) < len(is_drawable):
            indices = indices[is_drawable]
            positions = positions[is_drawable]
            step_ids = step_ids[is_drawable]
            strides = strides[is_drawable]
            probabilities = probabilities[is_drawable]
        # Never before the first step of the episode.
        behind = np.minimum(numbers_of(step_ids), self._window.back)
        steps = np.broadcast_to(self._offsets, (len(indices), self._window.rows))
        if self._window.back:
            steps = np.maximum(steps, -behind[:, None])
        drawn = DrawnSteps(indices, step_ids, strides.astype(np.int64), steps)
        return self._find_steps(drawn, positions, behind, probabilities)

    def _find_steps(
        self,
        drawn: DrawnSteps,
        positions: Indices,
        behind: Indices,
        probabilities: NDArray[np.float64],
    ) -> Windows:
        """Find the windows that lie in one block, where all rows are one stride from each other;
        `_find_rest` finds the others.

            own block   |. . . . . a . b . X . c . d . . . .|  end      back 2, forward 2, stride 2
                                       offset
                                   offset - behind * stride >= 0       a is in the block
                                       index + forward * stride < end  d is in the block
        """
        ring = self._ring
        window = self._window
        strides = drawn.strides
        guessed = drawn.steps * strides[:, None] + positions[:, None]
        offsets = drawn.indices % ring.block_rows
        places = drawn.indices // ring.block_rows % ring.blocks
        rows_left = ring.ends.take(places, mode="clip") - drawn.indices
        order()  # the end before the rows that it covers
        is_settled = (rows_left > window.forward * strides) & (offsets >= behind * strides)
        # Rows of other environments or episodes lie between: the step ids tell.
        found = self._step_ids.take(guessed, mode="clip")
        is_settled &= (found - drawn.step_ids[:, None] == drawn.steps).all(axis=1)
        if window.across_episodes:
            # The last row must not be a final observation, which such an item leaves out.
            is_settled &= self._next_offsets.take(guessed[:, -1], mode="clip") > 0
        ahead = np.full(len(drawn.indices), window.forward)
        windows = Windows(ring, window.back, drawn.indices, guessed, behind, ahead, probabilities)
        rest = np.flatnonzero(~is_settled)
        if len(rest):
            windows = self._find_rest(windows, rest, drawn)
        if window.min_steps > 1:
            windows = windows.where(windows.steps >= window.min_steps)
        return windows

    def _find_rest(self, windows: Windows, rest: NDArray[np.intp], drawn: DrawnSteps) -> Windows:
        """Find the windows at `rest` by the longer ways, and leave out those that are not valid."""
        unsettled = DrawnSteps(
            drawn.indices[rest], drawn.step_ids[rest], drawn.strides[rest], drawn.steps[rest]
        )
        guess = guess_windows(self._ring, self._window, unsettled)
        found = guess.indices
        ahead = guess.ahead
        behind = windows.behind[rest]
        is_found = guess.is_settled
        lost = np.flatnonzero(~guess.is_settled & ~guess.is_dead)
        if len(lost):
            walk = Walk(self._ring, self._window, unsettled.indices[lost])
            walk.forward()
            walk.back()
            found[lost] = walk.found
            ahead[lost] = walk.ahead
            behind[lost] = walk.behind
            is_found[lost] = walk.valid
        windows.positions[rest] = self._ring.positions(found)
        windows.ahead[rest] = ahead
        windows.behind[rest] = behind
        windows.elsewhere = self._elsewhere(rest, found)
        is_valid = np.ones(len(windows), np.bool_)
        is_valid[rest] = is_found
        return windows.where(is_valid)

    def _elsewhere(self, items: NDArray[np.intp], found: Indices) -> Elsewhere:
        """One row in each block that a window reaches besides that of its drawn row."""
        serials = found // self._ring.block_rows
        which, column = np.nonzero(serials[:, 1:] != serials[:, :-1])
        # Where two neighbours lie in different blocks, take both: either may be the one that is
        # not in the block of the drawn row.
        indices = np.concatenate([found[which, column], found[which, column + 1]])
        return Elsewhere(np.concatenate([items[which], items[which]]), indices)
