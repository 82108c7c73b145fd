"""References that do not keep their object: what runs refers to replays and streams only by these.

A thread, a task or a callback that held an open object would keep it from being dropped. See
`areplay._processes.dropped`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec, TypeVar

from areplay.errors import Closed

T = TypeVar("T")
P = ParamSpec("P")


def unless_gone(method: Callable[P, T], what: str) -> Callable[P, T]:
    """Make a function of a bound method that does not keep its object.

    The function raises `Closed`, which names `what`, once the object is gone.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = reference()
        if bound is None:
            raise Closed(what)
        return bound(*args, **kwargs)

    return call


def notice(method: Callable[[], object]) -> Callable[[], None]:
    """Make a function of a bound method that does not keep its object: later it does nothing."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call


class Living(Generic[T]):
    """Objects that others hold, in the order in which they were added.

    An object that is dropped leaves by itself.

    Attributes:
        references: to the objects. Replaced as a whole: other threads go through them meanwhile.
    """

    def __init__(self) -> None:
        self.references: tuple[weakref.ref[T], ...] = ()

    def append(self, one: T) -> None:
        """Add an object."""
        self.references = (*self._living(), weakref.ref(one))

    def tell(self, call: Callable[[T], object]) -> None:
        """Call that with each object."""
        for reference in self.references:
            one = reference()
            if one is not None:
                call(one)

    def leave_out(self, is_over: Callable[[T], bool]) -> None:
        """Forget the objects that are over."""
        self.references = tuple(
            each for each in self._living() if (one := each()) is not None and not is_over(one)
        )

    def _living(self) -> list[weakref.ref[T]]:
        return [each for each in self.references if each() is not None]

    def __iter__(self) -> Iterator[T]:
        for each in self.references:
            one = each()
            if one is not None:
                yield one
            del one
