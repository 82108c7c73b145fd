"""The learner's longest wait while a killed sampler is replaced, and how long that takes; the same
for an actor."""

from __future__ import annotations

from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import Figure, Target, medians
from benchmarks.harness.options import Options
from benchmarks.row.recovery import Recovery, recoveries
from benchmarks.workloads import FRAMES

TARGET = Target("<=", 1_000)


async def run(options: Options) -> list[Figure]:
    """A learner of 5 ms behind a queue of 16 must wait no longer than 1 ms; one kill of each kind a
    round."""
    seen = await recoveries(FRAMES, options, progress)
    return [
        Figure(
            "sampler killed: longest wait",
            _waits(seen.samplers),
            "us",
            TARGET,
            beside=_calm(seen.samplers),
        ),
        Figure(
            "sampler killed: queue fill, lowest", tuple(r.lowest_fill for r in seen.samplers), ""
        ),
        Figure("sampler killed: successor READY", tuple(r.ready_s for r in seen.samplers), "s"),
        Figure(
            "sampler killed: queue as full as before", tuple(r.back_s for r in seen.samplers), "s"
        ),
        Figure(
            "actor killed: first row of its successor stored",
            tuple(r.back_s for r in seen.actors),
            "s",
            beside=medians({"READY": [r.ready_s for r in seen.actors]}),
        ),
        Figure(
            "actor killed: longest wait",
            _waits(seen.actors),
            "us",
            TARGET,
            beside=_calm(seen.actors),
        ),
    ]


def _waits(recoveries: list[Recovery]) -> tuple[float, ...]:
    return tuple(recovery.longest_wait_us for recovery in recoveries)


def _calm(recoveries: list[Recovery]) -> dict[str, float]:
    """The median over the kills, as that of the waits is."""
    return medians(
        {
            "in as many steps without a kill": [
                recovery.longest_calm_wait_us for recovery in recoveries
            ]
        }
    )
