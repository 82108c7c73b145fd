"""The picture: how full the queue is over time, for the two lock designs and for areplay, behind
the same learner.

`python -m benchmarks.queue_fill [PATH]` measures and draws it; `python -m benchmarks queue_fill`
does too.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import areplay
from benchmarks.bare import touched
from benchmarks.baselines import BLOCK_LOCKS, ONE_LOCK, Design, running
from benchmarks.flows import loaded
from benchmarks.harness.clocks import progress
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options
from benchmarks.learners import WaitLog, blocked_learner
from benchmarks.memory import SharedColumns
from benchmarks.pipeline_learners import PipelineLog, blocked_pipeline
from benchmarks.workloads import FRAMES

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "queue_fill.png"
SHOWN_S = 5.0
ZOOM_S = 0.1
INK, GREY, PALE = "#1f2933", "#7b8794", "#cbd2d9"
COLOURS = {ONE_LOCK.name: "#c8553d", BLOCK_LOCKS.name: "#d9922e", "areplay": "#1b7f79"}


async def run(options: Options) -> list[Figure]:
    """Measure the three designs and draw the picture; the figures are the mean fills."""
    logs = await measure(options)
    if options.picture is not None:
        draw(logs, options, Path(options.picture))
    return [
        Figure(
            f"queue fill behind 5 ms steps: {name}",
            (sum(log.fill) / len(log.fill),),
            "",
            beside={"steps/s": log.steps_per_s, "wait p50, us": log.wait_us(50)},
        )
        for name, log in logs.items()
    ]


async def measure(options: Options) -> dict[str, WaitLog]:
    """One run of each design: the learner starts when the queue is as full as it gets."""
    options = replace(options, steps=min(options.steps * 2, round(SHOWN_S / options.learner_s)))
    with touched(FRAMES, options.capacity) as place:
        logs = {design.name: _design(design, place, options) for design in (ONE_LOCK, BLOCK_LOCKS)}
    logs["areplay"] = await _areplay(options)
    return logs


def _design(design: Design, place: SharedColumns, options: Options) -> WaitLog:
    seconds = options.steps * options.learner_s
    with running(design, FRAMES, place, options, seconds + options.warmup_s) as pipeline:
        pipeline.wait_full(options.warmup_s)
        log = blocked_pipeline(pipeline, options, seconds)
    progress(f"{design.name}: {log.steps_per_s:.0f} steps/s, waits {log.wait_us(50):,.0f} us")
    return log


async def _areplay(options: Options) -> WaitLog:
    async with loaded(FRAMES, options) as (replay, batches, _):
        await blocked_learner(replay, batches, options, options.steps // 2)
        log = await blocked_learner(replay, batches, options)
    progress(f"areplay: {log.steps_per_s:.0f} steps/s, waits {log.wait_us(50):,.0f} us")
    return log


def draw(logs: dict[str, WaitLog], options: Options, path: Path) -> None:
    """For each design the queue over all the seconds, and the learner's work and waits in a tenth
    of one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(logs), 2, sharex="col", figsize=(10, 5.4), dpi=160, width_ratios=(2.6, 1)
    )
    for (left, right), (name, log) in zip(rows, logs.items(), strict=True):
        _queue_panel(left, name, log)
        _learner_panel(right, name, log, options)
    left.set_xlim(0, min(SHOWN_S, *(log.at_s[-1] for log in logs.values())))
    left.set_xlabel("seconds", color=GREY)
    right.set_xlim(0, ZOOM_S * 1e3)
    right.set_xlabel("milliseconds", color=GREY)
    _head(figure, options)
    figure.subplots_adjust(left=0.05, right=0.98, top=0.82, bottom=0.095, hspace=0.55, wspace=0.08)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def _head(figure: Any, options: Options) -> None:
    work = (
        f"A learner blocks {options.learner_s * 1e3:.0f} ms with each batch of "
        f"{options.batch_size} x {FRAMES.row_bytes:,} bytes, while {options.rows_per_s:,} rows/s "
        "come in."
    )
    ready = f"Batches ready when it asks, as a share of the {options.prefetch} that the queue holds"
    figure.text(0.05, 0.945, work, color=INK, fontsize=12, fontweight="bold")
    figure.text(0.05, 0.895, ready, color=GREY, fontsize=10)
    figure.text(0.98, 0.895, "The learner, at work or waiting", color=GREY, fontsize=10, ha="right")


def _queue_panel(panel: Any, name: str, log: WaitLog) -> None:
    colour = COLOURS[name]
    if isinstance(log, PipelineLog):
        panel.step(log.at_s, log.queued, where="post", color=PALE, linewidth=1.5)
        note = "qsize() says full, but all that is still to be pickled and piped"
        panel.text(
            0.99,
            0.84,
            note,
            transform=panel.transAxes,
            ha="right",
            va="top",
            color=GREY,
            fontsize=8,
        )
    panel.fill_between(log.at_s, log.fill, step="post", color=colour, alpha=0.22, linewidth=0)
    panel.step(log.at_s, log.fill, where="post", color=colour, linewidth=2.2)
    panel.set_title(name, loc="left", color=colour, fontsize=11, fontweight="bold", pad=5)
    panel.set_title(f"{log.steps_per_s:.0f} steps/s", loc="right", color=INK, fontsize=9.5, pad=5)
    panel.set_ylim(-0.04, 1.08)
    panel.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    panel.grid(axis="y", color=PALE, linewidth=0.5)
    _plain(panel)


def _learner_panel(panel: Any, name: str, log: WaitLog, options: Options) -> None:
    """Bars where the learner works, gaps where it waits."""
    middle_s = log.at_s[len(log.at_s) // 2]
    starts = [(at_s - middle_s) * 1e3 for at_s in log.at_s if 0 <= at_s - middle_s < ZOOM_S]
    spans = [(start, options.learner_s * 1e3) for start in starts]
    panel.broken_barh(
        spans, (0, 1), color=COLOURS[name], alpha=0.75, edgecolor="white", linewidth=0.6
    )
    wait_us = log.wait_us(50)
    wait = f"{wait_us / 1e3:,.0f} ms" if wait_us >= 1_000 else f"{wait_us:,.0f} µs"
    panel.set_title(f"learner waits {wait}", loc="right", color=INK, fontsize=9.5, pad=5)
    panel.set_ylim(-0.04, 1.08)
    panel.set_yticks([])
    _plain(panel)


def _plain(panel: Any) -> None:
    panel.tick_params(colors=GREY, length=0)
    for side in panel.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    areplay.run(run(Options(picture=sys.argv[1] if len(sys.argv) > 1 else str(PICTURE))))
