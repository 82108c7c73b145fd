"""Showing: how the commands put things on the screen. What is shown is theirs.

rich draws, if it is there (extra `cli`); what needs no live display is plain text without it.
Nothing that comes from another process or a file reaches the terminal with control characters in
it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from areplay.errors import MissingDependency

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
WIDTH = 100
"""Columns, where there is no terminal that has some."""
_SHADES = " ▏▎▍▌▋▊▉█"


def console(feature: str) -> Console:
    """rich's console.

    Raises:
        MissingDependency: there is none.
    """
    if not has_rich():
        raise MissingDependency(feature, "cli")
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # where rich would end with status 1
            raise BrokenPipeError

    return Plain(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def has_rich() -> bool:
    """Whether there is something to draw with."""
    return importlib.util.find_spec("rich") is not None


def write(lines: Iterable[tuple[str, ...]], widths: tuple[int, ...]) -> None:
    """Plain lines in columns, for want of rich."""
    for line in lines:
        print(
            "  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True)).rstrip()
        )


def write_json(document: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """One document on standard output."""
    print(json.dumps(document, indent=indent), flush=True)


def clean(text: str) -> str:
    """The text without what could move a cursor or change a colour."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def bar(share: float, width: int) -> str:
    """A bar that is filled that far, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_SHADES[rest] if rest else "")).ljust(width)


def size(count_bytes: float) -> str:
    """A size for people, in decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_bytes >= scale:
            return f"{count_bytes / scale:.1f} {unit}"
    return f"{count_bytes:.0f} B"


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
