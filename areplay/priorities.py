"""Priorities: a mass for each row, and sums of them, so that rows can be drawn in proportion to their masses.

A row's mass is its priority raised to an exponent. Masses are summed in groups of 16, those sums again, and so on,
until at most 4,096 are left:

    top (<= 4,096 sums)  <-  ...  <-  sums of 16 rows  <-  masses, one a row

A draw is a cumulative sum over the top, and at each level below one over the groups that were hit. A change recomputes
the sums above it from the masses, so they never drift, however many changes there were.

Shared arrays, all written by the owner's process alone, under `_guard`; read by everyone without a lock:

    masses   float32, by position. 0: not to be drawn (no row, a final observation).
    sums     float64, a level each. A reader that sees old sums draws a little out of proportion, never a row without
             mass.
    largest  float64, one word: the largest mass that a row was given.
    exponents   float64: the importance sampling exponents of the selectors that draw by these masses.

Rule: whoever changes a mass looks under the guard whether the row is still there; whoever recycles a block first takes
its rows out of the ring, then clears their masses under the guard. So no update ever reaches a newcomer.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay.layout import Layout
from areplay.links import AHEAD
from areplay.ring import Indices, Mask, Ring, Watcher
from areplay.segment import Segment

GROUP = 16
_MOST_AT_TOP, _MOST_SELECTORS = 4_096, 1_024
Masses = NDArray[np.float64]


class Priorities(Watcher):
    """The masses of the rows of a ring, for one priority exponent. Pickles into a sampler that is being spawned.

    Args:
        exponent: masses are `|priority| ** exponent`.
    """

    def __init__(self, ring: Ring, exponent: float) -> None:
        self.exponent = exponent
        self.is_closed = False
        self._ring = ring
        lengths = [-(-ring.capacity_rows // GROUP)]
        while lengths[-1] > _MOST_AT_TOP:
            lengths.append(-(-lengths[-1] // GROUP))
        self._lengths = lengths
        # Each level is padded to whole groups of the one above, so that it can be looked at as groups.
        layout = Layout(
            "priorities",
            {
                "largest": ((1,), np.float64),
                "exponents": ((_MOST_SELECTORS,), np.float64),
                "masses": ((lengths[0] * GROUP,), np.float32),
                **{f"sums:{k}": ((-(-n // GROUP) * GROUP,), np.float64) for k, n in enumerate(lengths)},
            },
        )
        self._segment = Segment(layout, f"priorities of {ring.capacity_rows:,} rows")
        self._guard = threading.Lock()
        self._view()
        self._largest[0] = 1.0
        self._selectors = itertools.count()

    def _view(self) -> None:
        arrays = self._segment.arrays
        self._largest: Masses = arrays["largest"]
        self.exponents: Masses = arrays["exponents"]
        self.masses: NDArray[np.float32] = arrays["masses"]
        self._sums: list[Masses] = [arrays[f"sums:{k}"] for k in range(len(self._lengths))]
        # The children of each sum, level by level from the masses up.
        levels: list[NDArray[Any]] = [self.masses, *self._sums[:-1]]
        self._groups = [level.reshape(-1, GROUP) for level in levels]
        self._top = self._sums[-1][: self._lengths[-1]]

    def new_exponent(self, value: float) -> int:
        """Where in `exponents` that of a new selector is."""
        number = next(self._selectors)
        if number >= _MOST_SELECTORS:
            raise ValueError(f"more than {_MOST_SELECTORS} selectors of one replay; use a selector again")
        self.exponents[number] = value
        return number

    @property
    def total(self) -> float:
        """The sum of all masses."""
        return float(self._top.sum())

    # Drawing.

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Indices, Masses]:
        """About `count` rows, stratified, and the probability of each. Fewer, if rows changed meanwhile.

        One row in each of `count` equal shares of the total mass (Schaul et al., Prioritized Experience Replay, 2016,
        appendix B.2.1).
        """
        cumulated = self._top.cumsum()
        total = cumulated[-1]
        if not total > 0:
            return np.empty(0, np.int64), np.empty(0)
        targets = (rng.permutation(count) + rng.random(count)) * (total / count)  # in no order: some may be dropped
        at = cumulated.searchsorted(targets, side="right")
        np.minimum(at, len(cumulated) - 1, out=at)
        sums = self._top.take(at)
        with np.errstate(invalid="ignore", divide="ignore"):  # emptied meanwhile: what is drawn there is dropped
            fractions = (targets - (cumulated.take(at) - sums)) / sums
            for groups in reversed(self._groups):
                at, fractions = _descend(groups, at, fractions)
        masses = self.masses.take(at).astype(np.float64)
        indices, is_there = self._names(at)
        is_there &= masses > 0
        return indices[is_there], masses[is_there] / total

    def probabilities(self, indices: Indices) -> Masses:
        """The probability of each of these rows in one draw."""
        return self.masses.take(self._ring.positions(indices), mode="clip").astype(np.float64) / self.total

    def _names(self, positions: Indices) -> tuple[Indices, Mask]:
        """The indices of the rows that are in these positions, and whether there are any."""
        block_rows = self._ring.block_rows
        places = positions // block_rows
        serials = (self._ring.ends.take(places, mode="clip") - 1) // block_rows
        indices = serials * block_rows + positions - places * block_rows
        return indices, self._ring.committed(indices) & (serials >= 0)

    # Changing, in the owner's process.

    def update(self, indices: Indices, priorities: Masses) -> Mask:
        """Give rows new priorities; which of them are there still, those that are not are left out."""
        masses = self._masses_of(priorities)
        positions = self._ring.positions(indices)
        with self._guard:
            is_there = self._ring.committed(indices)
            if not is_there.all():
                positions, masses = positions[is_there], masses[is_there]
            if len(masses):
                # What has no mass gets none: a final observation is no item's row.
                masses = np.where(self.masses.take(positions) > 0, masses, self._given_none(positions, masses))
                self.masses[positions] = masses
                self._largest[0] = max(self._largest[0], float(masses.max()))
                self._recompute(positions // GROUP)
        return is_there

    def written(self, at: int, count: int, priorities: Masses | None = None) -> None:
        """Rows were written to positions `at` to `at + count`: they get the priorities given, or the largest so far.

        Args:
            priorities: of each; NaN where there is none given.
        """
        with self._guard:
            part = self.masses[at : at + count]
            if priorities is None:
                part[:] = self._largest[0]
            else:
                given = self._masses_of(priorities)
                part[:] = np.where(np.isnan(priorities), self._largest[0], given)
                self._largest[0] = max(self._largest[0], float(part.max()))
            if self._ring.spec.is_steps:
                part[self._ring.columns[AHEAD][at : at + count] < 0] = 0
            self._recompute_range(at, at + count)

    def cleared(self, at: int, count: int) -> None:
        """The rows in positions `at` to `at + count` are not there any more."""
        with self._guard:
            self.masses[at : at + count] = 0
            self._recompute_range(at, at + count)

    def begin(self) -> None:
        """Give all rows that are there already the same mass."""
        serials, rows = self._ring.occupied()
        for serial, count in zip(serials.tolist(), rows.tolist(), strict=True):
            self.written(serial % self._ring.blocks * self._ring.block_rows, count)

    def _given_none(self, positions: Indices, masses: Masses) -> Masses:
        """The masses of rows that have none: those that may have one again."""
        if not self._ring.spec.is_steps:
            return masses
        return np.where(self._ring.columns[AHEAD].take(positions, mode="clip") < 0, 0, masses)

    def _masses_of(self, priorities: Masses) -> Masses:
        with np.errstate(over="ignore", under="ignore"):
            masses: Masses = np.abs(priorities) ** self.exponent
        largest = float(np.finfo(np.float32).max)
        smallest = float(np.finfo(np.float32).smallest_subnormal)
        return np.where(masses > 0, np.clip(masses, smallest, largest), masses)

    def _recompute(self, groups: Indices) -> None:
        for below, sums in zip(self._groups, self._sums, strict=True):
            sums[groups] = below.take(groups, axis=0).sum(axis=1, dtype=np.float64)
            groups = groups // GROUP

    def _recompute_range(self, start: int, stop: int) -> None:
        for below, sums in zip(self._groups, self._sums, strict=True):
            start, stop = start // GROUP, -(-stop // GROUP)
            sums[start:stop] = below[start:stop].sum(axis=1, dtype=np.float64)

    def check(self) -> None:
        """Assert that all sums are those of what is below them."""
        with self._guard:
            for below, sums in zip(self._groups, self._sums, strict=True):
                assert np.array_equal(sums[: len(below)], below.sum(axis=1, dtype=np.float64)), self

    def close(self) -> None:
        """Give back the descriptor. The memory stays mapped for as long as a view of it lives."""
        self.is_closed = True
        self._segment.close()

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in ("exponent", "_ring", "_lengths", "_segment")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._guard = threading.Lock()
        self._view()

    def __repr__(self) -> str:
        return f"<Priorities ** {self.exponent}, total {self.total:.6g}>"


def _descend(groups: NDArray[Any], at: Indices, fractions: Masses) -> tuple[Indices, Masses]:
    """From sums to their children: which child of `groups[at]` lies at that fraction of its sum, and where in it.

    One flat cumulative sum over all the groups that were hit; one along an axis takes half as long again. A group so
    small that it vanishes beside the others is hit with a chance of 1e-9, and then an arbitrary row of it is drawn.
    """
    children = groups.take(at, axis=0).ravel()
    flat = children.cumsum(dtype=np.float64)
    ends = flat[GROUP - 1 :: GROUP]
    before = np.empty_like(ends)
    before[0], before[1:] = 0.0, ends[:-1]
    fractions *= ends - before
    fractions += before  # now targets in the flat sum
    found = flat.searchsorted(fractions, side="right")
    first = np.arange(0, len(flat), GROUP)
    np.clip(found, first, first + (GROUP - 1), out=found)
    within = children.take(found).astype(np.float64)
    fractions -= flat.take(found)
    fractions /= within
    fractions += 1.0
    at = at * GROUP
    at += found
    at -= first
    return at, fractions
