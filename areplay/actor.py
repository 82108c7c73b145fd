"""Actors: what a user's coroutine sees in its own process, and the group of them that the learner's process sees.

An actor knows its inbox and nothing behind it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from areplay import forks
from areplay.arrays import detached, own_columns
from areplay.crew import Crew, CrewOptions
from areplay.dropped import Holdings, InOrder, notice, unless_gone
from areplay.episodes import Episodes
from areplay.errors import ActorFailed, Closed, InboxFull, WaitTimeout, WouldBlock
from areplay.inbox import DESCRIPTORS_AN_INBOX, Inbox, Inboxes, waiting_rows
from areplay.limits import check_descriptors
from areplay.loops import drop_quietly
from areplay.options import NO_PRIORITY, one_priority, plain_scalar, priority_column
from areplay.process import DESCRIPTORS_A_CHILD, DESCRIPTORS_TO_START, READY, REPORT, Channel
from areplay.quiet import Quiet, QuietOptions
from areplay.reports import Report, Scalar
from areplay.spec import Array, Columns, Spec
from areplay.statistics import ActorStatistics, Wait
from areplay.waiting import Sleeper, Turns, ended, opened, run_to_completion
from areplay.weights import Weights

ActorFunction = Callable[..., Awaitable[None]]

logger = logging.getLogger(__name__)

MAX_REPORTS = 10_000
_STOPPING_S = 0.2  # so long an actor that was asked to stop still waits for room
_QUIET_GRACE_S = 1.0  # at most, from SIGTERM to SIGKILL, for an actor that hands nothing in
_TURN_BYTES_S = 100e6  # copied for turns of the loop: a hundredth of what memory takes, so they cost 1 % at most
_TURN_S = 0.002  # an actor that never waits lets its loop turn so often, for its other tasks and for cancellation


class Actor:
    """The way from an environment into the replay. Handed to the coroutine function given to `Replay.actors`.

    Attributes:
        index: which of the actors this is, from 0.
        seed: an int of 32 bits, different for each actor and each restart, the same for the same `Replay(seed=)`.
        rng: numpy generator, seeded likewise.
    """

    def __init__(
        self,
        channel: Channel,
        spec: Spec,
        inbox: Inbox,
        index: int,
        seeds: np.random.SeedSequence,
        weights: Weights | None,
        timeout_s: float | None,
    ) -> None:
        self.index = index
        self.seed = int(seeds.generate_state(1)[0])
        self.rng = np.random.default_rng(seeds)
        self._channel, self._spec, self._inbox, self._weights = channel, spec, inbox, weights
        self._timeout_s = timeout_s
        self._episodes = Episodes(spec) if spec.is_steps else None
        self._room = Sleeper(inbox.room_bell)
        self._turns = Turns(_TURN_S)
        self._row_bytes = spec.row_bytes
        self._origin = forks.current

    @property
    def stopping(self) -> bool:
        """Whether the learner's side has asked this actor to end. Look at it in your loop."""
        forks.check(self._origin, "this actor")
        return self._inbox.is_stopping

    @property
    def weights(self) -> Weights:
        """What the learner publishes: `version, arrays = actor.weights.latest()`."""
        forks.check(self._origin, "this actor")
        if self._weights is None:
            raise ValueError("these actors were started without weights; pass weights= to Replay.actors")
        return self._weights

    @property
    def autoreset_mode(self) -> str:
        """How the environments of a vector begin their next episode: `envs.metadata["autoreset_mode"]`.

        "NextStep" (as gymnasium's vectors by default), "SameStep" or "Disabled". Set it before the first `add`. Of
        ale-py's vectors say `envs.autoreset_mode`: their metadata is shared, and has the mode of the one made last.
        """
        return self._steps().autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        self._steps().autoreset_mode = mode

    def add(self, /, *, priority: Any = None, **row: Any) -> Coroutine[Any, Any, None]:
        """Hand in one row, waiting while the inbox is full. When this returns, the row is safe: it will be stored
        even if this process is killed at the next instruction.

        With a spec of steps: one step of one environment, `add(obs=, action=, reward=, terminated=, truncated=,
        next_obs=)` and the extras. `next_obs` may be left out, except where the episode ends: there it is the final
        observation. If it is given, the `obs` of the next call must be the same; an episode that is broken off without
        `terminated`, `truncated` or `end_episode()` is refused so. Observations and actions of Dict and Tuple spaces
        are given as they are, as dicts and tuples.

        Or one step of a vector of L environments, each field with an axis of length L in front, always the same L.
        Where an episode ends, its final observation comes as `autoreset_mode` says: "NextStep": in the `obs` of the
        next call, of which action and reward are ignored then; "SameStep": in `final_obs=info["final_obs"]`;
        "Disabled": in `next_obs`.

        `priority=` is what a `Prioritized` selector begins with for this row, (L,) of a vector; else the largest one so
        far.

        The row gets the values that its arrays hold when the call begins to run: at `await`, or when a task made of it
        first runs. An observation that comes in the memory of the one before, with other values, is refused if
        `next_obs` does not vouch for it: an environment that reuses its array has overwritten `obs` by then.

        Cancelled while waiting: the row has not been handed in, nor any row of a vector's step. A step that was not
        handed in, for whatever reason, leaves a gap: the steps before and after it are kept, no item spans it.

        Args:
            row: each field of the spec, of its shape and dtype; plain numbers are taken by value. Tensors of torch or
                jax on the CPU count as the arrays that they are.

        Raises:
            RuntimeError: another task of this actor is handing in a step; one does it, and in their order.
            Closed: it was waiting for room, and is asked to stop. Nothing was handed in; let it end the function.
            SpecMismatch: a field is missing, extra, or does not fit; or a vector's step, of L rows or with final
                observations of 2 L, exceeds `inbox_rows`. Nothing was handed in; the actor can go on.
            InboxFull: no room came within the `timeout_s` given to `Replay.actors`.
        """
        if self._episodes is None:
            return self._add_row(row, priority)
        return self._add_step(self._episodes, self._episodes.ticket(), row, priority)

    async def _add_row(self, row: dict[str, Any], priority: Any) -> None:
        self._check_process()
        given = NO_PRIORITY if priority is None else one_priority(priority)
        await self._put((row,), given)

    async def _add_step(self, episodes: Episodes, ticket: int, step: dict[str, Any], priority: Any) -> None:
        self._check_process()
        with episodes.step(ticket):
            rows = episodes.rows(step)
            if isinstance(rows, tuple):
                await self._put(rows, NO_PRIORITY if priority is None else one_priority(priority))
            else:
                episodes.check_width(self._inbox.inbox_rows)
                await self._extend(rows, priority_column(priority, episodes.environments, _length(rows)), step)

    def end_episode(self, environments: Any = None) -> None:
        """Break off the episode: the environment raised, or you reset it in the middle. Never waits, writes no row.

        The next `obs` is a first observation, as after a reset: frame stacks are padded there. No transition and no
        sequence leads from the steps before to those after it; those that are whole before it are drawn. The last step
        before it makes no transition, since the observation after it is not stored, not even if `next_obs` was given.
        To keep it, hand it in with `truncated=True` and `next_obs` instead; then nothing has to be broken off.

        Of a vector, `environments` says whose episodes end; the others go on. In autoreset mode NextStep their next
        `obs` is a first observation, too, and its action counts, also where an episode had ended in the last step. Do
        reset these environments. Where no step was handed in since the last end, nothing changes.

        It holds for the steps whose `add` or `extend` is called after it.

        Args:
            environments: of a vector of L: indices from 0 to L - 1, or a mask (L,) of bool; by default all.

        Raises:
            ValueError: `environments` is neither; or the spec is not one of steps. Nothing has changed.
        """
        forks.check(self._origin, "this actor")
        if self._episodes is None:
            raise ValueError("end_episode is about steps of environments; make the spec with Spec.steps or from_env")
        self._episodes.break_off(environments)

    def extend(self, columns: Mapping[str, Any], *, priorities: Any = None) -> Coroutine[Any, Any, None]:
        """Hand in n rows at once, waiting until there is room for all of them. When this returns, they are safe.

        Cancelled while waiting, killed, or ended by `InboxFull` or `Closed`: all of them or none, if they are at most
        `inbox_rows`, each final observation counted as a row. Of more, the first ones may have been handed in, a
        multiple of `inbox_rows`; of steps, a gap follows them. They get the values that `add` takes. A list of
        observations that are all one array is refused.

        Args:
            columns: field name -> array of shape `(n, *field.shape)`, dtype as in the spec, n at least 1. With a spec
                of steps: n consecutive steps of one environment, and `next_obs` if an episode ends among them.
            priorities: (n,) float, as for `add`.

        Raises:
            SpecMismatch: a field is missing, extra, or has the wrong shape or dtype. Nothing was handed in.
            Closed: as of `add`.
            InboxFull: no room came within the `timeout_s` given to `Replay.actors`.
        """
        if self._episodes is None:
            return self._extend_rows(columns, priorities)
        return self._extend_steps(self._episodes, self._episodes.ticket(), columns, priorities)

    async def _extend_rows(self, columns: Mapping[str, Any], priorities: Any) -> None:
        self._check_process()
        rows, arrays = self._spec.convert_columns(columns)
        await self._extend(arrays, priority_column(priorities, rows, rows), columns)

    async def _extend_steps(self, episodes: Episodes, ticket: int, columns: Mapping[str, Any], priorities: Any) -> None:
        self._check_process()
        with episodes.step(ticket):
            steps, at = episodes.columns(columns)
            await self._extend(steps, priority_column(priorities, len(at), _length(steps), at), None)

    async def flush(self) -> None:
        """Wait until every row handed in so far can be sampled. Cancelled: nothing is lost.

        Raises:
            WaitTimeout: that took longer than the `timeout_s` given to `Replay.actors`.
            Closed: it was waiting, and the actor is asked to stop. The rows are safe all the same.
        """
        forks.check(self._origin, "this actor")
        target = self._inbox.rows_put
        await self._wait_taken(lambda: self._inbox.rows_put - self._inbox.used >= target, WaitTimeout)

    def report(self, /, **values: Scalar) -> None:
        """Send scalars to the learner's side, where `actors.reports()` returns them. Never waits.

        A report is dropped if the learner's side is more than some hundred of them behind.

        Raises:
            TypeError: a value is no scalar, nor an array or tensor of one.
        """
        forks.check(self._origin, "this actor")
        scalars = {name: plain_scalar(f"report {name}=", value) for name, value in values.items()}
        self._channel.send_nowait(REPORT, (time.time(), scalars))

    def _steps(self) -> Episodes:
        forks.check(self._origin, "this actor")
        if self._episodes is None:
            raise ValueError("autoreset_mode is about steps of environments; make the spec with Spec.steps or from_env")
        return self._episodes

    def _check_process(self) -> None:
        if self._origin is not forks.current:
            forks.check(self._origin, "this actor")

    async def _put(self, rows: tuple[Mapping[str, Any], ...], priority: float) -> None:
        """Hand in a row, or two, together. What the caller writes to its arrays meanwhile does not reach them."""
        if self._turns.is_due():
            rows = tuple(detached(row) for row in rows)
            await asyncio.sleep(0)
            self._check_process()  # another task may have forked
        while True:
            try:
                self._inbox.put(*rows, priority=priority)
                return
            except WouldBlock:
                rows = tuple(detached(row) for row in rows)
                await self._wait_room(len(rows))

    async def _extend(self, columns: Columns, priorities: Array | None, given: Mapping[str, Any] | None) -> None:
        """Hand in checked columns, together if they fit into the inbox.

        Args:
            given: what the caller handed in, if `columns` may share memory with it; `None` if they do not.
        """
        rows = _length(columns)
        # A turn of the loop costs a copy here, and of many rows a dear one: so it comes later then.
        if self._turns.is_due(0 if given is None else rows * self._row_bytes / _TURN_BYTES_S):
            if given is not None:
                columns, given = own_columns(columns, given), None
            await asyncio.sleep(0)
            self._check_process()
        for start in range(0, rows, self._inbox.inbox_rows):
            stop = min(rows, start + self._inbox.inbox_rows)
            while True:
                try:
                    self._inbox.extend(columns, start, stop, priorities)
                    break
                except WouldBlock:
                    if given is not None:
                        columns, given = own_columns(columns, given), None
                    await self._wait_room(stop - start)

    async def _wait_room(self, rows: int) -> None:
        if self._inbox.room < rows:
            await self._wait_taken(lambda: self._inbox.room >= rows, InboxFull)

    async def _wait_taken(self, is_ready: Callable[[], bool], error: type[WaitTimeout]) -> None:
        """Wait until the coordinator has taken enough; it is asked to hurry."""
        inbox = self._inbox
        inbox.hurry()
        with inbox.waiting():
            await self._room.wait(lambda: is_ready() or inbox.is_stopping, self._reason, self._timeout_s, error)
            if not is_ready():
                # The learner may take no more batches, and then a limiter never lets these rows in.
                await self._room.linger(is_ready, _STOPPING_S)
                if not is_ready():
                    raise Closed(f"the inbox of actor {self.index}, whose actor was asked to stop,")

    def _reason(self) -> str:
        return (
            f"actor {self.index} waits for the coordinator: {waiting_rows(self._inbox)}; the learner may be slower "
            f"than its limiter or selector allows"
        )


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


async def run_actor(
    channel: Channel,
    function: ActorFunction,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inboxes: Inboxes,
    index: int,
    seeds: np.random.SeedSequence,
    weights: Weights | None,
    timeout_s: float | None,
) -> None:
    """What an actor's process runs."""
    actor = Actor(channel, inboxes.spec, inboxes.inbox(index), index, seeds, weights, timeout_s)
    channel.send(READY)
    try:
        await function(actor, *args, **kwargs)
    except Closed:
        if not actor.stopping:
            raise


class Actors:
    """A group of actors: an async context manager, made by `Replay.actors`. Leaving it stops them in order.

    Args:
        raises: whether an actor that failed for good is raised at the learner and on leaving, not only logged.
        detaching: `detach` as a step of `Holdings`.
        settle: awaited with an index when that actor's process has ended: takes all that it left in its inbox.
        on_change: called when an actor finished or failed for good.
        check_open: raises `Closed` once the replay is closed.
    """

    def __init__(
        self,
        function: ActorFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        spec: Spec,
        count: int,
        inbox_rows: int,
        seeds: Callable[[int, int], np.random.SeedSequence],
        weights: Weights | None,
        timeout_s: float | None,
        options: CrewOptions,
        quiet: QuietOptions,
        raises: bool,
        *,
        attach: Callable[[Inbox, int], Awaitable[None]],
        settle: Callable[[Inbox], Awaitable[None]],
        detach: Callable[[Inbox], Awaitable[None]],
        detaching: Callable[[Inbox], Callable[[], bool]],
        on_change: Callable[[], None],
        check_open: Callable[[], object],
        number: int,
    ) -> None:
        self._check_open, self._number = check_open, number
        self._spec, self._count, self._inbox_rows = spec, count, inbox_rows
        self._function, self._args, self._kwargs = function, args, kwargs
        self._seeds, self._weights, self._timeout_s = seeds, weights, timeout_s
        self._attach, self._settle, self._detach, self._on_change = attach, settle, detach, on_change
        self._detaching = detaching
        self._holdings = Holdings("an actor" if count == 1 else f"a group of {count} actors")
        self._options, self._quiet_options, self._raises = options, quiet, raises
        self._quiet = [Quiet(quiet) for _ in range(count)]
        self._reported = [0] * count
        self._watch: asyncio.Task[None] | None = None
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._inboxes: Inboxes | None = None
        self._inbox: list[Inbox] = []
        self._crew: Crew | None = None
        self._gone = asyncio.Event()
        self._origin = forks.current
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Actors:
        """Start the actors; returns when all have said READY.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any actor was started.
            ActorFailed: one could not be started. None is left.
        """
        self._check_process()
        self._check_open()
        if self._opening is not None or self._closing is not None:
            raise Closed("this group of actors, which was opened before,")
        self._holdings.begin(self)
        self._opening = asyncio.create_task(self._open(), name="areplay opens actors")
        await opened(self._opening, self.close, "this group of actors")
        return self

    async def _open(self) -> None:
        needed = self._count * (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX) + DESCRIPTORS_TO_START
        check_descriptors(f"{self._count} actors", needed)
        self._inboxes = Inboxes(self._spec, self._count, self._inbox_rows)
        self._inbox = inbox_of = [self._inboxes.inbox(index) for index in range(self._count)]
        settle, me = self._settle, weakref.ref(self)
        self._crew = Crew(
            "actor",
            self._count,
            run_actor,
            unless_gone(self._arguments, "this group of actors"),
            self._options,
            ActorFailed,
            ask=lambda index: inbox_of[index].stop(),
            after_exit=lambda index: settle(inbox_of[index]),
            on_change=notice(self._member_changed),
            on_report=lambda index, report: None if (group := me()) is None else group._on_report(index, report),
        )
        self._holdings.push(self._on_change, self._inboxes.close, *map(self._detaching, self._inbox))
        self._crew.note(self._holdings)
        for index, inbox in enumerate(self._inbox):
            await self._attach(inbox, index)
        await self._crew.start()
        if self._quiet_options.pause_s is not None:
            watch = _watch_quiet(weakref.ref(self), self._quiet_options.pause_s)
            self._watch = asyncio.create_task(watch, name="areplay quiet actors")
            drop_quietly(self._watch)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the group.

        Raises:
            ActorFailed: with `on_failure="raise"`, if an actor failed for good and no other error leaves the context.
        """
        await self._holdings.leave(kind, self.close)
        if error is None and self._raises and self.failures:
            raise self.failures[0]

    async def close(self) -> None:
        """Stop the actors and take all their rows; leaving the context does it. May be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process forked from the one that
        opened it, this returns at once and does nothing.
        """
        if self._origin is not forks.current:
            return
        if await self._holdings.are_lost():
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="areplay closes actors")
        await run_to_completion(self._closing)

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, to the end."""
        self._check_process()
        return self._closing is not None and self._closing.done()

    @property
    def is_open(self) -> bool:
        """Whether it has been entered, and not begun to close."""
        self._check_process()
        return self._crew is not None and self._closing is None and not self._holdings.is_abandoned

    def reports(self) -> list[Report]:
        """What the actors reported since the last call, oldest first; at most the newest 10,000."""
        self._check_process()
        taken = list(self._reports)
        self._reports.clear()
        return taken

    async def wait(self) -> None:
        """Wait until all actors have returned by themselves. Cancelled: nothing changed.

        Raises:
            ActorFailed: one of them failed for good; the others go on.
        """
        while not self.failures and self.alive:  # which raise in a forked child
            self._gone.clear()
            await self._gone.wait()
        if self.failures:
            raise self.failures[0]

    @property
    def alive(self) -> int:
        """How many actors are running, or being restarted."""
        self._check_process()
        return self._crew.alive if self._crew is not None and self._closing is None else 0

    @property
    def failures(self) -> list[ActorFailed]:
        """The actors that failed for good, as the errors that tell why."""
        self._check_process()
        failures = self._crew.failures if self._crew is not None else []
        return [failure for failure in failures if isinstance(failure, ActorFailed)]

    @property
    def failure_to_raise(self) -> ActorFailed | None:
        """The first actor that failed for good, while the group is open, if the learner is to be told at once."""
        return self.failures[0] if self._raises and self.is_open and self.failures else None

    @property
    def inbox_bytes(self) -> int:
        """Shared memory of all inboxes."""
        self._check_process()
        return self._inboxes.size_bytes if self._inboxes is not None else 0

    def statistics(self) -> tuple[ActorStatistics, ...]:
        """One record an actor. From any thread."""
        self._check_process()
        if self._crew is None:
            return ()
        now = time.monotonic()
        return tuple(
            ActorStatistics(
                index=member.index,
                pid=member.child.pid if member.child is not None else 0,
                is_alive=member.is_alive,
                restarts=member.restarts,
                rows=inbox.rows_put,
                waiting_rows=inbox.used,
                inbox_rows=inbox.inbox_rows,
                waited_s=inbox.waited_s if member.is_alive else 0.0,
                group=self._number,
                has_finished=member.has_finished,
                has_failed=member.failure is not None,
                last_failure=member.last_failure,
                quiet_s=self._quiet[member.index].lasts_s(now, self._counts(member.index)) if member.is_alive else 0.0,
            )
            for member, inbox in zip(self._crew.members, self._inbox, strict=True)
        )

    def waits(self) -> list[tuple[Inbox, Wait]]:
        """The actors that wait for room, hand in nothing or have failed at this moment, each with its inbox."""
        return [
            (self._inbox[record.index], Wait(f"actor {record.index}", *wait))
            for record in self.statistics()
            if (wait := self._wait(record)) is not None
        ]

    def _wait(self, record: ActorStatistics) -> tuple[str, float] | None:
        """Why nothing comes from an actor, and for how many seconds; None if it steps."""
        assert self._crew is not None
        member = self._crew.members[record.index]
        if record.waited_s and record.waiting_rows:
            return waiting_rows(self._inbox[record.index]), record.waited_s
        if record.quiet_s:
            cause = self._quiet[record.index].cause(self._counts(record.index))
            return f"it has handed in nothing: {cause}", record.quiet_s
        failure = member.failure
        if failure is not None and self._closing is None:
            *_, why = failure.details.strip().splitlines() or [""]
            return (
                f"it failed for good after {failure.restarts} restarts ({why}) and hands in nothing more; mend the "
                f"cause, or raise max_restarts",
                time.monotonic() - member.failed_at,
            )
        return None

    def _look_for_quiet(self, *, acts: bool) -> None:
        """See which actors hand nothing in; say so or restart them if it `acts`, rather than only look."""
        assert self._crew is not None
        now = time.monotonic()
        for member, quiet in zip(self._crew.members, self._quiet, strict=True):
            inbox, counts = self._inbox[member.index], self._counts(member.index)
            is_held = inbox.waited_s > 0 and inbox.used > 0
            pid = member.child.pid if member.child is not None and member.is_alive else 0
            lasted_s = quiet.look(now, pid, counts, is_excused=pid == 0 or is_held or inbox.is_stopping)
            if self._quiet_options.quiet_s is not None and lasted_s >= self._quiet_options.quiet_s:
                logger.info("actor %d (pid %d) hands in again after %.0f s", member.index, pid, lasted_s)
            if acts:
                self._act_on_quiet(self._crew, member.index, quiet, now, counts)

    def _act_on_quiet(self, crew: Crew, index: int, quiet: Quiet, now: float, counts: int) -> None:
        if quiet.is_due(now):
            cause, lasts_s = quiet.cause(counts), quiet.lasts_s(now, counts)
            logger.warning("actor %d (pid %d) has handed in nothing for %.0f s: %s", index, quiet.pid, lasts_s, cause)
        overdue_s = quiet.overdue_s(now)
        if not overdue_s:
            return
        # SIGTERM first: where only the coroutine waits it runs its `finally`, which closes the environment. It does
        # nothing to a loop that is blocked, nor to a process that is stopped.
        if quiet.asked_at is None:
            quiet.asked_at, number = now, signal.SIGTERM
        elif now - quiet.asked_at >= min(_QUIET_GRACE_S, self._options.grace_s):
            number = signal.SIGKILL
        else:
            return
        limit = self._quiet_options.restart_after_s
        crew.restart(index, f"it handed in nothing for {overdue_s:.1f} s (restart_after_s = {limit:g})", number)

    def _counts(self, index: int) -> int:
        """How much an actor has handed in: its rows, and its reports."""
        return self._inbox[index].rows_put + self._reported[index]

    def _on_report(self, index: int, report: tuple[float, dict[str, Scalar]]) -> None:
        self._reported[index] += 1
        self._reports.append(Report(index, *report))

    def _arguments(self, index: int, run: int) -> tuple[Any, ...]:
        self._quiet[index].starts(self._counts(index))
        seeds = self._seeds(index, run)
        return (self._function, self._args, self._kwargs, self._inboxes, index, seeds, self._weights, self._timeout_s)

    def _check_process(self) -> None:
        forks.check(self._origin, "this group of actors")

    def _member_changed(self) -> None:
        self._gone.set()
        self._on_change()

    async def _close(self) -> None:
        await ended(self._opening)
        await ended(self._watch)
        if self._crew is None or self._inboxes is None:  # never entered
            self._holdings.release()
            return
        async with InOrder() as stack:  # from the last line up, each even if another failed
            stack.callback(self._on_change)
            stack.callback(self._gone.set)
            stack.callback(self._inboxes.close)
            for inbox in self._inbox:
                stack.push_async_callback(self._detach, inbox)
            stack.push_async_callback(self._crew.stop)
        self._holdings.release()


async def _watch_quiet(group: weakref.ref[Actors], pause_s: float) -> None:
    """Let the group look at intervals for actors that hand nothing in, until it is gone or this is cancelled."""
    last, was_late = time.monotonic(), False
    while True:
        await asyncio.sleep(pause_s)
        # After a look that comes late the whole job may have been stopped (Ctrl-Z), its actors too: they get until the
        # next look. Once only: a learner with long training steps makes each look late.
        is_late = time.monotonic() - last > 3 * pause_s + 0.1
        actors = group()
        if actors is None:
            return
        actors._look_for_quiet(acts=was_late or not is_late)
        del actors  # a group that its owner drops may go
        last, was_late = time.monotonic(), is_late
