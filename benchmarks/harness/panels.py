"""What a measurement found, as plain data: figures, panels to plot, and notes on what was left out.

Knows neither how it was measured nor how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.harness.figures import Figure, micros, percentile_of

Kind = Literal["lines", "steps", "bars", "histogram"]


@dataclass(frozen=True)
class Series:
    """Points of one colour: `x` and `y` of the same length. A histogram has only `y`, bars count
    `x` from 0."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        ticks: where `x` has labels of its own, such as the names of bars: place -> label.
        marks: values of `x` that are drawn as lines, with a label.
        is_log: whether `x` is drawn by its logarithm.
        top: what `y` reaches at least; None for what there is.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    kind: Kind = "lines"
    ticks: tuple[tuple[float, str], ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
    is_log: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Measurement:
    """What one measurement found out about one kind of rows.

    Attributes:
        title: what was done, in a sentence.
        notes: what a reader must know beside the figures, what was left out first of all.
    """

    name: str
    rows: str
    title: str
    figures: tuple[Figure, ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        return asdict(self) | {"figures": [figure.record() for figure in self.figures]}


def waits_panel(waits_us: Sequence[float], title: str) -> Panel:
    """How the waits of a learner are distributed, with those that 50, 99 and 100 % of its steps did
    not exceed."""
    marks = tuple(
        (percentile_of(waits_us, q), name) for q, name in ((50, "p50"), (99, "p99"), (100, "max"))
    )
    marks = tuple((value, f"{name} {micros(value)}") for value, name in marks)
    series = Series("waits", (), tuple(waits_us))
    return Panel(title, "wait", "steps", (series,), "histogram", marks=marks, is_log=True)
