"""What a killed process costs: one of two samplers, then one of two actors, gets SIGKILL while
everybody works.

Times run from the kill, and are seen by the learner between two of its steps, so they are as exact
as a step is long. The longest wait of many steps is longer than that of few, with a kill or
without: so each kill is compared with as many steps of the same learner, after all is as before and
the successor has had time to map the pages it reads.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import areplay
from benchmarks.flows import loaded
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series, waits_panel
from benchmarks.learners import WAIT_S, WaitLog, blocked_learner
from benchmarks.workloads import Workload

SAMPLERS = ACTORS = 2
MAX_DRAWN = 5  # recoveries in a plot; more could not be told apart
_MANY = 1 << 40  # steps
AFTER = "in as many steps, after each kill"


@dataclass
class Recovery:
    """One kill, and what the learner saw from then until everything was as before.

    Attributes:
        log: its steps, with seconds since the kill.
        calm: as many steps, later, without a kill.
        ready_s: until the successor was READY.
        back_s: until in addition the queue was as full as before, or the successor's first row was
            in the ring.
    """

    log: WaitLog
    calm: WaitLog
    ready_s: float = 0.0
    back_s: float = 0.0

    @property
    def longest_wait_us(self) -> float:
        """The learner's longest wait."""
        return self.log.wait_us(100)

    @property
    def longest_calm_wait_us(self) -> float:
        """Its longest wait in as many steps without a kill."""
        return self.calm.wait_us(100)

    @property
    def lowest_fill(self) -> float:
        """How empty the queue was at worst."""
        return min(self.log.fill)


@dataclass(frozen=True)
class Recoveries:
    """Those from the kills of samplers and of actors."""

    samplers: list[Recovery]
    actors: list[Recovery]


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """Longest wait, lowest fill, and how long it took, for as many kills of each kind as there are
    rounds."""
    seen = await recoveries(workload, options, progress)
    count = len(seen.samplers)
    waits_us = [seconds * 1e6 for recovery in seen.samplers for seconds in recovery.log.wait_s]
    return Measurement(
        "recovery",
        workload.name,
        f"SIGKILL of one of {SAMPLERS} samplers, {count} {'time' if count == 1 else 'times'}, "
        f"behind a learner that blocks {options.learner_s * 1e3:g} ms with each batch of "
        f"{options.batch_size} x {workload.row_bytes:,} bytes",
        (
            Figure.of(
                "longest wait, worst kill", max(r.longest_wait_us for r in seen.samplers), "us"
            ),
            Figure.of(
                "longest wait, median kill", _median(r.longest_wait_us for r in seen.samplers), "us"
            ),
            Figure.of(
                "longest wait without a kill, worst",
                max(r.longest_calm_wait_us for r in seen.samplers),
                "us",
                AFTER,
            ),
            Figure.of(
                "longest wait without a kill, median",
                _median(r.longest_calm_wait_us for r in seen.samplers),
                "us",
            ),
            Figure.of("queue fill, lowest", min(r.lowest_fill for r in seen.samplers), ""),
            Figure.of("successor READY", _median(r.ready_s for r in seen.samplers), "s", "median"),
            Figure.of(
                "queue as full as before, two samplers",
                _median(r.back_s for r in seen.samplers),
                "s",
                "median",
            ),
            Figure.of(
                "actor killed: successor READY",
                _median(r.ready_s for r in seen.actors),
                "s",
                "median",
            ),
            Figure.of(
                "actor killed: its first row stored",
                _median(r.back_s for r in seen.actors),
                "s",
                "median",
            ),
            Figure.of(
                "actor killed: longest wait",
                max(r.longest_wait_us for r in seen.actors),
                "us",
                "worst kill",
            ),
            Figure.of(
                "actor killed: longest wait without a kill",
                max(r.longest_calm_wait_us for r in seen.actors),
                "us",
                f"worst, {AFTER}",
            ),
        ),
        (
            Panel(
                f"Batches ready when it asks, as a share of the {options.prefetch} that the queue "
                "holds",
                "seconds since a sampler was killed",
                "",
                tuple(
                    Series(f"kill {number}", tuple(recovery.log.at_s), tuple(recovery.log.fill))
                    for number, recovery in enumerate(seen.samplers[:MAX_DRAWN], start=1)
                ),
                "steps",
                top=1.0,
            ),
            waits_panel(
                waits_us, f"How long it waited until all was as before, {len(waits_us):,} steps"
            ),
        ),
        (
            f"Times are seen between two steps of the learner, every {options.learner_s * 1e3:g} "
            "ms.",
        ),
    )


async def recoveries(workload: Workload, options: Options, progress: Progress) -> Recoveries:
    """One kill of each kind a round."""
    samplers, actors = [], []
    async with loaded(workload, options, SAMPLERS, ACTORS) as (replay, batches, _):
        for turn in range(options.rounds):
            samplers.append(await _kill_sampler(replay, batches, options, turn % SAMPLERS))
            progress(f"sampler killed: longest wait {samplers[-1].longest_wait_us:.0f} us")
            actors.append(await _kill_actor(replay, batches, options, turn % ACTORS))
            progress(f"actor killed: first row of its successor after {actors[-1].back_s:.2f} s")
    return Recoveries(samplers, actors)


async def _kill_sampler(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, index: int
) -> Recovery:
    """From the kill of a sampler until there are two again and the queue is as full as before."""
    restarts = batches.statistics().restarts

    def stage(level: float) -> int:
        """0: one is missing, 1: none is, 2: and the queue is as full as before."""
        seen = batches.statistics()
        if seen.restarts == restarts or seen.samplers_alive < SAMPLERS:
            return 0
        return 2 if seen.fill >= level else 1

    return await _killed(replay, batches, options, sampler_pids(batches)[index], stage)


async def _kill_actor(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, index: int
) -> Recovery:
    """From the kill of an actor until a row of its successor is in the ring."""
    before = replay.statistics().actors[index]
    left: int | None = None  # rows that the dead one handed in, all of them

    def stage(level: float) -> int:
        """0: its successor is not ready, 1: it is, 2: and a row of it is in the ring."""
        nonlocal left
        seen = replay.statistics().actors[index]
        if seen.restarts == before.restarts:
            return 0
        if left is None:
            left = seen.rows
        if not seen.is_alive:
            return 0
        return 2 if seen.rows - seen.waiting_rows > left else 1

    return await _killed(replay, batches, options, before.pid, stage)


async def _killed(
    replay: areplay.Replay,
    batches: areplay.Batches,
    options: Options,
    pid: int,
    stage: Callable[[float], int],
) -> Recovery:
    before = await blocked_learner(replay, batches, options, options.prefetch)
    level = statistics.median(before.fill)  # 1.0, unless samplers cannot keep up with this learner
    recovery = Recovery(WaitLog(), WaitLog())

    def is_back(log: WaitLog) -> bool:
        now_s, reached = time.monotonic() - killed_at, stage(level)
        if reached >= 1 and not recovery.ready_s:
            recovery.ready_s = now_s
        if reached == 2:
            recovery.back_s = now_s
        if now_s > WAIT_S:
            raise TimeoutError(
                f"not back to work {WAIT_S:g} s after process {pid} was killed: "
                f"{batches.statistics()}"
            )
        return reached == 2

    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    recovery.log = await blocked_learner(replay, batches, options, _MANY, is_done=is_back)
    await blocked_learner(
        replay, batches, options, _MANY, is_done=lambda log: log.at_s[-1] >= options.warmup_s
    )
    recovery.calm = await blocked_learner(replay, batches, options, len(recovery.log.at_s))
    return recovery


def sampler_pids(batches: areplay.Batches) -> list[int]:
    """The processes that fill the queue now."""
    return [sampler.pid for sampler in batches.statistics().samplers]


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
