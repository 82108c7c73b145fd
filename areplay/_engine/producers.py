"""Producers: where the rows of a replay come from, and what its writers wait for.

The writers are the owner's process, which writes by itself, and the actors, whose rows the
coordinator writes. Looks at what others own, at one moment, from any thread. Changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.admission import Admission
from areplay._ingest.coordinator import Coordinator
from areplay._ingest.local_admission import Lacks
from areplay._ingest.local_writer import LocalWriter
from areplay._ingest.rate_controller import RateController
from areplay._sampling.stream_records import ProducerState


class Producers:
    """All writers of one replay.

    Args:
        groups: of actors that are not closed.
    """

    def __init__(
        self,
        admission: Admission,
        local_writer: LocalWriter,
        coordinator: Coordinator,
        groups: Iterable[ActorGroup],
    ) -> None:
        self._admission = admission
        self._local_writer = local_writer
        self._coordinator = coordinator
        self._groups = groups

    @property
    def limiters(self) -> tuple[RateController, ...]:
        """The limiters that hold writers back."""
        return self._admission.limiters

    @property
    def lacks(self) -> Lacks | None:
        """What a call of the owner's process lacks to write its rows; None: no call waits."""
        return self._local_writer.lacks

    @property
    def may_actors_write(self) -> bool:
        """Whether an actor is alive, or rows of actors wait."""
        return self._coordinator.has_rows or any(group.alive for group in self._groups)

    @property
    def are_writing(self) -> bool:
        """Whether rows that were admitted may not be in the ring yet.

        Final observations count: they are let in where steps are not.
        """
        coordinator = self._coordinator
        return self._local_writer.is_writing or coordinator.is_writing or coordinator.has_free_rows

    def why_held(self) -> str:
        """Say which rows wait at this moment, and for what; "" if no row waits."""
        for wait in self._local_writer.waits():
            return wait.reason
        held = self._coordinator.held()
        why = self._admission.reason() if held else ""
        return f"rows of {held[0][1]} may not be written yet: {why}" if why else ""

    def failure(self) -> BaseException | None:
        """What failed, if no more rows can come because of that.

        A learner asks at each turn of its loop, so the common answer has to be cheap.
        """
        if self._coordinator.failure is not None:
            return self._coordinator.failure
        failures = [failure for group in self._groups for failure in group.failures]
        return failures[0] if failures and self._are_exhausted else None

    def state(self, is_stuck: Callable[[], bool], why_barred: Callable[[], str]) -> ProducerState:
        """All that a stream of batches is told of the writers.

        Args:
            is_stuck, why_barred: see `ProducerState`.
        """
        return ProducerState(
            actors_alive=sum(group.alive for group in self._groups),
            is_exhausted=self._are_exhausted,
            last_row=self._last_row(),
            failure=self.failure(),
            is_stuck=is_stuck,
            why_held=self.why_held,
            why_barred=why_barred,
        )

    @property
    def _are_exhausted(self) -> bool:
        """Whether all actors of the open contexts are gone, all of their rows are written, and the
        owner's process never wrote a row."""
        groups = list(self._groups)
        if not any(group.is_open for group in groups) or any(group.alive for group in groups):
            return False
        return not self._local_writer.any_written and not self._coordinator.has_rows

    def _last_row(self) -> str:
        """Say how old the last row of an actor is."""
        last_s = self._coordinator.last_rows_at
        if not last_s:
            return "no row from them yet"
        return f"last row {time.monotonic() - last_s:.1f} s ago"
