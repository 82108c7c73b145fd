"""The reader: fills one batch with whole items, without a lock and without waiting for a writer.

    draw rows -> find their windows -> copy -> check that the rows are still the same -> draw anew
    for the few that are not

After a few rounds in which the writer was faster, the items that are left are copied one by one
under their blocks' shared locks, which no writer takes away: then only a writer that goes round the
ring between a draw and its locks is faster, and it does not wait either, it leaves those blocks for
later. A reader that dies holding a lock leaves nothing: the kernel frees it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Indices
from areplay._base.failpoints import failpoint
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import PlannedSelector
from areplay._shm.range_locks import BlockLocks
from areplay._storage.ring import Ring
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Windows
from areplay.items.item import BatchFields, Item
from areplay.items.transform import Transform
from areplay.selectors.prioritized import BUILT_IN, Prioritized, PrioritizedRest
from areplay.selectors.selector import Selector, checked_draw, weigh
from areplay.selectors.uniform import Uniform

ROUNDS_WITHOUT_LOCK = 8


_DRAWN_AHEAD, _STOCK_S = 2_048, 0.1  # items, and how long they are used while others would be drawn


_MOST_DRAWN = 1 << 16  # rows at once, in search of the few by which an item can be drawn


# of rows that make items, for which so many more are drawn where others can be left out
_LEAST_SHARE = 1 / 64


# for which a search with a limit may draw as for so many: a few unlucky draws are no reason to give
# up
_FEW_ITEMS = 16


# draws in a row of a user's selector without an item: `sample` blocks its caller's loop
_ROUNDS_OF_THE_USERS = 100


# so often each row is drawn on average before there is said to be none: e^-16 of missing one
_DRAWS_A_ROW = 16


class Reader:
    """Draws items and copies them out of a ring, for one process.

    Args:
        most_at_once: so many batches, if they are small, may be drawn at once, by the priorities of
            that moment.
        most_drawn: so many rows may be drawn for each item before the search is given up; by
            default as many as it takes to be sure that there is none.
        gives_up: looked at between two draws of a search without success; True ends it.

    Attributes:
        fields: of the batches that it fills.
        rows_redrawn: items that were copied in vain, since a block of theirs was recycled
            meanwhile.
    """

    def __init__(
        self,
        ring: Ring,
        locks: BlockLocks,
        item: Item,
        selector: Selector | PlannedSelector,
        rng: np.random.Generator,
        transform: Transform | None = None,
        *,
        most_at_once: int = 1,
        most_drawn: int | None = None,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ring, self._locks, self._item, self._selector, self._rng = (
            ring,
            locks,
            item,
            selector,
            rng,
        )
        self._drawing = None if isinstance(selector, PlannedSelector) else selector
        self._finder = WindowFinder(ring, item.window)
        self._item_fields = self.fields = BatchFields(item.fields(ring.spec))
        self._transform = transform
        # what the item writes and the batch has not, but the transform reads
        self._scratch: dict[str, Array] = {}
        if transform is not None:
            self.fields, self._scratch_fields = transform.split(self._item_fields)
        self._valid_share = 1.0  # of the rows drawn lately, those by which an item could be drawn
        self._stock: Windows | None = None  # drawn ahead, of which `_stock_used` are used
        self._stock_used, self._stock_rows, self._stock_drawn_s = 0, 0, 0.0
        self._most_at_once, self._most_drawn, self._gives_up = most_at_once, most_drawn, gives_up
        # A selector of the user's may draw rows that are not there, a few at a time, or slowly.
        self._is_ours = isinstance(selector, PlannedSelector) or type(selector) in BUILT_IN
        self._most_rounds = math.inf if self._is_ours else _ROUNDS_OF_THE_USERS
        self._draw_batches = getattr(selector, "draw_batches", None)
        self._prioritized = selector if type(selector) is Prioritized else None
        # what the batch was drawn from, where rows were left out; else None
        self._rest: PrioritizedRest | None = None
        self.rows_redrawn = 0

    def fill(self, out: BatchArrays, rows: Indices | None = None) -> bool:
        """Fill `out` with items, each whole and committed; `False`, with `out` undefined, if there
        is none.

        Args:
            rows: to make the items of, instead of drawing some; their blocks are kept.

        Raises:
            TypeError, ValueError: a selector of the user's returned what names no rows. Nothing is
                locked any more.
        """
        windows = self._next(len(out.indices)) if rows is None else self._finder.find(rows)
        if windows is None:
            return False
        if rows is not None:
            assert len(windows) == len(rows), "a row that was to be delivered is gone"
        failpoint("sampler.draw")
        target = self._target(out)
        self._item.assemble(windows, target)
        failpoint("sampler.gather")
        out.indices[:] = windows.indices
        out.probabilities[:] = windows.probabilities
        torn = windows.changed()
        if len(torn):
            assert rows is None, "a row that was to be delivered was overwritten"
            if not self._mend(out, target, torn):
                return False
        weigh(
            out.probabilities,
            getattr(self._selector, "importance_sampling_exponent", 0.0),
            out.importance_weights,
        )
        if self._transform is not None:
            written = {name: out.stored[name] for name in self._transform.fields}
            self._transform.function(self._item_fields.of(target), written, self._rng)
        return True

    def _target(self, out: BatchArrays) -> Mapping[str, Array]:
        """Where the item's fields go: into the batch, but what a transform replaces."""
        if self._transform is None:
            return out.stored
        count = len(out.indices)
        for name, field in self._scratch_fields.items():
            if len(self._scratch.get(name, ())) != count:
                self._scratch[name] = np.empty((count, *field.shape), field.dtype)
        places = {**out.stored, **self._scratch}
        return {name: places[name] for name in self._item_fields.stored}

    def _next(self, count: int) -> Windows | None:
        """As `_draw`, from items of which a few batches are drawn at once, up to `most_at_once`.

        What a draw costs does not depend much on how many are drawn. They are as good as those in
        the queue, which are older; but not so after a pause in which rows came in, or priorities
        may have changed.
        """
        batches = min(self._most_at_once, _DRAWN_AHEAD // count)
        if batches < 2:
            return self._draw(count)
        if self._stock is None or self._stock_used + count > len(self._stock) or self._is_stale():
            self._stock_rows, self._stock_drawn_s = self._ring.rows_inserted[0], time.monotonic()
            self._stock = self._draw(count * batches, batches)
            if self._stock is None:
                return None
            self._stock_used = 0
        start = self._stock_used
        self._stock_used += count
        return self._stock.part(start, start + count)

    def _is_stale(self) -> bool:
        """Whether what was drawn ahead is old, and a new draw would be another."""
        if time.monotonic() - self._stock_drawn_s <= _STOCK_S:
            return False
        return (
            type(self._selector) is not Uniform or self._ring.rows_inserted[0] != self._stock_rows
        )

    def _draw(self, count: int, batches: int = 1) -> Windows | None:
        """`count` items, of so many batches; `None` if there seem to be none."""
        self._rest = None
        windows, self._rest = self._search(count, batches, is_final=False)
        return windows

    def _draw_again(self, count: int) -> Windows | None:
        """`count` items in place of others that `_draw` found, with probabilities in proportion to
        theirs."""
        return self._search(count, 1, is_final=True)[0]

    def _search(
        self, count: int, batches: int, *, is_final: bool
    ) -> tuple[Windows | None, PrioritizedRest | None]:
        """`count` items, or `None` if there seem to be none; and what they were drawn from, if rows
        were left out.

        Rows are drawn, and those by which no item can be drawn are dropped: each that can be is as
        likely as the next. So are rows that a selector of the user's draws though they are not
        there. Those that have a good part of all priorities, as a row of huge priority whose
        successor is still to come, are left out of the next draw; so it ends, of `Prioritized`,
        when no row is left.
        """
        parts: list[Windows] = []
        missing, drawn, rest = count, 0, self._rest
        rounds = 0  # draws since the last item was found; `drawn` rows
        left = math.inf if self._most_drawn is None else self._most_drawn * max(count, _FEW_ITEMS)
        rounds_without = 0  # in which rows were left out
        while left > 0:
            ask = self._ask(missing, left, rounds_without)
            left -= ask
            if rest is not None:
                indices, probabilities = rest.draw(self._ring, ask, self._rng)
            else:
                indices, probabilities = self._draw_rows(ask, batches)
                batches = 1  # the few that may be missing after that are anybody's
            if len(indices) == 0:
                return None, rest
            asked = len(indices)
            if not self._is_ours:
                is_there = self._ring.committed(indices)
                indices, probabilities = indices[is_there], np.asarray(probabilities)[is_there]
            drawn, rounds = drawn + asked, rounds + 1
            found = self._finder.find(indices, probabilities)
            if len(found):
                parts.append(found.part(0, missing))
                drawn = rounds = 0
            elif (
                (self._prioritized is None and drawn > _DRAWS_A_ROW * len(self._ring) + count)
                or rounds >= self._most_rounds
                or self._gives_up()
            ):
                return None, rest
            if self._prioritized is not None and self._prioritized.is_burdened(
                self._ring, indices, found.indices
            ):
                rounds_without += 1
                rest = self._leave_out(np.setdiff1d(indices, found.indices), rest, is_final)
                parts = parts if is_final else _converted(parts, rest)
            elif rest is None:
                self._note_share(len(found) / asked)
            missing = count - sum(map(len, parts))
            if missing == 0:
                return Windows.joined(parts), rest
        return None, rest

    def _draw_rows(self, count: int, batches: int) -> tuple[Indices, NDArray[np.float64] | float]:
        """Rows of all that there are."""
        assert self._drawing is not None
        if batches > 1 and self._draw_batches is not None:
            drawn: tuple[Indices, NDArray[np.float64] | float]
            drawn = self._draw_batches(self._ring, batches, -(-count // batches), self._rng)
        else:
            drawn = self._drawing.draw(self._ring, count, self._rng)
        return drawn if self._is_ours else checked_draw(self._drawing, drawn)

    def _ask(self, missing: int, left: float, rounds_without: int) -> int:
        """How many rows to draw."""
        share = self._valid_share
        if self._prioritized is not None:  # then what is rare is found by leaving out the others
            share = max(share, _LEAST_SHARE)
            left = max(min(missing, left), left // 2)  # and after that there must be something left
        if share == 1 and not rounds_without:
            return int(min(missing, left))
        return int(
            min(
                _MOST_DRAWN,
                math.ceil(1.1 * missing / share * (1 << min(rounds_without, 16))) + 2,
                left,
            )
        )

    def _note_share(self, share: float) -> None:
        """So many of the rows that were drawn made an item."""
        if share != self._valid_share:
            self._valid_share = max(0.9 * self._valid_share + 0.1 * share, 0.5 * share, 1e-4)

    def _leave_out(
        self, rows: Indices, rest: PrioritizedRest | None, is_final: bool
    ) -> PrioritizedRest:
        """What is left to draw from without these rows, too."""
        if rest is None:
            assert self._prioritized is not None
            rest = self._prioritized.without(self._ring, rows[:0])
        return rest.without(self._ring, rows, is_final=is_final)

    def _mend(self, out: BatchArrays, target: Mapping[str, Array], torn: NDArray[np.intp]) -> bool:
        """Replace the items at `torn` by newly drawn ones."""
        for _ in range(ROUNDS_WITHOUT_LOCK):
            self.rows_redrawn += len(torn)
            windows = self._draw_again(len(torn))
            if windows is None:
                return False
            self._copy(windows, out, target, torn)
            torn = torn[windows.changed()]
            if len(torn) == 0:
                return True
        return all(self._copy_locked(out, target, at) for at in torn)

    def _copy_locked(self, out: BatchArrays, target: Mapping[str, Array], at: int) -> bool:
        """Replace one item, under the shared locks of its blocks."""
        while not self._gives_up():
            windows = self._draw_again(1)
            if windows is None:
                return False
            held = []
            try:
                for block in windows.blocks():
                    if not self._locks.try_shared(block):
                        break  # its writer is at work; most others are free
                    held.append(block)
                else:
                    failpoint("sampler.lock")
                    if len(windows.changed()) == 0:
                        self._copy(windows, out, target, np.array([at]))
                        return True
            finally:
                for block in held:
                    self._locks.release(block)
        return False

    def _copy(
        self, windows: Windows, out: BatchArrays, target: Mapping[str, Array], to: NDArray[np.intp]
    ) -> None:
        fresh = self._item_fields.empty(len(windows))
        self._item.assemble(windows, fresh)
        for name, array in target.items():
            array[to] = fresh[name]
        out.indices[to] = windows.indices
        out.probabilities[to] = windows.probabilities


def _converted(parts: list[Windows], rest: PrioritizedRest) -> list[Windows]:
    """Items that were found before more rows were left out, with the probabilities that they have
    now; [] if unknown.

    What a selector cannot tell is drawn again.
    """
    for part in parts:
        probabilities = rest.converted(part.probabilities)
        if probabilities is None:
            return []
        part.probabilities = probabilities
    return parts
