"""Admission: whether rows may be written now, for all the writers of one replay.

Two things hold writers back. Rate controllers (`areplay._ingest.rate_controller`) count steps.
Selectors that deliver each item (`areplay._sampling.batch_plan`) keep blocks from being recycled
(`areplay._storage.ring`). A writer that is held back waits on a doorbell of its thread: the
coordinator's, or the owner's loop. The learner's loop rings both when it took a batch, when a
stream of batches ends, and when a limiter was replaced.

Nothing here is shared between processes. `lock` makes the look at the limiters and the count of
admitted steps one step, for the two threads that write.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Columns
from areplay._base.episode_links import NEXT_OFFSET
from areplay._ingest.rate_controller import RateController
from areplay._shm.doorbell import Doorbell, EventFd
from areplay._shm.layout import WORDS_A_LINE, int64_word
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring


class Admitted(NamedTuple):
    """Steps that may be written, and the limiters that have counted them."""

    steps: int
    by: tuple[RateController, ...]


class Admission:
    """The limiters of the open streams of batches, and the doorbells of writers that wait for them.

    Attributes:
        lock: of the limiters' counts.
        on_change: called when limiters or pins have changed, and so how many rows may wait.
        take_waiting: writes the rows that wait in inboxes and may be written; None while no inbox
            is read.
        coordinator_bell, owner_bell: rung when a writer of that thread may go on.
    """

    def __init__(self, registry: WriterRegistry) -> None:
        self.lock = forks.register_lock(threading.Lock())
        self.on_change: Callable[[], None] = _nothing
        self.take_waiting: Callable[[], Awaitable[None]] | None = None
        self._registry = registry
        self._limiters: tuple[RateController, ...] = ()
        self._announced: tuple[int, ...] = ()  # steps that limiters about to be added let wait
        self._is_lifted = False
        words = np.zeros((2, WORDS_A_LINE), np.int64)
        self._events = [EventFd("the doorbell of rows that wait for admission") for _ in range(2)]
        self.coordinator_bell = Doorbell(self._events[0], int64_word(words, 0))
        self.owner_bell = Doorbell(self._events[1], int64_word(words, 1))

    def add(self, limiter: RateController) -> None:
        """Let that limiter hold writers back as well."""
        with self.lock:
            self._limiters = (*self._limiters, limiter)
        self.changed()  # a writer may wait for what can never be now

    def announce(self, steps: int) -> None:
        """A limiter whose buffer spans `steps` is about to be added: let few rows wait in inboxes,
        before it counts."""
        self._announced = (*self._announced, steps)
        self.on_change()

    def withdraw(self, steps: int) -> None:
        """The announced limiter was added, or will not be."""
        announced = list(self._announced)
        announced.remove(steps)
        self._announced = tuple(announced)
        self.on_change()

    def remove(self, limiter: RateController) -> None:
        """Let that limiter hold no writer back any more."""
        with self.lock:
            self._limiters = tuple(other for other in self._limiters if other is not limiter)
        self.changed()

    def lift(self) -> None:
        """Let every row in from now on: the replay closes."""
        with self.lock:
            self._is_lifted = True
        self.changed()

    def changed(self) -> None:
        """Limiters or pins have changed: bound anew how many rows may wait, and let writers that
        wait look again."""
        self.on_change()
        self.notify()

    def notify(self) -> None:
        """Let writers that wait look again. From any thread."""
        self.coordinator_bell.notify()
        self.owner_bell.notify()

    @property
    def is_lifted(self) -> bool:
        """Whether every row is let in."""
        return self._is_lifted

    @property
    def limits(self) -> bool:
        """Whether there is a limiter."""
        return bool(self._limiters)

    def rows_that_may_wait(self, capacity_rows: int) -> int | None:
        """How many rows may wait in all inboxes together; None for as many as there is room for.

        A limiter's buffer spans `2 * error_buffer / samples_per_insert` steps. As many rows may
        wait as it lets in from one end to the other. So the flow is smooth, and no row waits much
        longer than it would have to. Before the first batch it has more room: then twice, four
        times, ... as many may wait, in steps of two, so that the bound changes seldom. `Fifo` and
        `Epochs` keep rows for the ring's length, so a sixteenth of that does no harm.
        """
        if self._is_lifted:
            return None
        bounds = list(self._announced)
        for limiter in self._limiters:
            steps = limiter.buffer_steps
            doublings = (1 + limiter.room // steps).bit_length() - 1
            bounds.append(steps << doublings)
        if self._registry.pins:
            bounds.append(capacity_rows // 16)
        return min(bounds, default=None)

    @property
    def limiters(self) -> tuple[RateController, ...]:
        """Those that hold writers back now."""
        return () if self._is_lifted else self._limiters

    @property
    def has_room(self) -> bool:
        """Whether a step may be inserted."""
        return self._is_lifted or all(limiter.room for limiter in self._limiters)

    def admit(self, steps: int) -> Admitted:
        """Admit up to `steps` steps and count the admitted ones as inserted."""
        if not self._limiters or self._is_lifted:
            return Admitted(steps, ())
        with self.lock:
            return self._count(self._room(steps))

    def admit_all(self, steps: int) -> Admitted | None:
        """Admit `steps` steps and count them as inserted; None, and nothing has changed, if there
        is not room for all of them now.

        Raises:
            ValueError: a limiter can never have room for all of them.
        """
        if not self._limiters or self._is_lifted:
            return Admitted(steps, ())
        with self.lock:
            if self._room(steps) == steps:
                return self._count(steps)
            for limiter in self._limiters:
                if not limiter.can_ever_insert(steps):
                    raise ValueError(
                        f"{steps:,} steps at once do not fit into the error_buffer of "
                        f"{limiter!r}; hand them in in smaller parts, or raise error_buffer"
                    )
            return None

    def admit_rows(self, columns: Columns, start: int, stop: int) -> tuple[int, Admitted]:
        """How many rows from `start` on may be written, at most up to `stop`, and their steps. The
        steps count as inserted."""
        if not self._limiters or self._is_lifted:
            return stop - start, Admitted(0, ())
        if NEXT_OFFSET not in columns:
            admitted = self.admit(stop - start)
            return admitted.steps, admitted
        is_step = columns[NEXT_OFFSET][start:stop] > 0
        steps = int(np.count_nonzero(is_step))
        admitted = self.admit(steps)
        if admitted.steps == steps:
            return stop - start, admitted
        return int(is_step.cumsum().searchsorted(admitted.steps, side="right")), admitted

    def give_back(self, admitted: Admitted, steps: int) -> None:
        """Count `steps` of the admitted steps as not inserted: they were not written."""
        if admitted.by and steps:
            with self.lock:
                for limiter in admitted.by:
                    limiter.insert(-steps)
            self.notify()

    def reason(self, steps: int = 1, *, lacks_blocks: bool | None = None) -> str:
        """What keeps `steps` steps from being written at this moment, and its numbers; "" if they
        may be written.

        Args:
            lacks_blocks: whether the writer found too few blocks; None to look whether there is
                one.
        """
        for limiter in self._limiters:
            if limiter.room < steps:
                seen = limiter.statistics()
                return (
                    f"{limiter!r}: {seen.inserts:,} steps inserted, {seen.samples:,} items handed "
                    f"to the learner, error {seen.error:g}; the learner has to take a batch"
                )
        pins = self._registry.pins
        if not pins:
            return ""
        if lacks_blocks is None:
            lacks_blocks = not self._registry.has_place()
        if not lacks_blocks:
            return ""
        needed = ", ".join(one.name for one in pins)
        return (
            f"the blocks hold rows that are still needed by {needed}; the learner has to take a "
            "batch"
        )

    def close(self) -> None:
        """Give back the descriptors, and call no function any more."""
        self.on_change = _nothing
        self.take_waiting = None
        for event in self._events:
            event.close()

    def _room(self, steps: int) -> int:
        """How many of `steps` steps all limiters have room for. Under the lock."""
        return min([steps, *(limiter.room for limiter in self._limiters)])

    def _count(self, steps: int) -> Admitted:
        """Count steps as inserted. Under the lock."""
        for limiter in self._limiters:
            limiter.insert(steps)
        return Admitted(steps, self._limiters)


def _nothing() -> None: ...


def steps_among(columns: Columns, start: int, stop: int) -> int:
    """How many rows from `start` to `stop` are steps: all but final observations."""
    if NEXT_OFFSET not in columns:
        return stop - start
    return int(np.count_nonzero(columns[NEXT_OFFSET][start:stop] > 0))


def steps_in(ring: Ring, at_most: int) -> int:
    """Count the steps among the rows of the ring, up to `at_most`, without final observations."""
    if not ring.spec.is_steps:
        return min(at_most, len(ring))
    found = 0
    for serial, rows in zip(*(array.tolist() for array in ring.occupied()), strict=True):
        start = serial % ring.blocks * ring.block_rows
        found += steps_among(ring.columns, start, start + rows)
        if found >= at_most:  # rows beyond that do not matter to a limiter
            return at_most
    return found
