"""The oracle: rows that say who wrote them and prove that they are whole, and a reading of all that
is stored.

A row names its writer (`actor`, and `life`, the process id of one run of it) and counts that
writer's rows from 0. Its `payload` repeats a number made of those, and its `checksum` sums it up,
so a row put together from two is seen.

A ledger is a file for each life, written without a buffer: `p` before a row is handed in, `a`
after. Whatever happens: rows acked <= rows stored <= rows pending, each once and in order.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import areplay

Columns = dict[str, NDArray[Any]]

PAYLOAD = 16


def spec(payload: int) -> areplay.Spec:
    """The fields of a row with a payload of so many numbers."""
    return areplay.Spec(
        actor=((), "int64"),
        life=((), "int64"),
        number=((), "int64"),
        payload=((payload,), "int64"),
        checksum=((), "int64"),
    )


SPEC = spec(PAYLOAD)
OWNER = -1  # the `actor` of rows that the learner's process writes itself


def rows(actor: int, life: int, start: int, stop: int, payload: int = PAYLOAD) -> Columns:
    """Rows `start` to `stop` of one life, as columns."""
    number = np.arange(start, stop)
    repeated = np.repeat(_seal(actor, life, number)[:, None], payload, axis=1)
    return {
        "actor": np.full(len(number), actor),
        "life": np.full(len(number), life),
        "number": number,
        "payload": repeated,
        "checksum": _checksum(repeated),
    }


def row(actor: int, life: int, number: int) -> dict[str, Any]:
    """One row."""
    seal = int(_seal(actor, life, np.int64(number)))
    return {
        "actor": actor,
        "life": life,
        "number": number,
        "payload": np.full(PAYLOAD, seal),
        "checksum": seal * PAYLOAD * (PAYLOAD + 1) // 2,
    }


def torn(columns: Mapping[str, NDArray[Any]]) -> int:
    """How many rows are not whole."""
    seal = _seal(columns["actor"], columns["life"], columns["number"])
    whole = (columns["payload"] == seal[:, None]).all(axis=1) & (
        _checksum(columns["payload"]) == columns["checksum"]
    )
    return int(np.count_nonzero(~whole))


def _checksum(payload: NDArray[Any]) -> NDArray[Any]:
    """A sum in which each number counts differently."""
    checksum: NDArray[Any] = payload @ np.arange(1, payload.shape[1] + 1)
    return checksum


def _seal(actor: Any, life: Any, number: Any) -> Any:
    return (np.asarray(number) * 1_000_003 + np.asarray(life) * 101 + np.asarray(actor)) % (1 << 50)


@dataclass(frozen=True)
class Stream:
    """One stream of a replay, its rows in the order of its chain of blocks."""

    number: int
    serials: list[int]
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["number"])


def streams(replay: areplay.Replay) -> list[Stream]:
    """All that is stored, stream by stream; the chains are checked on the way."""
    ring = replay._opened().ring
    assert ring is not None
    before = len(replay)
    blocks: dict[int, list[int]] = defaultdict(list)
    serials, counts = ring.occupied()
    count_of = dict(zip(serials.tolist(), counts.tolist(), strict=True))
    chain = {serial: ring.chain(serial) for serial in sorted(count_of)}
    for serial, (stream, _, _) in chain.items():
        blocks[stream].append(serial)
    found = []
    for stream, mine in blocks.items():
        for before, after in itertools.pairwise(mine):
            assert chain[before][2] == after, "`following` names the next block of the stream"
            assert chain[after][1] == before, "`previous` names the block before"
        places = np.concatenate(
            [s % ring.blocks * ring.block_rows + np.arange(count_of[s]) for s in mine]
        )
        found.append(
            Stream(stream, mine, {name: column[places] for name, column in ring.columns.items()})
        )
    after = len(replay)  # actors that still run write meanwhile, straight into shared memory
    assert min(before, after) <= sum(len(stream) for stream in found) <= max(before, after)
    return found


def lives(replay: areplay.Replay) -> dict[tuple[int, int], int]:
    """`(actor, life)` -> number of its rows that are stored: 0 to n - 1, each once, in order,
    whole, in one stream."""
    found: dict[tuple[int, int], int] = {}
    for stream in streams(replay):
        assert torn(stream.columns) == 0
        actors, processes = (
            set(stream.columns["actor"].tolist()),
            set(stream.columns["life"].tolist()),
        )
        assert len(actors) == len(processes) == 1, "a stream has the rows of one life"
        name = actors.pop(), processes.pop()
        assert name not in found, "a life has one stream"
        np.testing.assert_array_equal(stream.columns["number"], np.arange(len(stream)))
        found[name] = len(stream)
    return found


class Ledger:
    """What one life of an actor says that it has done."""

    def __init__(self, folder: str, actor: int) -> None:
        self.life = os.getpid()
        self._file = os.open(
            Path(folder) / f"{actor}-{self.life}", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )

    def pending(self, count: int = 1) -> None:
        """So many more rows are about to be handed in."""
        os.write(self._file, b"p" * count)

    def acked(self, count: int = 1) -> None:
        """The call that handed them in has returned."""
        os.write(self._file, b"a" * count)


def ledgers(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """`(actor, life)` -> how many of its rows are acked, and how many are pending."""
    found = {}
    for path in folder.iterdir():
        actor, _, life = path.name.rpartition("-")
        lines = path.read_bytes()
        found[int(actor), int(life)] = lines.count(b"a"), lines.count(b"p")
    return found


def check_ledgers(replay: areplay.Replay, folder: Path) -> dict[tuple[int, int], int]:
    """Assert acked <= stored <= pending for each life; how many are stored."""
    stored, promised = lives(replay), ledgers(folder)
    assert stored.keys() <= promised.keys()
    for life, (acked, pending) in promised.items():
        assert acked <= stored.get(life, 0) <= pending, (life, acked, stored.get(life, 0), pending)
    return stored
