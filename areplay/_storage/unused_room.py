"""Warnings that much of a ring may stay unused, since many streams have a block open each."""

from __future__ import annotations

import logging
import math
from collections import deque

from areplay._storage.block_sizes import FEW_STREAMS, MAX_SHARE_UNUSED, fitting_block_rows
from areplay._storage.open_streams import OpenStreams

logger = logging.getLogger(__name__)


class UnusedRoomWarnings:
    """Warnings of one ring: noted under the registry's lock, and logged outside it, since a slow
    log must not hold up the writers.

    Args:
        has_given_size: whether the user has said how large blocks are.

    Attributes:
        unsaid: warnings that are still to be logged.
    """

    def __init__(self, has_given_size: bool) -> None:
        self.unsaid: deque[tuple[object, ...]] = deque()
        self._has_given_size = has_given_size
        self._warned_streams = 0

    def note(
        self,
        open_streams: OpenStreams,
        streams: int,
        capacity_rows: int,
        block_rows: int,
        finest_rows: int,
    ) -> None:
        """Note a warning if the streams that write, and those that ended, may leave much of the
        ring unused; again when they are twice as many.

        Args:
            streams: that write, or soon will.
            block_rows: the size of blocks, or the one that they will have.
            finest_rows: down to which blocks may be split.
        """
        ended = len(open_streams.part_empty)
        # Each stream may leave all rows of its block empty but the first.
        unused = streams * (block_rows - 1) + sum(rows for _, rows in open_streams.part_empty)
        are_few = streams + ended <= max(FEW_STREAMS, self._warned_streams)
        if are_few or unused <= MAX_SHARE_UNUSED * capacity_rows:
            return
        self._warned_streams = 2 * (streams + ended)
        smaller = fitting_block_rows(capacity_rows, block_rows, finest_rows, streams + ended, 0)
        if self._has_given_size:
            remedy = f"lower block_rows from {block_rows}, or leave it out"
        # Restarts: samplers hold the size, whether they or the actors came first.
        elif smaller < block_rows and ended > streams:
            remedy = f"give the replay block_rows={smaller}"
        elif smaller < block_rows:
            remedy = (
                "enter the context of actors before that of batches, or give the replay "
                f"block_rows={smaller}"
            )
        else:
            remedy = f"raise capacity to {math.ceil(unused / MAX_SHARE_UNUSED):,} or more"
        share = min(100.0, 100 * unused / capacity_rows)
        others = f", and {ended} have ended within theirs" if ended else ""
        self.unsaid.append((streams, block_rows, others, share, capacity_rows, remedy))

    def say(self) -> None:
        """Log what was noted. Not under the registry's lock."""
        while self.unsaid:
            try:
                values = self.unsaid.popleft()
            except IndexError:  # another thread logs it
                return
            logger.warning(
                "%d streams write to a block of %d rows each%s, so that up to %.0f %% of the "
                "%d rows of capacity stay unused; %s",
                *values,
            )
