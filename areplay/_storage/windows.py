"""Windows: for a row, where the steps before and after it in its episode are.

A window is valid if its row is a step, and each step that it needs is there: `forward` rows after
it, or all up to the final observation if the episode ends before; `back` rows before it, or all
since the episode's beginning. What is not yet written, was overwritten, or will never be written
(its actor died) makes it invalid, never shorter.

Nearly all windows lie in one block, in which the distance from row to row is the same, and no
episode ends in them: guess where their rows are, and look whether the rows there are the ones
(their moments tell). Most of the others reach into one neighbouring block, or end with their
episode: guess with that in mind. What is left, where distances vary or blocks are short, is walked
row by row along the links. All of it for many windows at once, and for rows that may change
meanwhile: whoever copies them checks `Windows.unchanged` after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, STEP_ID, numbers_of
from areplay._base.validation import flag, whole_number
from areplay._storage.ring import Ring


@dataclass(frozen=True)
class Window:
    """Which rows an item needs around the row that it is drawn by.

    Args:
        back: steps before it; fewer where the episode begins.
        forward: rows after it; fewer where the episode ends, and then the last one holds the final
            observation.
        period: only steps whose number in their episode is a multiple of it.
        min_steps: only those from which so many steps can be made before the episode ends,
            themselves included.
        across_episodes: after an episode's end go on with the next one of the same environment,
            without its final observation.
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
        positions: (B, W) int64, where in the columns its rows are. Column `back` is the row itself.
            Where the episode begins or ends, the first or last row of the window is repeated.
        behind, ahead: (B,) int64, how many rows before and after it there are.
        probabilities: (B,) float64, of the row that each was drawn by, in one draw.
        back: as of the `Window`.
        columns: field name -> array of shape `(capacity_rows, *shape)`: the whole ring. Other
            processes write to it.
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
        """(B,) int64: how many steps there are from the row on, itself included; its final
        observation is none."""
        if not self.spec.is_steps:
            return np.ones(len(self), np.int64)
        is_final = self.columns[NEXT_OFFSET].take(self.positions[:, -1], mode="clip") < 0
        return self.ahead + 1 - is_final

    def numbers(self) -> Indices:
        """(B, W) int64: which step of its episode each row is, from 0; as far as they exist."""
        return numbers_of(self.columns[STEP_ID].take(self.positions, mode="clip"))

    def take(self, name: str, offset: int | slice = 0, out: Array | None = None) -> Array:
        """A field's value `offset` steps after the row (before it, if negative): `(B, *shape)`, or
        `(B, n, *shape)` for a slice of offsets. Where the episode begins or ends, that of its first
        or last row.
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
        # mode="clip" because the default checks bounds first and then copies through a buffer: 2.3
        # times slower
        taken: Array = self.columns[name].take(self.positions[:, at], axis=0, out=out, mode="clip")
        return taken

    def changed(self) -> NDArray[np.intp]:
        """Which items, by their numbers, have a row that is not what it was any more. Call it after
        copying.

        One look for all of them, if no writer has come so far; good for windows of rows that were
        committed.
        """
        all_current = self._ring.all_current
        if all_current(self.indices) and (
            self._elsewhere is None or all_current(self._elsewhere[1])
        ):
            return _NONE
        return np.flatnonzero(~self.unchanged())

    def unchanged(self) -> Mask:
        """(B,) bool: of which items all rows are still those that they were. Call it after
        copying."""
        whole = self._ring.unchanged(self.indices)
        if self._elsewhere is not None:
            items, indices = self._elsewhere
            whole[items[~self._ring.committed(indices)]] = False
        return whole

    def blocks(self) -> list[int]:
        """The places of the blocks in which the rows are, in ascending order."""
        return sorted(set(self.places()[1].tolist()))

    def places(self) -> tuple[NDArray[np.intp], Indices]:
        """`(items, places)`: the place of each block that an item needs, beside the number of the
        item."""
        items, indices = np.arange(len(self)), self.indices
        if self._elsewhere is not None:
            items, indices = (
                np.concatenate([items, self._elsewhere[0]]),
                np.concatenate([indices, self._elsewhere[1]]),
            )
        return items, indices // self._ring.block_rows % self._ring.blocks

    def part(self, start: int, stop: int) -> Windows:
        """Those of the items from `start` to `stop`."""
        if start == 0 and stop >= len(self):
            return self
        part = slice(start, stop)
        positions, probabilities = self.positions[part], self.probabilities[part]
        behind, ahead = self.behind[part], self.ahead[part]
        some = Windows(
            self._ring, self.back, self.indices[part], positions, behind, ahead, probabilities
        )
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
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS),
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


ARRAYS = ("indices", "positions", "behind", "ahead", "probabilities")
