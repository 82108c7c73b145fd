"""Records of a stream of batches: what it was asked for, what it uses of its replay, what that
tells it about the writers, and what it leaves in a checkpoint. Plain records, which decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from areplay._base.arrays import Indices, Mask
from areplay._base.hooks import text_of
from areplay._base.identity import identity
from areplay._ingest.admission import Admission
from areplay._processes.supervision import SupervisorOptions
from areplay._sampling.batch_plan import BatchPlan
from areplay._sampling.bound_selector import BoundSelector
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.limiters import Limiter


@dataclass(frozen=True)
class StreamConfig:
    """What a stream of batches was asked for. `Replay.batches` has checked each value."""

    item: Item
    selector: BoundSelector
    transform: Transform | None
    limiter: Limiter
    batch_size: int
    """Items a batch."""
    samplers: int
    """Processes that fill batches."""
    prefetch: int
    """Batches that samplers keep ready."""
    inline_sampling: bool
    """Whether the learner may fill a batch itself rather than wait."""
    timeout_s: float | None
    """How long the loop over the stream waits for one batch; None: for ever."""
    supervision: SupervisorOptions
    number: int
    """Of the stream, among all groups of actors and streams of its replay."""
    seeds: Callable[[int, int], np.random.SeedSequence]
    """Makes the seeds of a sampler from its index and its number of restarts."""
    new_batch_plan: Callable[[], BatchPlan] | None
    """Begins the plan of a `PlannedSelector`; None for every other selector."""

    @property
    def is_planned(self) -> bool:
        """Whether a plan settles beforehand which items are in which batch."""
        return self.new_batch_plan is not None

    @property
    def what(self) -> str:
        """What the stream consists of: the same text for equal streams, in every run."""
        item = identity(self.item, self.item.window)
        return f"{self.batch_size} {item} by {self.selector.stream_name}"

    @property
    def description(self) -> str:
        """Item and selector, for statistics."""
        return f"{text_of(self.item)} by {self.selector!r}"


@dataclass(frozen=True)
class StreamHost:
    """What a stream of batches uses of the replay that it belongs to."""

    ring: Ring
    registry: WriterRegistry
    admission: Admission
    producers: Callable[[], ProducerState]
    """Looks where rows come from, at this moment."""
    failure: Callable[[], BaseException | None]
    """Says what failed, if no more rows can come because of that: `ProducerState.failure`, for
    less."""
    check_open: Callable[[], object]
    """Raises `Closed` once the replay is closed."""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """Where rows come from, at one moment. Messages, and the decision that no more can come, rest
    on it."""

    actors_alive: int
    is_exhausted: bool
    """All actors of the open contexts are gone, and no other writer ever added a row."""
    last_row: str
    failure: BaseException | None
    """What failed, if no more rows can come because of that."""
    is_stuck: Callable[[], bool] = lambda: False
    """Says whether every writer that has rows waits for a block at this moment, and all blocks are
    kept."""
    why_held: Callable[[], str] = lambda: ""
    """Says which rows wait at this moment, and for what; "" if no row waits."""
    why_barred: Callable[[], str] = lambda: ""
    """Says why no process can write a row before a learner takes a batch though no stream has one,
    and what to do; "" if a process can."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a checkpoint keeps of a stream of batches, for the stream that continues it."""

    what: str
    """`StreamConfig.what` of both streams."""
    batches_delivered: int
    """By this stream and by all streams that it continues."""
    limiter: dict[str, float] | None
    """The counts of a `SamplesPerInsert`."""
    is_over: Callable[[Indices], Mask] | None
    """Mask of the rows whose items a `Fifo` has delivered. Slow: call it in a thread."""

    def record(self) -> dict[str, Any]:
        """The part that is text and numbers."""
        return {
            "what": self.what,
            "batches_delivered": self.batches_delivered,
            "limiter": self.limiter,
        }
