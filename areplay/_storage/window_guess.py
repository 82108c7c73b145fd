"""Guesses for windows that reach into a neighbouring block, or end with their episode.

Positions in a stream are counted here from the first row of the block that holds the drawn row.
Neighbouring blocks follow each other without a gap, since a block's row count is final once the
stream has a next block:

        previous block             own block             following block
    |----- rows_before -----|-------- rows --------|----- up to block_rows -----|
    ^                       ^       ^              ^                            ^
    -rows_before            0       offset         rows                         rows + block_rows
                                    of the drawn row

A guess assumes that the rows of a window are `stride` rows apart, the next offset of the drawn
row. `areplay._storage.window_walk` finds the windows for which the guess settles nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from areplay._base.arrays import Array, Indices, Mask
from areplay._base.episode_links import NEXT_OFFSET, PREV_OFFSET, STEP_ID
from areplay._storage.ring import Ring
from areplay._storage.windows import Window


class DrawnSteps(NamedTuple):
    """Steps that U items are drawn by.

    Attributes:
        indices, step_ids: (U,) int64.
        strides: (U,) int64, the next offset of each.
        steps: (U, W) int64, how many steps after the drawn one each row of the window is; negative
            before it, and never before the first step of the episode.
    """

    indices: Indices
    step_ids: Indices
    strides: Indices
    steps: Indices


class Guess(NamedTuple):
    """What is known of U windows after the guess.

    Attributes:
        indices: (U, W) int64, the rows of each window that is settled. Columns after the last row
            repeat it.
        ahead: (U,) int64, how many rows there are after the drawn one.
        is_settled: (U,) bool, whether all rows of the window were found.
        is_dead: (U,) bool, whether a row that the window needs does not exist. Neither settled nor
            dead: the guess tells nothing.
    """

    indices: Indices
    ahead: Indices
    is_settled: Mask
    is_dead: Mask


class _Neighbours(NamedTuple):
    """The blocks around U drawn rows, each a column of shape (U, 1) int64.

    Attributes:
        own, previous, following: serials; -1 if the stream has no such block.
        rows: of the own block, 0 if the block was recycled.
        rows_before: of the previous block.
    """

    own: Indices
    previous: Indices
    following: Indices
    rows: Indices
    rows_before: Indices


class _Candidates(NamedTuple):
    """Where the guess places the rows of the windows, (U, W) each.

    Attributes:
        indices: int64, meaningless where `is_reached` is false.
        after: int64, the offset in the following block; negative in the own and the previous one.
        is_before: whether the row lies in the previous block.
        is_reached: whether the neighbouring blocks tell which index the row has.
        is_there: whether a committed row with the right step id is there.
    """

    indices: Indices
    after: Indices
    is_before: Mask
    is_reached: Mask
    is_there: Mask


def guess_windows(ring: Ring, window: Window, drawn: DrawnSteps) -> Guess:
    """Guess where the windows of steps are, with the neighbouring blocks in mind."""
    blocks = _neighbours(ring, drawn.indices)
    candidates = _place(ring, blocks, drawn)
    ahead = _run_length(candidates.is_there[:, window.back + 1 :])
    last = _column(candidates.indices, window.back + ahead)
    links = _linked(ring, NEXT_OFFSET, last)
    is_settled, is_dead = _judge_ahead(ring, window, drawn, blocks, candidates, ahead, links)
    if window.back:
        is_whole, is_broken = _judge_back(ring, window, drawn, blocks, candidates)
        is_settled &= is_whole
        is_dead |= is_broken
    # The block of the drawn row was recycled: the row does not exist any more.
    is_gone = blocks.rows[:, 0] == 0
    is_behind_last = np.arange(-window.back, window.forward + 1) > ahead[:, None]
    indices = np.where(is_behind_last, last[:, None], candidates.indices)
    return Guess(indices, ahead, is_settled & ~is_gone, is_dead | is_gone)


def _neighbours(ring: Ring, indices: Indices) -> _Neighbours:
    own = indices // ring.block_rows
    rows, following = ring.neighbours(own, following=True)
    _, previous = ring.neighbours(own, following=False)
    rows_before, _ = ring.neighbours(previous, following=False)
    return _Neighbours(
        own[:, None], previous[:, None], following[:, None], rows[:, None], rows_before[:, None]
    )


def _place(ring: Ring, blocks: _Neighbours, drawn: DrawnSteps) -> _Candidates:
    """Compute the indices of the rows of each window, and look which rows are there."""
    block_rows = ring.block_rows
    first = blocks.own * block_rows
    offsets = drawn.indices[:, None] - first + drawn.steps * drawn.strides[:, None]
    after = offsets - blocks.rows
    is_after = after >= 0
    is_before = offsets < 0
    in_following = blocks.following * block_rows + after
    in_previous = blocks.previous * block_rows + blocks.rows_before + offsets
    indices = np.where(is_after, in_following, first + offsets)
    indices = np.where(is_before, in_previous, indices)
    # Behind the own block: within the one block that we look at after it.
    is_near = (blocks.following >= 0) & (after < block_rows)
    is_reached = np.where(is_after, is_near, blocks.rows > 0)
    # Before the own block: within the one block that we look at before it.
    is_reached &= ~is_before | ((blocks.previous >= 0) & (offsets + blocks.rows_before >= 0))
    is_there = is_reached & ring.committed(indices)
    # Only the row that is the right number of steps away has this step id.
    found = _linked(ring, STEP_ID, indices)
    is_there &= found - drawn.step_ids[:, None] == drawn.steps
    return _Candidates(indices, after, is_before, is_reached, is_there)


def _judge_ahead(
    ring: Ring,
    window: Window,
    drawn: DrawnSteps,
    blocks: _Neighbours,
    candidates: _Candidates,
    ahead: Indices,
    links: Indices,
) -> tuple[Mask, Mask]:
    """Whether the drawn rows and those after them make whole windows, or never can: (U,) each.

    Args:
        ahead: (U,), how many rows were found after the drawn one, without a gap.
        links: (U,), the next offset of the last of them.
    """
    is_full = ahead == window.forward
    if window.across_episodes:
        # A full window must not end with a final observation. The walk finds the windows that go
        # on with another episode, and those that are dead.
        return is_full & (links > 0), np.zeros(len(ahead), np.bool_)
    # A negative link: the last row is the final observation, with which the window ends.
    is_settled = is_full | (links < 0)
    missing = np.minimum(window.back + 1 + ahead, window.rows - 1)
    after = _column(candidates.after, missing)
    # The missing row would be in the block after the own one. If that block is the last one of
    # the stream, or does not exist yet, the row is not written yet, or never will be.
    is_known = (after >= 0) & (after < ring.block_rows) & _is_last(ring, blocks.following[:, 0])
    # The link says that the missing row is where we looked for it: one stride on.
    return is_settled, ~is_settled & (links == drawn.strides) & is_known


def _judge_back(
    ring: Ring, window: Window, drawn: DrawnSteps, blocks: _Neighbours, candidates: _Candidates
) -> tuple[Mask, Mask]:
    """Whether all rows before the drawn ones are there, or one of them does not exist: (U,) each.

    The steps before the first one of an episode count as there, as long as that is there.
    """
    back = window.back
    behind = _run_length(candidates.is_there[:, back - 1 :: -1])
    links = _linked(ring, PREV_OFFSET, _column(candidates.indices, back - behind))
    is_whole = behind == back
    missing = np.maximum(back - 1 - behind, 0)
    # Before the own block there is no block of the stream, or a recycled one.
    is_cut_off = (blocks.previous[:, 0] < 0) | (blocks.rows_before[:, 0] == 0)
    # We know where the missing row would be: at an index where it is not, or before all blocks.
    is_known = _column(candidates.is_reached, missing)
    is_known |= _column(candidates.is_before, missing) & is_cut_off
    # No link: the step before was never stored. A link of one stride: it is where we looked.
    is_dead = (links == 0) | ((links == drawn.strides) & is_known)
    return is_whole, ~is_whole & is_dead


def _run_length(is_there: Mask) -> Indices:
    """(U,): how many values in a row are true, from the first column on."""
    lengths: Indices = np.logical_and.accumulate(is_there, axis=1).sum(axis=1)
    return lengths


def _is_last(ring: Ring, following: Indices) -> Mask:
    """Whether the stream ends with these following blocks, (U,); true of -1: before them."""
    _, after_following = ring.neighbours(following, following=True)
    is_last: Mask = (following < 0) | (after_following < 0)
    return is_last


def _column(table: Array, at: Indices) -> Array:
    """Of each window the value in column `at`: (U, W) and (U,) give (U,)."""
    values: Array = table[np.arange(len(table)), at]
    return values


def _linked(ring: Ring, name: str, indices: Indices) -> Indices:
    """What column `name` holds for the rows of these indices."""
    found: Indices = ring.columns[name].take(ring.positions(indices), mode="clip")
    return found
