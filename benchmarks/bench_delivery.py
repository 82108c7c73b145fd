"""Delivered batches of large rows, of one sampler and of two, against a bare loop of `take`.

The loop reads columns of the same size on the same kind of memory, and writes each batch to the
same place, which stays in the cache. A queue needs at least two places in turn; how much that alone
costs is measured too, and what two processes reach that only take.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from benchmarks.bare import TakingPair, takes_per_s, touched
from benchmarks.flows import delivered_per_s, warm_batches
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import take_turns
from benchmarks.workloads import FRAMES, filled_replay

BARE, ONE, TWO, BARE_TWO = "bare", "1 sampler", "2 samplers", "2 bare processes"
TARGETS = {ONE: Target(">=", 0.9), TWO: Target(">=", 1.7)}

Seen = dict[str, list[float]]


async def run(options: Options) -> list[Figure]:
    """One sampler must be worth 0.9 bare loops, two samplers 1.7."""
    many = f"bare, {options.prefetch} places"
    seen = await _measure(options, many)
    return [
        *(_figure(seen, name, BARE, "bare take", target) for name, target in TARGETS.items()),
        _figure(seen, BARE_TWO, BARE, "bare take"),
        _figure(seen, many, BARE, "bare take"),
        _figure(seen, ONE, many, f"bare take into {options.prefetch} places"),
        _figure(seen, TWO, BARE_TWO, "2 bare processes"),
    ]


async def _measure(options: Options, many: str) -> Seen:
    async with AsyncExitStack() as stack:
        rows = stack.enter_context(touched(FRAMES, options.capacity))
        places = stack.enter_context(touched(FRAMES, options.prefetch * options.batch_size))
        others = stack.enter_context(touched(FRAMES, options.batch_size))
        pair = stack.enter_context(TakingPair(rows, options.batch_size, (places, others)))
        replay = await stack.enter_async_context(filled_replay(FRAMES, options))
        one = await stack.enter_async_context(warm_batches(replay, options))
        two = await stack.enter_async_context(warm_batches(replay, options, samplers=2))
        pair.takes_per_s(options.warmup_s)

        async def bare(count: int) -> float:
            takes_per_s(rows.columns, options.batch_size, options.settle_s, places, count)
            return takes_per_s(rows.columns, options.batch_size, options.seconds, places, count)

        async def bare_two() -> float:
            return pair.takes_per_s(options.seconds)

        return await take_turns(
            {
                BARE: partial(bare, 1),
                ONE: partial(delivered_per_s, one, options),
                TWO: partial(delivered_per_s, two, options),
                BARE_TWO: bare_two,
                many: partial(bare, options.prefetch),
            },
            options,
        )


def _figure(
    seen: Seen, name: str, under: str, against: str, target: Target | None = None
) -> Figure:
    beside = medians({name: seen[name], under: seen[under]})
    return Figure(
        f"frames: {name} / {against}",
        ratios(seen[name], seen[under]),
        "x",
        target,
        "batches/s",
        beside,
    )
