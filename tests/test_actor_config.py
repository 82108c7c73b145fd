"""Tests of `_ingest.actor_config`: what users pass is checked once, before anything is begun."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

from areplay._ingest.actor_config import (
    ActorGroupConfig,
    actor_program,
    inbox_options,
    raises_failures,
)
from areplay._ingest.inbox import Inboxes
from areplay._ingest.quiet import quiet_options
from areplay._processes.supervision import supervisor_options
from areplay.spec import Spec

SPEC = Spec(number=((), "int64"))
STEPS = Spec.steps(obs=((), "float32"), action=((), "int64"))


async def program(actor: Any, *args: Any, **kwargs: Any) -> None:
    """Never run."""


def group(**changes: Any) -> ActorGroupConfig:
    """Of two actors, the fourth group of its replay."""
    given: dict[str, Any] = {
        "number": 3,
        "seeds": np.random.SeedSequence(17, spawn_key=(1, 3)),
        "spec": SPEC,
        "body": program,
        "program": actor_program(program, [1], {"two": 2}, None, 0.5),
        "count": 2,
        "inbox": inbox_options(SPEC, 8),
        "supervisor": supervisor_options(3, 60.0, 2.0),
        "quiet": quiet_options(10.0, None),
        "raises": False,
    }
    return ActorGroupConfig(**given | changes)


def test_each_run_of_each_actor_has_seeds_of_its_own() -> None:
    """They follow from the group's seeds, the actor's index and the number of the run alone."""
    inboxes = Inboxes(SPEC, 2, 8)
    seen = set()
    for index in range(2):
        for run in range(3):
            config = group().for_actor(inboxes, index, run)
            expected = np.random.SeedSequence(17, spawn_key=(1, 3, index, run))
            assert config.seeds.generate_state(4).tolist() == expected.generate_state(4).tolist()
            assert (config.index, config.inboxes) == (index, inboxes)
            seen.add(tuple(config.seeds.generate_state(4).tolist()))
    assert len(seen) == 6
    inboxes.close()


def test_a_program_is_what_was_passed_and_cannot_be_changed() -> None:
    """Arguments are a tuple, keywords a dictionary of its own; all of it pickles."""
    keywords = {"two": 2}
    made = actor_program(program, [1], keywords, None, 2)
    keywords["three"] = 3
    assert (made.args, made.kwargs, made.add_timeout_s) == ((1,), {"two": 2}, 2.0)
    assert actor_program(program, (), None, None, None).kwargs == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.args = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((print, (), None, None, None), TypeError, "coroutine function"),
        ((program, "abc", None, None, None), TypeError, r"args must be a tuple .*\('abc',\)"),
        ((program, (), None, {}, None), TypeError, "weights must be an areplay.Weights"),
        ((program, (), None, None, 0), ValueError, "add_timeout_s"),
    ],
)
def test_a_program_that_no_process_can_run_is_refused(
    given: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    """The error says which option, and what is allowed."""
    with pytest.raises(error, match=said):
        actor_program(*given)


def test_an_inbox_holds_a_step_and_its_final_observation() -> None:
    """So a spec of steps needs two rows; only the default is elastic."""
    assert inbox_options(SPEC, 1) == inbox_options(SPEC, np.int64(1))  # type: ignore[arg-type]
    assert not inbox_options(SPEC, 1).is_elastic and inbox_options(SPEC, None).is_elastic
    assert inbox_options(STEPS, 2).rows == 2
    with pytest.raises(ValueError, match="inbox_rows must be a whole number of at least 2"):
        inbox_options(STEPS, 1)


def test_on_failure_is_one_of_two_words() -> None:
    """Anything else is refused."""
    assert raises_failures("raise") and not raises_failures("go on")
    with pytest.raises(ValueError, match="on_failure must be 'go on' or 'raise', got 'stop'"):
        raises_failures("stop")


def test_a_group_says_what_it_is() -> None:
    """As warnings name it."""
    assert (group().what, group(count=1).what) == ("a group of 2 actors", "an actor")
