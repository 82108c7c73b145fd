"""The rows of the steps of one environment.

A step becomes a row; the end of an episode becomes two, the second of which holds the final
observation. Nothing here changes: each method returns rows and the state after them, which the
caller assigns once the rows are safe.

    steps            s0    s1    s2 (ends)    s3    ...
    rows             s0    s1    s2    f2     s3    ...
    next_offset      +1    +1    +1    -1     +1
    prev_offset       0     1     1     1      0
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Columns
from areplay._base.episode_links import (
    GAP,
    NEXT_OFFSET,
    PREV_OFFSET,
    STEP_ID,
    first_step_id,
    first_step_ids,
)
from areplay._base.field import Field
from areplay._ingest.observation_memory import NOTHING_HANDED, HandedIn
from areplay._ingest.step_fields import (
    Observation,
    Step,
    StepFields,
    final_obs_missing,
    not_continuous,
    same_rows,
)
from areplay.spec import Spec

StepRows = tuple[Step, ...]


class SingleState(NamedTuple):
    """Where the next row of the environment belongs."""

    step_id: int = 0
    is_linked: bool = False
    """Whether the row before it belongs to the same episode."""
    expected: dict[str, bytes] | None = None
    """What its observation must be; `None` if that is not known."""
    handed: HandedIn = NOTHING_HANDED
    """The observations of the last step, see `ObservationMemory`."""
    has_ended: bool = False
    """Whether the last step ended its episode."""

    def after_gap(self) -> SingleState:
        """The state after steps that got lost."""
        step_id = first_step_id((self.step_id >> 32) + 1, GAP)
        return self._replace(step_id=step_id, is_linked=False, expected=None)

    def broken_off(self, *, has_ended: bool) -> SingleState:
        """The state before the first observation of another episode."""
        step_id = first_step_id((self.step_id >> 32) + 1)
        return self._replace(step_id=step_id, is_linked=False, expected=None, has_ended=has_ended)


class SingleEnvironment:
    """Makes rows of steps, by the state before them."""

    def __init__(self, spec: Spec, fields: StepFields) -> None:
        self._spec = spec
        self._next_fields = fields.next_fields
        self._final = {name: np.zeros(field.shape, field.dtype) for name, field in spec.items()}

    def rows(
        self,
        state: SingleState,
        row: dict[str, Any],
        next_obs: Observation | None,
        handed: HandedIn,
    ) -> tuple[StepRows, SingleState]:
        """One step as one row, or as two where the episode ends; and the state after it.

        Raises:
            SpecMismatch: the observation is not the one that is expected, a flag does not fit, or
                the final observation is missing.
        """
        if state.expected is not None:
            for name, expected in state.expected.items():
                if _bytes(self._spec[name], row[name]) != expected:
                    raise not_continuous(name)
        ended = self._flag(row, "terminated") | self._flag(row, "truncated")
        step_id = state.step_id
        row[STEP_ID] = step_id
        row[NEXT_OFFSET] = 1
        row[PREV_OFFSET] = int(state.is_linked)
        if not ended:
            announced = None
            if next_obs is not None:
                fields = self._next_fields
                announced = {name: _bytes(fields[name], next_obs[name]) for name in next_obs}
            return (row,), SingleState(step_id + 1, True, announced, handed, False)
        if next_obs is None:
            raise final_obs_missing("the end of an episode")
        begun = SingleState(first_step_id((step_id >> 32) + 1), False, None, handed, True)
        return (row, self._final_row(next_obs, step_id + 1)), begun

    def _final_row(self, next_obs: Observation, step_id: int) -> Step:
        final: dict[str, Any] = dict(self._final)
        for name, value in next_obs.items():
            final[name] = self._next_fields[name].convert(value)
        final[STEP_ID] = step_id
        final[NEXT_OFFSET] = -1
        final[PREV_OFFSET] = 1
        return final

    def _flag(self, row: Step, name: str) -> bool:
        value = row[name]
        return value if type(value) is bool else bool(self._spec[name].convert(value))

    def columns(
        self, state: SingleState, arrays: dict[str, Array], next_obs: Observation | None
    ) -> tuple[Columns, NDArray[np.intp], SingleState]:
        """n consecutive steps as rows, the places of the steps among them, and the state after.

        Args:
            arrays: name -> the values of the n steps, converted.
            next_obs: their next observations, if they were given.

        Raises:
            SpecMismatch: an observation is not the one that is expected, or the final observation
                of an episode is missing.
        """
        count = len(arrays["terminated"])
        if next_obs is not None:
            next_obs = {
                name: self._next_fields[name].convert(value, (count,))
                for name, value in next_obs.items()
            }
        ended = arrays["terminated"] | arrays["truncated"]
        if next_obs is None and ended.any():
            first = int(np.flatnonzero(ended)[0])
            raise final_obs_missing(f"step {first}, where an episode ends")
        self._check_continuity(state, arrays, next_obs, ended)
        # Each step moves on by the final observations before it.
        places = np.arange(count) + np.cumsum(ended) - ended
        columns = _spread(arrays, next_obs, ended, places)
        last_id = _link(columns, state, places[ended] + 1)
        return columns, places, _state_after(last_id, bool(ended[-1]), next_obs)

    def _check_continuity(
        self,
        state: SingleState,
        arrays: dict[str, Array],
        next_obs: Observation | None,
        ended: NDArray[np.bool_],
    ) -> None:
        for name in self._spec.observations:
            if state.expected is not None and arrays[name][0].tobytes() != state.expected[name]:
                raise not_continuous(name, "of the first step")
            if next_obs is None:
                continue
            same = same_rows(next_obs[name][:-1], arrays[name][1:]) | ended[:-1]
            if not same.all():
                raise not_continuous(name, f"of step {int(np.flatnonzero(~same)[0]) + 1}")


def _spread(
    arrays: dict[str, Array],
    next_obs: Observation | None,
    ended: NDArray[np.bool_],
    places: NDArray[np.intp],
) -> dict[str, Array]:
    """Columns with the steps at `places`, and behind each that ended its final observation."""
    rows = len(ended) + int(np.count_nonzero(ended))
    finals = places[ended] + 1
    columns = {}
    for name, array in arrays.items():
        column = np.zeros((rows, *array.shape[1:]), array.dtype)
        column[places] = array
        if next_obs is not None and name in next_obs:
            column[finals] = next_obs[name][ended]
        columns[name] = column
    return columns


def _link(columns: dict[str, Array], state: SingleState, finals: NDArray[np.intp]) -> int:
    """Add the links of the rows, of which `finals` hold final observations; the last step id."""
    rows = len(columns["terminated"])
    begins = np.zeros(rows, np.bool_)
    begins[finals[finals + 1 < rows] + 1] = True
    begun = np.cumsum(begins)  # how many episodes have begun in these rows
    # The row with which the episode of each row began; row 0 stands for the one before.
    started = np.concatenate([[0], np.flatnonzero(begins)])[begun]
    episode = state.step_id >> 32
    step_ids = first_step_ids(episode + begun) + (np.arange(rows) - started)
    # The first rows go on with an episode that has steps already, or a gap, before them.
    step_ids[begun == 0] += state.step_id - first_step_id(episode)
    next_offsets = np.ones(rows, np.int16)
    next_offsets[finals] = -1
    prev_offsets = np.where(begins, 0, 1).astype(np.int16)
    prev_offsets[0] = int(state.is_linked)
    columns[STEP_ID] = step_ids
    columns[NEXT_OFFSET] = next_offsets
    columns[PREV_OFFSET] = prev_offsets
    return int(step_ids[-1])


def _state_after(last_id: int, has_ended: bool, next_obs: Observation | None) -> SingleState:
    if has_ended:
        return SingleState(first_step_id((last_id >> 32) + 1))
    if next_obs is None:
        return SingleState(last_id + 1, True)
    return SingleState(last_id + 1, True, {n: value[-1].tobytes() for n, value in next_obs.items()})


def _bytes(field: Field, value: Any) -> bytes:
    if type(value) is np.ndarray and value.dtype == field.dtype and value.shape == field.shape:
        return value.tobytes()
    return field.convert(value).tobytes()
