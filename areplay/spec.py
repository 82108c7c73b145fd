"""The spec: the fields of a row, and the check that rows have them.

`areplay._base.field` checks the values of a field. Knows nothing of where rows are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import DTypeLike

from areplay._base import episode_links as links
from areplay._base.arrays import Array, shown
from areplay._base.field import Field, as_field
from areplay.errors import SpecMismatch

Nested = Any
"""A `(shape, dtype)`, or a dict of name to Nested."""

Fields = dict[str, tuple[tuple[int, ...], DTypeLike]]
"""Name of a field -> its `(shape, dtype)`."""

_KEYWORD = "priority"  # of `add`, beside the fields of a row
_FLAGS: Fields = {"terminated": ((), "bool"), "truncated": ((), "bool")}


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
            _check_extra(name)
        observations = _flat("obs", obs)
        actions = _flat("action", action)
        reward = _flat("reward", extras.pop("reward", ((), "float32")))
        others = [_flat(name, given) for name, given in extras.items()]
        fields = _joined([observations, actions, reward, _FLAGS, *others])
        if reward.keys() != {"reward"}:
            raise _same_name(fields)
        for name in fields:
            if name in links.FIELDS:
                raise ValueError(f"field {name!r} of a step is areplay's own; give it another name")
        spec = cls(**fields)
        spec.observations = tuple(observations)
        spec.actions = tuple(actions)
        spec.extras = tuple(name for other in others for name in other)
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


def _is_a_keyword(name: str) -> ValueError:
    return ValueError(
        f"field {name!r}: add(priority=...) is an argument of its own, what Prioritized begins "
        "with for the row, so the field could never be handed in; give it another name, such as "
        "'td_error'"
    )


def _check_extra(name: str) -> None:
    """Raise `ValueError` if an extra of a step has a name that means something else."""
    first = name.split(".")[0]
    if first == _KEYWORD:
        raise _is_a_keyword(name)
    if name in _FLAGS or first in ("obs", "action", "next_obs", "final_obs"):
        raise ValueError(f"field {name!r} of a step is areplay's own; give the extra another name")


def _joined(groups: list[Fields]) -> Fields:
    """The fields of all groups; `ValueError` if two of them have the same name."""
    fields = {name: given for group in groups for name, given in group.items()}
    if len(fields) < sum(map(len, groups)):
        raise _same_name(fields)
    return fields


def _same_name(fields: Fields) -> ValueError:
    names = ", ".join(fields)
    return ValueError(f"two fields of a step have the same name, or reward has several, in {names}")


def _flat(name: str, nested: Nested) -> Fields:
    """The fields of a nested description, with dotted names."""
    if not isinstance(nested, Mapping):
        return {name: nested}
    if not nested:
        raise ValueError(
            f"field {name!r} is an empty dict; leave it out, or give it a (shape, dtype)"
        )
    fields: Fields = {}
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
