"""Block sizes: how many rows a block has, so that large copies are cheap and many streams leave
little room unused.

Each stream fills a block of its own, so of a ring with n streams in blocks of B rows up to
`n (B - 1)` rows are empty. Large blocks are faster in everything else. So blocks begin large, and
are split when streams are many:

    serial S, offset o, of B rows   ->   serial S * s + o // b, offset o % b, of b = B / s rows

A row's index `S * B + o` stays the same then, and so does its position in the ring.

Here are the numbers only; `areplay._storage.ring` splits the blocks.
"""

from __future__ import annotations

from areplay.spec import Spec

# a chunk is at most one block: this long one copy may keep a thread busy (0.2 ms)
_TARGET_BLOCK_BYTES = 2 << 20
# enough that recycling one forgets little at once, few enough that a sum over all is short
_TARGET_BLOCKS = 256
# a writer makes some 450,000 rows a second in blocks of 4, 13 million in blocks of 512
_LEAST_ROWS = 4
_MOST_STREAMS = 1_024  # for which blocks can be small enough in any ring that is not tiny
_SHARE_OPEN = 12  # one row in 12 may be in blocks that streams have open
# For each stream that ended in a lap, four more are expected to: a split takes a lap to show.
_ENDED_AHEAD = 4

FEW_STREAMS = 3
"""Up to 3 streams make no blocks smaller and cause no warning: much of the ring is theirs only if
it is tiny."""
MAX_SHARE_UNUSED = 0.1
"""The share of the capacity that may stay unused before a warning says so."""


def default_block_rows(spec: Spec, capacity: int) -> int:
    """Rows a block: a power of two from 16 to 4,096 that makes blocks of about 2 MiB, and about 256
    of them."""
    rows = min(_TARGET_BLOCK_BYTES // spec.row_bytes, capacity // _TARGET_BLOCKS)
    return 1 << (min(4_096, max(16, rows)).bit_length() - 1)


def finest_block_rows(capacity_rows: int, block_rows: int) -> int:
    """The least rows that a block of a ring may get by splitting: good for 1,024 streams, and 4 at
    least."""
    rows, enough = block_rows, max(_LEAST_ROWS, capacity_rows // _SHARE_OPEN // _MOST_STREAMS)
    while rows > enough and rows % 2 == 0 and rows // 2 >= _LEAST_ROWS:
        rows //= 2
    return rows


def most_streams(capacity_rows: int, block_rows: int) -> int:
    """For how many streams blocks of that size are small enough; in a tiny ring, too, for the first
    few."""
    return max(FEW_STREAMS, capacity_rows // (_SHARE_OPEN * block_rows))


def fitting_block_rows(
    capacity_rows: int, block_rows: int, finest_rows: int, streams: int, ended: int
) -> int:
    """The size of block that `streams` streams want: the present one, or that halved some times.

    Args:
        ended: streams that ended within the last lap and left a block in part empty.
    """
    if streams + ended <= most_streams(capacity_rows, block_rows):
        return block_rows
    wanted = streams + _ENDED_AHEAD * ended
    while block_rows > finest_rows and wanted > most_streams(capacity_rows, block_rows):
        block_rows //= 2
    return block_rows
