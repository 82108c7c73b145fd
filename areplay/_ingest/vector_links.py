"""How the rows of a vector of environments are linked, step by step.

What the links mean stands in `areplay._base.episode_links`. Knows nothing of observations, but that
those of an episode's end may come in rows of their own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array
from areplay._base.episode_links import (
    GAP,
    NEXT_OFFSET,
    PREV_OFFSET,
    STEP_ID,
    episodes_of,
    first_step_ids,
)


class VectorLinks:
    """Where the next row of each of L environments belongs: its step id, and the row before it that
    is linked to it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.step_ids = first_step_ids(np.arange(count, dtype=np.int64))
        self.stride = count  # rows from one step to the next
        # the next row begins an episode, or comes after a gap
        self.begins = np.ones(count, np.bool_)
        # NextStep: the next row is a final observation's
        self.is_resetting = np.zeros(count, np.bool_)
        # NextStep after a gap: it may be, so it is not used for a step
        self.is_adrift = np.zeros(count, np.bool_)
        self.was_broken_off = np.zeros(count, np.bool_)  # since the last step

    def cut(self, mode: str) -> VectorLinks:
        """What it is after a gap."""
        after = VectorLinks(self.count)
        after.step_ids = self._next_episodes(GAP)
        after.is_adrift[:] = mode == "NextStep"
        return after

    def broken_off(self, which: NDArray[np.bool_]) -> VectorLinks:
        """What it is after these environments were reset in the middle of their episodes, or before
        their reset."""
        after = VectorLinks(self.count)
        after.stride = self.stride
        after.step_ids = np.where(which, self._next_episodes(0), self.step_ids)
        after.begins = self.begins | which
        after.is_resetting, after.is_adrift = self.is_resetting & ~which, self.is_adrift & ~which
        after.was_broken_off = self.was_broken_off | which
        return after

    def link_next_step(self, rows: dict[str, Array], ended: NDArray[np.bool_]) -> VectorLinks:
        """Link the rows of a step; what comes after it."""
        count, is_final = self.count, self.is_resetting | self.is_adrift
        rows[STEP_ID] = self.step_ids
        rows[NEXT_OFFSET] = np.where(is_final, -count, count).astype(np.int16)
        rows[PREV_OFFSET] = np.where(self.begins, 0, count).astype(np.int16)
        after = VectorLinks(count)
        after.begins = is_final
        after.step_ids = np.where(
            is_final,
            np.where(self.is_adrift, self._next_episodes(GAP), self._next_episodes(0)),
            self.step_ids + 1,
        )
        after.is_resetting = ended & ~self.is_adrift
        after.is_adrift = ended & self.is_adrift
        return after

    def link_finals(
        self, rows: dict[str, Array], finals: dict[str, Array], ended: NDArray[np.bool_]
    ) -> tuple[dict[str, Array], VectorLinks]:
        """The linked rows of a step with the final observations behind them; the links after it.

        With four environments of which 1 and 3 end, rows are six, and the next step begins behind
        them:

            row           0    1    2    3    f1   f3 |  0'
            next_offset   6    3    6    2    -3   -4
        """
        which = np.flatnonzero(ended)
        count = self.count
        total = count + len(which)
        ranks = np.arange(len(which))
        next_offset = np.full(total, total)
        # From a step that ends to its final observation, and from there to the next step.
        next_offset[which] = count - which + ranks
        next_offset[count:] = -(len(which) - ranks + which)
        prev_offset = np.where(self.begins, 0, self.stride)
        step_ids = self.step_ids
        if len(which):
            prev_offset = np.concatenate([prev_offset, next_offset[which]])
            step_ids = np.concatenate([step_ids, step_ids[which] + 1])
            rows = {name: _behind(rows[name], finals.get(name), len(which)) for name in rows}
        rows[STEP_ID] = step_ids
        rows[NEXT_OFFSET] = next_offset.astype(np.int16)
        rows[PREV_OFFSET] = prev_offset.astype(np.int16)
        after = VectorLinks(count)
        after.begins = ended
        after.stride = total
        after.step_ids = np.where(ended, self._next_episodes(0), self.step_ids + 1)
        return rows, after

    def _next_episodes(self, number: int) -> NDArray[np.int64]:
        return first_step_ids(episodes_of(self.step_ids) + self.count, number)


def _behind(column: Array, finals: Array | None, count: int) -> Array:
    """A column with `count` more values behind it: of final observations, or zeros."""
    if finals is None:
        finals = np.zeros((count, *column.shape[1:]), column.dtype)
    return np.concatenate([column, finals])
