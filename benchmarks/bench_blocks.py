"""Throughput over block sizes: there must be nothing to tune."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import areplay
from benchmarks.flows import Rates, delivered_per_s, ingested_per_s, rates_at_once, warm_batches
from benchmarks.harness import Figure, Options, Side, Target, medians, take_turns
from benchmarks.workloads import FRAMES, filled_replay, push_chunks

BLOCK_ROWS = (16, 64, 256, 1_024, 4_096)
MAX_CAPACITY = 32_768  # all the replays are open at once, so that the sizes can take turns
CHUNK_ROWS = 64
MIN_BLOCKS = 8  # in each replay: with fewer, recycling one changes what there is to sample
TARGET = Target(">=", 0.85)


async def run(options: Options) -> list[Figure]:
    """The slowest block size must be within 15 % of the fastest: out, in, and both at once."""
    options = replace(options, capacity=min(options.capacity, MAX_CAPACITY))
    block_rows = [rows for rows in BLOCK_ROWS if rows * MIN_BLOCKS <= options.capacity]
    at_once: dict[int, list[Rates]] = {rows: [] for rows in block_rows}
    sides: dict[str, Side] = {}
    async with AsyncExitStack() as stack:
        for rows in block_rows:
            replay = await stack.enter_async_context(filled_replay(FRAMES, options, block_rows=rows))
            batches = await stack.enter_async_context(warm_batches(replay, options))
            sides |= _sides(replay, batches, options, rows, at_once[rows])
        seen = await take_turns(sides, options)
    in_beside = {str(rows): [rates.rows_per_s for rates in at_once[rows]] for rows in block_rows}
    return [
        _figure("out alone", {str(rows): seen[f"{rows}: out"] for rows in block_rows}, "batches/s"),
        _figure("in alone", {str(rows): seen[f"{rows}: in"] for rows in block_rows}, "rows/s"),
        _figure("out, rows coming in", {str(rows): seen[f"{rows}: at once"] for rows in block_rows}, "batches/s"),
        _figure("in, batches going out", in_beside, "rows/s"),
    ]


def _sides(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, block_rows: int, at_once: list[Rates]
) -> dict[str, Side]:
    actors = partial(replay.actors, push_chunks, 1, args=(FRAMES, CHUNK_ROWS))

    async def both() -> float:
        at_once.append(await rates_at_once(replay, batches, options, actors))
        return at_once[-1].batches_per_s

    return {
        f"{block_rows}: out": partial(delivered_per_s, batches, options),
        f"{block_rows}: in": partial(ingested_per_s, replay, options, actors),
        f"{block_rows}: at once": both,
    }


def _figure(name: str, series: dict[str, list[float]], unit: str) -> Figure:
    """The slowest against the fastest, by their medians over all rounds: within a round it would measure the noise."""
    middle = medians(series)
    worst, best = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    note = f"{unit} by block_rows; slowest {worst}, fastest {best}"
    return Figure(f"block sizes: {name}, slowest / fastest", (middle[worst] / middle[best],), "x", TARGET, note, middle)
