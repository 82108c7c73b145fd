"""Throughput over block sizes: whether there is anything to tune."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import areplay
from areplay._shm.resource_limits import available_memory
from benchmarks.flows import Rates, delivered_per_s, ingested_per_s, rates_at_once, warm_batches
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series
from benchmarks.harness.turns import Side, take_turns
from benchmarks.workloads import CHUNK_ROWS, Workload, filled_replay, push_chunks

MAX_CAPACITY = 32_768  # all the replays are open at once, so that the sizes can take turns
MIN_BLOCKS = 8  # in each replay: with fewer, recycling one changes what there is to sample
MEMORY_SHARE = 0.25  # of what is free


@dataclass
class BlockSizes:
    """Replays that differ in their block size only, all open, and the sides of their comparison."""

    block_rows: list[int]
    sides: dict[str, Side] = field(default_factory=dict)
    at_once: dict[int, list[Rates]] = field(default_factory=dict)  # what the sides `at once` saw

    def rates(self, seen: dict[str, list[float]]) -> dict[str, tuple[str, dict[int, list[float]]]]:
        """What was measured -> its unit, and the values of each block size, from what the sides
        gave."""

        def by_size(side: str) -> dict[int, list[float]]:
            return {rows: seen[f"{rows}: {side}"] for rows in self.block_rows}

        beside = {
            rows: [rates.rows_per_s for rates in self.at_once[rows]] for rows in self.block_rows
        }
        return {
            "out alone": ("batches/s", by_size("out")),
            "in alone": ("rows/s", by_size("in")),
            "out, rows coming in": ("batches/s", by_size("at once")),
            "in, batches going out": ("rows/s", beside),
        }


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """Rows in and batches out, alone and at once, for each block size."""
    notes = []
    fits = int(MEMORY_SHARE * available_memory()[0]) // (
        len(options.block_rows) * workload.row_bytes
    )
    if fits < min(MAX_CAPACITY, options.capacity):
        options = replace(options, capacity=max(min(options.block_rows) * MIN_BLOCKS, fits))
    async with block_sizes(workload, options) as sizes:
        seen = await take_turns(sizes.sides, options, progress)
    if left_out := sorted(set(options.block_rows) - set(sizes.block_rows)):
        notes.append(
            f"left out: blocks of {', '.join(f'{rows:,}' for rows in left_out)} rows: too "
            "large for the ring"
        )
    rates = sizes.rates(seen)
    panels = []
    for unit, title in (
        ("batches/s", "Batches out, one sampler"),
        ("rows/s", "Rows in, one actor"),
    ):
        series = tuple(
            Series(
                "alone" if what.endswith("alone") else "in and out at once",
                tuple(float(rows) for rows in values),
                tuple(statistics.median(rounds) for rounds in values.values()),
            )
            for what, (its_unit, values) in rates.items()
            if its_unit == unit
        )
        ticks = tuple((rows, f"{rows:,}") for rows in sizes.block_rows)
        panels.append(Panel(title, "rows a block", unit, series, ticks=ticks, is_log=True))
    return Measurement(
        "blocks",
        workload.name,
        f"Throughput with blocks of {sizes.block_rows[0]:,} to {sizes.block_rows[-1]:,} rows of "
        f"{workload.row_bytes:,} bytes",
        tuple(_figure(what, unit, values) for what, (unit, values) in rates.items()),
        tuple(panels),
        tuple(notes),
    )


@asynccontextmanager
async def block_sizes(workload: Workload, options: Options) -> AsyncIterator[BlockSizes]:
    """A full replay with a warm stream for each block size of which enough fit."""
    options = replace(options, capacity=min(options.capacity, MAX_CAPACITY))
    sizes = BlockSizes(
        [rows for rows in options.block_rows if rows * MIN_BLOCKS <= options.capacity]
    )
    async with AsyncExitStack() as stack:
        for rows in sizes.block_rows:
            replay = await stack.enter_async_context(
                filled_replay(workload, options, block_rows=rows)
            )
            batches = await stack.enter_async_context(warm_batches(replay, options))
            sizes.at_once[rows] = []
            sizes.sides |= _sides(workload, replay, batches, options, rows, sizes.at_once[rows])
        yield sizes


def _sides(
    workload: Workload,
    replay: areplay.Replay,
    batches: areplay.Batches,
    options: Options,
    block_rows: int,
    at_once: list[Rates],
) -> dict[str, Side]:
    actors = partial(replay.actors, push_chunks, 1, args=(workload, CHUNK_ROWS))

    async def both() -> float:
        at_once.append(await rates_at_once(replay, batches, options, actors))
        return at_once[-1].batches_per_s

    return {
        f"{block_rows}: out": partial(delivered_per_s, batches, options),
        f"{block_rows}: in": partial(ingested_per_s, replay, options, actors),
        f"{block_rows}: at once": both,
    }


def _figure(what: str, unit: str, values: dict[int, list[float]]) -> Figure:
    """The slowest against the fastest, by their medians over all rounds: within a round it would
    measure the noise."""
    middle = {rows: statistics.median(rounds) for rows, rounds in values.items()}
    worst, best = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    note = f"{unit}; slowest {worst:,} rows a block, fastest {best:,}"
    share = middle[worst] / max(1e-9, middle[best])
    return Figure.of(f"{what}: slowest to fastest", share, "", note)
