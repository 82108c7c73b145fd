"""Windows: for a row, where the steps before and after it in its episode are.

A window is valid if its row is a step, and each step that it needs is there: `forward` rows after it, or all up to the
final observation if the episode ends before; `back` rows before it, or all since the episode's beginning. What is not
yet written, was overwritten, or will never be written (its actor died) makes it invalid, never shorter.

Nearly all windows lie in one block, in which the distance from row to row is the same, and no episode ends in them:
guess where their rows are, and look whether the rows there are the ones (their moments tell). Most of the others reach
into one neighbouring block, or end with their episode: guess with that in mind. What is left, where distances vary or
blocks are short, is walked row by row along the links. All of it for many windows at once, and for rows that may change
meanwhile: whoever copies them checks `Windows.unchanged` after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from areplay._base.episode_links import AHEAD, BACK, MOMENT, numbers_of
from areplay._base.validation import flag, whole_number
from areplay._shm.memory_order import order
from areplay._storage.ring import Indices, Mask, Ring
from areplay.spec import Array


@dataclass(frozen=True)
class Window:
    """Which rows an item needs around the row that it is drawn by.

    Args:
        back: steps before it; fewer where the episode begins.
        forward: rows after it; fewer where the episode ends, and then the last one holds the final observation.
        period: only steps whose number in their episode is a multiple of it.
        min_steps: only those from which so many steps can be made before the episode ends, themselves included.
        across_episodes: after an episode's end go on with the next one of the same environment, without its final
            observation.
    """

    back: int = 0
    forward: int = 0
    period: int = 1
    min_steps: int = 1
    across_episodes: bool = False

    def __post_init__(self) -> None:
        whole_number("back", self.back, at_least=0)
        whole_number("forward", self.forward, at_least=0)
        whole_number("period", self.period)
        whole_number("min_steps", self.min_steps, at_most=self.forward + 1)
        flag("across_episodes", self.across_episodes)

    @property
    def rows(self) -> int:
        """How many at most."""
        return self.back + 1 + self.forward


class Windows:
    """The windows of B items, W = back + 1 + forward rows each.

    Attributes:
        indices: (B,) int64, the row that each was drawn by.
        positions: (B, W) int64, where in the columns its rows are. Column `back` is the row itself. Where the episode
            begins or ends, the first or last row of the window is repeated.
        behind, ahead: (B,) int64, how many rows before and after it there are.
        probabilities: (B,) float64, of the row that each was drawn by, in one draw.
        back: as of the `Window`.
        columns: field name -> array of shape `(capacity_rows, *shape)`: the whole ring. Other processes write to it.
        spec: of the rows.
    """

    def __init__(
        self,
        ring: Ring,
        back: int,
        indices: Indices,
        positions: Indices,
        behind: Indices,
        ahead: Indices,
        probabilities: NDArray[np.float64],
    ) -> None:
        self._ring, self.back, self.columns, self.spec = ring, back, ring.columns, ring.spec
        self.indices, self.positions, self.behind, self.ahead = indices, positions, behind, ahead
        self.probabilities = probabilities
        self._elsewhere: tuple[NDArray[np.intp], Indices] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def steps(self) -> Indices:
        """(B,) int64: how many steps there are from the row on, itself included; its final observation is none."""
        if not self.spec.is_steps:
            return np.ones(len(self), np.int64)
        is_final = self.columns[AHEAD].take(self.positions[:, -1], mode="clip") < 0
        return self.ahead + 1 - is_final

    def numbers(self) -> Indices:
        """(B, W) int64: which step of its episode each row is, from 0; as far as they exist."""
        return numbers_of(self.columns[MOMENT].take(self.positions, mode="clip"))

    def take(self, name: str, offset: int | slice = 0, out: Array | None = None) -> Array:
        """A field's value `offset` steps after the row (before it, if negative): `(B, *shape)`, or `(B, n, *shape)` for
        a slice of offsets. Where the episode begins or ends, that of its first or last row.
        """
        if isinstance(offset, slice):
            start = 0 if offset.start is None else offset.start
            stop = self.positions.shape[1] - self.back if offset.stop is None else offset.stop
            first, last = start + self.back, stop + self.back
            at: int | slice = slice(first, last)
        else:
            at = first = offset + self.back
            last = first + 1
        if not 0 <= first < last <= self.positions.shape[1]:
            reach = f"from {-self.back} to {self.positions.shape[1] - self.back - 1}"
            raise IndexError(f"take({name!r}, {offset}): the item's Window reaches {reach}")
        # mode="clip" because the default checks bounds first and then copies through a buffer: 2.3 times slower
        taken: Array = self.columns[name].take(self.positions[:, at], axis=0, out=out, mode="clip")
        return taken

    def changed(self) -> NDArray[np.intp]:
        """Which items, by their numbers, have a row that is not what it was any more. Call it after copying.

        One look for all of them, if no writer has come so far; good for windows of rows that were committed.
        """
        is_none_due = self._ring.is_none_due
        if is_none_due(self.indices) and (self._elsewhere is None or is_none_due(self._elsewhere[1])):
            return _NONE
        return np.flatnonzero(~self.unchanged())

    def unchanged(self) -> Mask:
        """(B,) bool: of which items all rows are still those that they were. Call it after copying."""
        whole = self._ring.unchanged(self.indices)
        if self._elsewhere is not None:
            items, indices = self._elsewhere
            whole[items[~self._ring.committed(indices)]] = False
        return whole

    def blocks(self) -> list[int]:
        """The places of the blocks in which the rows are, in ascending order."""
        return sorted(set(self.places()[1].tolist()))

    def places(self) -> tuple[NDArray[np.intp], Indices]:
        """`(items, places)`: the place of each block that an item needs, beside the number of the item."""
        items, indices = np.arange(len(self)), self.indices
        if self._elsewhere is not None:
            items, indices = np.concatenate([items, self._elsewhere[0]]), np.concatenate([indices, self._elsewhere[1]])
        return items, indices // self._ring.block_rows % self._ring.blocks

    def part(self, start: int, stop: int) -> Windows:
        """Those of the items from `start` to `stop`."""
        if start == 0 and stop >= len(self):
            return self
        part = slice(start, stop)
        positions, probabilities = self.positions[part], self.probabilities[part]
        behind, ahead = self.behind[part], self.ahead[part]
        some = Windows(self._ring, self.back, self.indices[part], positions, behind, ahead, probabilities)
        if self._elsewhere is not None:
            items, indices = self._elsewhere
            inside = (items >= start) & (items < stop)
            some._elsewhere = items[inside] - start, indices[inside]
        return some

    @classmethod
    def joined(cls, parts: list[Windows]) -> Windows:
        """All of them, one after the other."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        joined = cls(
            first._ring,
            first.back,
            *(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS),
        )
        items, indices, start = [], [], 0
        for part in parts:
            if part._elsewhere is not None:
                items.append(part._elsewhere[0] + start)
                indices.append(part._elsewhere[1])
            start += len(part)
        if items:
            joined._elsewhere = np.concatenate(items), np.concatenate(indices)
        return joined


_NONE = np.empty(0, np.intp)
_ARRAYS = ("indices", "positions", "behind", "ahead", "probabilities")


class WindowFinder:
    """Finds windows in a ring."""

    def __init__(self, ring: Ring, window: Window) -> None:
        self._ring, self._window = ring, window
        self._offsets = np.arange(-window.back, window.forward + 1)
        if ring.spec.is_steps:
            self._moments: Indices = ring.columns[MOMENT]
            self._ahead, self._back = ring.columns[AHEAD], ring.columns[BACK]

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
            indices, positions, moments, strides = (a[may_be] for a in (indices, positions, moments, strides))
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
        self, windows: Windows, rest: NDArray[np.intp], moments: Indices, strides: Indices, steps: Indices
    ) -> Windows:
        """`windows` with those at `rest` found on the longer ways, without those that are not valid."""
        guess = _Guess(self._ring, self._window, windows.indices[rest], moments, strides, steps)
        found, ahead, behind, valid = guess.found, guess.ahead, windows.behind[rest], guess.settled
        lost = np.flatnonzero(~guess.settled & ~guess.dead)
        if len(lost):
            walk = _Walk(self._ring, self._window, windows.indices[rest[lost]])
            walk.forward()
            walk.back()
            found[lost], ahead[lost], behind[lost], valid[lost] = walk.found, walk.ahead, walk.behind, walk.valid
        windows.positions[rest] = self._ring.positions(found)
        windows.ahead[rest], windows.behind[rest] = ahead, behind
        serials = found // self._ring.block_rows
        which, column = np.nonzero(serials[:, 1:] != serials[:, :-1])
        # Of two neighbours in different blocks both, since either may be the one that is not in the row's own block.
        elsewhere = np.concatenate([found[which, column], found[which, column + 1]])
        windows._elsewhere = np.concatenate([rest[which], rest[which]]), elsewhere
        is_valid = np.ones(len(windows), np.bool_)
        is_valid[rest] = valid
        return _only(windows, is_valid)


class _Guess:
    """A guess for windows that may reach into a neighbouring block, or end with their episode.

    Attributes:
        found: (U, W) the indices of their rows, for those that are settled. ahead: (U,) how many rows after the first.
        settled: (U,) whether they were found. dead: (U,) whether there is no such window.
    """

    def __init__(
        self, ring: Ring, window: Window, indices: Indices, moments: Indices, strides: Indices, steps: Indices
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
        found = np.where(is_before, previous[:, None] * block_rows + before[:, None] + offsets, found)
        reached = np.where(is_after, (following[:, None] >= 0) & (after < block_rows), rows[:, None] > 0)
        reached &= ~is_before | ((previous[:, None] >= 0) & (offsets + before[:, None] >= 0))
        there = reached & ring.committed(found)
        there &= ring.columns[MOMENT].take(positions(found), mode="clip") - moments[:, None] == steps
        each = np.arange(len(indices))
        # Forward: all rows, or all up to the final observation.
        self.ahead = np.logical_and.accumulate(there[:, back + 1 :], axis=1).sum(axis=1)
        last = found[each, back + self.ahead]
        links = ring.columns[AHEAD].take(positions(last), mode="clip")
        is_full = self.ahead == window.forward
        if window.across_episodes:
            done, dead = is_full & (links > 0), np.zeros(len(indices), np.bool_)
        else:
            done = is_full | (links < 0)
            following_column = np.minimum(back + 1 + self.ahead, window.rows - 1)
            # The next row would be in the block after ours, which is the last one of the stream, or in none: it is not
            # yet there, or never will be.
            last_block = (following < 0) | (ring.neighbours(following, following=True)[1] < 0)
            is_known = is_after[each, following_column] & last_block & (after[each, following_column] < block_rows)
            dead = ~done & (links == strides) & is_known
        # Back: all rows.
        if back:
            ahead_of = np.logical_and.accumulate(there[:, back - 1 :: -1], axis=1).sum(axis=1)
            nearest = found[each, back - ahead_of]
            links = ring.columns[BACK].take(positions(nearest), mode="clip")
            column = np.maximum(back - 1 - ahead_of, 0)
            is_known = reached[each, column] | (is_before[each, column] & ((previous < 0) | (before == 0)))
            dead |= (ahead_of < back) & ((links == 0) | ((links == strides) & is_known))
            done &= ahead_of == back
        self.settled, self.dead = done & (rows > 0), dead | (rows == 0)
        self.found = np.where(np.arange(-back, window.forward + 1) > self.ahead[:, None], last[:, None], found)


class _Walk:
    """A walk along the links of rows, for many windows at once.

    Attributes:
        found: (U, W) the indices of their rows. ahead, behind: (U,). valid: (U,).
    """

    def __init__(self, ring: Ring, window: Window, indices: Indices) -> None:
        self._ring, self._window = ring, window
        self._moments, self._ahead, self._back = (ring.columns[name] for name in (MOMENT, AHEAD, BACK))
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
                walking = walking[self._links(self._ahead, there) > 0]  # the others are at their final observation
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

    def _next_episode(self, there: Indices, walking: NDArray[np.intp]) -> tuple[Indices, NDArray[np.intp]]:
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
        follows: Mask = exists & (self._moments.take(self._ring.positions(there), mode="clip") == moments + 1)
        return follows

    def _links(self, column: Array, here: Indices) -> Indices:
        links: Indices = column.take(self._ring.positions(here), mode="clip").astype(np.int64)
        return links

    def _hop(self, here: Indices, distance: Indices) -> Indices:
        """The row so many rows further on in the stream (before, if negative); -1 if there is none."""
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
        *(getattr(windows, name)[which] for name in _ARRAYS),
    )
    if windows._elsewhere is not None:
        items, indices = windows._elsewhere
        kept = which[items]
        some._elsewhere = (np.cumsum(which) - 1)[items[kept]], indices[kept]
    return some
