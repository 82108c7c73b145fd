"""What `Replay.statistics()` returns: frozen records of counts and states at one moment, cheap to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """One actor."""

    index: int
    pid: int
    """Of its present or last process."""
    is_alive: bool
    restarts: int
    rows: int
    """Handed in since the start, by all of its runs."""
    waiting_rows: int
    """In its inbox, not yet taken by the coordinator."""
    inbox_rows: int
    """Capacity of its inbox."""
    waited_s: float
    """How long it has been waiting for room in its inbox; 0.0 if it does not wait now."""


class PriorityUpdate(NamedTuple):
    """What `Replay.update_priorities` did: `updated, stale = ...`."""

    updated: int
    stale: int
    """Rows that had been overwritten meanwhile."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What `Replay.save` did."""

    rows: int
    """In the checkpoint."""
    blocks: int
    """That hold them."""
    blocks_written: int
    """Those that were not in the checkpoint before."""
    blocks_renewed: int
    """Those that had taken the place of others, which were overwritten before their turn came."""
    bytes_written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody who waits at this moment."""

    who: str
    """"learner", "actor 3", or "owner" for `Replay.add` and `extend`."""
    reason: str
    """For whom and why, with the numbers."""
    waited_s: float
    """So far."""


@dataclass(frozen=True, slots=True)
class LimiterStatistics:
    """A `SamplesPerInsert` limiter."""

    samples_per_insert: float
    min_size_to_sample: int
    error_buffer: float
    """In samples."""
    error: float
    """In samples: above 0 the actors are ahead, below the learner is."""
    inserts: int
    """Steps since the stream was opened, and before that up to `min_size_to_sample`."""
    samples: int
    """Items handed to the learner."""
    holds_learner: bool
    """The learner may take no batch before rows come."""
    holds_writers: bool
    """No step is written before the learner takes a batch."""


@dataclass(frozen=True, slots=True)
class BatchesStatistics:
    """One stream of batches."""

    batch_size: int
    prefetch: int
    """Capacity of the prefetch queue, in batches."""
    ready: int
    """Batches in the queue."""
    fill: float
    """`ready / prefetch`, at most 1."""
    lent: int
    """Batches that the learner holds."""
    batches_delivered: int
    rows_redrawn: int
    """Rows that samplers copied in vain because they were overwritten meanwhile, since the samplers' last start."""
    samplers_alive: int
    restarts: int
    """Of all samplers together."""
    learner_waits: int
    """How often the learner found no batch ready."""
    learner_waited_s: float
    """How long it waited then, in total."""
    peak_learner_wait_s: float
    limiter: LimiterStatistics | None
    """None if there is no `SamplesPerInsert`."""
    items_left: int | None
    """Of `Fifo`: that are complete and were not handed to the learner as often as they should; of `Epochs`: that are
    still to come; None of other selectors, and of endless epochs."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A whole replay."""

    rows: int
    """Rows that can be sampled now."""
    capacity_rows: int
    rows_inserted: int
    """Since the start."""
    row_bytes: int
    blocks: int
    block_rows: int
    blocks_started: int
    """Since the start; above `blocks`, each one recycled another."""
    priorities_updated: int
    """By `Replay.update_priorities`, since the start."""
    priorities_stale: int
    """Not updated, since the rows had been overwritten."""
    actors: tuple[ActorStatistics, ...]
    batches: tuple[BatchesStatistics, ...]
    waits: tuple[Wait, ...]
    """Who waits now, for whom and why."""
