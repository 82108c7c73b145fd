"""The producers of a side: one loop for all of them, and the shared words that start, stop and
count them.

Rule: word 0 and 1 are written by the learner's process, each producer writes its own count. Stores
are single aligned words; a stale read costs some milliseconds of producing. It is a memfd and not a
multiprocessing primitive, so that no side brings along a lock that its library does not have.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

STOPPED, PACED, FLAT_OUT, END = range(4)
MODE, CHUNKS_PER_S = 0, 1  # words; the rate in thousandths
LINE = 8  # words of a cache line
MAX_PRODUCERS = 64
MAX_LAG_S = 0.1  # a producer that is further behind its pace does not try to catch up
LOOK_S = 0.005


class Switch:
    """Tells producers what to do, and knows how many rows they have handed in."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("producers", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, 8 * LINE * (1 + MAX_PRODUCERS))
        self._map()

    @property
    def mode(self) -> int:
        """What producers shall do now."""
        return int(self._words[MODE])

    @property
    def chunks_per_s(self) -> float:
        """The pace of each producer."""
        return float(self._words[CHUNKS_PER_S]) / 1e3

    @property
    def rows(self) -> int:
        """Rows that all producers have handed in so far."""
        return int(self._words[LINE::LINE].sum())

    def turn(self, mode: int, chunks_per_s: float = 0.0) -> None:
        """Start, stop or end all producers."""
        self._words[CHUNKS_PER_S] = round(1e3 * chunks_per_s)
        self._words[MODE] = mode

    @property
    def ready(self) -> int:
        """How many producers are at work or wait for the switch."""
        return int(self._words[LINE + 1 :: LINE].sum())

    def say_ready(self, producer: int) -> None:
        """Note that a producer has come to its loop; by itself."""
        self._words[LINE * (1 + producer) + 1] = 1

    def count(self, producer: int, rows: int) -> None:
        """Note rows of a producer; by itself."""
        self._words[LINE * (1 + producer)] += rows

    def _map(self) -> None:
        self._words = np.frombuffer(mmap.mmap(self._fd, os.fstat(self._fd).st_size), np.int64)

    def __getstate__(self) -> Any:
        return DupFd(self._fd)

    def __setstate__(self, state: Any) -> None:
        self._fd = state.detach()
        self._map()


class Turn:
    """What a producer is to do next, for one that asks again and again."""

    def __init__(self, switch: Switch) -> None:
        self._switch, self._mode, self._start_s, self._sent = switch, STOPPED, 0.0, 0

    def is_over(self) -> bool:
        """Whether to end."""
        return self._switch.mode == END

    def pause_s(self) -> float:
        """Seconds to sleep before the next chunk is due; 0.0 means hand one in now."""
        mode, now = self._switch.mode, time.monotonic()
        if mode != self._mode:
            self._mode, self._start_s, self._sent = mode, now, 0
        if mode == FLAT_OUT:
            return 0.0
        if mode != PACED:
            return LOOK_S
        early_s = self._start_s + self._sent / self._switch.chunks_per_s - now
        if early_s < -MAX_LAG_S:
            self._start_s, self._sent, early_s = now, 0, 0.0
        self._sent += early_s <= 0
        return min(max(0.0, early_s), LOOK_S)


def produce(switch: Switch, producer: int, rows: int, add: Callable[[], object]) -> None:
    """Hand in chunks as the switch says, until it says end or the learner's process is gone.

    Args:
        add: hands in a chunk, and has done so when it returns.
    """
    turn, parent = Turn(switch), os.getppid()
    switch.say_ready(producer)
    while not turn.is_over() and os.getppid() == parent:
        if pause_s := turn.pause_s():
            time.sleep(pause_s)
            continue
        add()
        switch.count(producer, rows)
