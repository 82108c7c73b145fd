"""Queues: each item once, in order."""

from __future__ import annotations

from dataclasses import dataclass

from areplay._base.validation import set_checked, whole_number


@dataclass(frozen=True)
class Fifo:
    """Deliver each item exactly once, in the order in which items became complete; that is their
    order within a stream.

    The queue that on-policy learners need. A row is not overwritten before its item was handed to
    the learner: when the ring is full, the actors wait. Rows count that are in the ring when the
    stream of batches is opened, and all that come later. An item that can never be made (a step of
    it was lost) is left out. Rows that actors have handed in wait in their inboxes for their turn,
    `inbox_rows` of each actor at most: lower that for data that is more recent.

    Killed samplers and actors change nothing about it. The learner gets `Stalled` if fewer items
    are there than a batch takes and no rows can come any more. That is so when the actors are gone,
    or when all blocks hold rows that are still needed.

    Args:
        max_times_sampled: how often each batch comes, one after the other: several passes over
            recent items.

    Raises:
        ValueError: `max_times_sampled` is no whole number above 0.
    """

    max_times_sampled: int = 1

    def __post_init__(self) -> None:
        set_checked(
            self, max_times_sampled=whole_number("max_times_sampled", self.max_times_sampled)
        )
