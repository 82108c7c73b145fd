"""What every test runs under: both event loops, little garbage to look through, no race against a
clock."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import HealthCheck, settings

settings.register_profile("areplay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("areplay")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Coroutine tests run on each of these loops; `@pytest.mark.asyncio(loop_factories=["uvloop"])`
    chooses."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def what_stays() -> None:
    """What is there by now is there to stay: tests that collect garbage need not look through it
    each time.

    With torch, jax, sphinx and hypothesis in the process that look takes a quarter of a second,
    some hundreds of times.
    """
    gc.collect()
    gc.freeze()
