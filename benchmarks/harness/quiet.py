"""Who else uses the machine: measured beside every figure, and a reason to measure a turn again.

A neighbour on one of two cores makes every figure wrong, in both directions. So each turn knows how
many cores others kept busy meanwhile; with patience (`--patience SECONDS`) the harness waits for a
quiet moment before a turn, and measures it again if the quiet did not last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.clocks import clock, progress
from benchmarks.harness.machine import own_cpu_s

T = TypeVar("T")

MAX_OTHERS = 0.15  # cores; below that a turn counts as quiet
LOOK_S = 0.5


class OthersLoad:
    """How many cores were busy with what is not ours, since this was made."""

    def __init__(self) -> None:
        self._start_s, self._busy_s, self._own_s = clock(), _busy_s(), own_cpu_s()

    def cores(self) -> float:
        """Busy cores of the host, stolen time included, less this process and all that descend from
        it."""
        elapsed_s = max(1e-3, clock() - self._start_s)
        return max(0.0, (_busy_s() - self._busy_s) - (own_cpu_s() - self._own_s)) / elapsed_s


class Patience:
    """So many seconds, for a whole run, that may go into waiting and into turns measured again."""

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds

    async def measure(self, turn: Callable[[], Awaitable[T]]) -> T:
        """The value of a turn; of one during which nobody else used the machine, while the patience
        lasts."""
        while True:
            await self._wait_quiet()
            start_s, load = clock(), OthersLoad()
            value = await turn()
            if self._left_s <= 0 or (cores := load.cores()) <= MAX_OTHERS:
                return value
            self._left_s -= clock() - start_s
            progress(
                f"others kept {cores:.2f} cores busy: measured again, patience for "
                f"{self._left_s:.0f} s more"
            )

    async def _wait_quiet(self) -> None:
        while self._left_s > 0:
            load = OthersLoad()
            await asyncio.sleep(LOOK_S)
            if load.cores() <= MAX_OTHERS:
                return
            self._left_s -= LOOK_S


def _busy_s() -> float:
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
