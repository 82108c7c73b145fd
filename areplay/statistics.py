"""What `Replay.statistics()` returns: frozen records of counts and states at one moment, cheap to
take.

`dataclasses.asdict` makes plain dicts of them, fit for JSON. Times named `*_at_s` are seconds since
the epoch, as `time.time()`; all others are spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How the process of an actor or a sampler ended that should not have ended so."""

    pid: int
    exit_code: int | None
    """Negative for the signal that ended it; None if unknown: the kernel did not tell."""
    details: str
    """Its traceback, or what is known instead; the last 4,000 characters."""
    exited_at_s: float
    """When it was noticed."""


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """One actor."""

    index: int
    """Within its group."""
    pid: int
    """Of its present or last process; 0 before the first."""
    is_alive: bool
    """Its process runs and has said READY. If not, and it has neither finished nor failed, one is
    being started."""
    restarts: int
    """Since the start."""
    rows: int
    """Handed in since the start, by all of its runs."""
    waiting_rows: int
    """In its inbox, not yet taken by the coordinator."""
    inbox_rows: int
    """Capacity of its inbox."""
    waited_s: float
    """How long it has been waiting for room in its inbox; 0.0 if it does not wait now."""
    group: int
    """Number of its group: groups of actors and streams of batches are counted together as they are
    made, from 0."""
    has_finished: bool
    """Its function has returned, or it was stopped."""
    has_failed: bool
    """For good: more often than `max_restarts` allows."""
    last_failure: ChildExit | None
    """None if none of its processes has failed."""
    quiet_s: float
    """How long it has handed in nothing, though nothing holds it, from the option `quiet_s` on; 0.0
    before."""


@dataclass(frozen=True, slots=True)
class SamplerStatistics:
    """One sampler."""

    index: int
    """Within its stream of batches."""
    pid: int
    """Of its present or last process; 0 before the first."""
    is_alive: bool
    """Its process runs and has said READY. If not, and it has neither finished nor failed, one is
    being started."""
    restarts: int
    """Since the start."""
    has_finished: bool
    """It was stopped."""
    has_failed: bool
    """For good: more often than `max_restarts` allows."""
    last_failure: ChildExit | None
    """None if none of its processes has failed."""
    batches_filled: int
    """Since the start, by all of its runs."""
    ready: int
    """Those of them that wait in the queue."""
    rows_redrawn: int
    """Rows that it copied in vain because they were overwritten meanwhile, since its last start."""


class PriorityUpdate(NamedTuple):
    """What `Replay.update_priorities` did: `updated, stale = ...`."""

    updated: int
    stale: int
    """Rows that had been overwritten meanwhile."""


@dataclass(frozen=True, slots=True)
class SaveResult:
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
    """Into all files together."""
    seconds: float
    """From the call to the end, rests included that `max_bytes_per_s` asks for."""


@dataclass(frozen=True, slots=True)
class SavesStatistics:
    """What became of the saves of a replay since it was opened, by `save` and by `checkpoints`."""

    saves: int
    """That succeeded."""
    failures: int
    """That were refused or failed. Those that were cancelled count as neither."""
    saving: int
    """That are going on now."""
    last: SaveResult | None
    """The last one that succeeded."""
    last_path: str
    """Its directory; "" before the first."""
    last_saved_at_s: float
    """When it was done; 0.0 before the first."""
    last_failure: str
    """Why the last one that failed did; "" if none has."""
    last_failed_at_s: float
    """0.0 if none has."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A process or task that waits at this moment, or an actor that hands in nothing or has failed
    for good."""

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
    """Items that the learner may take a step that comes in."""
    min_size_to_sample: int
    """Rows before the first batch; in `error` it stands for so many steps."""
    error_buffer: float
    """In samples."""
    error: float
    """In samples: above 0 the actors are ahead, below the learner is."""
    inserts: int
    """Steps since the stream was opened, and up to `min_size_to_sample` of those that were there
    before. A final observation is no step."""
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
    """In items."""
    prefetch: int
    """Capacity of the prefetch queue, in batches."""
    ready: int
    """Batches in the queue."""
    fill: float
    """`ready / prefetch`, at most 1."""
    lent: int
    """Batches that the learner holds."""
    batches_delivered: int
    """Taken by the learner, since the stream was opened."""
    filled_by_learner: int
    """Of them, those that it filled itself, since no sampler had one ready: each is one of
    `learner_waits`."""
    rows_redrawn: int
    """Rows that were copied in vain because they were overwritten meanwhile: by samplers since
    their last start, by the learner since the stream was opened."""
    samplers_alive: int
    """Whose processes run and have said READY."""
    restarts: int
    """Of all samplers together."""
    learner_waits: int
    """How often the learner found no batch ready, and waited or filled one itself."""
    learner_waited_s: float
    """How long it waited then, in total, the present wait included."""
    peak_learner_wait_s: float
    """The longest of these waits."""
    limiter: LimiterStatistics | None
    """None if there is no `SamplesPerInsert`."""
    items_left: int | None
    """Of `Fifo`: that are complete and were not handed to the learner as often as they should; of
    `Epochs`: that are still to come; None of other selectors, and of endless epochs."""
    number: int
    """Of the stream: groups of actors and streams of batches are counted together as they are made,
    from 0."""
    what: str
    """What a batch is made of and how it is drawn, in words."""
    slots: int
    """Places for batches: `prefetch`, one for the learner, one a sampler, and one for the learner
    to fill where it may; 0 before the stream is opened."""
    filling: int
    """Slots that samplers are filling now."""
    slots_bytes: int
    """Shared memory of the slots."""
    samplers: tuple[SamplerStatistics, ...]
    """Empty before the stream is opened."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A whole replay."""

    rows: int
    """Rows that can be sampled now."""
    capacity_rows: int
    """Rows that fit."""
    rows_inserted: int
    """Since the start; goes on from a checkpoint's count, as the other counts of rows, blocks and
    priorities do."""
    row_bytes: int
    """Of one row as it is stored, all fields together."""
    blocks: int
    """That the ring consists of."""
    block_rows: int
    """Rows that fit into one. Halved, and all counts of blocks doubled, when streams become
    many."""
    blocks_started: int
    """Since the start; above `blocks`, each one recycled another."""
    priorities_updated: int
    """By `Replay.update_priorities`, since the start."""
    priorities_stale: int
    """Not updated, since the rows had been overwritten."""
    actors: tuple[ActorStatistics, ...]
    """Of all groups that are not closed."""
    batches: tuple[BatchesStatistics, ...]
    """One a stream that is not closed."""
    waits: tuple[Wait, ...]
    """Who waits now, for whom and why."""
    opened_at_s: float
    """When the replay was opened."""
    memory_bytes: int
    """Shared memory of the ring, of priorities, inboxes and slots together."""
    last_row_at_s: float
    """When an actor's rows came in last; 0.0 before the first."""
    saves: SavesStatistics
    """Of checkpoints."""
