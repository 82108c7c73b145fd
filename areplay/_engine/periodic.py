"""Periodic saves: a context in which a replay is saved at a fixed interval."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

from areplay._base import forks
from areplay._base.hooks import HookRaised
from areplay._processes.completion import run_to_completion
from areplay._processes.dropped import Holdings
from areplay._processes.event_loops import cancel_if_open, drop_quietly
from areplay._processes.opening import deliver
from areplay.errors import AreplayError, Closed, WrongProcess
from areplay.statistics import SaveResult

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves a replay at a fixed interval: an async context manager, made by
    `Replay.checkpoints`.

    It holds the replay.
    """

    def __init__(
        self,
        every_s: float,
        save: Callable[..., Coroutine[Any, Any, SaveResult]],
        options: dict[str, Any],
    ) -> None:
        self._save = save  # it holds the replay, for as long as the user holds this context
        self._schedule = _Schedule(every_s, weakref.ref(save), options)
        self._holdings = Holdings(f"a context of checkpoints every {every_s:g} s")
        self._is_entered = False
        self._origin = forks.current

    @property
    def last(self) -> SaveResult | None:
        """What the last successful save did; None before the first."""
        return self._schedule.last

    @property
    def failure(self) -> BaseException | None:
        """The error of the last save, or what its `on_progress` raised; None if it succeeded."""
        return self._schedule.failure

    async def __aenter__(self) -> Checkpoints:
        """Begin; the first checkpoint is made after `every_s`."""
        forks.check(self._origin, "this context of checkpoints")
        if self._is_entered:
            raise Closed("this context of checkpoints, which was entered before,")
        self._is_entered = True
        self._holdings.begin(self)
        self._schedule.begin()
        self._holdings.watched(self._schedule)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the save that runs, and make one more, as fast as it goes.

        Cancelled meanwhile: the save that runs is stopped, and the checkpoint before is whole. In
        a process forked from the one that entered the context, this returns at once and does
        nothing.
        """
        if self._origin is forks.current:
            await self._holdings.leave(kind, self._end)

    async def _end(self) -> None:
        if await self._holdings.are_lost():
            return
        try:
            await self._schedule.end()
        finally:
            self._holdings.release()


class _Schedule:
    """The task that saves for a context of checkpoints. Does not keep the context.

    Attributes:
        last, failure: as of `Checkpoints`.
    """

    def __init__(
        self,
        every_s: float,
        save: weakref.ref[Callable[..., Coroutine[Any, Any, SaveResult]]],
        options: dict[str, Any],
    ) -> None:
        self.last: SaveResult | None = None
        self.failure: BaseException | None = None
        self._every_s = every_s
        self._save = save
        self._options = options
        self._task: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._origin = forks.current

    def begin(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._save_again_and_again(), name="areplay checkpoints")
        drop_quietly(self._task)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of the task; None before `begin`."""
        return None if self._task is None else self._task.get_loop()

    def unwatch(self) -> None:
        """Save nothing more. Call it on the loop of the task, or anywhere once that is closed."""
        if self._task is not None:
            cancel_if_open(self._task)

    async def end(self) -> None:
        """See `Checkpoints.__aexit__`."""
        task = self._task
        if task is None:
            return
        self._leaving.set()
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await run_to_completion(asyncio.wait({task}))
            raise
        task.result()

    async def _save_again_and_again(self) -> None:
        due = time.monotonic()
        try:
            while not self._leaving.is_set():
                due = max(due + self._every_s, time.monotonic())
                try:
                    async with asyncio.timeout(due - time.monotonic()):
                        await self._leaving.wait()
                except TimeoutError:
                    await self._save_once(self._options)
            await self._save_once({**self._options, "max_bytes_per_s": None})
        except Closed as error:
            self.failure = error
            logger.error("%s; the checkpoint before is kept, there will be no more of them", error)

    async def _save_once(self, options: dict[str, Any]) -> None:
        try:
            save = self._save()
            if save is None:  # the context was dropped: the reaper has this task cancelled
                return
            work = save(**options)
            del save  # it would hold the replay
            self.last = await work
            self.failure = None
        # of the replay: those that on_progress raises are a `HookRaised`
        except (Closed, WrongProcess):
            raise
        except HookRaised as raised:
            if isinstance(raised.error, (KeyboardInterrupt, SystemExit)):
                deliver(raised)  # it ends the program, as it does from every task
            self._note(raised.error, str(raised))
        except AreplayError as error:
            self._note(error, str(error))
        except Exception as error:  # a lack of memory may pass
            self._note(error, repr(error))

    def _note(self, error: BaseException, text: str) -> None:
        # a forked child's copy of the loop does not run
        forks.check(self._origin, "this context of checkpoints")
        self.failure = error
        logger.error("%s; the checkpoint before is kept, the next save tries again", text)
