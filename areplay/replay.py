"""The replay: opens the ring, the coordinator and all that hangs on them, and closes them in order.

Closing, whatever the reason: nobody can look at it from outside any more -> actors stop -> their
inboxes are emptied into blocks -> samplers stop -> waiting learners get `Closed` -> children are
reaped -> descriptors are closed. The memory goes with its last view.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from operator import methodcaller
from types import TracebackType
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Indices
from areplay._base.hooks import guarded, text_of
from areplay._base.validation import (
    flag,
    fraction,
    optional_seconds,
    priority_values,
    row_indices,
    whole_number,
)
from areplay._checkpoint.format import CancelToken
from areplay._checkpoint.reader import Checkpoint
from areplay._checkpoint.service import Checkpointed, Saver
from areplay._checkpoint.snapshot import Snapshot
from areplay._ingest.actor_config import (
    ActorFunction,
    ActorGroupConfig,
    actor_program,
    inbox_options,
    raises_failures,
)
from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.actors import Actors
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.destination import Destination
from areplay._ingest.local_writer import LocalWriter
from areplay._ingest.quiet import quiet_options
from areplay._processes.completion import in_thread, run_to_completion
from areplay._processes.dropped import Holdings, InOrder, notice, unless_gone
from areplay._processes.opening import ended, opened
from areplay._processes.supervisor import supervisor_options
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import BatchPlan, LocalBatchPlan, PlannedSelector
from areplay._sampling.reader import Reader
from areplay._sampling.requests import check_sendable, checked_item, checked_limiter
from areplay._sampling.standstill import Standstill
from areplay._sampling.stream import Stream
from areplay._sampling.stream_records import StreamConfig, StreamHost
from areplay._shm.resource_limits import check_memory
from areplay._status.held import Held
from areplay._storage.block_sizes import default_block_rows, finest_block_rows
from areplay._storage.priorities import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import MIN_BLOCKS, Ring
from areplay.actor import run_actor
from areplay.batch import Batch
from areplay.batches import Batches
from areplay.errors import Closed, SpecMismatch, Stalled
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.limiters import Limiter
from areplay.selectors.prioritized import BUILT_IN, items_of
from areplay.selectors.selector import Selector
from areplay.spec import Spec
from areplay.statistics import PriorityUpdate
from areplay.weights import Weights

logger = logging.getLogger(__name__)

_SMALL_BATCH = 4_096  # items that a batch may have even if fewer rows fit
_OWNER, _ACTORS, _BATCHES, _BATCH_PLANS = range(4)  # kinds of random generators


class Replay(Checkpointed, Held):
    """A replay buffer in shared memory: an async context manager. Dropped without being closed, it
    is let go.

    Args:
        spec: the fields of a row.
        capacity: rows to keep, the newest ones; rounded up to whole blocks, see `capacity_rows`.
        seed: makes the draws of `sample`, and the seeds of actors and samplers, the same each time.
        block_rows: rows a block; there is hardly ever a reason to give it. By default blocks are
            split as streams become more, so that nine rows in ten are used with up to 1,000 of
            them; given, they stay as they are.
        prefault: touch all the memory when opening, rather than as rows come in.
        on_prefault: called as `on_prefault(done_bytes, size_bytes)` meanwhile, from another thread.

    Raises:
        ValueError, TypeError: an option is not what it should be.
        MemoryLimitExceeded: the rows would need more memory than this process may take.
    """

    def __init__(
        self,
        spec: Spec,
        capacity: int,
        *,
        seed: int | None = None,
        block_rows: int | None = None,
        prefault: bool = False,
        on_prefault: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(spec, Spec):
            raise TypeError(f"spec must be an areplay.Spec, got {type(spec).__name__}")
        self.spec = spec
        capacity = whole_number("capacity", capacity, at_most=1 << 40)
        if block_rows is None:
            self._block_rows = default_block_rows(spec, capacity)
        else:
            self._block_rows = whole_number("block_rows", block_rows, at_most=1 << 20)
        self._blocks = max(MIN_BLOCKS, -(-capacity // self._block_rows))
        self._set_block_rows_given(block_rows is not None)
        if seed is not None:
            seed = whole_number("seed", seed, at_least=0)
        self._entropy = np.random.SeedSequence(seed).entropy
        self._rng = np.random.default_rng(self._seeds(_OWNER))
        self._prefault = bool(prefault)
        self._on_prefault = None if on_prefault is None else guarded("on_prefault", on_prefault)
        if self.capacity_rows != capacity:
            logger.info(
                "capacity %d rounded up to %d rows, whole blocks", capacity, self.capacity_rows
            )
        parts = {field.name: field.row_bytes * self.capacity_rows for field in spec.rows.values()}
        check_memory(f"a replay of {self.capacity_rows:,} rows of {spec.row_bytes:,} bytes", parts)
        self._registry = WriterRegistry()
        self._made = 0  # groups and streams so far, for their seeds
        self._ring: Ring | None = None
        self._local: weakref.WeakKeyDictionary[PlannedSelector, LocalBatchPlan] = (
            weakref.WeakKeyDictionary()
        )
        self._holdings = Holdings(f"a replay of {self.capacity_rows:,} rows")
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def capacity_rows(self) -> int:
        """Rows that fit: `capacity` rounded up to whole blocks, at least 4 of them."""
        return self._blocks * self._block_rows

    async def __aenter__(self) -> Replay:
        """Allocate the memory, off the loop.

        Raises:
            MemoryLimitExceeded, ResourceUnavailable: nothing was left allocated.
            BaseException: what `on_prefault` raised, as `save` raises it of `on_progress`. Nothing
                was left allocated.
        """
        self._check_process()
        if self._is_loaded and self._closing is None:
            self._is_loaded = False
            return self
        if self._opening is not None or self._closing is not None:
            raise Closed("this replay, which was opened before,")
        self._origin = forks.current
        self._holdings.begin(self)
        self._opening = asyncio.create_task(self._open_off_loop(), name="areplay opens a replay")
        await opened(self._opening, self.close, "this replay")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._holdings.leave(kind, self.close)

    async def close(self) -> None:
        """Close everything that hangs on this replay, and itself; leaving the context does it. May
        be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
        """
        if self._is_foreign:
            return
        if await self._holdings.are_lost():
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="areplay closes a replay")
        await run_to_completion(self._closing)

    async def _open_off_loop(self) -> None:
        stop = CancelToken() if self._loading is None else self._loading.stop
        await in_thread("areplay-files", self._open, stop.set)

    def _open(self) -> None:
        self._registry.has_given_size = self._has_given_block_rows
        finest_rows = (
            None
            if self._has_given_block_rows
            else finest_block_rows(self.capacity_rows, self._block_rows)
        )
        ring = Ring(self.spec, self._blocks, self._block_rows, finest_rows)
        announce_rows = partial(self._streams.tell, methodcaller("on_rows"))
        try:
            if self._loading is not None:
                self._priorities = self._loading.fill(ring)
            if self._prefault:
                ring.segment.prefault(self._on_prefault)
            self._tables = PriorityTables(ring, self._registry, self._priorities)
            self._reading_locks = ring.block_locks()
            self._admission = Admission(self._registry)
            why_hopeless = unless_gone(self._why_hopeless, "this replay")
            destination = Destination(ring, self._registry, self._admission, announce_rows)
            self._local_writer = LocalWriter(destination, why_hopeless)
        except BaseException:
            for priorities in self._priorities.values():
                priorities.close()
            ring.segment.close()
            raise
        self._saver = Saver(ring, self._registry, unless_gone(self._snapshot, "this replay"))
        self._coordinator = Coordinator(destination, notice(self._on_change))
        streams, local, groups = self._streams, self._local, self._groups
        self._standstill = Standstill(
            ring,
            self._registry,
            self._admission,
            self._local_writer,
            self._coordinator,
            lambda: streams,
            lambda: list(local.values()),
            lambda: groups,
        )
        self._ring = ring
        self._serve_status()
        self._note_holdings(ring)

    def actors(
        self,
        function: ActorFunction,
        count: int = 1,
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        weights: Weights | None = None,
        inbox_rows: int | None = None,
        add_timeout_s: float | None = None,
        max_restarts: int | None = 3,
        on_failure: str = "go on",
        quiet_s: float | None = 10.0,
        restart_after_s: float | None = None,
        start_timeout_s: float = 60.0,
        grace_s: float = 2.0,
    ) -> Actors:
        """`count` processes that run `await function(actor, *args, **kwargs)`: an async context
        manager.

        A process that dies or raises is restarted; its rows so far are kept. One whose function
        returns is done. Leaving the context stops the actors and takes all their rows.

        An actor is quiet if it hands in neither rows nor reports, though nothing holds it: its
        environment may hang. The learner's event loop notices that, so it has to turn now and then.

        Args:
            function: a coroutine function that can be imported, at the top level of its module.
            weights: what `actor.weights` reads.
            inbox_rows: rows that an actor may be ahead of the coordinator, whatever holds them
                back. By default some 16 MiB, at most 8,192; while a limiter or selector holds rows
                back, only as many as it lets in soon, see `SamplesPerInsert`.
            add_timeout_s: how long `Actor.add` waits for room before it raises `InboxFull`; None
                for ever.
            max_restarts: within a minute, of one actor, before it counts as failed for good. None:
                for ever, after a pause that doubles with each end within a minute, from 0.05 s to 5
                s.
            on_failure: what an actor that failed for good means. "go on": an error in the log, and
                an entry in `statistics().waits`; the other actors and the learner go on. "raise":
                besides, `ActorFailed` is raised where the learner waits for a batch, at its next
                batch, and when the context is left.
            quiet_s: after how long a quiet actor is named by a warning and in `statistics().waits`;
                None: never.
            restart_after_s: after how long a quiet actor is restarted: SIGTERM, and SIGKILL after 1
                s or `grace_s` if that is shorter. It counts as a restart. None: never.
            start_timeout_s: until a process is ready, its imports included.
            grace_s: how long an actor that is asked to end may take, before SIGTERM, and then again
                before SIGKILL. Also how long its interpreter may take to end, before SIGKILL: from
                when the function has raised, or from when the group closes, if it has returned.

        Raises:
            ValueError, TypeError: an option is not what it should be.
        """
        ring = self._opened()
        program = actor_program(function, args, kwargs, weights, add_timeout_s)
        number = self._next_number()
        config = ActorGroupConfig(
            number=number,
            seeds=self._seeds(_ACTORS, number),
            spec=self.spec,
            body=run_actor,
            program=program,
            count=whole_number("count", count, at_most=10_000),
            inbox=inbox_options(self.spec, inbox_rows),
            supervisor=supervisor_options(max_restarts, start_timeout_s, grace_s),
            quiet=quiet_options(quiet_s, restart_after_s),
            raises=raises_failures(on_failure),
        )
        self._registry.warn_of_streams(ring, config.count)
        self._groups.leave_out(lambda other: other.is_closed)  # and so frees their memory
        group = ActorGroup(
            config,
            self._coordinator_now(),
            on_change=notice(self._on_change),
            check_open=self._opened,
        )
        self._groups.append(group)
        return Actors(group)

    def batches(
        self,
        item: Item | None = None,
        batch_size: int = 256,
        *,
        samplers: int = 1,
        inline_sampling: bool = True,
        prefetch: int = 16,
        selector: Selector | PlannedSelector | None = None,
        transform: Transform | None = None,
        limiter: Limiter | None = None,
        min_size_to_sample: int | None = None,
        timeout_s: float | None = None,
        max_restarts: int | None = 3,
        start_timeout_s: float = 60.0,
        grace_s: float = 2.0,
    ) -> Batches:
        """An endless stream of batches, drawn ahead of time by sampler processes: async context
        manager and iterator.

        Args:
            item: what a batch consists of; by default `Transitions()` for a spec of steps, else
                `Rows()`.
            batch_size: items a batch, with replacement; at most `capacity_rows`, or 4,096 if that
                is more.
            samplers: processes that fill the queue.
            inline_sampling: where no batch is ready, the learner fills one itself rather than wait,
                once a sampler has filled one: of areplay's own items and selectors, but not with
                `Fifo` or `Epochs`, nor with a transform, nor above 16 MiB or 16,384 rows. False
                keeps its event loop free meanwhile; and with one sampler, `Uniform`, rows that do
                not change and the same seed, the batches are the same each time.
            prefetch: batches that are kept ready, beside the one that the learner holds and one
                that each sampler is filling; at least one a sampler.
            selector: which items: `Uniform()` by default, `Prioritized`, `Fifo`, `Epochs`, or one
                of your own.
            transform: a function over the batch, run by the samplers, and the fields that it
                writes.
            limiter: how learner and actors wait for each other: `SamplesPerInsert`, or by default
                `MinSize`.
            min_size_to_sample: rows that must be there before the first batch is drawn, or a full
                ring; at most `capacity_rows`. Short for `limiter=MinSize(...)`; 1 by default.
            timeout_s: how long a step of the loop waits for a batch before it raises `WaitTimeout`;
                None for ever.
            max_restarts, start_timeout_s, grace_s: as for `actors`.

        Raises:
            ValueError, TypeError: an option is not what it should be.
        """
        ring = self._opened()
        item, selector = checked_item(self.spec, self._longest_window, item, selector, transform)
        with self._registry.use(ring):
            self._bind(selector)
        check_sendable("item", item)
        if not hasattr(selector, "bind"):  # which has a share of our memory by now, and is ours
            check_sendable("selector", selector)
        check_sendable("transform", transform)
        batch_size = whole_number("batch_size", batch_size, at_most=self._max_batch_size)
        limiter = checked_limiter(
            limiter, min_size_to_sample, batch_size, self.capacity_rows, item, selector
        )
        samplers = whole_number("samplers", samplers, at_most=1_000)
        number = self._next_number()
        self._streams.leave_out(lambda other: other.is_closed)  # and so frees their memory
        entropy = self._entropy
        config = StreamConfig(
            item=item,
            selector=selector,
            transform=transform,
            limiter=limiter,
            batch_size=batch_size,
            samplers=samplers,
            inline_sampling=flag("inline_sampling", inline_sampling),
            prefetch=whole_number("prefetch", prefetch, at_least=samplers, at_most=100_000),
            new_batch_plan=self._batch_plan(selector, item, batch_size, number),
            number=number,
            seeds=lambda index, run: np.random.SeedSequence(
                entropy, spawn_key=(_BATCHES, number, index, run)
            ),
            timeout_s=optional_seconds("timeout_s", timeout_s),
            supervision=supervisor_options(max_restarts, start_timeout_s, grace_s),
        )
        host = StreamHost(
            ring, self._registry, self._admission, self._standstill.supply, self._opened
        )
        stream = Stream(host, config)
        self._resume(stream)
        self._streams.append(stream)
        stream.tell_failure(self._failure_to_raise())
        return Batches(stream)

    def add(self, /, *, priority: Any = None, **row: Any) -> Coroutine[Any, Any, int | Indices]:
        """Write one row from this process; its index. It can be sampled when this returns.

        With a spec of steps: one step of one environment, or of a vector of them, as `Actor.add`
        takes it; the index of its row, or (L,) int64. Steps handed in from this process are one
        stream.

        Waits for another `add` or `extend`, and where a limiter or selector lets no row in before
        the learner takes a batch. Cancelled meanwhile: nothing was written.

        The row gets the values that its arrays hold when the call begins to run, see `Actor.add`.

        Raises:
            SpecMismatch: the row does not fit the spec. Nothing was written.
            Stalled: it would wait for a batch that cannot be made without more rows. Nothing was
                written. If a learner waits for that batch it is the learner who gets this error.
        """
        self._opened()
        return self._own().add(row, priority)

    def end_episode(self, environments: Any = None) -> None:
        """As `Actor.end_episode`, for the steps that `add` and `extend` take in this process.

        Raises:
            ValueError: `environments` is no choice of them; or the spec is not one of steps.
                Nothing has changed.
        """
        self._own().break_off(environments)

    @property
    def autoreset_mode(self) -> str:
        """As `Actor.autoreset_mode`, for the steps that `add` takes in this process."""
        return self._own().episodes.autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        self._own().episodes.autoreset_mode = mode

    def extend(
        self, columns: Mapping[str, Any], *, priorities: Any = None
    ) -> Coroutine[Any, Any, Indices]:
        """Write n rows from this process, all or none; their indices, (n,) int64.

        Waits as `add` does, until all of them may be written. More than 16 MiB are written off the
        loop.

        The rows get the values that the columns hold when the call begins to run: so columns of 16
        MiB to 1 GiB are copied first (0.1 s a GiB), unless they are read-only or converted; larger
        ones are written on the loop. Cancelled before the copy begins: none were written;
        meanwhile: all of them, and the cancellation is delivered after that. (If a stream with
        `Fifo` or `Epochs` is opened during the copy, it may have to wait for room in between.)

        Args:
            columns: field name -> array of shape `(n, *field.shape)`, dtype as in the spec, 1 <= n
                <= capacity_rows. With a spec of steps: n consecutive steps of one environment, and
                `next_obs` if an episode ends among them.
            priorities: (n,) float, as for `Actor.add`.

        Raises:
            SpecMismatch: a field is missing, extra, or has the wrong shape or dtype. Nothing was
                written.
            ValueError: more rows than fit, or than a limiter or selector can ever let in at once.
            Stalled: as of `add`.
        """
        self._opened()
        return self._own().extend(columns, priorities)

    def sample(
        self,
        batch_size: int,
        item: Item | None = None,
        selector: Selector | PlannedSelector | None = None,
        *,
        transform: Transform | None = None,
    ) -> Batch:
        """A batch drawn in this process at once, in memory of its own; the same each time under the
        same seed.

        With `Fifo` or `Epochs` each call goes on where the one before it with this selector ended;
        from the first one on rows are kept that are still to come, as long as that selector lives.

        Raises:
            Stalled: no item can be made of the rows, or there are none; of `Fifo`: too few; of
                `Epochs`, at the first call: none, or with `drop_last` less than a batch. When rows
                were added, the same call gives them.
            EndOfEpochs: of `Epochs`: all of them were given.
            ValueError, TypeError: an option is not what it should be, or what a selector of your
                own has drawn.
        """
        ring = self._opened()
        item, chosen = checked_item(self.spec, self._longest_window, item, selector, transform)
        batch_size = whole_number("batch_size", batch_size, at_most=self._max_batch_size)
        with self._registry.use(ring):
            self._bind(chosen)
            rows = (
                self._next_rows(chosen, item, batch_size)
                if isinstance(chosen, PlannedSelector)
                else None
            )
            reader = Reader(ring, self._reading_locks, item, chosen, self._rng, transform)
            arrays = BatchArrays.empty(batch_size if rows is None else len(rows), reader.fields)
            is_filled = reader.fill(arrays, rows)
        if is_filled and isinstance(chosen, PlannedSelector):
            self._local[chosen].on_taken()
            self._admission.notify()
        if not is_filled:
            what = "a replay without rows"
            if len(self):
                what = f"{len(self):,} rows of which no {items_of(chosen, item)} can be made"
            if len(self) and type(chosen) not in BUILT_IN:
                what = (
                    f"{len(self):,} rows, of which {text_of(chosen)} drew no row that makes "
                    f"{text_of(item)}"
                )
            if len(self) and (obstacle := getattr(chosen, "obstacle", "")):
                raise Stalled(f"sample() by {text_of(chosen)}: {obstacle}")
            raise Stalled(
                f"sample() on {what}; add some first, or use batches(), which waits for them"
            )
        return Batch(arrays)

    def update_priorities(
        self, indices: Indices, priorities: Any, *, max_mean_mix: float = 0.9, mask: Any = None
    ) -> PriorityUpdate:
        """Give the rows that a batch's items were drawn by new priorities: `batch.indices` and
        their errors.

        A row that was overwritten meanwhile is recognised by its index, and left out. Of an index
        that occurs twice the last priority counts. Signs do not matter. A row of priority 0 is not
        drawn by `Prioritized` any more.

        Args:
            indices: (B,) int64.
            priorities: (B,), or the errors of sequences, (B, T): then an item's priority is
                `max_mean_mix` times the largest of them and the rest times their mean (R2D2,
                Kapturowski et al. 2019, section 2.3).
            max_mean_mix: from 0 to 1.
            mask: (B, T) bool, which of the errors count; all by default. Of none, an item gets
                priority 0.

        Raises:
            ValueError: not one finite number an item (a tensor that requires a gradient is none:
                `.detach().cpu()`), a whole number that float64 would round, or no `Prioritized`
                selector was given to `batches` or `sample` yet and no row came with a priority.
                Nothing was changed.
        """
        ring = self._opened()
        if not self._priorities:
            raise ValueError(
                "update_priorities has no effect: pass selector=Prioritized(...) to "
                "batches() or sample()"
            )
        names = row_indices(indices)
        try:
            values = priority_values(
                priorities, len(names), fraction("max_mean_mix", max_mean_mix), mask
            )
        except SpecMismatch as mismatch:  # there is no spec here, and nothing that is stored
            raise ValueError(str(mismatch)) from None
        with self._registry.use(ring):
            updated = int(np.count_nonzero(self._tables.update(names, values)))
        self._updated += updated
        self._stale += len(names) - updated
        return PriorityUpdate(updated, len(names) - updated)

    def __len__(self) -> int:
        """Rows that are there, final observations among them. `Uniform` and `Prioritized` draw from
        these alone."""
        rows: int = self._opened().rows_now[0]
        return rows

    def __bool__(self) -> bool:
        """True: a replay without rows is still a replay."""
        return True

    def _batch_plan(
        self, selector: Selector | PlannedSelector, item: Item, batch_size: int, group: int
    ) -> Callable[[], BatchPlan] | None:
        """What settles which items are in which batch, if the selector does."""
        if not isinstance(selector, PlannedSelector):
            return None
        selector.check(batch_size, item.window, self.capacity_rows)
        seeds = self._seeds(_BATCH_PLANS, group)
        return partial(
            selector.batch_plan, self._opened(), self._registry, item.window, batch_size, seeds
        )

    def _next_rows(self, selector: PlannedSelector, item: Item, batch_size: int) -> Indices:
        """What `sample` goes on with."""
        local = self._local.get(selector)
        if local is None:
            start = self._batch_plan(selector, item, batch_size, self._next_number())
            assert start is not None
            local = LocalBatchPlan(text_of(selector), item, start())
            # not kept: the next call begins anew, with the rows that are there by then
            if local.is_hopeless:
                try:
                    return local.next_rows(item, batch_size)
                finally:
                    local.close()
            self._local[selector] = local
            weakref.finalize(selector, _forget, local, weakref.ref(self._admission))
            self._admission.changed()  # it keeps rows from now on
        return local.next_rows(item, batch_size)

    def _bind(self, selector: Selector | PlannedSelector) -> None:
        bind = getattr(selector, "bind", None)
        if bind is not None:
            bind(self._tables.of_exponent)

    @property
    def _max_batch_size(self) -> int:
        return max(_SMALL_BATCH, self.capacity_rows)

    def _opened(self) -> Ring:
        if self._origin is not forks.current:  # or not opened at all
            self._check_process()
        if self._ring is None or self._closing is not None or self._holdings.is_abandoned:
            raise Closed("this replay")
        return self._ring

    def _set_block_rows_given(self, is_given: bool) -> None:
        self._has_given_block_rows = is_given
        self._longest_window = self._block_rows if is_given else self.capacity_rows // 2

    def _next_number(self) -> int:
        """Of a group of actors, or a stream of batches."""
        self._made += 1
        return self._made - 1

    def _seeds(self, *key: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._entropy, spawn_key=key)

    @classmethod
    def _for(
        cls, checkpoint: Checkpoint, capacity: int | None, block_rows: int | None, seed: int | None
    ) -> Replay:
        is_as_before = block_rows is None and capacity in (None, checkpoint.capacity_rows)
        replay = cls(
            checkpoint.spec,
            checkpoint.capacity_rows if capacity is None else capacity,
            seed=seed,
            block_rows=checkpoint.block_rows if is_as_before else block_rows,
        )
        if is_as_before:
            replay._set_block_rows_given(checkpoint.has_given_block_rows)
        return replay

    def _count_on(self, counts: dict[str, Any], has_new_seed: bool) -> None:
        self._updated, self._stale = counts["priorities_updated"], counts["priorities_stale"]
        if not has_new_seed:
            self._entropy, self._made = counts["entropy"], counts["made"]
            self._rng.bit_generator.state = counts["generator"]

    def _snapshot(self) -> Snapshot:
        counts = {
            "priorities_updated": self._updated,
            "priorities_stale": self._stale,
            "entropy": self._entropy,
            "made": self._made,
            "generator": self._rng.bit_generator.state,
        }
        streams = [*(stream.state() for stream in self._streams), *self._resumable]
        return Snapshot(
            self._opened(),
            self._priorities.copy(),
            {"block_rows_given": self._has_given_block_rows, "counts": counts},
            [(state.record(), state.is_over) for state in streams],
        )

    async def _close(self) -> None:
        await ended(self._opening)
        if self._ring is None:  # never entered
            self._holdings.release()
            return
        async with InOrder() as stack:  # from the last line up, each even if another failed
            stack.push_async_callback(self._free, self._ring)
            assert self._saver is not None
            stack.push_async_callback(self._saver.close)
            for stream in self._streams:
                stack.push_async_callback(stream.close)
            stack.push_async_callback(self._coordinator_now().stop)
            for group in self._groups:
                stack.push_async_callback(group.close)
            for stream in self._streams:
                if stream.is_planned:  # rows that come in now would not be kept for it
                    stack.push_async_callback(stream.close)
            if self._status_server is not None:
                stack.callback(self._status_server.close)
        self._holdings.release()

    def __repr__(self) -> str:
        if self._origin is not None and self._is_foreign:
            return f"<Replay of process {self._origin.pid}>"
        return f"<Replay {'closed' if self._closing is not None else self._ring or 'not open'}>"


def _forget(local: LocalBatchPlan, admission: weakref.ref[Admission]) -> None:
    """Keep no rows any more for a selector that is gone; its replay may be gone, too."""
    local.close()
    if (living := admission()) is not None:
        living.changed()
