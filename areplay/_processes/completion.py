"""Completion: work that runs to its end even if its caller is cancelled meanwhile.

The work is a coroutine (`run_to_completion`), or blocks and has a thread of its own (`in_thread`).
The cancellation is delivered after the end of the work, so that no caller goes on beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from areplay._base import forks
from areplay._processes.event_loops import TASK_PREFIX
from areplay.errors import ResourceUnavailable

T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Finish `work` even if cancelled meanwhile, then deliver the cancellation.

    In a child that is forked meanwhile the cancellation is delivered at once: the threads that
    would finish the work are not there.

    Raises:
        BaseException: what `work` raised; from the cancellation if there was one.
    """
    if asyncio.isfuture(work):
        task = work
    else:
        task = asyncio.create_task(work, name=f"{TASK_PREFIX}completes what was begun")
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


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The result of work, or what it raised.

    It crosses threads and futures as a value, since a future refuses to raise `StopIteration`.
    """

    value: T | None
    error: BaseException | None = None

    def result(self) -> T:
        """Return what the work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def outcome_of(work: Callable[[], T]) -> Outcome[T]:
    """Do the work in this thread, and return how it ended."""
    try:
        return Outcome(work())
    except BaseException as error:
        return Outcome(None, error)


async def in_thread(
    name: str, work: Callable[[], T], on_cancel: Callable[[], object] | None = None
) -> T:
    """Run `work` in a new thread. If cancelled, wait for its end, then deliver the cancellation.

    In a child that is forked meanwhile the cancellation is delivered at once: the thread is not
    there. The loop's thread pool is not used, since the user's work may keep it busy.

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
            loop.call_soon_threadsafe(finish, done)

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
        except GeneratorExit:  # this task is destroyed with its loop, and cannot wait
            if on_cancel is not None:
                on_cancel()
            raise
    # The thread only has to return now. After that no frame of it refers to the work.
    thread.join()
    outcome = outcomes.pop()
    try:
        if cancelled is None:
            return outcome.result()
        if outcome.error is not None and on_cancel is None:
            raise outcome.error from cancelled
        raise cancelled
    finally:
        # An error that is raised here would refer to itself through this frame.
        del outcome, cancelled


def finish(future: asyncio.Future[None]) -> None:
    """Set the future's result, unless it is done or cancelled already."""
    if not future.done():
        future.set_result(None)
