"""What a batch, a draw, a row handed in and a priority cost against the number of rows in the ring,
uniformly and by priorities.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

import areplay
from areplay._sampling.bound_selector import weigh
from areplay._shm.resource_limits import available_memory
from areplay.selectors import AnySelector
from benchmarks.flows import delivered_per_s, warm_batches
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series
from benchmarks.workloads import Workload, filled_replay

LEAST_ROWS = 10_000
MEMORY_SHARE = 0.5  # of what is free
ROW_OVERHEAD_BYTES = 40  # priorities and their sums
INSERTED_ROWS = 256  # at once
# in this order: from the second on, priorities are kept
SELECTORS: dict[str, Callable[[], AnySelector]] = {
    "uniform": areplay.Uniform,
    "prioritised": areplay.Prioritized,
}
UPDATE = "update of a priority"
WRITES = (*(f"insert, {name}" for name in SELECTORS), UPDATE)


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """One replay after the other, each ten times as large as the one before."""
    rates: dict[str, list[float]] = {name: [] for name in SELECTORS}
    draws_us: dict[str, list[float]] = {name: [] for name in SELECTORS}
    writes_us: dict[str, list[float]] = {name: [] for name in WRITES}
    done: list[int] = []
    sizes, left_out = sizes_for(workload, options)
    if not sizes:
        raise ValueError("; ".join(left_out))
    start = time.monotonic()
    for at, rows in enumerate(sizes):
        if done and time.monotonic() - start > options.budget_s:
            left_out.append(
                f"{', '.join(f'{size:,}' for size in sizes[at:])} rows: budget of "
                f"{options.budget_s:g} s"
            )
            break
        async with filled_replay(workload, replace(options, capacity=rows)) as replay:
            for name, new in SELECTORS.items():
                selector = new()
                async with warm_batches(replay, options, selector=selector) as batches:
                    rates[name].append(await delivered_per_s(batches, options))
                draws_us[name].append(draw_us(replay, selector, options))
                writes_us[f"insert, {name}"].append(await insert_us(replay, workload, options))
                progress(
                    f"{rows:,} rows, {name}: {rates[name][-1]:,.0f} batches/s, draw "
                    f"{draws_us[name][-1]:.0f} us"
                )
            writes_us[UPDATE].append(update_us(replay, options))
        done.append(rows)
    return _measurement(workload, options, done, rates, draws_us, writes_us, left_out)


def sizes_for(workload: Workload, options: Options) -> tuple[list[int], list[str]]:
    """Powers of ten up to `max_rows` that fit in half of the free memory; and why the others are
    left out."""
    sizes, left_out = [], []
    available, limit = available_memory()
    for exponent in range(round(math.log10(LEAST_ROWS)), round(math.log10(options.max_rows)) + 1):
        needed = 10**exponent * (workload.row_bytes + ROW_OVERHEAD_BYTES)
        if needed <= MEMORY_SHARE * available:
            sizes.append(10**exponent)
        else:
            left_out.append(
                f"{10**exponent:,} rows: {needed / 1e9:.1f} GB, {limit} leaves "
                f"{available / 1e9:.1f} GB"
            )
    return sizes, left_out


def draw_us(replay: areplay.Replay, selector: AnySelector, options: Options) -> float:
    """Microseconds to choose a batch's rows and weigh them, at the median, without copying them."""
    ring, rng = replay._opened().ring, np.random.default_rng(0)
    assert ring is not None
    bound = replay._opened().sampler.bind(selector)
    weights = np.empty(options.batch_size, np.float32)
    times = Times(options)
    while not times.is_over:
        with times:
            _, probabilities = bound.draw_batches(ring, 1, options.batch_size, rng)
            if isinstance(probabilities, np.ndarray):
                weigh(probabilities, 0.4, weights[: len(probabilities)])
    return times.median_us


async def insert_us(replay: areplay.Replay, workload: Workload, options: Options) -> float:
    """Microseconds a row that is handed in from this process, in chunks, at the median: one copy,
    and the recycling."""
    chunk, times = workload.columns(INSERTED_ROWS), Times(options)
    while not times.is_over:
        with times:
            await replay.extend(chunk)
    return times.median_us / INSERTED_ROWS


def update_us(replay: areplay.Replay, options: Options) -> float:
    """Microseconds a row of a batch whose priorities are updated, at the median; other rows each
    time."""
    first, end = replay._opened().ring.index_range()
    rng, times = np.random.default_rng(0), Times(options)
    while not times.is_over:
        indices, errors = (
            rng.integers(first, end, options.batch_size),
            rng.random(options.batch_size),
        )
        with times:
            replay.update_priorities(indices, errors)
    return times.median_us / options.batch_size


class Times:
    """How long something takes that is done again and again, for a quarter of the time that a rate
    is measured."""

    def __init__(self, options: Options) -> None:
        self._times_s: list[float] = []
        self._end_s = time.perf_counter() + options.seconds / 4

    @property
    def is_over(self) -> bool:
        """Whether time is up; not before it was done once."""
        return bool(self._times_s) and time.perf_counter() >= self._end_s

    @property
    def median_us(self) -> float:
        """Microseconds."""
        return statistics.median(self._times_s) * 1e6

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *failure: object) -> None:
        self._times_s.append(time.perf_counter() - self._start_s)


def _measurement(
    workload: Workload,
    options: Options,
    sizes: list[int],
    rates: dict[str, list[float]],
    draws_us: dict[str, list[float]],
    writes_us: dict[str, list[float]],
    left_out: list[str],
) -> Measurement:
    x = tuple(float(size) for size in sizes)
    figures = []
    smallest_and_largest = dict.fromkeys((0, len(sizes) - 1))  # one, if there is but one
    for name in SELECTORS:
        for at in smallest_and_largest:
            figures.append(Figure.of(f"{name}, {sizes[at]:,} rows", rates[name][at], "batches/s"))
            figures.append(Figure.of(f"{name}, {sizes[at]:,} rows: draw", draws_us[name][at], "us"))
    for name in WRITES:
        for at in smallest_and_largest:
            figures.append(
                Figure.of(f"{name}, {sizes[at]:,} rows: a row", writes_us[name][at], "us")
            )
    return Measurement(
        "capacity",
        workload.name,
        f"Batches of {options.batch_size} x {workload.row_bytes:,} bytes from rings of up to "
        f"{sizes[-1]:,} rows, "
        "one sampler",
        tuple(figures),
        (
            _panel("Batches delivered each second", "batches/s", x, rates),
            _panel("Time to choose the rows of a batch, without copying", "µs", x, draws_us),
            _panel(
                "Time a row to hand in 256 at once, or to update a batch's priorities",
                "µs",
                x,
                writes_us,
            ),
        ),
        tuple(f"left out: {text}" for text in left_out),
    )


def _panel(title: str, unit: str, x: tuple[float, ...], values: dict[str, list[float]]) -> Panel:
    series = tuple(Series(name, x, tuple(seen)) for name, seen in values.items())
    ticks = tuple((size, f"{size:,.0f}") for size in x)
    return Panel(title, "rows in the ring", unit, series, ticks=ticks, is_log=True)
