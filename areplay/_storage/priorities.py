"""Priorities: a mass for each row, and sums of them, so that rows can be drawn in proportion to
their masses.

A row's mass is its priority raised to an exponent. Masses are summed in groups of 8, those sums
again, and so on, until at most 4,096 are left:

    top (<= 4,096 sums)  <-  ...  <-  sums of 8 rows  <-  masses, one a row

A draw is a cumulative sum over the top, and at each level below one over the groups that were hit.
A change recomputes the sums above it from the masses, so they never drift, however many changes
there were.

Shared arrays, all written by the owner's process alone, under `_lock`; read by everyone without a
lock:

    masses   float32, by position. 0: not to be drawn (no row, a final observation).
    sums     float64, a level each. A reader that sees old sums draws a little out of proportion,
             never a row without mass.
    largest  float64, one word: the largest mass that a row was given.
    exponents   float64: the importance sampling exponents of the streams that draw by these
                masses.

Rule: whoever changes a mass looks under the lock whether the row is still there; whoever recycles a
block first takes its rows out of the ring, then clears their masses under the lock. So no update
ever reaches a newcomer.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET
from areplay._shm.layout import Layout
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import AreplayError

logger = logging.getLogger(__name__)

GROUP = 8
_MOST_AT_TOP, _MOST_EXPONENTS = 4_096, 1_024
_AS_GIVEN = 1.0  # the exponent of masses that are the priorities themselves
_SMALLEST, _LARGEST = (
    float(np.finfo(np.float32).smallest_subnormal),
    float(np.finfo(np.float32).max),
)
Masses = NDArray[np.float64]
Patch = tuple[Indices, Masses]


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
        lengths = [-(-ring.capacity_rows // GROUP)]
        while lengths[-1] > _MOST_AT_TOP:
            lengths.append(-(-lengths[-1] // GROUP))
        self._lengths = lengths
        # Each level is padded to whole groups of the one above, so that it can be looked at as
        # groups.
        layout = Layout(
            "priorities",
            {
                "largest": ((1,), np.float64),
                "exponents": ((_MOST_EXPONENTS,), np.float64),
                "masses": ((lengths[0] * GROUP,), np.float32),
                **{
                    f"sums:{k}": ((-(-n // GROUP) * GROUP,), np.float64)
                    for k, n in enumerate(lengths)
                },
            },
        )
        self._segment = Segment(layout, f"priorities of {ring.capacity_rows:,} rows")
        self._lock = forks.register_lock(threading.Lock())
        self._view()
        self._largest[0] = 1.0
        self._free_exponents = list(range(_MOST_EXPONENTS - 1, -1, -1))
        self._is_used = False

    def _view(self) -> None:
        self.origin = forks.current
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
        """Take a place in `exponents` for a stream, and put `value` there.

        Raises:
            ValueError: there are as many streams as places.
        """
        self._is_used = True
        try:
            number = self._free_exponents.pop()
        except IndexError:
            raise ValueError(
                f"more than {_MOST_EXPONENTS:,} streams of batches draw by priority; close some"
            ) from None
        self.exponents[number] = value
        return number

    def free_exponent(self, number: int) -> None:
        """Give a place back. The garbage collector may call this anywhere, so it takes no lock."""
        self._free_exponents.append(number)

    @property
    def total(self) -> float:
        """The sum of all masses."""
        return float(self._top.sum())

    # Drawing.

    def without(self, positions: Indices) -> Without:
        """The masses as they are now, without the rows in these positions; see `draw`. Leaves the
        shared sums alone."""
        return Without(self._groups, self._top, positions)

    def draw(
        self, count: int, rng: np.random.Generator, batches: int = 1, without: Without | None = None
    ) -> tuple[Indices, Masses]:
        """About `count` rows, stratified, and the probability of each. Fewer, if rows changed
        meanwhile.

        One row in each of `count` equal shares of the total mass (Schaul et al., Prioritized
        Experience Replay, 2016, appendix B.2.1).

        Args:
            batches: so often, one after the other: all by the same masses, each batch stratified by
                itself.
            without: leaves rows out; the probabilities are those among the others.
        """
        top = self._top if without is None else without.top
        starts = np.empty(len(top) + 1)
        starts[0] = 0.0
        top.cumsum(out=starts[1:])
        total = float(starts[-1])
        if not total > 0 or not count:
            return np.empty(0, np.int64), np.empty(0)
        # Share by share, the same one of all batches side by side: so searches and look-ups go one
        # way through memory.
        rests = rng.random(count * batches)
        shares = np.arange(count * batches)
        rests += shares if batches == 1 else shares // batches
        rests *= total / count
        at = starts.searchsorted(rests, side="right")
        at -= 1
        np.minimum(at, len(top) - 1, out=at)
        rests -= starts.take(at)
        if without is None:
            for groups in reversed(self._groups):
                at, rests = _descend(groups, at, rests)
        else:
            for groups, patch in zip(
                reversed(self._groups), reversed(without.patches), strict=True
            ):
                at, rests = _descend(groups, at, rests, patch)
        in_no_order = rng.permutation(count)  # since some may be dropped
        at = at.reshape(count, batches).take(in_no_order, axis=0).T.ravel()
        # The name before the mass: if another row takes the place between the two looks, the one
        # that is named is gone, which is noticed when it was copied. The other way round it would
        # get the probability of its predecessor.
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
        """The probability of each of these rows in one draw."""
        return (
            self.masses.take(self._ring.positions(indices), mode="clip").astype(np.float64)
            / self.total
        )

    def _names(self, positions: Indices) -> tuple[Indices, Mask]:
        """The indices of the rows that are in these positions, and whether there are any."""
        ring = self._ring
        ends = ring.ends.take(positions // ring.block_rows, mode="clip")
        order()  # this look before whatever is copied on the strength of it
        indices = ends - 1
        indices //= ring.capacity_rows  # how often the ring had gone round
        indices *= ring.capacity_rows
        indices += positions
        is_there = indices < ends
        is_there &= ends > 0
        return indices, is_there

    # Changing, in the owner's process.

    def update(self, indices: Indices, priorities: Masses) -> Mask:
        """Give rows new priorities; which of them are there still, those that are not are left
        out."""
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
                positions, masses = positions[is_there], masses[is_there]
            if len(masses):
                if self._ring.spec.is_steps:
                    # What has no mass gets none: a final observation is no item's row.
                    has_mass = self.masses.take(positions) > 0
                    if np.count_nonzero(has_mass) < len(has_mass):
                        is_final = self._ring.columns[NEXT_OFFSET].take(positions, mode="clip") < 0
                        masses[~has_mass & is_final] = 0
                self.masses[positions] = masses
                self._largest[0] = max(self._largest[0], float(np.maximum.reduce(masses)))
                self._recompute(positions // GROUP)
        return is_there

    def written(self, at: int, count: int, priorities: Masses | None = None) -> None:
        """Rows were written to positions `at` to `at + count`: they get the priorities given, or
        the largest so far.

        Args:
            priorities: of each; NaN where there is none given.
        """
        with self._lock:
            part = np.full(count, self._largest[0], np.float32)
            if priorities is not None:
                is_given = ~np.isnan(priorities)
                if np.count_nonzero(is_given):
                    part[is_given] = self._masses_of(priorities[is_given])
            self._clear_finals(at, part)
            if priorities is not None:
                self._largest[0] = max(self._largest[0], float(np.maximum.reduce(part)))
            # in one go: a reader never sees a mass that is not the row's
            self.masses[at : at + count] = part
            self._recompute_range(at, at + count)

    def cleared(self, at: int, count: int) -> None:
        """The rows in positions `at` to `at + count` are not there any more."""
        with self._lock:
            self.masses[at : at + count] = 0
            self._recompute_range(at, at + count)

    def begin(self, other: Priorities | None = None) -> None:
        """Take in the rows that are there already: with the priorities that `other` has of them, or
        all with the same.

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
                self._recompute_range(at, at + count)

    @property
    def largest(self) -> float:
        """The largest mass that a row was given, which rows get that come without a priority."""
        return float(self._largest[0])

    def restore(self, largest: float, parts: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
        """Give rows the masses that they had: `(at, masses)` from position `at` on. Others get
        none."""
        with self._lock:
            self.masses.fill(0)
            for at, part in parts:
                self.masses[at : at + len(part)] = part
            self._largest[0] = largest
            self._recompute_range(0, len(self.masses))

    def _masses_of(self, priorities: Masses) -> Masses:
        """In an array of its own: no exponent above 1 overflows a double, but a float32 would lose
        the extremes."""
        return _within_float32(_powers(np.abs(priorities), self.exponent))

    def _clear_finals(self, at: int, masses: NDArray[np.float32]) -> None:
        """Final observations have no mass: no item is drawn by them. Masses of the rows from
        position `at` on."""
        if self._ring.spec.is_steps:
            masses[self._ring.columns[NEXT_OFFSET][at : at + len(masses)] < 0] = 0

    def _recompute(self, groups: Indices) -> None:
        for below, sums in zip(self._groups, self._sums, strict=True):
            sums[groups] = _sums_of(below.take(groups, axis=0))
            groups = groups // GROUP

    def _recompute_range(self, start: int, stop: int) -> None:
        for below, sums in zip(self._groups, self._sums, strict=True):
            start, stop = start // GROUP, -(-stop // GROUP)
            sums[start:stop] = _sums_of(below[start:stop])

    def check(self) -> None:
        """Assert that all sums are those of what is below them."""
        with self._lock:
            for below, sums in zip(self._groups, self._sums, strict=True):
                assert np.array_equal(sums[: len(below)], _sums_of(below)), self

    @property
    def is_used(self) -> bool:
        """Whether there ever was a selector that draws by these masses."""
        return bool(self._is_used)

    @property
    def size_bytes(self) -> int:
        """Of all masses and sums."""
        return self._segment.size_bytes

    def close(self) -> None:
        """Give back the descriptor. The memory stays mapped for as long as a view of it lives."""
        self.is_closed = True
        self._segment.close()

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in ("exponent", "_ring", "_lengths", "_segment")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = forks.register_lock(threading.Lock())
        self._view()

    def __repr__(self) -> str:
        return f"<Priorities ** {self.exponent}, total {self.total:.6g}>"


class PriorityTables(RowListener):
    """The priorities of a replay's rows: one table of masses for each exponent that a selector
    draws by.

    Rows may come with priorities before the first selector does: then those are kept in a table of
    exponent 1, from the first one given on, until a selector says which exponent it wants. Its
    table begins with what that one has.

    Rule: a row is told to all tables under `_lock`, and a table begins under it: no row is missed
    in between.

    Args:
        tables: by exponent; what a checkpoint had. Written by the owner's process, under `_lock`.
    """

    def __init__(
        self, ring: Ring, ring_guard: WriterRegistry, tables: dict[float, Priorities]
    ) -> None:
        self._ring, self._ring_guard, self._tables = ring, ring_guard, tables
        self._lock = forks.register_lock(threading.Lock())
        if tables:
            ring_guard.add_listener(self)
        else:
            ring_guard.on_priorities = self._begin_given

    def of_exponent(self, exponent: float) -> Priorities:
        """The table for that exponent, for a selector; its own from now on.

        Raises:
            MemoryLimitExceeded, ResourceUnavailable: there is no memory for it. Nothing changed.
        """
        with self._lock:
            if exponent not in self._tables:
                self._begin(Priorities(self._ring, exponent))
                given = self._tables.get(_AS_GIVEN)
                # Each table costs an update its time, and of exponent 0 no other can be made.
                if given is not None and exponent not in (_AS_GIVEN, 0) and not given.is_used:
                    del self._tables[_AS_GIVEN]
                    given.close()
            return self._tables[exponent]

    def written(self, at: int, count: int, priorities: Masses | None = None) -> None:
        """See `RowListener.written`."""
        with self._lock:
            for table in self._tables.values():
                table.written(at, count, priorities)

    def cleared(self, at: int, count: int) -> None:
        """See `RowListener.cleared`."""
        with self._lock:
            for table in self._tables.values():
                table.cleared(at, count)

    def update(self, indices: Indices, priorities: Masses) -> Mask:
        """As `Priorities.update`, in all tables; there is one at least."""
        first, *others = list(self._tables.values())
        is_there = first.update(indices, priorities)
        for table in others:
            is_there &= table.update(indices, priorities)
        return is_there

    def close(self) -> None:
        """Give back the descriptors."""
        for table in self._tables.values():
            table.close()

    def _begin(self, table: Priorities) -> None:
        """Take it in, with what another one has of the rows that are there. Under the lock."""
        others = [other for other in self._tables.values() if other.exponent > 0]
        # first of all: a row is there when we look, or its writer tells us and waits for the lock
        if not self._tables:
            self._ring_guard.add_listener(self)
            self._ring_guard.on_priorities = None
        table.begin(max(others, key=lambda other: other.exponent, default=None))
        self._tables[table.exponent] = table

    def _begin_given(self, priorities: Array) -> None:
        """Keep priorities from the first one on, for a selector that comes later. In the thread of
        the writer."""
        if np.logical_and.reduce(np.isnan(priorities)):
            return
        with self._lock:
            if self._tables:
                return
            try:
                given = Priorities(self._ring, _AS_GIVEN)
            except AreplayError as error:  # no reason for rows to be lost
                self._ring_guard.on_priorities = None
                logger.warning(
                    "priorities that rows come with are not kept before a selector asks "
                    "for them: %s",
                    error,
                )
                return
            self._begin(given)


class Without:
    """The masses without those of some rows, at one moment: sums of their own for the groups that
    hold such a row.

    A difference of sums would not do: beside a mass of 1 that is taken away, masses of 1e-17 are
    lost in rounding.

    Attributes:
        positions: of the rows that are left out, ascending, each once.
        patches: for each level, from the masses up: which groups, ascending, and their children.
        top, total: as of `Priorities`.
    """

    def __init__(self, levels: list[NDArray[Any]], top: Masses, positions: Indices) -> None:
        self.positions = changed = np.unique(positions)
        self.patches: list[Patch] = []
        values: NDArray[Any] = np.zeros(len(changed))
        for groups in levels:
            which, nth = np.unique(changed // GROUP, return_inverse=True)
            children = groups.take(which, axis=0).astype(np.float64)
            children[nth, changed % GROUP] = values
            self.patches.append((which, children))
            changed, values = which, _sums_of(children)
        self.top = top.copy()
        self.top[changed] = values
        self.total = float(self.top.sum())


def _descend(
    groups: NDArray[Any], at: Indices, rests: Masses, patch: Patch | None = None
) -> tuple[Indices, Masses]:
    """From sums to their children: the child of `groups[at]` in which the rest of each target lies,
    and the rest there.

    Children side by side, so that a cumulative sum over all groups at once is a handful of
    additions of long arrays: a fifth of the time that `cumsum` takes, which adds one number after
    the other. Rests that are too large, since masses changed meanwhile, lead to the last child.

    Args:
        patch: groups that have other children, see `Without`.
    """
    count = len(at)
    children = groups.take(at, axis=0)
    if patch is not None and len(patch[0]):
        children = children.astype(np.float64)  # a sum of masses has more digits than a mass
        nth = np.minimum(patch[0].searchsorted(at), len(patch[0]) - 1)
        is_patched = patch[0][nth] == at
        children[is_patched] = patch[1][nth[is_patched]]
    starts = np.empty((GROUP, count))  # of each child, from the beginning of its group
    each = list(starts)
    each[0].fill(0.0)
    starts[1:] = children.T[:-1]
    for before, here in itertools.pairwise(each):
        np.add(before, here, here)
    is_behind = starts[1:] <= rests
    child = np.add.reduce(is_behind.view(np.int8), axis=0, dtype=np.int8).astype(np.int64)
    at = at * GROUP
    at += child
    child *= count
    child += np.arange(count)
    return at, rests - starts.reshape(-1).take(child)


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


def _within_float32(masses: Masses) -> Masses:
    """Those that are not 0, as far as a float32 reaches: so they neither vanish nor become
    infinite."""
    if len(masses) and not (
        np.minimum.reduce(masses) >= _SMALLEST and np.maximum.reduce(masses) <= _LARGEST
    ):
        masses = np.where(masses > 0, np.clip(masses, _SMALLEST, _LARGEST), masses)
    return masses


def _sums_of(groups: NDArray[Any]) -> Masses:
    """The sum of each row of (n, GROUP), child by child: the same whatever n is, and faster than
    along the rows."""
    sums: Masses = np.add.reduce(groups.T.astype(np.float64, order="C"), axis=0)
    return sums
