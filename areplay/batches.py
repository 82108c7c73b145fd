"""Batches: the stream of batches that a learner iterates over.

`async for batch in batches` takes a ready batch without suspending, and gives the one before it
back. Where no batch is ready the learner may fill one itself, or waits. The stream behind it is in
`areplay._sampling.stream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from areplay._base import forks
from areplay._base.hooks import HookRaised
from areplay._base.validation import optional_seconds
from areplay._processes.opening import deliver
from areplay._sampling.stream import Stream
from areplay.batch import Batch
from areplay.errors import EndOfEpochs
from areplay.limiters import Limiter
from areplay.statistics import BatchesStatistics


class Batches(AsyncIterator[Batch]):
    """A stream of batches: an async context manager and iterator, made by `Replay.batches`.

    One coroutine iterates over it. Leaving the context stops its samplers; a learner that still
    waits gets `Closed`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __aenter__(self) -> Batches:
        """Start the samplers; returns when all have said READY. They begin to fill the queue at
        once.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any sampler
                was started.
            SamplerFailed: a sampler could not be started. All others have ended.
            Stalled: of `Epochs`: there is no item.
        """
        await self._stream.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stream.leave(kind)

    async def close(self) -> None:
        """Stop the samplers; a learner that waits for a batch gets `Closed`. Leaving the context
        does it. May be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
        """
        await self._stream.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._stream.is_closed

    async def __anext__(self) -> Batch:
        """The next batch, a view valid until the next call; waits if none is ready, at most
        `timeout_s`.

        Rather than wait it fills one itself, if it may; see `inline_sampling` of `Replay.batches`.
        The previous batch is given back first. Cancelled: no batch has been taken.

        Raises:
            Closed: the context was left.
            StopAsyncIteration: all epochs were delivered.
            Stalled: no row can come any more, since all actors or the coordinator failed, or, if it
                takes rows to go on, since all actors have returned; says why.
            SamplerFailed: all samplers failed for good.
            ActorFailed: an actor failed for good, of a group with `on_failure="raise"` that is
                still open.
            WaitTimeout: none was ready within the `timeout_s` given to `Replay.batches`.
            BaseException: what a schedule of the selector raised; no batch has been taken.
        """
        stream = self._stream
        if stream.origin is not forks.current:
            stream.check_process()
        queue = stream.queue
        queue.release_current()
        if queue.turns.is_due():
            await asyncio.sleep(0)
            stream.raise_if_failed()
        try:
            lent = stream.lend()
            if lent is None:
                lent = await stream.fill_or_wait(stream.config.timeout_s)
        except EndOfEpochs:
            raise StopAsyncIteration from None
        except HookRaised as raised:
            deliver(raised)
        batch = Batch(lent.arrays, lent.give_back)
        queue.current = batch
        return batch

    async def get(self, timeout_s: float | None = None) -> Batch:
        """A batch that stays valid until its `release()`. While it is held, the queue has one slot
        less.

        Cancelled: no batch has been taken. Raises as `__anext__` does, but `EndOfEpochs` where that
        one ends the loop.
        """
        stream = self._stream
        stream.check_process()
        timeout_s = optional_seconds("timeout_s", timeout_s)
        if stream.queue.turns.is_due():
            await asyncio.sleep(0)
        try:
            lent = stream.lend()
            if lent is None:
                lent = await stream.fill_or_wait(timeout_s)
        except HookRaised as raised:
            deliver(raised)
        return Batch(lent.arrays, lent.give_back)

    @property
    def limiter(self) -> Limiter:
        """The limiter that holds now; set it to change the ratio or the buffer while the stream
        runs.

        The new buffer holds at once. The new ratio holds for what is inserted from then on; before
        the first batch also for the first `min_size_to_sample` rows. `statistics().limiter` has the
        counts.

        Raises:
            TypeError: when set: it is no `SamplesPerInsert`, or the stream was made without one.
            ValueError: when set: learner and actors could wait for each other for ever, or
                `min_size_to_sample` is another one. Nothing has changed.
            Closed: when set: the context was left.
        """
        self._stream.check_process()
        return self._stream.config.limiter

    @limiter.setter
    def limiter(self, limiter: Limiter) -> None:
        self._stream.replace_limiter(limiter)

    @property
    def importance_sampling_exponent(self) -> float:
        """The exponent of the importance weights; 0.0 if the selector is not `Prioritized`.

        Set it while samplers run, and they use it from their next batch on. A schedule sets it at
        each batch.

        Raises:
            TypeError: when set: the selector is not `Prioritized`.
            ValueError: when set: it is not a number from 0 to 1.
        """
        self._stream.check_process()
        return self._stream.config.selector.importance_sampling_exponent

    @importance_sampling_exponent.setter
    def importance_sampling_exponent(self, value: float) -> None:
        self._stream.check_process()
        self._stream.config.selector.set_exponent(value)

    def statistics(self) -> BatchesStatistics:
        """The state of the queue at this moment. From any thread."""
        return self._stream.statistics()
