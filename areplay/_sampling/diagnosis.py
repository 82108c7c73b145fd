"""Diagnosis: why the learner finds no batch, and whether one can still come.

`reason` says what the learner waits for and why, for warnings, statistics and timeouts. `diagnose`
decides whether the wait can end at all; its caller raises what it returns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from areplay._base.hooks import text_of
from areplay._processes.supervisor import Supervisor
from areplay._sampling.gate import Gate
from areplay._sampling.inline_sampler import RELEASE
from areplay._sampling.pacing import Pacing
from areplay._sampling.sampler_report import why_unfilled
from areplay._sampling.slots import LENT, Slots
from areplay._sampling.stream_records import ProducerState, StreamConfig, StreamHost
from areplay.errors import AreplayError, Closed, Stalled


@dataclass(frozen=True, slots=True)
class Starvation:
    """No batch can come any more.

    Attributes:
        error: what the learner gets.
        cause: what failed first, if something did.
    """

    error: AreplayError
    cause: BaseException | None = None


class Diagnosis:
    """Looks at the parts of one open stream. Changes nothing, but opens the gate of a full ring."""

    def __init__(
        self,
        host: StreamHost,
        config: StreamConfig,
        slots: Slots,
        gate: Gate,
        supervisor: Supervisor,
        pacing: Pacing,
    ) -> None:
        self._ring = host.ring
        self._producers = host.producers
        self._config = config
        self._slots = slots
        self._gate = gate
        self._supervisor = supervisor
        self._pacing = pacing

    @property
    def needs_rows(self) -> bool:
        """Whether no batch comes before there are more rows."""
        if not self._gate.is_open or self._pacing.lacks_rows:
            return True
        return self._slots.board.found_no_items_since(self._ring.rows_inserted[0])

    @property
    def may_find_items(self) -> bool:
        """Whether samplers may find items without more rows though there are no items now: after a
        change of priorities, or by a selector of the user."""
        selector = self._config.selector
        return selector.is_of_user or bool(selector.obstacle)

    def diagnose(self, lent_to_loop: int) -> Starvation | None:
        """Look whether a batch can still come; None if it can.

        Args:
            lent_to_loop: as for `reason`.
        """
        failure = self._failure_of_samplers()
        if failure is not None:
            return Starvation(failure)
        if not self.needs_rows:
            return None
        producers = self._producers()
        if not self._gate.is_open and producers.is_stuck():
            self._gate.open()  # the ring is full: it will not have more rows than now
            return None
        why = self._why_no_rows_come(producers)
        if why is None:
            return None
        # A writer may have written its last rows after the first look, and before it was gone.
        self._gate.on_rows()
        if not self.needs_rows:
            return None
        message = f"{self.reason(lent_to_loop)}; no more rows can come{why}"
        return Starvation(Stalled(message), producers.failure)

    def _failure_of_samplers(self) -> AreplayError | None:
        supervisor = self._supervisor
        if supervisor.alive == 0:
            failures = supervisor.failures
            return failures[0] if failures else Closed("each sampler of this stream of batches")
        if not self._config.is_planned:
            return None
        # Each sampler has batches of the plan that no other one fills.
        failure = supervisor.workers[self._slots.next_sampler].failure
        return None if failure is None else copy.copy(failure)

    @staticmethod
    def _why_no_rows_come(producers: ProducerState) -> str | None:
        """The end of a sentence that no more rows can come; None if some can."""
        barred = producers.why_barred()
        if barred:
            return f", since {barred}"
        if producers.failure is not None:
            return f": {producers.failure}"
        return "" if producers.is_exhausted else None

    def reason(self, lent_to_loop: int) -> str:
        """Say what the learner waits for, and why.

        Args:
            lent_to_loop: slots that the loop over the stream holds. The learner took the others
                with `get`.
        """
        producers = self._producers()
        if not self._gate.is_open:
            state = (
                f"{self._ring.rows_now[0]:,} of {self._gate.min_size:,} rows needed by "
                "min_size_to_sample"
            )
        elif self._pacing.lacks_rows:
            state = self._pacing.why_rows_are_lacking()
        elif self._slots.board.found_no_items:
            state = self._why_no_items()
        else:
            return self._why_unfilled(lent_to_loop)
        held = producers.why_held()
        alive = f"{producers.actors_alive} actors alive, {producers.last_row}"
        return f"learner waits: {state}; {alive}" + (f"; {held}" if held else "")

    def _why_no_items(self) -> str:
        """Say why no item can be made of the rows."""
        selector = self._config.selector
        rows = self._ring.rows_now[0]
        if rows and selector.obstacle:
            return f"{selector!r}: {selector.obstacle}"
        if rows and selector.is_of_user:
            return (
                f"{selector!r} has drawn no row, of {rows:,}, that makes "
                f"{text_of(self._config.item)} yet"
            )
        return f"no {selector.items_text(self._config.item)} can be made of the {rows:,} rows yet"

    def _why_unfilled(self, lent_to_loop: int) -> str:
        """Say why no sampler has filled a batch of rows that are there."""
        batch = self._pacing.next_batch
        remedy = RELEASE if self._slots.count(LENT) > lent_to_loop else ""
        why = why_unfilled(self._supervisor, self._slots, batch)
        return f"learner waits{'' if batch else ' for a batch'}: {why}{remedy}"
