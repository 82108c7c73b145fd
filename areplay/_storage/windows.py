"""Windows: for a row, where the steps before and after it in its episode are.

A window is valid if its row is a step, and each step that it needs is there: `forward` rows after
it, or all up to the final observation if the episode ends before; `back` rows before it, or all
since the episode's beginning. A row that is not yet written, was overwritten, or will never be
written (its actor died) makes the window invalid, never shorter.

Rows may change while a window is copied: a reader checks `Windows.unchanged` after the copy.
`areplay._storage.window_search` finds windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
        min_steps: only those from which the episode goes on for at least `min_steps` steps,
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


class Elsewhere(NamedTuple):
    """Rows of windows that lie in other blocks than the row that the item is drawn by.

    A window is whole if its drawn row and these rows are.

    Attributes:
        items: (n,) the numbers of the items; an item occurs once a row.
        indices: (n,) int64, of the rows.
    """

    items: NDArray[np.intp]
    indices: Indices


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
        elsewhere: the rows in other blocks than that of the drawn row; None if there are no such
            rows.
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
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._ring = ring
        self.back = back
        self.columns = ring.columns
        self.spec = ring.spec
        self.indices = indices
        self.positions = positions
        self.behind = behind
        self.ahead = ahead
        self.probabilities = probabilities
        self.elsewhere = elsewhere

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def steps(self) -> Indices:
        """(B,) int64: how many steps there are from the row on, itself included. A final
        observation does not count."""
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
        """The numbers of the items of which a row has changed. Call it after copying.

        One look for all of them, if no writer has come so far; good for windows of rows that were
        committed.
        """
        all_current = self._ring.all_current
        if all_current(self.indices) and (
            self.elsewhere is None or all_current(self.elsewhere.indices)
        ):
            return _NO_ITEMS
        return np.flatnonzero(~self.unchanged())

    def unchanged(self) -> Mask:
        """(B,) bool: whether all rows of an item are still the same. Call it after copying."""
        is_whole = self._ring.unchanged(self.indices)
        if self.elsewhere is not None:
            is_there = self._ring.committed(self.elsewhere.indices)
            is_whole[self.elsewhere.items[~is_there]] = False
        return is_whole

    def blocks(self) -> list[int]:
        """The places of the blocks in which the rows are, in ascending order."""
        return sorted(set(self.places()[1].tolist()))

    def places(self) -> tuple[NDArray[np.intp], Indices]:
        """`(items, places)`: the place of each block that an item needs, beside the number of the
        item."""
        items = np.arange(len(self))
        indices = self.indices
        if self.elsewhere is not None:
            items = np.concatenate([items, self.elsewhere.items])
            indices = np.concatenate([indices, self.elsewhere.indices])
        return items, indices // self._ring.block_rows % self._ring.blocks

    def part(self, start: int, stop: int) -> Windows:
        """The items from `start` to `stop`; their arrays are views."""
        if start == 0 and stop >= len(self):
            return self
        elsewhere = None
        if self.elsewhere is not None:
            items, indices = self.elsewhere
            is_inside = (items >= start) & (items < stop)
            elsewhere = Elsewhere(items[is_inside] - start, indices[is_inside])
        return self._selected(slice(start, stop), elsewhere)

    def where(self, is_chosen: Mask) -> Windows:
        """The items for which `is_chosen`, (B,) bool, is true."""
        if is_chosen.all():
            return self
        elsewhere = None
        if self.elsewhere is not None:
            items, indices = self.elsewhere
            numbers = np.cumsum(is_chosen) - 1
            stays = is_chosen[items]
            elsewhere = Elsewhere(numbers[items[stays]], indices[stays])
        return self._selected(is_chosen, elsewhere)

    def _selected(self, which: slice | Mask, elsewhere: Elsewhere | None) -> Windows:
        return Windows(
            self._ring,
            self.back,
            self.indices[which],
            self.positions[which],
            self.behind[which],
            self.ahead[which],
            self.probabilities[which],
            elsewhere,
        )

    @classmethod
    def joined(cls, parts: list[Windows]) -> Windows:
        """The items of all parts, one part after the other. There is at least one part."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        outside = [
            (part.elsewhere.items + start, part.elsewhere.indices)
            for part, start in zip(parts, starts, strict=False)
            if part.elsewhere is not None
        ]
        elsewhere = None
        if outside:
            items, indices = zip(*outside, strict=True)
            elsewhere = Elsewhere(np.concatenate(items), np.concatenate(indices))
        return cls(
            parts[0]._ring,
            parts[0].back,
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.behind for part in parts]),
            np.concatenate([part.ahead for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            elsewhere,
        )


_NO_ITEMS = np.empty(0, np.intp)
