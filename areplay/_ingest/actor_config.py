"""Configuration of actors: what a group runs and how, checked once, and what each process gets.

All records are frozen. They are made in the learner's process, before it starts anything. A wrong
option is a `ValueError` or `TypeError` that says what is allowed.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from areplay._base.validation import optional_seconds, whole_number
from areplay._ingest.inbox import Inboxes, default_inbox_rows
from areplay._ingest.quiet import QuietOptions
from areplay._processes.child_main import Body
from areplay._processes.supervision import SupervisorOptions
from areplay.spec import Spec
from areplay.weights import Weights

ActorFunction = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ActorProgram:
    """What the user has each actor run; see `Replay.actors`."""

    function: ActorFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Weights | None
    add_timeout_s: float | None


@dataclass(frozen=True, slots=True)
class ActorConfig:
    """All that the process of an actor gets. Pickles into a process that is being spawned."""

    program: ActorProgram
    inboxes: Inboxes
    index: int
    seeds: np.random.SeedSequence


@dataclass(frozen=True, slots=True)
class InboxOptions:
    """How many rows an inbox holds."""

    rows: int
    is_elastic: bool
    """Whether fewer rows may wait while a limiter or selector holds rows back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorGroupConfig:
    """What a group of actors runs, and how it is kept alive; see `Replay.actors`."""

    number: int
    """Of the group, within its replay."""
    seeds: np.random.SeedSequence
    """Of the group. Each run of each actor gets a child of it."""
    spec: Spec
    body: Body
    """What each process runs, called with its channel and an `ActorConfig`."""
    program: ActorProgram
    count: int
    inbox: InboxOptions
    supervisor: SupervisorOptions
    quiet: QuietOptions
    raises: bool
    """Whether the learner gets the error of an actor that failed for good."""

    @property
    def what(self) -> str:
        """The group, in words."""
        return "an actor" if self.count == 1 else f"a group of {self.count} actors"

    def for_actor(self, inboxes: Inboxes, index: int, run: int) -> ActorConfig:
        """What the process of actor `index` gets at its start number `run`, from 0."""
        key = (*self.seeds.spawn_key, index, run)
        seeds = np.random.SeedSequence(self.seeds.entropy, spawn_key=key)
        return ActorConfig(self.program, inboxes, index, seeds)


def actor_program(
    function: Any,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    weights: Any,
    add_timeout_s: float | None,
) -> ActorProgram:
    """The program as users pass it; refuses what no other process can run."""
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"actors need a coroutine function (async def), got {function!r}")
    try:
        pickle.dumps(function)
    except Exception as error:
        raise ValueError(
            f"{function!r} cannot reach another process, define it at module level: {error}"
        ) from None
    if isinstance(args, (str, bytes)):
        raise TypeError(
            f"args must be a tuple of arguments, such as ({args!r},), got a {type(args).__name__}"
        )
    if weights is not None and not isinstance(weights, Weights):
        raise TypeError(f"weights must be an areplay.Weights, got {type(weights).__name__}")
    return ActorProgram(
        function=function,
        args=tuple(args),
        kwargs=dict(kwargs or {}),
        weights=weights,
        add_timeout_s=optional_seconds("add_timeout_s", add_timeout_s),
    )


def inbox_options(spec: Spec, inbox_rows: int | None) -> InboxOptions:
    """The size of inboxes as users pass it; None: the default, which is elastic."""
    if inbox_rows is None:
        return InboxOptions(default_inbox_rows(spec), is_elastic=True)
    # The last step of an episode and its final observation go in together.
    least_rows = 2 if spec.is_steps else 1
    rows = whole_number("inbox_rows", inbox_rows, at_least=least_rows, at_most=1 << 30)
    return InboxOptions(rows, is_elastic=False)


def raises_failures(on_failure: Any) -> bool:
    """Whether `on_failure` is "raise"; refuses all but that and "go on"."""
    if on_failure not in ("go on", "raise"):
        raise ValueError(f"on_failure must be 'go on' or 'raise', got {on_failure!r}")
    return bool(on_failure == "raise")
