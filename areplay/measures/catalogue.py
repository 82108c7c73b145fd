"""The measurements by name, in the order in which they run; and what a whole run is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from areplay.measures import actors, blocks, capacity, queue, recovery, throughput, torn
from areplay.measures.measurement import Measurement
from areplay.measures.options import Options, Progress
from areplay.measures.workloads import Workload

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
