"""Priorities: a mass for each row, so that rows can be drawn in proportion to their masses.

A row's mass is its priority raised to an exponent. `areplay._storage.mass_tree` sums masses up.

Shared arrays, all written by the owner's process alone, under `_lock`; every process reads them
without a lock:

    masses   float32, by position. 0: not to be drawn (no row, a final observation).
    sums     float64, a level each. A reader that sees old sums draws a little out of proportion,
             never a row without mass.
    largest  float64, one word: the largest mass that a row was given.
    exponents   float64: the importance sampling exponents of the streams that draw by these
                masses.

Rule: a thread that changes a mass looks under the lock whether the row is still there. A thread
that recycles a block first takes its rows out of the ring, then clears their masses under the lock.
So no update ever reaches a newcomer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base import forks
from areplay._base.arrays import Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET
from areplay._shm.layout import Layout
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay._storage.mass_tree import GROUP, Masses, MassTree, Without, level_lengths
from areplay._storage.registry import RowListener
from areplay._storage.ring import Ring

_MOST_EXPONENTS = 1_024
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
_LARGEST = float(np.finfo(np.float32).max)


class Exponents:
    """The importance sampling exponents of the streams that draw by one table, in shared memory.

    Only the owner's process takes, frees and writes places.

    Args:
        values: (n,) float64, a place for each stream.

    Attributes:
        were_taken: whether a stream ever took a place.
    """

    def __init__(self, values: Masses) -> None:
        self.were_taken = False
        self._values = values
        self._free = list(range(len(values) - 1, -1, -1))

    def take(self, value: float) -> int:
        """Take a place, and put `value` there.

        Raises:
            ValueError: there are as many streams as places.
        """
        if not self._free:
            raise ValueError(
                f"more than {len(self._values):,} streams of batches draw by priority; close some"
            )
        place = self._free.pop()
        self._values[place] = value
        self.were_taken = True
        return place

    def free(self, place: int) -> None:
        """Give a place back. The garbage collector may call this anywhere, so it takes no lock."""
        self._free.append(place)

    def __getitem__(self, place: int) -> float:
        return float(self._values[place])

    def __setitem__(self, place: int, value: float) -> None:
        self._values[place] = value


class Priorities(RowListener):
    """The masses of the rows of a ring, for one priority exponent. Pickles into a sampler that is
    being spawned.

    Args:
        exponent: masses are `|priority| ** exponent`.

    Attributes:
        origin: the process that reads or writes them here.
    """

    def __init__(self, ring: Ring, exponent: float) -> None:
        self.exponent = exponent
        self.is_closed = False
        self._ring = ring
        lengths = level_lengths(ring.capacity_rows)
        # Each level is padded to whole groups of the level above.
        sums = {
            f"sums:{level}": ((-(-length // GROUP) * GROUP,), np.float64)
            for level, length in enumerate(lengths)
        }
        layout = Layout(
            "priorities",
            {
                "largest": ((1,), np.float64),
                "exponents": ((_MOST_EXPONENTS,), np.float64),
                "masses": ((lengths[0] * GROUP,), np.float32),
                **sums,
            },
        )
        self._segment = Segment(layout, f"priorities of {ring.capacity_rows:,} rows")
        self._lock = forks.register_lock(threading.Lock())
        self._view()
        self._largest[0] = 1.0

    def _view(self) -> None:
        self.origin = forks.current
        arrays = self._segment.arrays
        self._largest: Masses = arrays["largest"]
        self.exponents = Exponents(arrays["exponents"])
        self.masses: NDArray[np.float32] = arrays["masses"]
        lengths = level_lengths(self._ring.capacity_rows)
        sums: list[Masses] = [arrays[f"sums:{level}"] for level in range(len(lengths))]
        self._tree = MassTree(self.masses, sums, lengths)

    @property
    def total(self) -> float:
        """The sum of all masses."""
        return self._tree.total

    # Drawing.

    def without(self, positions: Indices) -> Without:
        """The masses as they are now, without the rows in these positions; see `draw`. The shared
        sums stay as they are."""
        return self._tree.without(positions)

    def draw(
        self, count: int, rng: np.random.Generator, batches: int = 1, without: Without | None = None
    ) -> tuple[Indices, Masses]:
        """Draw about `count` rows for each batch, stratified; their indices, and the probability of
        each in one draw. Fewer, if rows changed meanwhile.

        One row in each of `count` equal shares of the total mass (Schaul et al., Prioritized
        Experience Replay, 2016, appendix B.2.1).

        Args:
            batches: that are drawn by the same masses, one after the other. Each is stratified by
                itself.
            without: leaves rows out; the probabilities are those among the others.
        """
        top = self._tree.top if without is None else without.top
        starts = np.empty(len(top) + 1)
        starts[0] = 0.0
        top.cumsum(out=starts[1:])
        total = float(starts[-1])
        if not total > 0 or not count:
            return np.empty(0, np.int64), np.empty(0)
        # Share by share, the same one of all batches side by side: so searches and look-ups go one
        # way through memory.
        targets = rng.random(count * batches)
        shares = np.arange(count * batches)
        targets += shares if batches == 1 else shares // batches
        targets *= total / count
        at = self._tree.find(targets, starts, without)
        in_no_order = rng.permutation(count)  # since some may be dropped
        at = at.reshape(count, batches).take(in_no_order, axis=0).T.ravel()
        # The name before the mass: if another row takes the place between the two looks, the one
        # that is named is gone, which the reader notices after the copy. The other way round it
        # would get the probability of its predecessor.
        indices, is_there = self._names(at)
        masses = self.masses.take(at).astype(np.float64)
        is_there &= masses > 0
        if without is not None:
            is_there &= ~np.isin(at, without.positions)  # the last child of a group, by rounding
        masses /= total
        if np.count_nonzero(is_there) < len(is_there):
            return indices[is_there], masses[is_there]
        return indices, masses

    def probabilities(self, indices: Indices) -> Masses:
        """The probability of each of these rows in one draw, (n,) float64."""
        positions = self._ring.positions(indices)
        return self.masses.take(positions, mode="clip").astype(np.float64) / self.total

    def _names(self, positions: Indices) -> tuple[Indices, Mask]:
        """The indices of the rows in these positions, and whether there are rows."""
        ring = self._ring
        ends = ring.ends.take(positions // ring.block_rows, mode="clip")
        order()  # this look before the copy that relies on it
        indices = ends - 1
        indices //= ring.capacity_rows  # how often the ring had gone round
        indices *= ring.capacity_rows
        indices += positions
        is_there = indices < ends
        is_there &= ends > 0
        return indices, is_there

    # Changing, in the owner's process.

    def update(self, indices: Indices, priorities: Masses) -> Mask:
        """Give rows new priorities, as far as they are still there; which they are, (n,) bool."""
        masses = self._masses_of(priorities)
        positions = self._ring.positions(indices)
        with self._lock:
            is_there = self._ring.committed(indices)
            # A block that was left for another lap is out of every reader's range, though its rows
            # are whole.
            first = self._ring.index_range()[0]
            if np.minimum.reduce(indices, initial=first) < first:
                is_there &= indices >= first
            if np.count_nonzero(is_there) < len(is_there):
                positions = positions[is_there]
                masses = masses[is_there]
            if len(masses):
                self._keep_finals_without(positions, masses)
                self.masses[positions] = masses
                self._raise_largest(masses)
                self._tree.recompute(positions // GROUP)
        return is_there

    def _keep_finals_without(self, positions: Indices, masses: Masses) -> None:
        """Set new masses of final observations to 0: no item is drawn by them."""
        if not self._ring.spec.is_steps:
            return
        has_mass = self.masses.take(positions) > 0  # then it is a step
        if np.count_nonzero(has_mass) < len(has_mass):
            is_final = self._ring.columns[NEXT_OFFSET].take(positions, mode="clip") < 0
            masses[~has_mass & is_final] = 0

    def _raise_largest(self, masses: NDArray[Any]) -> None:
        self._largest[0] = max(self._largest[0], float(np.maximum.reduce(masses)))

    def written(self, at: int, count: int, priorities: Masses | None = None) -> None:
        """Give masses to the rows that were written to positions `at` to `at + count`.

        Args:
            priorities: (count,), NaN where none was given: such a row gets the largest mass so far.
        """
        with self._lock:
            part = np.full(count, self._largest[0], np.float32)
            if priorities is not None:
                is_given = ~np.isnan(priorities)
                if np.count_nonzero(is_given):
                    part[is_given] = self._masses_of(priorities[is_given])
            self._clear_finals(at, part)
            if priorities is not None:
                self._raise_largest(part)
            # In one go: a reader never sees a mass that is not the row's.
            self.masses[at : at + count] = part
            self._tree.recompute_range(at, at + count)

    def cleared(self, at: int, count: int) -> None:
        """Take the masses of the rows in positions `at` to `at + count`, which are gone."""
        with self._lock:
            self.masses[at : at + count] = 0
            self._tree.recompute_range(at, at + count)

    def begin(self, other: Priorities | None = None) -> None:
        """Take in the rows that exist already, with the priorities that `other` has of them, or all
        with the same.

        Priorities of another exponent are exact to seven digits, as far as their masses fit into a
        float32.
        """
        ratio = 1.0
        if other is not None:
            ratio = self.exponent / other.exponent
            self._largest[0] = other.largest**ratio
        serials, rows = self._ring.occupied()
        for serial, count in zip(serials.tolist(), rows.tolist(), strict=True):
            at = serial % self._ring.blocks * self._ring.block_rows
            if other is None:
                self.written(at, count)
                continue
            with self._lock:
                theirs = other.masses[at : at + count].astype(np.float64)
                part = _within_float32(_powers(theirs, ratio)).astype(np.float32)
                self._clear_finals(at, part)
                self.masses[at : at + count] = part
                self._tree.recompute_range(at, at + count)

    @property
    def largest(self) -> float:
        """The largest mass that a row was given. Rows that come without a priority get it."""
        return float(self._largest[0])

    def restore(self, largest: float, parts: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
        """Give rows the masses that they had; all other rows get none.

        Args:
            parts: `(at, masses)` of the rows from position `at` on.
        """
        with self._lock:
            self.masses.fill(0)
            for at, part in parts:
                self.masses[at : at + len(part)] = part
            self._largest[0] = largest
            self._tree.recompute_range(0, len(self.masses))

    def _masses_of(self, priorities: Masses) -> Masses:
        """The masses, in an array of their own, in float64: a float32 would lose the extremes on
        the way, and no exponent up to 1 overflows a float64."""
        return _within_float32(_powers(np.abs(priorities), self.exponent))

    def _clear_finals(self, at: int, masses: NDArray[np.float32]) -> None:
        """Set the masses of final observations to 0: no item is drawn by them.

        Args:
            masses: of the rows from position `at` on.
        """
        if self._ring.spec.is_steps:
            masses[self._ring.columns[NEXT_OFFSET][at : at + len(masses)] < 0] = 0

    def check(self) -> None:
        """Assert that all sums are those of what is below them."""
        with self._lock:
            self._tree.check()

    @property
    def is_used(self) -> bool:
        """Whether there ever was a selector that draws by these masses."""
        return self.exponents.were_taken

    @property
    def size_bytes(self) -> int:
        """The memory of all masses and sums."""
        return self._segment.size_bytes

    def close(self) -> None:
        """Give back the descriptor. The memory stays mapped for as long as a view of it lives."""
        self.is_closed = True
        self._segment.close()

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in ("exponent", "_ring", "_segment")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = forks.register_lock(threading.Lock())
        self._view()

    def __repr__(self) -> str:
        return f"<Priorities ** {self.exponent}, total {self.total:.6g}>"


def _within_float32(masses: Masses) -> Masses:
    """Masses within the range of a float32, so that none vanishes or becomes infinite; 0 stays
    0."""
    if len(masses) and not (
        np.minimum.reduce(masses) >= _SMALLEST and np.maximum.reduce(masses) <= _LARGEST
    ):
        masses = np.where(masses > 0, np.clip(masses, _SMALLEST, _LARGEST), masses)
    return masses


def _powers(values: Masses, exponent: float) -> Masses:
    """Raise numbers that are not negative to the exponent, in place.

    Zero stays zero, though numpy's power 0 of it is 1: a row of priority 0 is never to be drawn.
    Schaul et al. know no such row; in Reverb it has no probability either, whatever the exponent.
    """
    is_zero = values == 0 if exponent == 0 else None
    values **= exponent
    if is_zero is not None:
        values[is_zero] = 0
    return values
