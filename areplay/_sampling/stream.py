"""A stream of batches, as its replay knows it: opened once, closed once, waited for by the learner.

While it is open it has a `PrefetchQueue`, which decides everything; here the learner waits. What
the replay asks of a stream (its state for a checkpoint, whether it holds writers up) is answered
also before it is opened and after it was closed.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack

from areplay._base import forks
from areplay._base.hooks import guarded
from areplay._ingest.rate_controller import checked_replacement
from areplay._processes.backoff import poll
from areplay._processes.closing import InOrder, Once
from areplay._processes.lifetime import Lifetime
from areplay._sampling.prefetch_queue import SCHEDULE, Lent, PrefetchQueue
from areplay._sampling.stream_records import StreamConfig, StreamHost, StreamState
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_TO_START,
    check_descriptors,
)
from areplay.errors import ActorFailed, Closed, Stalled
from areplay.limiters import Limiter
from areplay.statistics import BatchesStatistics, Wait

_NAME = "this stream of batches"  # in errors
_SPIN_S = 0.0001
"""How long a learner that found no batch ready looks again, letting its loop turn, before it
sleeps. Small batches come every 30 us, and a sleep costs both sides about as much."""


class Stream:
    """What a replay and its `Batches` know of one stream.

    Attributes:
        config: what it was asked for, with the limiter that holds now.
        what: the stream consists of, the same for equal streams in every run.
        origin: the process that made it.
        is_closed: whether it was closed.
    """

    def __init__(self, host: StreamHost, config: StreamConfig) -> None:
        self.config = config
        self.what = config.what
        self.origin = forks.current
        self.is_closed = False
        self._host = host
        self._resumed: StreamState | None = None
        self._actor_failure: ActorFailed | None = None
        what = f"a stream of batches of {self.what}"
        self._life = Lifetime(_NAME, "batches", what, self.origin)
        self._owned = ExitStack()  # gives back what opening has taken, from the last line up
        self._queue: PrefetchQueue | None = None

    # Opening and closing.

    async def open(self) -> None:
        """See `Batches.__aenter__`."""
        self.check_process()
        self._host.check_open()
        await self._life.open(self, self._open, self.close)

    async def _open(self) -> None:
        samplers = self.config.samplers
        needed = samplers * (DESCRIPTORS_A_CHILD + 1) + 1 + DESCRIPTORS_TO_START
        check_descriptors(f"{samplers} samplers", needed)
        registry = self._host.registry
        ring = self._host.ring
        await poll(lambda is_late: registry.hold(ring, at_once=is_late))
        holdings = self._life.holdings

        def own(step: Callable[[], None]) -> None:
            """Take `step` when the stream is closed, and also if it is dropped."""
            self._owned.callback(step)
            holdings.push(step)

        own(Once(registry.let_go))
        queue = PrefetchQueue(self._host, self.config, self._resumed, holdings, own)
        self._queue = queue
        await queue.pacing.begin(holdings)
        queue.gate.on_rows()
        await queue.supervisor.start()

    async def leave(self, kind: type[BaseException] | None) -> None:
        """See `Batches.__aexit__`."""
        await self._life.holdings.leave(kind, self.close)
        self.is_closed = True

    async def close(self) -> None:
        """See `Batches.close`."""
        await self._life.close(self._close)

    async def _close(self) -> None:
        async with InOrder() as steps:  # from the last line up, each even if another failed
            steps.callback(self._close_queue)
            if self._queue is not None:
                steps.push_async_callback(self._queue.supervisor.stop)

    def _close_queue(self) -> None:
        self.is_closed = True
        if self._queue is not None:
            self._queue.close()
        self._owned.close()
        self.config.selector.close()

    def check_process(self) -> None:
        """Raise `WrongProcess` in a child that was forked from the process that made the stream."""
        self._life.check_process()

    # The learner's side.

    @property
    def queue(self) -> PrefetchQueue:
        """The queue; raises `Closed` if the stream is not open."""
        if self.is_closed or self._queue is None:
            raise Closed(_NAME)
        return self._queue

    def lend(self) -> Lent | None:
        """Take the next ready batch; None if none is ready.

        Raises:
            Closed, ActorFailed, EndOfEpochs, HookRaised: see `Batches`. No batch was taken.
        """
        queue = self.queue
        if self._actor_failure is not None:
            # A copy, since raising an error ties it to the frames that it passes.
            raise copy.copy(self._actor_failure)
        return queue.lend()

    async def fill_or_wait(self, timeout_s: float | None) -> Lent:
        """Fill a slot where none is ready, or wait for one.

        Cancelled: no batch has been taken.
        """
        queue = self.queue
        started = time.monotonic()
        lent = None if self._life.is_closing else queue.fill()
        if lent is None:
            return await self._wait(queue, timeout_s)
        queue.waits.add(started)
        return lent

    async def _wait(self, queue: PrefetchQueue, timeout_s: float | None) -> Lent:
        found: list[Lent] = []

        def take() -> bool:
            lent = self.lend()
            if lent is None and not self._life.is_closing:
                lent = queue.fill()
            if lent is None:
                queue.raise_if_starved()
                return False
            found.append(lent)
            return True

        started = queue.waits.begin()
        try:
            while time.monotonic() - started < _SPIN_S:
                await asyncio.sleep(0)
                lent = self.lend()
                if lent is not None:
                    return lent
            await queue.ready.wait(take, queue.reason, timeout_s)
        finally:
            queue.waits.end(started)
        return found[0]

    def raise_if_failed(self) -> None:
        """Raise `Stalled` if no more rows can come since something failed: an error is better than
        a learner that goes on for days with the rows that it has."""
        failure = self._host.failure()
        # A failure of an actor that the user wants raised, `lend` raises.
        if failure is not None and self._actor_failure is None:
            raise Stalled(f"no more rows can come: {failure}") from failure

    def replace_limiter(self, limiter: Limiter) -> None:
        """Let another limiter hold from now on, see `Batches.limiter`."""
        self.check_process()
        if self.is_closed or self._life.is_closing:
            raise Closed(_NAME)
        if self._queue is None:
            checked_replacement(self.config.limiter, limiter, self.config.batch_size)
        else:
            self._queue.pacing.replace_limiter(limiter)
        self.config = dataclasses.replace(self.config, limiter=limiter)

    # What the replay says and asks. From any thread.

    def on_rows(self) -> None:
        """Rows were written."""
        if self._queue is not None:
            self._queue.gate.on_rows()

    def tell_failure(self, failure: ActorFailed | None) -> None:
        """Raise `failure` at each further batch; None: raise no more. Call `look_again` for a
        learner that waits now."""
        self._actor_failure = failure

    def look_again(self) -> None:
        """Let a learner that waits look again: samplers or actors have changed."""
        if self._queue is not None:
            self._queue.gate.wake_learner()

    def statistics(self) -> BatchesStatistics:
        """The queue at this moment."""
        self.check_process()
        if self._queue is None:
            return _statistics_unopened(self.config)
        return self._queue.statistics(is_closed=self.is_closed)

    def waits(self) -> list[Wait]:
        """The waits of the learner that last at this moment."""
        self.check_process()
        queue = self._queue
        if queue is None:
            return []
        return [Wait("learner", queue.reason(), waited_s) for waited_s in queue.waits.lasting_s()]

    @property
    def is_waited_for(self) -> bool:
        """Whether a learner waits for its next batch."""
        return self._queue is not None and self._queue.waits.is_waiting

    @property
    def may_let_rows_in(self) -> bool:
        """Whether it holds writers up, by its limiter or plan, and a learner could take a batch and
        so let some go on; also while it is being opened or closed."""
        queue = self._queue
        if queue is None or self.is_closed or not queue.pacing.holds_writers:
            return False
        return self._life.is_closing or queue.could_take

    @property
    def is_beginning(self) -> bool:
        """Whether its plan keeps all blocks while it takes in the rows of the ring."""
        queue = self._queue
        return queue is not None and not self.is_closed and queue.pacing.is_beginning

    @property
    def may_find_items(self) -> bool:
        """Whether it holds writers up by its limiter, and samplers may find items without more rows
        though there are no items now."""
        queue = self._queue
        if queue is None or self.is_closed or self.config.is_planned:
            return False
        return queue.pacing.holds_writers and queue.diagnosis.may_find_items

    # Checkpoints.

    def resume(self, state: StreamState) -> None:
        """Continue an equal stream. Call it before the stream is opened.

        Raises:
            HookRaised: a schedule of the selector raised.
        """
        # Otherwise the batches that samplers fill first would have the first value of a schedule.
        guarded(SCHEDULE, self.config.selector.on_delivered)(state.batches_delivered)
        self._resumed = state

    def state(self) -> StreamState:
        """What a checkpoint keeps of this stream, as it is now."""
        if self._queue is not None:
            return self._queue.pacing.state(self.what)
        return StreamState(self.what, 0, None, None) if self._resumed is None else self._resumed


def _statistics_unopened(config: StreamConfig) -> BatchesStatistics:
    """Of a stream before it is opened: nothing is there."""
    return BatchesStatistics(
        batch_size=config.batch_size,
        prefetch=config.prefetch,
        ready=0,
        fill=0.0,
        lent=0,
        batches_delivered=0,
        filled_by_learner=0,
        rows_redrawn=0,
        samplers_alive=0,
        restarts=0,
        learner_waits=0,
        learner_waited_s=0.0,
        peak_learner_wait_s=0.0,
        limiter=None,
        items_left=None,
        number=config.number,
        what=config.description,
        slots=0,
        filling=0,
        slots_bytes=0,
        samplers=(),
    )
