"""Rounds, medians, targets, the table and the JSON: what every benchmark here has in common.

Rule: machines differ and are noisy, so nothing is judged by an absolute time alone. The sides of a comparison
take turns within one run, each round gives one ratio, and the median of the rounds is what the target is held to.
Nothing here knows areplay.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.clocks import progress
from benchmarks.quiet import Patience

Side = Callable[[], Awaitable[float]]


@dataclass(frozen=True)
class Options:
    """How long and how large a run is."""

    rounds: int = 9
    capacity: int = 100_000
    seconds: float = 1.5  # measured, each side and round
    settle_s: float = 0.5  # thrown away before that, each side and round
    warmup_s: float = 3.0  # thrown away once: a fresh sampler first has to map the pages it reads
    steps: int = 600  # of the learner that blocks, each round
    learner_s: float = 0.005
    rows_per_s: int = 20_000  # coming in beside that learner
    prefetch: int = 16
    batch_size: int = 256
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    picture: str | None = None  # where queue_fill draws, if it is to draw

    @classmethod
    def quick(cls) -> Options:
        """Everything once and tiny: shows that the code runs, measures nothing."""
        return cls(rounds=1, capacity=2_048, seconds=0.1, settle_s=0.02, warmup_s=0.05, steps=10, prefetch=4)


@dataclass(frozen=True)
class Target:
    """A bound that a figure must keep: `Target(">=", 0.9)`."""

    sign: str
    bound: float

    def missed_by(self, value: float) -> float:
        """How far the value is on the wrong side, as a fraction of the bound; 0.0 when it is met."""
        if math.isnan(value):
            return math.inf
        short = self.bound - value if self.sign == ">=" else value - self.bound
        return max(0.0, short / self.bound)

    def __str__(self) -> str:
        return f"{self.sign} {number(self.bound)}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value each round, and the bound their median is held to."""

    name: str
    rounds: tuple[float, ...]
    unit: str = "x"
    target: Target | None = None
    note: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)  # the medians that the value was made of

    @property
    def value(self) -> float:
        """The median of the rounds; nan when nothing could be measured."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def verdict(self) -> str:
        """`met`, `missed by 12 %`, `not measured`, or nothing for a line without a target."""
        if not self.rounds:
            return "not measured"
        if self.target is None:
            return ""
        missed = self.target.missed_by(self.value)
        return "met" if missed == 0 else f"missed by {max(0.1, 100 * missed):.{0 if missed > 0.1 else 1}f} %"

    def record(self) -> dict[str, object]:
        """The line for the JSON file."""
        return {
            "name": self.name,
            "value": None if math.isnan(self.value) else self.value,
            "unit": self.unit,
            "target": None if self.target is None else str(self.target),
            "verdict": self.verdict,
            "rounds": list(self.rounds),
            "beside": dict(self.beside),
            "note": self.note,
        }


async def take_turns(sides: Mapping[str, Side], options: Options) -> dict[str, list[float]]:
    """Measure every side once a round, forwards and backwards in turn so that drift hits all of them alike."""
    rounds = options.rounds
    values: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            values[name].append(await options.patience.measure(sides[name]))
            progress(f"round {turn + 1}/{rounds}  {name}: {number(values[name][-1])}")
    return values


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Round by round, so that a slow minute of the machine touches both sides of a ratio."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(series) for name, series in values.items()}


def number(value: float) -> str:
    """A figure with three or four digits that mean something: 0.0123, 1.23, 12.3, 123, 12,345."""
    if math.isnan(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned plain text."""
    lines: list[tuple[str, ...]] = [("what", "median", "lowest", "highest", "target", "verdict", "made of")]
    for figure in figures:
        spread = (min(figure.rounds), max(figure.rounds)) if figure.rounds else (math.nan, math.nan)
        parts = "; ".join(f"{name} {number(value)}" for name, value in figure.beside.items())
        lines.append(
            (
                figure.name,
                f"{number(figure.value)} {figure.unit}",
                *(number(value) for value in spread),
                "" if figure.target is None else str(figure.target),
                figure.verdict,
                " | ".join(part for part in (parts, figure.note) if part),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    lines.insert(1, (*("-" * width for width in widths), "-------"))
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(width) if column in (1, 2, 3) else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=False))
    ]
    return "  ".join([*cells, line[6]]).rstrip()


def write_json(path: Path, figures: Sequence[Figure], options: Options, others: Mapping[str, float]) -> None:
    """Write the figures, what they were measured with, and on what; `others` is the foreign load of each benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "cores_busy_with_others": dict(others),
        "options": {name: getattr(options, name) for name in options.__dataclass_fields__ if name != "patience"},
        "figures": [figure.record() for figure in figures],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on, without naming the host."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "uvloop", "aiomultiprocess")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
