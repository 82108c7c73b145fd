"""The prefetch queue: a stream of batches for the learner, kept near capacity by sampler processes.

`async for batch in batches` takes a ready slot without suspending, and gives the previous one back.
Where none is ready the learner may fill one itself (`areplay._sampling.inline_sampler`). It knows
the slots and the samplers' supervisor; what rows there are, and who makes them, it asks a
`ProducerState`. A limiter may hold a ready slot back; each batch that is handed out lets writers go
on that wait for it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from areplay._base import forks
from areplay._base.debug import verify
from areplay._base.hooks import HookRaised, guarded, text_of
from areplay._base.identity import identity
from areplay._base.validation import optional_seconds
from areplay._ingest.admission import Admission, steps_in
from areplay._ingest.rate_controller import RateController, buffer_steps, checked_replacement
from areplay._processes.backoff import YieldTimer, poll
from areplay._processes.completion import in_thread, run_to_completion
from areplay._processes.dropped import Holdings, InOrder, Once, notice, unless_gone
from areplay._processes.opening import deliver, ended, opened
from areplay._processes.supervisor import Supervisor, SupervisorOptions
from areplay._processes.waiter import Waiter
from areplay._sampling.batch_plan import BatchPlan, Fifo, PlannedSelector
from areplay._sampling.inline_sampler import RELEASE, InlineSampler, may_fill
from areplay._sampling.sampler import (
    batches_at_once,
    recover,
    run_sampler,
    sampler_statistics,
    why_unfilled,
)
from areplay._sampling.slots import FILLING, LENT, READY, Slots
from areplay._sampling.stream_records import ProducerState, StreamState
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_TO_START,
    check_descriptors,
)
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay.batch import Batch, unpin
from areplay.errors import ActorFailed, Closed, EndOfEpochs, SamplerFailed, Stalled
from areplay.items.item import Item
from areplay.items.rows import Rows
from areplay.items.transform import Transform, batch_fields
from areplay.limiters import Limiter, SamplesPerInsert
from areplay.selectors.prioritized import BUILT_IN, items_of
from areplay.selectors.selector import Selector
from areplay.statistics import BatchesStatistics, Wait

logger = logging.getLogger(__name__)

_SCHEDULE = "the schedule of the selector"  # a hook of the user's
_TURN_S, _OWN_TURN_S = 0.02, 0.001
"""A learner that never waits lets its loop turn so often: for restarts, reports, cancellation, the
user's other tasks. Not more often, since a turn after a training step, with caches cold, costs 40
us; rows come in without it. The second is for a learner that fills its batches itself, and would
otherwise have slept and let others run."""

_SPIN_S = 0.0001
"""How long a learner that found no batch ready looks again, letting its loop turn, before it
sleeps. Small batches come every 30 us, and a sleep costs both sides about as much."""


class Batches(AsyncIterator[Batch]):
    """A stream of batches: an async context manager and iterator, made by `Replay.batches`.

    One coroutine iterates over it. Leaving the context stops its samplers; whoever still waits gets
    `Closed`.

    Attributes:
        what: it consists of, the same for every stream of the same, in every run.
    """

    def __init__(
        self,
        ring: Ring,
        ring_guard: WriterRegistry,
        item: Item,
        selector: Selector | PlannedSelector,
        transform: Transform | None,
        batch_size: int,
        samplers: int,
        inline_sampling: bool,
        prefetch: int,
        limiter: Limiter,
        batch_plan: Callable[[], BatchPlan] | None,
        admission: Admission,
        seeds: Callable[[int, int], np.random.SeedSequence],
        timeout_s: float | None,
        options: SupervisorOptions,
        supply: Callable[[], ProducerState],
        check_open: Callable[[], object],
        number: int,
    ) -> None:
        self._check_open, self._number = check_open, number
        name = repr(selector) if isinstance(selector, Fifo) else type(selector).__name__
        self.what = f"{batch_size} {identity(item, item.window)} by {name}"
        self._resumed: StreamState | None = None
        self._delivered_before = 0  # by streams before a checkpoint
        self._ring, self._item, self._selector, self._transform = ring, item, selector, transform
        self._seeds, self._producer_state, self._ring_guard = seeds, supply, ring_guard
        self._let_blocks_go = Once(lambda: None)  # there are none yet
        self._on_delivered = getattr(selector, "on_delivered", None)
        self._batch_size, self._samplers, self._prefetch = batch_size, samplers, prefetch
        self._inline_sampling = inline_sampling
        self._min_size, self._timeout_s, self._options = (
            limiter.min_size_to_sample,
            timeout_s,
            options,
        )
        self._limiter = limiter
        self._rate: RateController | None = None  # while the limiter holds writers back
        self._new_batch_plan, self._admission = batch_plan, admission
        self._batch_plan: BatchPlan | None = None
        self._has_begun = False  # whether they have taken in what was there
        self._holdings = Holdings(f"a stream of batches of {self.what}")
        self._actor_failure: ActorFailed | None = None
        # Seconds of waits that are over, and since when the others last: in one, since others may
        # look at any time.
        self._waited: tuple[float, tuple[float, ...]] = 0.0, ()
        self._slots: Slots | None = None
        self._own: InlineSampler | None = None
        self._supervisor: Supervisor | None = None
        self._ready: Waiter | None = None
        self._current: Batch | None = None
        self._turns = YieldTimer(_TURN_S)
        self._gate_guard = forks.register_lock(threading.Lock())
        self._delivered = self._waits = 0
        self._peak_wait_s = 0.0
        self._origin = forks.current
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.is_closed = False

    async def __aenter__(self) -> Batches:
        """Start the samplers; returns when all have said READY. They begin to fill the queue at
        once.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any sampler
            was started.
            SamplerFailed: one could not be started. None is left.
            Stalled: of `Epochs`: there is no item.
        """
        self._check_process()
        self._check_open()
        if self._opening is not None or self._closing is not None:
            raise Closed("this stream of batches, which was opened before,")
        self._holdings.begin(self)
        self._opening = asyncio.create_task(self._open(), name="areplay opens batches")
        await opened(self._opening, self.close, "this stream of batches")
        return self

    async def _open(self) -> None:
        needed = self._samplers * (DESCRIPTORS_A_CHILD + 1) + 1 + DESCRIPTORS_TO_START
        check_descriptors(f"{self._samplers} samplers", needed)
        await poll(lambda is_late: self._ring_guard.hold(self._ring, at_once=is_late))
        self._let_blocks_go, holdings = Once(self._ring_guard.let_go), self._holdings
        holdings.push(self._let_blocks_go)
        fields = guarded("the item", batch_fields)(self._item, self._ring.spec, self._transform)
        # Slots beside the queue's: one for the batch that the learner holds, one for each sampler
        # to fill meanwhile.
        count = self._prefetch + 1 + self._samplers
        in_turn = self._new_batch_plan is not None
        has_own = self._inline_sampling and may_fill(
            self._item, self._selector, self._transform, fields, self._batch_size
        )
        self._slots = slots = Slots(
            fields, self._batch_size, count, self._samplers, in_turn=in_turn, has_own=has_own
        )
        holdings.push(slots.close)
        self._give_back = [partial(slots.give_back, slot) for slot in range(count + has_own)]
        if has_own:
            seeds, at_once = self._seeds(self._samplers, 0), batches_at_once(self._selector, slots)
            self._own = InlineSampler(self._ring, slots, self._item, self._selector, seeds, at_once)
            holdings.push(self._own.close)
        self._ready = Waiter(slots.learner_bell)
        holdings.push(partial(unpin, slots.batch(0)), self._admission.changed)
        holdings.watched(self._ready)
        self._supervisor = Supervisor(
            "sampler",
            self._samplers,
            run_sampler,
            unless_gone(self._arguments, "this stream of batches"),
            self._options,
            SamplerFailed,
            ask=lambda index: slots.stop(),
            after_exit=partial(recover, slots),
            on_change=notice(self.look_again),
        )
        self._supervisor.note(holdings)
        await self._begin_pacing()
        self.on_rows()
        await self._supervisor.start()

    def _arguments(self, index: int, run: int) -> tuple[Any, ...]:
        assert self._slots is not None
        what = self._item, self._selector, self._transform, self._batch_plan
        return (self._ring, self._slots, index, *what, self._seeds(index, run))

    async def _begin_pacing(self) -> None:
        """From now on writers wait for the learner, as limiter and selector want."""
        if isinstance(self._limiter, SamplesPerInsert):
            # What waits in inboxes now comes in first. Else the limiter would let it in step by
            # step, and rows made later would queue behind a quarter of an inbox of each actor.
            steps = buffer_steps(self._limiter, self._batch_size)
            self._admission.announce(steps)
            try:
                if self._admission.take_waiting is not None:
                    await self._admission.take_waiting()
                self._begin_limiting(self._limiter)
            finally:
                self._admission.withdraw(steps)
        if self._new_batch_plan is not None:
            self._batch_plan = self._new_batch_plan()
            self._holdings.push(self._batch_plan.close)
            self._batch_plan.keep()
            self._admission.changed()
            await in_thread("areplay-batch-plan", partial(self._begin_batch_plan, self._batch_plan))
            self._has_begun = True
            self._admission.notify()
            if self._batch_plan.size(0) == 0:
                items = self._batch_plan.log.appended
                raise Stalled(
                    f"{text_of(self._selector)} of {items:,} items, which are none or less than a "
                    f"batch; add rows before"
                )

    def _begin_limiting(self, limiter: SamplesPerInsert) -> None:
        steps = steps_in(self._ring, self._min_size)
        rate = RateController(limiter, self._batch_size, steps, self._admission.lock)
        state = self._resumed.limiter if self._resumed is not None else None
        if state is not None and rate.resume(state) and rate.has_begun:
            self._min_size = 1  # its first batch was handed out before the checkpoint
        self._holdings.push(partial(self._admission.remove, rate))
        self._rate = rate
        self._admission.add(rate)

    def _begin_batch_plan(self, batch_plan: BatchPlan) -> None:
        resumed = self._resumed
        batch_plan.begin(None if resumed is None else resumed.is_over)

    def resume(self, kept: StreamState) -> None:
        """Go on where another one of the same was. Call it before it is opened.

        Raises:
            HookRaised: a schedule of the selector raised.
        """
        # or the batches that are filled first would have a schedule's first value
        if self._on_delivered is not None:
            guarded(_SCHEDULE, self._on_delivered)(kept.batches_delivered)
        self._resumed, self._delivered_before = kept, kept.batches_delivered

    def kept(self) -> StreamState:
        """What a checkpoint keeps of this stream, as it is now."""
        # What it resumes stays as it is until it has begun.
        limiter, is_over = (
            (None, None)
            if self._resumed is None
            else (self._resumed.limiter, self._resumed.is_over)
        )
        if self._rate is not None:
            limiter = self._rate.state()
        if self._batch_plan is not None and self._batch_plan.takes_in and self._has_begun:
            is_over = partial(self._batch_plan.log.is_over, self._batch_plan.log.released)
        return StreamState(self.what, self._delivered_before + self._delivered, limiter, is_over)

    def _end_pacing(self) -> None:
        if self._rate is not None:
            self._admission.remove(self._rate)
        if self._batch_plan is not None:
            self._batch_plan.close()
        self._admission.changed()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._holdings.leave(kind, self.close)
        self.is_closed = True

    async def close(self) -> None:
        """Stop the samplers; whoever waits for a batch gets `Closed`. Leaving the context does it.
        May be called twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
        """
        if self._origin is not forks.current:
            return
        if await self._holdings.are_lost():
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="areplay closes batches")
        await run_to_completion(self._closing)

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
        if self._origin is not forks.current:
            self._check_process()
        if self._current is not None:
            self._current.release()
            self._current = None
        if self._turns.is_due():
            await asyncio.sleep(0)
            self._raise_if_failed()
        try:
            slot = self._lend()
            self._current = self._batch(
                await self._fill_or_wait(self._timeout_s) if slot is None else slot
            )
        except EndOfEpochs:
            raise StopAsyncIteration from None
        except HookRaised as raised:
            deliver(raised)
        return self._current

    async def get(self, timeout_s: float | None = None) -> Batch:
        """A batch that stays valid until its `release()`. While it is held, the queue has one slot
        less.

        Cancelled: no batch has been taken. Raises as `__anext__` does, but `EndOfEpochs` where that
        one ends the loop.
        """
        self._check_process()
        timeout_s = optional_seconds("timeout_s", timeout_s)
        if self._turns.is_due():
            await asyncio.sleep(0)
        try:
            slot = self._lend()
            return self._batch(await self._fill_or_wait(timeout_s) if slot is None else slot)
        except HookRaised as raised:
            deliver(raised)

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
        self._check_process()
        return self._limiter

    @limiter.setter
    def limiter(self, limiter: Limiter) -> None:
        self._check_process()
        if self.is_closed or self._closing is not None:
            raise Closed("this stream of batches")
        if self._rate is None:
            checked_replacement(self._limiter, limiter, self._batch_size)
        else:
            self._rate.replace(limiter)
            self._admission.changed()
            self.look_again()
        self._limiter = limiter

    def statistics(self) -> BatchesStatistics:
        """The state of the queue at this moment. From any thread."""
        self._check_process()
        slots, own, supervisor = self._slots, self._own, self._supervisor
        states = slots.states() if slots is not None else []
        ready = 0 if self.is_closed else states.count(READY)
        waited_s, waiting_since = self._waited
        present = [time.monotonic() - since for since in waiting_since]
        return BatchesStatistics(
            batch_size=self._batch_size,
            prefetch=self._prefetch,
            ready=ready,
            fill=min(1.0, ready / self._prefetch),
            lent=states.count(LENT),
            batches_delivered=self._delivered,
            filled_by_learner=own.filled if own is not None else 0,
            rows_redrawn=sum(who.rows_redrawn for who in (slots, own) if who is not None),
            samplers_alive=sum(member.is_alive for member in supervisor.workers)
            if supervisor is not None
            else 0,
            restarts=sum(member.restarts for member in supervisor.workers)
            if supervisor is not None
            else 0,
            learner_waits=self._waits,
            learner_waited_s=waited_s + sum(present),
            peak_learner_wait_s=max(self._peak_wait_s, *present, 0.0),
            limiter=None if self._rate is None or self.is_closed else self._rate.statistics(),
            items_left=self._batch_plan.items_left(self._delivered)
            if self._batch_plan is not None
            else None,
            number=self._number,
            what=f"{text_of(self._item)} by {text_of(self._selector)}",
            slots=len(states),
            filling=states.count(FILLING),
            slots_bytes=slots.size_bytes if slots is not None else 0,
            samplers=sampler_statistics(supervisor, slots)
            if supervisor is not None and slots is not None
            else (),
        )

    def waits(self) -> list[Wait]:
        """The learner's wait, if it waits at this moment."""
        self._check_process()
        return [
            Wait("learner", self._reason(), time.monotonic() - since) for since in self._waited[1]
        ]

    def _check_process(self) -> None:
        forks.check(self._origin, "this stream of batches")

    @property
    def is_waited_for(self) -> bool:
        """Whether a learner waits for its next batch."""
        return bool(self._waited[1])

    @property
    def may_let_rows_in(self) -> bool:
        """Whether it holds writers back, by its limiter or selector, and a learner could take a
        batch and let some go on; or it is only being opened or closed."""
        if self._slots is None or self.is_closed or not (self.delivers or self._rate is not None):
            return False
        if self._closing is not None or self.is_beginning or not self._needs_rows():
            return True
        # a gate that is shut opens for a learner that finds the ring full
        if self._batch_plan is not None:
            return self._batch_plan.has_batch(self._delivered)
        return self._may_sample and self._slots.count(READY) > 0  # left from when there were items

    @property
    def is_beginning(self) -> bool:
        """Whether its selector keeps all blocks while it takes in what is there."""
        return (
            self.delivers and self._slots is not None and not self._has_begun and not self.is_closed
        )

    @property
    def may_find_items(self) -> bool:
        """Whether items may be found without more rows though there are no items now: with other
        priorities, or by a user's selector."""
        if self._slots is None or self.is_closed or self._rate is None:
            return False
        return type(self._selector) not in BUILT_IN or bool(getattr(self._selector, "obstacle", ""))

    @property
    def delivers(self) -> bool:
        """Whether it is settled beforehand which items are in which batch."""
        return self._new_batch_plan is not None

    def on_rows(self) -> None:
        """Open the gate once there are rows enough. Called after rows were written, from any
        thread."""
        slots, ring = self._slots, self._ring
        if slots is None:
            return
        if slots.is_open:
            if self._rate is not None or self._batch_plan is not None:
                with self._gate_guard:
                    if not self.is_closed:
                        slots.learner_bell.notify()
                        slots.wake_samplers()
            return
        # Once blocks are recycled there will not be more rows: open blocks may keep a full ring
        # below its capacity. Nor when nobody can recycle any.
        is_full = ring.next_serial[0] > ring.blocks or (
            self.delivers and self._producer_state().is_stuck()
        )
        if ring.rows_now[0] >= self._min_size or is_full:
            self._open_gate()

    def tell_failure(self, failure: ActorFailed | None) -> None:
        """Raise it at each further batch; None: no more. Call `look_again` for a learner that waits
        now."""
        self._actor_failure = failure

    def _open_gate(self) -> None:
        with self._gate_guard:
            if self._slots is not None and not self.is_closed:
                self._slots.open_gate()

    def look_again(self) -> None:
        """Let a waiting learner look again: something has changed about samplers or actors. From
        any thread."""
        with self._gate_guard:  # or the descriptor could be closed, and another's by then
            if self._slots is not None and not self.is_closed:
                self._slots.learner_bell.event.notify()

    def _batch(self, slot: int) -> Batch:
        assert self._slots is not None
        arrays = self._slots.batch(slot)
        if self._batch_plan is not None:
            arrays = arrays.first(self._batch_plan.size(self._delivered - 1))
        if type(self._item) is Rows and self._transform is None:
            verify(self._ring, arrays.stored, arrays.indices)
        return Batch(arrays, self._give_back[slot])

    def _lend(self) -> int | None:
        """Take a slot, if one is ready and may be handed out; writers who wait for that look
        again."""
        if self.is_closed or self._slots is None:
            raise Closed("this stream of batches")
        if self._actor_failure is not None:
            # a copy, since raising it ties it to the frames it passes
            raise copy.copy(self._actor_failure)
        if not self._may_sample:
            return None
        if self._batch_plan is not None and self._batch_plan.size(self._delivered) == 0:
            raise EndOfEpochs(text_of(self._selector))
        slot = self._slots.lend()
        if slot is None:
            return None
        self._turns.period_s = _TURN_S
        return self._hand_out(slot)

    @property
    def _may_sample(self) -> bool:
        return self._rate is None or self._rate.can_sample

    def _fill(self) -> int | None:
        """Take the learner's own slot, filled now, if it may."""
        if self._own is None or self._closing is not None or not self._may_sample:
            return None
        assert self._supervisor is not None
        if not self._supervisor.alive:  # for good: rather an error than half the speed for days
            return None
        slot = self._own.fill()
        if slot is None:
            return None
        self._turns.period_s = _OWN_TURN_S
        return self._hand_out(slot)

    def _hand_out(self, slot: int) -> int:
        """Count a lent slot as the next batch; writers who wait for that look again."""
        if self._on_delivered is not None:
            try:
                self._on_delivered(self._delivered_before + self._delivered + 1)
            except BaseException as error:
                self._give_back[slot]()
                raise HookRaised(_SCHEDULE, error) from error
        self._delivered += 1
        if self._rate is not None:
            self._rate.sample()
        if self._batch_plan is not None:
            self._batch_plan.on_delivered(self._delivered)
        if self._rate is not None or self._batch_plan is not None:
            self._admission.notify()
        return slot

    async def _fill_or_wait(self, timeout_s: float | None) -> int:
        """Fill a slot where none is ready, or wait for one."""
        started = time.monotonic()
        slot = self._fill()
        if slot is None:
            return await self._wait_ready(timeout_s)
        self._waits += 1
        self._end_wait(started, self._waited[1])
        return slot

    async def _wait_ready(self, timeout_s: float | None) -> int:
        """Wait for a slot, and take it."""
        assert self._ready is not None
        started = time.monotonic()
        slot: int | None = None

        def took_one() -> bool:
            nonlocal slot
            slot = self._lend()
            if slot is None:
                slot = self._fill()
            if slot is None:
                self._raise_if_starved()
            return slot is not None

        self._waits += 1
        self._waited = self._waited[0], (*self._waited[1], started)
        try:
            while slot is None and time.monotonic() - started < _SPIN_S:
                await asyncio.sleep(0)
                slot = self._lend()
            if slot is None:
                await self._ready.wait(took_one, self._reason, timeout_s)
        finally:
            others = list(self._waited[1])
            others.remove(started)
            self._end_wait(started, tuple(others))
        assert slot is not None
        return slot

    def _end_wait(self, started: float, others: tuple[float, ...]) -> None:
        """Count a wait that is over now, beside which these others last."""
        waited = time.monotonic() - started
        self._waited = self._waited[0] + waited, others
        self._peak_wait_s = max(self._peak_wait_s, waited)

    def _raise_if_failed(self) -> None:
        """Rather an error than a learner that goes on for days with the rows it has."""
        failure = self._producer_state().failure
        # which `_lend` raises, as the user asked
        if failure is not None and self._actor_failure is None:
            raise Stalled(f"no more rows can come: {failure}") from failure

    def _raise_if_starved(self) -> None:
        assert self._supervisor is not None and self._slots is not None
        if self._supervisor.alive == 0:
            failures = self._supervisor.failures
            raise failures[0] if failures else Closed("each sampler of this stream of batches")
        if self._batch_plan is not None:  # each sampler has batches that no other one fills
            failure = self._supervisor.workers[self._slots.next_sampler].failure
            if failure is not None:
                raise copy.copy(failure)
        if self._needs_rows():
            supply = self._producer_state()
            # the ring is full: more rows than these will not be there
            if not self._slots.is_open and supply.is_stuck():
                self._open_gate()
                return
            why = supply.why_barred()
            if not (why or supply.is_exhausted or supply.failure is not None):
                return
            self.on_rows()  # the last of them may have been written between the two looks
            if self._needs_rows():
                why = f", since {why}" if why else f": {supply.failure}" if supply.failure else ""
                raise Stalled(f"{self._reason()}; no more rows can come{why}") from supply.failure

    @property
    def _is_searched_in_vain(self) -> bool:
        """Whether no sampler has found an item in the rows that there are."""
        assert self._slots is not None
        return self._slots.found_no_items_since(self._ring.rows_inserted[0])

    def _needs_rows(self) -> bool:
        """Whether there will be no batch before there are more rows."""
        assert self._slots is not None
        if not self._slots.is_open or self._is_searched_in_vain or not self._may_sample:
            return True
        return self._batch_plan is not None and not self._batch_plan.has_batch(self._delivered)

    def _reason(self) -> str:
        assert self._slots is not None and self._supervisor is not None
        supply = self._producer_state()
        alive = f"{supply.actors_alive} actors alive, {supply.last_row}"
        if held := supply.why_held():
            alive += f"; {held}"
        rows, items = self._ring.rows_now[0], items_of(self._selector, self._item)
        if not self._slots.is_open:
            return (
                f"learner waits: {rows:,} of {self._min_size:,} rows needed by "
                f"min_size_to_sample; {alive}"
            )
        if self._rate is not None and not self._rate.can_sample:
            seen = self._rate.statistics()
            return (
                f"learner waits: {self._rate.inserts_missing:,} steps are missing until the "
                f"next batch, by {self._rate!r}: {seen.inserts:,} steps inserted, "
                f"{seen.samples:,} items handed out; {alive}"
            )
        if self._batch_plan is not None and not self._batch_plan.has_batch(self._delivered):
            left = self._batch_plan.items_left(self._delivered)
            return (
                f"learner waits: {left} of {self._batch_size} items for a batch of "
                f"{text_of(self._selector)}; {alive}"
            )
        if self._slots.found_no_items:
            if rows and (obstacle := getattr(self._selector, "obstacle", "")):
                return f"learner waits: {text_of(self._selector)}: {obstacle}; {alive}"
            if rows and type(self._selector) not in BUILT_IN:
                return (
                    f"learner waits: {text_of(self._selector)} has drawn no row, of {rows:,}, that "
                    f"makes {text_of(self._item)} yet; {alive}"
                )
            return f"learner waits: no {items} can be made of the {rows:,} rows yet; {alive}"
        # The loop gives its batch back before it waits, so other slots that are lent now were taken
        # with `get`.
        is_in_loop = self._current is not None and not self._current.is_released
        remedy = RELEASE if self._slots.count(LENT) > is_in_loop else ""
        if self._batch_plan is not None:
            unfilled = f"batch {self._delivered + 1} of {text_of(self._selector)}"
            return f"learner waits: {why_unfilled(self._supervisor, self._slots, unfilled)}{remedy}"
        return f"learner waits for a batch: {why_unfilled(self._supervisor, self._slots)}{remedy}"

    async def _close(self) -> None:
        await ended(self._opening)
        # never entered, or not in full
        if self._slots is None or self._supervisor is None or self._ready is None:
            self.is_closed = True
            self._free()
            self._holdings.release()
            return
        async with InOrder() as stack:
            stack.callback(self._close_queue, self._slots, self._ready)
            stack.push_async_callback(self._supervisor.stop)
        self._holdings.release()

    def _close_queue(self, slots: Slots, ready: Waiter) -> None:
        with self._gate_guard:
            self.is_closed = True
        self._end_pacing()
        if self._current is not None:
            self._current.release()
            self._current = None
        ready.close()
        unpin(slots.batch(0))
        self._free()

    def _free(self) -> None:
        self._let_blocks_go()
        for part in (self._own, self._slots):
            if part is not None:
                part.close()
