"""Rounds, medians, targets, the table and the JSON: what every benchmark here has in common.

Rule: machines differ and are noisy, so nothing is judged by an absolute time alone. The sides of a
comparison take turns within one run, each round gives one ratio, and the median of the rounds is
what the target is held to.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.harness.machine import machine
from benchmarks.harness.options import Options


@dataclass(frozen=True)
class Target:
    """A bound that a figure must keep: `Target(">=", 0.9)`."""

    sign: str
    bound: float

    def missed_by(self, value: float) -> float:
        """How far the value is on the wrong side, as a fraction of the bound; 0.0 when it is
        met."""
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
    # the medians that the value was made of
    beside: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, value: float, unit: str, note: str = "") -> Figure:
        """A figure of one value. `unit` is a word that follows it, "" for a plain number or a
        share."""
        return cls(name, (value,), unit, note=note)

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
        return (
            "met"
            if missed == 0
            else f"missed by {max(0.1, 100 * missed):.{0 if missed > 0.1 else 1}f} %"
        )

    def __str__(self) -> str:
        return f"{number(self.value)} {self.unit}".rstrip()

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


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Round by round, so that a slow minute of the machine touches both sides of a ratio."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(series) for name, series in values.items()}


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned plain text."""
    lines: list[tuple[str, ...]] = [
        ("what", "median", "lowest", "highest", "target", "verdict", "made of")
    ]
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


def summary(figures: Sequence[Figure]) -> list[str]:
    """Lines that say which targets were met, and by how much the others were missed."""
    held = [figure for figure in figures if figure.target is not None]
    unmet = [figure for figure in held if figure.verdict != "met"]
    lines = [f"{len(held) - len(unmet)} of {len(held)} targets met"]
    for figure in unmet:
        lines.append(
            f"  {figure.verdict}: {figure.name}: {figure}, target {figure.target} "
            f"{figure.unit}".rstrip()
        )
    return lines


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(width) if column in (1, 2, 3) else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=False))
    ]
    return "  ".join([*cells, line[6]]).rstrip()


def write_json(
    path: Path, figures: Sequence[Figure], options: Options, others: Mapping[str, float]
) -> None:
    """Write the figures, what they were measured with, and on what; `others` is the foreign load of
    each benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "cores_busy_with_others": dict(others),
        "options": options.record(),
        "figures": [figure.record() for figure in figures],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


def percentile_of(values: Sequence[float], percentile: float) -> float:
    """What so many percent of the values do not exceed."""
    return float(np.percentile(values, percentile))


def micros(us: float) -> str:
    """Microseconds as a human says them: 31 µs, 1.2 ms, 3 s."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{number(us / size)} {unit}"
    return f"{number(us)} µs"


def number(value: float) -> str:
    """A figure with three or four digits that mean something: 0.0123, 1.23, 12.3, 123, 12,345."""
    if math.isnan(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
