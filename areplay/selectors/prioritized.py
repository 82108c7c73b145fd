"""Prioritised sampling, as the user asks for it.

Source: Schaul et al., Prioritized Experience Replay, 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from areplay._base.validation import fraction, set_checked


@dataclass(frozen=True)
class Prioritized:
    """Draw rows in proportion to their priorities: `|priority| ** priority_exponent`.

    Stratified within a batch; its `probabilities` and `importance_weights` come with it. New rows
    enter with the largest priority before them, or with the one that the actor gave;
    `Replay.update_priorities` gives others. Source: Schaul et al., Prioritized Experience Replay,
    2016.

    Args:
        priority_exponent: 0: uniform; 1: in proportion. A row of priority 0 is not drawn, whatever
            the exponent.
        importance_sampling_exponent: of the weights; 0: all are 1; 1: the bias is made up for in
            full. Or a schedule: a function of the number of batches that the stream has delivered.
            See also `Batches.importance_sampling_exponent`. `Replay.sample` takes the value for 0
            batches.
        uniform_sample_probability: the share of draws that are uniform over all rows instead. A row
            by which no item can be made is drawn again, by the same chances.

    Raises:
        ValueError: one of them is not a number from 0 to 1.
    """

    priority_exponent: float = 0.6
    importance_sampling_exponent: float | Callable[[int], float] = 0.4
    uniform_sample_probability: float = 0.0

    def __post_init__(self) -> None:
        given = self.importance_sampling_exponent
        first = fraction("importance_sampling_exponent", given(0) if callable(given) else given)
        set_checked(
            self,
            priority_exponent=fraction("priority_exponent", self.priority_exponent),
            importance_sampling_exponent=given if callable(given) else first,
            uniform_sample_probability=fraction(
                "uniform_sample_probability", self.uniform_sample_probability
            ),
        )
