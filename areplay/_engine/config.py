"""What a replay is opened with: the options of `areplay.Replay`, checked once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from areplay._base.hooks import Progress, guarded
from areplay._base.validation import whole_number
from areplay._storage.block_sizes import default_block_rows, finest_block_rows
from areplay._storage.ring import MIN_BLOCKS, check_ring_memory
from areplay.spec import Spec

logger = logging.getLogger(__name__)

_SMALL_BATCH = 4_096  # items that a batch may have even if fewer rows fit


@dataclass(frozen=True)
class ReplayConfig:
    """The fields of a row, how many rows there are and in which blocks.

    Attributes:
        has_given_block_rows: whether the user chose `block_rows`; then blocks are never split.
        prefault: whether opening touches all the memory.
        on_prefault: called as `on_prefault(done_bytes, size_bytes)` meanwhile.
    """

    spec: Spec
    blocks: int
    block_rows: int
    has_given_block_rows: bool
    prefault: bool
    on_prefault: Progress | None

    @classmethod
    def checked(
        cls,
        spec: Spec,
        capacity: int,
        block_rows: int | None,
        prefault: bool = False,
        on_prefault: Progress | None = None,
    ) -> ReplayConfig:
        """Check what `Replay` was given, and round the capacity up to whole blocks.

        Raises:
            ValueError, TypeError: an option is not what it should be.
            MemoryLimitExceeded: the rows would need more memory than this process may take.
        """
        if not isinstance(spec, Spec):
            raise TypeError(f"spec must be an areplay.Spec, got {type(spec).__name__}")
        capacity = whole_number("capacity", capacity, at_most=1 << 40)
        if block_rows is None:
            rows = default_block_rows(spec, capacity)
        else:
            rows = whole_number("block_rows", block_rows, at_most=1 << 20)
        hook = None if on_prefault is None else guarded("on_prefault", on_prefault)
        blocks = max(MIN_BLOCKS, -(-capacity // rows))
        config = cls(spec, blocks, rows, block_rows is not None, bool(prefault), hook)
        if config.capacity_rows != capacity:
            logger.info(
                "capacity %d rounded up to %d rows, whole blocks", capacity, config.capacity_rows
            )
        check_ring_memory(spec, config.capacity_rows)
        return config

    @property
    def capacity_rows(self) -> int:
        """Rows that fit."""
        return self.blocks * self.block_rows

    @property
    def finest_block_rows(self) -> int | None:
        """The least rows that splitting may leave in a block; None if blocks are never split."""
        if self.has_given_block_rows:
            return None
        return finest_block_rows(self.capacity_rows, self.block_rows)

    @cached_property
    def longest_window(self) -> int:
        """Rows that an item may span."""
        return self.block_rows if self.has_given_block_rows else self.capacity_rows // 2

    @property
    def max_batch_size(self) -> int:
        """Items that a batch may have."""
        return max(_SMALL_BATCH, self.capacity_rows)
