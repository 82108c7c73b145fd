"""Metrics: what `Replay.statistics()` tells, for Prometheus. Needs the extra `metrics`.

    registry.register(areplay.metrics.ReplayCollector(replay))        # prometheus_client.REGISTRY,
                                                                      for example
    prometheus_client.start_http_server(9100, addr="127.0.0.1")

Nothing is counted twice: at each scrape the statistics are taken, in the thread that scrapes. All
names begin with `areplay_`, those of counters end in `_total`, and units are in the names.
"""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from areplay.errors import Closed, MissingDependency, WrongProcess
from areplay.replay import Replay
from areplay.statistics import Statistics

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    Family = CounterMetricFamily | GaugeMetricFamily

Labelled = Iterable[tuple[tuple[str, ...], object]]


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric of one kind of record.

    Attributes:
        name: of the metric; of a counter without `_total`.
        field: the path of fields from the record to the number.
        what: the metric's help text.
        is_moment: seconds since the epoch; 0.0 in the record if there was no such moment yet.
    """

    name: str
    field: str
    is_counter: bool
    what: str
    is_moment: bool = False


def _gauge(name: str, field: str, what: str) -> _Metric:
    return _Metric(f"areplay_{name}", field, False, what)


def _moment(name: str, field: str, what: str) -> _Metric:
    return _Metric(
        f"areplay_{name}_timestamp_seconds",
        field,
        False,
        f"{what}, since the epoch",
        is_moment=True,
    )


def _counter(name: str, field: str, what: str) -> _Metric:
    return _Metric(f"areplay_{name}", field, True, what)


_REPLAY = (
    _gauge("rows", "rows", "Rows that can be sampled now"),
    _gauge("capacity_rows", "capacity_rows", "Rows that fit"),
    _counter("rows_inserted", "rows_inserted", "Rows that came in"),
    _gauge("row_bytes", "row_bytes", "Bytes of one row as it is stored"),
    _gauge("blocks", "blocks", "Blocks of the ring"),
    _gauge("block_rows", "block_rows", "Rows that fit into a block"),
    _counter(
        "blocks_started",
        "blocks_started",
        "Blocks that were begun; above areplay_blocks each recycled another",
    ),
    _counter("priorities_updated", "priorities_updated", "Priorities that were updated"),
    _counter(
        "priorities_stale",
        "priorities_stale",
        "Priorities not updated, their rows had been overwritten",
    ),
    _moment("opened", "opened_at_s", "When the replay was opened"),
    _gauge("memory_bytes", "memory_bytes", "Shared memory of ring, priorities, inboxes and slots"),
    _moment("last_row", "last_row_at_s", "When an actor's rows came in last"),
    _counter("saves", "saves.saves", "Checkpoints that were saved"),
    _counter("save_failures", "saves.failures", "Saves that failed"),
    _gauge("saving", "saves.saving", "Saves that are going on"),
    _gauge("last_save_rows", "saves.last.rows", "Rows in the last checkpoint"),
    _gauge("last_save_blocks", "saves.last.blocks", "Blocks in the last checkpoint"),
    _gauge(
        "last_save_blocks_written",
        "saves.last.blocks_written",
        "Blocks that the last save had to write",
    ),
    _gauge(
        "last_save_blocks_renewed",
        "saves.last.blocks_renewed",
        "Blocks saved in place of overwritten ones",
    ),
    _gauge("last_save_bytes", "saves.last.bytes_written", "Bytes that the last save wrote"),
    _gauge("last_save_seconds", "saves.last.seconds", "How long the last save took"),
    _moment("last_save", "saves.last_saved_at_s", "When the last save was done"),
    _moment("last_save_failure", "saves.last_failed_at_s", "When a save failed last"),
)
_ACTOR = (
    _gauge("actor_alive", "is_alive", "1 if its process runs"),
    _gauge("actor_finished", "has_finished", "1 if its function has returned"),
    _gauge("actor_failed", "has_failed", "1 if it failed for good"),
    _counter("actor_restarts", "restarts", "Times that it was restarted"),
    _counter("actor_rows", "rows", "Rows that it handed in"),
    _gauge("actor_inbox_rows", "waiting_rows", "Rows in its inbox, not taken yet"),
    _gauge("actor_inbox_capacity_rows", "inbox_rows", "Rows that fit into its inbox"),
    _gauge(
        "actor_waiting_seconds", "waited_s", "How long it has been waiting for room in its inbox"
    ),
    _gauge(
        "actor_quiet_seconds",
        "quiet_s",
        "How long it has handed in nothing, though nothing holds it",
    ),
)
_STREAM = (
    _gauge("batch_size_items", "batch_size", "Items a batch"),
    _gauge("queue_ready_batches", "ready", "Batches in the prefetch queue"),
    _gauge("queue_capacity_batches", "prefetch", "Batches that the prefetch queue is to hold"),
    _gauge("queue_fill_ratio", "fill", "How full the prefetch queue is, from 0 to 1"),
    _gauge("slots", "slots", "Places for batches"),
    _gauge("slots_lent", "lent", "Slots that the learner holds"),
    _gauge("slots_filling", "filling", "Slots that samplers are filling"),
    _gauge("slots_bytes", "slots_bytes", "Shared memory of the slots"),
    _counter("batches_delivered", "batches_delivered", "Batches that the learner took"),
    _counter(
        "batches_filled_by_learner", "filled_by_learner", "Of these, those that it filled itself"
    ),
    _counter(
        "rows_redrawn",
        "rows_redrawn",
        "Rows copied and overwritten meanwhile: by samplers since their last start, by the learner",
    ),
    _counter("learner_waits", "learner_waits", "Times that the learner found no batch ready"),
    _counter("learner_wait_seconds", "learner_waited_s", "How long it waited then"),
    _gauge("learner_wait_peak_seconds", "peak_learner_wait_s", "The longest of these waits"),
    _gauge("samplers_alive", "samplers_alive", "Samplers whose processes run"),
    _gauge("items_left", "items_left", "Items that Fifo or Epochs are still to deliver"),
)
_LIMITER = (
    _gauge(
        "limiter_samples_per_insert",
        "samples_per_insert",
        "Items that the learner may take a step that comes in",
    ),
    _gauge(
        "limiter_min_size_rows",
        "min_size_to_sample",
        "Rows that have to be there before the first batch",
    ),
    _gauge(
        "limiter_error_buffer_samples", "error_buffer", "How far the error may go to either side"
    ),
    _gauge("limiter_error_samples", "error", "Above 0 the actors are ahead, below the learner is"),
    _counter("limiter_inserts", "inserts", "Steps that came in"),
    _counter("limiter_samples", "samples", "Items that were handed to the learner"),
    _gauge(
        "limiter_holds_learner",
        "holds_learner",
        "1 if the learner may take no batch before rows come",
    ),
    _gauge(
        "limiter_holds_writers",
        "holds_writers",
        "1 if no step is written before the learner takes a batch",
    ),
)
_SAMPLER = (
    _gauge("sampler_alive", "is_alive", "1 if its process runs"),
    _gauge("sampler_finished", "has_finished", "1 if it was stopped"),
    _gauge("sampler_failed", "has_failed", "1 if it failed for good"),
    _counter("sampler_restarts", "restarts", "Times that it was restarted"),
    _counter("sampler_batches", "batches_filled", "Batches that it filled"),
    _gauge("sampler_ready_batches", "ready", "Those of them that wait in the queue"),
    _counter(
        "sampler_rows_redrawn",
        "rows_redrawn",
        "Rows copied and overwritten meanwhile, since its last start",
    ),
)
_WAITING = (
    _gauge(
        "waiting_seconds",
        "waited_s",
        "How long a process has been waiting; the longest wait of that name",
    ),
)
_KINDS = (
    (_REPLAY, ("replay",)),
    (_ACTOR, ("replay", "group", "actor")),
    (_STREAM, ("replay", "stream")),
    (_LIMITER, ("replay", "stream")),
    (_SAMPLER, ("replay", "stream", "sampler")),
    (_WAITING, ("replay", "who")),
)


class ReplayCollector:
    """A collector for a registry of prometheus_client, of one replay or of several:
    `{"name": replay}`.

    The label `replay` is that name, "replay" of a single one. A replay that is not open has no
    samples. A process forked from the one that opened it has no samples either. The collector does
    not keep a replay alive.

    Raises:
        MissingDependency: prometheus_client is not installed.
    """

    def __init__(self, replay: Replay | Mapping[str, Replay]) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise MissingDependency("ReplayCollector", "metrics")
        replays = replay if isinstance(replay, Mapping) else {"replay": replay}
        self._replays = {name: weakref.ref(each) for name, each in replays.items()}

    def describe(self) -> Iterator[Family]:
        """List all metrics without samples: a registry refuses names that it has already."""
        for metrics, labels in _KINDS:
            yield from (_family(metric, labels) for metric in metrics)

    def collect(self) -> Iterator[Family]:
        """Collect all metrics as they are now. From any thread."""
        now = dict(self._statistics())
        for (metrics, labels), labelled in zip(_KINDS, _records(now), strict=True):
            for metric in metrics:
                family = _family(metric, labels)
                for values, record in labelled:
                    value = _value(record, metric.field)
                    if value is not None and not (metric.is_moment and value == 0.0):
                        family.add_metric(values, value)
                yield family

    def _statistics(self) -> Iterator[tuple[str, Statistics]]:
        for name, reference in self._replays.items():
            replay = reference()
            if replay is not None:
                try:
                    yield name, replay.statistics()
                # Or it is not open yet. A forked child has its own metrics, and not these.
                except (Closed, WrongProcess):
                    continue


def _records(now: Mapping[str, Statistics]) -> tuple[Labelled, ...]:
    """The records of each kind, each with the values of its labels."""
    streams = [(name, stream) for name, whole in now.items() for stream in whole.batches]
    waits: dict[tuple[str, ...], object] = {}
    for name, whole in now.items():
        for wait in sorted(whole.waits, key=attrgetter("waited_s")):
            waits[name, wait.who] = wait
    return (
        [((name,), whole) for name, whole in now.items()],
        [
            ((name, str(a.group), str(a.index)), a)
            for name, whole in now.items()
            for a in whole.actors
        ],
        [((name, str(stream.number)), stream) for name, stream in streams],
        [
            ((name, str(stream.number)), stream.limiter)
            for name, stream in streams
            if stream.limiter is not None
        ],
        [
            ((name, str(stream.number), str(s.index)), s)
            for name, stream in streams
            for s in stream.samplers
        ],
        list(waits.items()),
    )


def _value(record: object, path: str) -> float | None:
    """The number at the end of a path of fields; None if a field on it is None."""
    for field in path.split("."):
        record = getattr(record, field)
        if record is None:
            return None
    assert isinstance(record, int | float)
    return float(record)


def _family(metric: _Metric, labels: tuple[str, ...]) -> Family:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
    return kind(metric.name, metric.what, labels=labels)
