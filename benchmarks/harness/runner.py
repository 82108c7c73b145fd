"""Running one work after the other: one that fails or hangs leaves its reason, and the others run
all the same."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import areplay
from benchmarks.harness.quiet import OthersLoad

T = TypeVar("T")

MAX_S = 1_800.0
"""A work that takes longer hangs, and is cancelled."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a work ended.

    Attributes:
        value: what it found; None if it failed.
        failure: why it failed; "" if it did not.
        others: cores that other programs kept busy meanwhile.
    """

    name: str
    value: T | None
    failure: str
    seconds: float
    others: float


def run_each(
    works: Mapping[str, Callable[[], Coroutine[Any, Any, T]]], on_begin: Callable[[str], None]
) -> Iterator[Outcome[T]]:
    """Run each work by `areplay.run`, and tell how it ended before the next one begins."""
    for name, work in works.items():
        on_begin(name)
        start, load = time.monotonic(), OthersLoad()
        value, failure = None, ""
        try:
            value = areplay.run(_within_limits(work))
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        yield Outcome(name, value, failure, time.monotonic() - start, load.cores())


async def _within_limits(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async with asyncio.timeout(MAX_S):
        return await work()
