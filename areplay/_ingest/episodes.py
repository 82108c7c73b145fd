"""Episodes: what an actor hands in, step by step, as the rows that are stored.

Each step becomes one row, and each episode one row more, which holds its final observation only: T
steps, T + 1 rows. The next observation of a step is the observation of the next row, so no
observation is stored twice. Where the rows of an episode are is written into them
(`areplay._base.episode_links`).

With a vector of L environments the rows of a step follow each other, one an environment. Where the
final observations go depends on how the environments begin their next episode (gymnasium's
autoreset modes):

    NextStep   the step after an end ignores its action and leads from the final observation to the
               first of the next episode. Its row is the final observation's: no row more, all steps
               have L rows.
    SameStep   the step of the end returns the first observation of the next episode already; the
               final one comes beside it. The rows of the final observations follow those of the
               step.
    Disabled   the step of the end returns the final observation, the caller resets. Rows as in
               SameStep.

Rule: `rows` changes nothing but what `advance` will do; after it either `advance` is called, when
the rows are safe, or `cut`, when they got lost. After a cut the next row is linked to none before
it, so nobody pairs rows over the gap. Whoever is asked to hand in a step takes a ticket at once,
and shows it when it begins to: a ticket that was not shown (its call was cancelled before it began)
is a step that got lost.

An episode may be broken off, by an environment that raised or a caller that resets it in the
middle. No row is written for that. The next row of the environment begins an episode, with a first
observation, and is linked to none before it: so no item spans the break. It takes effect before the
first step whose ticket was taken after it.

Knows nothing of where rows are put.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Columns, Refusal, as_array, shown
from areplay._base.episode_links import (
    GAP,
    MAX_ENVIRONMENTS,
    NEXT_OFFSET,
    PREV_OFFSET,
    STEP_ID,
    first_step_id,
    first_step_ids,
)
from areplay._ingest.observation_memory import HandedIn, ObservationMemory
from areplay._ingest.vector_links import VectorLinks
from areplay.errors import SpecMismatch
from areplay.spec import Field, Spec

AUTORESET_MODES = ("NextStep", "SameStep", "Disabled")

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
StepRows = tuple[Row, ...]


class Episodes:
    """The episodes of one stream: of one environment, or of a vector of them. One caller at a time.

    Attributes:
        autoreset_mode: how the environments of a vector begin their next episode, see above.
    """

    def __init__(self, spec: Spec) -> None:
        assert spec.is_steps
        self._spec = spec
        self._next_fields = {
            name: replace(spec[name], name=f"next_{name}") for name in spec.observations
        }
        self._final_fields = {
            name: replace(spec[name], name=f"final_{name}") for name in spec.observations
        }
        self._final = {name: np.zeros(field.shape, field.dtype) for name, field in spec.items()}
        # compared with a row's, in C; a Mapping's keys are not
        self._names = dict.fromkeys(spec).keys()
        self._is_nested = any("." in name for name in spec)
        self._mode, self._mode_is_given = AUTORESET_MODES[0], False
        self._environments: int | None = None  # 0: one that is no vector; None: not known yet
        self._step_id = 0  # of the next row, if there is one environment
        self._is_linked = False  # whether the row before it belongs to its episode
        self._vector = VectorLinks(0)
        # what the next observation must be, if that is known
        self._expected: dict[str, Any] | None = None
        self._memory = ObservationMemory(spec)
        self._handed: HandedIn = {}
        self._has_ended = False  # the last step ended the episode of the one environment
        self._advance: Callable[[], None] | None = None
        self._warned: set[str] = set()
        self._is_begun = self._has_gap = False  # a step was handed in; one got lost before that
        self._tickets = self._shown = 0
        # after which ticket; of whom, None: of all
        self._breaks: deque[tuple[int, Array | None]] = deque()
        self._chosen_early: list[Array] = []  # of whom, before it is known how many there are
        self._is_busy = False

    @property
    def autoreset_mode(self) -> str:
        """`NextStep`, `SameStep` or `Disabled`; gymnasium's `AutoresetMode` may be given. Of no
        meaning but in vectors.

        Raises:
            ValueError: another mode; or steps have been handed in already.
        """
        return self._mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: object) -> None:
        name = getattr(mode, "value", mode)
        if not isinstance(name, str) or name not in AUTORESET_MODES:
            raise ValueError(
                f"autoreset_mode must be one of {', '.join(AUTORESET_MODES)}, got {shown(mode)}"
            )
        if self._environments is not None and name != self._mode:
            raise ValueError(
                f"autoreset_mode is {self._mode} since the first step; set it before that"
            )
        self._mode, self._mode_is_given = name, True

    @property
    def environments(self) -> int:
        """L, if the steps come from a vector of L environments; 0 if they come from one, or before
        the first step."""
        return self._environments or 0

    def rows(self, step: Row, given: Row | None = None) -> StepRows | Columns:
        """The rows of one step: of one environment as one row, or two at an episode's end; of a
        vector as columns.

        Values that need no conversion are not copied.

        Args:
            given: the step in the caller's own memory, if `step` is a copy of it.

        Raises:
            SpecMismatch: the step does not fit the spec, or does not go on where the last one
                ended.
        """
        fields = self._fields_of(step)
        next_obs = self._take_next(fields)
        final_obs = fields.pop("final_obs", None)
        if fields.keys() != self._names:
            self._spec.check_names(fields)
        theirs, their_next = fields, next_obs
        if given is not None:
            theirs = self._fields_of(given)
            their_next = self._take_next(theirs)
        terminated = fields["terminated"]
        shape: tuple[int, ...] = () if type(terminated) is bool else self._shape_of(terminated)
        self._check_environments(shape)
        if shape == ():
            if final_obs is not None:
                raise SpecMismatch(
                    "final_obs",
                    "a vector of environments",
                    "one",
                    "pass next_obs= at an episode's end",
                )
            return self._rows_of_one(
                fields, next_obs, self._remembered(fields, theirs, their_next, shape)
            )
        return self._rows_of_vector(fields, next_obs, final_obs, shape[0], theirs, their_next)

    def columns(self, steps: Row, given: Row | None = None) -> tuple[Columns, NDArray[np.intp]]:
        """The rows of n consecutive steps of one environment, and which of them are the steps'.

        They share no memory with what was given.

        Args:
            given: the steps in the caller's own memory, if `steps` is a copy of them.

        Raises:
            SpecMismatch: the steps do not fit the spec, or do not go on where the last one ended.
        """
        fields = self._fields_of(steps)
        next_obs = self._take_next(fields)
        count, arrays = self._spec.convert_columns(fields)
        self._memory.check_each(fields if given is None else self._fields_of(given))
        self._check_environments(())
        if next_obs is not None:
            next_obs = {
                name: self._next_fields[name].convert(value, (count,))
                for name, value in next_obs.items()
            }
        ended = arrays["terminated"] | arrays["truncated"]
        if next_obs is None and ended.any():
            raise _final_obs_missing(f"step {int(np.flatnonzero(ended)[0])}, where an episode ends")
        self._check_continuity_within(arrays, next_obs, ended)
        at = np.arange(count) + np.cumsum(ended) - ended
        return self._linked_columns(arrays, next_obs, ended, at), at

    def advance(self) -> None:
        """The rows made last are safe: what comes next goes on from there."""
        assert self._advance is not None
        self._advance()
        self._advance, self._is_begun = None, True

    def cut(self) -> None:
        """The rows made last, if any, got lost: what comes next is linked to nothing before it."""
        self._advance = None
        self._expected = None
        self._chosen_early.clear()
        self._step_id = first_step_id((self._step_id >> 32) + 1, GAP)
        self._is_linked = False
        self._vector = self._vector.cut(self._mode)
        if not self._is_begun:  # nothing says yet how many environments there are
            self._environments, self._has_gap = None, True

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
        count, chosen = self._environments, as_array(environments)
        most = MAX_ENVIRONMENTS if count is None else max(1, count)
        if isinstance(chosen, Refusal):
            raise ValueError(
                f"environments must be indices from 0, or a mask, got {chosen.got}; {chosen.remedy}"
            )
        if chosen.size == 0:
            return
        is_mask = (
            chosen.dtype == np.bool_ and chosen.ndim == 1 and (count is None or len(chosen) == most)
        )
        is_indices = (
            chosen.dtype.kind in "iu"
            and chosen.ndim <= 1
            and 0 <= chosen.min() <= chosen.max() < most
        )
        if not is_mask and not is_indices:
            known = "of a vector of L" if count is None else f"of {max(1, count)}"
            raise ValueError(
                f"environments must be indices from 0, or a mask of bool, {known} environments, "
                f"got {shown(environments)}"
            )
        self._breaks.append((self._tickets, chosen.copy()))

    @contextmanager
    def step(self, ticket: int) -> Iterator[None]:
        """`advance` if what is done in it succeeds, else `cut`. Steps whose tickets were skipped
        got lost.

        Raises:
            RuntimeError: another task is handing in a step; this one gets lost.
        """
        if self._is_busy:
            raise RuntimeError(
                "another task hands in steps at this moment; let one do it, side by "
                "side as one vector"
            )
        while self._breaks and self._breaks[0][0] < ticket:
            after, which = self._breaks.popleft()
            if after > self._shown:
                self.cut()
                self._shown = after
            self._begin_anew(which)
        if ticket != self._shown + 1:
            self.cut()
        self._shown, self._is_busy = ticket, True
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
        """What comes next of these environments, or of all, is a first observation."""
        if chosen is not None and self._environments is None:
            self._chosen_early.append(chosen)
            return
        # also of a first step that got lost, by which nothing is known yet
        count = self._vector.count
        which = np.ones(count, np.bool_) if chosen is None else _mask(chosen, count)
        if chosen is None or (count == 0 and _mask(chosen, 1).all()):
            self._expected, self._is_linked, self._has_gap = None, False, False
            self._step_id = first_step_id((self._step_id >> 32) + 1)
            self._has_ended = count == 0
        self._vector = self._vector.broken_off(which)
        if self._expected is not None:
            self._expected = {
                name: (value, goes_on & ~which) for name, (value, goes_on) in self._expected.items()
            }

    # One environment.

    def _rows_of_one(
        self, row: dict[str, Any], next_obs: dict[str, Any] | None, handed: HandedIn
    ) -> StepRows:
        if self._expected is not None:
            for name, expected in self._expected.items():
                if _bytes(self._spec[name], row[name]) != expected:
                    raise _not_continuous(name, "")
        ended = self._flag(row, "terminated") | self._flag(row, "truncated")
        step_id = self._step_id
        row[STEP_ID], row[NEXT_OFFSET], row[PREV_OFFSET] = step_id, 1, int(self._is_linked)
        if not ended:
            expected = None
            if next_obs is not None:
                expected = {
                    name: _bytes(self._next_fields[name], value) for name, value in next_obs.items()
                }

            def go_on() -> None:
                self._step_id, self._is_linked, self._expected = step_id + 1, True, expected
                self._handed, self._has_ended = handed, False

            self._advance = go_on
            return (row,)
        if next_obs is None:
            raise _final_obs_missing("the end of an episode")
        final = dict(self._final)
        for name, value in next_obs.items():
            final[name] = self._next_fields[name].convert(value)
        final[STEP_ID], final[NEXT_OFFSET], final[PREV_OFFSET] = step_id + 1, -1, 1  # type: ignore[assignment]

        def begin() -> None:
            self._step_id, self._is_linked, self._expected = (
                first_step_id((step_id >> 32) + 1),
                False,
                None,
            )
            self._handed, self._has_ended = handed, True

        self._advance = begin
        return row, final

    def _flag(self, row: Row, name: str) -> bool:
        value = row[name]
        return value if type(value) is bool else bool(self._spec[name].convert(value))

    def _check_continuity_within(
        self, arrays: dict[str, Array], next_obs: dict[str, Array] | None, ended: NDArray[np.bool_]
    ) -> None:
        for name in self._spec.observations:
            if self._expected is not None and arrays[name][0].tobytes() != self._expected[name]:
                raise _not_continuous(name, "of the first step ")
            if next_obs is None:
                continue
            same = _same_rows(next_obs[name][:-1], arrays[name][1:]) | ended[:-1]
            if not same.all():
                raise _not_continuous(name, f"of step {int(np.flatnonzero(~same)[0]) + 1} ")

    def _linked_columns(
        self,
        arrays: dict[str, Array],
        next_obs: dict[str, Array] | None,
        ended: NDArray[np.bool_],
        at: NDArray[np.intp],
    ) -> Columns:
        """The rows of steps that go to the places `at`; after each that ended comes its final
        observation."""
        rows = len(ended) + int(np.count_nonzero(ended))
        finals = at[ended] + 1
        columns = {}
        for name, array in arrays.items():
            column = np.zeros((rows, *array.shape[1:]), array.dtype)
            column[at] = array
            if next_obs is not None and name in next_obs:
                column[finals] = next_obs[name][ended]
            columns[name] = column
        # rows that begin an episode; the first one goes on with what was there
        first = np.zeros(rows, np.bool_)
        first[finals[finals + 1 < rows] + 1] = True
        begins = np.flatnonzero(first)
        # for each row, the row where its episode began
        started = np.concatenate([[0], begins])[np.cumsum(first)]
        episode = self._step_id >> 32
        step_ids = first_step_ids(episode + np.cumsum(first)) + (np.arange(rows) - started)
        before_begins = np.cumsum(first) == 0
        step_ids[before_begins] += self._step_id - first_step_id(episode)
        columns[STEP_ID] = step_ids
        columns[NEXT_OFFSET] = np.ones(rows, np.int16)
        columns[NEXT_OFFSET][finals] = -1
        columns[PREV_OFFSET] = np.where(first, 0, 1).astype(np.int16)
        columns[PREV_OFFSET][0] = int(self._is_linked)
        last = int(step_ids[-1])
        if ended[-1]:
            after, linked, expected = first_step_id((last >> 32) + 1), False, None
        else:
            after, linked = last + 1, True
            expected = (
                None
                if next_obs is None
                else {name: value[-1].tobytes() for name, value in next_obs.items()}
            )

        def go_on() -> None:
            self._step_id, self._is_linked, self._expected = after, linked, expected
            self._handed = {}

        self._advance = go_on
        return columns

    # A vector of environments.

    def _rows_of_vector(
        self,
        step: dict[str, Any],
        next_obs: dict[str, Any] | None,
        final_obs: object,
        count: int,
        theirs: dict[str, Any],
        their_next: dict[str, Any] | None,
    ) -> Columns:
        # Scalars are judged by value, as those of one environment are: gymnasium's rewards are
        # float64 in a vector.
        rows = {
            name: field.convert(step[name], (count,), by_value=field.shape == ())
            for name, field in self._spec.items()
        }
        if next_obs is not None:
            fields = self._next_fields
            next_obs = {
                name: fields[name].convert(value, (count,), by_value=fields[name].shape == ())
                for name, value in next_obs.items()
            }
        self._check_continuity(rows)
        handed = self._remembered(rows, theirs, their_next, (count,))
        vector = self._vector
        ended = rows["terminated"] | rows["truncated"]
        if ended.any() and not self._mode_is_given:
            self._warn_once(
                "an episode has ended in a vector of environments that are taken to begin the next "
                "one in the step after (gymnasium's default); say how they do: "
                "actor.autoreset_mode = envs.metadata['autoreset_mode']"
            )
        if self._mode == "NextStep":
            self._check_autoreset_rows(rows, final_obs, ended)
            after = vector.link_next_step(rows, ended)
        else:
            finals = self._final_observations(next_obs, final_obs, ended)
            rows, after = vector.link_finals(rows, finals, ended)
        matters = ~ended if self._mode == "Disabled" else np.ones(count, np.bool_)
        # A copy, since many environments write each observation to the same place.
        expected = (
            None
            if next_obs is None
            else {
                name.removeprefix("next_"): (value.copy(), matters)
                for name, value in next_obs.items()
            }
        )

        def go_on() -> None:
            self._vector, self._expected, self._handed = after, expected, handed

        self._advance = go_on
        return rows

    def _check_continuity(self, rows: Mapping[str, Array]) -> None:
        """Each environment goes on with the observation that the last step announced."""
        was_reset = self._vector.was_broken_off.copy()
        for name, (expected, goes_on) in (self._expected or {}).items():
            same = _same_rows(expected, rows[name])
            if not (same | ~goes_on).all():
                raise _not_continuous(
                    name, f"of environment {int(np.flatnonzero(~same & goes_on)[0])} "
                )
            was_reset |= ~same | goes_on
        if self._expected is not None and not was_reset.all():
            self._warn_once(
                "environment %d begins an episode with the final observation of the last one, in "
                "autoreset mode Disabled; reset it, with options={'reset_mask': ended}, or set the "
                "mode of your environments",
                int(np.flatnonzero(~was_reset)[0]),
            )

    def _warn_once(self, text: str, *values: object) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text, *values)

    def _check_autoreset_rows(
        self, rows: Mapping[str, Array], final_obs: object, ended: NDArray[np.bool_]
    ) -> None:
        """Refuse what cannot come from environments that reset in the step after an end."""
        remedy = "set autoreset_mode to that of your environments, envs.metadata['autoreset_mode']"
        if final_obs is not None and not (
            isinstance(final_obs, np.ndarray) and _is_empty(final_obs)
        ):
            raise SpecMismatch(
                "final_obs", "nothing in autoreset mode NextStep", "final observations", remedy
            )
        resets = self._vector.is_resetting
        if not resets.any():
            return
        if (ended & resets).any():
            raise SpecMismatch(
                "terminated", "no end in the step of a reset (mode NextStep)", "an end", remedy
            )
        if not self._mode_is_given and rows["reward"][resets].any():
            expected = "0 in the step of a reset (mode NextStep, the default)"
            raise SpecMismatch("reward", expected, str(rows["reward"][resets].ravel()[0]), remedy)

    def _final_observations(
        self, next_obs: dict[str, Array] | None, final_obs: object, ended: NDArray[np.bool_]
    ) -> dict[str, Array]:
        """The final observations of the environments that ended, in order."""
        which = np.flatnonzero(ended)
        if len(which) == 0:
            return {}
        where = f"autoreset mode {self._mode}, environment {which[0]}, where an episode ends"
        if self._mode == "Disabled":
            if next_obs is None:
                raise _final_obs_missing(where)
            return {name: value[which] for name, value in next_obs.items()}
        if final_obs is None:
            remedy = "pass final_obs=info['final_obs'] of the vector environment's step"
            raise SpecMismatch("final_obs", f"an observation ({where})", "nothing", remedy)
        try:
            return self._finals_of(final_obs, which)
        except SpecMismatch:
            raise
        except Exception as error:  # of whatever container it is
            expected = f"observations of {len(ended)} environments, or None for those that go on"
            remedy = "pass final_obs=info['final_obs'] of the same step"
            raise SpecMismatch(
                "final_obs", expected, f"{type(final_obs).__name__} ({error})", remedy
            ) from None

    def _finals_of(self, final_obs: Any, which: NDArray[np.intp]) -> dict[str, Array]:
        """`final_obs` of those environments: arrays of all of them, or a sequence with one
        observation for each."""
        # of arrays
        if isinstance(final_obs, Mapping) or (
            isinstance(final_obs, tuple) and "obs.0" in self._spec
        ):
            flat = dict(self._flat({"obs": final_obs}))
            finals = {}
            for name in self._known(flat):
                field, given = self._final_fields[name], as_array(flat[name])
                if isinstance(given, Refusal):
                    given = field.convert(flat[name])  # which says what is wrong with it
                finals[name] = field.convert(
                    given[which], (len(which),), by_value=field.shape == ()
                )
            return finals
        chosen = [final_obs[k] for k in which]
        if any(one is None for one in chosen):
            missing = which[[one is None for one in chosen].index(True)]
            remedy = "pass final_obs=info['final_obs'] of the same step"
            raise SpecMismatch(
                "final_obs", f"an observation of environment {missing}, which ended", "None", remedy
            )
        each = [dict(self._flat({"obs": one})) for one in chosen]
        return {
            name: np.stack([self._final_fields[name].convert(one[name]) for one in each])
            for name in self._known(*each)
        }

    def _known(self, *observations: dict[str, Any]) -> Iterable[str]:
        for one in observations:
            for name in self._spec.observations:
                if name not in one:
                    raise SpecMismatch(
                        "final_obs",
                        f"{name!r} ({self._spec[name]})",
                        ", ".join(one),
                        "give all of it",
                    )
        return self._spec.observations

    # What both need.

    def _remembered(
        self, values: Row, theirs: Row, their_next: Row | None, axes: tuple[int, ...]
    ) -> HandedIn:
        return self._memory.look(
            self._handed, values, theirs, their_next, axes, begins=self._has_ended
        )

    def check_width(self, inbox_rows: int) -> None:
        """Raise `SpecMismatch` if a step may have more rows than an inbox: it could be handed in by
        parts only."""
        count = self.environments
        # in the other modes all episodes may end at once
        needed = count if self._mode == "NextStep" else 2 * count
        if needed > inbox_rows:
            raise SpecMismatch(
                "terminated",
                f"a vector whose step fits into the inbox of {inbox_rows:,} rows",
                f"{count:,} environments (mode {self._mode}), up to {needed:,} rows a step",
                f"start these actors with inbox_rows={needed} or more",
            )

    def _check_environments(self, shape: tuple[int, ...]) -> None:
        """The number of environments is that of the first step."""
        if len(shape) > 1 or (shape and not 1 <= shape[0] <= MAX_ENVIRONMENTS):
            expected = (
                f"() for one environment, or (L,) for a vector of at most {MAX_ENVIRONMENTS:,}"
            )
            raise SpecMismatch(
                "terminated", expected, f"shape {shape}", "give a step of each environment"
            )
        count = shape[0] if shape else 0
        if self._environments is None:
            self._environments = count
            self._vector = VectorLinks(count)
            if self._has_gap:
                self._vector = self._vector.cut(self._mode)
            for chosen in self._chosen_early:
                self._begin_anew(chosen)
            self._chosen_early.clear()
        elif self._environments != count:
            before = f"shape ({self._environments},)" if self._environments else "shape ()"
            raise SpecMismatch(
                "terminated",
                f"{before} as in the first step",
                f"shape {shape}",
                "use a stream for one kind of steps",
            )

    def _shape_of(self, flags: Any) -> tuple[int, ...]:
        given = as_array(flags)
        if isinstance(given, Refusal):
            is_ragged = isinstance(flags, (list, tuple)) and not given.remedy
            got = "lists of several lengths" if is_ragged else given.got
            raise SpecMismatch(
                "terminated", "shape () or (L,) of bool", got, given.remedy or "give an array"
            )
        return given.shape

    def _take_next(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Take the next observations out of the fields, all or none of them."""
        if not self._is_nested:
            value = fields.pop("next_obs", None)
            return None if value is None else {"obs": value}
        taken = {name: fields.pop(f"next_{name}", None) for name in self._spec.observations}
        if "obs" not in self._spec and (given := fields.pop("next_obs", None)) is not None:
            parts = ", ".join(self._spec.observations)
            raise SpecMismatch(
                "next_obs", f"a dict or tuple with {parts}", type(given).__name__, "give it as obs"
            )
        missing = [name for name, value in taken.items() if value is None]
        if len(missing) == len(taken):
            return None
        if missing:
            raise SpecMismatch(
                f"next_{missing[0]}", str(self._spec[missing[0]]), "nothing", "give all of next_obs"
            )
        return taken

    def _fields_of(self, step: Row) -> dict[str, Any]:
        return self._flat(step) if self._is_nested else dict(step)

    def _flat(self, step: Row) -> dict[str, Any]:
        """A step with the parts of nested observations and actions under dotted names."""
        flat: dict[str, Any] = {}
        for name, value in step.items():
            _merge(
                flat,
                {name: value} if name in self._spec or name == "final_obs" else _parts(name, value),
            )
        return flat


def _parts(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, tuple):
        pairs = ((str(k), inner) for k, inner in enumerate(value))
    else:
        return {name: value}
    # kept under its name, so that a misspelt field without parts is refused like any other
    if not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        _merge(flat, _parts(f"{name}.{key}", inner))
    return flat


def _merge(flat: dict[str, Any], parts: dict[str, Any]) -> None:
    """Add `parts` to `flat`; a field that is given twice, as a part and by its dotted name, is
    refused."""
    for name, value in parts.items():
        if name in flat:
            raise SpecMismatch(
                name,
                "one value",
                "two, under one name",
                "give it once, as a part or by its dotted name",
            )
        flat[name] = value


def _mask(chosen: Array, count: int) -> NDArray[np.bool_]:
    """(count,) bool: those of the environments that are chosen, by a mask or by their numbers."""
    which = np.zeros(count, np.bool_)
    numbers = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.ravel()
    which[numbers[numbers < count]] = True
    return which


def _bytes(field: Field, value: Any) -> bytes:
    if type(value) is np.ndarray and value.dtype == field.dtype and value.shape == field.shape:
        return value.tobytes()
    return field.convert(value).tobytes()


def _same_rows(one: Array, other: Array) -> NDArray[np.bool_]:
    """Which rows have the same bytes: a NaN is like itself."""
    count = len(one)
    if count == 0:
        return np.ones(0, np.bool_)
    left, right = (
        np.ascontiguousarray(array).reshape(count, -1).view(np.uint8) for array in (one, other)
    )
    same: NDArray[np.bool_] = (left == right).all(axis=1)
    return same


def _is_empty(final_obs: Array) -> bool:
    return final_obs.dtype == object and all(one is None for one in final_obs)


def _final_obs_missing(where: str) -> SpecMismatch:
    return SpecMismatch(
        "next_obs", f"the final observation ({where})", "nothing", "pass next_obs= there"
    )


def _not_continuous(name: str, whose: str) -> SpecMismatch:
    return SpecMismatch(
        name,
        "the next_obs of the step before",
        f"another observation {whose}".rstrip(),
        "end an episode with terminated or truncated before you reset, or call end_episode() if it "
        "breaks off; hand in environments stepped side by side as one vector; and pass arrays that "
        "the environment does not write to later",
    )
