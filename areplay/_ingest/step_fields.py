"""The fields of a step, as a caller gives them: names, nested parts, next and final observations.

Observations and actions of Dict and Tuple spaces come as dicts and tuples; each of their parts is a
field with a dotted name. Knows nothing of episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from areplay._base.arrays import Array, Refusal, as_array
from areplay.errors import SpecMismatch
from areplay.spec import Spec

Step = Mapping[str, Any]
Observation = dict[str, Any]
"""The parts of an observation by the names of their fields."""

_GIVE_FINAL = "pass final_obs=info['final_obs'] of the same step"


class StepFields:
    """Takes a step apart by the names of a spec.

    Attributes:
        next_fields: name of an observation -> the same field, named as a part of `next_obs`.
        final_fields: likewise, named as a part of `final_obs`.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        observations = {name: spec[name] for name in spec.observations}
        self.next_fields = {n: replace(f, name=f"next_{n}") for n, f in observations.items()}
        self.final_fields = {n: replace(f, name=f"final_{n}") for n, f in observations.items()}
        # Compared with the keys of a step, in C; the keys of a Mapping are not.
        self._names = dict.fromkeys(spec).keys()
        self._is_nested = any("." in name for name in spec)

    def of(self, step: Step) -> dict[str, Any]:
        """The values of a step by the names of their fields, as a new dict."""
        return self._flat(step) if self._is_nested else dict(step)

    def check_names(self, fields: dict[str, Any]) -> None:
        """Raise `SpecMismatch` unless these are the fields of the spec."""
        if fields.keys() != self._names:
            self._spec.check_names(fields)

    def take_next(self, fields: dict[str, Any]) -> Observation | None:
        """Take the next observation out of the fields; `None` if it was not given.

        Raises:
            SpecMismatch: a part of it is missing.
        """
        if not self._is_nested:
            value = fields.pop("next_obs", None)
            return None if value is None else {"obs": value}
        taken = {name: fields.pop(f"next_{name}", None) for name in self._spec.observations}
        if "obs" not in self._spec and (given := fields.pop("next_obs", None)) is not None:
            expected = f"a dict or tuple with {', '.join(self._spec.observations)}"
            raise SpecMismatch("next_obs", expected, type(given).__name__, "give it as obs")
        missing = [name for name, value in taken.items() if value is None]
        if len(missing) == len(taken):
            return None
        if missing:
            expected = str(self._spec[missing[0]])
            raise SpecMismatch(f"next_{missing[0]}", expected, "nothing", "give all of next_obs")
        return taken

    def final_observations(
        self, final_obs: Any, which: NDArray[np.intp], environments: int
    ) -> dict[str, Array]:
        """The final observations of the environments `which` of a vector, in their order.

        Args:
            final_obs: arrays of all environments, or a sequence with one observation for each.

        Raises:
            SpecMismatch: it is neither, or an observation is missing or does not fit the spec.
        """
        try:
            if isinstance(final_obs, Mapping) or (
                isinstance(final_obs, tuple) and "obs.0" in self._spec
            ):
                return self._final_arrays(final_obs, which)
            return self._final_sequence(final_obs, which)
        except SpecMismatch:
            raise
        except Exception as error:  # of whatever container it is
            expected = f"observations of {environments} environments, or None for those that go on"
            got = f"{type(final_obs).__name__} ({error})"
            raise SpecMismatch("final_obs", expected, got, _GIVE_FINAL) from None

    def _final_arrays(self, final_obs: Any, which: NDArray[np.intp]) -> dict[str, Array]:
        flat = dict(self._flat({"obs": final_obs}))
        finals = {}
        for name in self._all_parts(flat):
            field = self.final_fields[name]
            given = as_array(flat[name])
            if isinstance(given, Refusal):
                given = field.convert(flat[name])  # which says what is wrong with it
            is_scalar = field.shape == ()
            finals[name] = field.convert(given[which], (len(which),), by_value=is_scalar)
        return finals

    def _final_sequence(self, final_obs: Any, which: NDArray[np.intp]) -> dict[str, Array]:
        chosen = [final_obs[k] for k in which]
        if any(one is None for one in chosen):
            missing = which[[one is None for one in chosen].index(True)]
            expected = f"an observation of environment {missing}, which ended"
            raise SpecMismatch("final_obs", expected, "None", _GIVE_FINAL)
        each = [dict(self._flat({"obs": one})) for one in chosen]
        return {
            name: np.stack([self.final_fields[name].convert(one[name]) for one in each])
            for name in self._all_parts(*each)
        }

    def _all_parts(self, *observations: dict[str, Any]) -> Iterable[str]:
        """The names of an observation's fields; raise `SpecMismatch` if one of them is missing."""
        for one in observations:
            for name in self._spec.observations:
                if name not in one:
                    expected = f"{name!r} ({self._spec[name]})"
                    raise SpecMismatch("final_obs", expected, ", ".join(one), "give all of it")
        return self._spec.observations

    def _flat(self, step: Step) -> dict[str, Any]:
        """A step with the parts of nested observations and actions under dotted names."""
        flat: dict[str, Any] = {}
        for name, value in step.items():
            is_whole = name in self._spec or name == "final_obs"
            _merge(flat, {name: value} if is_whole else _parts(name, value))
        return flat


def _parts(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, tuple):
        pairs = ((str(k), inner) for k, inner in enumerate(value))
    else:
        return {name: value}
    # A field without parts keeps its name, so that a misspelt one is refused like any other.
    if not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        _merge(flat, _parts(f"{name}.{key}", inner))
    return flat


def _merge(flat: dict[str, Any], parts: dict[str, Any]) -> None:
    """Add `parts` to `flat`; refuse a field that is given twice, as a part and by its name."""
    for name, value in parts.items():
        if name in flat:
            remedy = "give it once, as a part or by its dotted name"
            raise SpecMismatch(name, "one value", "two, under one name", remedy)
        flat[name] = value


def same_rows(one: Array, other: Array) -> NDArray[np.bool_]:
    """Which rows have the same bytes, (n,): a NaN equals itself."""
    count = len(one)
    if count == 0:
        return np.ones(0, np.bool_)
    left = np.ascontiguousarray(one).reshape(count, -1).view(np.uint8)
    right = np.ascontiguousarray(other).reshape(count, -1).view(np.uint8)
    same: NDArray[np.bool_] = (left == right).all(axis=1)
    return same


def final_obs_missing(where: str) -> SpecMismatch:
    """An episode ends there, and no final observation was given."""
    expected = f"the final observation ({where})"
    return SpecMismatch("next_obs", expected, "nothing", "pass next_obs= there")


def not_continuous(name: str, whose: str = "") -> SpecMismatch:
    """An observation is not the one that the step before announced as its `next_obs`."""
    return SpecMismatch(
        name,
        "the next_obs of the step before",
        f"another observation {whose}".rstrip(),
        "end an episode with terminated or truncated before you reset, or call end_episode() if it "
        "breaks off; hand in environments stepped side by side as one vector; and pass arrays that "
        "the environment does not write to later",
    )
