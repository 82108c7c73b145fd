"""The measurements by name, in the order in which they run; and what a whole run is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement
from benchmarks.row import actors, blocks, capacity, queue, recovery, throughput, torn
from benchmarks.workloads import Workload

Measure = Callable[[Workload, Options, Progress], Coroutine[Any, Any, Measurement]]

MEASURES: dict[str, Measure] = {
    "throughput": throughput.measure,
    "queue": queue.measure,
    "recovery": recovery.measure,
    "torn": torn.measure,
    "blocks": blocks.measure,
    "actors": actors.measure,
    "capacity": capacity.measure,
}
