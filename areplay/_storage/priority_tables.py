"""The tables of priorities of one replay: one for each exponent that a selector draws by."""

from __future__ import annotations

import logging
import threading

import numpy as np

from areplay._base import forks
from areplay._base.arrays import Array, Indices, Mask
from areplay._storage.mass_tree import Masses
from areplay._storage.priorities import Priorities
from areplay._storage.registry import RowListener, WriterRegistry
from areplay._storage.ring import Ring
from areplay.errors import AreplayError

logger = logging.getLogger(__name__)

_AS_GIVEN = 1.0
"""The exponent of masses that are the priorities themselves."""


class PriorityTables(RowListener):
    """The priorities of a replay's rows.

    Rows may come with priorities before the first selector asks for them. Then a table of exponent
    1 holds them, from the first one given on, until a selector says which exponent it wants. The
    selector's table begins with what that one has.

    Rule: a row is told to all tables under `_lock`, and a table begins under it: no row is missed
    in between.

    Args:
        tables: by exponent; what a checkpoint had. Written by the owner's process, under `_lock`.
    """

    def __init__(
        self, ring: Ring, registry: WriterRegistry, tables: dict[float, Priorities]
    ) -> None:
        self._ring = ring
        self._registry = registry
        self._tables = tables
        self._lock = forks.register_lock(threading.Lock())
        if tables:
            registry.add_listener(self)
        else:
            registry.on_priorities = self._begin_given

    def of_exponent(self, exponent: float) -> Priorities:
        """The table for a selector of that exponent, made if there is none.

        Raises:
            MemoryLimitExceeded, ResourceUnavailable: there is no memory for it. Nothing changed.
        """
        with self._lock:
            if exponent not in self._tables:
                self._begin(Priorities(self._ring, exponent))
                self._drop_given(exponent)
            return self._tables[exponent]

    def written(self, at: int, count: int, priorities: Masses | None = None) -> None:
        """See `RowListener.written`."""
        with self._lock:
            for table in self._tables.values():
                table.written(at, count, priorities)

    def cleared(self, at: int, count: int) -> None:
        """See `RowListener.cleared`."""
        with self._lock:
            for table in self._tables.values():
                table.cleared(at, count)

    def update(self, indices: Indices, priorities: Masses) -> Mask:
        """As `Priorities.update`, in all tables; there is at least one."""
        first, *others = list(self._tables.values())
        is_there = first.update(indices, priorities)
        for table in others:
            is_there &= table.update(indices, priorities)
        return is_there

    def close(self) -> None:
        """Give back the descriptors."""
        for table in self._tables.values():
            table.close()

    def _begin(self, table: Priorities) -> None:
        """Take a table in, with what another one has of the rows that exist. Under the lock."""
        others = [other for other in self._tables.values() if other.exponent > 0]
        # First of all: a row exists when we look, or its writer tells us and waits for the lock.
        if not self._tables:
            self._registry.add_listener(self)
            self._registry.on_priorities = None
        table.begin(max(others, key=lambda other: other.exponent, default=None))
        self._tables[table.exponent] = table

    def _drop_given(self, exponent: float) -> None:
        """Drop the table of priorities as they were given, if no selector draws by it.

        Each table costs an update its time. The one of exponent 0 cannot stand for it, since no
        other table can be made from that one.
        """
        given = self._tables.get(_AS_GIVEN)
        if given is not None and exponent not in (_AS_GIVEN, 0) and not given.is_used:
            del self._tables[_AS_GIVEN]
            given.close()

    def _begin_given(self, priorities: Array) -> None:
        """Keep priorities from the first one on, for a selector that comes later. In the thread of
        the writer."""
        if np.logical_and.reduce(np.isnan(priorities)):
            return
        with self._lock:
            if self._tables:
                return
            try:
                given = Priorities(self._ring, _AS_GIVEN)
            except AreplayError as error:  # no reason to lose rows
                self._registry.on_priorities = None
                logger.warning(
                    "priorities that rows come with are not kept before a selector asks "
                    "for them: %s",
                    error,
                )
                return
            self._begin(given)
