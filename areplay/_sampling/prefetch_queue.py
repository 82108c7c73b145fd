"""The prefetch queue: ready batches for the learner, kept near capacity by sampler processes.

Complete from the moment at which it is made: slots, supervisor of the samplers, gate, pacing, and
the learner's own sampler where it may have one. All decisions are synchronous; the learner
waits in `areplay._sampling.stream`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from areplay._base import debug
from areplay._base.hooks import HookRaised, guarded
from areplay._processes.backoff import YieldTimer
from areplay._processes.dropped import Holdings
from areplay._processes.supervision import SupervisorConfig
from areplay._processes.supervisor import Supervisor
from areplay._processes.waiter import Waiter
from areplay._processes.weakly import notice, unless_gone
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.diagnosis import Diagnosis
from areplay._sampling.gate import Gate
from areplay._sampling.inline_sampler import InlineSampler, may_fill
from areplay._sampling.pacing import pacing_of
from areplay._sampling.sampler import SamplerConfig, recover, run_sampler
from areplay._sampling.sampler_report import sampler_statistics
from areplay._sampling.slots import FILLING, LENT, READY, Slots
from areplay._sampling.stream_records import StreamConfig, StreamHost, StreamState
from areplay._sampling.wait_log import WaitLog
from areplay.errors import SamplerFailed
from areplay.items.rows import Rows
from areplay.items.transform import batch_fields
from areplay.statistics import BatchesStatistics

SCHEDULE = "the schedule of the selector"  # a hook of the user's

_TURN_S = 0.02
"""A learner that never waits lets its loop turn so often: for restarts, reports, cancellation and
the other tasks of the user. More seldom than a training step, since a turn with cold caches costs
40 us; rows come in without it."""

_OWN_TURN_S = 0.001
"""The same for a learner that fills its batches itself, and would otherwise have slept and let
other tasks run."""


class Loan(Protocol):
    """A batch that the learner holds."""

    @property
    def is_released(self) -> bool:
        """Whether its slot was given back."""
        ...

    def release(self) -> None:
        """Give the slot back."""
        ...


@dataclass(frozen=True, slots=True)
class Lent:
    """A slot that was taken for the learner: its arrays, and the step that gives it back."""

    arrays: BatchArrays
    give_back: Callable[[], None]


class PrefetchQueue:
    """The queue of one open stream.

    Args:
        resumed: the state that the stream continues.
        holdings: of the stream, which take the steps that let everything go if it is dropped.
        own: takes a step that gives something back when the stream is closed or dropped.

    Attributes:
        current: the batch that the loop over the stream holds.
        ready: sleeps until a slot is ready.
        turns: says when a learner that does not wait lets its loop turn.
    """

    def __init__(
        self,
        host: StreamHost,
        config: StreamConfig,
        resumed: StreamState | None,
        holdings: Holdings,
        own: Callable[[Callable[[], None]], object],
    ) -> None:
        self.current: Loan | None = None
        self.waits = WaitLog()
        self.turns = YieldTimer(_TURN_S)
        self._host = host
        self._config = config
        self._selector = config.selector
        self._delivered_before = 0 if resumed is None else resumed.batches_delivered
        # Only rows as they were written have the checksums of debug mode.
        has_whole_rows = type(config.item) is Rows and config.transform is None
        self._verifies = debug.IS_ON and has_whole_rows

        self.slots = slots = self._made_slots()
        own(slots.close)
        self._lent = [
            Lent(slots.batch(slot), partial(slots.give_back, slot)) for slot in range(slots.places)
        ]
        self._inline = self._made_inline_sampler()
        if self._inline is not None:
            own(self._inline.close)
        self.ready = Waiter(slots.board.learner_bell)
        holdings.push(partial(unpin, slots.batch(0)), host.admission.changed)
        holdings.watched(self.ready)
        self.gate = Gate(host, config, slots)
        self.supervisor = self._made_supervisor()
        self.supervisor.note(holdings)
        # The last step: from here on nothing can fail, and `close` ends the pacing.
        self.pacing = pacing_of(host, config, self.gate, resumed)
        self.diagnosis = Diagnosis(host, config, slots, self.gate, self.supervisor, self.pacing)

    def _made_slots(self) -> Slots:
        config = self._config
        spec = self._host.ring.spec
        fields = guarded("the item", batch_fields)(config.item, spec, config.transform)
        # Beside those of the queue: one for the batch that the learner holds, and one for each
        # sampler to fill meanwhile.
        count = config.prefetch + 1 + config.samplers
        has_own = config.inline_sampling and may_fill(
            config.item, config.selector, config.transform, fields, config.batch_size
        )
        return Slots(
            fields,
            config.batch_size,
            count,
            config.samplers,
            in_turn=config.is_planned,
            has_own=has_own,
        )

    def _made_inline_sampler(self) -> InlineSampler | None:
        if not self.slots.has_own:
            return None
        config = self._config
        seeds = config.seeds(config.samplers, 0)  # those of no sampler
        at_once = config.selector.batches_at_once(config.prefetch, config.samplers)
        return InlineSampler(
            self._host.ring, self.slots, config.item, config.selector, seeds, at_once
        )

    def _made_supervisor(self) -> Supervisor:
        slots = self.slots
        config = SupervisorConfig(
            kind="sampler",
            count=self._config.samplers,
            body=run_sampler,
            arguments=unless_gone(self._arguments, "this stream of batches"),
            options=self._config.supervision,
            failure=SamplerFailed,
            ask=lambda index: slots.board.stop(),
            after_exit=partial(recover, slots),
            on_change=notice(self.gate.wake_learner),
        )
        return Supervisor(config)

    def _arguments(self, index: int, run: int) -> tuple[SamplerConfig]:
        config = self._config
        return (
            SamplerConfig(
                ring=self._host.ring,
                slots=self.slots,
                index=index,
                item=config.item,
                selector=config.selector,
                transform=config.transform,
                plan=self.pacing.plan,
                seeds=config.seeds(index, run),
            ),
        )

    # Batch after batch.

    def lend(self) -> Lent | None:
        """Take the next ready batch; None if none is ready, or pacing holds it back.

        Raises:
            EndOfEpochs: there is no next batch.
            HookRaised: a schedule of the selector raised; no batch was taken.
        """
        if not self.pacing.may_take():
            return None
        slot = self.slots.lend()
        if slot is None:
            return None
        self.turns.period_s = _TURN_S
        return self._hand_out(slot)

    def fill(self) -> Lent | None:
        """Fill the slot that is the learner's own, and take it; None if it may not.

        Raises:
            HookRaised: as `lend`.
        """
        if self._inline is None or not self.pacing.may_take():
            return None
        # All samplers failed for good: an error is better than half the speed for days.
        if not self.supervisor.alive:
            return None
        slot = self._inline.fill()
        if slot is None:
            return None
        self.turns.period_s = _OWN_TURN_S
        return self._hand_out(slot)

    def _hand_out(self, slot: int) -> Lent:
        """Count a lent slot as the next batch."""
        lent = self._lent[slot]
        try:
            self._selector.on_delivered(self._delivered_before + self.pacing.delivered + 1)
        except BaseException as error:
            lent.give_back()
            raise HookRaised(SCHEDULE, error) from error
        self.pacing.on_delivered()
        arrays = self.pacing.part_of(lent.arrays)
        if self._verifies:
            debug.verify(self._host.ring, arrays.stored, arrays.indices)
        return lent if arrays is lent.arrays else Lent(arrays, lent.give_back)

    def release_current(self) -> None:
        """Give back the batch that the loop holds."""
        if self.current is not None:
            self.current.release()
            self.current = None

    def raise_if_starved(self) -> None:
        """Raise what the learner gets if no batch can come any more."""
        starvation = self.diagnosis.diagnose(self._lent_to_loop)
        if starvation is not None:
            raise starvation.error from starvation.cause

    def reason(self) -> str:
        """Say what the learner waits for, and why."""
        return self.diagnosis.reason(self._lent_to_loop)

    @property
    def _lent_to_loop(self) -> int:
        """Slots that the loop over the stream holds."""
        return int(self.current is not None and not self.current.is_released)

    @property
    def could_take(self) -> bool:
        """Whether a learner could take a batch and let writers go on, or may soon."""
        if self.pacing.is_beginning or not self.diagnosis.needs_rows:
            return True
        return self.pacing.could_take(self.slots.count(READY) > 0)

    def close(self) -> None:
        """Hold no writer and keep no rows any more, and give back the batch of the loop. The
        samplers have ended."""
        self.gate.close()
        self.pacing.end()
        self.release_current()
        self.ready.close()
        unpin(self.slots.batch(0))

    def statistics(self, *, is_closed: bool) -> BatchesStatistics:
        """The queue at this moment. From any thread."""
        slots = self.slots
        inline = self._inline
        states = slots.states()
        ready = 0 if is_closed else states.count(READY)
        waits = self.waits.figures()
        workers = self.supervisor.workers
        return BatchesStatistics(
            batch_size=self._config.batch_size,
            prefetch=self._config.prefetch,
            ready=ready,
            fill=min(1.0, ready / self._config.prefetch),
            lent=states.count(LENT),
            batches_delivered=self.pacing.delivered,
            filled_by_learner=0 if inline is None else inline.filled,
            rows_redrawn=slots.board.rows_redrawn + (0 if inline is None else inline.rows_redrawn),
            samplers_alive=sum(worker.is_alive for worker in workers),
            restarts=sum(worker.restarts for worker in workers),
            learner_waits=waits.count,
            learner_waited_s=waits.total_s,
            peak_learner_wait_s=waits.longest_s,
            limiter=self.pacing.limiter_statistics(),
            items_left=self.pacing.items_left(),
            number=self._config.number,
            what=self._config.description,
            slots=len(states),
            filling=states.count(FILLING),
            slots_bytes=slots.size_bytes,
            samplers=sampler_statistics(self.supervisor, slots),
        )


def unpin(arrays: BatchArrays) -> None:
    """Unpin the memory of all slots, before it is given back. torch has pinned it if batches went
    to a device."""
    if "areplay._sampling.torch" in sys.modules:
        sys.modules["areplay._sampling.torch"].unpin(arrays)
