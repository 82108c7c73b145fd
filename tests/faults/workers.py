"""What runs in the children of these tests: actors that keep a ledger which survives their
death."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import areplay
from tests.processes.oracle import row, rows

_LEDGER_BYTES = 16


class MappedLedger:
    """Two counts in a mapped file, pending and acked: two stores a call, and what was stored
    outlives a SIGKILL.

    Attributes:
        life: a number that no other life has, in whatever process.
    """

    def __init__(self, folder: str, actor: int) -> None:
        self.life = os.getpid() + ((time.time_ns() // 1_000) % (1 << 28) << 22)
        descriptor = os.open(
            Path(folder) / f"{actor}-{self.life}", os.O_RDWR | os.O_CREAT | os.O_EXCL
        )
        os.ftruncate(descriptor, _LEDGER_BYTES)
        self._counts = memoryview(mmap.mmap(descriptor, _LEDGER_BYTES)).cast("q")
        os.close(descriptor)

    def pending(self, count: int) -> None:
        """So many more rows are about to be handed in."""
        self._counts[0] += count

    def acked(self, count: int) -> None:
        """The call that handed them in has returned."""
        self._counts[1] += count


def read_ledger(path: Path) -> tuple[int, int]:
    """`(acked, pending)` of one life."""
    counts = path.read_bytes()
    if len(counts) < _LEDGER_BYTES:  # it died while it opened its ledger
        return 0, 0
    pending, acked = memoryview(counts).cast("q")
    return acked, pending


async def without_pause(actor: areplay.Actor, folder: str) -> None:
    """Rows by add and by extend as fast as they are taken, each accounted for; now and then
    flushed."""
    os.nice(5)  # it takes all that is left of the machine, but lets its brothers start
    ledger, number = MappedLedger(folder, actor.index), 0
    while not actor.stopping:
        chance = actor.rng.random()
        chunk = 1 if chance < 0.9 else int(actor.rng.integers(2, 200))
        ledger.pending(chunk)
        if chunk == 1:
            await actor.add(**row(actor.index, ledger.life, number))
        else:
            await actor.extend(rows(actor.index, ledger.life, number, number + chunk))
        ledger.acked(chunk)
        number += chunk
        if chance < 0.001:
            await actor.flush()
            actor.report(number=number)
