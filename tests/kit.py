"""What several test modules need: conditions, cancellation at every tick, failing system calls,
passed descriptors."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import pytest

from areplay._sampling.binding import bind
from areplay._sampling.bound_selector import BoundSelector
from areplay._storage.priorities import Exponents
from areplay.selectors import AnySelector

T = TypeVar("T")


class _NoPriorities:
    """Stands in for priorities where nothing is drawn by them."""

    exponents = Exponents(np.zeros(100))


def bound(selector: AnySelector) -> BoundSelector:
    """A selector as a reader is given it; a `Prioritized` without priorities."""
    return bind(selector, lambda exponent: _NoPriorities())  # type: ignore[arg-type, return-value]


async def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Return once `condition()`; fail if it does not come true within that many seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  the condition is about shared memory, where nobody sets an event
            await asyncio.sleep(0.001)


async def ticks(count: int) -> None:
    """Let the event loop turn that often."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextmanager
def other_task() -> Iterator[Callable[[], int]]:
    """Another task of the event loop, that lives as long as the block: says how many turns it has
    had."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(count())
    try:
        yield lambda: turns
    finally:
        task.cancel()


async def cancel_at_every_tick(
    build: Callable[[], T],
    act: Callable[[T], Awaitable[Any]],
    check: Callable[[T], None],
    most: int = 12,
) -> int:
    """Start `act` on a fresh thing, cancel it after 0, 1, 2, ... turns of the loop, and `check`
    each time.

    Ends when `act` finishes before the cancellation, or after `most` turns for one that waits for
    ever. Returns how many of the runs were really cancelled.
    """
    cancelled = 0
    for count in range(most):
        thing = build()
        task = asyncio.ensure_future(act(thing))
        await ticks(count)
        finished = task.done()
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
        cancelled += isinstance(outcome, asyncio.CancelledError)
        check(thing)
        if finished:
            break
    return cancelled


def open_descriptors() -> int:
    """How many file descriptors this process has."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def memory_descriptors() -> int:
    """How many descriptors of areplay's memory files this process has: locks and mappings hold
    some, too."""
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:areplay")
    return found


class FailsAt:
    """Stands in for a system call: the n-th call fails as if a limit were reached, all others go
    through."""

    def __init__(self, call: Callable[..., Any], nth: int, error: int = errno.ENFILE) -> None:
        self._call, self._nth, self._error = call, nth, error
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self._nth:
            raise OSError(self._error, os.strerror(self._error))
        return self._call(*args, **kwargs)

    @property
    def has_failed(self) -> bool:
        """Whether there were calls enough to reach the fault."""
        return self.calls >= self._nth


class PassedDescriptor:
    """Stands in for `multiprocessing.reduction.DupFd`: passes a descriptor within this very
    process."""

    def __init__(self, descriptor: int) -> None:
        self._copy = os.dup(descriptor)

    def detach(self) -> int:
        """The copy, now the caller's."""
        return self._copy


@contextmanager
def descriptors_pass_by_pickle() -> Iterator[None]:
    """Pickling a segment or a doorbell and loading it in this process attaches to it, as a spawned
    child would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.reduction.DupFd", PassedDescriptor)
        yield
