"""Descriptions: checking the shape of a replay's answer before `areplay top` shows it.

Another program may have taken the name of a replay, or the replay may be of another version. So
each field is checked before it is used. The shape is that of `areplay.statistics`; additional
fields are no fault. See docs/observing.md.
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

# Fields that a replay of an earlier version does not have.
_LATER = {"filled_by_learner", "quiet_s"}
# Least values of fields that others are divided by.
_LEAST = {"capacity_rows": 1, "inbox_rows": 1, "prefetch": 1, "error_buffer": 1e-9}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class _Description:
    """The fields of an answer that `areplay top` shows."""

    pid: int
    argv: tuple[str, ...]
    time_s: float
    uptime_s: float
    versions: dict[str, str]
    statistics: Statistics


def checked(answer: Answer, what: str) -> Answer:
    """Return the answer if it has that shape.

    Raises:
        StatusUnavailable: it has another shape.
    """
    fault = _fault(answer, _Description, "")
    if fault:
        reason = f"what it says is no description of a replay that can be shown: {fault}"
        remedy = "use the `areplay top` of its version; or some other program has taken its name"
        raise StatusUnavailable(what, reason, remedy)
    return answer


def _fault(value: Any, kind: Any, where: str) -> str:
    """Say where and how `value` differs from the type `kind`; "" if it does not differ."""
    if dataclasses.is_dataclass(kind):
        return _fault_of_record(value, kind, where)
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (present,) = (one for one in inner if one is not type(None))
        return "" if value is None else _fault(value, present, where)
    if origin is tuple:
        if not isinstance(value, list):
            return _unlike(value, "a list", where)
        faults = (_fault(one, inner[0], f"{where}[{k}]") for k, one in enumerate(value))
        return next(filter(None, faults), "")
    if origin is dict:
        if not isinstance(value, dict):
            return _unlike(value, "an object", where)
        faults = (_fault(one, inner[1], f"{where}.*") for one in value.values())
        return next(filter(None, faults), "")
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
