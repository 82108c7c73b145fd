"""What you see of an example: the live display while it learns, and the picture afterwards.

`Progress` collects what they show, `Chart` says what it is called. Nothing here knows how the agent
learns. rich and matplotlib are imported where they are needed, because the actor processes import
this file too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import areplay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.panel import Panel

Floats = NDArray[np.float64]

LOOK_S = 0.02  # from one look at the statistics to the next, at first
# then every other one is dropped, and they are taken half as often: a run may last all night
MAX_LOOKS = 20_000
LIVE_S, PLAIN_S = 0.2, 1.0  # from one refresh of the display, from one plain line, to the next
RATE_S = 1.0  # the time over which rates are taken
BAR_WIDTH = 32

TEST_COLOUR, QUEUE_COLOUR, GREY = "#d1495b", "#2a6f97", "#8d99ae"
SERIES_COLOURS = ("#2a9d8f", "#e9a03b", "#7b5ea7", "#577590")


@dataclass(frozen=True, slots=True)
class Chart:
    """What is shown, and what it is called."""

    name: str
    """Of the game."""
    title: str
    """Over the learning curve."""
    unit: str
    """Of the returns."""
    series: Sequence[str]
    """Names of the curves of actors' episodes, in the order of the numbers that come with their
    reports."""
    test: str
    """Name of the curve of tests."""
    returns: tuple[float, float] | None
    """Lowest and highest that there can be; if that is unknown, those that came are taken."""
    solved_return: float | None
    max_rows: int | None = None
    """After which it is over."""
    max_batches: int | None = None
    """After which it is over."""


@dataclass(frozen=True, slots=True)
class Look:
    """The state of things at one moment."""

    time_s: float
    rows: int
    batches: int
    ready: int
    prefetch: int
    weight_version: int

    @property
    def fill(self) -> float:
        """Of the prefetch queue."""
        return self.ready / self.prefetch


class Progress:
    """All that happened since the start. Times are seconds since then.

    Attributes:
        looks: the first is the start itself, the second when learning began.
        facts: more lines for the live panel: name, value and note.
    """

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        self.looks = [Look(0.0, 0, 0, 0, 1, 0)]
        self.tests: list[tuple[float, float]] = []
        self.episodes: dict[int, list[tuple[float, float]]] = {}
        self.facts: dict[str, tuple[str, str]] = {}
        self._look_s = LOOK_S
        self._started_s = time.time()  # the clock of areplay.Report, which all processes share

    def seconds(self) -> float:
        """Since the start."""
        return time.time() - self._started_s

    def note_test(self, mean_return: float) -> None:
        """The network has played alone."""
        self.tests.append((self.seconds(), mean_return))

    def note_episode(self, report: areplay.Report) -> None:
        """An actor has finished an episode, and reported its return and the series that it belongs
        to."""
        episode = report.time_s - self._started_s, float(report.values["episode_return"])
        self.episodes.setdefault(int(report.values["series"]), []).append(episode)

    def wants_look(self) -> bool:
        """Whether the last look is long enough ago."""
        return self.seconds() - self.looks[-1].time_s >= self._look_s

    def note_look(self, statistics: areplay.Statistics, weight_version: int) -> None:
        """Keep what the replay and the queue look like now."""
        queue = statistics.batches[0]
        delivered, prefetch = queue.batches_delivered, queue.prefetch
        # the one that a sampler is about to finish is none too many
        ready = min(queue.ready, prefetch)
        self.looks.append(
            Look(
                self.seconds(), statistics.rows_inserted, delivered, ready, prefetch, weight_version
            )
        )
        if len(self.looks) > MAX_LOOKS:
            del self.looks[2:-1:2]
            self._look_s *= 2

    @property
    def test_return(self) -> float | None:
        """Mean of the last test, if there was one."""
        return self.tests[-1][1] if self.tests else None

    @property
    def is_solved(self) -> bool:
        """Whether the last test says so."""
        solved_return = self.chart.solved_return
        return (
            solved_return is not None
            and self.test_return is not None
            and self.test_return >= solved_return
        )

    def mean_return(self, series: int, episodes: int = 10) -> float:
        """Of the last few episodes of a series."""
        return float(
            np.mean([episode_return for _, episode_return in self.episodes[series][-episodes:]])
        )

    def share_of(self, episode_return: float) -> float:
        """Where a return is between the lowest (0) and the highest (1)."""
        returns = [
            value for pairs in (self.tests, *self.episodes.values()) for _, value in pairs[-100:]
        ]
        lowest, highest = self.chart.returns or (min(returns), max(returns))
        return (episode_return - lowest) / max(highest - lowest, 1e-9)

    def rates(self, over_s: float = RATE_S) -> tuple[float, float]:
        """Rows/s in and batches/s out over the last second, or over so many; over all if that is
        infinity."""
        now = self.looks[-1]
        first = self.looks[min(1, len(self.looks) - 1)]
        then = next(
            (look for look in reversed(self.looks) if now.time_s - look.time_s >= over_s), first
        )
        elapsed_s = max(now.time_s - then.time_s, LOOK_S)
        return (now.rows - then.rows) / elapsed_s, (now.batches - then.batches) / elapsed_s

    def left(self) -> str:
        """The time until the limit at the rate so far; it is over sooner when the agent is good
        enough."""
        now = self.looks[-1]
        if now.time_s - self.looks[1].time_s < RATE_S:
            return "learning has begun"
        rows_per_s, batches_per_s = self.rates(over_s=np.inf)
        if self.chart.max_rows is not None:
            left_s = (self.chart.max_rows - now.rows) / max(rows_per_s, 1)
        else:
            left_s = ((self.chart.max_batches or 0) - now.batches) / max(batches_per_s, 1)
        return f"at most {_duration(max(left_s, 0))} left"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------------------------------ display


@contextmanager
def display(progress: Progress, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function that shows the progress, as often as is good: a live panel in a terminal, plain
    lines elsewhere."""
    if quiet:
        yield lambda: None
    elif not sys.stdout.isatty():
        yield _every(PLAIN_S, lambda: print(line(progress), flush=True))
    else:
        from rich.live import Live

        with Live("The processes start.", auto_refresh=False) as live:
            yield _every(LIVE_S, lambda: live.update(panel(progress), refresh=True))
            live.update(panel(progress), refresh=True)  # how it ended


def _every(period_s: float, show: Callable[[], None]) -> Callable[[], None]:
    due_s = 0.0

    def show_if_due() -> None:
        nonlocal due_s
        if time.perf_counter() >= due_s:
            due_s = time.perf_counter() + period_s
            show()

    return show_if_due


def line(progress: Progress) -> str:
    """All in one line."""
    look, (rows_per_s, batches_per_s) = progress.looks[-1], progress.rates()
    test_return = "-" if progress.test_return is None else f"{progress.test_return:.0f}"
    returns = (
        " ".join(f"{progress.mean_return(series):.0f}" for series in sorted(progress.episodes))
        or "-"
    )
    return (
        f"{look.time_s:4.0f} s  return test {test_return}, actors {returns}"
        f" | {rows_per_s:,.0f} rows/s in | {batches_per_s:,.0f} batches/s out | queue "
        f"{look.ready}/{look.prefetch} | weights {look.weight_version} | {progress.left()}"
    )


def panel(progress: Progress) -> Panel:
    """All in a panel of rich."""
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    look, (rows_per_s, batches_per_s) = progress.looks[-1], progress.rates()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=16)
    table.add_column(justify="right", min_width=9)
    table.add_column(min_width=BAR_WIDTH)

    def bar(share: float, colour: str) -> ProgressBar:
        share = min(max(share, 0.0), 1.0)
        return ProgressBar(
            total=1.0,
            completed=share,
            width=BAR_WIDTH,
            complete_style=colour,
            finished_style=colour,
        )

    shares = [progress.share_of(mean_return) for _, mean_return in progress.tests]
    test_return = "" if progress.test_return is None else f"[bold]{progress.test_return:.0f}"
    table.add_row("test return", test_return, sparkline(shares))
    for series, name in enumerate(progress.chart.series):
        if series in progress.episodes:
            mean_return, colour = (
                progress.mean_return(series),
                SERIES_COLOURS[series % len(SERIES_COLOURS)],
            )
            table.add_row(name, f"{mean_return:.0f}", bar(progress.share_of(mean_return), colour))
    table.add_row("prefetch queue", f"{look.ready}/{look.prefetch}", bar(look.fill, QUEUE_COLOUR))
    table.add_row(
        "rows in", f"{rows_per_s:,.0f}/s", f"[dim]{_so_far(look.rows, progress.chart.max_rows)}"
    )
    table.add_row(
        "batches out",
        f"{batches_per_s:,.0f}/s",
        f"[dim]{_so_far(look.batches, progress.chart.max_batches)}",
    )
    table.add_row("weight version", f"{look.weight_version:,}")
    for name, (value, note) in progress.facts.items():
        table.add_row(name, value, f"[dim]{note}")
    table.add_row("time", _duration(look.time_s), f"[dim]{progress.left()}")
    return Panel(table, title=f"{progress.chart.name} learns", border_style=GREY, expand=False)


def _so_far(count: int, limit: int | None) -> str:
    return f"{count:,} so far" if limit is None else f"{count:,} of at most {limit:,}"


def sparkline(shares: Sequence[float]) -> str:
    """The last of some numbers from 0 to 1, as small columns."""
    return "".join("▁▂▃▄▅▆▇█"[min(max(int(share * 8), 0), 7)] for share in shares[-BAR_WIDTH:])


# ------------------------------------------------------------------------------------------ picture


def draw_picture(progress: Progress, path: Path) -> None:
    """Write a PNG: the returns of tests and actors above, the prefetch queue's fill below, over one
    time axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")  # not pyplot: no window, no global state
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_returns(above, progress)
    _draw_queue(below, progress)
    for axes in (above, below):
        axes.axvspan(0, progress.looks[1].time_s, color="#f1f3f6", zorder=0)
        axes.grid(axis="y", color="#e3e7ee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(color=GREY)
    below.text(0.02, 50, " before\n learning", color=GREY, fontsize=9, va="center")
    ends_s = [progress.looks[-1].time_s, *(time_s for time_s, _ in progress.tests[-1:])]
    below.set_xlim(0, max(ends_s) * 1.01)
    below.set_xlabel("time since the start [s]")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_returns(axes: Axes, progress: Progress) -> None:
    chart = progress.chart
    for series, episodes in sorted(progress.episodes.items()):
        times, returns = np.array(episodes).T
        colour = SERIES_COLOURS[series % len(SERIES_COLOURS)]
        axes.plot(times, returns, ".", color=colour, markersize=3, markeredgewidth=0, alpha=0.3)
        centres, _, means, _ = _binned(times, returns, bins=30)
        axes.plot(centres, means, color=colour, linewidth=1.5, label=chart.series[series])
    if progress.tests:
        times, returns = np.array(progress.tests).T
        axes.plot(times, returns, "o-", color=TEST_COLOUR, markersize=4, label=chart.test)
    if chart.solved_return is not None:
        label = f"solved at {chart.solved_return:.0f}"
        axes.axhline(
            chart.solved_return, color=GREY, linestyle=(0, (4, 4)), linewidth=1, label=label
        )
    if chart.returns is not None:
        lowest, highest = chart.returns
        margin = 0.04 * (highest - lowest)
        axes.set_ylim(lowest - margin if lowest < 0 else 0, highest + margin)
    axes.set_ylabel(f"episode return [{chart.unit}]")
    axes.set_title(chart.title, loc="left")
    if axes.lines:
        axes.legend(loc="upper left", fontsize=9, edgecolor="none", framealpha=0.8)


def _draw_queue(axes: Axes, progress: Progress) -> None:
    looks = progress.looks[1:]
    times, fills = np.array([(look.time_s, 100 * look.fill) for look in looks]).T
    centres, lows, means, highs = _binned(times, fills, bins=60)
    axes.fill_between(
        centres, lows, highs, color=QUEUE_COLOUR, alpha=0.2, linewidth=0, label="lowest to highest"
    )
    axes.plot(centres, means, color=QUEUE_COLOUR, linewidth=1.5, label="mean")
    axes.set_ylim(0, 104)
    axes.set_ylabel("prefetch queue's fill [%]")
    axes.set_title(
        f"The queue from sampler to learner: {looks[-1].prefetch} batches when full", loc="left"
    )
    axes.legend(loc="lower right", fontsize=9, frameon=False)


def _binned(times: Floats, values: Floats, bins: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Centres, lowest, mean and highest values of those of so many equal spans of time that hold
    any."""
    order = np.argsort(times, kind="stable")  # reports of several processes may come out of turn
    times, values = times[order], values[order]
    edges = np.linspace(times[0], times[-1], bins + 1)
    spans = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, bins - 1)
    # times only grow: a span is a run
    held, starts, counts = np.unique(spans, return_index=True, return_counts=True)
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return (
        (edges[held] + edges[held + 1]) / 2,
        lows,
        np.add.reduceat(values, starts) / counts,
        highs,
    )
