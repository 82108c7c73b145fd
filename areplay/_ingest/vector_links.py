"""How the rows of a vector of environments are linked, step by step.

What the links mean stands in `areplay._base.episode_links`. Knows nothing of observations, but that those of an
episode's end may come in rows of their own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from areplay._base.episode_links import AHEAD, BACK, GAP, MOMENT, episodes_of, first_moments
from areplay.spec import Array


class VectorLinks:
    """Where the next row of each of L environments belongs: the moments, and which row before it is linked to it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.moments = first_moments(np.arange(count, dtype=np.int64))
        self.stride = count  # rows from one step to the next
        self.begins = np.ones(count, np.bool_)  # the next row begins an episode, or comes after a gap
        self.is_resetting = np.zeros(count, np.bool_)  # NextStep: the next row is a final observation's
        self.is_adrift = np.zeros(count, np.bool_)  # NextStep after a gap: it may be, so it is not used for a step
        self.was_broken_off = np.zeros(count, np.bool_)  # since the last step

    def cut(self, mode: str) -> VectorLinks:
        """What it is after a gap."""
        after = VectorLinks(self.count)
        after.moments = self._next_episodes(GAP)
        after.is_adrift[:] = mode == "NextStep"
        return after

    def broken_off(self, which: NDArray[np.bool_]) -> VectorLinks:
        """What it is after these environments were reset in the middle of their episodes, or before their reset."""
        after = VectorLinks(self.count)
        after.stride = self.stride
        after.moments = np.where(which, self._next_episodes(0), self.moments)
        after.begins = self.begins | which
        after.is_resetting, after.is_adrift = self.is_resetting & ~which, self.is_adrift & ~which
        after.was_broken_off = self.was_broken_off | which
        return after

    def link_next_step(self, rows: dict[str, Array], ended: NDArray[np.bool_]) -> VectorLinks:
        """Link the rows of a step; what comes after it."""
        count, is_final = self.count, self.is_resetting | self.is_adrift
        rows[MOMENT] = self.moments
        rows[AHEAD] = np.where(is_final, -count, count).astype(np.int16)
        rows[BACK] = np.where(self.begins, 0, count).astype(np.int16)
        after = VectorLinks(count)
        after.begins = is_final
        after.moments = np.where(
            is_final, np.where(self.is_adrift, self._next_episodes(GAP), self._next_episodes(0)), self.moments + 1
        )
        after.is_resetting = ended & ~self.is_adrift
        after.is_adrift = ended & self.is_adrift
        return after

    def link_finals(
        self, rows: dict[str, Array], finals: dict[str, Array], ended: NDArray[np.bool_]
    ) -> tuple[dict[str, Array], VectorLinks]:
        """The linked rows of a step and the final observations after them; what comes after that."""
        count, which = self.count, np.flatnonzero(ended)
        extra, ranks = len(which), np.arange(len(which))
        ahead = np.full(count + extra, count + extra)
        ahead[which] = count - which + ranks  # to the row of the final observation, and from there to the next step
        ahead[count:] = -(extra - ranks + which)
        back = np.where(self.begins, 0, self.stride)
        moments = self.moments
        if extra:
            back = np.concatenate([back, ahead[which]])
            moments = np.concatenate([moments, moments[which] + 1])
            rows = {
                name: np.concatenate(
                    [column, finals[name] if name in finals else np.zeros((extra, *column.shape[1:]), column.dtype)]
                )
                for name, column in rows.items()
            }
        rows |= {MOMENT: moments, AHEAD: ahead.astype(np.int16), BACK: back.astype(np.int16)}
        after = VectorLinks(count)
        after.begins, after.stride = ended, count + extra
        after.moments = np.where(ended, self._next_episodes(0), self.moments + 1)
        return rows, after

    def _next_episodes(self, number: int) -> NDArray[np.int64]:
        return first_moments(episodes_of(self.moments) + self.count, number)
