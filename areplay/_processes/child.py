"""Child processes: starting one, knowing that it runs, hearing from it, and seeing it end.

A child is a coroutine function run by `aiomultiprocess.Process` (spawn, uvloop). aiomultiprocess is
a launcher here and nothing else, and no other module imports it: its constructor would start a
hidden manager process that outlives a killed parent, so a plain namespace is put in its place; its
`join` polls, so the kernel tells us of a death (pidfd).

The pidfd alone decides that a child is gone. Its exit code may be unknown: the kernel keeps none if
SIGCHLD is ignored, and other code in this process may collect it first with `os.waitpid(-1)`.

A child and its parent hold the ends of one socket, which keeps messages whole (SOCK_SEQPACKET):
READY, reports, and a traceback if the child's code raised, or that it has returned. The life of a
child:

    start() ---> STARTING ---READY---> RUNNING ---> EXITED (reaped, `exit` is set)
                    |  no READY within start_timeout_s: killed  ^
                    +-------------------------------------------+

Starting one takes 2 ms of pickling and of waiting until the kernel has given the child memory of
its own. So a thread does it, while the learner is at a training step, and not the learner's loop
between two of them (docs/decisions/008). How, and why no child outlives its parent, is in
`areplay._processes.launcher`. The death signal follows the thread that started the child, so that
thread must live until its last child is reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import process as multiprocessing_process
from multiprocessing import resource_tracker
from types import SimpleNamespace
from typing import Any

import aiomultiprocess
import aiomultiprocess.core
import uvloop

from areplay._base import forks
from areplay._base.failpoints import disarm
from areplay._processes.completion import Outcome, outcome_of, run_to_completion
from areplay._processes.event_loops import leave_to_parent
from areplay._processes.launcher import Launcher, tie_to_parent
from areplay.errors import ResourceUnavailable

logger = logging.getLogger(__name__)

READY, REPORT, NOTICE, FAILED = "ready", "report", "notice", "failed"
RETURNED, FINISHED = "returned", "finished"
_MAX_MESSAGE_BYTES = 64 << 10  # well below what a socket's buffer takes whole
_REAP_AGAIN_S = 0.05  # a debugger that is attached to a child gets its exit code first
_MAX_REAPS = 40
_CODE_FOR_MULTIPROCESSING = 255  # of a child whose exit code is unknown, as in its forkserver

Body = Callable[..., Awaitable[None]]


class _WithoutManager:
    """Stands in for the manager that aiomultiprocess would start: its namespace is of no use to
    us."""

    Namespace = SimpleNamespace


@dataclass(frozen=True)
class Exit:
    """How a child ended: `finished` if its coroutine returned, `details` if not.

    `code` is negative for a signal. It is None where the kernel did not tell: SIGCHLD is ignored,
    or other code in this process collected it.
    """

    pid: int
    code: int | None
    finished: bool
    details: str


def starter(kind: str) -> ThreadPoolExecutor:
    """A thread that starts children one after the other. Shut it down when they are reaped: they
    would die with it."""
    return ThreadPoolExecutor(1, f"areplay-{kind}-starter")


class Channel:
    """The child's end of its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        forks.register(self)

    def after_fork(self) -> None:
        """Close the forked child's copy, which would keep the socket open after this process has
        ended."""
        self._end.close()

    def send(self, kind: str, payload: object = None) -> None:
        """Send a message; waits for the parent if the buffer is full. Silent if the parent is gone:
        so are we, soon."""
        with contextlib.suppress(OSError):
            self._end.setblocking(True)
            self._end.send(pickle.dumps((kind, payload)))

    def send_nowait(self, kind: str, payload: object) -> bool:
        """Send a message if there is room for it; `False` if it was dropped."""
        message = pickle.dumps((kind, payload))
        if len(message) > _MAX_MESSAGE_BYTES:
            raise ValueError(
                f"a report may have {_MAX_MESSAGE_BYTES:,} bytes, this one has {len(message):,}"
            )
        try:
            self._end.setblocking(False)
            self._end.send(message)
        except OSError:
            return False
        return True


class Remains:
    """What the kernel holds for a child, apart from those who wait for it, so that it is let go
    without them.

    Attributes:
        is_launching: whether the starter's thread is at it.
        is_reaped: whether the process is gone.
        is_gone: whether nothing is left.
    """

    def __init__(self) -> None:
        self.is_launching = self.is_reaped = self.is_gone = False
        self.pidfd = -1
        self.socket: socket.socket | None = None
        self.process: aiomultiprocess.Process | None = None

    def end(self) -> bool:
        """Kill and reap it: whether that is done. Never waits: call it again until it is.

        In any thread. The descriptors stay open, so the loop may still watch them.
        """
        if self.is_launching:
            return False
        if self.pidfd < 0 or self.is_reaped:
            return True
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._popen.cut_lifeline()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(0):
            return False
        with contextlib.suppress(OSError):  # ECHILD: others have reaped it
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        self.is_reaped = True
        return True

    @property
    def _popen(self) -> Any:
        return None if self.process is None else self.process.aio_process._popen

    def let_go(self) -> bool:
        """`end` it, then close its descriptors: whether that is done. Call it again until it is.

        In any thread, after `Child.give_up`, or when there is no `Child` any more.
        """
        if not self.end():
            return False
        popen = self._popen
        self.pidfd = -1
        if not self.is_gone:
            self.is_gone = True
            if self.socket is not None:
                self.socket.close()
            if self.process is not None and popen is not None:  # closes the pidfd, too
                popen.returncode = _CODE_FOR_MULTIPROCESSING
                self.process.close()
        return True


class Child:
    """One child process, from its start to its end. Use it on one event loop.

    Args:
        name: what messages call it, such as "actor 3".
        body: importable coroutine function, called in the child as `body(channel, *args)`.
        run: 0 for the first child in its place, 1 for its first successor, and so on.
        on_report: called with each payload that the child reports.
        starter: the thread that starts it, see `starter`.
    """

    def __init__(
        self,
        name: str,
        body: Body,
        args: tuple[Any, ...],
        run: int,
        on_report: Callable[[Any], None],
        starter: Executor,
    ) -> None:
        self.name = name
        self.pid = 0
        self.exit: Exit | None = None
        self.is_ready = False
        self.has_returned = False  # its coroutine has, whatever the tasks that it left may still do
        self.has_finished = False  # that is over, too, or its process
        self._body, self._args, self._run, self._on_report = body, args, run, on_report
        self._starter = starter
        self._changed = asyncio.Event()
        self._details = ""
        self._last_code: int | None = None  # the exit code that its last word announced
        self._over_at = 0.0  # monotonic seconds, when it said its last word
        self._reaps = 0
        self._pidfd = -1
        self._socket: socket.socket | None = None
        self._childs_end: socket.socket | None = None  # until the process has it
        self._origin = forks.current
        self._is_given_up = False
        self.remains = Remains()
        self._loop: asyncio.AbstractEventLoop | None = None
        # descriptors that the loop watches, by number: the reaper may have closed them
        self._watched: list[int] = []
        forks.register(self)

    def after_fork(self) -> None:
        """Close the forked child's copies, and have multiprocessing there forget the process.

        At the end of a process multiprocessing terminates the daemonic children that it knows of.
        """
        for end in (self._socket, self._childs_end):
            if end is not None:
                end.close()
        self._socket = self._childs_end = None
        self._pidfd = forks.close(self._pidfd)
        with contextlib.suppress(AttributeError):  # it is not being started yet
            multiprocessing_process._children.discard(self._process.aio_process)  # type: ignore[attr-defined]

    async def start(self, timeout_s: float) -> bool:
        """Start the process; `True` once it has said READY, `False` if it ended before or was
        killed after `timeout_s`.

        Cancelled: the process goes on starting; `kill` it.

        Raises:
            ResourceUnavailable: no descriptor or process to be had. Nothing is left.
            Exception: whatever pickling the arguments raised. Nothing is left.
        """
        forks.check(self._origin, self.name)
        loop = asyncio.get_running_loop()
        try:
            with self._prepare() as childs_end:
                self.remains.is_launching = True
                try:
                    # As a value: the code of the arguments, which are pickled there, may raise what
                    # no future holds.
                    launched = loop.run_in_executor(
                        self._starter, outcome_of, partial(self._launch_once, childs_end)
                    )
                except RuntimeError as error:
                    self.remains.is_launching = False
                    raise ResourceUnavailable("starting a thread", self.name, str(error)) from error
                _check_launched(await run_to_completion(launched))
        except asyncio.CancelledError:
            if self._origin is forks.current:
                self._watch()
            raise
        except GeneratorExit:  # our task is destroyed with its loop; see `Remains`
            raise
        # the system's refusal, or arguments that do not pickle: there is no process
        except BaseException as error:
            # or this is a forked child, which has none either
            if self._origin is not forks.current:
                raise
            self._release(None)
            if isinstance(error, OSError):
                raise ResourceUnavailable("starting a process", self.name, str(error)) from error
            raise
        self._watch()
        logger.info("%s started, pid %d", self.name, self.pid)
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_ready and self.exit is None and not self.is_over:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._details = f"it did not say READY within start_timeout_s = {timeout_s:g} s"
            self.kill()
            await self.wait_exit()
        return self.is_ready  # even if it has ended meanwhile: it has begun

    async def wait_over(self) -> None:
        """Wait until its coroutine has returned or raised, or its process is gone. Cancelled:
        nothing changed."""
        while self.exit is None and not self.is_over:
            self._changed.clear()
            await self._changed.wait()

    async def wait_exit_or_kill(self, grace_s: float) -> Exit:
        """How it ended; it is killed after `grace_s`. Cancelled: nothing changed."""
        try:
            async with asyncio.timeout(grace_s):
                return await self.wait_exit()
        except TimeoutError:
            logger.info("%s (pid %d) is done but has not ended: SIGKILL", self.name, self.pid)
            self.kill()
            return await self.wait_exit()

    @property
    def is_over(self) -> bool:
        """Whether its coroutine has returned or raised; its interpreter may need longer to end."""
        return self._last_code is not None

    @property
    def over_s(self) -> float:
        """For how long its coroutine has been over."""
        return time.monotonic() - self._over_at if self.is_over else 0.0

    async def wait_exit(self) -> Exit:
        """How it ended, once it has. Cancelled: nothing changed."""
        while self.exit is None:
            self._changed.clear()
            await self._changed.wait()
        return self.exit

    def give_up(self) -> None:
        """Let the loop hear of it no more, for good; `Remains` is left.

        Call it on that loop, or when the loop is closed or garbage.
        """
        self._is_given_up = True
        loop, self._loop = self._loop, None
        if loop is None or loop.is_closed():
            return
        for descriptor in self._watched:
            loop.remove_reader(descriptor)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there.

        Where this process may not (one of the two has changed its user), the kernel sends SIGKILL
        in its place.
        """
        # to the reaper
        is_left = self._is_given_up or (self._loop is not None and self._loop.is_closed())
        if self.exit is None and self._pidfd >= 0 and not is_left:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                logger.warning(
                    "%s (pid %d) cannot be sent %s: %s", self.name, self.pid, number.name, error
                )
                if number == signal.SIGKILL:
                    self._process.aio_process._popen.cut_lifeline()

    def kill(self) -> None:
        """Send SIGKILL, if the process is still there."""
        self.signal(signal.SIGKILL)

    def _watch(self) -> None:
        """Hear what it says, and see its end."""
        if self._is_given_up:
            return
        assert self._socket is not None
        loop = self._loop = asyncio.get_running_loop()
        self._watched = [self._socket.fileno()]
        loop.add_reader(self._socket.fileno(), self._on_message)
        if self._pidfd >= 0:
            self._watched.append(self._pidfd)
            loop.add_reader(self._pidfd, self._on_exit)
        else:
            loop.call_soon(self._on_exit)

    def _prepare(self) -> socket.socket:
        """Make what is not a process yet; the child's end of the socket."""
        parents_end, childs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self._childs_end = parents_end, childs_end
        parents_end.setblocking(False)
        get_manager = aiomultiprocess.core.get_manager
        # for this one call: others may want their manager
        aiomultiprocess.core.get_manager = _WithoutManager
        try:
            self._process = aiomultiprocess.Process(
                target=_main,
                name=f"areplay {self.name}",
                args=(childs_end, self._body, self._args, self._run),
                loop_initializer=uvloop.new_event_loop,
                daemon=True,
            )
        finally:
            aiomultiprocess.core.get_manager = get_manager
        # before its class's, which may wait for the child
        self._process.aio_process._Popen = Launcher
        self.remains.socket, self.remains.process = parents_end, self._process
        return childs_end

    def _launch_once(self, childs_end: socket.socket) -> None:
        try:
            self._launch(childs_end)
        finally:
            self.remains.is_launching = False

    def _launch(self, childs_end: socket.socket) -> None:
        """Start the process. In the starter's thread; the loop looks at nothing of it meanwhile.

        Args:
            childs_end: stays open until this returns.
        """
        # Ctrl-C goes to the whole process group, and a child cannot ignore it before its
        # interpreter runs: so it is born with the signal blocked, which is taken back where it is
        # ignored. (The tracker unblocks it for us.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # multiprocessing waits for its children by their numbers, at each start of another and at
        # exit. It would take an exit code that is ours, or that of a stranger who has got the
        # number since.
        multiprocessing_process._children.discard(self._process.aio_process)  # type: ignore[attr-defined]
        popen = self._process.aio_process._popen
        self.pid, self._pidfd = popen.pid, popen.sentinel
        self.remains.pidfd = self._pidfd

    def _on_message(self) -> None:
        assert self._socket is not None
        while True:
            try:
                message = self._socket.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:  # the child's end is closed
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
                return
            self._receive(message)

    def _receive(self, message: bytes) -> None:
        kind, payload = pickle.loads(message)
        if kind == READY:
            self.is_ready = True
        elif kind == FAILED:
            self._details, self._last_code = payload
            self._over_at = time.monotonic()
        elif kind == RETURNED:
            self.has_returned = True
        elif kind == FINISHED:
            self._last_code, self._over_at = 0, time.monotonic()
            self.has_finished = True
        elif kind == NOTICE:
            logger.info("%s (pid %d): %s", self.name, self.pid, payload)
        else:
            self._on_report(payload)
        self._changed.set()

    def _on_exit(self) -> None:
        if self.exit is not None:
            return
        loop = asyncio.get_running_loop()
        has_ended, code = self._reap()
        if not has_ended and self._reaps < _MAX_REAPS:
            self._reaps += 1
            loop.remove_reader(self._pidfd)  # it stays readable
            loop.call_later(_REAP_AGAIN_S, self._on_exit)
            return
        self._on_message_left()
        self._release(code)
        self.has_finished = self.has_finished or self.has_returned
        # cut short after its last word
        if code is None or (code == -signal.SIGKILL and self._last_code is not None):
            code = self._last_code
        details = self._details or self._guess(code)
        self.exit = Exit(self.pid, code, self.has_finished, details)
        logger.info(
            "%s (pid %d) ended with %s",
            self.name,
            self.pid,
            "an unknown code" if code is None else code,
        )
        self._changed.set()

    def _reap(self) -> tuple[bool, int | None]:
        """Whether the kernel has given up the process, and its exit code, None if it is unknown."""
        if self._pidfd < 0:
            return True, None
        try:
            try:
                result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                raise
            except OSError:  # Linux 5.3, or a sandbox
                reaped, status = os.waitpid(self.pid, os.WNOHANG)
                return bool(reaped), os.waitstatus_to_exitcode(status) if reaped else None
        # it is lost, unless multiprocessing has just been asked for its children
        except ChildProcessError:
            return True, self._process.aio_process._popen.returncode
        if result is None:
            return False, None
        return True, result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _on_message_left(self) -> None:
        """Read what the child said last: its end and its death may be seen in either order."""
        if self._socket is not None:
            self._on_message()

    def _guess(self, code: int | None) -> str:
        if self.has_finished:
            return ""
        if code is not None and code < 0:
            return f"signal {-code} ended it; kernel log or supervisor may say who sent it"
        if not self.is_ready:
            return (
                "it ended before it said READY, see its output above; a script that starts actors "
                "needs the line `if __name__ == '__main__':` around its `areplay.run(...)`"
            )
        if code is None:
            return (
                "it ended without a word; SIGCHLD is ignored, or other code in this process "
                "collected its exit code"
            )
        return "it ended without a word, by os._exit or in native code"

    def _release(self, code: int | None) -> None:
        self.remains.pidfd = -1
        loop, self._loop = self._loop, None
        if self._pidfd >= 0:
            if loop is not None:
                loop.remove_reader(self._pidfd)
            self._pidfd = -1
        if self._socket is not None:
            if loop is not None:
                loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self.pid:  # closes the pidfd, too
            self._process.aio_process._popen.returncode = (
                _CODE_FOR_MULTIPROCESSING if code is None else code
            )
            self._process.close()
        self.remains.is_gone = True

    def __repr__(self) -> str:
        state = "starting" if not self.is_ready else "running"
        return f"<Child {self.name}, pid {self.pid}, {self.exit or state}>"


async def _main(end: socket.socket, body: Body, args: tuple[Any, ...], run: int) -> None:
    """What runs in the child: `body`, between READY and a last word."""
    # the parent reports failures, with the traceback
    logging.getLogger("aiomultiprocess.core").disabled = True
    # so that it may have children of its own, such as environments
    multiprocessing.current_process().daemon = False
    if run > 0:
        disarm()
    channel = Channel(end)
    if notice := tie_to_parent():
        channel.send(NOTICE, notice)
    origin, loop = forks.current, asyncio.get_running_loop()
    leave_to_parent(loop)
    task = asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    handlers = forks.Handlers()
    with handlers.replacing(signal.SIGTERM):
        loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        await body(channel, *args)
    except BaseException as error:
        # a process that `body` has forked: its end is none of its parent's
        if origin is not forks.current:
            raise
        text = "SIGTERM ended it" if terminated else "".join(traceback.format_exception(error))
        with contextlib.suppress(Exception):
            await _end_loop(loop)
        code = _exit_code(error, terminated)
        channel.send(FAILED, (text[-_MAX_MESSAGE_BYTES // 2 :], code))
        raise SystemExit(code) from None
    else:
        if origin is forks.current:
            channel.send(RETURNED)
            # what is left may hand in rows still, and end the process by SystemExit
            await _end_loop(loop)
            channel.send(FINISHED)
    finally:
        _flush(channel)


def _flush(channel: Channel) -> None:
    """Write out what was printed. Where that is impossible, say so and drop it, or Python would
    fail at its end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (AttributeError, ValueError):  # None, or closed
            pass
        except Exception as error:
            channel.send(NOTICE, f"what it printed last to {name} is lost: {error!r}")
            with contextlib.suppress(Exception):
                null = os.open(os.devnull, os.O_WRONLY)
                if null != stream.fileno():  # as it is where that was closed
                    os.dup2(null, stream.fileno())
                    os.close(null)


def _check_launched(outcome: Outcome[None]) -> None:
    """Raise what starting a process raised; as an `Exception`, since only the arguments' own code
    raises others."""
    error = outcome.error
    if error is not None and (
        not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration)
    ):
        raise RuntimeError(f"pickling its arguments raised {type(error).__name__}") from error
    outcome.result()


def _exit_code(error: BaseException, terminated: bool) -> int:
    if terminated:
        return 128 + signal.SIGTERM
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


async def _end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what the user's code left running, and let it end."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
