"""The prefetch queue: a stream of batches for the learner, kept near capacity by sampler processes.

`async for batch in batches` takes a ready slot without suspending, and gives the previous one back. It knows the slots
and the samplers' crew; what rows there are, and who makes them, it asks a `Supply`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np

from areplay.batch import Batch
from areplay.crew import Crew, CrewOptions
from areplay.errors import Closed, SamplerFailed, Stalled
from areplay.items import Item
from areplay.limits import check_descriptors
from areplay.options import optional_seconds
from areplay.process import DESCRIPTORS_A_CHILD, DESCRIPTORS_TO_START
from areplay.ring import Ring
from areplay.sampler import run_sampler
from areplay.select import Selector
from areplay.slots import LENT, READY, Slots
from areplay.statistics import BatchesStatistics
from areplay.transform import Transform, batch_fields
from areplay.waiting import Sleeper, Turns, ended, opened, run_to_completion

_TURN_S = 0.02
"""A learner that never waits lets its loop turn so often: for restarts, reports, cancellation, the user's other tasks.
Not more often, since a turn after a training step, with caches cold, costs 40 us; rows come in without it."""

_SPIN_S = 0.0001
"""How long a learner that found no batch ready looks again, letting its loop turn, before it sleeps. Small batches
come every 30 us, and a sleep costs both sides about as much."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Where the rows come from, at one moment, for messages and for the decision that no more can come."""

    actors_alive: int
    is_exhausted: bool
    """There are actors' contexts open, but all of their actors are gone, and nobody else ever added a row."""
    last_row: str
    failure: BaseException | None
    """Why there will be no more rows, if something failed."""


class Batches(AsyncIterator[Batch]):
    """A stream of batches: an async context manager and iterator, made by `Replay.batches`.

    One coroutine iterates over it. Leaving the context stops its samplers; whoever still waits gets `Closed`.
    """

    def __init__(
        self,
        ring: Ring,
        item: Item,
        selector: Selector,
        transform: Transform | None,
        batch_size: int,
        samplers: int,
        prefetch: int,
        min_size_to_sample: int,
        seeds: Callable[[int, int], np.random.SeedSequence],
        timeout_s: float | None,
        options: CrewOptions,
        supply: Callable[[], Supply],
        check_open: Callable[[], object],
    ) -> None:
        self._check_open = check_open
        self._ring, self._item, self._selector, self._transform = ring, item, selector, transform
        self._seeds, self._supply = seeds, supply
        self._on_delivered = getattr(selector, "on_delivered", None)
        self._batch_size, self._samplers, self._prefetch = batch_size, samplers, prefetch
        self._min_size, self._timeout_s, self._options = min_size_to_sample, timeout_s, options
        self._slots: Slots | None = None
        self._crew: Crew | None = None
        self._ready: Sleeper | None = None
        self._current: Batch | None = None
        self._turns = Turns(_TURN_S)
        self._gate_guard = threading.Lock()
        self._delivered = self._waits = 0
        self._waited_s = self._peak_wait_s = 0.0
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.is_closed = False

    async def __aenter__(self) -> Batches:
        """Start the samplers; returns when all have said READY. They begin to fill the queue at once.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any sampler was started.
            SamplerFailed: one could not be started. None is left.
        """
        self._check_open()
        if self._opening is not None or self._closing is not None:
            raise Closed("this stream of batches, which was opened before,")
        self._opening = asyncio.create_task(self._open(), name="areplay opens batches")
        await opened(self._opening, self.close, "this stream of batches")
        return self

    async def _open(self) -> None:
        check_descriptors(
            f"{self._samplers} samplers", self._samplers * (DESCRIPTORS_A_CHILD + 1) + DESCRIPTORS_TO_START
        )
        fields = batch_fields(self._item, self._ring.spec, self._transform)
        # Slots beside the queue's: one for the batch that the learner holds, one for each sampler to fill meanwhile.
        count = self._prefetch + 1 + self._samplers
        self._slots = slots = Slots(fields, self._batch_size, count, self._samplers)
        self._give_back = [partial(slots.give_back, slot) for slot in range(count)]
        self._ready = Sleeper(slots.learner_bell)
        self._crew = Crew(
            "sampler",
            self._samplers,
            run_sampler,
            lambda index, run: (
                self._ring,
                slots,
                index,
                self._item,
                self._selector,
                self._transform,
                self._seeds(index, run),
            ),
            self._options,
            SamplerFailed,
            ask=lambda index: slots.stop(),
            after_exit=self._recover,
            on_change=self.look_again,
        )
        self.on_rows()
        await self._crew.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the samplers; whoever waits for a batch gets `Closed`. Leaving the context does it. May be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="areplay closes batches")
        await run_to_completion(self._closing)

    async def __anext__(self) -> Batch:
        """The next batch, a view valid until the next call; waits if none is ready, at most `timeout_s`.

        The previous batch is given back first. Cancelled: no batch has been taken.

        Raises:
            Closed: the context was left.
            Stalled: no row can come any more, since all actors or the coordinator failed, or, before the first batch,
                since all actors have returned; says why.
            SamplerFailed: all samplers failed for good.
            WaitTimeout: none was ready within the `timeout_s` given to `Replay.batches`.
        """
        if self._current is not None:
            self._current.release()
            self._current = None
        if self._turns.is_due():
            await asyncio.sleep(0)
            self._raise_if_failed()
        slot = self._lend()
        self._current = self._batch(await self._wait_ready(self._timeout_s) if slot is None else slot)
        return self._current

    async def get(self, timeout_s: float | None = None) -> Batch:
        """A batch that stays valid until its `release()`. While it is held, the queue has one slot less.

        Cancelled: no batch has been taken. Raises as `__anext__` does.
        """
        timeout_s = optional_seconds("timeout_s", timeout_s)
        if self._turns.is_due():
            await asyncio.sleep(0)
        slot = self._lend()
        return self._batch(await self._wait_ready(timeout_s) if slot is None else slot)

    def statistics(self) -> BatchesStatistics:
        """The state of the queue at this moment."""
        slots, crew = self._slots, self._crew
        ready = slots.count(READY) if slots is not None and not self.is_closed else 0
        return BatchesStatistics(
            batch_size=self._batch_size,
            prefetch=self._prefetch,
            ready=ready,
            fill=min(1.0, ready / self._prefetch),
            lent=slots.count(LENT) if slots is not None else 0,
            batches_delivered=self._delivered,
            rows_redrawn=slots.rows_redrawn if slots is not None else 0,
            samplers_alive=sum(member.is_alive for member in crew.members) if crew is not None else 0,
            restarts=sum(member.restarts for member in crew.members) if crew is not None else 0,
            learner_waits=self._waits,
            learner_waited_s=self._waited_s,
            peak_learner_wait_s=self._peak_wait_s,
        )

    def on_rows(self) -> None:
        """Open the gate once there are rows enough. Called after rows were written, from any thread."""
        slots, ring = self._slots, self._ring
        if slots is None or slots.is_open:
            return
        # Once blocks are recycled there will not be more rows: open blocks may keep a full ring below its capacity.
        if ring.rows_now[0] >= self._min_size or ring.next_serial[0] > ring.blocks:
            with self._gate_guard:
                if not self.is_closed:
                    slots.open_gate()

    def look_again(self) -> None:
        """Let a waiting learner look again: something has changed about samplers or actors. From any thread."""
        with self._gate_guard:  # or the descriptor could be closed, and another's by then
            if self._slots is not None and not self.is_closed:
                self._slots.learner_bell.event.notify()

    def _batch(self, slot: int) -> Batch:
        assert self._slots is not None
        self._delivered += 1
        if self._on_delivered is not None:
            self._on_delivered(self._delivered)
        return Batch(self._slots.batch(slot), self._give_back[slot])

    def _lend(self) -> int | None:
        if self.is_closed or self._slots is None:
            raise Closed("this stream of batches")
        return self._slots.lend()

    async def _wait_ready(self, timeout_s: float | None) -> int:
        """Wait for a slot, and take it."""
        assert self._ready is not None
        started = time.monotonic()
        slot: int | None = None

        def took_one() -> bool:
            nonlocal slot
            slot = self._lend()
            if slot is None:
                self._raise_if_hopeless()
            return slot is not None

        self._waits += 1
        try:
            while slot is None and time.monotonic() - started < _SPIN_S:
                await asyncio.sleep(0)
                slot = self._lend()
            if slot is None:
                await self._ready.wait(took_one, self._reason, timeout_s)
        finally:
            waited = time.monotonic() - started
            self._waited_s += waited
            self._peak_wait_s = max(self._peak_wait_s, waited)
        assert slot is not None
        return slot

    def _raise_if_failed(self) -> None:
        """Rather an error than a learner that goes on for days with the rows it has."""
        failure = self._supply().failure
        if failure is not None:
            raise Stalled(f"no more rows can come: {failure}") from failure

    def _raise_if_hopeless(self) -> None:
        assert self._crew is not None and self._slots is not None
        if self._crew.alive == 0:
            failures = self._crew.failures
            raise failures[0] if failures else Closed("each sampler of this stream of batches")
        if not self._slots.is_open or self._slots.all_in_vain(self._ring.rows_inserted[0]):
            supply = self._supply()
            if supply.is_exhausted or supply.failure is not None:
                reason = f"{self._reason()}; no more rows can come"
                raise Stalled(f"{reason}: {supply.failure}" if supply.failure else reason) from supply.failure

    def _reason(self) -> str:
        assert self._slots is not None and self._crew is not None
        if not self._slots.is_open:
            supply = self._supply()
            return (
                f"learner waits: {self._ring.rows_now[0]:,} of {self._min_size:,} rows needed by min_size_to_sample; "
                f"{supply.actors_alive} actors alive, {supply.last_row}"
            )
        if self._slots.is_fruitless:
            return (
                f"learner waits: no {self._item!r} can be made of the {self._ring.rows_now[0]:,} rows yet; "
                f"{self._supply().actors_alive} actors alive, {self._supply().last_row}"
            )
        return (
            f"learner waits for a batch: {self._slots!r}, {self._crew.alive} of {self._samplers} samplers alive; "
            f"release() batches that were taken with get()"
        )

    def _unpin(self) -> None:
        """If batches went to a device, it may not keep the memory of the slots."""
        if "areplay.to_torch" in sys.modules:
            assert self._slots is not None
            sys.modules["areplay.to_torch"].unpin(self._slots.batch(0))

    async def _recover(self, index: int) -> None:
        assert self._slots is not None
        self._slots.recover(index)

    async def _close(self) -> None:
        await ended(self._opening)
        if self._slots is None or self._crew is None or self._ready is None:  # never entered
            self.is_closed = True
            return
        try:
            await self._crew.stop()
        finally:
            with self._gate_guard:
                self.is_closed = True
            if self._current is not None:
                self._current.release()
                self._current = None
            self._ready.close()
            self._unpin()
            self._slots.close()
