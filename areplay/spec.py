"""The spec: which fields a row has, and the check that data fits them.

Rule: data is stored bit for bit or refused. A value is refused if its shape differs or if its dtype
could lose information; plain Python numbers, lists of them and single numbers of numpy or torch
have no dtype of their own worth keeping, so they are judged by value instead. Whole numbers are
always judged by value where a float or complex field takes them: numpy calls a cast from int64 to
float64 safe, and rounds above 2^53. Nothing is broadcast, nothing is dropped, nothing is guessed.

Knows nothing of where rows are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from areplay._base import episode_links as links
from areplay._base.arrays import (
    KINDS,
    Array,
    Columns,
    Refusal,
    as_array,
    exactly,
    shown,
    told,
    torch_tensor_in,
)
from areplay.errors import SpecMismatch

Nested = Any
"""A `(shape, dtype)`, or a dict of name to Nested."""

_KEYWORD = "priority"  # of `add`, beside the fields of a row
_INTEGER_SCALARS = (
    int,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
)


@dataclass(frozen=True)
class Field:
    """One named part of a row: `shape` without the row axis, and a native numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of this field in one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype.name}"

    def convert(
        self, value: object, rows: tuple[int, ...] = (), *, by_value: bool = False
    ) -> Array:
        """`value` as an array of shape `(*rows, *shape)` and exactly this dtype; no copy if it is
        one already.

        Args:
            by_value: judge an array by its values too, as if each were a number of its own.

        Raises:
            SpecMismatch: it is no array, its shape differs, or its dtype could lose information.
        """
        shape = rows + self.shape
        given = value if type(value) is np.ndarray else as_array(value)
        if isinstance(given, Refusal):
            raise self._mismatch(shape, given.got, given.remedy)
        if given.shape != shape:
            raise self._mismatch(
                shape, f"shape {given.shape}", "nothing is broadcast or reshaped for you"
            )
        if given.dtype == self.dtype and given.dtype.isnative:
            return given
        kind = given.dtype.kind
        if by_value or given.shape == () or isinstance(value, (list, tuple)):
            converted = exactly(given, self.dtype)
        elif (
            not given.dtype.isnative
            or kind not in KINDS
            or not np.can_cast(given.dtype, self.dtype, "safe")
        ):
            converted = None
        elif kind in "iu" and self.dtype.kind in "fc":
            converted = exactly(given, self.dtype)
        else:
            converted = given.astype(self.dtype)
        if converted is not None:
            return converted
        order = "" if given.dtype.isnative else " in foreign byte order"
        change = (
            f".to(torch.{self.dtype.name})"
            if torch_tensor_in(value) is not None
            else f".astype({self.dtype.name!r})"
        )
        raise self._mismatch(
            shape, f"{given.dtype.name}{order}", f"convert it yourself, for example {change}"
        )

    def _mismatch(self, shape: tuple[int, ...], got: str, remedy: str = "") -> SpecMismatch:
        remedy = remedy or "give an array of that shape"
        return SpecMismatch(self.name, f"shape {shape} of {self.dtype.name}", got, remedy)


class Spec(Mapping[str, Field]):
    """The fields of a row: `Spec(obs=((4, 84, 84), "uint8"), action=((), "int32"))`. Each is a
    `(shape, dtype)`.

    A mapping of name to `Field`, in the order given. `Spec.steps` and `Spec.from_env` make one
    whose rows are the steps of episodes.

    Attributes:
        observations, actions, extras: names of a step's fields, by what they are; empty if rows are
            not steps. The others are `reward`, `terminated` and `truncated`.

    Raises:
        ValueError: no field, an axis that is no whole number of at least 1, or a dtype that cannot
            be shared between processes (objects, strings, structures) or is in foreign byte order;
            or a field is named `priority`, which `add` takes as an argument of its own.
    """

    def __init__(self, /, **fields: tuple[tuple[int, ...], DTypeLike]) -> None:
        if not fields:
            raise ValueError(
                "a Spec needs at least one field, for example Spec(obs=((4,), 'float32'))"
            )
        if _KEYWORD in fields:
            raise _is_a_keyword(_KEYWORD)
        self._set(fields)

    def _set(self, fields: Mapping[str, Any]) -> None:
        self._fields = {name: as_field(name, given) for name, given in fields.items()}
        self.observations: tuple[str, ...] = ()
        self.actions: tuple[str, ...] = ()
        self.extras: tuple[str, ...] = ()
        self.rows = self
        """The fields that are stored: these, and for steps the links between the rows of an
        episode."""

    @classmethod
    def steps(cls, /, *, obs: Nested, action: Nested, **extras: Nested) -> Spec:
        """The fields of an environment's steps:
        `Spec.steps(obs=((84, 84), "uint8"), action=((), "int64"))`.

        `reward` (a float32), `terminated` and `truncated` are added. Each step is stored once; what
        a learner samples is put together from the rows of an episode, see `Transitions` and
        `Sequences`.

        Args:
            obs, action: a `(shape, dtype)`, or a dict of them, as for a Dict space: its fields get
                dotted names, such as `obs.camera`.
            extras: what else belongs to a step. `reward=((), "float64")` here is a reward of
                another kind.

        Raises:
            ValueError: as for `Spec(...)`, or an extra has a name that means something else.
        """
        for name in extras:
            if name.split(".")[0] == _KEYWORD:
                raise _is_a_keyword(name)
            if name in ("terminated", "truncated") or name.split(".")[0] in (
                "obs",
                "action",
                "next_obs",
                "final_obs",
            ):
                raise ValueError(
                    f"field {name!r} of a step is areplay's own; give the extra another name"
                )
        observations, actions = _flat("obs", obs), _flat("action", action)
        reward = _flat("reward", extras.pop("reward", ((), "float32")))
        others: dict[str, tuple[tuple[int, ...], DTypeLike]] = {}
        for name, given in extras.items():
            others |= _flat(name, given)
        flags: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "terminated": ((), "bool"),
            "truncated": ((), "bool"),
        }
        fields = observations | actions | reward | flags | others
        if len(fields) < len(observations) + len(actions) + len(reward) + len(flags) + len(
            others
        ) or set(reward) != {"reward"}:
            raise ValueError(
                "two fields of a step have the same name, or reward has several, in "
                f"{', '.join(fields)}"
            )
        for name in fields:
            if name in links.FIELDS:
                raise ValueError(f"field {name!r} of a step is areplay's own; give it another name")
        spec = cls(**fields)
        spec.observations, spec.actions, spec.extras = (
            tuple(observations),
            tuple(actions),
            tuple(others),
        )
        spec.rows = cls(**fields, **links.FIELDS)
        return spec

    @classmethod
    def from_env(cls, env: object, /, **extras: Nested) -> Spec:
        """`Spec.steps` with the fields of a gymnasium environment's spaces, or of one environment
        of a vector.

        Dict and Tuple spaces become fields with dotted names: `obs.camera`, `action.0`.

        Raises:
            ValueError: a space has no fixed shape (Text, Graph, Sequence); names it.
            TypeError: not a gymnasium environment.
            MissingDependency: gymnasium is not installed.
        """
        from areplay._base.spaces import env_fields

        obs, action = env_fields(env)
        return cls.steps(obs=obs, action=action, **extras)

    @property
    def is_steps(self) -> bool:
        """Whether rows are the steps of episodes."""
        return self.rows is not self

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is stored, all fields together."""
        return sum(field.row_bytes for field in self.rows._fields.values())

    def convert_columns(self, columns: Mapping[str, object]) -> tuple[int, dict[str, Array]]:
        """The number of rows and the checked arrays of `columns`: field name -> array of shape
        `(n, *field.shape)`.

        Raises:
            SpecMismatch: a field is missing or extra, or has the wrong shape or dtype; fields
                differ in their number of rows; there are 0 rows.
        """
        self.check_names(columns)
        rows = _length_of(next(iter(self._fields)), columns)
        for name in self._fields:
            if (length := _length_of(name, columns)) != rows:
                first = next(iter(self._fields))
                raise SpecMismatch(
                    name,
                    f"{rows} rows, as in {first!r}",
                    f"{length}",
                    "all columns need one length",
                )
        if rows == 0:
            raise SpecMismatch(
                next(iter(self._fields)), "at least 1 row", "0 rows", "leave the call out"
            )
        return rows, {
            name: field.convert(columns[name], (rows,)) for name, field in self._fields.items()
        }

    def check_names(self, row: Mapping[str, object]) -> None:
        """Raise `SpecMismatch` if `row` has not exactly the fields of this spec, `TypeError` if it
        is no mapping."""
        if not isinstance(row, Mapping):
            raise TypeError(f"expected a mapping of field name to array, got {type(row).__name__}")
        if row.keys() == self._fields.keys():
            return
        known = ", ".join(self._fields)
        for name in row:
            if name not in self._fields:
                raise SpecMismatch(
                    name,
                    f"one of the fields {known}",
                    "a field that the spec lacks",
                    "check its name",
                )
        missing = next(name for name in self._fields if name not in row)
        if missing == _KEYWORD:  # of a checkpoint that was written before the name was refused
            remedy = (
                "add() takes priority= as an argument of its own: hand rows with such a "
                "field in with extend()"
            )
            raise SpecMismatch(missing, str(self._fields[missing]), "nothing", remedy)
        raise SpecMismatch(
            missing, str(self._fields[missing]), "nothing", f"a row needs all of {known}"
        )

    def description(self) -> dict[str, Any]:
        """What `described` makes the same spec of: lists, strings and numbers only."""
        fields = [[field.name, list(field.shape), field.dtype.name] for field in self.values()]
        kinds = {
            "obs": list(self.observations),
            "action": list(self.actions),
            "extras": list(self.extras),
        }
        return {"fields": fields, "steps": kinds if self.is_steps else None}

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> Spec:
        """The spec of that `description`.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        spec = cls.__new__(cls)  # names that are refused today may be in a checkpoint of before
        fields = {name: (tuple(shape), dtype) for name, shape, dtype in description["fields"]}
        if not fields:
            raise ValueError("a description without fields")
        spec._set(fields)
        if (kinds := description["steps"]) is not None:
            spec.observations, spec.actions = tuple(kinds["obs"]), tuple(kinds["action"])
            spec.extras = tuple(kinds["extras"])
            spec.rows = cls.__new__(cls)
            spec.rows._set({**fields, **links.FIELDS})
        return spec

    def differences(self, other: Spec) -> dict[str, str]:
        """Field by field how `other` differs from what is expected here; empty if the two are
        equal."""
        found: dict[str, str] = {}
        for name in [*self, *(name for name in other if name not in self)]:
            mine, others = self._fields.get(name), other._fields.get(name)
            if mine != others:
                expected = "no such field" if mine is None else str(mine)
                found[name] = f"expected {expected}, got {'none' if others is None else others}"
        if self.is_steps != other.is_steps:
            expected, got = (
                "steps of episodes" if spec.is_steps else "plain rows" for spec in (self, other)
            )
            found["rows"] = f"expected {expected}, got {got}"
        elif not found and list(self) != list(other):
            found["order of the fields"] = f"expected {', '.join(self)}, got {', '.join(other)}"
        elif not found and self.observations != other.observations:
            expected, got = ", ".join(self.observations), ", ".join(other.observations)
            found["observations"] = f"expected {expected}, got {got}"
        return found

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec) or self.is_steps != other.is_steps:
            return False
        return (
            list(self.values()) == list(other.values()) and self.observations == other.observations
        )

    def __hash__(self) -> int:
        return hash(tuple(self._fields.values()))

    def __repr__(self) -> str:
        steps = ".steps" if self.is_steps else ""
        fields = ", ".join(f"{f.name}=({f.shape}, {f.dtype.name!r})" for f in self._fields.values())
        return f"Spec{steps}({fields})"


class RowWriter:
    """Writes checked single rows into the columns of a `Spec`: the fast way in, for one row at a
    time."""

    def __init__(self, spec: Spec, columns: Columns) -> None:
        self._spec = spec
        self._fields = [
            # The columns' dtype objects, since one that was unpickled with the spec is not numpy's
            # own.
            (
                name,
                columns[name],
                field.shape,
                columns[name].dtype,
                *_scalars_taken_as_they_are(field),
            )
            for name, field in spec.items()
        ]
        self._count = len(self._fields)

    def write(self, at: int, row: Mapping[str, Any]) -> None:
        """Write `row` into position `at` of each column.

        If it raises, some fields of position `at` may have been written: the caller has not
        published the row yet.

        Raises:
            SpecMismatch: a field is missing or extra, or has the wrong shape or dtype.
        """
        if len(row) != self._count:
            self._spec.check_names(row)
        for name, column, shape, dtype, types, low, high in self._fields:
            try:
                value = row[name]
            except KeyError:
                self._spec.check_names(row)
                raise
            kind = type(value)
            if (kind in types and low <= value <= high) or (
                kind is np.ndarray and value.dtype is dtype and value.shape == shape
            ):
                column[at] = value
            else:
                column[at] = self._spec[name].convert(value)


def _scalars_taken_as_they_are(field: Field) -> tuple[frozenset[type], Any, Any]:
    """The scalar types and the range that need no further look; whatever lies outside goes through
    `convert`."""
    if field.shape != () or field.dtype.kind == "c":
        return frozenset(), 0, 0
    if field.dtype.kind == "b":
        return frozenset({bool, np.bool_}), False, True
    if field.dtype.kind == "f":
        largest = float(np.finfo(field.dtype).max)
        return frozenset({float, np.float64, field.dtype.type}), -largest, largest
    return (
        frozenset(_INTEGER_SCALARS),
        int(np.iinfo(field.dtype).min),
        int(np.iinfo(field.dtype).max),
    )


def _is_a_keyword(name: str) -> ValueError:
    return ValueError(
        f"field {name!r}: add(priority=...) is an argument of its own, what Prioritized begins "
        "with for the row, so the field could never be handed in; give it another name, such as "
        "'td_error'"
    )


def as_field(name: str, given: object) -> Field:
    """The field that `given`, a `(shape, dtype)` or another field, describes.

    Raises:
        ValueError: it describes none that could be stored.
    """
    if isinstance(given, Field):
        return replace(given, name=name)
    try:
        shape, dtype_like = cast(tuple[tuple[int, ...], DTypeLike], given)
        axes = tuple(shape)
    except Exception:  # whatever an object raises that is gone through as if it were a tuple
        raise ValueError(
            f"field {name!r} must be (shape, dtype), such as ((4,), 'float32'), got {shown(given)}"
        ) from None
    if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in axes):
        raise ValueError(
            f"field {name!r}: each axis must be a whole number of at least 1, got "
            f"shape {shown(shape)}"
        )
    try:
        dtype = np.dtype(dtype_like)
    except Exception as error:
        raise ValueError(f"field {name!r}: {told(error)}; use a name such as 'float32'") from None
    if dtype.kind not in KINDS:
        raise ValueError(
            f"field {name!r}: {dtype} cannot be shared; use a bool, integer, float or complex dtype"
        )
    if not dtype.isnative:
        raise ValueError(
            f"field {name!r}: {dtype.str} is in foreign byte order; use "
            f"{dtype.newbyteorder('=').str}"
        )
    if dtype.itemsize > 16 or dtype.char in "gG":
        raise ValueError(
            f"field {name!r}: {dtype} differs between machines; use float64 or complex128"
        )
    return Field(name, tuple(int(n) for n in axes), dtype)


def _flat(name: str, nested: Nested) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """The fields of a nested description, with dotted names."""
    if not isinstance(nested, Mapping):
        return {name: nested}
    if not nested:
        raise ValueError(
            f"field {name!r} is an empty dict; leave it out, or give it a (shape, dtype)"
        )
    fields: dict[str, tuple[tuple[int, ...], DTypeLike]] = {}
    for key, inner in nested.items():
        if not isinstance(key, str) or not key or "." in key:
            raise ValueError(
                f"field {name!r}: its parts need names that are strings without a dot, got {key!r}"
            )
        fields |= _flat(f"{name}.{key}", inner)
    return fields


def _length_of(name: str, columns: Mapping[str, object]) -> int:
    value = columns[name]
    try:
        return len(value)  # type: ignore[arg-type]
    except Exception:  # of a tensor without axes, or whatever else an object raises
        raise SpecMismatch(
            name, "an array with a row axis", shown(value), "use add for one row"
        ) from None
