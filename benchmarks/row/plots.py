"""Plots of measurements, with matplotlib; it comes with the extra `bench`, and is imported when
something is drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.figures import micros, number
from benchmarks.harness.panels import Measurement, Panel

INK, GREY, PALE = "#1f2933", "#7b8794", "#cbd2d9"
COLOURS = ("#1b7f79", "#d9922e", "#c8553d", "#5b6abf", "#8a6d9b")
PANEL_WIDTH, HEIGHT, HEAD, LINE = 6.0, 4.0, 0.5, 0.2  # inches
BINS = 60


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(measurement: Measurement, path: Path) -> None:
    """Write the panels of a measurement, side by side, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(measurement.panels)
    title = _wrapped(measurement.title, 58 * count)
    width, head = PANEL_WIDTH * count, HEAD + LINE * title.count("\n")
    layout = ConstrainedLayoutEngine(rect=(0.01, 0.01, 0.98, 0.99 - head / HEIGHT), wspace=0.06)
    figure = Figure(figsize=(width, HEIGHT), dpi=144, layout=layout)
    FigureCanvasAgg(figure)
    for panel, axes in zip(
        measurement.panels, figure.subplots(1, count, squeeze=False)[0], strict=True
    ):
        _draw_panel(panel, axes)
    figure.text(
        0.2 / width, 1 - 0.12 / HEIGHT, title, color=INK, fontsize=12, fontweight="bold", va="top"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_panel(panel: Panel, axes: Any) -> None:
    has_legend = panel.kind == "lines" and len(panel.series) > 1
    axes.set_title(
        _wrapped(panel.title, 75), loc="left", color=GREY, fontsize=10, pad=28 if has_legend else 10
    )
    if panel.is_log:
        axes.set_xscale("log")
    {"lines": _lines, "steps": _steps, "bars": _bars, "histogram": _histogram}[panel.kind](
        panel, axes
    )
    if panel.kind != "histogram":
        _scale_y(panel, axes)
    if panel.ticks:
        axes.set_xticks([at for at, _ in panel.ticks], [label for _, label in panel.ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(panel.x, color=GREY)
    axes.set_ylabel(panel.y, color=GREY)
    axes.grid(axis="y", color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=GREY, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if has_legend:  # between title and axes, where no line can be
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.98),
            ncols=4,
            frameon=False,
            labelcolor=INK,
            fontsize=9,
        )


def _lines(panel: Panel, axes: Any) -> None:
    for series, colour in zip(panel.series, COLOURS, strict=False):
        marker = "o" if len(series.x) <= 12 else ""
        axes.plot(series.x, series.y, color=colour, linewidth=2.2, marker=marker, label=series.name)


def _steps(panel: Panel, axes: Any) -> None:
    """One with its area; several, which are the same again, over one another."""
    for series in panel.series:
        if len(panel.series) == 1:
            axes.fill_between(
                series.x, series.y, step="post", color=COLOURS[0], alpha=0.22, linewidth=0
            )
        opacity = 1.0 if len(panel.series) == 1 else 0.6
        axes.step(series.x, series.y, where="post", color=COLOURS[0], linewidth=1.6, alpha=opacity)
    axes.set_xlim(0, max(series.x[-1] for series in panel.series))


def _bars(panel: Panel, axes: Any) -> None:
    (series,) = panel.series
    axes.bar(series.x, series.y, width=0.55, color=COLOURS[0])
    for x, y in zip(series.x, series.y, strict=True):
        axes.text(x, y, number(y), ha="center", va="bottom", color=INK, fontsize=9.5)
    axes.set_xlim(-0.6, len(series.x) - 0.4)


def _histogram(panel: Panel, axes: Any) -> None:
    """Counts over logarithmic bins of microseconds, with the marks as lines and their labels above
    one another."""
    values = np.maximum(np.concatenate([series.y for series in panel.series]), 0.1)
    low, high = values.min() / 1.3, values.max() * 1.3
    axes.hist(values, bins=np.geomspace(low, high, BINS), color=COLOURS[0], alpha=0.75)
    axes.set_xlim(low, high)
    bottom, top = 0.0, axes.get_ylim()[1] * (1 + 0.12 * len(panel.marks))
    axes.set_ylim(bottom, top)
    for place, (at, label) in enumerate(panel.marks):
        height = 1 - 0.09 * place
        is_right = np.log(at / low) > 0.6 * np.log(high / low)
        axes.plot(
            [at, at],
            [bottom, top * (height - 0.02)],
            color=INK,
            linewidth=0.9,
            linestyle=(0, (3, 3)),
        )
        axes.annotate(
            label,
            (at, top * height),
            xytext=(-3 if is_right else 3, 0),
            textcoords="offset points",
            ha="right" if is_right else "left",
            va="top",
            color=INK,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    ticks = [10.0**power for power in range(-1, 9) if low <= 10.0**power <= high]
    if len(ticks) < 2:
        ticks = list(np.geomspace(low * 1.1, high / 1.1, 3))
    axes.set_xticks(ticks, [micros(tick).replace(".00", "").replace(".0", "") for tick in ticks])
    axes.set_xticks([], minor=True)


def _scale_y(panel: Panel, axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    if panel.top is not None:
        axes.set_ylim(-0.04 * panel.top, 1.08 * panel.top)
        axes.set_yticks([0, panel.top / 2, panel.top], ["0", "½", "1"] if panel.top == 1 else None)
    else:
        top = max(1e-9, *(max(series.y) for series in panel.series))
        axes.set_ylim(0 if panel.kind == "bars" else -0.02 * top, 1.12 * top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _wrapped(text: str, width: int) -> str:
    """Lines of about that many letters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
