"""Child processes: starting one, knowing that it runs, hearing from it, and seeing it end.

A child is a coroutine function run by `aiomultiprocess.Process` (spawn, uvloop). aiomultiprocess is a launcher here and
nothing else, and no other module imports it: its constructor would start a hidden manager process that outlives a
killed parent, so a plain namespace is put in its place; its `join` polls, so the kernel tells us of a death (pidfd).

A child and its parent hold the ends of one socket, which keeps messages whole (SOCK_SEQPACKET): READY, reports, and a
traceback if the child's code raised. The life of a child:

    start() ---> STARTING ---READY---> RUNNING ---> EXITED (reaped, `exit` is set)
                    |  no READY within start_timeout_s: killed  ^
                    +-------------------------------------------+

Starting one takes 2 ms of pickling and of waiting until the kernel has given the child memory of its own, and longer if
its arguments are more than a pipe holds, since it reads them when its interpreter runs. So a thread does it, while the
learner is at a training step, and not the learner's loop between two of them (docs/decisions/008).

No child outlives its parent: it asks the kernel to be killed with it (PR_SET_PDEATHSIG, which follows the thread that
started it, so that thread must live until its last child is reaped) and then looks whether the parent is still there.
It does so before it imports the user's main module, which may take seconds: the request travels inside the process's
*name*, the first thing that a spawned child unpickles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import process as multiprocessing_process
from multiprocessing import resource_tracker
from types import SimpleNamespace
from typing import Any

import aiomultiprocess
import aiomultiprocess.core
import uvloop

from areplay import forks
from areplay.errors import ResourceUnavailable
from areplay.kill_points import disarm
from areplay.waiting import leave_to_parent, run_to_completion

logger = logging.getLogger(__name__)

READY, REPORT, FAILED, FINISHED = "ready", "report", "failed", "finished"
_MAX_MESSAGE_BYTES = 64 << 10  # well below what a socket's buffer takes whole
DESCRIPTORS_A_CHILD = 4  # in the parent: its socket, its pidfd, and two that multiprocessing keeps
DESCRIPTORS_TO_START = 16  # while one is being started, beside those: pipes, a segment, an event loop

Body = Callable[..., Awaitable[None]]


class _WithoutManager:
    """Stands in for the manager that aiomultiprocess would start: its namespace is of no use to us."""

    Namespace = SimpleNamespace


class _GuardedName(str):
    """A process name that, when a child unpickles it, ties the child's life to its parent's and mutes Ctrl-C."""

    parent: int

    def __reduce__(self) -> tuple[Any, ...]:
        kill, interrupt, ignore = int(signal.SIGKILL), int(signal.SIGINT), int(signal.SIG_IGN)
        code = (
            f"(__import__('signal').signal({interrupt}, {ignore}), "
            f"__import__('signal').pthread_sigmask({int(signal.SIG_UNBLOCK)}, [{interrupt}]), "
            f"__import__('ctypes').CDLL(None).prctl(1, {kill}, 0, 0, 0), "
            f"__import__('os').getppid() == {self.parent} or __import__('os')._exit(1), "
            f"{str(self)!r})[-1]"
        )
        return eval, (code,)


@dataclass(frozen=True)
class Exit:
    """How a child ended: `code` is negative for a signal; `finished` if its coroutine returned; `details` if not."""

    pid: int
    code: int
    finished: bool
    details: str


def starter(kind: str) -> ThreadPoolExecutor:
    """A thread that starts children one after the other. Shut it down when they are reaped: they would die with it."""
    return ThreadPoolExecutor(1, f"areplay-{kind}-starter")


class Channel:
    """The child's end of its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        forks.register(self)

    def after_fork(self) -> None:
        """Close the forked child's copy, which would keep the socket open after this process has ended."""
        self._end.close()

    def send(self, kind: str, payload: object = None) -> None:
        """Send a message; waits for the parent if the buffer is full. Silent if the parent is gone: so are we, soon."""
        with contextlib.suppress(OSError):
            self._end.setblocking(True)
            self._end.send(pickle.dumps((kind, payload)))

    def send_nowait(self, kind: str, payload: object) -> bool:
        """Send a message if there is room for it; `False` if it was dropped."""
        message = pickle.dumps((kind, payload))
        if len(message) > _MAX_MESSAGE_BYTES:
            raise ValueError(f"a report may have {_MAX_MESSAGE_BYTES:,} bytes, this one has {len(message):,}")
        try:
            self._end.setblocking(False)
            self._end.send(message)
        except OSError:
            return False
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
        self._body, self._args, self._run, self._on_report = body, args, run, on_report
        self._starter = starter
        self._changed = asyncio.Event()
        self._details = ""
        self._finished = False
        self._pidfd = -1
        self._socket: socket.socket | None = None
        self._childs_end: socket.socket | None = None  # until the process has it
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
        """Start the process; `True` once it has said READY, `False` if it ended before or was killed after `timeout_s`.

        Cancelled: the process goes on starting; `kill` it.

        Raises:
            ResourceUnavailable: no descriptor or process to be had. Nothing is left.
            Exception: whatever pickling the arguments raised. Nothing is left.
        """
        loop = asyncio.get_running_loop()
        try:
            with self._prepare() as childs_end:
                try:
                    launched = loop.run_in_executor(self._starter, self._launch, childs_end)
                except RuntimeError as error:
                    raise ResourceUnavailable("starting a thread", self.name, str(error)) from error
                await run_to_completion(launched)
        except asyncio.CancelledError:
            self._watch()
            raise
        except BaseException as error:  # the system's refusal, or arguments that do not pickle
            if self.pid:
                self._process.kill()
                self._process.aio_process.join()
            self._release()
            if isinstance(error, OSError):
                raise ResourceUnavailable("starting a process", self.name, str(error)) from error
            raise
        self._watch()
        logger.info("%s started, pid %d", self.name, self.pid)
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_ready and self.exit is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._details = f"it did not say READY within start_timeout_s = {timeout_s:g} s"
            self.kill()
            await self.wait_exit()
        return self.is_ready  # even if it has ended meanwhile: it has begun

    async def wait_exit(self) -> Exit:
        """How it ended, once it has. Cancelled: nothing changed."""
        while self.exit is None:
            self._changed.clear()
            await self._changed.wait()
        return self.exit

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        if self.exit is None and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL, if the process is still there."""
        self.signal(signal.SIGKILL)

    def _watch(self) -> None:
        """Hear what it says, and see its end."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket.fileno(), self._on_message)
        loop.add_reader(self._pidfd, self._on_exit)

    def _prepare(self) -> socket.socket:
        """Make what is not a process yet; the child's end of the socket."""
        parents_end, childs_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket, self._childs_end = parents_end, childs_end
        parents_end.setblocking(False)
        name = _GuardedName(f"areplay {self.name}")
        name.parent = os.getpid()
        get_manager = aiomultiprocess.core.get_manager
        aiomultiprocess.core.get_manager = _WithoutManager  # for this one call: others may want their manager
        try:
            self._process = aiomultiprocess.Process(
                target=_main,
                name=name,
                args=(childs_end, self._body, self._args, self._run),
                loop_initializer=uvloop.new_event_loop,
                daemon=True,
            )
        finally:
            aiomultiprocess.core.get_manager = get_manager
        return childs_end

    def _launch(self, childs_end: socket.socket) -> None:
        """Start the process. In the starter's thread; the loop looks at nothing of it meanwhile.

        Args:
            childs_end: stays open until this returns.
        """
        # Ctrl-C goes to the whole process group, and a child cannot ignore it before its interpreter runs: so it is
        # born with the signal blocked, which is taken back where it is ignored. (The tracker unblocks it for us.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

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
            self._details = payload
        elif kind == FINISHED:
            self._finished = True
        else:
            self._on_report(payload)
        self._changed.set()

    def _on_exit(self) -> None:
        code = self._process.exitcode
        if code is None:  # the kernel says it is gone, so the next look reaps it
            return
        self._on_message_left()
        self._release()
        details = self._details or self._guess(code)
        self.exit = Exit(self.pid, code, self._finished and code == 0, details)
        logger.info("%s (pid %d) ended with %d", self.name, self.pid, code)
        self._changed.set()

    def _on_message_left(self) -> None:
        """Read what the child said last: its end and its death may be seen in either order."""
        if self._socket is not None:
            self._on_message()

    def _guess(self, code: int) -> str:
        if self._finished and code == 0:
            return ""
        if code < 0:
            return f"signal {-code} ended it; kernel log or supervisor may say who sent it"
        if not self.is_ready:
            return (
                "it ended before it said READY, see its output above; a script that starts actors needs the line "
                "`if __name__ == '__main__':` around its `areplay.run(...)`"
            )
        return "it ended without a word, by os._exit or in native code"

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        if self._pidfd >= 0:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._socket is not None:
            loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self.pid:
            with contextlib.suppress(ValueError):
                self._process.close()

    def __repr__(self) -> str:
        state = "starting" if not self.is_ready else "running"
        return f"<Child {self.name}, pid {self.pid}, {self.exit or state}>"


async def _main(end: socket.socket, body: Body, args: tuple[Any, ...], run: int) -> None:
    """What runs in the child: `body`, between READY and a last word."""
    logging.getLogger("aiomultiprocess.core").disabled = True  # the parent reports failures, with the traceback
    multiprocessing.current_process().daemon = False  # so that it may have children of its own, such as environments
    if run > 0:
        disarm()
    channel = Channel(end)
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
        if origin is not forks.current:  # a process that `body` has forked: its end is none of its parent's
            raise
        text = "SIGTERM ended it" if terminated else "".join(traceback.format_exception(error))
        with contextlib.suppress(Exception):
            await _end_loop(loop)
        channel.send(FAILED, text[-_MAX_MESSAGE_BYTES // 2 :])
        raise SystemExit(_exit_code(error, terminated)) from None
    else:
        if origin is forks.current:
            await _end_loop(loop)
            channel.send(FINISHED)
    finally:
        sys.stdout.flush()


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
