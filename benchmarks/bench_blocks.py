"""Throughput over block sizes: there must be nothing to tune."""

from __future__ import annotations

from benchmarks.harness.figures import Figure, Target, medians
from benchmarks.harness.options import Options
from benchmarks.harness.turns import take_turns
from benchmarks.row.blocks import block_sizes
from benchmarks.workloads import FRAMES

TARGET = Target(">=", 0.85)


async def run(options: Options) -> list[Figure]:
    """The slowest block size must be within 15 % of the fastest: out, in, and both at once."""
    async with block_sizes(FRAMES, options) as sizes:
        seen = await take_turns(sizes.sides, options)
    return [_figure(what, values, unit) for what, (unit, values) in sizes.rates(seen).items()]


def _figure(name: str, series: dict[int, list[float]], unit: str) -> Figure:
    """The slowest against the fastest, by their medians over all rounds: within a round it would
    measure the noise."""
    middle = medians({str(rows): values for rows, values in series.items()})
    worst, best = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    note = f"{unit} by block_rows; slowest {worst}, fastest {best}"
    return Figure(
        f"block sizes: {name}, slowest / fastest",
        (middle[worst] / middle[best],),
        "x",
        TARGET,
        note,
        middle,
    )
