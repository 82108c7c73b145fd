"""How long a learner waits that blocks its loop for 5 ms with each batch, while 20,000 large rows/s
come in."""

from __future__ import annotations

import statistics
from functools import partial

import areplay
from benchmarks.bare import hand_over_us
from benchmarks.flows import loaded
from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import Figure, Target
from benchmarks.harness.options import Options
from benchmarks.learners import WaitLog, blocked_learner
from benchmarks.row.queue import watched
from benchmarks.workloads import FRAMES

# with the rows/s that came in, and the wait for a batch that is always there
Round = tuple[WaitLog, float, float]


async def run(options: Options) -> list[Figure]:
    """Waits in microseconds and the queue's fill, each from one replay that goes through all
    rounds."""
    rounds = await _rounds(options)
    logs = [log for log, _, _ in rounds]
    came_in = {"rows/s came in": statistics.median(rate for _, rate, _ in rounds)}
    floor = {"floor p50, us": statistics.median(floor_us for _, _, floor_us in rounds)}
    waits = [
        Figure(
            f"learner of 5 ms: wait, p{percentile}",
            tuple(log.wait_us(percentile) for log in logs),
            "us",
            Target("<=", bound),
            beside=came_in | floor,
        )
        for percentile, bound in ((50, 20), (99, 200))
    ]
    fills = [
        Figure(
            f"learner of 5 ms: queue fill, {name}",
            tuple(values),
            "",
            Target(">=", bound),
            beside=came_in,
        )
        for name, values, bound in (
            ("mean", [statistics.mean(log.fill) for log in logs], 0.95),
            ("lowest", [min(log.fill) for log in logs], 0.85),
        )
    ]
    return [*waits, *fills]


async def _rounds(options: Options) -> list[Round]:
    rounds: list[Round] = []
    async with loaded(FRAMES, options) as (replay, batches, _):
        await blocked_learner(replay, batches, options, steps=options.steps // 2)
        for turn in range(options.rounds):
            rounds.append(await options.patience.measure(partial(_round, replay, batches, options)))
            log, _, floor_us = rounds[-1]
            progress(
                f"round {turn + 1}/{options.rounds}  p50 {log.wait_us(50):.1f} us, p99 "
                f"{log.wait_us(99):.0f} us, floor {floor_us:.1f} us"
            )
    return rounds


async def _round(replay: areplay.Replay, batches: areplay.Batches, options: Options) -> Round:
    log, rate = await watched(replay, batches, options)
    floor_us = statistics.median(await hand_over_us(options.learner_s, options.steps // 4))
    return log, rate, floor_us
