"""A choice of environments of a vector, as `end_episode` takes it: indices, or a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Refusal, as_array, shown
from areplay._base.episode_links import MAX_ENVIRONMENTS


def checked_choice(environments: Any, count: int | None) -> Array:
    """The choice as an array of the library's own; of size 0 if no environment is chosen.

    Args:
        count: how many environments the vector has; `None` if that is not known yet.

    Raises:
        ValueError: it is neither indices from 0 nor a mask of bool.
    """
    chosen = as_array(environments)
    if isinstance(chosen, Refusal):
        raise ValueError(
            f"environments must be indices from 0, or a mask, got {chosen.got}; {chosen.remedy}"
        )
    if chosen.size and not _is_mask(chosen, count) and not _are_indices(chosen, count):
        known = "of a vector of L" if count is None else f"of {max(1, count)}"
        raise ValueError(
            f"environments must be indices from 0, or a mask of bool, {known} environments, "
            f"got {shown(environments)}"
        )
    return chosen.copy()


def _is_mask(chosen: Array, count: int | None) -> bool:
    if chosen.dtype != np.bool_ or chosen.ndim != 1:
        return False
    return count is None or len(chosen) == max(1, count)


def _are_indices(chosen: Array, count: int | None) -> bool:
    if chosen.dtype.kind not in "iu" or chosen.ndim > 1:
        return False
    end = MAX_ENVIRONMENTS if count is None else max(1, count)
    return bool(chosen.min() >= 0 and chosen.max() < end)


def as_mask(chosen: Array, count: int) -> NDArray[np.bool_]:
    """A checked choice among `count` environments as a mask, (count,); others are left out."""
    mask = np.zeros(count, np.bool_)
    indices = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.ravel()
    mask[indices[indices < count]] = True
    return mask
