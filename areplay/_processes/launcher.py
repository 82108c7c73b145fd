"""Launching: how a child's interpreter is started, what it runs first, and what ties its life to
its parent's.

`multiprocessing` spawns a child by two pickles that it writes into a pipe: how to prepare the
interpreter, and the process object. `Launcher` takes the place of that. Rule: nothing here waits
for the child. Both pickles lie in a memory file, and the pipe is written before the child starts.
Nothing comes through it later, so its end is that of the parent.

Runs in the parent: `Launcher`, `fill_standard_streams`. In the child: `_GUARD` before anything
else, `tie_to_parent` before the body. Knows nothing of bodies, event loops and what a child has to
say. See docs/decisions/012.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import pickle
import select
import signal
import threading
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from typing import Any

from areplay._base import forks

_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2

# What a child runs first, before it imports the user's main module; areplay cannot be imported yet.
# Ctrl-C is for the parent to answer. Standard streams that are closed are occupied, as by
# `fill_standard_streams`. An ignored SIGCHLD, inherited from a launcher, would hide the ends of the
# child's own children.
_GUARD = """
import ctypes, fcntl, os, pickle, signal
while (null := os.open(os.devnull, os.O_RDWR)) < {first}:
    pass
os.close(null)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
ctypes.CDLL(None).prctl({set_death_signal}, int(signal.SIGKILL), 0, 0, 0)
try:
    fcntl.fcntl({lifeline}, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl({lifeline}, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl({lifeline}, fcntl.F_SETFL, os.O_ASYNC)
except OSError:
    pass  # `tie_to_parent` looks again
if os.getppid() != {parent}:
    os._exit(1)
"""
_LOAD_PREPARATION = """
with open({state}, "rb", closefd=False) as file:
    loaded = pickle.load(file)
"""
# The descriptors were made inheritable for this child, and are not meant for the programs that it
# starts.
_LOAD_PROCESS = """
import os, pickle
with open({state}, "rb") as file:
    file.seek({descriptors})
    for descriptor in pickle.load(file):
        os.set_inheritable(descriptor, False)
    file.seek({process})
    loaded = pickle.load(file)
"""
_LEAST_PIPE_BYTES = 4096  # one page: all that a pipe holds for a user who has many
_FIRST_DESCRIPTOR = 3  # those below are standard input, output and error


class _Source:
    """Unpickles as the variable `loaded` that `source` sets, without an import of areplay."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("exec(source) or loaded", {"source": self._source})


class Launcher(popen_spawn_posix.Popen):
    """Starts a spawned child like multiprocessing does, but never waits for it.

    multiprocessing writes its preparation data and the process object into a pipe, and waits for
    the child where they are more than the pipe holds. Here both lie in a memory file. The pipe
    holds only how to read them, and is written before the child starts. Afterwards nothing more
    comes through it, so its end is the end of the parent.

    `sentinel` is a pidfd, or -1 if the child was gone and reaped by others before one could be had.
    """

    finalizer: util.Finalize
    sentinel: int
    _fds: list[int]

    def duplicate_for_child(self, fd: int) -> int:
        """The number that a descriptor will have in the child.

        It is never that of a standard stream, which `print` writes to. A learner that was started
        without standard output gives low numbers to other files, for example to its memory.
        """
        if fd < _FIRST_DESCRIPTOR:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
            self._moved.callback(os.close, fd)
        return int(super().duplicate_for_child(fd))

    def _launch(self, process: Any) -> None:
        with contextlib.ExitStack() as self._moved:
            self._start(process, self._moved)

    def _start(self, process: Any, stack: contextlib.ExitStack) -> None:
        tracker: Any = resource_tracker.getfd()  # it runs, so there is one
        tracker = self.duplicate_for_child(tracker)
        childs_end, parents_end = os.pipe()
        stack.callback(os.close, childs_end)
        # A fork of this process must not keep children alive.
        self._lifeline = forks.Descriptor(parents_end)
        with contextlib.ExitStack() as if_it_fails:
            if_it_fails.callback(self._lifeline.close)
            lifeline = self.duplicate_for_child(childs_end)
            state = os.memfd_create("areplay child", os.MFD_CLOEXEC)
            stack.callback(os.close, state)
            places = self._write_state(process, state)
            state = self.duplicate_for_child(state)
            os.write(parents_end, _first_words(lifeline, state, places))
            executable: Any = spawn.get_executable()
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=lifeline)
            pid = util.spawnv_passfds(executable, command, self._fds)
            self.sentinel = _open_pidfd(pid)
            self.pid = pid
            if_it_fails.pop_all()
        self.finalizer = util.Finalize(self, _close, (self._lifeline, self.sentinel))

    def _write_state(self, process: Any, state: int) -> dict[str, int]:
        """Pickle what the child needs into a memory file; the places of its later parts."""
        places = {}
        with open(state, "wb", closefd=False) as file:
            context.set_spawning_popen(self)
            try:
                reduction.dump(spawn.get_preparation_data(process.name), file)
                places["process"] = file.tell()
                reduction.dump(process, file)
                places["descriptors"] = file.tell()
                reduction.dump(self._fds, file)
            finally:
                context.set_spawning_popen(None)
        os.lseek(state, 0, os.SEEK_SET)  # the child shares the position
        return places

    def cut_lifeline(self) -> None:
        """Close the pipe, upon which the kernel kills the child."""
        self._lifeline.close()


def _first_words(lifeline: int, state: int, places: dict[str, int]) -> bytes:
    """What the child unpickles from its pipe: the guard, and how to read the memory file.

    The three numbers are those of descriptors and places in the child.
    """
    guard = _GUARD.format(
        first=_FIRST_DESCRIPTOR,
        set_death_signal=_PR_SET_PDEATHSIG,
        lifeline=lifeline,
        parent=os.getpid(),
    )
    preparation = _LOAD_PREPARATION.format(state=state)
    process = _LOAD_PROCESS.format(state=state, **places)
    words = pickle.dumps(_Source(guard + preparation)) + pickle.dumps(_Source(process))
    assert len(words) <= _LEAST_PIPE_BYTES
    return words


def _close(lifeline: forks.Descriptor, pidfd: int) -> None:
    lifeline.close()
    if pidfd >= 0:
        os.close(pidfd)


def _open_pidfd(pid: int) -> int:
    """Open a pidfd of a child; -1 if the child is gone and other code has reaped it.

    Raises:
        OSError: the system refused. The child has been killed.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    except OSError:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    # It is not our child: others have reaped that, and another process has got its number.
    except ChildProcessError:
        os.close(pidfd)
        return -1
    except OSError:  # Linux 5.3, or a sandbox
        pass
    return pidfd


def fill_standard_streams() -> None:
    """Open /dev/null in the place of each standard stream that is closed.

    Some launchers leave them closed. Memory and sockets would get their numbers otherwise, and
    native code that prints would write into those. libuv aborts the process when it closes one of
    them. Python's `sys.stdout` stays None.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) < _FIRST_DESCRIPTOR:
        pass
    os.close(null)


def tie_to_parent() -> str:
    """In a child: make sure that it ends with its parent; say what the system refuses, in words.

    The user's main module may have changed its credentials while it was imported, which clears
    PR_SET_PDEATHSIG.
    """
    parent: Any = multiprocessing.parent_process()
    lifeline: int = parent.sentinel
    refused = ""
    if not _has_death_signal():
        refused = "PR_SET_PDEATHSIG is refused, by a sandbox for example; its pipe does the same"
    if not _is_killed_by(lifeline):
        threading.Thread(
            target=end_with, args=(lifeline,), name="areplay-lifeline", daemon=True
        ).start()
    elif select.select([lifeline], [], [], 0)[0]:  # it closed before the kernel was asked
        os._exit(1)
    return refused


def _has_death_signal() -> bool:
    """Whether the kernel kills this process after its parent; asks the kernel for that if not."""
    libc = ctypes.CDLL(None)
    found = ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0)
    if found.value == signal.SIGKILL:
        return True
    refused: int = libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return refused == 0


def _is_killed_by(lifeline: int) -> bool:
    """Whether the kernel kills this process when the pipe is closed, as the guard asked it to."""
    try:
        is_asynchronous = bool(fcntl.fcntl(lifeline, fcntl.F_GETFL) & os.O_ASYNC)
        is_fatal = fcntl.fcntl(lifeline, fcntl.F_GETSIG) == signal.SIGKILL
        return is_asynchronous and is_fatal and not _is_in_user_namespace()
    except OSError:
        return False


def _is_in_user_namespace() -> bool:
    """Whether root here is not the machine's root.

    Then a process that changed its user gets no signal from a pipe.
    """
    try:
        with open("/proc/self/uid_map") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return True


def end_with(lifeline: int) -> None:
    """Sleep until the parent is gone, then end.

    In a thread: user code may keep the event loop from turning.
    """
    poll = select.poll()
    poll.register(lifeline, 0)  # its end is always reported
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
