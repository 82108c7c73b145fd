"""The search for windows: which rows belong to the items that some rows name.

A guess by index arithmetic settles nearly all of them at once; what it does not settle is walked
along the links.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, PREV_OFFSET, STEP_ID, numbers_of
from areplay._shm.memory_order import order
from areplay._storage.ring import Ring
from areplay._storage.windows import ARRAYS, Window, Windows


class WindowFinder:
    """Finds windows in a ring."""

    def __init__(self, ring: Ring, window: Window) -> None:
        self._ring, self._window = ring, window
        self._offsets = np.arange(-window.back, window.forward + 1)
        if ring.spec.is_steps:
            self._moments: Indices = ring.columns[STEP_ID]
            self._ahead, self._back = ring.columns[NEXT_OFFSET], ring.columns[PREV_OFFSET]

    def find(self, indices: Indices, probabilities: NDArray[np.float64] | float = 1.0) -> Windows:
        """The valid ones of the windows of these committed rows, in their order.

        Args:
            probabilities: with which each was drawn, or all of them.
        """
        ring = self._ring
        if not isinstance(probabilities, np.ndarray):
            probabilities = np.full(len(indices), probabilities)
        positions = ring.positions(indices)
        if not ring.spec.is_steps:
            nothing = np.zeros(len(indices), np.int64)
            return Windows(ring, 0, indices, positions[:, None], nothing, nothing, probabilities)
        moments = self._moments.take(positions, mode="clip")
        strides = self._ahead.take(positions, mode="clip")
        may_be = strides > 0
        if self._window.period > 1:
            may_be &= numbers_of(moments) % self._window.period == 0
        if np.count_nonzero(may_be) < len(may_be):
            indices, positions, moments, strides = (
                a[may_be] for a in (indices, positions, moments, strides)
            )
            probabilities = probabilities[may_be]
        return self._windows(indices, positions, moments, strides.astype(np.int64), probabilities)

    def _windows(
        self,
        indices: Indices,
        positions: Indices,
        moments: Indices,
        strides: Indices,
        probabilities: NDArray[np.float64],
    ) -> Windows:
        """The windows of steps."""
        ring, window = self._ring, self._window
        back, forward = window.back, window.forward
        behind = np.minimum(numbers_of(moments), back)
        ahead = np.full(len(indices), forward)
        # Guess: the rows are in this block, one stride from each other.
        steps = np.broadcast_to(self._offsets, (len(indices), window.rows))
        if back:
            steps = np.maximum(steps, -behind[:, None])
        guessed = steps * strides[:, None] + positions[:, None]
        offsets = indices % ring.block_rows
        after = ring.ends.take(indices // ring.block_rows % ring.blocks, mode="clip") - indices
        order()  # the end before the rows that it covers
        settled = (after > forward * strides) & (offsets >= behind * strides)
        found = self._moments.take(guessed, mode="clip")
        settled &= (found - moments[:, None] == steps).all(axis=1)
        if window.across_episodes:
            settled &= self._ahead.take(guessed[:, -1], mode="clip") > 0
        windows = Windows(ring, back, indices, guessed, behind, ahead, probabilities)
        rest = np.flatnonzero(~settled)
        if len(rest):
            windows = self._mended(windows, rest, moments[rest], strides[rest], steps[rest])
        if window.min_steps > 1:
            windows = _only(windows, windows.steps >= window.min_steps)
        return windows

    def _mended(
        self,
        windows: Windows,
        rest: NDArray[np.intp],
        moments: Indices,
        strides: Indices,
        steps: Indices,
    ) -> Windows:
        """`windows` with those at `rest` found on the longer ways, without those that are not
        valid."""
        guess = _Guess(self._ring, self._window, windows.indices[rest], moments, strides, steps)
        found, ahead, behind, valid = guess.found, guess.ahead, windows.behind[rest], guess.settled
        lost = np.flatnonzero(~guess.settled & ~guess.dead)
        if len(lost):
            walk = _Walk(self._ring, self._window, windows.indices[rest[lost]])
            walk.forward()
            walk.back()
            found[lost], ahead[lost], behind[lost], valid[lost] = (
                walk.found,
                walk.ahead,
                walk.behind,
                walk.valid,
            )
        windows.positions[rest] = self._ring.positions(found)
        windows.ahead[rest], windows.behind[rest] = ahead, behind
        serials = found // self._ring.block_rows
        which, column = np.nonzero(serials[:, 1:] != serials[:, :-1])
        # Of two neighbours in different blocks both, since either may be the one that is not in the
        # row's own block.
        elsewhere = np.concatenate([found[which, column], found[which, column + 1]])
        windows._elsewhere = np.concatenate([rest[which], rest[which]]), elsewhere
        is_valid = np.ones(len(windows), np.bool_)
        is_valid[rest] = valid
        return _only(windows, is_valid)


class _Guess:
    """A guess for windows that may reach into a neighbouring block, or end with their episode.

    Attributes:
        found: (U, W) the indices of their rows, for those that are settled. ahead: (U,) how many
            rows after the first.
        settled: (U,) whether they were found. dead: (U,) whether there is no such window.
    """

    def __init__(
        self,
        ring: Ring,
        window: Window,
        indices: Indices,
        moments: Indices,
        strides: Indices,
        steps: Indices,
    ) -> None:
        back, block_rows, positions = window.back, ring.block_rows, ring.positions
        serials = indices // block_rows
        rows, following = ring.neighbours(serials, following=True)
        previous = ring.neighbours(serials, following=False)[1]
        before = ring.neighbours(previous, following=False)[0]
        offsets = (indices - serials * block_rows)[:, None] + steps * strides[:, None]
        after = offsets - rows[:, None]
        is_after, is_before = after >= 0, offsets < 0
        found = serials[:, None] * block_rows + offsets
        found = np.where(is_after, following[:, None] * block_rows + after, found)
        found = np.where(
            is_before, previous[:, None] * block_rows + before[:, None] + offsets, found
        )
        reached = np.where(
            is_after, (following[:, None] >= 0) & (after < block_rows), rows[:, None] > 0
        )
        reached &= ~is_before | ((previous[:, None] >= 0) & (offsets + before[:, None] >= 0))
        there = reached & ring.committed(found)
        there &= (
            ring.columns[STEP_ID].take(positions(found), mode="clip") - moments[:, None] == steps
        )
        each = np.arange(len(indices))
        # Forward: all rows, or all up to the final observation.
        self.ahead = np.logical_and.accumulate(there[:, back + 1 :], axis=1).sum(axis=1)
        last = found[each, back + self.ahead]
        links = ring.columns[NEXT_OFFSET].take(positions(last), mode="clip")
        is_full = self.ahead == window.forward
        if window.across_episodes:
            done, dead = is_full & (links > 0), np.zeros(len(indices), np.bool_)
        else:
            done = is_full | (links < 0)
            following_column = np.minimum(back + 1 + self.ahead, window.rows - 1)
            # The next row would be in the block after ours, which is the last one of the stream, or
            # in none: it is not yet there, or never will be.
            last_block = (following < 0) | (ring.neighbours(following, following=True)[1] < 0)
            is_known = (
                is_after[each, following_column]
                & last_block
                & (after[each, following_column] < block_rows)
            )
            dead = ~done & (links == strides) & is_known
        # Back: all rows.
        if back:
            ahead_of = np.logical_and.accumulate(there[:, back - 1 :: -1], axis=1).sum(axis=1)
            nearest = found[each, back - ahead_of]
            links = ring.columns[PREV_OFFSET].take(positions(nearest), mode="clip")
            column = np.maximum(back - 1 - ahead_of, 0)
            is_known = reached[each, column] | (
                is_before[each, column] & ((previous < 0) | (before == 0))
            )
            dead |= (ahead_of < back) & ((links == 0) | ((links == strides) & is_known))
            done &= ahead_of == back
        self.settled, self.dead = done & (rows > 0), dead | (rows == 0)
        self.found = np.where(
            np.arange(-back, window.forward + 1) > self.ahead[:, None], last[:, None], found
        )


class _Walk:
    """A walk along the links of rows, for many windows at once.

    Attributes:
        found: (U, W) the indices of their rows. ahead, behind: (U,). valid: (U,).
    """

    def __init__(self, ring: Ring, window: Window, indices: Indices) -> None:
        self._ring, self._window = ring, window
        self._moments, self._ahead, self._back = (
            ring.columns[name] for name in (STEP_ID, NEXT_OFFSET, PREV_OFFSET)
        )
        self._at = indices
        self.found = np.repeat(indices[:, None], window.rows, axis=1)
        self.ahead = np.zeros(len(indices), np.int64)
        self.behind = np.zeros(len(indices), np.int64)
        self.valid = np.ones(len(indices), np.bool_)

    def forward(self) -> None:
        """Go on to the rows after."""
        back, across = self._window.back, self._window.across_episodes
        at, walking = self._at.copy(), np.arange(len(self._at))
        for column in range(back + 1, self._window.rows):
            here = at[walking]
            there, walking_on = self._next(here, walking)
            if across:
                there, walking_on = self._next_episode(there, walking_on)
            walking = walking_on
            at[walking] = there
            self.ahead[walking] += 1
            self.found[:, column] = at
            if not across:
                # the others are at their final observation
                walking = walking[self._links(self._ahead, there) > 0]
            if len(walking) == 0:
                self.found[:, column + 1 :] = at[:, None]
                break

    def back(self) -> None:
        """Go back to the rows before."""
        at, walking = self._at.copy(), np.arange(len(self._at))
        walking = walking[self.valid]
        for column in range(self._window.back - 1, -1, -1):
            here = at[walking]
            begun = numbers_of(self._moments.take(self._ring.positions(here), mode="clip")) == 0
            here, walking = here[~begun], walking[~begun]
            distance = self._links(self._back, here)
            there = self._hop(here, -distance)
            is_next = (distance > 0) & self._follows(there, here)
            self.valid[walking[~is_next]] = False
            walking, there = walking[is_next], there[is_next]
            at[walking] = there
            self.behind[walking] += 1
            self.found[:, column] = at

    def _next(self, here: Indices, walking: NDArray[np.intp]) -> tuple[Indices, NDArray[np.intp]]:
        """The rows one step on, and of whom; who has none is not valid."""
        there = self._hop(here, self._links(self._ahead, here))
        is_next = self._follows(here, there)
        self.valid[walking[~is_next]] = False
        return there[is_next], walking[is_next]

    def _next_episode(
        self, there: Indices, walking: NDArray[np.intp]
    ) -> tuple[Indices, NDArray[np.intp]]:
        """From a final observation to the first row of the next episode."""
        distance = self._links(self._ahead, there)
        at_end = np.flatnonzero(distance < 0)
        if len(at_end) == 0:
            return there, walking
        first = self._hop(there[at_end], -distance[at_end])
        moments = self._moments.take(self._ring.positions(np.maximum(first, 0)), mode="clip")
        begins = (first >= 0) & (numbers_of(moments) == 0) & self._ring.committed(first)
        there[at_end] = first
        self.valid[walking[at_end[~begins]]] = False
        kept = np.ones(len(there), np.bool_)
        kept[at_end[~begins]] = False
        return there[kept], walking[kept]

    def _follows(self, here: Indices, there: Indices) -> Mask:
        """Whether `there` is a committed row, and the one after `here` in its episode."""
        moments = self._moments.take(self._ring.positions(here), mode="clip")
        exists = (there >= 0) & (here >= 0)
        exists &= self._ring.committed(there) & self._ring.committed(here)
        follows: Mask = exists & (
            self._moments.take(self._ring.positions(there), mode="clip") == moments + 1
        )
        return follows

    def _links(self, column: Array, here: Indices) -> Indices:
        links: Indices = column.take(self._ring.positions(here), mode="clip").astype(np.int64)
        return links

    def _hop(self, here: Indices, distance: Indices) -> Indices:
        """The row so many rows further on in the stream (before, if negative); -1 if there is
        none."""
        block_rows = self._ring.block_rows
        serials = here // block_rows
        offsets = here - serials * block_rows + distance
        there = serials * block_rows + offsets
        going = np.arange(len(here))
        forward = bool((distance > 0).any())
        while len(going):
            rows, neighbours = self._ring.neighbours(serials[going], following=forward)
            if forward:
                beyond = offsets[going] >= rows
                offsets[going[beyond]] -= rows[beyond]
            else:
                beyond = offsets[going] < 0
            lost = (rows == 0) | (beyond & (neighbours < 0))
            there[going[lost]] = -1
            going, neighbours = going[beyond & ~lost], neighbours[beyond & ~lost]
            serials[going] = neighbours
            if not forward:
                before, _ = self._ring.neighbours(neighbours, following=False)
                offsets[going] += before
            there[going] = neighbours * block_rows + offsets[going]
        return there


def _only(windows: Windows, which: Mask) -> Windows:
    """Those of the items in `which`."""
    if which.all():
        return windows
    some = Windows(
        windows._ring,
        windows.back,
        *(getattr(windows, name)[which] for name in ARRAYS),
    )
    if windows._elsewhere is not None:
        items, indices = windows._elsewhere
        kept = which[items]
        some._elsewhere = (np.cumsum(which) - 1)[items[kept]], indices[kept]
    return some
