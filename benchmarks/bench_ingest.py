"""Rows coming in through real actors and the coordinator, against the two copies that this cannot
do without.

Alone first, then while one sampler runs flat out and the learner takes every batch.
"""

from __future__ import annotations

from functools import partial

from benchmarks.bare import copies_per_s, touched
from benchmarks.flows import Rates, ingested_per_s, rates_at_once, warm_batches
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import Side, take_turns
from benchmarks.memory import SharedColumns
from benchmarks.workloads import FRAMES, filled_replay, push_chunks, push_rows

INBOX_BYTES = 16 << 20  # as large as areplay makes an inbox by default
BARE_64, BARE_256, BESIDE = "bare, 64 rows", "bare, 256 rows", "beside a sampler"
TARGET = Target(">=", 0.8)
# two actors need a third core
HELD = ("extend of 64 rows", "extend of 256 rows", "add, row by row")
AGAINST = {
    "extend of 64 rows": BARE_64,
    "extend of 256 rows": BARE_256,
    "add, row by row": BARE_64,
    "two actors, extend of 64 rows": BARE_64,
}


async def run(options: Options) -> list[Figure]:
    """0.8 of the bare copies with nobody sampling; 100,000 rows/s and 500 batches/s with a sampler
    beside it."""
    at_once: list[Rates] = []
    inbox_rows = INBOX_BYTES // FRAMES.row_bytes
    with touched(FRAMES, inbox_rows) as inbox, touched(FRAMES, options.capacity) as blocks:
        seen = await _measure(options, inbox, blocks, at_once)
    return [*_alone(seen), *_beside(at_once)]


async def _measure(
    options: Options, inbox: SharedColumns, blocks: SharedColumns, at_once: list[Rates]
) -> dict[str, list[float]]:
    async with filled_replay(FRAMES, options) as replay, warm_batches(replay, options) as batches:
        chunks = {
            rows: partial(replay.actors, push_chunks, 1, args=(FRAMES, rows)) for rows in (64, 256)
        }
        rows = partial(replay.actors, push_rows, 1, args=(FRAMES,))
        two = partial(replay.actors, push_chunks, 2, args=(FRAMES, 64))

        async def bare(chunk_rows: int) -> float:
            return copies_per_s(FRAMES.columns(chunk_rows), inbox, blocks.columns, options.seconds)

        async def beside_a_sampler() -> float:
            at_once.append(await rates_at_once(replay, batches, options, chunks[64]))
            return at_once[-1].rows_per_s

        sides: dict[str, Side] = {
            BARE_64: partial(bare, 64),
            "extend of 64 rows": partial(ingested_per_s, replay, options, chunks[64]),
            BARE_256: partial(bare, 256),
            "extend of 256 rows": partial(ingested_per_s, replay, options, chunks[256]),
            "add, row by row": partial(ingested_per_s, replay, options, rows),
            "two actors, extend of 64 rows": partial(ingested_per_s, replay, options, two),
            BESIDE: beside_a_sampler,
        }
        return await take_turns(sides, options)


def _alone(seen: dict[str, list[float]]) -> list[Figure]:
    return [
        Figure(
            f"ingest: {name} / bare two copies",
            ratios(seen[name], seen[bare]),
            target=TARGET if name in HELD else None,
            note="rows/s",
            beside=medians({"areplay": seen[name], "bare": seen[bare]}),
        )
        for name, bare in AGAINST.items()
    ]


def _beside(at_once: list[Rates]) -> list[Figure]:
    rows = tuple(rates.rows_per_s for rates in at_once)
    batches = tuple(rates.batches_per_s for rates in at_once)
    return [
        Figure(
            "ingest beside a sampler: in",
            rows,
            "rows/s",
            Target(">=", 100_000),
            "cpprb 109,000 when designed",
        ),
        Figure(
            "ingest beside a sampler: out",
            batches,
            "batches/s",
            Target(">=", 500),
            "cpprb 533 when designed",
        ),
    ]
