"""The tree of sums over the masses of a ring's rows, so that rows are found in proportion to them.

Masses are summed in groups of 8, those sums again, and so on, until at most 4,096 are left:

    top (<= 4,096 sums)  <-  ...  <-  sums of 8 rows  <-  masses, one a row

A target from 0 to the total leads to a row: the cumulative sum of the top tells in which of its
sums the target lies, and at each level below that of one group tells in which child. A change
recomputes the sums above it from the masses, so they never drift, however many changes there were.

The arrays are shared: one process writes them, under a lock of its own, others read them without. A
reader that sees old sums finds rows a little out of proportion.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Indices

GROUP = 8
_MOST_AT_TOP = 4_096

Masses = NDArray[np.float64]


class Patch(NamedTuple):
    """Groups of one level that have other children than in the tree.

    Attributes:
        groups: (n,) int64, ascending.
        children: (n, GROUP) float64.
    """

    groups: Indices
    children: Masses


def level_lengths(rows: int) -> list[int]:
    """How many sums each level has, from the one above the masses of `rows` rows up to the top."""
    lengths = [-(-rows // GROUP)]
    while lengths[-1] > _MOST_AT_TOP:
        lengths.append(-(-lengths[-1] // GROUP))
    return lengths


class MassTree:
    """The sums over masses, level by level.

    Args:
        masses: (n,) float32, whole groups.
        sums: (n,) float64 for each level, padded to whole groups of the level above.
        lengths: of the levels, see `level_lengths`.

    Attributes:
        top: (n,) float64, the sums of the highest level.
    """

    def __init__(self, masses: NDArray[np.float32], sums: list[Masses], lengths: list[int]) -> None:
        self._sums = sums
        # The children of each sum, from the masses up.
        levels: list[NDArray[Any]] = [masses, *sums[:-1]]
        self._groups = [level.reshape(-1, GROUP) for level in levels]
        self.top = sums[-1][: lengths[-1]]

    @property
    def total(self) -> float:
        """The sum of all masses."""
        return float(self.top.sum())

    def without(self, positions: Indices) -> Without:
        """The masses as they are now, without the rows in these positions. The shared sums stay as
        they are."""
        return Without(self._groups, self.top, positions)

    def find(self, targets: Masses, starts: Masses, without: Without | None) -> Indices:
        """The positions of the rows in which targets lie, (n,) int64.

        Args:
            targets: (n,) from 0 to the total; changed here.
            starts: the cumulative sum of the top, from 0 on.
            without: the rows that are left out, if some are.
        """
        at: Indices = starts.searchsorted(targets, side="right")
        at -= 1
        np.minimum(at, len(starts) - 2, out=at)
        targets -= starts.take(at)
        if without is None:
            for groups in reversed(self._groups):
                at, targets = _descend(groups, at, targets)
            return at
        for groups, patch in zip(reversed(self._groups), reversed(without.patches), strict=True):
            at, targets = _descend(groups, at, targets, patch)
        return at

    def recompute(self, groups: Indices) -> None:
        """Sum up these groups of masses anew, and what is above them."""
        for below, sums in zip(self._groups, self._sums, strict=True):
            sums[groups] = _sums_of(below.take(groups, axis=0))
            groups = groups // GROUP

    def recompute_range(self, start: int, stop: int) -> None:
        """Sum up the masses in positions `start` to `stop` anew, and what is above them."""
        for below, sums in zip(self._groups, self._sums, strict=True):
            start = start // GROUP
            stop = -(-stop // GROUP)
            sums[start:stop] = _sums_of(below[start:stop])

    def check(self) -> None:
        """Assert that all sums are those of what is below them."""
        for below, sums in zip(self._groups, self._sums, strict=True):
            assert np.array_equal(sums[: len(below)], _sums_of(below)), self


class Without:
    """The masses without those of some rows, at one moment: sums of their own for the groups that
    hold such a row.

    A difference of sums would not do: beside a mass of 1 that is taken away, masses of 1e-17 are
    lost in rounding.

    Attributes:
        positions: of the rows that are left out, ascending, each once.
        patches: a patch for each level, from the masses up.
        top, total: as of `MassTree`.
    """

    def __init__(self, levels: list[NDArray[Any]], top: Masses, positions: Indices) -> None:
        self.positions = np.unique(positions)
        self.patches: list[Patch] = []
        # Level by level: which children change, and to what.
        changed = self.positions
        values: Masses = np.zeros(len(changed))
        for groups in levels:
            which, nth = np.unique(changed // GROUP, return_inverse=True)
            children = groups.take(which, axis=0).astype(np.float64)
            children[nth, changed % GROUP] = values
            self.patches.append(Patch(which, children))
            changed = which
            values = _sums_of(children)
        self.top = top.copy()
        self.top[changed] = values
        self.total = float(self.top.sum())


def _descend(
    groups: NDArray[Any], at: Indices, targets: Masses, patch: Patch | None = None
) -> tuple[Indices, Masses]:
    """Go from sums to their children: the child of `groups[at]` in which each target lies, and the
    rest of the target there.

    The children lie side by side, so that a cumulative sum over all groups at once is a handful of
    additions of long arrays: a fifth of the time that `cumsum` takes, which adds one number after
    the other. Targets that are too large, since masses changed meanwhile, lead to the last child.

    Args:
        patch: groups that have other children, see `Without`.
    """
    count = len(at)
    children = groups.take(at, axis=0)
    if patch is not None and len(patch.groups):
        children = children.astype(np.float64)  # a sum of masses has more digits than a mass
        nth = np.minimum(patch.groups.searchsorted(at), len(patch.groups) - 1)
        is_patched = patch.groups[nth] == at
        children[is_patched] = patch.children[nth[is_patched]]
    starts = np.empty((GROUP, count))  # of each child, from the beginning of its group
    each = list(starts)
    each[0].fill(0.0)
    starts[1:] = children.T[:-1]
    for before, here in itertools.pairwise(each):
        np.add(before, here, here)
    # The number of children, after the first, that begin at the target or before it.
    is_behind = starts[1:] <= targets
    child = np.add.reduce(is_behind.view(np.int8), axis=0, dtype=np.int8).astype(np.int64)
    at = at * GROUP
    at += child
    # From here on the place of that child in `starts`.
    child *= count
    child += np.arange(count)
    return at, targets - starts.reshape(-1).take(child)


def _sums_of(groups: NDArray[Any]) -> Masses:
    """The sum of each row of (n, GROUP), child by child: the same whatever n is, and faster than
    along the rows."""
    sums: Masses = np.add.reduce(groups.T.astype(np.float64, order="C"), axis=0)
    return sums
