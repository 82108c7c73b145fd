"""The replay: the front door to an engine, which it opens and closes.

Closing is the same for every reason. The status server closes first. The actors stop, and the
coordinator empties their inboxes into blocks. The samplers stop, and learners that wait get
`Closed`. The children are reaped, and the descriptors closed. The memory goes with its last view.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from areplay._base import forks
from areplay._base.arrays import Indices
from areplay._base.hooks import Progress
from areplay._base.validation import flag, optional_seconds, whole_number
from areplay._engine.blueprint import Blueprint
from areplay._engine.checkpoints import (
    MAX_BYTES_PER_S,
    load,
    saving,
    saving_every,
)
from areplay._engine.config import ReplayConfig
from areplay._engine.counters import Counters, Draws
from areplay._engine.engine import Engine
from areplay._engine.periodic import Checkpoints
from areplay._engine.report import statistics_of
from areplay._ingest.actor_config import (
    ActorFunction,
    ActorGroupConfig,
    actor_program,
    inbox_options,
    raises_failures,
)
from areplay._ingest.actors import Actors
from areplay._ingest.quiet import quiet_options
from areplay._processes.lifetime import Lifetime
from areplay._processes.opening import delivered
from areplay._processes.supervision import supervisor_options
from areplay._sampling.requests import check_sendable, checked_item, checked_limiter
from areplay._sampling.stream_records import StreamConfig
from areplay.actor import run_actor
from areplay.batch import Batch
from areplay.batches import Batches
from areplay.errors import Closed
from areplay.items.item import Item
from areplay.items.transform import Transform
from areplay.limiters import Limiter
from areplay.selectors import AnySelector
from areplay.spec import Spec
from areplay.statistics import PriorityUpdate, SaveResult, Statistics
from areplay.weights import Weights


class Replay:
    """A replay buffer in shared memory: an async context manager.

    A replay that is dropped without being closed is let go.

    Args:
        spec: the fields of a row.
        capacity: rows to keep, the newest ones; rounded up to whole blocks, see `capacity_rows`.
        seed: fixes the draws of `sample`, and the seeds of actors and samplers.
        block_rows: rows a block; there is hardly ever a reason to give it. By default writers split
            blocks as streams become more. Nine rows in ten are then used with up to 1,000 streams.
            Given, blocks stay as they are.
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
        on_prefault: Progress | None = None,
    ) -> None:
        config = ReplayConfig.checked(spec, capacity, block_rows, prefault, on_prefault)
        self.spec = spec
        self._blueprint = Blueprint(config, Counters(seed))
        self._is_loaded = False  # open, and not entered yet
        self._engine: Engine | None = None
        what = f"a replay of {config.capacity_rows:,} rows"
        self._life = Lifetime("this replay", "a replay", what, None)

    @property
    def capacity_rows(self) -> int:
        """Rows that fit: `capacity` rounded up to whole blocks, at least 4 of them."""
        return self._blueprint.config.capacity_rows

    async def __aenter__(self) -> Replay:
        """Allocate the memory, off the loop.

        Raises:
            Closed: the replay was opened before.
            MemoryLimitExceeded, ResourceUnavailable: nothing was left allocated.
            BaseException: what `on_prefault` raised, in the way of `save`. Nothing was left
                allocated.
        """
        self._life.check_process()
        if self._is_loaded and not self._life.is_closing:
            self._is_loaded = False
            return self
        await self._life.open(self, self._open, self.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._life.holdings.leave(kind, self.close)

    async def close(self) -> None:
        """Close the replay, its groups of actors and its streams of batches. May be called twice.

        Leaving the context does the same. Cancelled: the replay is closed all the same, then the
        cancellation is delivered. In a process forked from the one that opened the replay, this
        returns at once and does nothing.
        """
        await self._life.close(self._close)

    async def _open(self) -> None:
        await self._blueprint.build(self._keep)

    def _keep(self, engine: Engine) -> None:
        self._engine = engine
        engine.note(self._life.holdings)

    async def _close(self) -> None:
        if self._engine is not None:  # it was entered
            await self._engine.close()

    @classmethod
    async def load(
        cls,
        path: str | os.PathLike[str],
        *,
        spec: Spec | None = None,
        capacity: int | None = None,
        block_rows: int | None = None,
        seed: int | None = None,
        on_progress: Progress | None = None,
    ) -> Self:
        """Open a replay with what a checkpoint holds.

        Use it as `async with await Replay.load(path) as replay`.

        Each row keeps its index if capacity and `block_rows` are those of the checkpoint, unless a
        `Fifo` had kept blocks over a whole lap. All streams of rows are ended: each writer begins a
        new one. A stream of batches that is opened with the same options goes on: with the counts
        of its limiter, and with a `Fifo` that leaves out the items it has delivered.

        Cancelled: nothing is left allocated.

        Args:
            spec: that the rows must have; None: any spec.
            capacity: rows to keep, the newest ones; None: as in the checkpoint.
            block_rows: as for `Replay`; None: as in the checkpoint, if the capacity is the same.
            seed: for other random numbers than those that would have come next.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointMissing: the directory has no checkpoint.
            CheckpointMismatch: the checkpoint has another spec, or is of a newer version. The
                message names the fields.
            CheckpointDamaged: a part of it is not as it was written; the message says which.
                Nothing is left allocated.
            MemoryLimitExceeded, ResourceUnavailable, ValueError: as for `Replay`.
            BaseException: what `on_progress` raised, in the way of `save`. Nothing is left
                allocated.
        """

        async def open_with(blueprint: Blueprint) -> Self:
            config = blueprint.config
            replay = cls(config.spec, config.capacity_rows, block_rows=config.block_rows)
            replay._blueprint = blueprint
            await replay.__aenter__()
            replay._is_loaded = True
            return replay

        return await load(path, spec, capacity, block_rows, seed, on_progress, open_with)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes_per_s: float | None = MAX_BYTES_PER_S,
        on_progress: Progress | None = None,
    ) -> Coroutine[Any, Any, SaveResult]:
        """Write a checkpoint into a directory, off the loop, while writers and learners go on.

        The checkpoint holds the rows of the moment at which this is awaited, with their episodes
        and priorities. It also holds the counts of limiters, selectors and random generators; see
        docs/checkpoints.md. Where a block is overwritten before it is copied, its successor is
        saved instead, so a checkpoint is as full as the ring. Blocks that this replay's last
        checkpoint in the directory has are not written again. One step at the end replaces the
        checkpoint before: a process that is killed at any moment leaves one whole checkpoint.

        Cancelled, or the replay is closed: the save stops at the next block, and the checkpoint
        before stays. Only if the save was at its end already, the new checkpoint stays.

        Args:
            path: of the directory; made if it does not exist. It should hold nothing else.
            max_bytes_per_s: an upper limit, so that the learner does not feel the save; None: as
                fast as it goes.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointFailed: the disk is full, the directory read-only, or the like. The checkpoint
                before stays.
            CheckpointBusy: a save of this or another process into this directory is under way.
            ResourceUnavailable: no descriptor, thread or memory is left. The checkpoint before
                stays.
            Closed: the replay was closed meanwhile. The checkpoint before stays.
            BaseException: what `on_progress` raised. A `StopIteration`, `StopAsyncIteration`,
                `GeneratorExit` or `CancelledError` becomes the cause of a `RuntimeError`. The
                checkpoint before stays.
        """
        return delivered(saving(self._opened(), path, max_bytes_per_s, on_progress))

    def checkpoints(
        self,
        path: str | os.PathLike[str],
        every_s: float,
        *,
        max_bytes_per_s: float | None = MAX_BYTES_PER_S,
        on_progress: Progress | None = None,
    ) -> Checkpoints:
        """Save into a directory every `every_s` seconds, and once more on leaving the context.

        An async context manager; leaving it waits for the last save. See `save`. Two saves of one
        context never overlap. A save that fails, for example on a full disk, is logged as an error,
        and the next one tries again. The same holds where `on_progress` raises. Only `SystemExit`
        and `KeyboardInterrupt` end the program, as they do from every task.
        """
        return saving_every(self._opened, path, every_s, max_bytes_per_s, on_progress)

    def statistics(self) -> Statistics:
        """Counts and states at this moment. From any thread."""
        return statistics_of(self._opened())

    def actors(  # noqa: PLR0913  options of a user, by name
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
        """Run `await function(actor, *args, **kwargs)` in `count` processes.

        An async context manager. A process that dies or raises is restarted, and its rows are kept.
        A process whose function returns is done. Leaving the context stops the actors and takes all
        their rows.

        An actor is quiet if it hands in neither rows nor reports though nothing holds it, perhaps
        since its environment hangs. The learner's event loop finds that out, so let it turn now and
        then.

        Args:
            function: a coroutine function at the top level of a module that can be imported.
            weights: what `actor.weights` reads.
            inbox_rows: rows that an actor may be ahead of the coordinator. By default about 16 MiB,
                at most 8,192 rows. While a limiter or selector holds rows back, the default is only
                as many as it will let in soon, see `SamplesPerInsert`.
            add_timeout_s: how long `Actor.add` waits for room before it raises `InboxFull`; None:
                for ever.
            max_restarts: of one actor within a minute, before it counts as failed for good. None:
                without limit, after a pause that doubles with each end within a minute, from 0.05 s
                to 5 s.
            on_failure: what an actor that failed for good means. "go on": an error in the log and
                an entry in `statistics().waits`; the other actors and the learner go on. "raise":
                the learner also gets `ActorFailed`, at its next batch or while it waits for one.
                Leaving the context raises it, too.
            quiet_s: after how long a warning and `statistics().waits` name a quiet actor; None:
                never.
            restart_after_s: after how long a quiet actor is restarted, with SIGTERM first. SIGKILL
                follows after 1 s, or after `grace_s` if that is shorter. Counts as a restart. None:
                never.
            start_timeout_s: how long a process may take until it is ready, imports included.
                Pickling its arguments before that may take as long again.
            grace_s: how long an actor may take to end when asked, before SIGTERM, and again before
                SIGKILL. An interpreter gets as long to end, before SIGKILL: after its function has
                raised, or, if the function has returned, from when the group closes.

        Raises:
            ValueError, TypeError: an option is not what it should be.
        """
        engine = self._opened()
        program = actor_program(function, args, kwargs, weights, add_timeout_s)
        number = engine.counters.next_number()
        config = ActorGroupConfig(
            number=number,
            seeds=engine.counters.seeds(Draws.ACTORS, number),
            spec=self.spec,
            body=run_actor,
            program=program,
            count=whole_number("count", count, at_most=10_000),
            inbox=inbox_options(self.spec, inbox_rows),
            supervisor=supervisor_options(max_restarts, start_timeout_s, grace_s),
            quiet=quiet_options(quiet_s, restart_after_s),
            raises=raises_failures(on_failure),
        )
        return Actors(engine.new_group(config, self._opened))

    def batches(  # noqa: PLR0913  options of a user, by name
        self,
        item: Item | None = None,
        batch_size: int = 256,
        *,
        samplers: int = 1,
        inline_sampling: bool = True,
        prefetch: int = 16,
        selector: AnySelector | None = None,
        transform: Transform | None = None,
        limiter: Limiter | None = None,
        min_size_to_sample: int | None = None,
        timeout_s: float | None = None,
        max_restarts: int | None = 3,
        start_timeout_s: float = 60.0,
        grace_s: float = 2.0,
    ) -> Batches:
        """An endless stream of batches, drawn ahead of time by sampler processes.

        An async context manager and iterator.

        Args:
            item: what a batch consists of; by default `Transitions()` for a spec of steps, else
                `Rows()`.
            batch_size: items a batch, with replacement; at most `capacity_rows` or 4,096, whichever
                is more.
            samplers: processes that fill the queue.
            inline_sampling: whether the learner fills a batch itself where no batch is ready, once
                a sampler has filled one. It does so for built-in items and selectors, without a
                transform, up to 16 MiB and 16,384 rows, and never for `Fifo` or `Epochs`. False
                keeps its event loop free. Then batches are also the same each time: with one
                sampler, `Uniform`, the same seed, and rows that do not change.
            prefetch: batches that samplers keep ready, at least one a sampler. One batch that the
                learner holds, and one that each sampler fills, come on top.
            selector: which items: `Uniform()` by default, `Prioritized`, `Fifo`, `Epochs`, or one
                of your own.
            transform: a function over the batch, run by the samplers, and the fields that it
                writes.
            limiter: how learner and actors wait for each other: `SamplesPerInsert`, or by default
                `MinSize`.
            min_size_to_sample: rows that the first batch waits for, unless the ring is full before;
                at most `capacity_rows`. Short for `limiter=MinSize(...)`; 1 by default.
            timeout_s: how long a step of the loop waits for a batch before it raises `WaitTimeout`;
                None: for ever.
            max_restarts, start_timeout_s, grace_s: as for `actors`.

        Raises:
            ValueError, TypeError: an option is not what it should be.
        """
        engine = self._opened()
        config = engine.config
        item, given = checked_item(self.spec, config.longest_window, item, selector, transform)
        with engine.registry.use(engine.ring):
            bound = engine.sampler.bind(given)
        check_sendable("item", item)
        if bound.is_of_user:
            check_sendable("selector", given)
        check_sendable("transform", transform)
        batch_size = whole_number("batch_size", batch_size, at_most=config.max_batch_size)
        limiter = checked_limiter(
            limiter, min_size_to_sample, batch_size, self.capacity_rows, item, given
        )
        samplers = whole_number("samplers", samplers, at_most=1_000)
        number = engine.counters.next_number()
        stream_config = StreamConfig(
            item=item,
            selector=bound,
            transform=transform,
            limiter=limiter,
            batch_size=batch_size,
            samplers=samplers,
            inline_sampling=flag("inline_sampling", inline_sampling),
            prefetch=whole_number("prefetch", prefetch, at_least=samplers, at_most=100_000),
            new_batch_plan=engine.planning(bound, item, batch_size, number),
            number=number,
            seeds=engine.counters.seeds_of_children(Draws.BATCHES, number),
            timeout_s=optional_seconds("timeout_s", timeout_s),
            supervision=supervisor_options(max_restarts, start_timeout_s, grace_s),
        )
        return Batches(engine.new_stream(stream_config, self._opened))

    def add(self, /, *, priority: Any = None, **row: Any) -> Coroutine[Any, Any, int | Indices]:
        """Write one row from this process; its index. Samplers can draw the row when this returns.

        With a spec of steps: one step of one environment, or of a vector of environments, as for
        `Actor.add`. Returns the index of its row, or (L,) int64. All steps that this process hands
        in are one stream.

        Waits for another `add` or `extend`, and while a limiter or selector lets no row in before
        the learner takes a batch. Cancelled meanwhile: nothing was written.

        The row gets the values that its arrays hold when the call begins to run, see `Actor.add`.

        Raises:
            SpecMismatch: the row does not fit the spec. Nothing was written.
            Stalled: the call would wait for a batch that cannot be made without more rows. Nothing
                was written. If a learner waits for that batch, the learner gets this error instead.
        """
        return self._opened().local_writer.add(row, priority)

    def end_episode(self, environments: Any = None) -> None:
        """End the episode, as `Actor.end_episode` does, for the steps that this process hands in.

        Raises:
            ValueError: `environments` does not name environments, or the spec is not one of steps.
                Nothing has changed.
        """
        self._opened().local_writer.break_off(environments)

    @property
    def autoreset_mode(self) -> str:
        """As `Actor.autoreset_mode`, for the steps that `add` takes in this process."""
        return self._opened().local_writer.episodes.autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        self._opened().local_writer.episodes.autoreset_mode = mode

    def extend(
        self, columns: Mapping[str, Any], *, priorities: Any = None
    ) -> Coroutine[Any, Any, Indices]:
        """Write n rows from this process, all or none; their indices, (n,) int64.

        Waits as `add` does, until all rows may be written. A call with more than 16 MiB writes off
        the loop.

        The rows get the values that the columns hold when the call begins to run. For that, columns
        of 16 MiB to 1 GiB are copied first (0.1 s a GiB), unless they are read-only or converted.
        Larger ones are written on the loop.

        Cancelled before the copy begins: no row was written. Cancelled later: all rows are written,
        then the cancellation is delivered. A stream with `Fifo` or `Epochs` that is opened during
        the copy may make the call wait for room after it.

        Args:
            columns: field name -> array of shape `(n, *field.shape)`, dtype as in the spec, 1 <= n
                <= capacity_rows. With a spec of steps: n consecutive steps of one environment, and
                `next_obs` if an episode ends among them.
            priorities: (n,) float, as for `Actor.add`.

        Raises:
            SpecMismatch: a field is missing, extra, or has the wrong shape or dtype. Nothing was
                written.
            ValueError: more rows than fit, or than a limiter or selector can ever let in at once.
            Stalled: as for `add`.
        """
        return self._opened().local_writer.extend(columns, priorities)

    def sample(
        self,
        batch_size: int,
        item: Item | None = None,
        selector: AnySelector | None = None,
        *,
        transform: Transform | None = None,
    ) -> Batch:
        """Draw a batch in this process, at once, in memory of its own.

        The same seed gives the same batches. With `Fifo` or `Epochs` each call goes on where the
        call before it with the same selector ended. From the first call on, rows that are still to
        come are kept for as long as that selector lives.

        Raises:
            Stalled: the ring has no item, or no row. With `Fifo`: too few items. With `Epochs`, at
                the first call: no item, or less than a batch with `drop_last`. The same call works
                when rows were added.
            EndOfEpochs: `Epochs` has given all items.
            ValueError, TypeError: an option, or what your own selector has drawn, is not what it
                should be.
        """
        engine = self._opened()
        count = whole_number("batch_size", batch_size, at_most=engine.config.max_batch_size)
        return Batch(engine.sampler.sample(count, item, selector, transform))

    def update_priorities(
        self, indices: Indices, priorities: Any, *, max_mean_mix: float = 0.9, mask: Any = None
    ) -> PriorityUpdate:
        """Give new priorities to the rows that the items of a batch were drawn by.

        Pass `batch.indices` and the errors of the items. A row that was overwritten meanwhile is
        recognised by its index, and skipped. Where an index occurs twice, its last priority counts.
        Signs do not matter. `Prioritized` does not draw a row of priority 0 any more.

        Args:
            indices: (B,) int64.
            priorities: (B,), or the errors of sequences, (B, T). From those, an item's priority is
                `max_mean_mix` times the largest error plus the rest times their mean (R2D2,
                Kapturowski et al. 2019, section 2.3).
            max_mean_mix: from 0 to 1.
            mask: (B, T) bool, which of the errors count; all by default. An item without such
                errors gets priority 0.

        Raises:
            ValueError: `priorities` is not one finite number an item, or a whole number that
                float64 would round. For a tensor that requires a gradient pass `.detach().cpu()`.
                Or no priorities exist: no `Prioritized` was given to `batches` or `sample`, and no
                row came with a priority. Nothing was changed.
        """
        return self._opened().update_priorities(indices, priorities, max_mean_mix, mask)

    def __len__(self) -> int:
        """Rows in the ring, final observations included; `Uniform` and `Prioritized` draw from
        these."""
        rows: int = self._opened().ring.rows_now[0]
        return rows

    def __bool__(self) -> bool:
        """True: a replay without rows is still a replay."""
        return True

    def _opened(self) -> Engine:
        life = self._life
        if life.origin is not forks.current:  # or not opened at all
            life.check_process()
        if self._engine is None or life.is_ending:
            raise Closed("this replay")
        return self._engine

    def __repr__(self) -> str:
        if self._life.origin is not None and self._life.is_foreign:
            return f"<Replay of process {self._life.origin.pid}>"
        return f"<Replay {'closed' if self._life.is_closing else self._engine or 'not open'}>"
