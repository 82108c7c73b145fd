"""The rows that are moved, and the actors that move them.

Two kinds of rows of our own: `FRAMES`, 28,240 bytes, four stacked Atari frames and a few scalars;
`CARTPOLE`, 45 bytes. The actors are coroutines at module level, because children are spawned and
import them by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import areplay
from benchmarks.harness.options import Options

Columns = dict[str, NDArray[Any]]
Fields = Mapping[str, tuple[tuple[int, ...], str]]

CHUNK_ROWS = 64
FILL_ROWS, FILL_BYTES = 256, 64 << 20
MAX_LAG_S = 0.25  # a paced actor that falls further behind does not try to catch up


@dataclass(frozen=True)
class Workload:
    """A kind of row: its fields, and made-up values for them."""

    name: str
    fields: Fields

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all fields."""
        return sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.fields.values()
        )

    def spec(self) -> areplay.Spec:
        """The same fields for areplay."""
        return areplay.Spec(**self.fields)

    def columns(self, rows: int, seed: int = 0) -> Columns:
        """That many rows of noise, column by column."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.integers(0, 2 if dtype == "bool" else 100, (rows, *shape)).astype(dtype)
            for name, (shape, dtype) in self.fields.items()
        }


FRAMES = Workload(
    "frames",
    {
        "obs": ((4, 84, 84), "uint8"),
        "action": ((), "int32"),
        "reward": ((), "float32"),
        "discount": ((), "float32"),
        "step": ((), "int32"),
    },
)
CARTPOLE = Workload(
    "cartpole",
    {
        "obs": ((4,), "float32"),
        "action": ((), "int64"),
        "reward": ((), "float32"),
        "next_obs": ((4,), "float32"),
        "terminated": ((), "bool"),
    },
)


def split(columns: Columns) -> list[dict[str, Any]]:
    """The same rows one by one, as an environment would hand them over."""
    rows = len(next(iter(columns.values())))
    return [{name: column[at] for name, column in columns.items()} for at in range(rows)]


@asynccontextmanager
async def filled_replay(
    workload: Workload, options: Options, **settings: Any
) -> AsyncIterator[areplay.Replay]:
    """A replay whose every row has been written, as it is for all but the first minutes of a
    training run."""
    rows = max(1, min(FILL_ROWS, FILL_BYTES // workload.row_bytes))
    chunk = workload.columns(rows)
    async with areplay.Replay(
        workload.spec(), capacity=options.capacity, seed=0, **settings
    ) as replay:
        for _ in range(-(-replay.statistics().capacity_rows // rows)):
            await replay.extend(chunk)
        yield replay


async def push_chunks(actor: areplay.Actor, workload: Workload, chunk_rows: int) -> None:
    """Hand in chunks as fast as they are taken."""
    chunk = workload.columns(chunk_rows, actor.seed)
    while not actor.stopping:
        await actor.extend(chunk)


async def push_rows(actor: areplay.Actor, workload: Workload) -> None:
    """Hand in single rows as fast as they are taken."""
    rows = split(workload.columns(CHUNK_ROWS, actor.seed))
    while not actor.stopping:
        for row in rows:
            await actor.add(**row)


async def push_paced_rows(actor: areplay.Actor, workload: Workload, rows_per_s: float) -> None:
    """Hand in single rows at a steady rate, as an environment does."""
    rows = split(workload.columns(CHUNK_ROWS, actor.seed))
    pace = Pace(rows_per_s)
    while not actor.stopping:
        await asyncio.sleep(pace.early_s())
        for _ in range(pace.due()):
            await actor.add(**rows[pace.sent % len(rows)])
            pace.sent += 1


async def push_paced_chunks(
    actor: areplay.Actor, workload: Workload, chunk_rows: int, rows_per_s: float
) -> None:
    """Hand in chunks at a steady rate."""
    chunk = workload.columns(chunk_rows, actor.seed)
    pace = Pace(rows_per_s / chunk_rows)
    while not actor.stopping:
        await asyncio.sleep(pace.early_s())
        for _ in range(pace.due()):
            await actor.extend(chunk)
            pace.sent += 1


class Pace:
    """A steady rate: how many are due now, and how long until the next one."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._start, self.sent = per_s, time.monotonic(), 0

    def due(self) -> int:
        """How many should have been sent by now and have not; whoever lags far behind is
        forgiven."""
        lag_s = time.monotonic() - self._start - self.sent / self._per_s
        if lag_s > MAX_LAG_S:
            self._start += lag_s
            return 1
        return max(0, int(lag_s * self._per_s))

    def early_s(self) -> float:
        """Seconds until the next one is due; at least a millisecond, the finest sleep an event loop
        knows."""
        return max(0.001, self._start + (self.sent + 1) / self._per_s - time.monotonic())
