"""Torn rows counted: a small ring that an actor laps all the time, rows that carry a checksum, and
samplers that read.

A reader takes no lock. It copies, looks whether a block changed meanwhile, and draws anew where one
did: those rows are `redrawn`. A row that came through although it was overwritten in mid-copy would
not match its checksum: `accepted`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

import areplay
from areplay._base.debug import row_checksums
from benchmarks.flows import wait_rows
from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement, Panel, Series
from benchmarks.workloads import Columns, Workload

CHECKSUM = "areplay_checksum"
SAMPLERS, CHUNKS = 2, 23
BLOCKS, MAX_BLOCK_ROWS, MAX_RING_BYTES = 8, 128, 8 << 20
POINTS = 20  # of the plot


async def measure(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """How many rows were redrawn, and how many were accepted torn, of how many rows and laps."""
    return await counted(workload, options, progress, areplay.Rows())


async def counted(
    workload: Workload, options: Options, progress: Progress, item: areplay.Item
) -> Measurement:
    """The same with rows that are copied by `item`."""
    checked = with_checksum(workload)
    block_rows = max(1, min(MAX_BLOCK_ROWS, MAX_RING_BYTES // BLOCKS // checked.row_bytes))
    rows, torn, points = 0, 0, [(0.0, 0.0, 0.0)]
    async with areplay.Replay(
        checked.spec(), BLOCKS * block_rows, seed=0, block_rows=block_rows
    ) as replay:
        chunk_rows = chunk_rows_for(block_rows)
        batch_size = min(options.batch_size, replay.capacity_rows)
        actors = replay.actors(push_checked, 1, args=(checked, chunk_rows))
        stream = replay.batches(
            item, batch_size, samplers=SAMPLERS, prefetch=max(SAMPLERS, options.prefetch)
        )
        async with actors, stream as batches:
            await wait_rows(replay)
            seconds = 2 * options.seconds * options.rounds
            start = time.perf_counter()
            async for batch in batches:
                rows += len(batch.indices)
                torn += torn_rows(batch)
                spent_s = time.perf_counter() - start
                if spent_s >= len(points) * seconds / POINTS:
                    points.append((spent_s, float(batches.statistics().rows_redrawn), float(torn)))
                if spent_s >= seconds:
                    break
            redrawn, inserted = batches.statistics().rows_redrawn, replay.statistics().rows_inserted
            laps, ring_rows = inserted / replay.capacity_rows, replay.capacity_rows
    progress(f"{torn} torn of {rows:,} rows, {redrawn:,} redrawn, {laps:,.0f} laps")
    at, noticed, accepted = (tuple(column) for column in zip(*points, strict=True))
    return Measurement(
        "torn",
        workload.name,
        f"A ring of {ring_rows:,} rows of {checked.row_bytes:,} bytes is written round and round "
        f"while {SAMPLERS} "
        "samplers read it",
        (
            Figure.of("torn rows accepted", float(torn), "rows", "must be 0"),
            Figure.of("torn rows noticed and redrawn", float(redrawn), "rows"),
            Figure.of("rows compared with their checksum", float(rows), "rows"),
            Figure.of("laps of the ring", laps, "laps"),
            Figure.of("rows written", float(inserted), "rows"),
        ),
        (
            Panel(
                "Rows, counted from the start",
                "seconds",
                "rows",
                (Series("noticed and redrawn", at, noticed), Series("accepted torn", at, accepted)),
            ),
        ),
    )


def with_checksum(workload: Workload) -> Workload:
    """The same rows and one field more, a CRC-32 of all the others."""
    return Workload(workload.name, {**workload.fields, CHECKSUM: ((), "uint32")})


def chunk_rows_for(block_rows: int) -> int:
    """Rows a chunk.

    A lap must be no multiple of all chunks, or each row would be written over itself, and look
    whole when it is torn.
    """
    return min(64, block_rows)


async def push_checked(actor: areplay.Actor, workload: Workload, chunk_rows: int) -> None:
    """Hand in chunks of rows with their checksums, as fast as they are taken."""
    chunks = [workload.columns(chunk_rows, actor.seed + number) for number in range(CHUNKS)]
    for chunk in chunks:
        chunk[CHECKSUM] = checksums(chunk)
    while not actor.stopping:
        for chunk in chunks:
            await actor.extend(chunk)


def torn_rows(batch: Mapping[str, NDArray[np.generic]]) -> int:
    """How many rows of a batch do not match their checksum."""
    return int(np.count_nonzero(checksums(batch) != batch[CHECKSUM]))


def checksums(columns: Columns | Mapping[str, NDArray[np.generic]]) -> NDArray[np.uint32]:
    """The CRC-32 of each row over all fields but the checksum."""
    fields = {name: column for name, column in columns.items() if name != CHECKSUM}
    return row_checksums(fields, len(next(iter(fields.values()))))
