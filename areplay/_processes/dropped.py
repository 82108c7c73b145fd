"""Dropped objects: a replay, a stream or a group that the user loses without closing it is let go
all the same.

Closing takes an event loop, which turns. A finalizer has neither a loop nor time: the garbage
collector runs it in any thread, inside any call, perhaps while the interrupted code holds a lock of
ours or of the user's logging. So the finalizer of an open object takes no lock and waits for
nothing. It puts the object's `Holdings` into a queue:

    last reference    finalizer,        areplay-reaper:     the event loop:      areplay-reaper:
    of the user  -->  any thread:  -->  logs a warning -->  stops watching  -->  ends children and
    goes              queue.put                             descriptors          threads, closes
                                                            (left out if it      descriptors
                                                            is closed)

A loop that was stopped may never turn again. The reaper then ends the children at once, and the
rest follows when the loop turns, is closed, or is collected: what it watches refers to it
(`Supervisor.__del__`), and no step does.

A descriptor is closed only after its loop has stopped watching it: a loop that goes on would watch
the next file that gets the number, and libuv ends the process where it cannot.

Rule: what runs (threads, tasks, callbacks of a loop) and the steps in `Holdings` refer to such an
object only weakly, and steps to nothing on which tasks wait: those tasks may be the user's, and
hold it. The reaper is a thread of the process, there from the first open object to the end of the
last. A forked child has no such thread, and its finalizers do nothing: what they would let go is
the parent's.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  so that its hook at exit is older than ours, and comes later
import contextlib
import inspect
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, ParamSpec, Protocol, TypeVar

from areplay.errors import Closed

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.01, 0.5  # between two looks at what takes time, at first and at last
_AT_EXIT_S = 5.0  # what the end of the interpreter waits for children and threads at most

Loop = asyncio.AbstractEventLoop


class Watcher(Protocol):
    """Has an event loop watch descriptors for it."""

    @property
    def loop(self) -> Loop | None:
        """The loop that watches, if there is one."""
        ...

    def unwatch(self) -> None:
        """End that, for good. On that loop, or anywhere once it is closed."""
        ...


class Holdings:
    """What an open object holds, in steps that let it go without that object and without an event
    loop to wait on.

    A step may run in any thread, and does not refer to the owner.

    Args:
        what: what the owner is, for the warning.

    Attributes:
        is_abandoned: whether the steps have begun: the owner is of no use any more.
        is_done: whether nothing is held any more.
        thread: the one that made it.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.is_abandoned = self.is_done = False
        self.how = "was dropped without being closed"
        self.thread = 0
        self._pid = 0
        self._loop: weakref.ref[Loop] | None = None
        self._watchers: list[weakref.ref[Watcher]] = []
        self._unwatched: list[Watcher] = []  # which the steps may be about
        self._steps: list[Callable[[], bool | None]] = []
        self._at_once: list[Callable[[], bool]] = []
        self._turning: weakref.ref[Loop] | None = None  # the loop whose next turn goes on with it
        self._has_no_loop = self._is_announced = False
        self._reaper = _reaper
        self._finalizer: weakref.finalize[[], object] | None = None

    def begin(self, owner: object) -> None:
        """Call it on the loop on which the owner is opened, before it holds anything.

        Args:
            owner: the object that the user holds. Dropped before `release`, all is let go.
        """
        self._pid, self.thread = os.getpid(), threading.get_ident()
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._reaper = _reaper
        self._finalizer = weakref.finalize(owner, self._drop)
        self._finalizer.atexit = False  # see `_before_threads_end`
        self._reaper.hold(self)

    async def leave(
        self, kind: type[BaseException] | None, close: Callable[[], Awaitable[None]]
    ) -> None:
        """Close the owner, whose context is left, in order; or let all go where a coroutine cannot
        wait.

        Args:
            kind: of the exception that leaves the context.
        """
        if can_wait(kind):
            await close()
        else:
            self.abandon("was left where no event loop could close it in order")

    async def are_lost(self) -> bool:
        """Whether there is nothing to close in order: the loop was closed, or all was let go; waits
        until it is.

        Cancelled: the reaper goes on.
        """
        loop = None if self._loop is None else self._loop()
        if self._loop is not None and (loop is None or loop.is_closed()):
            self.abandon("")
        if not can_wait(sys.exc_info()[0]):
            self.abandon("")
            return True
        while self.is_abandoned and not self.is_done:  # noqa: ASYNC110  the reaper must not need this loop
            await asyncio.sleep(_LOOK_AGAIN_S[0])
        return self.is_abandoned

    def push(self, *steps: Callable[[], bool | None]) -> None:
        """Add steps; the last one added comes first. One that returns False is called again later,
        and may not wait.

        They run in the reaper's thread, after the loops have stopped watching.
        """
        self._steps.extend(steps)

    def push_at_once(self, step: Callable[[], bool]) -> None:
        """Add a step for a loop that stands still and still watches.

        The reaper calls it again and again until it returns True.
        """
        self._at_once.append(step)

    def watched(self, watcher: Watcher) -> None:
        """Before the steps, let its loop stop watching. Referred to weakly: tasks that wait may
        hold the owner."""
        self._watchers.append(weakref.ref(watcher))

    def release(self) -> None:
        """All is closed in order."""
        if self._finalizer is not None and self._finalizer.detach() is not None:
            self.is_done = True
            self._reaper.release(self)

    def abandon(self, how: str) -> None:
        """Let all go now, though the owner is still there. Does nothing if that has begun, or it
        was released.

        Args:
            how: what happened, for the warning; without one if that is empty: the user closes it.
        """
        if self._finalizer is not None and self._finalizer.detach() is not None:
            self.how = how
            self._drop()

    def _drop(self) -> None:
        """What the finalizer does: see the module."""
        if os.getpid() != self._pid:
            return
        self.is_abandoned = True
        try:
            # A loop that does not run at the moment may never turn again. In its own thread nothing
            # can start it now.
            if threading.get_ident() == self.thread:
                self._unwatch(lambda loop: not loop.is_running())
        finally:
            self._reaper.put(self)

    def advance(self) -> bool:
        """Let go what can be let go now; False if some of it takes time. In the reaper's thread."""
        turning = self._turning  # the loop may forget it meanwhile
        if turning is not None and not self._has_no_loop:
            return self._advance_at_once(turning())
        while self._watchers:
            watcher = self._watchers[-1]()
            loop = None if watcher is None or self._has_no_loop else watcher.loop
            if loop is not None and not loop.is_closed():
                turn = _Turn(self)
                self._turning = weakref.ref(loop)  # before the loop can call it
                try:
                    loop.call_soon_threadsafe(turn)
                    return False
                except RuntimeError:  # closed meanwhile
                    turn.forget()
                    self._turning = None
            self._watchers.pop()
            if watcher is not None:
                self._unwatched.append(watcher)
                self._try(watcher.unwatch)
        while self._steps:
            if self._try(self._steps[-1]) is False:
                return False
            if self._steps:
                self._steps.pop()
        self._unwatched.clear()
        self.is_done = True
        return True

    def _advance_at_once(self, loop: Loop | None) -> bool:
        """Whether there is nothing to do until the loop turns: one that runs may be stopped."""
        if loop is None or loop.is_running():
            return False
        # A step that is not done must not keep the reaper from the ones after it.
        results = [self._try(step) for step in self._at_once]
        return False not in results

    def announce(self) -> None:
        """Say so, once."""
        if self.how and not self._is_announced:
            self._is_announced = True
            logger.warning(
                "%s %s: its processes and threads are ended, its memory is given back; enter it "
                "with `async with`, or await its close()",
                self.what,
                self.how,
            )

    def _unwatch(self, is_meant: Callable[[Loop], bool]) -> None:
        """Let the loops that are meant stop watching."""
        for reference in list(self._watchers):
            watcher = reference()
            loop = None if watcher is None else watcher.loop
            if watcher is not None and loop is not None and not loop.is_closed() and is_meant(loop):
                self._watchers.remove(reference)
                self._unwatched.append(watcher)
                # no word of it in a finalizer: logging takes locks
                with contextlib.suppress(Exception):
                    watcher.unwatch()

    def _try(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except Exception:
            logger.exception("%s could not be let go in full", self.what)
            return None

    def __repr__(self) -> str:
        return f"<Holdings of {self.what}: {len(self._watchers)} watched, {len(self._steps)} steps>"


class _Turn:
    """A callback for an event loop: it stops watching, and the reaper goes on.

    Dropped uncalled, since the loop was closed or collected before its next turn, it lets the
    reaper go on without it.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings: Holdings | None = holdings

    def forget(self) -> None:
        """Do nothing."""
        self._holdings = None

    def __call__(self) -> None:
        holdings, self._holdings = self._holdings, None
        if holdings is not None and os.getpid() == holdings._pid:
            here = asyncio.get_running_loop()
            holdings._unwatch(lambda loop: loop is here)
            holdings._turning = None
            holdings._reaper.put(holdings)

    def __del__(self) -> None:
        holdings, self._holdings = self._holdings, None
        if holdings is not None and os.getpid() == holdings._pid:
            holdings._has_no_loop = True
            holdings._turning = None
            holdings._reaper.put(holdings)


class _Reaper:
    """The thread that lets go what was dropped, and what there is to be dropped in this process."""

    def __init__(self) -> None:
        self.held: set[Holdings] = set()
        self._lock = threading.Lock()  # of the thread's start and end; no finalizer takes it
        self._queue: queue.SimpleQueue[Holdings | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, holdings: Holdings) -> None:
        """Let these go. Neither waits nor takes a lock: for finalizers."""
        self._queue.put(holdings)

    def hold(self, holdings: Holdings) -> None:
        """These may be dropped from now on."""
        with self._lock:
            self.held.add(holdings)
            if self._thread is not None:
                return
            thread = threading.Thread(
                target=self._run, args=(self._queue,), name="areplay-reaper", daemon=True
            )
            try:
                thread.start()
            # the next one to be opened tries again, or the end of the interpreter
            except RuntimeError as error:
                logger.debug("no thread for what will be dropped: %s", error)
            else:
                self._thread = thread

    def release(self, holdings: Holdings) -> None:
        """These are closed. The last of them ends the thread, which has nothing to do by then."""
        thread = self._leave(holdings)
        if thread is not None:
            thread.join()

    def _leave(self, holdings: Holdings) -> threading.Thread | None:
        """Forget these; the thread if they were the last, which ends then."""
        with self._lock:
            self.held.discard(holdings)
            if self.held or self._thread is None:
                return None
            thread, self._thread = self._thread, None
            self._queue.put(None)
            self._queue = queue.SimpleQueue()  # another thread's
            return thread

    def end(self, open_still: list[Holdings]) -> None:
        """Let these go, and wait for that: the interpreter ends."""
        for holdings in open_still:
            loop = None if holdings._loop is None else holdings._loop()
            if loop is None or not loop.is_running():
                holdings._has_no_loop = True  # nothing will start it any more
            if holdings.is_abandoned:
                self.put(holdings)
            else:
                holdings.abandon("was still open at the end of the program")
        deadline = time.monotonic() + _AT_EXIT_S
        pending: list[Holdings] = []
        while not all(holdings.is_done for holdings in open_still) and time.monotonic() < deadline:
            if self._thread is None or not self._thread.is_alive():
                pending = self._look(pending, self._queue, 0.0)[0]
            time.sleep(0.001)

    # What follows runs in the reaper's thread.

    def _run(self, ours: queue.SimpleQueue[Holdings | None]) -> None:
        pending: list[Holdings] = []
        pause_s, is_over = _LOOK_AGAIN_S[0], False
        while not is_over:
            before = len(pending)
            pending, is_over = self._look(pending, ours, pause_s if pending else None)
            pause_s = (
                min(2 * pause_s, _LOOK_AGAIN_S[1])
                if 0 < len(pending) <= before
                else _LOOK_AGAIN_S[0]
            )

    def _look(
        self,
        pending: list[Holdings],
        ours: queue.SimpleQueue[Holdings | None],
        timeout_s: float | None,
    ) -> tuple[list[Holdings], bool]:
        """Wait for more to be let go, at most so long; what takes time of all there is, and whether
        this is the end."""
        found: list[Holdings | None] = []
        with contextlib.suppress(queue.Empty):
            found.append(ours.get(timeout=timeout_s) if timeout_s != 0.0 else ours.get_nowait())
            while True:
                found.append(ours.get_nowait())
        for holdings in found:
            if holdings is not None and holdings not in pending and not holdings.is_done:
                holdings.announce()
                pending.append(holdings)
        left = []
        for holdings in pending:
            if not holdings.advance():
                left.append(holdings)
            elif holdings.is_done:
                self._leave(holdings)
        return left, None in found


class InOrder(contextlib.AsyncExitStack):
    """Closes in order. Where its task is destroyed with its loop, it leaves the rest to the
    reaper."""

    def push_async_callback(  # type: ignore[override]
        self, callback: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """As of `AsyncExitStack`."""

        async def call() -> None:
            try:
                await callback(*args, **kwargs)
            except GeneratorExit:
                self.pop_all()
                raise

        super().push_async_callback(call)


class Once:
    """A step that closing in order takes as well, whichever comes first."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step: Callable[[], object] | None = step

    def __call__(self) -> None:
        """Take it, if it was not taken before."""
        step, self._step = self._step, None
        if step is not None:
            step()


def can_wait(kind: type[BaseException] | None = None) -> bool:
    """Whether a coroutine may wait at this moment. Call it in the coroutine itself.

    It may not where no loop runs, nor where it is being destroyed: its task was dropped, with its
    loop closed or not. Then Python raises GeneratorExit in it and complains if it waits. An
    asynchronous generator may: it is closed by a task, which waits with it.

    Args:
        kind: of the exception that leaves the context.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    if kind is None or not issubclass(kind, GeneratorExit):
        return True
    frame = sys._getframe(1).f_back  # of those that wait for our caller, up to what raised it
    while frame is not None and frame.f_code.co_flags & inspect.CO_COROUTINE:
        frame = frame.f_back
    return frame is not None and bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)


def cancel_if_open(task: asyncio.Task[None]) -> None:
    """Cancel a task of a dropped object. On its loop, or anywhere once that is closed: then it is
    only forgotten."""
    if not task.get_loop().is_closed():
        # in debug mode a loop complains of another thread; it will not turn
        with contextlib.suppress(RuntimeError):
            task.cancel()


def unless_gone(method: Callable[P, T], what: str) -> Callable[P, T]:
    """A bound method that does not keep its object: `Closed` once that is gone."""
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = reference()
        if bound is None:
            raise Closed(what)
        return bound(*args, **kwargs)

    return call


def notice(method: Callable[[], object]) -> Callable[[], None]:
    """A bound method that does not keep its object; nothing once that is gone."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call


class Living(Generic[T]):
    """Objects that others hold, in the order in which they were added; one that is dropped leaves
    by itself.

    Attributes:
        references: to them. Replaced as a whole: other threads go through them meanwhile.
    """

    def __init__(self) -> None:
        self.references: tuple[weakref.ref[T], ...] = ()

    def append(self, one: T) -> None:
        """Add one."""
        self.references = (*self._living(), weakref.ref(one))

    def tell(self, call: Callable[[T], object]) -> None:
        """Call that with each of them."""
        for reference in self.references:
            one = reference()
            if one is not None:
                call(one)

    def leave_out(self, is_over: Callable[[T], bool]) -> None:
        """Forget those that are over."""
        self.references = tuple(
            each for each in self._living() if (one := each()) is not None and not is_over(one)
        )

    def _living(self) -> list[weakref.ref[T]]:
        return [each for each in self.references if each() is not None]

    def __iter__(self) -> Iterator[T]:
        for each in self.references:
            one = each()
            if one is not None:
                yield one
            del one


def _at_exit() -> None:
    _reaper.end(list(_reaper.held))


def _before_threads_end() -> None:
    """Let go what no thread will use any more, while the threads of executors are there.

    With them the children would die, to be started again, and a save be waited for. A thread that
    is no daemon may go on with its replays: the interpreter waits for it.
    """
    lasting = {thread.ident for thread in threading.enumerate() if not thread.daemon} - {
        threading.main_thread().ident
    }
    _reaper.end([holdings for holdings in _reaper.held if holdings.thread not in lasting])


def _begin_anew() -> None:
    """In a forked child: what is held is the parent's."""
    global _reaper
    _reaper = _Reaper()


_reaper = _Reaper()
os.register_at_fork(after_in_child=_begin_anew)
atexit.register(_at_exit)
# Last in, first out: before the threads of executors are ended and waited for.
with contextlib.suppress(AttributeError):
    threading._register_atexit(_before_threads_end)  # type: ignore[attr-defined]
