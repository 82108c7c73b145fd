"""What you see of the CartPole example: the live display while it learns, and the picture afterwards.

`Progress` collects what they show. Nothing here knows how the agent learns. rich and matplotlib are imported where they
are needed, because the actor processes import this file too.
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

LOOK_S = 0.02  # from one look at the statistics to the next
LIVE_S, PLAIN_S = 0.2, 1.0  # from one refresh of the display, from one plain line, to the next
RATE_S = 1.0  # the time over which rates are taken
TOP_RETURN = 500  # CartPole cuts an episode here

GREEDY_COLOUR, QUEUE_COLOUR, GREY = "#d1495b", "#2a6f97", "#8d99ae"
ACTOR_COLOURS = ("#2a9d8f", "#e9a03b", "#7b5ea7", "#577590")


@dataclass(frozen=True, slots=True)
class Look:
    """The state of things at one moment."""

    time_s: float
    rows: int
    batches: int
    ready: int
    prefetch: int
    weight_version: int


class Progress:
    """All that happened since the start. Times are seconds since then."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.looks = [Look(0.0, 0, 0, 0, 1, 0)]
        self.tests: list[tuple[float, float]] = []
        self.episodes: dict[int, list[tuple[float, float]]] = {}
        self.epsilons: dict[int, float] = {}
        self._started_s = time.time()  # the clock of areplay.Report, which all processes share

    def seconds(self) -> float:
        """Since the start."""
        return time.time() - self._started_s

    def note_test(self, mean_return: float) -> None:
        """The network has played alone."""
        self.tests.append((self.seconds(), mean_return))

    def note_episode(self, report: areplay.Report) -> None:
        """An actor has finished an episode and reported its return, and its share of random actions."""
        episode = report.time_s - self._started_s, float(report.values["episode_return"])
        self.episodes.setdefault(report.actor, []).append(episode)
        self.epsilons[report.actor] = float(report.values["epsilon"])

    def wants_look(self) -> bool:
        """Whether the last look is long enough ago."""
        return self.seconds() - self.looks[-1].time_s >= LOOK_S

    def note_look(self, statistics: areplay.Statistics, weight_version: int) -> None:
        """Keep what the replay and the queue look like now."""
        queue = statistics.batches[0]
        self.looks.append(
            Look(
                self.seconds(),
                statistics.rows_inserted,
                queue.batches_delivered,
                queue.ready,
                queue.prefetch,
                weight_version,
            )
        )

    @property
    def greedy_return(self) -> float:
        """Mean of the last test, 0 before the first."""
        return self.tests[-1][1] if self.tests else 0.0

    def mean_return(self, actor: int, episodes: int = 10) -> float:
        """Of an actor's last few episodes."""
        return float(np.mean([episode_return for _, episode_return in self.episodes[actor][-episodes:]]))

    def rates(self) -> tuple[float, float]:
        """Rows/s in and batches/s out over the last second."""
        now = self.looks[-1]
        then = next((look for look in reversed(self.looks) if now.time_s - look.time_s >= RATE_S), self.looks[0])
        elapsed_s = max(now.time_s - then.time_s, LOOK_S)
        return (now.rows - then.rows) / elapsed_s, (now.batches - then.batches) / elapsed_s

    def left(self) -> str:
        """The time until the step limit at the rate so far; it is over sooner when the agent is good enough."""
        first, now = self.looks[1], self.looks[-1]
        if now.time_s - first.time_s < RATE_S:
            return "learning has begun"
        batches_per_s = (now.batches - first.batches) / (now.time_s - first.time_s)
        return f"at most {(self.max_steps - now.batches) / max(batches_per_s, 1):.0f} s left"


# ------------------------------------------------------------------------------------------------------- display


@contextmanager
def display(progress: Progress, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function that shows the progress, as often as is good: a live panel in a terminal, plain lines elsewhere."""
    if quiet:
        yield lambda: None
    elif not sys.stdout.isatty():
        yield _every(PLAIN_S, lambda: print(_line(progress), flush=True))
    else:
        from rich.live import Live

        with Live("The processes start.", auto_refresh=False) as live:
            yield _every(LIVE_S, lambda: live.update(_panel(progress), refresh=True))
            live.update(_panel(progress), refresh=True)  # how it ended


def _every(period_s: float, show: Callable[[], None]) -> Callable[[], None]:
    due_s = 0.0

    def show_if_due() -> None:
        nonlocal due_s
        if time.perf_counter() >= due_s:
            due_s = time.perf_counter() + period_s
            show()

    return show_if_due


def _line(progress: Progress) -> str:
    look, (rows_per_s, batches_per_s) = progress.looks[-1], progress.rates()
    returns = " ".join(f"{progress.mean_return(actor):.0f}" for actor in sorted(progress.episodes))
    return (
        f"{look.time_s:4.0f} s  return greedy {progress.greedy_return:.0f}, actors {returns}"
        f" | {rows_per_s:,.0f} rows/s in | {batches_per_s:,.0f} batches/s out | queue {look.ready}/{look.prefetch}"
        f" | weights {look.weight_version} | {progress.left()}"
    )


def _panel(progress: Progress) -> Panel:
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    look, (rows_per_s, batches_per_s) = progress.looks[-1], progress.rates()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=16)
    table.add_column(justify="right", min_width=9)
    table.add_column(min_width=32)

    def add(name: str, value: str, note: object = "") -> None:
        table.add_row(name, value, note if isinstance(note, ProgressBar) else str(note))

    def bar(completed: float, total: float, colour: str) -> ProgressBar:
        return ProgressBar(total=total, completed=completed, width=32, complete_style=colour, finished_style=colour)

    add("greedy return", f"[bold]{progress.greedy_return:.0f}", _sparkline([mean for _, mean in progress.tests]))
    for actor in sorted(progress.episodes):
        mean_return, colour = progress.mean_return(actor), ACTOR_COLOURS[actor % len(ACTOR_COLOURS)]
        add(f"actor {actor} return", f"{mean_return:.0f}", bar(mean_return, TOP_RETURN, colour))
    add("prefetch queue", f"{look.ready}/{look.prefetch}", bar(look.ready, look.prefetch, QUEUE_COLOUR))
    add("rows in", f"{rows_per_s:,.0f}/s", f"[dim]{look.rows:,} so far")
    add("batches out", f"{batches_per_s:,.0f}/s", f"[dim]{look.batches:,} of at most {progress.max_steps:,}")
    add("weight version", f"{look.weight_version:,}")
    add("time", f"{look.time_s:.0f} s", f"[dim]{progress.left()}")
    return Panel(table, title="CartPole learns", border_style=GREY, expand=False)


def _sparkline(returns: Sequence[float], width: int = 32) -> str:
    return "".join("▁▂▃▄▅▆▇█"[min(int(value / TOP_RETURN * 8), 7)] for value in returns[-width:])


# ------------------------------------------------------------------------------------------------------- picture


def draw_picture(progress: Progress, path: Path, solved_return: float) -> None:
    """Write a PNG: the returns of tests and actors above, the prefetch queue's fill below, over one time axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")  # not pyplot: no window, no global state
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_returns(above, progress, solved_return)
    _draw_queue(below, progress)
    for axes in (above, below):
        axes.axvspan(0, progress.looks[1].time_s, color="#f1f3f6", zorder=0)
        axes.grid(axis="y", color="#e3e7ee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(color=GREY)
    below.text(0.02, 50, " processes\n start", color=GREY, fontsize=9, va="center")
    below.set_xlim(0, progress.looks[-1].time_s * 1.01)
    below.set_xlabel("time since the start [s]")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_returns(axes: Axes, progress: Progress, solved_return: float) -> None:
    for actor, episodes in sorted(progress.episodes.items()):
        times, returns = np.array(episodes).T
        colour, epsilon = ACTOR_COLOURS[actor % len(ACTOR_COLOURS)], progress.epsilons[actor]
        axes.plot(times, returns, ".", color=colour, markersize=3, markeredgewidth=0, alpha=0.3)
        centres, _, means, _ = _binned(times, returns, bins=30)
        axes.plot(centres, means, color=colour, linewidth=1.5, label=f"actor {actor}, random {epsilon:.0%} of the time")
    if progress.tests:
        times, returns = np.array(progress.tests).T
        axes.plot(times, returns, "o-", color=GREEDY_COLOUR, markersize=4, label="test, never random: mean of 20")
    axes.axhline(solved_return, color=GREY, linestyle=(0, (4, 4)), linewidth=1, label=f"solved at {solved_return:.0f}")
    axes.set_ylim(0, TOP_RETURN * 1.04)
    axes.set_ylabel("episode return [steps]")
    axes.set_title("CartPole-v1: how long the pole stays up", loc="left")
    axes.legend(loc="upper left", fontsize=9, edgecolor="none", framealpha=0.8)


def _draw_queue(axes: Axes, progress: Progress) -> None:
    looks = progress.looks[1:]
    times, fills = np.array([(look.time_s, 100 * look.ready / look.prefetch) for look in looks]).T
    centres, lows, means, highs = _binned(times, fills, bins=60)
    axes.fill_between(centres, lows, highs, color=QUEUE_COLOUR, alpha=0.2, linewidth=0, label="lowest to highest")
    axes.plot(centres, means, color=QUEUE_COLOUR, linewidth=1.5, label="mean")
    axes.set_ylim(0, 104)
    axes.set_ylabel("prefetch queue's fill [%]")
    axes.set_title(f"The queue from sampler to learner: {looks[-1].prefetch} batches when full", loc="left")
    axes.legend(loc="lower right", fontsize=9, frameon=False)


def _binned(times: Floats, values: Floats, bins: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Centres, lowest, mean and highest values of those of so many equal spans of time that hold any."""
    edges = np.linspace(times[0], times[-1], bins + 1)
    spans = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, bins - 1)
    held, starts, counts = np.unique(spans, return_index=True, return_counts=True)  # times only grow: a span is a run
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return (edges[held] + edges[held + 1]) / 2, lows, np.add.reduceat(values, starts) / counts, highs
