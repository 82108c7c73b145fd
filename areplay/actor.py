"""The actor: what a user's coroutine sees in its own process.

An actor knows its inbox and nothing behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Columns, detached, own_columns
from areplay._base.validation import NO_PRIORITY, one_priority, plain_scalar, priority_column
from areplay._ingest.actor_config import ActorConfig
from areplay._ingest.episodes import Episodes
from areplay._ingest.inbox import waiting_rows
from areplay._ingest.reports import Scalar
from areplay._processes.backoff import YieldTimer
from areplay._processes.channel import READY, REPORT, Channel
from areplay._processes.waiter import Waiter
from areplay.errors import Closed, InboxFull, WaitTimeout, WouldBlock
from areplay.weights import Weights

logger = logging.getLogger(__name__)


_STOPPING_S = 0.2  # so long an actor that was asked to stop still waits for room


# copied for turns of the loop: a hundredth of what memory takes, so they cost 1 % at most
_TURN_BYTES_S = 100e6


# an actor that never waits lets its loop turn so often, for its other tasks and for cancellation
_TURN_S = 0.002


# a call whose arrays have so many bytes waits for room so long before it copies them and suspends
_DEAR_BYTES = 256 << 10
_BLOCKED_S = 0.001


class Actor:
    """The way from an environment into the replay. Handed to the coroutine function given to
    `Replay.actors`.

    Attributes:
        index: which of the actors this is, from 0.
        seed: an int of 32 bits, different for each actor and each restart, the same for the same
            `Replay(seed=)`.
        rng: numpy generator, seeded likewise.
    """

    def __init__(self, channel: Channel, config: ActorConfig) -> None:
        spec = config.inboxes.spec
        self.index = config.index
        self.seed = int(config.seeds.generate_state(1)[0])
        self.rng = np.random.default_rng(config.seeds)
        self._channel = channel
        self._spec = spec
        self._inbox = config.inboxes.inbox(config.index)
        self._weights = config.program.weights
        self._add_timeout_s = config.program.add_timeout_s
        self._episodes = Episodes(spec) if spec.is_steps else None
        self._room = Waiter(self._inbox.room_bell)
        self._turns = YieldTimer(_TURN_S)
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
            raise ValueError(
                "these actors were started without weights; pass weights= to Replay.actors"
            )
        return self._weights

    @property
    def autoreset_mode(self) -> str:
        """How the environments of a vector begin their next episode:
        `envs.metadata["autoreset_mode"]`.

        "NextStep" (as gymnasium's vectors by default), "SameStep" or "Disabled". Set it before the
        first `add`. Of ale-py's vectors say `envs.autoreset_mode`: their metadata is shared, and
        has the mode of the one made last.
        """
        return self._steps().autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        self._steps().autoreset_mode = mode

    def add(self, /, *, priority: Any = None, **row: Any) -> Coroutine[Any, Any, None]:
        """Hand in one row, waiting while the inbox is full. When this returns, the row is safe: it
        will be stored even if this process is killed at the next instruction.

        With a spec of steps: one step of one environment,
        `add(obs=, action=, reward=, terminated=, truncated=, next_obs=)` and the extras. `next_obs`
        may be left out, except where the episode ends: there it is the final observation. If it is
        given, the `obs` of the next call must be the same; an episode that is broken off without
        `terminated`, `truncated` or `end_episode()` is refused so. Observations and actions of Dict
        and Tuple spaces are given as they are, as dicts and tuples.

        Or one step of a vector of L environments, each field with an axis of length L in front,
        always the same L. Where an episode ends, its final observation comes as `autoreset_mode`
        says: "NextStep": in the `obs` of the next call, of which action and reward are ignored
        then; "SameStep": in `final_obs=info["final_obs"]`; "Disabled": in `next_obs`.

        `priority=` is what a `Prioritized` selector begins with for this row, (L,) of a vector;
        else the largest one so far.

        The row gets the values that its arrays hold when the call begins to run: at `await`, or
        when a task made of it first runs. An observation that comes in the memory of the one
        before, with other values, is refused if `next_obs` does not vouch for it: an environment
        that reuses its array has overwritten `obs` by then.

        Cancelled while waiting: the row has not been handed in, nor any row of a vector's step. A
        step that was not handed in, for whatever reason, leaves a gap: the steps before and after
        it are kept, no item spans it.

        Args:
            row: each field of the spec, of its shape and dtype; plain numbers are taken by value.
                Tensors of torch or jax on the CPU count as the arrays that they are.

        Raises:
            RuntimeError: another task of this actor is handing in a step; one does it, and in their
                order.
            Closed: it was waiting for room, and is asked to stop. Nothing was handed in; let it end
                the function.
            SpecMismatch: a field is missing, extra, or does not fit; or a vector's step, of L rows
                or with final observations of 2 L, exceeds `inbox_rows`. Nothing was handed in; the
                actor can go on.
            InboxFull: no room came within the `add_timeout_s` given to `Replay.actors`.
        """
        if self._episodes is None:
            return self._add_row(row, priority)
        return self._add_step(self._episodes, self._episodes.ticket(), row, priority)

    async def _add_row(self, row: dict[str, Any], priority: Any) -> None:
        self._check_process()
        given = NO_PRIORITY if priority is None else one_priority(priority)
        await self._put((row,), given)

    async def _add_step(
        self, episodes: Episodes, ticket: int, step: dict[str, Any], priority: Any
    ) -> None:
        self._check_process()
        with episodes.step(ticket):
            rows = episodes.rows(step)
            if isinstance(rows, tuple):
                await self._put(rows, NO_PRIORITY if priority is None else one_priority(priority))
            else:
                episodes.check_width(self._inbox.inbox_rows)
                await self._extend(
                    rows, priority_column(priority, episodes.environments, _length(rows)), step
                )

    def end_episode(self, environments: Any = None) -> None:
        """Break off the episode: the environment raised, or you reset it in the middle. Never
        waits, writes no row.

        The next `obs` is a first observation, as after a reset: frame stacks are padded there. No
        transition and no sequence leads from the steps before to those after it; those that are
        whole before it are drawn. The last step before it makes no transition, since the
        observation after it is not stored, not even if `next_obs` was given. To keep it, hand it in
        with `truncated=True` and `next_obs` instead; then nothing has to be broken off.

        Of a vector, `environments` says whose episodes end; the others go on. In autoreset mode
        NextStep their next `obs` is a first observation, too, and its action counts, also where an
        episode had ended in the last step. Do reset these environments. Where no step was handed in
        since the last end, nothing changes.

        It holds for the steps whose `add` or `extend` is called after it.

        Args:
            environments: of a vector of L: indices from 0 to L - 1, or a mask (L,) of bool; by
                default all.

        Raises:
            ValueError: `environments` is neither; or the spec is not one of steps. Nothing has
                changed.
        """
        forks.check(self._origin, "this actor")
        if self._episodes is None:
            raise ValueError(
                "end_episode is about steps of environments; make the spec with "
                "Spec.steps or from_env"
            )
        self._episodes.break_off(environments)

    def extend(
        self, columns: Mapping[str, Any], *, priorities: Any = None
    ) -> Coroutine[Any, Any, None]:
        """Hand in n rows at once, waiting until there is room for all of them. When this returns,
        they are safe.

        Cancelled while waiting, killed, or ended by `InboxFull` or `Closed`: all of them or none,
        if they are at most `inbox_rows`, each final observation counted as a row. Of more, the
        first ones may have been handed in, a multiple of `inbox_rows`; of steps, a gap follows
        them. They get the values that `add` takes. A list of observations that are all one array is
        refused.

        Args:
            columns: field name -> array of shape `(n, *field.shape)`, dtype as in the spec, n at
                least 1. With a spec of steps: n consecutive steps of one environment, and
                `next_obs` if an episode ends among them.
            priorities: (n,) float, as for `add`.

        Raises:
            SpecMismatch: a field is missing, extra, or has the wrong shape or dtype. Nothing was
                handed in.
            Closed: as of `add`.
            InboxFull: no room came within the `add_timeout_s` given to `Replay.actors`.
        """
        if self._episodes is None:
            return self._extend_rows(columns, priorities)
        return self._extend_steps(self._episodes, self._episodes.ticket(), columns, priorities)

    async def _extend_rows(self, columns: Mapping[str, Any], priorities: Any) -> None:
        self._check_process()
        rows, arrays = self._spec.convert_columns(columns)
        await self._extend(arrays, priority_column(priorities, rows, rows), columns)

    async def _extend_steps(
        self, episodes: Episodes, ticket: int, columns: Mapping[str, Any], priorities: Any
    ) -> None:
        self._check_process()
        with episodes.step(ticket):
            steps, at = episodes.columns(columns)
            await self._extend(
                steps, priority_column(priorities, len(at), _length(steps), at), None
            )

    async def flush(self) -> None:
        """Wait until every row handed in so far can be sampled. Cancelled: nothing is lost.

        Raises:
            WaitTimeout: that took longer than the `add_timeout_s` given to `Replay.actors`.
            Closed: it was waiting, and the actor is asked to stop. The rows are safe all the same.
        """
        forks.check(self._origin, "this actor")
        target = self._inbox.rows_put
        await self._wait_taken(
            lambda: self._inbox.rows_put - self._inbox.used >= target, WaitTimeout
        )

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
            raise ValueError(
                "autoreset_mode is about steps of environments; make the spec with "
                "Spec.steps or from_env"
            )
        return self._episodes

    def _check_process(self) -> None:
        if self._origin is not forks.current:
            forks.check(self._origin, "this actor")

    async def _put(self, rows: tuple[Mapping[str, Any], ...], priority: float) -> None:
        """Hand in a row, or two, together. What the caller writes to its arrays meanwhile does not
        reach them."""
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

    async def _extend(
        self, columns: Columns, priorities: Array | None, given: Mapping[str, Any] | None
    ) -> None:
        """Hand in checked columns, together if they fit into the inbox.

        Args:
            given: what the caller handed in, if `columns` may share memory with it; `None` if they
                do not.
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
            while not self._put_columns(columns, start, stop, priorities):
                if given is not None:
                    if self._has_room_soon(stop - start):
                        continue
                    columns, given = own_columns(columns, given), None
                await self._wait_room(stop - start)

    def _put_columns(
        self, columns: Columns, start: int, stop: int, priorities: Array | None
    ) -> bool:
        try:
            self._inbox.extend(columns, start, stop, priorities)
        except WouldBlock:
            return False
        return True

    def _has_room_soon(self, rows: int) -> bool:
        """Whether there is room for rows that would have to be copied if the call suspended.

        Blocks the loop for a moment, as the copy would. At full speed room comes in that time. The
        copy would cost throughput: the coordinator needs the memory's bandwidth and the cache, too.
        """
        inbox = self._inbox
        if rows * self._row_bytes < _DEAR_BYTES:
            return False
        inbox.request_flush()
        with inbox.waiting():
            self._room.block_until(lambda: inbox.room >= rows or inbox.is_stopping, _BLOCKED_S)
        return inbox.room >= rows

    async def _wait_room(self, rows: int) -> None:
        if self._inbox.room < rows:
            await self._wait_taken(lambda: self._inbox.room >= rows, InboxFull)

    async def _wait_taken(self, is_ready: Callable[[], bool], error: type[WaitTimeout]) -> None:
        """Wait until the coordinator has taken enough; request a flush."""
        inbox = self._inbox
        inbox.request_flush()
        late = partial(error, option="add_timeout_s")
        with inbox.waiting():
            await self._room.wait(
                lambda: is_ready() or inbox.is_stopping, self._reason, self._add_timeout_s, late
            )
            if not is_ready():
                # The learner may take no more batches, and then a limiter never lets these rows in.
                await self._room.wait_briefly(is_ready, _STOPPING_S)
                if not is_ready():
                    raise Closed(f"the inbox of actor {self.index}, whose actor was asked to stop,")

    def _reason(self) -> str:
        return (
            f"actor {self.index} waits for the coordinator: {waiting_rows(self._inbox)}; the "
            f"learner may be slower than its limiter or selector allows"
        )


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


async def run_actor(channel: Channel, config: ActorConfig) -> None:
    """Run the user's coroutine function. The main function of an actor's process."""
    actor = Actor(channel, config)
    program = config.program
    channel.send(READY)
    try:
        await program.function(actor, *program.args, **program.kwargs)
    except Closed:
        if not actor.stopping:
            raise
