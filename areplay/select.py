"""Selectors: which rows items are drawn by, and with which probability.

A selector draws indices of rows that are committed at that moment. By the time they are copied some may be gone, and
by some no item can be drawn; `areplay.reader` notices and draws again.

A selector of your own is any object with a `draw` that can be pickled. This one draws recent rows more often::

    class Recent:
        def __init__(self, mean_age):
            self.mean_age = mean_age  # rows

        def draw(self, ring, count, rng):
            serials, rows = ring.occupied()  # the blocks, and how many rows are in each
            newest_first = np.argsort(-serials)
            serials, rows = serials[newest_first], rows[newest_first]
            ends = np.cumsum(rows)
            if len(ends) == 0:
                return np.empty(0, np.int64), 1.0
            chance = 1 / self.mean_age
            ages = (rng.geometric(chance, count) - 1) % ends[-1]
            blocks = ends.searchsorted(ages, side="right")
            indices = serials[blocks] * ring.block_rows + ends[blocks] - 1 - ages
            return indices, (1 - chance) ** ages * chance / (1 - (1 - chance) ** ends[-1])

Rows that it draws and that are not there, or not any more, are left out, and it is asked again, some hundred times at
most. What it returns otherwise is a `TypeError` or `ValueError` that names it.

What a selector remembers is its own in each sampler, and gone when that one is restarted: what has to be exact is not
drawn but settled beforehand, as `Fifo` and `Epochs` do it (see `areplay.deliveries`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from areplay import forks
from areplay.hooks import text_of
from areplay.options import fraction
from areplay.priorities import Masses, Priorities
from areplay.ring import Indices, Ring

_RARE = 64  # items are where one row in so many makes one
_SHARE_LOST = 8  # one part of all masses in so many is a good part
_UNIFORM_ROUNDS = 8  # in search of rows that are not left out


class Selector(Protocol):
    """A way to draw. With an attribute `importance_sampling_exponent` a batch gets weights, see `weigh`."""

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Masses | float]:
        """About `count` indices of committed rows, (n,) int64, and the probability that each of them had in one draw:
        a float from 0 to 1 for all of them, or (n,).

        More are asked for than are used where no item can be drawn by some rows, and it is asked again if they are too
        few. None: there is nothing to draw from.
        """
        ...


class BatchSelector(Selector, Protocol):
    """A selector that may be asked for a few batches at once."""

    def draw_batches(
        self, ring: Ring, batches: int, count: int, rng: np.random.Generator
    ) -> tuple[Indices, Masses | float]:
        """As `batches` draws of `count` one after the other, all from the rows as they are now."""
        ...


def checked_draw(selector: object, drawn: object) -> tuple[Indices, Masses]:
    """Return what a user's selector has drawn as arrays (n,) int64 and (n,) float64, of our own.

    Raises:
        TypeError, ValueError: it is no pair of indices and their probabilities.
    """
    method = f"{type(selector).__name__}.draw"
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(f"{method} must return a tuple (indices, probabilities), got {type(drawn).__name__}")
    given, chances = drawn
    try:
        indices = np.asarray(given)
        probabilities = np.asarray(chances, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{method} must return arrays of indices and of probabilities: {error}") from None
    if indices.ndim != 1:
        raise ValueError(f"{method} must return indices of shape (n,), got shape {indices.shape}")
    if len(indices) and indices.dtype.kind not in "iu":
        raise TypeError(f"{method} must return int64 indices, got {indices.dtype}; convert them with astype(np.int64)")
    if probabilities.shape not in ((), indices.shape):
        raise ValueError(
            f"{method} must return one probability, or one for each of {len(indices)} indices, got shape "
            f"{probabilities.shape}"
        )
    # Sums of floats may come out a little above 1. 0 may be what is left of a very small one, but has no weight.
    least = 0.0 if not getattr(selector, "importance_sampling_exponent", 0.0) else np.finfo(np.float64).tiny
    wrong = ~((probabilities >= least) & (probabilities <= 1 + 1e-6))
    if len(indices) and wrong.any():
        allowed = "above 0" if least else "from 0"
        raise ValueError(f"{method} must return probabilities {allowed} to 1, got {probabilities[wrong].ravel()[0]}")
    if indices.dtype.kind == "u":  # an index that no int64 can be names no row
        indices = np.minimum(indices, np.iinfo(np.int64).max)
    return indices.astype(np.int64), np.broadcast_to(probabilities, indices.shape).copy()


def weigh(probabilities: Masses, exponent: float, out: NDArray[np.float32]) -> None:
    """Importance sampling weights `(N p) ** -exponent`, divided by the largest of the batch.

    Schaul et al., Prioritized Experience Replay, 2016, section 3.4: then steps only shrink. N cancels out.
    """
    if exponent == 0:
        out.fill(1.0)
    else:
        # x ** -e as exp(-e log x), the last of it in float32: half the time. The least probable one gets exactly 1.
        logarithms = np.log(probabilities)
        out[:] = (np.minimum.reduce(logarithms) - logarithms) * exponent
        np.exp(out, out=out)


class Uniform:
    """Every committed row that has not been overwritten, each with the same probability, with replacement.

    That is 1 / rows, final observations counted; items have the same probability among themselves.
    """

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Masses | float]:
        """See `Selector.draw`."""
        first, end = ring.names()
        rows = max(1, ring.rows_now[0])
        if 2 * rows < end - first:  # mostly empty blocks: guessing would rarely hit a row
            return self._draw_counted(ring, count, rng), 1 / rows
        # Guess names and keep those that exist: each that is kept is uniform among those that exist. A few more
        # guesses than needed make up for the open blocks' ends. 12 us for 256, however many blocks there are.
        guesses = _integers(rng, first, end, count + count // 16 + 8)
        indices = guesses[ring.committed(guesses)][:count]
        if len(indices) < count:
            others = self._draw_counted(ring, count - len(indices), rng)
            indices = np.concatenate([indices, others]) if len(others) else others
        return indices, 1 / rows

    def _draw_counted(self, ring: Ring, count: int, rng: np.random.Generator) -> Indices:
        """The same by counting the rows of all blocks: hits always, but takes longer the more blocks there are."""
        serials, rows = ring.occupied()
        if len(serials) == 0:
            return np.empty(0, np.int64)
        ends = np.cumsum(rows)
        ordinals = _integers(rng, 0, int(ends[-1]), count)
        blocks = ends.searchsorted(ordinals, side="right")
        return serials[blocks] * ring.block_rows + ordinals - (ends[blocks] - rows[blocks])

    def __repr__(self) -> str:
        return "Uniform()"


class Prioritized:
    """Rows in proportion to their priorities: `|priority| ** priority_exponent`.

    Stratified within a batch; its `probabilities` and `weights` come with it. New rows enter with the largest priority
    before them, or with the one that the actor gave; `Replay.update_priorities` gives others. Source: Schaul et al.,
    Prioritized Experience Replay, 2016.

    Args:
        priority_exponent: 0: uniform; 1: in proportion.
        importance_sampling_exponent: of the weights; 0: all are 1; 1: the bias is made up for in full. Or a schedule:
            a function of the batches delivered so far. Assigned to in the learner's process while samplers run, it is
            used from their next batch on.
        uniform_sample_probability: the share of draws that are uniform over all rows instead. A row by which no item
            can be made is drawn again, by the same chances.

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
        self.uniform_sample_probability = fraction("uniform_sample_probability", uniform_sample_probability)
        self._schedule = importance_sampling_exponent if callable(importance_sampling_exponent) else None
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
                self._exponent = self.importance_sampling_exponent  # as it was left in the replay before
            self._priorities, self._number = priorities, priorities.new_exponent(self._exponent)
        elif self._priorities is not priorities:
            raise ValueError(f"{self!r} is used by another replay; give each replay a selector of its own")

    @property
    def obstacle(self) -> str:
        """Why nothing can be drawn whatever rows there are, and what to do about it; "" if it can."""
        self._check_process()
        if self._priorities is None or self._priorities.total > 0 or self.uniform_sample_probability:
            return ""
        return "all rows have priority 0; give some a larger one with update_priorities, or add rows"

    def on_delivered(self, batches: int) -> None:
        """Follow the schedule, if there is one: so many batches were delivered."""
        if self._schedule is not None:
            self.importance_sampling_exponent = fraction(
                f"importance_sampling_exponent, by its schedule after {batches} batches,", self._schedule(batches)
            )

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Masses | float]:
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
        """Whether draws had better go without the rows that were `drawn` and by which no item was `made`.

        That is so if hardly any other was drawn, or if they have a good part of all masses: beside them the rows drawn
        uniformly would be more than their share.
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

    Other rows are drawn in proportion to the same chances; their probabilities are those among the rows that are left.

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
        """The probabilities here of rows that had those before the last rows were left out; None if unknown."""
        # Uniform draws among them: rows were drawn with chances that are not in proportion to those here.
        if self._share or self._before is None or not self._norm[0] > 0:
            return None
        return probabilities * (self._before._norm[0] / self._norm[0])

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Masses | float]:
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
        of_others = self._priorities.probabilities(others) * (self._priorities.total / total if total > 0 else 0.0)
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


OURS: tuple[type[Selector], ...] = (Uniform, Prioritized)
"""Selectors of areplay's own, as they are: whose draws are known to be quick, and of rows that are there."""


def items_of(selector: object, item: object) -> str:
    """Which items one of our selectors draws, for a message that there are none."""
    needs_priority = type(selector) is Prioritized and not selector.uniform_sample_probability
    return f"{text_of(item)} of a priority above 0" if needs_priority else text_of(item)


def _integers(rng: np.random.Generator, low: int, high: int, count: int) -> Indices:
    """`count` integers from `low` below `high`, by way of doubles: half the time of `rng.integers` for so few.

    53 random bits over a span of n leave a bias of n / 2^53 at most, below 1e-6 for any replay that fits in memory.
    """
    doubles = rng.random(count)
    doubles *= high - low
    integers: Indices = doubles.astype(np.int64)
    integers += low
    return integers
