"""Rate limiters: when the learner may take a batch, and how many rows writers may insert.

An *insert* is a step that was written into the ring (a row, of a plain spec; a final observation is
none). A *sample* is an item of a batch that was handed to the learner; a batch in the prefetch
queue does not count yet.

The limiters here are options, which never change. The counts of a running stream are in
`areplay._ingest.rate_controller`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from areplay._base.validation import real_number, refused, set_checked, whole_number


@dataclass(frozen=True)
class MinSize:
    """Let the learner take its first batch when n rows are there, or the ring is full; hold back
    no process after that.

    Rows count as `len(replay)` counts them: an episode of T steps has T + 1, the last one for its
    final observation. They count whether they came before the stream of batches was opened, after
    it, or from a checkpoint.

    Args:
        min_size_to_sample: n, at least 1; at most the replay's `capacity_rows`.

    Raises:
        ValueError: `min_size_to_sample` is not such a number.
    """

    min_size_to_sample: int

    def __post_init__(self) -> None:
        set_checked(
            self, min_size_to_sample=whole_number("min_size_to_sample", self.min_size_to_sample)
        )


@dataclass(frozen=True)
class SamplesPerInsert:
    """Keep a ratio of samples to inserts: the learner waits when it is ahead, the actors when they
    are.

    With the error e = samples_per_insert * (inserts - min_size_to_sample) - samples, a row may be
    inserted if e is at most `error_buffer` after it, and a batch be handed out if e is at least
    `-error_buffer` after it. Source: Cassirer et al., Reverb: A Framework for Experience Replay,
    2021, section 3.3, and its `SampleToInsertRatio`.

    An insert is a step: each row of a plain spec; of a spec of steps not the rows of final
    observations. Steps are counted from the moment at which the stream of batches is opened. Steps
    that are in the ring by then, whether added or loaded, count as inserted up to
    `min_size_to_sample`.

    Rows that actors have handed in wait in their inboxes for their turn. The actors share what may
    wait: `2 * error_buffer / samples_per_insert` rows, the steps that the buffer spans, but at
    least 4 rows each; with `inbox_rows=` given, that many each. So the newest stored row was made
    at most about twice that many steps before the present one, plus the steps of one call.

    The limiter of a running stream can be replaced by one of another ratio or buffer, see
    `Batches.limiter`. Where a replay has several streams, writers wait for the slowest: streams
    that one loop takes from in turn need the same ratio. `Fifo` and `Epochs` have a pace of their
    own and refuse this limiter.

    Args:
        samples_per_insert: how often each step is sampled on average; above 0.
        min_size_to_sample: rows that must be there before the first batch, counted as by `MinSize`;
            in e it stands for as many steps.
        error_buffer: by how many samples either side may be ahead. At least
            `(batch_size + samples_per_insert) / 2`, or both could wait for each other; a buffer of
            some batches lets both sides run smoothly. `Replay.add` writes a step of a vector of L
            environments as a whole: L inserts at once. None: sixteen batches and sixteen inserts.

    Raises:
        ValueError: an option is not such a number.
    """

    samples_per_insert: float
    min_size_to_sample: int
    error_buffer: float | None = None

    def __post_init__(self) -> None:
        buffer = self.error_buffer
        set_checked(
            self,
            samples_per_insert=_positive("samples_per_insert", self.samples_per_insert),
            min_size_to_sample=whole_number("min_size_to_sample", self.min_size_to_sample),
            error_buffer=None if buffer is None else _positive("error_buffer", buffer),
        )


Limiter = MinSize | SamplesPerInsert


def _positive(name: str, value: object) -> float:
    number = real_number(value)
    if not 0 < number < math.inf:
        raise refused(f"{name} must be a number above 0", value)
    return number
