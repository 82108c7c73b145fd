"""The rows of the steps of a vector of L environments.

The rows of a step follow each other, one an environment. Where the final observations go depends on
how the environments begin their next episode (gymnasium's autoreset modes):

    NextStep   The step after an end ignores its action and leads from the final observation to the
               first of the next episode. Its row is the final observation's: each step has L rows.
    SameStep   The step of the end returns the first observation of the next episode already, and
               the final one beside it. The final observations follow the rows of the step.
    Disabled   The step of the end returns the final observation, and the caller resets. Rows as in
               SameStep.

Nothing here changes but which warnings were logged: the caller assigns the returned state once the
rows are safe.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Columns
from areplay._ingest.observation_memory import NOTHING_HANDED, HandedIn, ObservationMemory
from areplay._ingest.step_fields import (
    Observation,
    Step,
    StepFields,
    final_obs_missing,
    not_continuous,
    same_rows,
)
from areplay._ingest.vector_links import VectorLinks
from areplay.errors import SpecMismatch
from areplay.spec import Spec

logger = logging.getLogger(__name__)


class AutoresetMode(NamedTuple):
    """How the environments of a vector begin their next episode."""

    name: str
    is_given: bool
    """Whether the caller said so; else it is gymnasium's default."""


class VectorState(NamedTuple):
    """Where the next row of each environment belongs."""

    links: VectorLinks
    expected: dict[str, tuple[Array, NDArray[np.bool_]]] | None = None
    """What the next observations must be, and of which environments; `None` if not known."""
    handed: HandedIn = NOTHING_HANDED
    """The observations of the last step, see `ObservationMemory`."""

    def after_gap(self, mode: str) -> VectorState:
        """The state after steps that got lost."""
        return self._replace(links=self.links.cut(mode), expected=None)

    def broken_off(self, which: NDArray[np.bool_]) -> VectorState:
        """The state before the first observations of other episodes of these environments."""
        expected = self.expected
        if expected is not None:
            expected = {
                name: (value, goes_on & ~which) for name, (value, goes_on) in expected.items()
            }
        return self._replace(links=self.links.broken_off(which), expected=expected)


class HandedStep(NamedTuple):
    """A step of a vector, taken apart."""

    fields: dict[str, Any]
    next_obs: Observation | None
    final_obs: Any
    theirs: Step
    """The fields in the caller's memory, if `fields` is a copy of them."""
    their_next: Observation | None


class VectorEnvironments:
    """Makes rows of steps, by the state before them."""

    def __init__(self, spec: Spec, fields: StepFields, memory: ObservationMemory) -> None:
        self._spec = spec
        self._fields = fields
        self._memory = memory
        self._warned: set[str] = set()

    def rows(
        self, state: VectorState, mode: AutoresetMode, step: HandedStep
    ) -> tuple[Columns, VectorState]:
        """The rows of one step, and the state after it.

        Raises:
            SpecMismatch: a value does not fit the spec, or cannot come from environments that begin
                episodes as `mode` says, or that go on where the last step ended.
        """
        axes = (state.links.count,)
        rows = self._converted(step.fields, axes)
        next_obs = self._converted_next(step.next_obs, axes)
        self._check_continuity(state, rows)
        handed = self._memory.look(
            state.handed, rows, step.theirs, step.their_next, axes, begins=False
        )
        ended = rows["terminated"] | rows["truncated"]
        if ended.any() and not mode.is_given:
            self._warn_once(
                "an episode has ended in a vector of environments that are taken to begin the next "
                "one in the step after (gymnasium's default); say how they do: "
                "actor.autoreset_mode = envs.metadata['autoreset_mode']"
            )
        if mode.name == "NextStep":
            _check_autoreset_rows(state.links, mode, rows, step.final_obs, ended)
            links = state.links.link_next_step(rows, ended)
        else:
            finals = self._final_observations(mode, next_obs, step.final_obs, ended)
            rows, links = state.links.link_finals(rows, finals, ended)
        return rows, VectorState(links, _announced(mode, next_obs, ended), handed)

    def _converted(self, step: Step, axes: tuple[int, ...]) -> dict[str, Array]:
        # Scalars are judged by value, as those of one environment are: gymnasium's rewards are
        # float64 in a vector.
        return {
            name: field.convert(step[name], axes, by_value=field.shape == ())
            for name, field in self._spec.items()
        }

    def _converted_next(
        self, next_obs: Observation | None, axes: tuple[int, ...]
    ) -> dict[str, Array] | None:
        if next_obs is None:
            return None
        fields = self._fields.next_fields
        return {
            name: fields[name].convert(value, axes, by_value=fields[name].shape == ())
            for name, value in next_obs.items()
        }

    def _check_continuity(self, state: VectorState, rows: Mapping[str, Array]) -> None:
        """Each environment goes on with the observation that the last step announced."""
        if state.expected is None:
            return
        was_reset = state.links.was_broken_off.copy()
        for name, (expected, goes_on) in state.expected.items():
            same = same_rows(expected, rows[name])
            differs = ~same & goes_on
            if differs.any():
                raise not_continuous(name, f"of environment {int(np.flatnonzero(differs)[0])}")
            was_reset |= ~same | goes_on
        if not was_reset.all():
            self._warn_once(
                "environment %d begins an episode with the final observation of the last one, in "
                "autoreset mode Disabled; reset it, with options={'reset_mask': ended}, or set the "
                "mode of your environments",
                int(np.flatnonzero(~was_reset)[0]),
            )

    def _final_observations(
        self,
        mode: AutoresetMode,
        next_obs: Observation | None,
        final_obs: Any,
        ended: NDArray[np.bool_],
    ) -> dict[str, Array]:
        """The final observations of the environments that ended, in order."""
        which = np.flatnonzero(ended)
        if len(which) == 0:
            return {}
        where = f"autoreset mode {mode.name}, environment {which[0]}, where an episode ends"
        if mode.name == "Disabled":
            if next_obs is None:
                raise final_obs_missing(where)
            return {name: value[which] for name, value in next_obs.items()}
        if final_obs is None:
            remedy = "pass final_obs=info['final_obs'] of the vector environment's step"
            raise SpecMismatch("final_obs", f"an observation ({where})", "nothing", remedy)
        return self._fields.final_observations(final_obs, which, len(ended))

    def _warn_once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text, *values)


def _check_autoreset_rows(
    links: VectorLinks,
    mode: AutoresetMode,
    rows: Mapping[str, Array],
    final_obs: Any,
    ended: NDArray[np.bool_],
) -> None:
    """Refuse what cannot come from environments that reset in the step after an end."""
    remedy = "set autoreset_mode to that of your environments, envs.metadata['autoreset_mode']"
    if final_obs is not None and not (isinstance(final_obs, np.ndarray) and _is_empty(final_obs)):
        expected = "nothing in autoreset mode NextStep"
        raise SpecMismatch("final_obs", expected, "final observations", remedy)
    resets = links.is_resetting
    if not resets.any():
        return
    if (ended & resets).any():
        expected = "no end in the step of a reset (mode NextStep)"
        raise SpecMismatch("terminated", expected, "an end", remedy)
    if not mode.is_given and rows["reward"][resets].any():
        expected = "0 in the step of a reset (mode NextStep, the default)"
        raise SpecMismatch("reward", expected, str(rows["reward"][resets].ravel()[0]), remedy)


def _announced(
    mode: AutoresetMode, next_obs: dict[str, Array] | None, ended: NDArray[np.bool_]
) -> dict[str, tuple[Array, NDArray[np.bool_]]] | None:
    """What the observations of the next step must be, and of which environments."""
    if next_obs is None:
        return None
    goes_on = ~ended if mode.name == "Disabled" else np.ones(len(ended), np.bool_)
    # A copy, since many environments write each observation to the same place.
    return {name.removeprefix("next_"): (value.copy(), goes_on) for name, value in next_obs.items()}


def _is_empty(final_obs: Array) -> bool:
    return final_obs.dtype == object and all(one is None for one in final_obs)
