"""The reaper: a thread that lets go what was dropped, and what still is open at the program's end.

There is one reaper a process, `current`. Its thread runs from the first open object to the end of
the last. Finalizers hand it work by `put`, which neither waits nor takes a lock: the garbage
collector may run a finalizer anywhere. A forked child has another reaper, without a thread.

What the reaper lets go is a `Droppable`; `areplay._processes.dropped` has the only kind.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  so that its hook at exit is older than ours, and comes later
import contextlib
import logging
import os
import queue
import threading
import time
from typing import Protocol

logger = logging.getLogger(__name__)

# Between two looks at what takes time; it doubles while nothing is done.
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.5
_AT_EXIT_S = 5.0  # how long the end of the interpreter waits for children and threads


class Droppable(Protocol):
    """What an open object holds, and how it is let go without that object."""

    is_done: bool
    """Whether nothing is held any more."""
    thread: int
    """The thread in which the object was opened."""

    def announce(self) -> None:
        """Log a warning, once."""
        ...

    def advance(self) -> bool:
        """Let go what can be let go now; False if some of it takes time."""
        ...

    def abandon_at_exit(self) -> None:
        """Let all go, since the program ends."""
        ...


_Queue = queue.SimpleQueue[Droppable | None]  # None ends the thread


class Reaper:
    """The thread that lets go what was dropped.

    Attributes:
        held: what there is to be dropped in this process.
    """

    def __init__(self) -> None:
        self.held: set[Droppable] = set()
        self._lock = threading.Lock()  # of the thread's start and end; no finalizer takes it
        self._queue: _Queue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, dropped: Droppable) -> None:
        """Let this go. Neither waits nor takes a lock: for finalizers."""
        self._queue.put(dropped)

    def hold(self, droppable: Droppable) -> None:
        """This may be dropped from now on. Starts the thread, if there is none."""
        with self._lock:
            self.held.add(droppable)
            if self._thread is not None:
                return
            thread = threading.Thread(
                target=self._run, args=(self._queue,), name="areplay-reaper", daemon=True
            )
            try:
                thread.start()
            # The next object that is opened tries again, or the end of the interpreter does.
            except RuntimeError as error:
                logger.debug("no thread for what will be dropped: %s", error)
            else:
                self._thread = thread

    def release(self, droppable: Droppable) -> None:
        """This is closed. Waits for the end of the thread if it was the last."""
        thread = self._forget(droppable)
        if thread is not None:
            thread.join()

    def _forget(self, droppable: Droppable) -> threading.Thread | None:
        """Forget this; the thread if it was the last, which ends then."""
        with self._lock:
            self.held.discard(droppable)
            if self.held or self._thread is None:
                return None
            thread = self._thread
            self._thread = None
            self._queue.put(None)
            self._queue = queue.SimpleQueue()  # for another thread
            return thread

    def end(self, open_still: list[Droppable]) -> None:
        """Let these go, and wait for that: the interpreter ends."""
        for droppable in open_still:
            droppable.abandon_at_exit()
        deadline = time.monotonic() + _AT_EXIT_S
        pending: list[Droppable] = []
        while not all(each.is_done for each in open_still) and time.monotonic() < deadline:
            if self._thread is None or not self._thread.is_alive():
                pending, _ = self._look(pending, self._queue, 0.0)
            time.sleep(0.001)

    # What follows runs in the reaper's thread.

    def _run(self, ours: _Queue) -> None:
        pending: list[Droppable] = []
        pause_s = _FIRST_PAUSE_S
        is_over = False
        while not is_over:
            before = len(pending)
            pending, is_over = self._look(pending, ours, pause_s if pending else None)
            is_stuck = 0 < len(pending) <= before
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_stuck else _FIRST_PAUSE_S

    def _look(
        self, pending: list[Droppable], ours: _Queue, timeout_s: float | None
    ) -> tuple[list[Droppable], bool]:
        """Wait for more to let go, then let go what can be let go now.

        Args:
            timeout_s: how long to wait at most; None: without a limit.

        Returns:
            what takes time of all that is pending, and whether the thread has to end.
        """
        found = _taken(ours, timeout_s)
        for dropped in found:
            if dropped is not None and dropped not in pending and not dropped.is_done:
                dropped.announce()
                pending.append(dropped)
        left = []
        for dropped in pending:
            if not dropped.advance():
                left.append(dropped)
            elif dropped.is_done:
                self._forget(dropped)
        return left, None in found


def _taken(ours: _Queue, timeout_s: float | None) -> list[Droppable | None]:
    """Take all that is in the queue; wait for the first of it."""
    found: list[Droppable | None] = []
    with contextlib.suppress(queue.Empty):
        found.append(ours.get_nowait() if timeout_s == 0.0 else ours.get(timeout=timeout_s))
        while True:
            found.append(ours.get_nowait())
    return found


def _at_exit() -> None:
    current.end(list(current.held))


def _before_threads_end() -> None:
    """Let go what no thread will use any more, while the threads of executors are there.

    With them the children would die, to be started again, and a save be waited for. A thread that
    is no daemon may go on with its replays: the interpreter waits for it.
    """
    threads = {thread.ident for thread in threading.enumerate() if not thread.daemon}
    lasting = threads - {threading.main_thread().ident}
    current.end([each for each in current.held if each.thread not in lasting])


def _begin_anew() -> None:
    """In a forked child: what is held is the parent's."""
    global current
    current = Reaper()


current = Reaper()
os.register_at_fork(after_in_child=_begin_anew)
atexit.register(_at_exit)
# Last in, first out: before the threads of executors are ended and waited for.
with contextlib.suppress(AttributeError):
    threading._register_atexit(_before_threads_end)  # type: ignore[attr-defined]
