"""Starting: the thread that starts children, and what may go wrong in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from areplay._processes.completion import Outcome, outcome_of


def starter(kind: str) -> ThreadPoolExecutor:
    """Make a thread that starts children one after the other.

    Shut it down when all its children are reaped: they die with it.
    """
    return ThreadPoolExecutor(1, f"areplay-{kind}-starter")


def launch_in(starter: Executor, launch: Callable[[], None]) -> asyncio.Future[Outcome[None]]:
    """Let the starter's thread run `launch`; see `check_launched` for its outcome.

    The outcome is a value: the arguments of a child are pickled there, and their code may raise
    what no future holds.

    Raises:
        RuntimeError: no thread can be started.
    """
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(starter, partial(outcome_of, launch))


def check_launched(outcome: Outcome[None]) -> None:
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
