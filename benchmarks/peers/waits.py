"""The learner's waits as counts: how many fell into each of the bins, every one of which is 2 %
wide.

Rule: the counts of several rounds add up, so that a percentile is of all of their waits and not a
mean of percentiles. A percentile is the middle of its bin, within 1 % of the wait itself. This
module runs in every environment: it imports nothing but numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

BIN_RATIO = 1.02  # of a bin's end to its start; some 350 bins from 10 us to 10 ms
# "first_bin": its number; "waits": how many there are in it and in those that follow
Counts = dict[str, Any]


def counts(waits_us: ArrayLike) -> Counts:
    """The counts of these waits, at least one; what is below 1 us counts as 1 us."""
    bins = np.floor(np.log(np.maximum(waits_us, 1.0)) / math.log(BIN_RATIO)).astype(int)
    return {"first_bin": int(bins.min()), "waits": np.bincount(bins - bins.min()).tolist()}


def pooled(rounds: Sequence[Counts]) -> Counts:
    """The counts of all rounds together."""
    first = min(each["first_bin"] for each in rounds)
    total = [0] * max(each["first_bin"] - first + len(each["waits"]) for each in rounds)
    for each in rounds:
        for at, count in enumerate(each["waits"], each["first_bin"] - first):
            total[at] += count
    return {"first_bin": first, "waits": total}


def percentile(found: Counts, percent: float) -> float:
    """The wait, in us, which so many per cent of all waits do not exceed."""
    upto = np.cumsum(found["waits"])
    at = int(np.searchsorted(upto, percent * upto[-1] / 100))
    return float(BIN_RATIO ** (found["first_bin"] + at + 0.5))
