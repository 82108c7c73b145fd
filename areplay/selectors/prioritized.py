"""Draws in proportion to priorities.

Source: Schaul et al., Prioritized Experience Replay, 2016.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Indices
from areplay._base.hooks import text_of
from areplay._base.validation import fraction
from areplay._storage.priorities import Masses, Priorities
from areplay._storage.ring import Ring
from areplay.selectors.selector import Selector
from areplay.selectors.uniform import Uniform

_RARE = 64  # items are where one row in so many makes one
_SHARE_LOST = 8  # one part of all masses in so many is a good part
_UNIFORM_ROUNDS = 8  # in search of rows that are not left out


class Prioritized:
    """Rows in proportion to their priorities: `|priority| ** priority_exponent`.

    Stratified within a batch; its `probabilities` and `weights` come with it. New rows enter with
    the largest priority before them, or with the one that the actor gave;
    `Replay.update_priorities` gives others. Source: Schaul et al., Prioritized Experience Replay,
    2016.

    Args:
        priority_exponent: 0: uniform; 1: in proportion. A row of priority 0 is not drawn, whatever
            the exponent.
        importance_sampling_exponent: of the weights; 0: all are 1; 1: the bias is made up for in
            full. Or a schedule: a function of the batches delivered so far. Assigned to in the
            learner's process while samplers run, it is used from their next batch on.
        uniform_sample_probability: the share of draws that are uniform over all rows instead. A row
            by which no item can be made is drawn again, by the same chances.

    Raises:
        ValueError: one of them is not a number from 0 to 1.
    """

    def __init__(
        self,
        priority_exponent: float = 0.6,
        importance_sampling_exponent: float | Callable[[int], float] = 0.4,
        uniform_sample_probability: float = 0.0,
    ) -> None:
        self.priority_exponent = fraction("priority_exponent", priority_exponent)
        self.uniform_sample_probability = fraction(
            "uniform_sample_probability", uniform_sample_probability
        )
        self._schedule = (
            importance_sampling_exponent if callable(importance_sampling_exponent) else None
        )
        first = self._schedule(0) if self._schedule is not None else importance_sampling_exponent
        self._exponent = fraction("importance_sampling_exponent", first)
        self._priorities: Priorities | None = None
        self._number = 0  # of our shared exponent
        self._uniform = Uniform()

    @property
    def importance_sampling_exponent(self) -> float:
        """What the weights are raised to."""
        if self._priorities is None:
            return self._exponent
        self._check_process()
        return float(self._priorities.exponents[self._number])

    @importance_sampling_exponent.setter
    def importance_sampling_exponent(self, value: float) -> None:
        self._check_process()
        self._exponent = fraction("importance_sampling_exponent", value)
        if self._priorities is not None:
            self._priorities.exponents[self._number] = self._exponent

    def bind(self, priorities_of: Callable[[float], Priorities]) -> None:
        """Draw by the priorities of a replay from now on.

        Args:
            priorities_of: those for a priority exponent.

        Raises:
            ValueError: it draws by those of another replay already.
            WrongProcess: that was in a process from which this one was forked.
        """
        self._check_process()
        priorities = priorities_of(self.priority_exponent)
        if self._priorities is None or self._priorities.is_closed:
            if self._priorities is not None:
                # as it was left in the replay before
                self._exponent = self.importance_sampling_exponent
            self._priorities, self._number = priorities, priorities.new_exponent(self._exponent)
        elif self._priorities is not priorities:
            raise ValueError(
                f"{self!r} is used by another replay; give each replay a selector of its own"
            )

    @property
    def obstacle(self) -> str:
        """Why nothing can be drawn whatever rows there are, and what to do about it; "" if it
        can."""
        self._check_process()
        if (
            self._priorities is None
            or self._priorities.total > 0
            or self.uniform_sample_probability
        ):
            return ""
        return (
            "all rows have priority 0; give some a larger one with update_priorities, or add rows"
        )

    def on_delivered(self, batches: int) -> None:
        """Follow the schedule, if there is one: so many batches were delivered."""
        if self._schedule is not None:
            self.importance_sampling_exponent = fraction(
                f"importance_sampling_exponent, by its schedule after {batches} batches,",
                self._schedule(batches),
            )

    def draw(
        self, ring: Ring, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `Selector.draw`."""
        return self.draw_batches(ring, 1, count, rng)

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """See `BatchSelector.draw_batches`."""
        assert self._priorities is not None
        self._check_process()
        indices, probabilities = self._priorities.draw(count, rng, batches)
        share = self.uniform_sample_probability
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
        """What is drawn from if these rows are left out: those by which no item can be made."""
        assert self._priorities is not None
        return PrioritizedRest(ring, self._priorities, self.uniform_sample_probability, rows)

    def is_burdened(self, ring: Ring, drawn: Indices, made: Indices) -> bool:
        """Whether draws had better go without the rows that were `drawn` and by which no item was
        `made`.

        That is so if hardly any other was drawn, or if they have a good part of all masses: beside
        them the rows drawn uniformly would be more than their share.
        """
        lost = len(drawn) - len(made)
        if _RARE * len(made) < len(drawn):
            return True
        if not lost or (not self.uniform_sample_probability and _SHARE_LOST * lost < len(drawn)):
            return False
        assert self._priorities is not None
        rows = np.setdiff1d(drawn, made)
        return bool(self._priorities.probabilities(rows).sum() * _SHARE_LOST >= 1)

    def _check_process(self) -> None:
        if self._priorities is not None and self._priorities.origin is not forks.current:
            forks.check(self._priorities.origin, f"{self!r}")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_schedule": None}  # followed in the learner's process

    def __repr__(self) -> str:
        if self._priorities is not None and self._priorities.origin is not forks.current:
            return f"Prioritized({self.priority_exponent}) of process {self._priorities.origin.pid}"
        return f"Prioritized({self.priority_exponent}, {self.importance_sampling_exponent})"


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


BUILT_IN: tuple[type[Selector], ...] = (Uniform, Prioritized)
"""Selectors of areplay's own, as they are: whose draws are known to be quick, and of rows that are
there."""


def items_of(selector: object, item: object) -> str:
    """Which items one of our selectors draws, for a message that there are none."""
    needs_priority = type(selector) is Prioritized and not selector.uniform_sample_probability
    return f"{text_of(item)} of a priority above 0" if needs_priority else text_of(item)
