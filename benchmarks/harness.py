"""Rounds, medians, targets, the table and the JSON: what every benchmark here has in common.

Rule: machines differ and are noisy, so nothing is judged by an absolute time alone. The sides of a comparison
take turns within one run, each round gives one ratio, and the median of the rounds is what the target is held to.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from areplay.measures.machine import machine
from areplay.measures.measurement import number
from areplay.measures.options import Options as Lengths
from areplay.measures.turns import Side, in_turns
from benchmarks.clocks import progress
from benchmarks.quiet import Patience


@dataclass(frozen=True)
class Options(Lengths):
    """How long and how large a run is."""

    rounds: int = 9
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    picture: str | None = None  # where queue_fill draws, if it is to draw


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
    """Measure every side once a round, as `in_turns` does, with patience."""
    patient = {name: partial(options.patience.measure, side) for name, side in sides.items()}
    return await in_turns(patient, options.rounds, progress)


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Round by round, so that a slow minute of the machine touches both sides of a ratio."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(series) for name, series in values.items()}


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
