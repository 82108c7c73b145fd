"""Checks of `areplay doctor`: versions of Python and dependencies, and extras."""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Iterator
from importlib import metadata

import areplay
from areplay.cli.finding import FAIL, OK, WARN, Result

_EXTRAS = {
    "torch": "torch",
    "jax": "jax",
    "gymnasium": "gymnasium",
    "cli": "rich",
    "metrics": "prometheus_client",
}
"""A module of each extra that users may install."""


def versions() -> Iterator[tuple[str, Result]]:
    """Compare Python and each dependency with what areplay's metadata asks for."""
    try:
        python = metadata.metadata("areplay")["Requires-Python"]
        requirements = metadata.requires("areplay") or []
    except metadata.PackageNotFoundError:
        meaning = "not installed, what it needs is not known"
        yield "areplay", Result(WARN, areplay.__version__, meaning)
        return
    yield "areplay", Result(OK, areplay.__version__, "this is what is being tried")
    yield "python", _compared(platform.python_version(), python)
    for line in requirements:
        if "extra ==" not in line:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            yield name, _dependency(name, line.removeprefix(name))


def _dependency(name: str, needed: str) -> Result:
    try:
        return _compared(metadata.version(name), needed)
    except metadata.PackageNotFoundError:
        return Result(FAIL, "missing", f"areplay needs it: pip install '{name}{needed}'")


def _compared(found: str, needed: str) -> Result:
    least = needed.removeprefix(">=")
    if _numbers(found) < _numbers(least):
        return Result(FAIL, found, f"too old: areplay needs {least} or newer")
    return Result(OK, found, f"{least} or newer is needed")


def _numbers(version: str) -> tuple[int, ...]:
    release = version.split("+")[0]
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def extras() -> Result:
    """Tell which extras are installed; areplay runs without them."""
    missing = [extra for extra, module in _EXTRAS.items() if not importlib.util.find_spec(module)]
    value = f"{len(_EXTRAS) - len(missing)} of {len(_EXTRAS)}"
    if missing:
        return Result(OK, value, f"pip install '.[{','.join(missing)}]' in a clone")
    return Result(OK, value, ", ".join(_EXTRAS))
