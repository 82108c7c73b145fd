"""Binding: makes the bound selector of a replay from what the user gave."""

from __future__ import annotations

from collections.abc import Callable

from areplay._sampling.bound_selector import BoundSelector, UniformSelector, UserSelector
from areplay._sampling.epochs_plan import EpochsSelector
from areplay._sampling.fifo_plan import FifoSelector
from areplay._sampling.prioritized_selector import PrioritizedSelector
from areplay._storage.priorities import Priorities
from areplay.selectors import AnySelector, Epochs, Fifo, Prioritized, Selector, Uniform


def bind(selector: AnySelector, priorities_of: Callable[[float], Priorities]) -> BoundSelector:
    """Bind a selector to a replay.

    A subclass of `Uniform` may override `draw`, so it counts as the user's.

    Args:
        priorities_of: the priorities of the replay, by priority exponent.

    Raises:
        MemoryLimitExceeded, ResourceUnavailable: there is no memory for priorities.
    """
    if type(selector) is Uniform:
        return UniformSelector(selector)
    if isinstance(selector, Selector):
        return UserSelector(selector)
    if isinstance(selector, Prioritized):
        return PrioritizedSelector(selector, priorities_of(selector.priority_exponent))
    if isinstance(selector, Fifo):
        return FifoSelector(selector)
    assert isinstance(selector, Epochs)
    return EpochsSelector(selector)
