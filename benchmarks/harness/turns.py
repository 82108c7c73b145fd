"""Taking turns: the sides of a comparison are measured one after the other, so that drift hits all
of them alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import number
from benchmarks.harness.options import Options, Progress

Side = Callable[[], Awaitable[float]]


async def take_turns(
    sides: Mapping[str, Side], options: Options, say: Progress = progress
) -> dict[str, list[float]]:
    """Measure every side once a round, forwards and backwards in turn; the values of each."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            values[name].append(await options.patience.measure(sides[name]))
            say(f"round {turn + 1}/{options.rounds}  {name}: {number(values[name][-1])}")
    return values
