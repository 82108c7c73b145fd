"""Rate limiters: when the learner may take a batch, and how many rows the writers may insert.

An *insert* is a step that was written into the ring (a row, of a plain spec; a final observation is
none). A *sample* is an item of a batch that was handed to the learner; what lies in the prefetch
queue is none yet.

Both sides read the same few numbers and wait on doorbells, see `areplay._ingest.admission` and
`areplay.batches`. The counts of inserts are changed under the admission's guard, those of samples
by the learner's loop alone: each side may see the other's a moment late, and then waits a moment
longer than it would have to, never shorter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from areplay._base import forks
from areplay._base.validation import real_number, refused, whole_number
from areplay.statistics import LimiterStatistics


class MinSize:
    """The learner gets its first batch when n rows are there, or the ring is full; after that
    nobody waits.

    Rows count as `len(replay)` counts them: an episode of T steps has T + 1, the last one for its
    final observation. They count whether they came before the stream of batches was opened, after
    it, or from a checkpoint.

    Args:
        min_size_to_sample: n, at least 1; at most the replay's `capacity_rows`.
    """

    def __init__(self, min_size_to_sample: int) -> None:
        self.min_size_to_sample = whole_number("min_size_to_sample", min_size_to_sample)

    def __repr__(self) -> str:
        return f"MinSize({self.min_size_to_sample})"


class _Base(NamedTuple):
    """From where on the present ratio holds. Replaced as a whole, so that another thread never sees
    half of it."""

    samples_per_insert: float
    error_buffer: float
    error: float
    inserts: int
    samples: int


class SamplesPerInsert(MinSize):
    """So many samples for each insert: the learner waits when it is ahead, the actors when they
    are.

    With the error e = samples_per_insert * (inserts - min_size_to_sample) - samples, a row may be
    inserted if e is at most `error_buffer` after it, and a batch be handed out if e is at least
    `-error_buffer` after it. Source: Cassirer et al., Reverb: A Framework for Experience Replay,
    2021, section 3.3, and its `SampleToInsertRatio`.

    An insert is a step: each row of a plain spec; of a spec of steps not the rows of final
    observations. Steps are counted from the moment at which the stream of batches is opened. Those
    that are in the ring by then, whether they were added or loaded, count as inserted up to
    `min_size_to_sample`. Rows that actors have handed in wait in their inboxes for their turn. The
    actors share what may wait: `2 * error_buffer / samples_per_insert` rows, the steps that the
    buffer spans, but at least 4 rows each; with `inbox_rows=` given, so many each. So the newest
    stored row was made at most about twice that many steps before the present one, and those that
    one call hands in. One limiter belongs to one stream; of several, writers wait for the slowest:
    streams that one loop takes from in turn need the same ratio. Not with `Fifo` or `Epochs`, which
    have a pace of their own.

    Args:
        samples_per_insert: how often each step is sampled on average; above 0.
        min_size_to_sample: rows that must be there before the first batch, counted as by `MinSize`;
            in e it stands for so many steps.
        error_buffer: by how many samples either side may be ahead. At least
            `(batch_size + samples_per_insert) / 2`, or both could wait for each other; one of some
            batches lets both sides run smoothly. `Replay.add` writes a step of a vector of L
            environments as a whole: L inserts at once. By default sixteen batches, and sixteen
            inserts.

    Raises:
        ValueError: an option is not such a number.
    """

    def __init__(
        self, samples_per_insert: float, min_size_to_sample: int, error_buffer: float | None = None
    ) -> None:
        super().__init__(min_size_to_sample)
        ratio = _positive("samples_per_insert", samples_per_insert)
        buffer = 0.0 if error_buffer is None else _positive("error_buffer", error_buffer)
        self._has_default_buffer = error_buffer is None
        self._inserts = self._samples = 0
        self._batch_size = 0  # of the stream that it belongs to; 0 while there is none
        self._origin: forks.Origin | None = None  # the process of that stream
        self._on_change: Callable[[], None] = _nothing
        self._guard: AbstractContextManager[object] = nullcontext()
        self._base = _Base(ratio, buffer, -ratio * self.min_size_to_sample, 0, 0)

    @property
    def samples_per_insert(self) -> float:
        """Assigned to while the stream is open, it holds for what is inserted from then on.

        Raises:
            ValueError: when assigned: both sides could wait for each other, or it is no positive
                number.
        """
        self._check_process()
        return self._base.samples_per_insert

    @samples_per_insert.setter
    def samples_per_insert(self, value: float) -> None:
        self._check_process()
        ratio = _positive("samples_per_insert", value)
        buffer = self.error_buffer
        if self._has_default_buffer and self._batch_size:
            buffer = _default_buffer(ratio, self._batch_size)
        self._check(ratio, buffer)
        with self._guard:
            inserts = self._inserts
            # the first ones, of which no batch was made
            if not self._samples and inserts < self.min_size_to_sample:
                error = ratio * (inserts - self.min_size_to_sample)
            else:
                error = self.error
            self._base = _Base(ratio, buffer, error, inserts, self._samples)
        self._on_change()

    @property
    def error_buffer(self) -> float:
        """Samples; 0.0 before the stream is opened, if it was left out.

        Assigned to while the stream is open, it holds at once; raises as `samples_per_insert` does.
        """
        self._check_process()
        return self._base.error_buffer

    @error_buffer.setter
    def error_buffer(self, value: float) -> None:
        self._check_process()
        buffer = _positive("error_buffer", value)
        self._check(self.samples_per_insert, buffer)
        self._has_default_buffer = False
        with self._guard:
            self._base = self._base._replace(error_buffer=buffer)
        self._on_change()

    @property
    def error(self) -> float:
        """e: above 0 the actors are ahead, below the learner is."""
        self._check_process()
        return self._error(self._base, self._inserts)

    def check(self, batch_size: int, window_rows: int = 1) -> None:
        """Raise `ValueError` if it cannot limit a new stream of such batches.

        It belongs to another open stream, or both sides could wait for each other: also since not
        even one item, of so many rows, could be made of the first rows that are let in.
        """
        self._check_process()
        if self._batch_size:
            raise ValueError(f"{self!r} limits another stream of batches; give each one of its own")
        ratio, buffer = self.samples_per_insert, self._buffer_for(batch_size)
        self._check(ratio, buffer, batch_size)
        if self.min_size_to_sample + math.floor(buffer / ratio) < window_rows:
            raise ValueError(
                f"an item spans up to {window_rows:,} rows, but "
                f"min_size_to_sample={self.min_size_to_sample} and error_buffer={buffer:g} let "
                f"only {self.min_size_to_sample + math.floor(buffer / ratio):,} in before the "
                "first batch; raise one of them"
            )

    def open(
        self,
        batch_size: int,
        steps: int,
        on_change: Callable[[], None],
        guard: AbstractContextManager[object] | None = None,
    ) -> None:
        """Begin to count, for a stream of such batches.

        Args:
            steps: in the ring already; those above `min_size_to_sample` do not count.
            on_change: called when an option was changed, so that whoever waits looks again.
            guard: under which inserts are counted.

        Raises:
            ValueError: see `check`.
        """
        self.check(batch_size)
        self._guard = nullcontext() if guard is None else guard
        ratio, buffer = self.samples_per_insert, self._buffer_for(batch_size)
        self._batch_size, self._on_change, self._origin = batch_size, on_change, forks.current
        self._inserts, self._samples = min(steps, self.min_size_to_sample), 0
        error = ratio * (self._inserts - self.min_size_to_sample)
        self._base = _Base(ratio, buffer, error, self._inserts, 0)

    def kept(self) -> dict[str, float]:
        """What `resume` goes on with."""
        return {
            "samples_per_insert": self.samples_per_insert,
            "min_size_to_sample": self.min_size_to_sample,
            "inserts": self._inserts,
            "samples": self._samples,
            "error": self.error,
        }

    def resume(self, kept: dict[str, float]) -> bool:
        """Go on with the counts that a limiter before had, right after `open`; `False`, with
        nothing changed, if that one had other options.

        An error that the present `error_buffer` does not allow is brought within it.
        """
        if (kept["samples_per_insert"], kept["min_size_to_sample"]) != (
            self.samples_per_insert,
            self.min_size_to_sample,
        ):
            return False
        self._inserts, self._samples = int(kept["inserts"]), int(kept["samples"])
        error = min(max(float(kept["error"]), -self.error_buffer), self.error_buffer)
        # the first ones, of which no batch was made
        if not self._samples and self._inserts < self.min_size_to_sample:
            error = self.samples_per_insert * (self._inserts - self.min_size_to_sample)
        self._base = _Base(
            self.samples_per_insert, self.error_buffer, error, self._inserts, self._samples
        )
        return True

    @property
    def has_begun(self) -> bool:
        """Whether a batch was handed out, perhaps before a checkpoint."""
        return self._samples > 0

    def _buffer_for(self, batch_size: int) -> float:
        if self._has_default_buffer:
            return _default_buffer(self.samples_per_insert, batch_size)
        return self.error_buffer

    def close(self) -> None:
        """Limit nobody any more."""
        self._batch_size, self._on_change, self._guard = 0, _nothing, nullcontext()
        self._origin = None

    # The writers' side, under the admission's guard.

    @property
    def room(self) -> int:
        """How many steps may be inserted now."""
        base = self._base
        return max(
            0,
            math.floor(
                (base.error_buffer - self._error(base, self._inserts)) / base.samples_per_insert
                + 1e-9
            ),
        )

    def insert(self, steps: int) -> None:
        """So many are inserted now (or, if negative, were not after all)."""
        self._inserts += steps

    @property
    def buffer_steps(self) -> int:
        """Steps that the buffer spans, of the open stream."""
        return self.buffer_steps_for(self._batch_size)

    def buffer_steps_for(self, batch_size: int) -> int:
        """Steps from where the learner has to wait to where the writers have to, of a stream of
        such batches."""
        return max(
            1, math.ceil(min(2 * self._buffer_for(batch_size) / self.samples_per_insert, 1 << 40))
        )

    def can_ever_insert(self, steps: int) -> bool:
        """Whether so many at once can be inserted at some time, whatever the learner has taken by
        then."""
        base = self._base
        return steps * base.samples_per_insert + self._batch_size <= 2 * base.error_buffer

    # The learner's side.

    @property
    def can_sample(self) -> bool:
        """Whether a batch may be handed out now."""
        base = self._base
        return self._error(base, self._inserts) - self._batch_size >= -base.error_buffer - 1e-9

    @property
    def inserts_missing(self) -> int:
        """So many inserts are missing until a batch may be handed out."""
        base = self._base
        missing = self._batch_size - base.error_buffer - self._error(base, self._inserts)
        return max(0, math.ceil(missing / base.samples_per_insert - 1e-9))

    def sample(self) -> None:
        """A batch is handed out now."""
        self._samples += self._batch_size

    def statistics(self) -> LimiterStatistics:
        """Its numbers at this moment."""
        return LimiterStatistics(
            samples_per_insert=self.samples_per_insert,
            min_size_to_sample=self.min_size_to_sample,
            error_buffer=self.error_buffer,
            error=self.error,
            inserts=self._inserts,
            samples=self._samples,
            holds_learner=not self.can_sample,
            holds_writers=self.room == 0,
        )

    def _error(self, base: _Base, inserts: int) -> float:
        return (
            base.error
            + base.samples_per_insert * (inserts - base.inserts)
            - (self._samples - base.samples)
        )

    def _check_process(self) -> None:
        if self._origin is not None and self._origin is not forks.current:
            forks.check(self._origin, f"{self!r}")

    def _check(self, ratio: float, buffer: float, batch_size: int | None = None) -> None:
        """Refuse what could end with both sides waiting: room for no insert, and for no batch
        either."""
        size = self._batch_size if batch_size is None else batch_size
        if size and 2 * buffer < size + ratio:
            raise ValueError(
                f"error_buffer={buffer:g} could let learner and actors wait for each other for "
                f"ever: with batches of {size} and samples_per_insert={ratio:g} it must be at "
                f"least {(size + ratio) / 2:g}"
            )

    def __repr__(self) -> str:
        base, place = self._base, ""
        if self._origin is not None and self._origin is not forks.current:
            place = f" of process {self._origin.pid}"
        return (
            f"SamplesPerInsert({base.samples_per_insert:g}, "
            f"min_size_to_sample={self.min_size_to_sample}, "
            f"error_buffer={base.error_buffer:g}){place}"
        )


def _positive(name: str, value: object) -> float:
    number = real_number(value)
    if not 0 < number < math.inf:
        raise refused(f"{name} must be a number above 0", value)
    return number


def _default_buffer(ratio: float, batch_size: int) -> float:
    return 16 * (batch_size + ratio)


def _nothing() -> None: ...
