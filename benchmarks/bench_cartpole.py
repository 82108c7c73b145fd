"""Small rows end to end: here it is the hand-over that costs, not the copy. Beside it cpprb with
one producer."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from functools import partial

import areplay
from benchmarks.bare import draws_per_s, touched
from benchmarks.flows import delivered_per_s, rates_at_once, warm_batches
from benchmarks.harness.figures import Figure, Target, medians, ratios
from benchmarks.harness.options import Options
from benchmarks.harness.turns import Side, take_turns
from benchmarks.peers.cpprb_beside import PeerRates, cpprb_buffer, measure_cpprb, reason_missing
from benchmarks.workloads import CARTPOLE, filled_replay, push_chunks, push_paced_chunks

CHUNK_ROWS = 256
BARE, ALONE, FLAT_OUT, PACED, PEER = (
    "bare draw and take",
    "alone",
    "producer flat out",
    "producer at the peer's rate",
    "cpprb",
)
AGAINST_PEER = "cartpole: 1 sampler and 1 producer / cpprb"


async def run(options: Options) -> list[Figure]:
    """25,000 batches/s alone, and 5 times cpprb with a producer at work on both sides."""
    missing = reason_missing()
    peers: list[PeerRates] = []
    async with AsyncExitStack() as stack:
        replay = await stack.enter_async_context(filled_replay(CARTPOLE, options))
        batches = await stack.enter_async_context(warm_batches(replay, options))
        columns = stack.enter_context(touched(CARTPOLE, options.capacity)).columns

        async def bare() -> float:
            return draws_per_s(columns, options.batch_size, options.seconds)

        sides: dict[str, Side] = {
            BARE: bare,
            ALONE: partial(delivered_per_s, batches, options),
            FLAT_OUT: partial(_flat_out, replay, batches, options),
        }
        if not missing:
            buffer = stack.enter_context(cpprb_buffer(CARTPOLE, options))

            async def peer() -> float:
                peers.append(measure_cpprb(buffer, CARTPOLE, CHUNK_ROWS, options))
                return peers[-1].batches_per_s

            rows_per_s = measure_cpprb(buffer, CARTPOLE, CHUNK_ROWS, options).rows_per_s
            sides |= {PEER: peer, PACED: partial(_paced, replay, batches, options, rows_per_s)}
        seen = await take_turns(sides, options)
    return _figures(seen, peers, missing)


async def _flat_out(replay: areplay.Replay, batches: areplay.Batches, options: Options) -> float:
    actors = partial(replay.actors, push_chunks, 1, args=(CARTPOLE, CHUNK_ROWS))
    return (await rates_at_once(replay, batches, options, actors)).batches_per_s


async def _paced(
    replay: areplay.Replay, batches: areplay.Batches, options: Options, rows_per_s: float
) -> float:
    actors = partial(replay.actors, push_paced_chunks, 1, args=(CARTPOLE, CHUNK_ROWS, rows_per_s))
    return (await rates_at_once(replay, batches, options, actors)).batches_per_s


def _figures(seen: dict[str, list[float]], peers: list[PeerRates], missing: str) -> list[Figure]:
    bare = medians({BARE: seen[BARE]})
    figures = [
        Figure(
            "cartpole: 1 sampler, end to end",
            tuple(seen[ALONE]),
            "batches/s",
            Target(">=", 25_000),
            beside=bare,
        ),
        Figure("cartpole: the same / bare draw and take", ratios(seen[ALONE], seen[BARE])),
        Figure("cartpole: the same, 1 producer flat out", tuple(seen[FLAT_OUT]), "batches/s"),
    ]
    target = Target(">=", 5)
    if missing:
        return [*figures, Figure(AGAINST_PEER, (), target=target, note=missing)]
    middle = medians({"areplay": seen[PACED], "cpprb": seen[PEER]})
    middle["rows/s coming in"] = statistics.median(rates.rows_per_s for rates in peers)
    note = "batches/s; the same rows/s coming in on both sides"
    return [
        *figures,
        Figure(AGAINST_PEER, ratios(seen[PACED], seen[PEER]), "x", target, note, middle),
    ]
