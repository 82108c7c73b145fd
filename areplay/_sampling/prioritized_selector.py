"""Draws in proportion to the priorities of a replay; see `Prioritized`.

The importance sampling exponent of a stream lies in shared memory beside the priorities, so its
samplers follow the learner's schedule. Only the learner's process writes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._base.validation import fraction
from areplay._sampling.bound_selector import MOST_AT_ONCE, BoundSelector
from areplay._storage.mass_tree import Masses
from areplay._storage.priorities import Priorities
from areplay._storage.ring import Ring
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.uniform import Uniform

_RARE = 64  # items are where one row in so many makes one
_SHARE_LOST = 8  # one part of all masses in so many is a good part
_UNIFORM_ROUNDS = 8  # in search of rows that are not left out


class PrioritizedSelector(BoundSelector):
    """Draws by the priorities of one replay.

    Args:
        priorities: those for the priority exponent of `given`.
    """

    changes_without_rows = True

    def __init__(self, given: Prioritized, priorities: Priorities) -> None:
        super().__init__(given)
        exponent = given.importance_sampling_exponent
        self._priority_exponent = given.priority_exponent
        self._uniform_share = given.uniform_sample_probability
        self._uniform = Uniform()
        self._priorities = priorities
        self._schedule = exponent if callable(exponent) else None
        first = exponent(0) if callable(exponent) else exponent
        self._place = priorities.exponents.take(fraction("importance_sampling_exponent", first))
        self._free_place: Callable[[], object]
        self._free_place = weakref.finalize(self, priorities.exponents.free, self._place)
        self._last_exponent: float | None = None

    @property
    def importance_sampling_exponent(self) -> float:
        """What the weights are raised to now; after `close`, what they were raised to last."""
        if self._last_exponent is not None:
            return self._last_exponent
        return self._priorities.exponents[self._place]

    def set_exponent(self, value: float) -> None:
        """See `BoundSelector.set_exponent`."""
        self._use(fraction("importance_sampling_exponent", value))

    def close(self) -> None:
        """See `BoundSelector.close`."""
        self._last_exponent = self.importance_sampling_exponent
        self._free_place()

    @property
    def obstacle(self) -> str:
        """See `BoundSelector.obstacle`."""
        if self._priorities.total > 0 or self._uniform_share:
            return ""
        return (
            "all rows have priority 0; give some a larger one with update_priorities, or add rows"
        )

    def on_delivered(self, batches: int) -> None:
        """See `BoundSelector.on_delivered`.

        Raises:
            ValueError: the schedule returned no number from 0 to 1.
        """
        if self._schedule is not None:
            name = f"importance_sampling_exponent, by its schedule after {batches} batches,"
            self._use(fraction(name, self._schedule(batches)))

    def batches_at_once(self, prefetch: int, samplers: int) -> int:
        """See `BoundSelector.batches_at_once`. Priorities change with every batch: drawing at once
        adds at most half of the queue to the age of a batch."""
        return max(1, min(MOST_AT_ONCE, prefetch // (2 * samplers)))

    def items_text(self, item: object) -> str:
        """See `BoundSelector.items_text`."""
        return text_of(item) if self._uniform_share else f"{text_of(item)} of a priority above 0"

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `BoundSelector.draw_batches`."""
        indices, probabilities = self._priorities.draw(count, rng, batches)
        share = self._uniform_share
        if not share:
            return indices, probabilities
        if len(indices) == 0 and not self._priorities.total > 0:
            return self._uniform.draw(ring, batches * count, rng)
        # Each row is one of the others with that probability, wherever in its batch it stands.
        chosen = np.flatnonzero(rng.random(len(indices)) < share)
        others, chance = self._uniform.draw(ring, len(chosen), rng)
        chosen = chosen[: len(others)]
        indices[chosen], probabilities[chosen] = others, self._priorities.probabilities(others)
        return indices, (1 - share) * probabilities + share * chance

    def without(self, ring: Ring, rows: Indices) -> PrioritizedRest:
        """What is drawn from if these rows, by which no item can be made, are left out."""
        return PrioritizedRest(ring, self._priorities, self._uniform_share, rows)

    def is_burdened(self, ring: Ring, drawn: Indices, made: Indices) -> bool:
        """Whether draws had better go without the rows that were `drawn` and by which no item was
        `made`.

        That is so if hardly any other was drawn, or if they have a good part of all masses: beside
        them the rows drawn uniformly would be more than their share.
        """
        lost = len(drawn) - len(made)
        if _RARE * len(made) < len(drawn):
            return True
        if not lost or (not self._uniform_share and _SHARE_LOST * lost < len(drawn)):
            return False
        rows = np.setdiff1d(drawn, made)
        return bool(self._priorities.probabilities(rows).sum() * _SHARE_LOST >= 1)

    def _use(self, exponent: float) -> None:
        if self._last_exponent is None:  # or the place may be another stream's
            self._priorities.exponents[self._place] = exponent

    def __getstate__(self) -> dict[str, object]:
        # The learner's process follows the schedule, which may not reach another process.
        of_learner = {"_schedule": None, "given": None, "_free_place": _nothing}
        return self.__dict__ | of_learner

    def __repr__(self) -> str:
        return f"Prioritized({self._priority_exponent}, {self.importance_sampling_exponent})"


def _nothing() -> None: ...


class PrioritizedRest:
    """What `Prioritized` draws from when some rows are left out, since no item can be made by them.

    Other rows are drawn in proportion to the same chances; their probabilities are those among the
    rows that are left.

    Args:
        share: of the rows that are drawn uniformly.
        rows: are left out.
        before: the same with fewer rows left out.
        is_final: probabilities stay those of `before`.
    """

    def __init__(
        self,
        ring: Ring,
        priorities: Priorities,
        share: float,
        rows: Indices,
        before: PrioritizedRest | None = None,
        is_final: bool = False,
    ) -> None:
        self._priorities, self._share, self._rows, self._before = priorities, share, rows, before
        self._masses = priorities.without(ring.positions(rows))
        # By which masses and counts become probabilities.
        self._norm: tuple[float, int] = self._masses.total, max(1, ring.rows_now[0] - len(rows))
        if is_final and before is not None:
            self._norm = before._norm
        self._uniform = Uniform()

    def without(self, ring: Ring, rows: Indices, *, is_final: bool = False) -> PrioritizedRest:
        """The same without these rows, too."""
        both = np.union1d(self._rows, rows)
        return PrioritizedRest(ring, self._priorities, self._share, both, self, is_final)

    def converted(self, probabilities: Masses) -> Masses | None:
        """The probabilities here of rows that had those before the last rows were left out; None if
        unknown."""
        # Uniform draws among them: rows were drawn with chances that are not in proportion to those
        # here.
        if self._share or self._before is None or not self._norm[0] > 0:
            return None
        return probabilities * (self._before._norm[0] / self._norm[0])

    def draw(
        self, ring: Ring, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """As `Selector.draw`. None: no row with a mass is left."""
        total, rows = self._norm
        share = self._share
        if share and not self._masses.total > 0:
            return self._drawn_uniformly(ring, count, rng), 1 / rows
        by_mass = int(rng.binomial(count, 1 - share)) if share else count
        indices, probabilities = self._priorities.draw(by_mass, rng, without=self._masses)
        probabilities *= self._masses.total / total if total > 0 else 0.0
        if not share:
            return indices, probabilities
        others = self._drawn_uniformly(ring, count - by_mass, rng)
        of_others = self._priorities.probabilities(others) * (
            self._priorities.total / total if total > 0 else 0.0
        )
        in_no_order = rng.permutation(len(indices) + len(others))
        probabilities = (1 - share) * np.concatenate([probabilities, of_others]) + share / rows
        return np.concatenate([indices, others])[in_no_order], probabilities[in_no_order]

    def _drawn_uniformly(self, ring: Ring, count: int, rng: np.random.Generator) -> Indices:
        """So many rows that are not left out; fewer if there seem to be hardly any."""
        found: list[Indices] = []
        missing = count
        for _ in range(_UNIFORM_ROUNDS):
            if missing <= 0:
                break
            indices, _chance = self._uniform.draw(ring, 2 * missing, rng)
            indices = indices[~np.isin(indices, self._rows)][:missing]
            found.append(indices)
            missing -= len(indices)
        return np.concatenate(found) if found else np.empty(0, np.int64)
