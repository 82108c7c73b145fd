"""The actor: what a user's coroutine sees in its own process.

An actor knows its inbox and nothing behind it.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Mapping
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.validation import NO_PRIORITY, one_priority, plain_scalar, priority_column
from areplay._ingest.actor_config import ActorConfig
from areplay._ingest.episodes import Episodes
from areplay._ingest.handed_rows import HandedRows, row_count
from areplay._ingest.inbox_writer import InboxWriter
from areplay._ingest.reports import Scalar
from areplay._processes.channel import READY, REPORT, Channel
from areplay.errors import Closed
from areplay.weights import Weights


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
        self._writer = InboxWriter(
            self._inbox, config.index, spec.row_bytes, config.program.add_timeout_s
        )
        self._weights = config.program.weights
        self._episodes = Episodes(spec) if spec.is_steps else None
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
        return self._episodes_for("autoreset_mode").autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        self._episodes_for("autoreset_mode").autoreset_mode = mode

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
        await self._writer.put((row,), given)

    async def _add_step(
        self, episodes: Episodes, ticket: int, step: dict[str, Any], priority: Any
    ) -> None:
        self._check_process()
        with episodes.step(ticket):
            rows = episodes.rows(step)
            if isinstance(rows, tuple):
                given = NO_PRIORITY if priority is None else one_priority(priority)
                await self._writer.put(rows, given)
            else:
                episodes.check_width(self._inbox.inbox_rows)
                count = episodes.environments
                priorities = priority_column(priority, count, row_count(rows))
                await self._writer.extend(HandedRows(rows, priorities, step))

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
        self._episodes_for("end_episode").break_off(environments)

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
        given = priority_column(priorities, rows, rows)
        await self._writer.extend(HandedRows(arrays, given, columns))

    async def _extend_steps(
        self, episodes: Episodes, ticket: int, columns: Mapping[str, Any], priorities: Any
    ) -> None:
        self._check_process()
        with episodes.step(ticket):
            steps, at = episodes.columns(columns)
            given = priority_column(priorities, len(at), row_count(steps), at)
            await self._writer.extend(HandedRows(steps, given, None))

    async def flush(self) -> None:
        """Wait until every row handed in so far can be sampled. Cancelled: nothing is lost.

        Raises:
            WaitTimeout: that took longer than the `add_timeout_s` given to `Replay.actors`.
            Closed: it was waiting, and the actor is asked to stop. The rows are safe all the same.
        """
        forks.check(self._origin, "this actor")
        await self._writer.flush()

    def report(self, /, **values: Scalar) -> None:
        """Send scalars to the learner's side, where `actors.reports()` returns them. Never waits.

        A report is dropped if the learner's side is more than some hundred of them behind.

        Raises:
            TypeError: a value is no scalar, nor an array or tensor of one.
        """
        forks.check(self._origin, "this actor")
        scalars = {name: plain_scalar(f"report {name}=", value) for name, value in values.items()}
        self._channel.send_nowait(REPORT, (time.time(), scalars))

    def _episodes_for(self, what: str) -> Episodes:
        forks.check(self._origin, "this actor")
        if self._episodes is None:
            raise ValueError(
                f"{what} is about steps of environments; make the spec with Spec.steps or from_env"
            )
        return self._episodes

    def _check_process(self) -> None:
        if self._origin is not forks.current:
            forks.check(self._origin, "this actor")


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
