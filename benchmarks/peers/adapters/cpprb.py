"""cpprb: in process alone, its `MP` classes with producer processes."""

from __future__ import annotations

from functools import partial
from typing import Any

import cpprb
import numpy as np

from benchmarks.peers.protocol import Side, serve, spawn
from benchmarks.peers.switch import Switch, produce
from benchmarks.peers.works import Work

FILL_ROWS = 256


def push(switch: Switch, number: int, buffer: Any, work: Work) -> None:
    """A producer process."""
    produce(
        switch,
        number,
        work.chunk_rows,
        partial(buffer.add, **work.columns(work.chunk_rows, number)),
    )


class Cpprb(Side):
    """Its buffers return numpy arrays; there is no prefetch."""

    packages = ("cpprb", "numpy")
    choices = (
        "cpprb: its in-process classes when nobody writes, and the `MP` ones, which are slower, "
        "only beside producer processes.",
        "cpprb: rows are added in whole chunks, one call each.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._buffer: Any = None
        self._kind: tuple[Work, str] | None = None
        self._batch: dict[str, Any] = {}

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        self.end_producers()
        name = (
            f"{'MP' if producers else ''}{'Prioritized' if work.is_prioritized else ''}ReplayBuffer"
        )
        if (work, name) != self._kind:
            self._buffer = None  # its memory first, then that of the next
            self._buffer, self._kind = filled(work, name), (work, name)
        self._batch_size = work.batch_size
        self._beta = {"beta": 0.4} if work.is_prioritized else {}
        self._errors = np.random.default_rng(0).random(work.batch_size)
        self.spawn_producers(producers, push, self._buffer, work)

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        self._batch = self._buffer.sample(self._batch_size, **self._beta)
        return self._batch["obs"]

    def update(self) -> None:
        """See `Side.update`."""
        self._buffer.update_priorities(self._batch["indexes"], self._errors)


def filled(work: Work, name: str) -> Any:
    """A buffer of that class, full."""
    settings: dict[str, Any] = {"ctx": spawn} if name.startswith("MP") else {}
    if work.is_prioritized:
        settings["alpha"] = 0.6
    fields = {
        field: {"shape": shape or 1, "dtype": dtype}
        for field, (shape, dtype) in work.fields.items()
    }
    buffer, chunk = getattr(cpprb, name)(work.capacity, fields, **settings), work.columns(FILL_ROWS)
    for _ in range(-(-work.capacity // FILL_ROWS)):
        buffer.add(**chunk)
    return buffer


if __name__ == "__main__":
    serve(Cpprb())
