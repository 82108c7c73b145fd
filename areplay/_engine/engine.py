"""The engine: what an open replay consists of, complete from its making to its closing.

Knows how its parts are opened, closed in order, and let go if the replay is dropped. What saves it
(`areplay._engine.checkpoints`), looks at it (`areplay._engine.report`) or shows it to the user
(`areplay.replay`) is given the engine.

Rule: what runs (threads, tasks, callbacks of a loop) refers to the engine only weakly, so that it
goes with its replay.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np

from areplay._base.arrays import Indices
from areplay._base.hooks import HookRaised
from areplay._base.validation import fraction, priority_values, row_indices
from areplay._checkpoint.snapshot import Snapshot
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters, Draws
from areplay._engine.producers import Producers
from areplay._engine.saver import Saver
from areplay._engine.standstill import Standstill
from areplay._ingest.actor_config import ActorGroupConfig
from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.destination import Destination
from areplay._ingest.local_writer import LocalWriter
from areplay._processes.closing import InOrder
from areplay._processes.dropped import Holdings
from areplay._processes.opening import deliver
from areplay._processes.weakly import Living, notice, unless_gone
from areplay._sampling.batch_plan import BatchPlan, PlannedSelector
from areplay._sampling.bound_selector import BoundSelector
from areplay._sampling.local_sampler import LocalSampler
from areplay._sampling.stream import Stream
from areplay._sampling.stream_records import StreamConfig, StreamHost, StreamState
from areplay._status.server import StatusServer
from areplay._storage.priorities import Priorities
from areplay._storage.priority_tables import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import ActorFailed, SpecMismatch
from areplay.items.item import Item
from areplay.statistics import PriorityUpdate

_NAME = "this replay"  # in errors

Fill = Callable[[Ring], dict[float, Priorities]]


class Engine:
    """The parts of an open replay. Its making may take long, and runs in a thread.

    Args:
        fill: fills the ring with what a checkpoint holds, and returns the priorities of its rows
            by exponent; None: there is no checkpoint.
        describe: says what there is to say to programs outside. Called in the status thread.

    Attributes:
        groups: of actors; those that the user drops leave.
        streams: of batches; those that the user drops leave.
        resumable: what a checkpoint kept of streams of batches that were not opened again yet.
        opened_at: of `time.time()` and `time.monotonic()`, the same moment.

    Raises:
        MemoryLimitExceeded, ResourceUnavailable: nothing was left allocated.
        BaseException: what `fill` or `on_prefault` raised. Nothing was left allocated.
    """

    def __init__(
        self,
        config: ReplayConfig,
        counters: Counters,
        fill: Fill | None,
        describe: Callable[[Engine], dict[str, Any]],
    ) -> None:
        self.config = config
        self.counters = counters
        self._describe = describe
        self.groups: Living[ActorGroup] = Living()
        self.streams: Living[Stream] = Living()
        self.resumable: list[StreamState] = []
        self.registry = WriterRegistry(has_given_size=config.has_given_block_rows)
        self._memory = contextlib.ExitStack()  # gives it back, what was opened last first
        with contextlib.ExitStack() as undo:
            undo.callback(self._memory.close)
            self._open_memory(fill)
            self._open_writers(undo)
            self.saver = Saver(self.ring, self.registry, unless_gone(self.snapshot, _NAME))
            undo.pop_all()
        self.opened_at = time.time(), time.monotonic()
        self.status_server = StatusServer(unless_gone(self._description, _NAME))

    def _open_memory(self, fill: Fill | None) -> None:
        config = self.config
        self.ring = Ring(config.spec, config.blocks, config.block_rows, config.finest_block_rows)
        self._memory.callback(self.ring.segment.close)
        self.priorities = {} if fill is None else fill(self.ring)
        self.tables = PriorityTables(self.ring, self.registry, self.priorities)
        self._memory.callback(self.tables.close)
        self._memory.callback(self.registry.remove, self.tables)
        if config.prefault:
            self.ring.segment.prefault(config.on_prefault)
        self.admission = Admission(self.registry)
        self._memory.callback(self.admission.close)
        self.sampler = LocalSampler(
            self.ring,
            self.registry,
            self.tables,
            self.admission,
            config.longest_window,
            self.counters.generator,
            partial(self.counters.next_seeds, Draws.BATCH_PLANS),
        )
        self._memory.callback(self.sampler.close)

    def _open_writers(self, undo: contextlib.ExitStack) -> None:
        ring = self.ring
        registry = self.registry
        on_rows = partial(self.streams.tell, methodcaller("on_rows"))
        why_hopeless = unless_gone(self._why_hopeless, _NAME)
        destination = Destination(ring, registry, self.admission, on_rows)
        self.local_writer = LocalWriter(destination, why_hopeless)
        undo.callback(self.local_writer.writer.close)
        self.coordinator = Coordinator(destination, notice(self.on_change))
        self.producers = Producers(self.admission, self.local_writer, self.coordinator, self.groups)
        self.standstill = Standstill(ring, registry, self.producers, self.streams, self.sampler)

    def new_group(self, config: ActorGroupConfig, check_open: Callable[[], object]) -> ActorGroup:
        """A group of actors, that is not open yet.

        Args:
            check_open: raises `Closed` once the replay is closed. The group keeps its object.
        """
        self.registry.warn_of_streams(self.ring, config.count)
        self.groups.leave_out(lambda other: other.is_closed)  # and so frees their memory
        group = ActorGroup(
            config, self.coordinator, on_change=notice(self.on_change), check_open=check_open
        )
        self.groups.append(group)
        return group

    def planning(
        self, selector: BoundSelector, item: Item, batch_size: int, number: int
    ) -> Callable[[], BatchPlan] | None:
        """What begins the plan of stream `number`; None of a selector that plans no batches.

        Raises:
            ValueError: the ring has too little room for a batch of such items.
        """
        if not isinstance(selector, PlannedSelector):
            return None
        selector.check(batch_size, item.window, self.config.capacity_rows)
        seeds = self.counters.seeds(Draws.BATCH_PLANS, number)
        plan = selector.batch_plan
        return partial(plan, self.ring, self.registry, item.window, batch_size, seeds)

    def new_stream(self, config: StreamConfig, check_open: Callable[[], object]) -> Stream:
        """A stream of batches, that is not open yet. It goes on where a checkpoint's was.

        Args:
            check_open: raises `Closed` once the replay is closed. The stream keeps its object.

        Raises:
            BaseException: what a schedule of the selector raised.
        """
        self.streams.leave_out(lambda other: other.is_closed)  # and so frees their memory
        host = StreamHost(
            ring=self.ring,
            registry=self.registry,
            admission=self.admission,
            producers=self.standstill.producer_state,
            failure=self.producers.failure,
            check_open=check_open,
        )
        stream = Stream(host, config)
        self._resume(stream)
        self.streams.append(stream)
        stream.tell_failure(self.failure_to_raise)
        return stream

    def _resume(self, stream: Stream) -> None:
        for state in self.resumable:
            if state.what == stream.what:
                try:
                    stream.resume(state)
                except HookRaised as raised:
                    deliver(raised)
                self.resumable.remove(state)
                return

    def note(self, holdings: Holdings) -> None:
        """Say what is to be let go if the replay is dropped; the last step comes first."""
        holdings.watched(self.local_writer)
        holdings.push(
            self._memory.close,
            self.local_writer.writer.close,
            self.saver.letting_go(),
            self.coordinator.let_go,
            self.status_server.close,
        )

    async def close(self) -> None:
        """Close everything in order, the status server first, the memory last.

        Groups and streams are the user's objects: each is closed as if its context were left.
        """
        async with InOrder() as stack:  # from the last line up, each even if another failed
            stack.push_async_callback(self._free)
            stack.push_async_callback(self.saver.close)
            for stream in self.streams:
                stack.push_async_callback(stream.close)
            stack.push_async_callback(self.coordinator.stop)
            for group in self.groups:
                stack.push_async_callback(group.close)
            for stream in self.streams:
                if stream.config.is_planned:  # rows that come in now would not be kept for it
                    stack.push_async_callback(stream.close)
            stack.callback(self.status_server.close)

    async def _free(self) -> None:
        await self.local_writer.close()
        self._memory.close()

    def snapshot(self) -> Snapshot:
        """The replay at this moment, but for its blocks."""
        streams = [*(stream.state() for stream in self.streams), *self.resumable]
        return Snapshot(
            self.ring,
            self.priorities.copy(),
            {
                "block_rows_given": self.config.has_given_block_rows,
                "counts": self.counters.record(),
            },
            [(state.record(), state.is_over) for state in streams],
        )

    def update_priorities(
        self, indices: Indices, priorities: Any, max_mean_mix: float, mask: Any
    ) -> PriorityUpdate:
        """Give rows new priorities; see `Replay.update_priorities`."""
        if not self.priorities:
            raise ValueError(
                "update_priorities has no effect: pass selector=Prioritized(...) to "
                "batches() or sample()"
            )
        rows = row_indices(indices)
        mix = fraction("max_mean_mix", max_mean_mix)
        try:
            values = priority_values(priorities, len(rows), mix, mask)
        except SpecMismatch as mismatch:  # there is no spec here, and nothing that is stored
            raise ValueError(str(mismatch)) from None
        with self.registry.use(self.ring):
            updated = int(np.count_nonzero(self.tables.update(rows, values)))
        update = PriorityUpdate(updated, len(rows) - updated)
        self.counters.priorities_updated += update.updated
        self.counters.priorities_stale += update.stale
        return update

    def on_change(self) -> None:
        """Tell the streams that an actor finished or failed, or the coordinator failed."""
        failure = self.failure_to_raise
        for stream in self.streams:
            stream.tell_failure(failure)
            stream.look_again()

    @property
    def failure_to_raise(self) -> ActorFailed | None:
        """The first actor that failed for good and that the learner is to be told of at once."""
        failures = (group.failure_to_raise for group in self.groups)
        return next((failure for failure in failures if failure is not None), None)

    def _why_hopeless(self) -> str:
        return self.standstill.why_hopeless()

    def _description(self) -> dict[str, Any]:
        return self._describe(self)

    def __repr__(self) -> str:
        return repr(self.ring)
