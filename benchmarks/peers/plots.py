"""Plots of the same figures as the page: for each work and peer a dot for areplay and one for the
peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import PEERS
from benchmarks.peers.pairs import MEMORY
from benchmarks.peers.protocol import FLAT, STEPS
from benchmarks.peers.report import pairs_of
from benchmarks.peers.results import figure
from benchmarks.peers.works import WORKS

OURS, THEIRS, LINE = "#1b6ca8", "#d1703c", "#c8c8c8"
PANELS = {
    "cartpole": "CartPole rows, 45 B",
    "atari": "Atari rows, 28 kB",
    "flashbax": "32x32x3 frames, 3 kB",
    "apex": "Ape-X: 28 kB, prioritised",
}
Value = Callable[[Mapping[str, Any], str], float | None]


def write(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Draw all plots; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    throughput = [
        (
            f"{words}",
            lambda pair, side, cell=f"{count}/{FLAT}": _figure(pair, cell, side, "batches_per_s"),
        )
        for count, words in ((0, "alone"), (1, "1 producer"), (2, "2 producers"))
    ]
    wait = [
        (
            f"{words}",
            lambda pair, side, cell=cell, quantity=quantity: _figure(pair, cell, side, quantity),
        )
        for words, cell, quantity in (
            ("alone, p50", f"0/{STEPS}", "p50_us"),
            ("1 producer, p50", f"1/{STEPS}", "p50_us"),
            ("1 producer, p99", f"1/{STEPS}", "p99_us"),
        )
    ]
    cost = [
        (
            "CPU s per million rows",
            lambda pair, side: _figure(pair, f"1/{FLAT}", side, "cpu_s_per_million_rows"),
        ),
        (
            "memory, GB",
            lambda pair, side: _scaled(_figure(pair, f"1/{MEMORY}", side, "memory_bytes"), 1e-9),
        ),
    ]
    return [
        _draw(
            folder / "peers-throughput.png",
            results,
            "Batches each second, the learner flat out (right is better)",
            throughput,
        ),
        _draw(
            folder / "peers-wait.png",
            results,
            "The learner's wait behind steps of 5 ms, in us (left is better)",
            wait,
        ),
        _draw(
            folder / "peers-cost.png",
            results,
            "What it costs, with one producer (left is better)",
            cost,
            is_one_unit=False,
        ),
    ]


def _figure(pair: Mapping[str, Any], cell: str, side: str, quantity: str) -> float | None:
    return None if cell not in pair["cells"] else figure(pair["cells"][cell], side, quantity)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _draw(
    path: Path,
    results: Mapping[str, Any],
    title: str,
    series: Sequence[tuple[str, Value]],
    is_one_unit: bool = True,
) -> Path:
    """A row of panels for each work, a column for each series; in each a line for each peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    works = [work for work in WORKS if any(True for _ in pairs_of(work, results))]
    rows = max(1, len(works))
    canvas, axes = pyplot.subplots(
        rows,
        len(series),
        figsize=(3.6 * len(series) + 1.2, 1.85 * rows + 0.9),
        squeeze=False,
        layout="constrained",
        sharex="row" if is_one_unit else False,
    )
    for row, work in enumerate(works):
        pairs = dict(pairs_of(work, results))
        for column, (heading, value) in enumerate(series):
            axis = axes[row][column]
            axis.set_xscale("log")
            for line, pair in enumerate(pairs.values()):
                _dumbbell(axis, line, value(pair, "areplay"), value(pair, "peer"))
            if row == 0:
                axis.set_title(heading, fontsize=10)
            if column == 0:
                axis.set_ylabel(PANELS[work], fontsize=9, labelpad=8)
        # when all dots are there, as panels may share their limits
        for column, axis in enumerate(axes[row]):
            _dress(
                axis, [PEERS[peer].title for peer in pairs] if column == 0 else [""] * len(pairs)
            )
    marks = [
        pyplot.Line2D([], [], marker="o", linestyle="", color=color, label=label)
        for color, label in ((OURS, "areplay"), (THEIRS, "the peer, measured in turns with it"))
    ]
    canvas.align_ylabels()
    canvas.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    canvas.suptitle(title, fontsize=11)
    canvas.savefig(path, dpi=130)
    pyplot.close(canvas)
    return path


def _dumbbell(axis: Any, line: int, ours: float | None, theirs: float | None) -> None:
    """Two dots and what is between them; nothing where there is no figure."""
    if not ours or not theirs:
        axis.annotate(
            "no figure",
            (0.5, line),
            xycoords=axis.get_yaxis_transform(),
            color="#8a8a8a",
            fontsize=8,
            ha="center",
            va="center",
        )
        return
    axis.plot([ours, theirs], [line, line], color=LINE, linewidth=2.5, zorder=1)
    axis.scatter([theirs], [line], color=THEIRS, s=34, zorder=2)
    axis.scatter([ours], [line], color=OURS, s=34, zorder=3)


def _dress(axis: Any, names: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_xlim()
    middle = (low * high) ** 0.5
    # less than a decade looks like more than it is
    axis.set_xlim(min(low, middle / 4), max(high, middle * 4))
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 3.0)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e4 else f"{value / 1e3:,g}k")
    )
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", color="#ececec", which="major")
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
