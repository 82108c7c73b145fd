"""Delivered batches of large rows, of one sampler and of two, against a bare loop of `take`.

The loop reads columns of the same size on the same kind of memory.
"""

from __future__ import annotations

from functools import partial

from benchmarks.bare import takes_per_s, touched
from benchmarks.flows import delivered_per_s, warm_batches
from benchmarks.harness import Figure, Options, Target, medians, ratios, take_turns
from benchmarks.memory import Columns, SharedColumns
from benchmarks.workloads import FRAMES, filled_replay

ONE_PLACE = "bare, one place"
TARGETS = {"1 sampler": 0.9, "2 samplers": 1.7}

Seen = dict[str, list[float]]


async def run(options: Options) -> list[Figure]:
    """One sampler must be worth 0.9 bare loops, two samplers 1.7."""
    many_places = f"bare, {options.prefetch} places"
    with (
        touched(FRAMES, options.capacity) as rows,
        touched(FRAMES, options.prefetch * options.batch_size) as places,
    ):
        seen = await _measure(options, rows.columns, places, many_places)
    figures = [_figure(seen, name, ONE_PLACE, "bare take", Target(">=", bound)) for name, bound in TARGETS.items()]
    note = "batches/s; one place stays in the cache, a queue of places does not"
    into = f"bare take into {options.prefetch} places"
    return figures + [_figure(seen, name, many_places, into, note=note) for name in TARGETS]


async def _measure(options: Options, columns: Columns, places: SharedColumns, many_places: str) -> Seen:
    async with (
        filled_replay(FRAMES, options) as replay,
        warm_batches(replay, options) as one,
        warm_batches(replay, options, samplers=2) as two,
    ):

        async def bare(count: int) -> float:
            takes_per_s(columns, options.batch_size, options.settle_s, places, count)
            return takes_per_s(columns, options.batch_size, options.seconds, places, count)

        return await take_turns(
            {
                ONE_PLACE: partial(bare, 1),
                "1 sampler": partial(delivered_per_s, one, options),
                "2 samplers": partial(delivered_per_s, two, options),
                many_places: partial(bare, options.prefetch),
            },
            options,
        )


def _figure(
    seen: Seen, name: str, bare: str, into: str, target: Target | None = None, note: str = "batches/s"
) -> Figure:
    middle = medians({name: seen[name], "bare": seen[bare]})
    return Figure(f"frames: {name} / {into}", ratios(seen[name], seen[bare]), "x", target, note, middle)
