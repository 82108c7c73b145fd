"""Episodes: what an actor hands in, step by step, as the rows that are stored.

Each step becomes one row, and each episode one row more, which holds its final observation only: T
steps, T + 1 rows. The next observation of a step is the observation of the next row, so no
observation is stored twice. `areplay._base.episode_links` says how the rows of an episode are
linked, `single_environment` and `vector_environments` make them.

Rule: `rows` and `columns` change nothing but what `advance` will assign. After them the caller
calls `advance`, when the rows are safe, or `cut`, when they got lost. After a cut the next row is
linked to no row before it, so no item spans the gap. A call that will hand in a step takes a ticket
when it is made, and shows it when it begins to run: a ticket that was not shown (its call was
cancelled before) is a step that got lost.

An episode may be broken off, by an environment that raised or a caller that resets it in the
middle. No row is written for that. The next row of the environment begins an episode, with a first
observation, and is linked to no row before it: so no item spans the break. It takes effect before
the first step whose ticket was taken after it.

Knows nothing of where rows are put.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Columns, Refusal, as_array, shown
from areplay._base.episode_links import MAX_ENVIRONMENTS
from areplay._ingest.environment_choice import as_mask, checked_choice
from areplay._ingest.observation_memory import ObservationMemory
from areplay._ingest.single_environment import SingleEnvironment, SingleState, StepRows
from areplay._ingest.step_fields import Step, StepFields
from areplay._ingest.vector_environments import (
    AutoresetMode,
    HandedStep,
    VectorEnvironments,
    VectorState,
)
from areplay._ingest.vector_links import VectorLinks
from areplay.errors import SpecMismatch
from areplay.spec import Spec

AUTORESET_MODES = ("NextStep", "SameStep", "Disabled")


class Episodes:
    """The episodes of one stream: of one environment, or of a vector. One caller at a time."""

    def __init__(self, spec: Spec) -> None:
        assert spec.is_steps
        self._spec = spec
        self._fields = StepFields(spec)
        self._memory = ObservationMemory(spec)
        self._single = SingleEnvironment(spec, self._fields)
        self._vector = VectorEnvironments(spec, self._fields, self._memory)
        self._mode = AutoresetMode(AUTORESET_MODES[0], is_given=False)
        # How many environments the steps come from; 0: one, which is no vector; None: not known.
        self._environments: int | None = None
        # One of these two is in use, as soon as it is known which.
        self._single_state = SingleState()
        self._vector_state = VectorState(VectorLinks(0))
        self._state_after: SingleState | VectorState | None = None  # the rows made last
        self._is_begun = False  # whether a step was handed in
        self._has_gap = False  # whether a step got lost before that
        self._tickets = 0  # taken
        self._shown = 0  # the last ticket that was shown
        # Breaks that no step has come after: the last ticket before each, and of which
        # environments it is; None: of all.
        self._breaks: deque[tuple[int, Array | None]] = deque()
        # Breaks before it is known how many environments there are.
        self._early_breaks: list[Array] = []
        self._is_busy = False

    @property
    def autoreset_mode(self) -> str:
        """`NextStep`, `SameStep` or `Disabled`: how the environments of a vector begin their next
        episode. gymnasium's `AutoresetMode` may be given.

        Raises:
            ValueError: another mode; or steps have been handed in already.
        """
        return self._mode.name

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        name = getattr(mode, "value", mode)
        if not isinstance(name, str) or name not in AUTORESET_MODES:
            modes = ", ".join(AUTORESET_MODES)
            raise ValueError(f"autoreset_mode must be one of {modes}, got {shown(mode)}")
        if self._environments is not None and name != self._mode.name:
            raise ValueError(
                f"autoreset_mode is {self._mode.name} since the first step; set it before that"
            )
        self._mode = AutoresetMode(name, is_given=True)

    @property
    def environments(self) -> int:
        """L, if the steps come from a vector of L environments; 0 if they come from one, or before
        the first step."""
        return self._environments or 0

    def rows(self, step: Step, given: Step | None = None) -> StepRows | Columns:
        """The rows of one step: of one environment as one row, or two at an episode's end; of a
        vector as columns.

        Values that need no conversion are not copied.

        Args:
            given: the step in the caller's own memory, if `step` is a copy of it.

        Raises:
            SpecMismatch: the step does not fit the spec, or does not go on where the last one
                ended.
        """
        fields = self._fields.of(step)
        next_obs = self._fields.take_next(fields)
        final_obs = fields.pop("final_obs", None)
        self._fields.check_names(fields)
        theirs = fields
        their_next = next_obs
        if given is not None:
            theirs = self._fields.of(given)
            their_next = self._fields.take_next(theirs)
        shape = _shape_of(fields["terminated"])
        self._check_environments(shape)
        if shape == ():
            if final_obs is not None:
                remedy = "pass next_obs= at an episode's end"
                raise SpecMismatch("final_obs", "a vector of environments", "one", remedy)
            state = self._single_state
            handed = self._memory.look(
                state.handed, fields, theirs, their_next, (), begins=state.has_ended
            )
            made, self._state_after = self._single.rows(state, fields, next_obs, handed)
            return made
        taken = HandedStep(fields, next_obs, final_obs, theirs, their_next)
        rows, self._state_after = self._vector.rows(self._vector_state, self._mode, taken)
        return rows

    def columns(self, steps: Step, given: Step | None = None) -> tuple[Columns, NDArray[np.intp]]:
        """The rows of n consecutive steps of one environment, and which of them are the steps'.

        They share no memory with what was given.

        Args:
            given: the steps in the caller's own memory, if `steps` is a copy of them.

        Raises:
            SpecMismatch: the steps do not fit the spec, or do not go on where the last one ended.
        """
        fields = self._fields.of(steps)
        next_obs = self._fields.take_next(fields)
        _, arrays = self._spec.convert_columns(fields)
        self._memory.check_each(fields if given is None else self._fields.of(given))
        self._check_environments(())
        columns, places, self._state_after = self._single.columns(
            self._single_state, arrays, next_obs
        )
        return columns, places

    def advance(self) -> None:
        """The rows made last are safe: what comes next goes on from there."""
        after = self._state_after
        if isinstance(after, SingleState):
            self._single_state = after
        elif isinstance(after, VectorState):
            self._vector_state = after
        self._state_after = None
        self._is_begun = True

    def cut(self) -> None:
        """The rows made last, if any, got lost: link what comes next to no row before it."""
        self._state_after = None
        self._early_breaks.clear()
        self._single_state = self._single_state.after_gap()
        self._vector_state = self._vector_state.after_gap(self._mode.name)
        if not self._is_begun:  # nothing says yet how many environments there are
            self._environments = None
            self._has_gap = True

    def ticket(self) -> int:
        """For a call that will hand in a step. Taken when it is made, not when it is run."""
        self._tickets += 1
        return self._tickets

    def break_off(self, environments: Any = None) -> None:
        """Break off the episodes of these environments, by default of all: their next steps begin
        others.

        Args:
            environments: indices from 0 to L - 1, or an (L,) mask, of a vector of L.

        Raises:
            ValueError: `environments` is neither. Nothing has changed.
        """
        if environments is None:
            self._breaks.append((self._tickets, None))
            return
        chosen = checked_choice(environments, self._environments)
        if chosen.size:
            self._breaks.append((self._tickets, chosen))

    @contextmanager
    def step(self, ticket: int) -> Iterator[None]:
        """`advance` if what is done in it succeeds, else `cut`. Steps whose tickets were skipped
        got lost.

        Raises:
            RuntimeError: another task is handing in a step; this one gets lost.
        """
        if self._is_busy:
            raise RuntimeError(
                "another task hands in steps at this moment; let one do it, side by side as one "
                "vector"
            )
        while self._breaks and self._breaks[0][0] < ticket:
            after, chosen = self._breaks.popleft()
            if after > self._shown:
                self.cut()
                self._shown = after
            self._begin_anew(chosen)
        if ticket != self._shown + 1:
            self.cut()
        self._shown = ticket
        self._is_busy = True
        try:
            yield
        except BaseException:
            self.cut()
            raise
        else:
            self.advance()
        finally:
            self._is_busy = False

    def _begin_anew(self, chosen: Array | None) -> None:
        """Take what comes next of these environments, or of all, for a first observation."""
        if chosen is not None and self._environments is None:
            self._early_breaks.append(chosen)
            return
        # Also of a vector whose first step got lost: then the number is not known, but the links
        # have it.
        count = self._vector_state.links.count
        if chosen is None:
            which = np.ones(count, np.bool_)
            self._has_gap = False
        else:
            which = as_mask(chosen, count)
        if chosen is None or (count == 0 and as_mask(chosen, 1).all()):
            self._single_state = self._single_state.broken_off(has_ended=count == 0)
        self._vector_state = self._vector_state.broken_off(which)

    def check_width(self, inbox_rows: int) -> None:
        """Raise `SpecMismatch` if a step may have more rows than an inbox: it could be handed in by
        parts only."""
        count = self.environments
        # In the other modes all episodes may end at once.
        needed = count if self._mode.name == "NextStep" else 2 * count
        if needed > inbox_rows:
            raise SpecMismatch(
                "terminated",
                f"a vector whose step fits into the inbox of {inbox_rows:,} rows",
                f"{count:,} environments (mode {self._mode.name}), up to {needed:,} rows a step",
                f"start these actors with inbox_rows={needed} or more",
            )

    def _check_environments(self, shape: tuple[int, ...]) -> None:
        """Raise `SpecMismatch` unless there are as many environments as in the first step."""
        if len(shape) > 1 or (shape and not 1 <= shape[0] <= MAX_ENVIRONMENTS):
            expected = (
                f"() for one environment, or (L,) for a vector of at most {MAX_ENVIRONMENTS:,}"
            )
            remedy = "give a step of each environment"
            raise SpecMismatch("terminated", expected, f"shape {shape}", remedy)
        count = shape[0] if shape else 0
        if self._environments is None:
            self._begin(count)
        elif self._environments != count:
            before = f"shape ({self._environments},)" if self._environments else "shape ()"
            expected = f"{before} as in the first step"
            remedy = "use a stream for one kind of steps"
            raise SpecMismatch("terminated", expected, f"shape {shape}", remedy)

    def _begin(self, count: int) -> None:
        """Take `count` for the number of environments from now on."""
        self._environments = count
        self._vector_state = VectorState(VectorLinks(count))
        if self._has_gap:
            self._vector_state = self._vector_state.after_gap(self._mode.name)
        for chosen in self._early_breaks:
            self._begin_anew(chosen)
        self._early_breaks.clear()


def _shape_of(flags: Any) -> tuple[int, ...]:
    """The shape of `terminated`: () of one environment, (L,) of a vector."""
    if type(flags) is bool:
        return ()
    given = as_array(flags)
    if isinstance(given, Refusal):
        is_ragged = isinstance(flags, (list, tuple)) and not given.remedy
        got = "lists of several lengths" if is_ragged else given.got
        remedy = given.remedy or "give an array"
        raise SpecMismatch("terminated", "shape () or (L,) of bool", got, remedy)
    return given.shape
