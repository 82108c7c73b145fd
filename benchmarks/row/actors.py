"""Rows/s in and processor time against the number of actors, each handing in rows one by one as
fast as it may."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from dataclasses import dataclass

import areplay
from areplay._shm.resource_limits import (
    DESCRIPTORS_A_CHILD,
    DESCRIPTORS_AN_INBOX,
    DESCRIPTORS_TO_START,
    available_memory,
)
from benchmarks.flows import wait_rows
from benchmarks.harness.figures import Figure
from benchmarks.harness.machine import own_cpu_s
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series
from benchmarks.workloads import Workload, filled_replay, push_rows

ACTOR_BYTES = 64 << 20  # an interpreter with numpy, and its inbox
MEMORY_SHARE = 0.5  # of what is free
START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Point:
    """What so many actors did."""

    actors: int
    rows_per_s: float
    cpu_s_a_million: float
    least_share: float
    """Rows of the actor with the fewest, to the mean."""


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """1, 2, 4, ... actors, as far as the machine allows."""
    points: list[Point] = []
    counts, left_out = counts_for(options)
    if not counts:
        raise ValueError("; ".join(left_out))
    start = time.monotonic()
    async with filled_replay(workload, options) as replay:
        for at, count in enumerate(counts):
            spent_s = time.monotonic() - start
            # twice as many take twice as long to start
            if points and 2 * spent_s > options.budget_s:
                rest = ", ".join(str(number) for number in counts[at:])
                left_out.append(
                    f"{rest} actors: they would take more than the budget of {options.budget_s:g} s"
                )
                break
            points.append(await _point(replay, workload, options, count))
            progress(f"{count} actors: {points[-1].rows_per_s:,.0f} rows/s")
    return _measurement(workload, points, left_out)


def counts_for(options: Options) -> tuple[list[int], list[str]]:
    """Powers of two up to `max_actors` for which there are memory and descriptors; and why others
    are left out."""
    counts: list[int] = []
    left_out: list[str] = []
    count = 1
    available, limit = available_memory()
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) + DESCRIPTORS_TO_START
    while count <= options.max_actors:
        if count * (DESCRIPTORS_A_CHILD + DESCRIPTORS_AN_INBOX) + used > descriptors:
            left_out.append(f"{count} actors: RLIMIT_NOFILE is {descriptors:,}")
        elif count * ACTOR_BYTES > MEMORY_SHARE * available:
            left_out.append(
                f"{count} actors: {count * ACTOR_BYTES / 1e9:.1f} GB, {limit} leaves "
                f"{available / 1e9:.1f} GB"
            )
        else:
            counts.append(count)
        count *= 2
    return counts, left_out


async def _point(replay: areplay.Replay, workload: Workload, options: Options, count: int) -> Point:
    async with replay.actors(push_rows, count, args=(workload,), start_timeout_s=START_TIMEOUT_S):
        await wait_rows(replay)
        await asyncio.sleep(options.settle_s)
        before, cpu_s, start = replay.statistics(), own_cpu_s(), time.perf_counter()
        await asyncio.sleep(options.seconds)
        after, cpu_s, spent_s = (
            replay.statistics(),
            own_cpu_s() - cpu_s,
            time.perf_counter() - start,
        )
    rows = after.rows_inserted - before.rows_inserted
    shares = [now.rows - then.rows for now, then in zip(after.actors, before.actors, strict=True)]
    return Point(
        count, rows / spent_s, 1e6 * cpu_s / max(1, rows), min(shares) * count / max(1, sum(shares))
    )


def _measurement(workload: Workload, points: list[Point], left_out: list[str]) -> Measurement:
    x = tuple(float(point.actors) for point in points)
    ticks = tuple((count, f"{count:.0f}") for count in x)
    figures = []
    most = max(points, key=lambda point: point.rows_per_s)
    for point in sorted({points[0], most, points[-1]}, key=lambda point: point.actors):
        who = f"{point.actors} actor{'s' * (point.actors > 1)}"
        figures.append(Figure.of(f"{who}: in", point.rows_per_s, "rows/s"))
        figures.append(
            Figure.of(f"{who}: processor time", point.cpu_s_a_million, "s a million rows")
        )
    figures.append(
        Figure.of(
            "the slowest actor's rows to the mean",
            min(p.least_share for p in points),
            "",
            "at worst",
        )
    )
    return Measurement(
        "actors",
        workload.name,
        f"1 to {points[-1].actors} actors hand in rows of {workload.row_bytes:,} bytes one by one, "
        "as fast as they may",
        tuple(figures),
        (
            Panel(
                "Rows that come in, all actors together",
                "actors",
                "rows/s",
                (Series("in", x, tuple(point.rows_per_s for point in points)),),
                ticks=ticks,
                is_log=True,
            ),
            Panel(
                "Processor time a million rows, actors and coordinator",
                "actors",
                "seconds",
                (Series("processor time", x, tuple(point.cpu_s_a_million for point in points)),),
                ticks=ticks,
                is_log=True,
            ),
        ),
        tuple(f"left out: {text}" for text in left_out),
    )
