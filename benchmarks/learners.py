"""Learners: one that takes batches and does nothing, and one that blocks for some ms with each, as
training does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import areplay
from benchmarks.harness.options import Options

WAIT_S = 60.0  # for the first batch, and for a run as a whole beyond its own length


@dataclass
class WaitLog:
    """What a learner saw at each step: how long it waited, and how full the queue was when it
    asked."""

    at_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)
    fill: list[float] = field(default_factory=list)

    def add(self, at_s: float, wait_s: float, fill: float) -> None:
        """Note one step."""
        self.at_s.append(at_s)
        self.wait_s.append(wait_s)
        self.fill.append(fill)

    @property
    def steps_per_s(self) -> float:
        """Steps that the learner got done each second."""
        return (len(self.at_s) - 1) / (self.at_s[-1] - self.at_s[0])

    def wait_us(self, percentile: float) -> float:
        """Microseconds that so many percent of the steps did not exceed."""
        return float(np.percentile(self.wait_s, percentile)) * 1e6


async def count_batches(batches: areplay.Batches, seconds: float) -> float:
    """Batches delivered each second to a learner that touches none of them."""
    start, done = time.perf_counter(), 0
    async for _ in batches:
        done += 1
        if time.perf_counter() - start >= seconds:
            break
    return done / (time.perf_counter() - start)


async def blocked_learner(
    replay: areplay.Replay,
    batches: areplay.Batches,
    options: Options,
    steps: int | None = None,
    *,
    is_done: Callable[[WaitLog], bool] = lambda log: False,
) -> WaitLog:
    """Steps of a learner that blocks its event loop with each batch, as a training step does.

    Args:
        is_done: asked after each step, outside of what is measured; True ends it before its last
            step.
    """
    log, left = WaitLog(), options.steps if steps is None else steps
    start = time.monotonic()
    fill, asked = fill_of(replay), time.perf_counter()
    async for _ in batches:
        log.add(time.monotonic() - start, time.perf_counter() - asked, fill)
        if (left := left - 1) <= 0 or is_done(log):
            break
        time.sleep(options.learner_s)  # noqa: ASYNC251  blocking is what is measured
        fill = fill_of(replay)
        asked = time.perf_counter()
    return log


def fill_of(replay: areplay.Replay) -> float:
    """How full the newest prefetch queue of the replay is, 0 to 1."""
    return replay.statistics().batches[-1].fill
