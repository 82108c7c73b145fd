"""Starting: the thread that starts children, and how the event loop calls a start off.

The arguments of a process are pickled first. That runs code of theirs, which may block, and no
thread can be interrupted. So a launch that was called off is undone by its own thread: as soon as
that can go on, it starts no process, or ends the one that it has started.

Rule: one lock settles whether the thread is done first or the loop gives up first. Neither waits
for it; the one that acquires it is first.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from areplay._processes.completion import Outcome, outcome_of
from areplay._processes.launcher import Launcher
from areplay._processes.remains import Remains
from areplay._processes.spawned import SpawnedProcess

_UNDO_AGAIN_S = 0.005  # a process takes about as long to end


def starter(kind: str) -> ThreadPoolExecutor:
    """Make a thread that starts children one after the other.

    Shut it down when all its children are reaped: they die with it.
    """
    return ThreadPoolExecutor(1, f"areplay-{kind}-starter")


class Launch:
    """One start of a process, which begins now. On an event loop, but for what the thread runs.

    Args:
        childs_end: the child's end of its channel, closed once the process has it.
        remains: of the process; the reaper leaves it alone until it is launched or undone.
        starter: the thread.

    Attributes:
        launcher: of the process, once it is started; None if it was not, or is undone.
        is_undone: whether it was called off in time.

    Raises:
        RuntimeError: no thread is to be had. Nothing was begun.
    """

    def __init__(
        self,
        process: SpawnedProcess,
        childs_end: socket.socket,
        remains: Remains,
        starter: Executor,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.launcher: Launcher | None = None
        self.is_undone = False
        self._process = process
        self._childs_end = childs_end
        self._remains = remains
        self._decision = threading.Lock()
        self._called_off: asyncio.Future[None] = loop.create_future()
        remains.is_launching = True
        try:
            # As a value: the code of the arguments may raise what no future holds.
            self._outcome = loop.run_in_executor(starter, outcome_of, self._run)
        except RuntimeError:
            remains.is_launching = False
            childs_end.close()
            raise

    def call_off(self) -> None:
        """Do without the process, if it is not started yet. `wait` returns soon."""
        if not self._called_off.done():
            self._called_off.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Wait until the process is started, or undo that if it takes longer.

        Cancelled: the process goes on starting.

        Raises:
            OSError: the system refused. There is no process.
            Exception: what pickling the arguments raised. There is no process.
        """
        either: set[asyncio.Future[Any]] = {self._outcome, self._called_off}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._outcome.done() and self._decision.acquire(blocking=False):
            self.is_undone = True
            return
        await asyncio.wait({self._outcome})
        _check(self._outcome.result())

    # What follows runs in the starter's thread.

    def _run(self) -> None:
        launcher: Launcher | None = None
        try:
            with self._childs_end:
                if not self._decision.locked():  # else it was called off before its turn
                    launcher = self._process.start()
        finally:
            if self._decision.acquire(blocking=False):
                self._keep(launcher)
            else:
                self._undo(launcher)

    def _keep(self, launcher: Launcher | None) -> None:
        self.launcher = launcher
        if launcher is not None:
            self._remains.pidfd = launcher.sentinel
        self._remains.is_launching = False

    def _undo(self, launcher: Launcher | None) -> None:
        left = Remains()
        left.process = self._process
        left.socket = self._remains.socket
        if launcher is not None:
            left.pidfd = launcher.sentinel
        while not left.let_go():
            time.sleep(_UNDO_AGAIN_S)
        self._remains.is_gone = True
        self._remains.is_launching = False


def _check(outcome: Outcome[None]) -> None:
    """Raise what starting a process raised, always as an `Exception`.

    Only the code of the arguments raises anything else.
    """
    error = outcome.error
    is_for_caller = isinstance(error, Exception) and not isinstance(
        error, StopIteration | StopAsyncIteration
    )
    if error is not None and not is_for_caller:
        raise RuntimeError(f"pickling its arguments raised {type(error).__name__}") from error
    outcome.result()
