"""The replay: the front door to an engine, which it opens and closes.

Closing, whatever the reason: nobody can look at it from outside any more -> actors stop -> their
inboxes are emptied into blocks -> samplers stop -> waiting learners get `Closed` -> children are
reaped -> descriptors are closed. The memory goes with its last view.
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
            MemoryLimitExceeded, ResourceUnavailable: nothing was left allocated.
            BaseException: what `on_prefault` raised, as `save` raises it of `on_progress`. Nothing
                was left allocated.
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
        """Close everything that hangs on this replay, and itself; leaving the context does it. May
        be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
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
        """A replay with what a checkpoint holds, already open:
        `async with await Replay.load(path) as replay`.

        Every row has the index that it had, if capacity and block_rows are those of the checkpoint
        (and no `Fifo` had kept blocks over a whole lap). All streams are ended: who writes rows
        begins new ones. Streams of batches that are opened as before go on with the counts of their
        limiters, and a `Fifo` leaves out what it has delivered.

        Cancelled: nothing is left allocated.

        Args:
            spec: which the rows must be of; None: whatever they are.
            capacity: rows to keep, the newest ones; None: as many as before.
            block_rows: as for `Replay`; None: as before, if the capacity is the same.
            seed: for other random numbers than those that would have come next.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointMissing: there is none.
            CheckpointMismatch: it is of another spec, named field by field, or of a newer version.
            CheckpointDamaged: something in it is not as it was written; says what. Nothing is left
                allocated.
            MemoryLimitExceeded, ResourceUnavailable, ValueError: as for `Replay`.
            BaseException: what `on_progress` raised, as `save` raises it. Nothing is left
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
        """Write a checkpoint into that directory, off the loop, while everybody goes on; what was
        written.

        It holds the rows that are there when this is awaited, their episodes and priorities, and
        what limiters, selectors and random generators have counted; see docs/checkpoints.md. Of
        rows that are overwritten before their turn comes, it holds those that took their place: it
        is as full as the ring, however long it takes. Only those blocks are written that were not
        in the directory's checkpoint before, if that one is of this replay. What is there before is
        replaced in one step at the end: killed at any moment, the directory has one checkpoint,
        whole.

        Cancelled, or the replay is closed: it stops at the next block, and the checkpoint before
        stays; only if it was at its end already, the new one is there.

        Args:
            path: of the directory; made if it is not there. It should hold nothing else.
            max_bytes_per_s: not faster than that, so that the learner does not feel it; None: as
                fast as it goes.
            on_progress: called as `on_progress(done_bytes, size_bytes)` meanwhile, from another
                thread.

        Raises:
            CheckpointFailed: the disk is full, the directory read-only, or the like. The checkpoint
                before stays.
            CheckpointBusy: another save into this directory is going on, of any process.
            ResourceUnavailable: no descriptor, thread or memory is left. The checkpoint before
                stays.
            Closed: the replay was closed meanwhile. The checkpoint before stays.
            BaseException: what `on_progress` raised; a `RuntimeError` from it, if it is a
                `StopIteration`, `StopAsyncIteration`, `GeneratorExit` or `CancelledError`. The
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
        """Save into that directory every `every_s` seconds, and once more when the context is left:
        see `save`.

        One after the other, never two at once. A save that fails, say because the disk is full, is
        logged as an error; the next one tries again. So it is if `on_progress` raises; only
        `SystemExit` and `KeyboardInterrupt` end the program, as they do from every task. An async
        context manager; leaving it waits for the last save.
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
            start_timeout_s: until a process is ready, its imports included. Pickling its arguments
                before that may take as long again.
            grace_s: how long an actor that is asked to end may take, before SIGTERM, and then again
                before SIGKILL. Also how long its interpreter may take to end, before SIGKILL: from
                when the function has raised, or from when the group closes, if it has returned.

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
        return self._opened().local_writer.add(row, priority)

    def end_episode(self, environments: Any = None) -> None:
        """As `Actor.end_episode`, for the steps that `add` and `extend` take in this process.

        Raises:
            ValueError: `environments` is no choice of them; or the spec is not one of steps.
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
        return self._opened().local_writer.extend(columns, priorities)

    def sample(
        self,
        batch_size: int,
        item: Item | None = None,
        selector: AnySelector | None = None,
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
        engine = self._opened()
        count = whole_number("batch_size", batch_size, at_most=engine.config.max_batch_size)
        return Batch(engine.sampler.sample(count, item, selector, transform))

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
        return self._opened().update_priorities(indices, priorities, max_mean_mix, mask)

    def __len__(self) -> int:
        """Rows that are there, final observations among them. `Uniform` and `Prioritized` draw from
        these alone."""
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
