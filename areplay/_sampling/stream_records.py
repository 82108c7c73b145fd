"""What a stream of batches is told of where its rows come from, and what it tells a checkpoint:
plain records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from areplay._base.arrays import Indices, Mask


@dataclass(frozen=True, slots=True)
class ProducerState:
    """Where the rows come from, at one moment, for messages and for the decision that no more can
    come."""

    actors_alive: int
    is_exhausted: bool
    """There are actors' contexts open, but all of their actors are gone, and nobody else ever added
    a row."""
    last_row: str
    failure: BaseException | None
    """Why there will be no more rows, if something failed."""
    is_stuck: Callable[[], bool] = lambda: False
    """Says whether at this moment all who have rows wait for a block, and all blocks are kept."""
    why_held: Callable[[], str] = lambda: ""
    """Says which rows wait at this moment, and for what; "" if no row waits."""
    why_barred: Callable[[], str] = lambda: ""
    """Says why no process can write a row before a batch is taken that no stream has, and what to
    do; "" if one can."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a checkpoint keeps of a stream of batches, for the one that goes on in its place."""

    what: str
    """Of what it consists: the same of both."""
    batches_delivered: int
    """By it and all those before it."""
    limiter: dict[str, float] | None
    is_over: Callable[[Indices], Mask] | None
    """By which of these rows a `Fifo` has delivered items. Call it in a thread, it may take a
    while."""

    def record(self) -> dict[str, Any]:
        """The part that is text and numbers."""
        return {
            "what": self.what,
            "batches_delivered": self.batches_delivered,
            "limiter": self.limiter,
        }
