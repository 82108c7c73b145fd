"""The benchmarks by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks import (
    bench_blocks,
    bench_cartpole,
    bench_checkpoint,
    bench_delivery,
    bench_ingest,
    bench_items,
    bench_learner,
    bench_limiter,
    bench_prioritized,
    bench_question,
    bench_recovery,
    queue_fill,
)
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options

Benchmark = Callable[[Options], Coroutine[Any, Any, list[Figure]]]

BENCHMARKS: dict[str, Benchmark] = {
    "delivery": bench_delivery.run,
    "cartpole": bench_cartpole.run,
    "learner": bench_learner.run,
    "ingest": bench_ingest.run,
    "items": bench_items.run,
    "limiter": bench_limiter.run,
    "prioritized": bench_prioritized.run,
    "blocks": bench_blocks.run,
    "checkpoint": bench_checkpoint.run,
    "recovery": bench_recovery.run,
    "question": bench_question.run,
    "queue_fill": queue_fill.run,
}
