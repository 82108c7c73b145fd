"""The gate: samplers begin once there are rows enough, and the learner hears of what changes.

Rows come from the coordinator's thread and from the learner's loop, changes from both as well.

Rule: doorbells are rung under the lock of the gate, and never after `close`. The owner closes the
gate before it closes the descriptors of the doorbells, whose numbers other files may get then.
"""

from __future__ import annotations

import threading

from areplay._base import forks
from areplay._sampling.slots import Slots
from areplay._sampling.stream_records import StreamConfig, StreamHost
from areplay.limiters import SamplesPerInsert


class Gate:
    """Opens once, for good, for the samplers of one stream.

    Attributes:
        min_size: rows that must be there before the gate opens, unless the ring is full.
    """

    def __init__(self, host: StreamHost, config: StreamConfig, slots: Slots) -> None:
        self.min_size = config.limiter.min_size_to_sample
        self._ring = host.ring
        self._producers = host.producers
        self._slots = slots
        self._is_planned = config.is_planned
        self._is_paced = config.is_planned or isinstance(config.limiter, SamplesPerInsert)
        self._lock = forks.register_lock(threading.Lock())
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether samplers may sample."""
        return self._slots.board.is_open

    def on_rows(self) -> None:
        """Open the gate once there are rows enough. Call it after rows were written, from any
        thread."""
        if self.is_open:
            if self._is_paced:  # a batch may be complete now, or may be handed out
                self._wake_all()
        elif self._ring.rows_now[0] >= self.min_size or self._is_full:
            self.open()

    def open(self) -> None:
        """Let the samplers begin now."""
        with self._lock:
            if not self._is_closed:
                self._slots.board.open_gate()

    def wake_learner(self) -> None:
        """Let a learner that waits look again: samplers, actors or a limiter have changed. From any
        thread."""
        with self._lock:
            if not self._is_closed:
                self._slots.board.learner_bell.event.notify()

    def close(self) -> None:
        """Ring no doorbell from now on."""
        with self._lock:
            self._is_closed = True

    def _wake_all(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._slots.board.learner_bell.notify()
                self._slots.board.wake_samplers()

    @property
    def _is_full(self) -> bool:
        """Whether the ring will not have more rows than now."""
        # A writer that recycles a block has found no free one. Open blocks may keep such a ring
        # below its capacity, and below `min_size`.
        if self._ring.next_serial[0] > self._ring.blocks:
            return True
        # A plan keeps all blocks: then no writer can recycle one.
        return self._is_planned and self._producers().is_stuck()
