"""The destination of rows: the ring, and all that has a say in what is written into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from areplay._ingest.admission import Admission
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the rows of one replay go, for the coordinator and for the local writer."""

    ring: Ring
    registry: WriterRegistry
    admission: Admission
    on_rows: Callable[[], None]
    """Called after rows were written, in the thread that has written them. Must be quick."""

    def new_writer(self) -> StreamWriter:
        """The writer of a new stream, with block locks of its own."""
        return StreamWriter(self.ring, self.ring.block_locks(), self.registry)
