"""Descriptions: whether what a replay says of itself has the shape that is shown. See
docs/observing.md.

Another program may have taken the name of a replay, or the replay be of another version, so nothing
of an answer is used before it was looked at. The shape is that of `areplay.statistics`. More than
is expected is no fault.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any

from areplay.cli.terminal import clean
from areplay.errors import StatusUnavailable
from areplay.statistics import Statistics

Answer = dict[str, Any]

# fields that a replay of an earlier version does not have
_LATER = {"filled_by_learner", "quiet_s"}
# what something is divided by
_LEAST = {"capacity_rows": 1, "inbox_rows": 1, "prefetch": 1, "error_buffer": 1e-9}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class _Description:
    """The fields of an answer that are shown."""

    pid: int
    argv: tuple[str, ...]
    time_s: float
    uptime_s: float
    versions: dict[str, str]
    statistics: Statistics


def checked(answer: Answer, what: str) -> Answer:
    """The answer, if it has that shape.

    Raises:
        StatusUnavailable: it has not.
    """
    fault = _fault(answer, _Description, "")
    if fault:
        remedy = "use the `areplay top` of its version; or some other program has taken its name"
        raise StatusUnavailable(
            what, f"what it says is no description of a replay that can be shown: {fault}", remedy
        )
    return answer


def _fault(value: Any, kind: Any, where: str) -> str:
    """Where `value` is not of that kind, and how; "" if it is."""
    if dataclasses.is_dataclass(kind):
        return _fault_of_record(value, kind, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return (
            ""
            if value is None
            else _fault(value, next(one for one in inner if one is not type(None)), where)
        )
    if origin is tuple:
        if not isinstance(value, list):
            return _unlike(value, "a list", where)
        return next(
            (
                fault
                for k, one in enumerate(value)
                if (fault := _fault(one, inner[0], f"{where}[{k}]"))
            ),
            "",
        )
    if origin is dict:
        if not isinstance(value, dict):
            return _unlike(value, "an object", where)
        return next(
            (fault for one in value.values() if (fault := _fault(one, inner[1], f"{where}.*"))), ""
        )
    is_kind = type(value) in (int, float) if kind is float else type(value) is kind
    return "" if is_kind else _unlike(value, _NAMES[kind], where)


def _fault_of_record(value: Any, kind: Any, where: str) -> str:
    if not isinstance(value, dict):
        return _unlike(value, "an object", where or "it")
    for name, inner in _kinds(kind).items():
        path = f"{where}.{name}".lstrip(".")
        if name not in value:
            if name in _LATER:
                continue
            return f"{path} is missing"
        fault = _fault(value[name], inner, path)
        if not fault and name in _LEAST and value[name] < _LEAST[name]:
            fault = _unlike(value[name], f"at least {_LEAST[name]:g}", path)
        if fault:
            return fault
    return ""


@functools.cache
def _kinds(record: Any) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _unlike(value: Any, expected: str, where: str) -> str:
    shown = value if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return f"{where} should be {expected}, got {clean(repr(shown)[:_SHOWN_CHARACTERS])}"
