"""How the rows of an episode know of each other: three numbers beside each row of a spec of steps.

A stream may hold the rows of many environments, a step of each in turn, so the next row of an
episode is not the next row of the stream. Each row therefore carries

    moment   int64   `episode << 32 | number`: which episode of its stream, and which step of it,
                     from 0. Two episodes that are in a stream at the same time never have the same
                     number; a step's row and the next row of its episode have moments that differ
                     by 1, and no other rows do.
    ahead    int16   how many rows of the stream further on the next row of its environment is.
                     Negative in a row that holds a final observation: there the next row is that of
                     another episode, `-ahead` rows on.
    back     int16   how many rows of the stream before the previous row of its episode is; 0 if
                     there is none.

They are written with the row, before it is published, and never changed: an actor knows where it
will put the next row when it puts one. A row whose successor was never written (its actor died)
points behind the end of its stream.

An episode of which the beginning was not stored (rows got lost before it) is numbered from `GAP`,
so that nobody takes its first row for a first observation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP_ID, NEXT_OFFSET, PREV_OFFSET = "steps.step_id", "steps.next_offset", "steps.prev_offset"
FIELDS: dict[str, tuple[tuple[int, ...], str]] = {
    STEP_ID: ((), "int64"),
    NEXT_OFFSET: ((), "int16"),
    PREV_OFFSET: ((), "int16"),
}

GAP = 1 << 30
# in a vector: twice as many rows, if all episodes end at once, must still be an int16
MAX_ENVIRONMENTS = 16_000
_NUMBER_BITS = 32
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
_EPISODE_MASK = (1 << 31) - 1

Numbers = NDArray[np.int64]


def first_step_id(episode: int, number: int = 0) -> int:
    """The moment of a step of that episode; episodes are counted modulo 2^31."""
    return (episode & _EPISODE_MASK) << _NUMBER_BITS | number


def first_step_ids(episodes: Numbers, number: int = 0) -> Numbers:
    """The same for an array of episodes."""
    moments: Numbers = (episodes & _EPISODE_MASK) << _NUMBER_BITS | number
    return moments


def numbers_of(moments: Numbers) -> Numbers:
    """Which step of its episode each is, from 0; from `GAP` if the beginning is not known."""
    numbers: Numbers = moments & _NUMBER_MASK
    return numbers


def episodes_of(moments: Numbers) -> Numbers:
    """Which episode of its stream each belongs to."""
    episodes: Numbers = moments >> _NUMBER_BITS
    return episodes
