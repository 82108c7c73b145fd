"""The memory that observations are handed in with, from one step to the next.

An environment that writes each observation over the one before (gymnasium's vectors of copy=False
do) has overwritten `obs` by the time a step is complete: what is handed in as `obs` is the next
observation. If `next_obs` is given, the next step's `obs` must be the same, which tells. If not,
only this does: the same memory as in the step before, where other values are by now.

Rule: such a step is refused. A caller that copies each observation into one array of its own cannot
be told from that environment; it has to give `next_obs`, or a new array.

Knows nothing of episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from areplay._base.arrays import is_same_memory, share_memory
from areplay.errors import SpecMismatch
from areplay.spec import Spec

_SMALL_BYTES = 4_096  # an observation that is copied to be compared: some tenth of a microsecond


HandedIn = Mapping[str, tuple[Any, bytes | None]]
"""The observations of a step by name: `(as the caller gave it, its bytes at that time)`, or `None`
for the bytes of a large one that was not copied. Empty if `next_obs` vouches for those of the next
step."""


NOTHING_HANDED: HandedIn = MappingProxyType({})


class ObservationMemory:
    """Compares the observations of a step with those of the step before."""

    def __init__(self, spec: Spec) -> None:
        self._spec, self._names = spec, spec.observations
        self._dtypes = {name: spec[name].dtype for name in spec.observations}

    def look(
        self,
        before: HandedIn,
        values: Mapping[str, Any],
        theirs: Mapping[str, Any],
        their_next: Mapping[str, Any] | None,
        axes: tuple[int, ...],
        *,
        begins: bool,
    ) -> HandedIn:
        """What to remember of this step.

        Args:
            before: what was remembered of the step before.
            values: the observations, each with `axes` in front of its own.
            theirs, their_next: `obs` and `next_obs` in the caller's memory.
            begins: whether this step begins an episode.

        Raises:
            SpecMismatch: an observation comes in the memory of the one before, where other values
                are by now.
        """
        names = self._names
        is_told = their_next is not None and not any(
            share_memory(theirs[name], their_next[name]) for name in names
        )
        if is_told and not before:
            return before
        again = [
            name for name in names if name in before and share_memory(theirs[name], before[name][0])
        ]
        # A part of an observation, such as a goal, may be changed in place when the next episode
        # begins.
        if again and (len(again) == len(names) or not begins):
            for name in again:
                value, content = before[name]
                if content is not None and self._content(name, value, axes) != content:
                    raise _reused(name)
        if is_told:
            return {}
        handed: dict[str, tuple[Any, bytes | None]] = {}
        for name in names:
            value, content = theirs[name], None
            # A large observation is copied only if it comes in the same memory for the second time.
            if name in again or not isinstance(value, np.ndarray) or value.nbytes <= _SMALL_BYTES:
                content = self._content(name, values[name], axes)
            handed[name] = (value, content)
        return handed

    def check_each(self, columns: Mapping[str, Any]) -> None:
        """Raise `SpecMismatch` for a list of observations that are one array: it holds the last of
        them n times."""
        for name in self._names:
            column = columns.get(name)
            if isinstance(column, (list, tuple)) and any(map(is_same_memory, column, column[1:])):
                raise _reused(name)

    def _content(self, name: str, value: Any, axes: tuple[int, ...]) -> bytes:
        if type(value) is np.ndarray and value.dtype == self._dtypes[name]:
            return value.tobytes()
        return self._spec[name].convert(value, axes, by_value=True).tobytes()


def _reused(name: str) -> SpecMismatch:
    return SpecMismatch(
        name,
        "an observation in memory of its own",
        "the array of the step before, with other values in it",
        "the environment writes each observation over the one before: copy it before the next "
        "step, as obs.copy() or vectors with copy=True do; if the array is yours, hand in a copy "
        "of it, or next_obs as well",
    )
