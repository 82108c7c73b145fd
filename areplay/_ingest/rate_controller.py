"""Rate controller: the counts of one running stream of batches with a `SamplesPerInsert`.

Rule: a state in which neither side may go on cannot be configured.

Both sides read the same few numbers and wait on doorbells, see `areplay._ingest.admission` and
`areplay._sampling.pacing`. Writers change the count of inserts under the admission's lock; the
learner's loop alone changes the count of samples. Each side may see the other's count a moment
late, and then waits a moment longer than necessary, never shorter.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

from areplay._base.hooks import text_of
from areplay.limiters import Limiter, SamplesPerInsert
from areplay.statistics import LimiterStatistics

_ROUNDING = 1e-9
_MOST_STEPS = 1 << 40


def check_limiter(limiter: SamplesPerInsert, batch_size: int, window_rows: int = 1) -> None:
    """Refuse a limiter by which learner and writers could wait for each other for ever.

    Args:
        window_rows: rows that one item spans; the limiter must let that many in before the first
            batch.

    Raises:
        ValueError: says by how much which option is too small.
    """
    ratio = limiter.samples_per_insert
    buffer = _buffer_of(limiter, batch_size)
    if 2 * buffer < batch_size + ratio:
        raise ValueError(
            f"error_buffer={buffer:g} could let learner and actors wait for each other for "
            f"ever: with batches of {batch_size} and samples_per_insert={ratio:g} it must be at "
            f"least {(batch_size + ratio) / 2:g}"
        )
    first_rows = limiter.min_size_to_sample + math.floor(buffer / ratio)
    if first_rows < window_rows:
        raise ValueError(
            f"an item spans up to {window_rows:,} rows, but "
            f"min_size_to_sample={limiter.min_size_to_sample} and error_buffer={buffer:g} let "
            f"only {first_rows:,} in before the first batch; raise one of them"
        )


def checked_replacement(before: Limiter, limiter: Limiter, batch_size: int) -> SamplesPerInsert:
    """Return `limiter` if it can take the place of another while its stream runs.

    Raises:
        TypeError: one of them is no `SamplesPerInsert`.
        ValueError: they differ in `min_size_to_sample`, or both sides could wait for each other.
    """
    if not isinstance(before, SamplesPerInsert) or not isinstance(limiter, SamplesPerInsert):
        raise TypeError(
            f"only a SamplesPerInsert can take the place of another, got {text_of(limiter)} for "
            f"{before!r}"
        )
    if limiter.min_size_to_sample != before.min_size_to_sample:
        raise ValueError(
            f"min_size_to_sample={before.min_size_to_sample} cannot change while a stream runs, "
            f"got {limiter.min_size_to_sample}"
        )
    check_limiter(limiter, batch_size)
    return limiter


def buffer_steps(limiter: SamplesPerInsert, batch_size: int) -> int:
    """Count the steps between the state in which the learner has to wait and the one in which the
    writers have to."""
    steps = 2 * _buffer_of(limiter, batch_size) / limiter.samples_per_insert
    return max(1, math.ceil(min(steps, _MOST_STEPS)))


def _buffer_of(limiter: SamplesPerInsert, batch_size: int) -> float:
    if limiter.error_buffer is not None:
        return limiter.error_buffer
    return 16 * (batch_size + limiter.samples_per_insert)


class _Base(NamedTuple):
    """The state in which the present ratio began to hold. Replaced as a whole, so that another
    thread never sees half of it."""

    samples_per_insert: float
    error_buffer: float
    error: float
    inserts: int
    samples: int


class RateController:
    """Count the inserts and samples of one stream of batches, and say which side may go on.

    Args:
        steps: steps in the ring already; those above `min_size_to_sample` do not count.
        lock: held by each caller of `insert`.

    Attributes:
        limiter: the option whose ratio and buffer hold now.

    Raises:
        ValueError: see `check_limiter`.
    """

    def __init__(
        self,
        limiter: SamplesPerInsert,
        batch_size: int,
        steps: int,
        lock: AbstractContextManager[object],
    ) -> None:
        check_limiter(limiter, batch_size)
        self.limiter = limiter
        self._batch_size = batch_size
        self._lock = lock
        self._inserts = min(steps, limiter.min_size_to_sample)
        self._samples = 0
        self._base = self._based_on(limiter, 0.0)

    def replace(self, limiter: Limiter) -> None:
        """Hold the buffer of `limiter` from now on, and its ratio for later inserts. Before the
        first batch, the ratio also holds for the first `min_size_to_sample` inserts.

        Raises:
            TypeError, ValueError: see `checked_replacement`. Nothing has changed.
        """
        limiter = checked_replacement(self.limiter, limiter, self._batch_size)
        with self._lock:
            self._base = self._based_on(limiter, self.error)
            self.limiter = limiter

    def state(self) -> dict[str, float]:
        """The numbers that `resume` goes on with."""
        return {
            "samples_per_insert": self._base.samples_per_insert,
            "min_size_to_sample": self.limiter.min_size_to_sample,
            "inserts": self._inserts,
            "samples": self._samples,
            "error": self.error,
        }

    def resume(self, state: dict[str, float]) -> bool:
        """Go on with the counts of an earlier controller; call it before any other method.

        An error that the present `error_buffer` does not allow is brought within it.

        Returns:
            False, with nothing changed, if the earlier one had other options.
        """
        limiter = self.limiter
        if (state["samples_per_insert"], state["min_size_to_sample"]) != (
            limiter.samples_per_insert,
            limiter.min_size_to_sample,
        ):
            return False
        self._inserts = int(state["inserts"])
        self._samples = int(state["samples"])
        buffer = self._base.error_buffer
        error = min(max(float(state["error"]), -buffer), buffer)
        self._base = self._based_on(limiter, error)
        return True

    @property
    def has_begun(self) -> bool:
        """Whether a batch was handed out, perhaps before a checkpoint."""
        return self._samples > 0

    @property
    def error(self) -> float:
        """e of `SamplesPerInsert`: above 0 the actors are ahead, below the learner is."""
        return self._error_from(self._base)

    # The writers' side, under the admission's lock.

    @property
    def room(self) -> int:
        """How many steps may be inserted now."""
        base = self._base
        steps = (base.error_buffer - self._error_from(base)) / base.samples_per_insert
        return max(0, math.floor(steps + _ROUNDING))

    def insert(self, steps: int) -> None:
        """Count `steps` more inserts; a negative number takes back inserts that failed."""
        self._inserts += steps

    @property
    def buffer_steps(self) -> int:
        """Steps that the buffer spans, see the function."""
        return buffer_steps(self.limiter, self._batch_size)

    def can_ever_insert(self, steps: int) -> bool:
        """Whether there comes a time at which `steps` may be inserted at once, whatever the learner
        takes meanwhile."""
        base = self._base
        return steps * base.samples_per_insert + self._batch_size <= 2 * base.error_buffer

    # The learner's side.

    @property
    def can_sample(self) -> bool:
        """Whether a batch may be handed out now."""
        base = self._base
        return self._error_from(base) - self._batch_size >= -base.error_buffer - _ROUNDING

    @property
    def inserts_missing(self) -> int:
        """How many more inserts it takes until a batch may be handed out."""
        base = self._base
        missing = self._batch_size - base.error_buffer - self._error_from(base)
        return max(0, math.ceil(missing / base.samples_per_insert - _ROUNDING))

    def sample(self) -> None:
        """Count one more batch."""
        self._samples += self._batch_size

    def statistics(self) -> LimiterStatistics:
        """The numbers of this moment."""
        base = self._base
        return LimiterStatistics(
            samples_per_insert=base.samples_per_insert,
            min_size_to_sample=self.limiter.min_size_to_sample,
            error_buffer=base.error_buffer,
            error=self._error_from(base),
            inserts=self._inserts,
            samples=self._samples,
            holds_learner=not self.can_sample,
            holds_writers=self.room == 0,
        )

    def _error_from(self, base: _Base) -> float:
        """e, which another thread may change meanwhile, but not by half of a new base."""
        inserts = self._inserts - base.inserts
        samples = self._samples - base.samples
        return base.error + base.samples_per_insert * inserts - samples

    def _based_on(self, limiter: SamplesPerInsert, error: float) -> _Base:
        """Begin with the present counts, and with `error` if a batch came of them."""
        ratio = limiter.samples_per_insert
        buffer = _buffer_of(limiter, self._batch_size)
        lacking = self._inserts - limiter.min_size_to_sample
        if not self._samples and lacking <= 0:
            error = ratio * lacking
        return _Base(ratio, buffer, error, self._inserts, self._samples)

    def __repr__(self) -> str:
        # messages name the option, with the numbers that hold now
        base = self._base
        return (
            f"SamplesPerInsert({base.samples_per_insert:g}, "
            f"min_size_to_sample={self.limiter.min_size_to_sample}, "
            f"error_buffer={base.error_buffer:g})"
        )
