"""Doorbells: how one process wakes another, without a system call while the other is awake.

A doorbell is an eventfd and one shared word. The word is n > 0 while the sleeper is asleep for the
n-th time, and 0 or -n while it is awake. Only the sleeper writes it; the ringer reads it. A
ringer that died leaves nothing behind; a sleeper that died leaves the word above 0, which costs
each ringer one needless write to the eventfd.

    sleeper                                     ringer
    -------                                     ------
    arm(): word = n, fence                      changes what the sleeper waits for
    looks again at what it waits for            notify(): fence, reads word; above 0 and new:
                                                eventfd
    sleeps on the eventfd, then disarm()

One of the two always sees the other's change, since each has a full fence between its store and its
load. Knows nothing of event loops: `areplay._processes.waiter` sleeps on the descriptor.
"""

from __future__ import annotations

import contextlib
import os
from multiprocessing import reduction
from typing import Any

from areplay._base import forks
from areplay._shm.memory_order import fence
from areplay.errors import ResourceUnavailable


class EventFd:
    """An eventfd that pickles into a child that is being spawned."""

    descriptor = -1  # of one whose making failed

    def __init__(self, what: str) -> None:
        try:
            self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise ResourceUnavailable("eventfd", what, str(error)) from error
        self._hold()

    def _hold(self) -> None:
        self._origin = forks.current
        forks.register(self)

    def notify(self) -> None:
        """Make the descriptor readable. Does nothing once it is closed: then no process sleeps."""
        if self.descriptor < 0:
            return
        with contextlib.suppress(BlockingIOError):  # the counter is full: it is readable already
            os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Give back the descriptor. May be called twice."""
        descriptor = self.descriptor
        self.descriptor = -1
        if descriptor >= 0:
            os.close(descriptor)

    def after_fork(self) -> None:
        """Close the child's descriptor: a forked child wakes no process."""
        self.descriptor = forks.close(self.descriptor)

    def __getstate__(self) -> tuple[Any, ...]:
        forks.check(self._origin, "a doorbell")
        return (reduction.DupFd(self.descriptor),)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.descriptor = state[0].detach()
        self._hold()

    def __del__(self) -> None:
        self.close()


class Doorbell:
    """One side's view of a doorbell; `word` is the shared word, `event` the eventfd that both sides
    hold."""

    def __init__(self, event: EventFd, word: memoryview) -> None:
        self.event = event
        self._word = word
        self._rung = 0

    def arm(self) -> None:
        """Waiter: say that you are about to sleep. Look once more at your condition before that."""
        # Never a number that was used before, also not by a predecessor that died: a ringer rings
        # once for each number.
        self._word[0] = abs(self._word[0]) + 1
        fence()

    def disarm(self) -> None:
        """Waiter: say that you are awake."""
        if self._word[0] > 0:
            self._word[0] = -self._word[0]

    def notify(self) -> None:
        """Ringer: wake the sleeper if it sleeps, after you have changed what it waits for."""
        fence()
        sleep = self._word[0]
        if sleep > 0 and sleep != self._rung:
            self._rung = sleep
            self.event.notify()
