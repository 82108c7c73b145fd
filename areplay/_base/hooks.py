"""Hooks: calls into the user's code, and the way of what it raises through ours.

A hook is `on_progress`, `on_prefault`, a schedule, or a method of an item or selector of the
user's. Rule: what a hook raises reaches the caller, whatever it is. Between the hook and the door
it travels as a `HookRaised`, which no handler of ours takes for an error of its own: an `OSError`
of `on_progress` is no full disk, a `Closed` of it closes nothing.
`areplay._processes.opening.deliver` unwraps it at the door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and the bytes of all."""

_MOST_CHARACTERS = 500  # of a repr in a message


class HookRaised(BaseException):
    """An exception of a hook, on its way to the caller.

    No `Exception`, since handlers of those are for errors of ours; and not what it carries, since a
    future cannot hold a `StopIteration`, and a task that raises `SystemExit` stops its event loop.

    Attributes:
        hook: what messages call it.
        error: what it raised.
    """

    def __init__(self, hook: str, error: BaseException) -> None:
        super().__init__(hook, error)
        self.hook, self.error = hook, error

    def __str__(self) -> str:
        return f"{self.hook} raised {text_of(self.error)}"


def guarded(name: str, hook: Callable[P, T]) -> Callable[P, T]:
    """The same hook, raising `HookRaised` with whatever it raises."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return hook(*args, **kwargs)
        except HookRaised:
            raise
        except BaseException as error:
            raise HookRaised(name, error) from error

    return call


def text_of(thing: object) -> str:
    """The `repr` of an object of the user's, for a message: at most 500 characters, and also if its
    `repr` raises.

    The name of its class, if it has no `repr` of its own but one with an address.
    """
    if type(thing).__repr__ is object.__repr__:
        return type(thing).__qualname__
    try:
        text = repr(thing)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{type(thing).__qualname__}, whose __repr__ raised {type(error).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
