"""areplay against the two designs of the question, on the same work: large rows, 20,000 of them a
second coming in."""

from __future__ import annotations

from functools import partial

import areplay
from benchmarks.bare import touched
from benchmarks.baselines import BLOCK_LOCKS, ONE_LOCK, Design, running
from benchmarks.flows import Actors, rates_at_once, wait_rows, warm_batches
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import Side, take_turns
from benchmarks.learners import blocked_learner
from benchmarks.memory import SharedColumns
from benchmarks.pipeline_learners import blocked_pipeline, pipeline_per_s
from benchmarks.workloads import FRAMES, filled_replay, push_paced_rows

FASTER, SHORTER = Target(">=", 15), Target(">=", 500)


async def run(options: Options) -> list[Figure]:
    """15 times the batches of the block locks, and 500 times shorter waits of a learner that blocks
    for 5 ms."""
    with touched(FRAMES, options.capacity) as place:
        seen = await _measure(options, place)
    return [
        figure
        for design, faster, shorter in ((BLOCK_LOCKS, FASTER, SHORTER), (ONE_LOCK, None, None))
        for figure in _against(seen, design, faster, shorter)
    ]


async def _measure(options: Options, place: SharedColumns) -> dict[str, list[float]]:
    async with filled_replay(FRAMES, options) as replay, warm_batches(replay, options) as batches:
        actors = partial(
            replay.actors, push_paced_rows, 1, args=(FRAMES, float(options.rows_per_s))
        )

        async def rate() -> float:
            return (await rates_at_once(replay, batches, options, actors)).batches_per_s

        sides: dict[str, Side] = {
            "areplay: batches/s": rate,
            "areplay: wait": partial(_wait_us, replay, batches, options, actors),
        }
        for design in (ONE_LOCK, BLOCK_LOCKS):
            sides[f"{design.name}: batches/s"] = partial(_design_rate, design, place, options)
            sides[f"{design.name}: wait"] = partial(_design_wait_us, design, place, options)
        return await take_turns(sides, options)


async def _wait_us(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, start_actors: Actors
) -> float:
    async with start_actors():
        await wait_rows(replay)
        await blocked_learner(replay, batches, options, options.steps // 4)
        return (await blocked_learner(replay, batches, options)).wait_us(50)


async def _design_rate(design: Design, place: SharedColumns, options: Options) -> float:
    with running(design, FRAMES, place, options, options.settle_s + options.seconds) as pipeline:
        pipeline_per_s(pipeline, options.settle_s)
        return pipeline_per_s(pipeline, options.seconds)


async def _design_wait_us(design: Design, place: SharedColumns, options: Options) -> float:
    seconds = options.steps * options.learner_s
    with running(design, FRAMES, place, options, 2 * seconds) as pipeline:
        blocked_pipeline(pipeline, options, seconds / 4)
        return blocked_pipeline(pipeline, options, seconds).wait_us(50)


def _against(
    seen: dict[str, list[float]], design: Design, faster: Target | None, shorter: Target | None
) -> list[Figure]:
    rates = {"areplay": seen["areplay: batches/s"], design.name: seen[f"{design.name}: batches/s"]}
    waits = {"areplay": seen["areplay: wait"], design.name: seen[f"{design.name}: wait"]}
    return [
        Figure(
            f"areplay / {design.name}: batches delivered",
            ratios(rates["areplay"], rates[design.name]),
            target=faster,
            note="batches/s",
            beside=medians(rates),
        ),
        Figure(
            f"{design.name} / areplay: wait behind 5 ms steps, p50",
            ratios(waits[design.name], waits["areplay"]),
            target=shorter,
            note="us",
            beside=medians(waits),
        ),
    ]
