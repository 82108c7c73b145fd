"""Rows/s in and batches/s out, each alone and both at once."""

from __future__ import annotations

import statistics
from functools import partial

from benchmarks.flows import Rates, delivered_per_s, ingested_per_s, rates_at_once, warm_batches
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series
from benchmarks.harness.turns import take_turns
from benchmarks.workloads import CHUNK_ROWS, Workload, filled_replay, push_chunks, push_rows

ROW_BY_ROW, CHUNKS, OUT, BOTH = "in, row by row", f"in, chunks of {CHUNK_ROWS}", "out", "at once"


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """One actor, one sampler, and a learner that takes every batch and does nothing."""
    at_once: list[Rates] = []
    async with filled_replay(workload, options) as replay, warm_batches(replay, options) as batches:
        chunks = partial(replay.actors, push_chunks, 1, args=(workload, CHUNK_ROWS))
        rows = partial(replay.actors, push_rows, 1, args=(workload,))

        async def both() -> float:
            at_once.append(await rates_at_once(replay, batches, options, chunks))
            return at_once[-1].batches_per_s

        seen = await take_turns(
            {
                ROW_BY_ROW: partial(ingested_per_s, replay, options, rows),
                CHUNKS: partial(ingested_per_s, replay, options, chunks),
                OUT: partial(delivered_per_s, batches, options),
                BOTH: both,
            },
            options,
            progress,
        )
    seen["in, at once"] = [rates.rows_per_s for rates in at_once]
    middle = {name: statistics.median(values) for name, values in seen.items()}
    moved = (
        middle["in, at once"] * workload.row_bytes,
        middle[BOTH] * options.batch_size * workload.row_bytes,
    )
    return Measurement(
        "throughput",
        workload.name,
        f"Rows of {workload.row_bytes:,} bytes in through one actor, batches of "
        f"{options.batch_size} out through one "
        "sampler",
        (
            Figure.of("rows in alone, row by row", middle[ROW_BY_ROW], "rows/s"),
            Figure.of(f"rows in alone, chunks of {CHUNK_ROWS}", middle[CHUNKS], "rows/s"),
            Figure.of("batches out alone", middle[OUT], "batches/s"),
            Figure.of(
                "at once: rows in", middle["in, at once"], "rows/s", f"chunks of {CHUNK_ROWS}"
            ),
            Figure.of("at once: batches out", middle[BOTH], "batches/s"),
            Figure.of("at once: bytes in and out", sum(moved) / 1e9, "GB/s"),
        ),
        (
            _panel(
                "Rows in",
                "rows/s",
                {
                    "alone,\nrow by row": middle[ROW_BY_ROW],
                    f"alone,\nchunks of {CHUNK_ROWS}": middle[CHUNKS],
                    "while batches\ngo out": middle["in, at once"],
                },
            ),
            _panel(
                "Batches out",
                "batches/s",
                {"alone": middle[OUT], "while rows\ncome in": middle[BOTH]},
            ),
        ),
    )


def _panel(title: str, unit: str, values: dict[str, float]) -> Panel:
    ticks = tuple((float(at), label) for at, label in enumerate(values))
    series = Series(title, tuple(float(at) for at in range(len(values))), tuple(values.values()))
    return Panel(title, "", unit, (series,), "bars", ticks)
