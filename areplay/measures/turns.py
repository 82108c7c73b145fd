"""Taking turns: the sides of a comparison are measured one after the other, so that drift hits all of them alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from areplay.measures.measurement import number
from areplay.measures.options import Progress

Side = Callable[[], Awaitable[float]]


async def in_turns(sides: Mapping[str, Side], rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Measure every side once a round, forwards and backwards in turn; the values of each."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            values[name].append(await sides[name]())
            progress(f"round {turn + 1}/{rounds}  {name}: {number(values[name][-1])}")
    return values
