"""Tests of `_base.identity`: one name for one state, in every process and every run, and others for
others."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._base.identity import identity


class Mode(enum.Enum):
    """A choice."""

    ONE = 1
    TWO = 2


@dataclasses.dataclass
class Config:
    """Options in a dataclass."""

    name: str = "x"
    sizes: tuple[int, ...] = (1, 2)


class Slotted:
    """State in slots."""

    __slots__ = ("a", "b")

    def __init__(self, a: object) -> None:
        self.a = a


class Chosen:
    """It says what its state is."""

    def __init__(self, number: int) -> None:
        self.number, self.lock = number, threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"number": self.number}


class Reduced:
    """It is made anew by a call."""

    def __init__(self, number: int) -> None:
        self.number, self.at = number, object()

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (self.number,)


class Linked:
    """It may be a part of itself."""

    def __init__(self) -> None:
        self.other: object = self


class Item(areplay.Rows):
    """An item of the user's."""

    def __init__(self, value: object = None) -> None:
        self.value = value


def double(x: float) -> float:
    """A function with a name."""
    return 2 * x


def made(k: int) -> Callable[[int], int]:
    """One without."""
    return lambda x: x + k


def chain(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


STATES: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "true": lambda: True,
    "one": lambda: 1,
    "one as a float": lambda: 1.0,
    "one as text": lambda: "1",
    "one as bytes": lambda: b"1",
    "one of numpy": lambda: np.int64(1),
    "a nan": lambda: float("nan"),
    "a list": lambda: [1, "a", None],
    "a tuple": lambda: (1, "a", None),
    "a set": lambda: {"a", "set", "of", "some", "words", "in", "any", "order"},
    "a frozen set": lambda: frozenset(["a", "set", "of", "some", "words", "in", "any", "order"]),
    "a dict": lambda: {"b": 1, "a": 2},
    "another dict": lambda: {"b": 2, "a": 1},
    "a nested one": lambda: {"a": [{1, 2}, {"x": (None,)}]},
    "an ordered dict": lambda: collections.OrderedDict(a=1, b=2),
    "a deque": lambda: collections.deque([1, 2], 5),
    "an array": lambda: np.arange(6.0),
    "its transpose": lambda: np.arange(6.0).reshape(2, 3).T,
    "an array of float32": lambda: np.arange(6, dtype=np.float32),
    "an array of objects": lambda: np.array([{1}, "x", None], dtype=object),
    "records": lambda: np.zeros(2, [("a", "i4"), ("b", "f8")]),
    "a dtype": lambda: np.dtype("float32"),
    "a mode": lambda: Mode.ONE,
    "another mode": lambda: Mode.TWO,
    "a config": lambda: Config(),
    "another config": lambda: Config(sizes=(1, 3)),
    "slots": lambda: Slotted(1),
    "other slots": lambda: Slotted(2),
    "a chosen state": lambda: Chosen(1),
    "another chosen state": lambda: Chosen(2),
    "a reduced one": lambda: Reduced(1),
    "another reduced one": lambda: Reduced(2),
    "a linked one": lambda: Linked(),
    "a class": lambda: Config,
    "a function": lambda: double,
    "a built-in function": lambda: len,
    "a function of numpy": lambda: np.tanh,
    "another function of numpy": lambda: np.sin,
    "a partial function": lambda: functools.partial(double, 2),
    "another partial function": lambda: functools.partial(double, 3),
    "a bound method": lambda: Config().__eq__,
    "a lambda": lambda: lambda x: x + 1,
    "another lambda": lambda: lambda x: x - 1,
    "a closure": lambda: made(1),
    "another closure": lambda: made(2),
    "a module": lambda: np,
    "a path": lambda: pathlib.PurePosixPath("/a/b"),
    "a lock": lambda: threading.Lock(),
    "a generator": lambda: np.random.default_rng(),
    "an item": lambda: Item(1),
    "an item of ours": lambda: areplay.Transitions(n_step=3),
    "another item of ours": lambda: areplay.Transitions(n_step=3, gamma=0.5),
}


def identities() -> dict[str, str]:
    """Of an item with each of the states."""
    return {name: identity(Item(make())) for name, make in STATES.items()}


def test_equal_states_have_one_name_and_others_have_others() -> None:
    """Each is made twice; all names differ, and say which class it is."""
    names = identities()
    assert names == identities()
    assert len(set(names.values())) == len(names)
    assert all(name.startswith("Item#") for name in names.values())


@pytest.mark.parametrize("as_main", [True, False])
def test_names_are_the_same_in_other_processes(as_main: bool) -> None:
    """Whatever the hashes of text are there, and whether the class is of the main module or of one
    that is imported."""
    code = "import json, test_identity; print(json.dumps(test_identity.identities()))"
    command = [__file__] if as_main else ["-c", code]
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        said = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, timeout=60, check=True
        )
        assert json.loads(said.stdout) == identities()


def test_parts_that_are_one_object_are_as_two_equal_ones() -> None:
    """And the order of a dict does not matter, nor how an array lies in memory."""
    part = [1, 2]
    assert identity(Item([part, part])) == identity(Item([[1, 2], [1, 2]]))
    assert identity(Item({"a": 1, "b": 2})) == identity(Item({"b": 2, "a": 1}))
    array = np.arange(12).reshape(3, 4)
    assert identity(Item(array[:, ::2])) == identity(Item(array[:, ::2].copy()))
    assert identity(Item(np.asfortranarray(array))) == identity(Item(array))


def test_what_belongs_to_it_counts() -> None:
    """As the window of an item does, which its class has."""
    names = {identity(Item(), areplay.Window(forward=k)) for k in (0, 1, 1)}
    assert len(names) == 2


def test_ours_are_named_by_their_options() -> None:
    """All of them."""
    ours = [
        areplay.Rows(),
        areplay.Transitions(),
        areplay.Transitions(n_step=2),
        areplay.Transitions(frame_stack=4),
        areplay.Transitions(frame_stack=4, pad="zero"),
        areplay.Transitions(frame_stack={"obs": 4}),
        areplay.Sequences(8),
        areplay.Sequences(8, burn_in=2),
        areplay.Sequences(8, across_episodes=True),
        areplay.Sequences(8, first_step_only=("state",)),
        areplay.Sequences(8, frame_stack=2),
        areplay.Sequences(8, frame_stack=2, pad="zero"),
    ]
    assert len({identity(item) for item in ours}) == len(ours)
    assert identity(areplay.Transitions()) == "Transitions(n_step=1, gamma=0.99)"


def test_a_state_that_is_too_deep_does_not_count() -> None:
    """Where the stack ends depends on the caller's."""
    assert identity(Item(chain(50))) != identity(Item(chain(51)))
    assert identity(Item(chain(100_000))) == "Item"


def test_a_state_that_cannot_be_taken_counts_by_its_class() -> None:
    """Also if taking it raises."""

    class Refuses:
        def __reduce__(self) -> str:
            raise StopIteration

    assert identity(Item(Refuses())) == identity(Item(Refuses())) != identity(Item())


if __name__ == "__main__":
    print(json.dumps(identities()))
