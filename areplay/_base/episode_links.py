"""How the rows of an episode know of each other: three numbers beside each row of a spec of steps.

A stream may hold the rows of many environments, a step of each in turn, so the next row of an
episode is not the next row of the stream. Each row therefore carries

    step_id       int64   `episode << 32 | number`: the episode of its stream, and the step of that
                          episode, from 0. Two episodes that are in a stream at the same time have
                          different numbers. The step ids of a step's row and of the next row of its
                          episode differ by 1; those of no other two rows do.
    next_offset   int16   the next row of its environment is that many rows of the stream further
                          on. Negative in a row that holds a final observation: there the next row
                          is that of another episode, `-next_offset` rows on.
    prev_offset   int16   the previous row of its episode is that many rows of the stream before;
                          0 if the row is the first of its episode.

One environment, with an episode of three steps (f holds its final observation):

    row           0    1    2    f    3    4
    step_id      e,0  e,1  e,2  e,3 e+1,0 ...
    next_offset   1    1    1   -1    1    1
    prev_offset   0    1    1    1    0    1

A vector of two environments A and B, a row of each in turn:

    row           A0   B0   A1   B1   A2   B2
    next_offset   2    2    2    2    2    2
    prev_offset   0    0    2    2    2    2

They are written with the row, before it is published, and never changed: an actor knows where it
will put the next row when it puts one. A row whose successor was never written (its actor died)
points behind the end of its stream.

The steps of an episode whose beginning was not stored (rows got lost before it) are numbered from
`GAP`, so that a reader does not take its first row for a first observation.
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
    """The id of a step of that episode; episodes are counted modulo 2^31."""
    return (episode & _EPISODE_MASK) << _NUMBER_BITS | number


def first_step_ids(episodes: Numbers, number: int = 0) -> Numbers:
    """The same for an array of episodes."""
    step_ids: Numbers = (episodes & _EPISODE_MASK) << _NUMBER_BITS | number
    return step_ids


def numbers_of(step_ids: Numbers) -> Numbers:
    """The number of each step in its episode, from 0; from `GAP` if the beginning is not known."""
    numbers: Numbers = step_ids & _NUMBER_MASK
    return numbers


def episodes_of(step_ids: Numbers) -> Numbers:
    """The episode of its stream to which each belongs."""
    episodes: Numbers = step_ids >> _NUMBER_BITS
    return episodes
