"""The learners of `benchmarks.learners` for the `get()` of the lock designs: same clock reads, same
places."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks.baselines import Pipeline
from benchmarks.harness.clocks import clock
from benchmarks.harness.options import Options
from benchmarks.learners import WaitLog


@dataclass
class PipelineLog(WaitLog):
    """What such a learner saw, and how full `qsize` said the queue was."""

    queued: list[float] = field(default_factory=list)


def pipeline_per_s(pipeline: Pipeline, seconds: float) -> float:
    """The same as `count_batches`, for a lock design."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        pipeline.get()
        done += 1
    return done / (time.perf_counter() - start)


def blocked_pipeline(pipeline: Pipeline, options: Options, seconds: float) -> PipelineLog:
    """The same as `blocked_learner`, for so many seconds: its steps take longer."""
    log = PipelineLog()
    start = clock()
    while len(log.at_s) < 2 or log.at_s[-1] < seconds:
        log.queued.append(pipeline.queued())
        fill, asked = pipeline.fill(), time.perf_counter()
        pipeline.get()
        log.add(clock() - start, time.perf_counter() - asked, fill)
        time.sleep(options.learner_s)
    return log
