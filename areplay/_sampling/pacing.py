"""Pacing: when the learner may take the next batch, and what each batch that it takes lets the
writers do.

    Pacing         with `MinSize`             neither side waits for the other
    LimitedPacing  with `SamplesPerInsert`    the limiter holds back the side that is ahead
    PlannedPacing  with `Fifo`, `Epochs`      a plan says which items are in which batch, and
                                              keeps their blocks until they were delivered

Rule: the learner's loop counts a batch in the same step in which it takes it, and tells the writers
after that. Knows neither slots nor samplers.
"""

from __future__ import annotations

from functools import partial

from areplay._ingest.admission import steps_in
from areplay._ingest.rate_controller import RateController, checked_replacement
from areplay._processes.completion import in_thread
from areplay._processes.dropped import Holdings
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.batch_plan import BatchPlan
from areplay._sampling.gate import Gate
from areplay._sampling.stream_records import StreamConfig, StreamHost, StreamState
from areplay.errors import EndOfEpochs, Stalled
from areplay.limiters import Limiter, SamplesPerInsert
from areplay.statistics import LimiterStatistics


class Pacing:
    """Hands out every batch that is ready.

    Attributes:
        delivered: batches that the learner took.
        resumed: the state that the stream continues.
        plan: which items are in which batch, where that is settled beforehand.
        is_beginning: whether the plan keeps all blocks while it takes in the rows of the ring.
        holds_writers: whether writers wait for the learner.
    """

    plan: BatchPlan | None = None
    is_beginning = False
    holds_writers = False

    def __init__(
        self, host: StreamHost, config: StreamConfig, gate: Gate, resumed: StreamState | None
    ) -> None:
        self.delivered = 0
        self.resumed = resumed
        self._config = config
        self._ring = host.ring
        self._admission = host.admission
        self._gate = gate

    async def begin(self, holdings: Holdings) -> None:
        """Let writers wait for the learner from now on.

        Cancelled: `end` undoes what has begun.
        """

    def end(self) -> None:
        """Hold no writer from now on. May be called in every state."""
        self._admission.changed()

    def replace_limiter(self, limiter: Limiter) -> None:
        """Let another limiter hold from now on.

        Raises:
            TypeError, ValueError: see `checked_replacement`. Nothing has changed.
        """
        checked_replacement(self._config.limiter, limiter, self._config.batch_size)

    def may_take(self) -> bool:
        """Whether the learner may take the next batch, if it is ready.

        Raises:
            EndOfEpochs: there is no next batch.
        """
        return True

    @property
    def lacks_rows(self) -> bool:
        """Whether the next batch needs rows that are not written yet."""
        return False

    def why_rows_are_lacking(self) -> str:
        """Say what the next batch needs, while it `lacks_rows`."""
        return ""

    def could_take(self, has_ready: bool) -> bool:
        """Whether a learner could take a batch without more rows.

        Args:
            has_ready: whether a slot holds a batch.
        """
        return has_ready

    def on_delivered(self) -> None:
        """Count the next batch as taken, and let the writers that wait for that look again."""
        self.delivered += 1

    def part_of(self, arrays: BatchArrays) -> BatchArrays:
        """The places of `arrays` that the items of the batch taken last fill."""
        return arrays

    @property
    def next_batch(self) -> str:
        """Names the next batch, if one certain sampler has to fill it; else ""."""
        return ""

    def limiter_statistics(self) -> LimiterStatistics | None:
        """The limiter at this moment."""
        return None

    def items_left(self) -> int | None:
        """Items of the plan that are complete and that the learner has not taken; None: no plan, or
        endless."""
        return None

    def state(self, what: str) -> StreamState:
        """What a checkpoint keeps: until pacing has begun, what it resumes."""
        before = self.resumed
        if before is None:
            return StreamState(what, self.delivered, None, None)
        delivered = before.batches_delivered + self.delivered
        return StreamState(what, delivered, before.limiter, before.is_over)


class LimitedPacing(Pacing):
    """Hands a batch out when the limiter allows it.

    Attributes:
        rate: counts steps that were inserted and items that were handed out.
    """

    def __init__(
        self,
        host: StreamHost,
        config: StreamConfig,
        gate: Gate,
        resumed: StreamState | None,
        limiter: SamplesPerInsert,
    ) -> None:
        super().__init__(host, config, gate, resumed)
        self.rate = RateController(limiter, config.batch_size, 0, host.admission.lock)
        self._has_begun = False

    async def begin(self, holdings: Holdings) -> None:
        # Rows that wait in inboxes now come in first. Otherwise the limiter would let them in step
        # by step, and later rows would queue behind a quarter of an inbox of each actor.
        steps = self.rate.buffer_steps
        self._admission.announce(steps)
        try:
            if self._admission.take_waiting is not None:
                await self._admission.take_waiting()
            self._begin_limiting(holdings)
        finally:
            self._admission.withdraw(steps)

    def _begin_limiting(self, holdings: Holdings) -> None:
        before = None if self.resumed is None else self.resumed.limiter
        if before is None or not self.rate.resume(before):
            self.rate.insert(steps_in(self._ring, self._gate.min_size))
        elif self.rate.has_begun:
            # The learner took the first batch before the checkpoint. The limiter may let no row in
            # before it takes another one.
            self._gate.min_size = 1
        holdings.push(partial(self._admission.remove, self.rate))
        self._has_begun = True
        self.holds_writers = True
        self._admission.add(self.rate)

    def end(self) -> None:
        self.holds_writers = False
        self._admission.remove(self.rate)
        super().end()

    def replace_limiter(self, limiter: Limiter) -> None:
        self.rate.replace(limiter)
        self._admission.changed()
        self._gate.wake_learner()

    def may_take(self) -> bool:
        return self.rate.can_sample

    @property
    def lacks_rows(self) -> bool:
        return not self.rate.can_sample

    def why_rows_are_lacking(self) -> str:
        seen = self.rate.statistics()
        return (
            f"{self.rate.inserts_missing:,} steps are missing until the next batch, by "
            f"{self.rate!r}: {seen.inserts:,} steps inserted, {seen.samples:,} items handed out"
        )

    def could_take(self, has_ready: bool) -> bool:
        return has_ready and self.rate.can_sample

    def on_delivered(self) -> None:
        self.delivered += 1
        self.rate.sample()
        self._admission.notify()

    def limiter_statistics(self) -> LimiterStatistics | None:
        return self.rate.statistics() if self.holds_writers else None

    def state(self, what: str) -> StreamState:
        state = super().state(what)
        if not self._has_begun:
            return state
        return StreamState(what, state.batches_delivered, self.rate.state(), state.is_over)


class PlannedPacing(Pacing):
    """Hands out the batches of a plan, in their order."""

    holds_writers = True

    def __init__(
        self,
        host: StreamHost,
        config: StreamConfig,
        gate: Gate,
        resumed: StreamState | None,
        plan: BatchPlan,
    ) -> None:
        super().__init__(host, config, gate, resumed)
        self.plan = plan
        self.is_beginning = True
        self._plan = plan

    async def begin(self, holdings: Holdings) -> None:
        plan = self._plan
        holdings.push(plan.close)
        plan.keep()
        self._admission.changed()
        without = None if self.resumed is None else self.resumed.is_over
        await in_thread("areplay-batch-plan", partial(plan.begin, without))
        self.is_beginning = False
        self._admission.notify()
        if plan.size(0) == 0:
            raise Stalled(
                f"{self._config.selector!r} of {plan.log.appended:,} items, which are none "
                f"or less than a batch; add rows before"
            )

    def end(self) -> None:
        self._plan.close()
        super().end()

    def may_take(self) -> bool:
        if self._plan.size(self.delivered) == 0:
            raise EndOfEpochs(repr(self._config.selector))
        return True

    @property
    def lacks_rows(self) -> bool:
        return not self._plan.has_batch(self.delivered)

    def why_rows_are_lacking(self) -> str:
        return (
            f"{self.items_left()} of {self._config.batch_size} items for a batch of "
            f"{self._config.selector!r}"
        )

    def could_take(self, has_ready: bool) -> bool:
        # A gate that is shut opens for a learner that finds the ring full.
        return self._plan.has_batch(self.delivered)

    def on_delivered(self) -> None:
        self.delivered += 1
        self._plan.on_delivered(self.delivered)
        self._admission.notify()

    def part_of(self, arrays: BatchArrays) -> BatchArrays:
        return arrays.first(self._plan.size(self.delivered - 1))

    @property
    def next_batch(self) -> str:
        return f"batch {self.delivered + 1} of {self._config.selector!r}"

    def items_left(self) -> int | None:
        return self._plan.items_left(self.delivered)

    def state(self, what: str) -> StreamState:
        state = super().state(what)
        if self.is_beginning or not self._plan.takes_in:
            return state
        log = self._plan.log
        is_over = partial(log.is_over, log.released)
        return StreamState(what, state.batches_delivered, state.limiter, is_over)


def pacing_of(
    host: StreamHost, config: StreamConfig, gate: Gate, resumed: StreamState | None
) -> Pacing:
    """The pacing that limiter and selector ask for. It holds nothing before `begin`, but a plan."""
    if config.new_batch_plan is not None:
        return PlannedPacing(host, config, gate, resumed, config.new_batch_plan())
    if isinstance(config.limiter, SamplesPerInsert):
        return LimitedPacing(host, config, gate, resumed, config.limiter)
    return Pacing(host, config, gate, resumed)
