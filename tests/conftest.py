"""What every test runs under: both event loops for coroutines, and a watchdog for everything."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
import uvloop

WATCHDOG_S = 180.0


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Coroutine tests run on each of these loops; `@pytest.mark.asyncio(loop_factories=["uvloop"])` chooses."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


_stderr = pytest.StashKey[TextIO]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep what stderr is before tests' output is caught."""
    config.stash[_stderr] = os.fdopen(os.dup(2), "w")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give it back."""
    config.stash[_stderr].close()


@pytest.fixture(autouse=True)
def watchdog(pytestconfig: pytest.Config) -> Iterator[None]:
    """No test waits without an end: past the deadline all stacks are printed and the run dies."""
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=pytestconfig.stash[_stderr])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module", autouse=True)
def what_stays() -> None:
    """What is there by now is there to stay: tests that collect garbage need not look through it each time.

    With torch, jax, sphinx and hypothesis in the process that look takes a quarter of a second, some hundreds of times.
    """
    gc.collect()
    gc.freeze()
