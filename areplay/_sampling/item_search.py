"""The search for items: draws rows by a selector until enough of them make an item.

    ask for rows -> draw -> find their windows -> enough? give up? -> ask for more

Rows by which no item can be made are dropped, so each item that can be made is as likely as the
next. `areplay._sampling.reader` copies what is found here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Indices
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.prioritized_selector import PrioritizedRest, PrioritizedSelector
from areplay._storage.ring import Ring
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Windows

# The most rows of one draw.
_MOST_DRAWN = 1 << 16
# Where few rows make items: a draw asks for at most 64 times as many rows as items are missing, if
# the search can leave out the rows that make no items.
_LEAST_SHARE = 1 / 64
# A search with a limit may draw as many rows as for 16 items, however few it wants: some unlucky
# draws are no reason to give up.
_FEW_ITEMS = 16
# The search gives up after 100 draws in a row of a user's selector without an item: `sample` blocks
# its caller's loop, and such a selector may draw a few rows at a time, or slowly.
_ROUNDS_OF_THE_USERS = 100
# The search gives up after each row was drawn 16 times on average without an item: the probability
# of missing an item is e^-16.
_DRAWS_A_ROW = 16
_LEAST_VALID_SHARE = 1e-4
_MARGIN = 1.1
_MOST_DOUBLINGS = 16


def _never() -> bool:
    return False


@dataclass(frozen=True)
class SearchLimits:
    """When a search ends without success.

    Args:
        most_drawn: rows that it may draw for each item. None: as many as it takes to be sure that
            there is no item.
        gives_up: called between two draws without success; True ends the search.
    """

    most_drawn: int | None = None
    gives_up: Callable[[], bool] = _never


class _Drawn(NamedTuple):
    """Rows that were drawn.

    Attributes:
        indices: (n,) int64.
        probabilities: (n,) float64, or one for all.
        rows_drawn: by the selector; more than n if some of them do not exist.
    """

    indices: Indices
    probabilities: NDArray[np.float64] | float
    rows_drawn: int


@dataclass
class _Attempt:
    """One search, as far as it has come.

    Attributes:
        wanted: items.
        rows_left: rows that may still be drawn.
        parts: the items that were found.
        exclusions: draws after which rows were left out.
        fruitless_rows, fruitless_draws: since the last item was found.
    """

    wanted: int
    rows_left: float
    parts: list[Windows] = field(default_factory=list)
    exclusions: int = 0
    fruitless_rows: int = 0
    fruitless_draws: int = 0

    @property
    def missing(self) -> int:
        """Items that are still to be found."""
        return self.wanted - sum(map(len, self.parts))

    def take(self, found: Windows, rows_drawn: int) -> None:
        """Note the items of one draw; those beyond what is missing are dropped."""
        if len(found):
            self.parts.append(found.part(0, self.missing))
            self.fruitless_rows = 0
            self.fruitless_draws = 0
        else:
            self.fruitless_rows += rows_drawn
            self.fruitless_draws += 1


class ItemSearch:
    """Draws items of a ring for one process.

    Args:
        finder: finds the windows of the item.
        limits: when a search ends without success.
    """

    def __init__(
        self,
        ring: Ring,
        finder: WindowFinder,
        selector: BoundSelector,
        rng: np.random.Generator,
        limits: SearchLimits,
    ) -> None:
        self._ring = ring
        self._finder = finder
        self._rng = rng
        self._limits = limits
        self._selector = selector
        self._prioritized = selector if isinstance(selector, PrioritizedSelector) else None
        # The share of the rows drawn lately that made an item.
        self._valid_share = 1.0
        # What the last batch was drawn from, if rows were left out.
        self._rest: PrioritizedRest | None = None

    def find(self, count: int, batches: int = 1) -> Windows | None:
        """Draw `count` items, for `batches` batches; None if there seem to be none."""
        self._rest = None
        windows, self._rest = self._search(count, batches, None, is_final=False)
        return windows

    def find_again(self, count: int) -> Windows | None:
        """Draw `count` items in place of some that `find` found, with probabilities in proportion
        to theirs; None if there seem to be none."""
        return self._search(count, 1, self._rest, is_final=True)[0]

    def _search(
        self, count: int, batches: int, rest: PrioritizedRest | None, *, is_final: bool
    ) -> tuple[Windows | None, PrioritizedRest | None]:
        """Draw until there are `count` items; None instead of them if the search is given up.

        Rows that make no item may hold a good part of all priorities, such as a row of huge
        priority whose successor is still to come. `Prioritized` leaves them out of the next draw,
        so the search ends when no row is left.

        Args:
            rest: what to draw from, if rows were left out before.
            is_final: probabilities stay those of `rest`, whatever is left out.

        Returns:
            the items, and what they were drawn from, if rows were left out.
        """
        attempt = _Attempt(count, self._most_rows(count))
        while attempt.rows_left > 0:
            ask = self._rows_to_ask(attempt)
            attempt.rows_left -= ask
            drawn = self._draw(ask, batches, rest)
            batches = 1  # the few items that may be missing now belong to any of the batches
            if drawn.rows_drawn == 0:
                return None, rest
            found = self._finder.find(drawn.indices, drawn.probabilities)
            attempt.take(found, drawn.rows_drawn)
            if len(found) == 0 and self._is_hopeless(attempt):
                return None, rest
            if self._is_burdened(drawn, found):
                attempt.exclusions += 1
                rest = self._leave_out(np.setdiff1d(drawn.indices, found.indices), rest, is_final)
                if not is_final:
                    attempt.parts = _converted(attempt.parts, rest)
            elif rest is None:
                self._note_share(len(found) / drawn.rows_drawn)
            if attempt.missing == 0:
                return Windows.joined(attempt.parts), rest
        return None, rest

    def _draw(self, count: int, batches: int, rest: PrioritizedRest | None) -> _Drawn:
        """Draw from all rows, or from the rest if some were left out."""
        if rest is not None:
            indices, probabilities = rest.draw(self._ring, count, self._rng)
            return _Drawn(indices, probabilities, len(indices))
        each = -(-count // batches)
        indices, chances = self._selector.draw_batches(self._ring, batches, each, self._rng)
        rows_drawn = len(indices)
        if self._selector.is_of_user:
            # These may be rows that do not exist.
            is_there = self._ring.committed(indices)
            indices = indices[is_there]
            chances = np.broadcast_to(chances, is_there.shape)[is_there]
        return _Drawn(indices, chances, rows_drawn)

    # How many rows to draw.

    def _most_rows(self, count: int) -> float:
        """Rows that a search for `count` items may draw."""
        if self._limits.most_drawn is None:
            return math.inf
        return self._limits.most_drawn * max(count, _FEW_ITEMS)

    def _rows_to_ask(self, attempt: _Attempt) -> int:
        """Rows to draw next, so that most likely enough of them make an item."""
        missing = attempt.missing
        left = attempt.rows_left
        share = self._valid_share
        if self._prioritized is not None:
            # Leaving out the others finds rare items faster than drawing more rows. Half of the
            # rows that may be drawn are left for after that.
            share = max(share, _LEAST_SHARE)
            left = max(min(missing, left), left // 2)
        if share == 1 and not attempt.exclusions:
            return int(min(missing, left))
        doublings = min(attempt.exclusions, _MOST_DOUBLINGS)
        likely_enough = math.ceil(_MARGIN * missing / share * (1 << doublings)) + 2
        return int(min(_MOST_DRAWN, likely_enough, left))

    def _note_share(self, share: float) -> None:
        """Note the share of the rows of one draw that made an item."""
        if share != self._valid_share:
            smoothed = 0.9 * self._valid_share + 0.1 * share
            self._valid_share = max(smoothed, 0.5 * share, _LEAST_VALID_SHARE)

    # When to give up.

    def _is_hopeless(self, attempt: _Attempt) -> bool:
        """Whether a search goes no further after a draw without an item."""
        if self._prioritized is None:
            # With priorities, rows are left out until there is none: then the draw is empty.
            enough = _DRAWS_A_ROW * len(self._ring) + attempt.wanted
            if attempt.fruitless_rows > enough:
                return True
        if self._selector.is_of_user and attempt.fruitless_draws >= _ROUNDS_OF_THE_USERS:
            return True
        return self._limits.gives_up()

    # What to leave out.

    def _is_burdened(self, drawn: _Drawn, found: Windows) -> bool:
        """Whether the next draw should go without the rows that made no item."""
        return self._prioritized is not None and self._prioritized.is_burdened(
            self._ring, drawn.indices, found.indices
        )

    def _leave_out(
        self, rows: Indices, rest: PrioritizedRest | None, is_final: bool
    ) -> PrioritizedRest:
        """What is left to draw from without these rows, too."""
        if rest is None:
            assert self._prioritized is not None
            rest = self._prioritized.without(self._ring, rows[:0])
        return rest.without(self._ring, rows, is_final=is_final)


def _converted(parts: list[Windows], rest: PrioritizedRest) -> list[Windows]:
    """Items that were found before more rows were left out, with the probabilities that they have
    now.

    [] if a selector cannot tell these: then all items are drawn again.
    """
    for part in parts:
        probabilities = rest.converted(part.probabilities)
        if probabilities is None:
            return []
        part.probabilities = probabilities
    return parts
