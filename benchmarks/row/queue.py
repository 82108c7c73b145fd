"""How full the prefetch queue is, and how long the learner waits, while it blocks with each batch
and rows come in."""

from __future__ import annotations

import statistics

import areplay
from benchmarks.flows import loaded
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series, waits_panel
from benchmarks.learners import WaitLog, blocked_learner
from benchmarks.workloads import Workload


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """The fill over time and the distribution of the waits, of one run."""
    async with loaded(workload, options) as (replay, batches, _):
        await blocked_learner(replay, batches, options, options.steps // 2)
        log, rows_per_s = await watched(replay, batches, options)
    progress(f"wait p50 {log.wait_us(50):.0f} us, p99 {log.wait_us(99):.0f} us")
    waits_us = [seconds * 1e6 for seconds in log.wait_s]
    return Measurement(
        "queue",
        workload.name,
        f"A learner blocks {options.learner_s * 1e3:g} ms with each batch of {options.batch_size} "
        f"x {workload.row_bytes:,} bytes, while {rows_per_s:,.0f} rows/s come in",
        (
            Figure.of("wait, p50", log.wait_us(50), "us"),
            Figure.of("wait, p99", log.wait_us(99), "us"),
            Figure.of("wait, longest", log.wait_us(100), "us"),
            Figure.of("queue fill, mean", statistics.mean(log.fill), ""),
            Figure.of("queue fill, lowest", min(log.fill), "", f"1 is {options.prefetch} batches"),
            Figure.of("rows in", rows_per_s, "rows/s", f"asked for: {options.rows_per_s:,}"),
            Figure.of("learner's steps", log.steps_per_s, "steps/s"),
        ),
        (
            Panel(
                f"Batches ready when it asks, as a share of the {options.prefetch} that the queue "
                "holds",
                "seconds",
                "",
                (Series("fill", tuple(log.at_s), tuple(log.fill)),),
                "steps",
                top=1.0,
            ),
            waits_panel(waits_us, f"How long it waited, {len(waits_us):,} steps"),
        ),
    )


async def watched(
    replay: areplay.Replay, batches: areplay.Batches, options: Options
) -> tuple[WaitLog, float]:
    """What the learner saw in `steps` steps, and the rows/s that came in meanwhile; after a few
    steps to begin with."""
    await blocked_learner(replay, batches, options, options.prefetch)
    before = replay.statistics().rows_inserted
    log = await blocked_learner(replay, batches, options)
    return log, (replay.statistics().rows_inserted - before) / log.at_s[-1]
