"""Forks: a forked child keeps nothing of what its parent has open, and every use of it there raises
`WrongProcess`.

A fork copies Python's objects, but shares what the kernel holds for them: memory, eventfds,
sockets, locks, the event loop's epoll. Code in the child that adds, samples, closes, or just
unwinds an `async with` would act on the parent's. Two rules prevent that:

- Objects that hold something of the kernel's `register` here. In the child, before any other code
  runs, `after_fork` of each lets go of it: descriptors are closed there, and shared memory is
  mapped privately. Only calls are allowed that the parent cannot notice. Closing is one; unlocking,
  shutting down and epoll_ctl are not, since they act on what both processes share.
- Public objects remember the `Origin` that was `current` when they were opened. `current` is
  replaced in the child, so one comparison of identities tells a user's mistake.

Signals wait meanwhile, for the parent's handlers and wake-up descriptor are the child's until then:
a SIGTERM that was meant for a worker just forked would end the parent.

Closing matters also for what the child leaves undone: file locks and the ends of sockets last as
long as any copy of their descriptor does. Knows nothing of what is registered.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from areplay.errors import WrongProcess

logger = logging.getLogger(__name__)

Lock = TypeVar("Lock")

_WAITING_SIGNALS = signal.valid_signals() - {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
}  # all but those by which a process reports a fault of its own


class Origin:
    """A process, as the objects that it opens remember it."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


class Resource(Protocol):
    """Something that holds a descriptor, a mapping or a handler of this process."""

    def after_fork(self) -> None:
        """In a forked child: let go of it, by calls that the parent does not notice. Must not
        wait."""
        ...


current = Origin()
"""This process. Read it as `forks.current`: a forked child has another one."""

_resources: WeakSet[Resource] = WeakSet()
_locks: WeakSet[Any] = WeakSet()
_masks: dict[int, set[signal.Signals]] = {}  # by the thread that forks: its signal mask before


def check(origin: Origin, what: str) -> None:
    """Raise `WrongProcess` if `what` was opened by another process, which this one was forked
    from."""
    if origin is not current:
        raise WrongProcess(what, origin.pid)


def register(resource: Resource) -> None:
    """Call `resource.after_fork` in every child that is forked while the resource lives."""
    _resources.add(resource)


def register_lock(lock: Lock) -> Lock:
    """The lock, which is free in every forked child from now on, even if another thread of the
    parent holds it."""
    _locks.add(lock)
    return lock


def close(descriptor: int) -> int:
    """Close a descriptor if it is one; -1, to be put in its place."""
    if descriptor >= 0:
        with suppress(OSError):  # the child's own code has closed it
            os.close(descriptor)
    return -1


class Descriptor:
    """A descriptor that forked children close.

    Attributes:
        number: -1 once it is closed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        register(self)

    def close(self) -> None:
        """Close it. May be called twice."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def after_fork(self) -> None:
        """Close the child's copy."""
        self.number = close(self.number)


class Handlers:
    """Signal handlers that this process sets for itself; a forked child gets back those that were
    there before."""

    def __init__(self) -> None:
        self._set: dict[signal.Signals, tuple[Any, Any]] = {}  # handlers before and ours
        register(self)

    @contextmanager
    def replacing(self, number: signal.Signals, before: Any = None) -> Iterator[None]:
        """Within this, the caller sets a handler of its own.

        Args:
            before: the handler that a child gets; by default the one that is set now.
        """
        if before is None:
            before = signal.getsignal(number)
        yield
        # A handler that was not set from Python reads as None, and cannot be set again.
        self._set[number] = (signal.SIG_DFL if before is None else before), signal.getsignal(number)

    def after_fork(self) -> None:
        """Set those before, where ours are still set."""
        for number, (before, ours) in self._set.items():
            if signal.getsignal(number) == ours:
                signal.signal(number, before)
        self._set.clear()


def _before() -> None:
    if _resources:
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING_SIGNALS)  # type: ignore[assignment]


def _after_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_in_child() -> None:
    global current
    current = Origin()
    try:
        for lock in list(_locks):
            lock._at_fork_reinit()
        if _resources:
            with suppress(ValueError):  # of a subinterpreter
                # The parent's, whichever event loop or library has set it: shared, it tells the
                # parent of signals that the child gets. From Python 3.12 on asyncio does the same.
                signal.set_wakeup_fd(-1)
        for resource in list(_resources):
            try:
                resource.after_fork()
            except Exception:
                logger.exception(
                    "%r could not be let go of in process %d", type(resource), current.pid
                )
    finally:
        _after_in_parent()
        _masks.clear()


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
