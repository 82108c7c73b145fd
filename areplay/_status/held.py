"""Held: what an open replay holds of the system, and how it is given back: in order, or if the
replay is dropped.

Knows what there is, not what it is for.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from areplay._processes.dropped import Holdings
from areplay._sampling.batch_plan import LocalBatchPlan, PlannedSelector, close_each
from areplay._shm.range_locks import BlockLocks
from areplay._status.report import Observed
from areplay._storage.priorities import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring


class Held(Observed):
    """What a replay holds, apart from its groups and streams."""

    _holdings: Holdings
    _registry: WriterRegistry
    _local: MutableMapping[PlannedSelector, LocalBatchPlan]
    _tables: PriorityTables
    _reading_locks: BlockLocks

    def _note_holdings(self, ring: Ring) -> None:
        """What is to be let go if the replay is dropped; from the last line up, as in
        `Replay._close`."""
        assert (
            self._local_writer is not None
            and self._saver is not None
            and self._status_server is not None
        )
        registry, local, tables = self._registry, self._local, self._tables
        self._holdings.watched(self._local_writer)
        self._holdings.push(
            ring.segment.close,
            lambda: registry.forget(tables),
            tables.close,
            lambda: close_each(local),
            self._admission.close,
            self._reading_locks.close,
            self._local_writer.writer.close,
            self._saver.letting_go(),
            self._coordinator_now().let_go,
            self._status_server.close,
        )

    async def _free(self, ring: Ring) -> None:
        assert self._local_writer is not None
        await self._local_writer.close()
        self._reading_locks.close()
        self._admission.close()
        close_each(self._local)
        self._registry.forget(self._tables)
        self._tables.close()
        ring.segment.close()
