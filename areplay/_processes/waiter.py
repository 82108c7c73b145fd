"""Waiting: the one way in which a coroutine of areplay sleeps, so that no wait is silent and none
is without an end.

A `Waiter` waits on a doorbell until a condition holds. It gives up after a timeout if the caller
has one, and says in a warning who waits for whom and why if it takes long. The condition may raise,
for example `Closed` or `Stalled`: that is how a waiter notices that whoever it waits for is gone.

Work that blocks runs in a thread of its own (`in_thread`), and ends before its caller goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import select
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar, cast

from areplay._base import forks
from areplay._base.hooks import HookRaised
from areplay._processes.event_loops import TASK_PREFIX, leave_to_parent
from areplay._shm.doorbell import Doorbell
from areplay.errors import Closed, ResourceUnavailable, WaitTimeout

T = TypeVar("T")

logger = logging.getLogger(__name__)

WARN_AFTER_S = 5.0
# conditions can also change without a doorbell, by a death that nobody could announce
_LOOK_AGAIN_S = 1.0
_POLL_S, _POLLED_S = 0.001, 1.0


class Waiter:
    """Sleeps on one doorbell, for any number of coroutines of one event loop."""

    def __init__(self, bell: Doorbell) -> None:
        self._bell = bell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched = -1  # the doorbell's descriptor, by number: the reaper may have closed it
        self._asleep: set[asyncio.Future[None]] = set()
        self._waiters = 0
        self._origin = forks.current

    async def wait(
        self,
        is_ready: Callable[[], bool],
        reason: Callable[[], str] | None,
        timeout_s: float | None = None,
        error: Callable[[str, float], WaitTimeout] = WaitTimeout,
    ) -> None:
        """Return when `is_ready()`; at once, without suspending, if it is so already.

        Cancelled: nothing has changed. `reason()` says who waits for whom and why, for warnings and
        the error; `None` for one who rests between two tasks and has nothing to complain about, ""
        if another says it already.

        Raises:
            WaitTimeout: the one that `error` makes, after `timeout_s`.
            WrongProcess: this process was forked meanwhile, and is the child.
        """
        if is_ready():
            return
        loop = asyncio.get_running_loop()
        self._attach(loop)
        started = loop.time()
        deadline = started + (float("inf") if timeout_s is None else timeout_s)
        warn_after = WARN_AFTER_S
        self._waiters += 1
        try:
            while True:
                forks.check(self._origin, "the doorbell that this call waits for")
                self._bell.arm()
                if is_ready():
                    return
                now = loop.time()
                if timeout_s is not None and now >= deadline:
                    raise error(reason() if reason else "nothing came", timeout_s)
                if reason and now - started >= warn_after:
                    if complaint := reason():
                        logger.warning("%s; waiting for %.0f s", complaint, now - started)
                    warn_after *= 2
                await self._sleep(loop, min(deadline, now + _LOOK_AGAIN_S))
        finally:
            self._waiters -= 1
            if self._waiters == 0:
                self._bell.disarm()

    async def wait_briefly(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Return when `is_ready()` or after `seconds`, whichever is first."""
        loop = asyncio.get_running_loop()
        self._attach(loop)
        until = loop.time() + seconds
        self._waiters += 1
        try:
            while True:
                forks.check(self._origin, "the doorbell that this call waits for")
                self._bell.arm()
                if is_ready() or loop.time() >= until:
                    return
                await self._sleep(loop, until)
        finally:
            self._waiters -= 1
            if self._waiters == 0:
                self._bell.disarm()

    def block_until(self, is_ready: Callable[[], bool], seconds: float) -> bool:
        """Wait without suspending, for `seconds` at most; whether `is_ready()` in the end.

        Blocks the event loop. It is for callers that could not suspend without paying about
        `seconds` of work first.
        """
        until = time.monotonic() + seconds
        ring = select.poll()
        ring.register(self._bell.event.descriptor, select.POLLIN)
        self._waiters += 1
        try:
            while True:
                self._bell.arm()
                left_s = until - time.monotonic()
                if is_ready() or left_s <= 0:
                    return is_ready()
                if ring.poll(1e3 * left_s):
                    self._on_ring()  # it may have been meant for a coroutine that waits as well
        finally:
            self._waiters -= 1
            if self._waiters == 0:
                self._bell.disarm()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that watches the doorbell, until `close`."""
        return self._loop

    def unwatch(self) -> None:
        """`close`, as a `Watcher`."""
        self.close()

    def wake(self) -> None:
        """Let every waiter look at its condition again. Call it on the loop of the waiters."""
        for future in self._asleep:
            _finish(future)

    def close(self) -> None:
        """Stop watching the doorbell; waiters look once more. Call it before the doorbell's
        descriptor is closed.

        Does nothing in a forked child, whose loop watches no doorbell.
        """
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed() and self._origin is forks.current:
            loop.remove_reader(self._watched)
            self.wake()

    def __del__(self) -> None:
        """Leave a loop that is garbage, too: see `Supervisor.__del__`."""
        self.close()

    async def _sleep(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        future: asyncio.Future[None] = loop.create_future()
        self._asleep.add(future)
        timer = loop.call_at(until, _finish, future)
        try:
            await future
        finally:
            timer.cancel()
            self._asleep.discard(future)

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            self._loop = loop
            self._watched = self._bell.event.descriptor
            leave_to_parent(loop)
            loop.add_reader(self._watched, self._on_ring)

    def _on_ring(self) -> None:
        self._bell.event.clear()
        self.wake()


async def run_to_completion(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Finish `work` even if cancelled meanwhile, then deliver the cancellation.

    In a child that is forked meanwhile the cancellation is delivered at once: the threads that
    would finish the work are not there.
    """
    task = (
        work
        if asyncio.isfuture(work)
        else asyncio.create_task(work, name=f"{TASK_PREFIX}completes what was begun")
    )
    origin = forks.current
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            if origin is not forks.current:
                raise
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure from cancelled
    raise cancelled


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How work has ended: its result, or what it raised.

    A value, which crosses threads and futures whatever was raised: a future refuses
    `StopIteration`.
    """

    value: T | None
    error: BaseException | None = None

    def result(self) -> T:
        """What the work returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def outcome_of(work: Callable[[], T]) -> Outcome[T]:
    """Do the work, here and now; how it ended."""
    try:
        return Outcome(work())
    except BaseException as error:
        return Outcome(None, error)


async def in_thread(
    name: str, work: Callable[[], T], on_cancel: Callable[[], object] | None = None
) -> T:
    """Run `work` in a thread of its own, to its end even if cancelled meanwhile; then deliver the
    cancellation.

    In a child that is forked meanwhile the cancellation is delivered at once: the thread is not
    there.

    The thread is none of the loop's pool: the user's work may keep all of those busy.

    Args:
        name: of the thread.
        on_cancel: makes the work end soon; then only the cancellation is raised. Without it an
            error of the work is raised, from the cancellation.

    Raises:
        ResourceUnavailable: no thread can be started. The work has not begun.
        BaseException: what `work` raised.
    """
    loop = asyncio.get_running_loop()
    origin = forks.current
    done: asyncio.Future[None] = loop.create_future()
    # Not in `done`: a loop that is stopped now would keep an error, its frames and their memory.
    outcomes: list[Outcome[T]] = []

    def run() -> None:
        outcomes.append(outcome_of(work))
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks with it
            loop.call_soon_threadsafe(_finish, done)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name)
    try:
        thread.start()
    except RuntimeError as error:
        raise ResourceUnavailable("starting a thread", name, str(error)) from error
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError as error:
            if origin is not forks.current:
                raise
            cancelled = error
            if on_cancel is not None:
                on_cancel()
        except GeneratorExit:  # our task is destroyed with its loop, and cannot wait
            if on_cancel is not None:
                on_cancel()
            raise
    thread.join()  # which only has to return: after that nothing holds what it has worked on
    outcome = outcomes.pop()
    try:
        if cancelled is None:
            return outcome.result()
        if outcome.error is not None and on_cancel is None:
            raise outcome.error from cancelled
        raise cancelled
    finally:
        del outcome, cancelled  # an error that is raised here would hold itself through this frame


def deliver(raised: HookRaised) -> NoReturn:
    """Raise what a hook raised, to the caller whom it is for.

    Four exceptions mean something else to a coroutine's caller than that a hook failed:
    `StopIteration`, `StopAsyncIteration`, `GeneratorExit` and `CancelledError`. They become the
    `__cause__` of a `RuntimeError`, as Python does it where a generator raises one of the first
    two.
    """
    error = raised.error
    if isinstance(
        error, (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)
    ):
        raise RuntimeError(f"{raised.hook} raised {type(error).__name__}") from error
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context  # not the `HookRaised` that is being handled
        del error, raised, context


async def delivered(work: Callable[[], Awaitable[T]]) -> T:
    """Await what `work` returns. What a hook raises meanwhile is raised as `deliver` says."""
    try:
        return await work()
    except HookRaised as raised:
        deliver(raised)


async def opened(
    opening: asyncio.Task[None], close: Callable[[], Awaitable[None]], what: str
) -> None:
    """Wait until `opening` is done. If it fails, or is cancelled with us, `close` is awaited before
    that is raised.

    Raises:
        Closed: somebody else closed `what` meanwhile, which cancels `opening`.
        WrongProcess: this process was forked meanwhile, and is the child.
        BaseException: what `opening` raised; what a hook raised in it, as `deliver` says.
    """
    leave_to_parent(asyncio.get_running_loop())
    origin = forks.current
    try:
        await opening
    except asyncio.CancelledError:
        forks.check(origin, what)
        await close()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Closed(what) from None
    except HookRaised as raised:
        await close()
        deliver(raised)
    except BaseException:
        await close()
        raise


async def ended(opening: asyncio.Task[None] | None) -> None:
    """Cancel `opening` if it is not done, and wait until it is."""
    if opening is not None and not opening.done():
        opening.cancel()
        await asyncio.wait({opening})


async def poll(is_done: Callable[[bool], bool]) -> None:
    """Ask every millisecond for what others are about to do, and do not announce.

    Cancelled: it is not asked again.

    Args:
        is_done: called with whether a second has gone by, after which it should not insist.
    """
    late_at = time.monotonic() + _POLLED_S
    while True:
        if is_done(time.monotonic() > late_at):
            return
        await asyncio.sleep(_POLL_S)


class SleepBackoff:
    """Short naps, each as long as all before it together, for a process that has nothing else to
    do.

    Whoever waits so for something that came every T so far notices it at most T / 2 late, whatever
    T is, and costs the one who brings it no system call: waking a process of another core would
    take that one 40 us or, where cores are scarce, its own core away.
    """

    _FIRST_S, _LONGEST_S, _ALL_S = 50e-6, 2e-3, 0.1

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew with the shortest."""
        self._napped_s = 0.0

    def nap(self) -> bool:
        """Sleep a moment, the whole process; `False`, at once, after 0.1 s of naps: then wait for a
        doorbell."""
        if self._napped_s > self._ALL_S:
            return False
        seconds = min(max(self._FIRST_S, self._napped_s), self._LONGEST_S)
        time.sleep(seconds)
        self._napped_s += seconds
        return True


class YieldTimer:
    """Says when a coroutine that may never have to wait should let its event loop turn: once every
    `period_s`.

    Attributes:
        period_s: may be changed at any time.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._last = 0.0

    def is_due(self, at_least_s: float = 0.0) -> bool:
        """Whether it is time for `await asyncio.sleep(0)`; if so, the caller must do that.

        Args:
            at_least_s: seconds between two turns, if that is more than `period_s`: for a caller
                whose turns cost much.
        """
        now = time.monotonic()
        if now - self._last < max(self.period_s, at_least_s):
            return False
        self._last = now
        return True
