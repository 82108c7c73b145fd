"""Tests of `errors`."""

from __future__ import annotations

import inspect
import pickle

import pytest

import areplay
from areplay import errors

EXAMPLES: list[errors.AreplayError] = [
    errors.MissingDependency("batch.torch()", "torch"),
    errors.SpecMismatch("obs", "shape (4,) of float32", "shape (5,)", "nothing is broadcast"),
    errors.MemoryLimitExceeded(
        "a replay of 8 rows", 5_000_000, 4_096, "the host's memory", {"obs": 4_999_999}
    ),
    errors.DescriptorLimitExceeded("50 actors", 200, 17, 256),
    errors.ResourceUnavailable("memfd_create", "3 slots", "[Errno 23] Too many open files"),
    errors.LayoutMismatch("kind 'ring'", "kind 'slots'"),
    errors.Closed("this replay"),
    errors.WrongProcess("this replay", 4_711),
    errors.BatchReleased(),
    errors.EndOfEpochs("Epochs(3)"),
    errors.WaitTimeout("learner waits for actor 3", 1.5),
    errors.InboxFull("actor 3 waits for the coordinator", 2.5, "add_timeout_s"),
    errors.Stalled("all actors are gone"),
    errors.ChildFailed("child 7", 4_711, 3, 2, "Traceback: boom"),
    errors.ActorFailed("actor 7", 4_711, -9, 2, "Traceback: boom"),
    errors.SamplerFailed("sampler 7", 4_711, 3, 2, "Traceback: boom"),
    errors.StatusUnavailable("replay 4711.0", "no answer within 5 s", "ask again"),
    errors.CheckpointMissing("runs/1"),
    errors.CheckpointDamaged("runs/1", "manifest.json", "is missing"),
    errors.CheckpointMismatch("runs/1", {"obs": "expected uint8 and got int8"}),
    errors.CheckpointFailed("runs/1", "no space left on device"),
    errors.CheckpointBusy("runs/1"),
    errors.WouldBlock("the inbox is full"),
]
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


def test_there_is_an_example_of_every_error() -> None:
    """What follows is about all of them: a new error class must be added to the examples."""
    assert {type(example) for example in EXAMPLES} == set(KINDS) - {errors.AreplayError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process_boundary_whole(error: errors.AreplayError) -> None:
    """Pickled and unpickled, an error has its type, its arguments, its fields and its text."""
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_arguments_of_an_error_are_its_fields(error: errors.AreplayError) -> None:
    """Each argument can be read by the name that the constructor gives it."""
    names = list(inspect.signature(type(error)).parameters) if error.args else []
    assert tuple(getattr(error, name) for name in names) == error.args


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_text_of_an_error_names_its_values(error: errors.AreplayError) -> None:
    """A message is a sentence with the values in it, not the bare arguments."""
    text = str(error).replace(",", "")
    for argument in error.args:
        if isinstance(argument, dict):
            assert all(f"{name}: {size}" in text for name, size in argument.items())
        else:
            value = (
                f"{abs(argument)}" if isinstance(argument, int) else f"{argument}".replace(",", "")
            )
            assert value in text
    assert text != str(error.args)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_of_ours_is_under_one_root_and_no_value_error(kind: type[BaseException]) -> None:
    """`except areplay.AreplayError` catches all of ours, `except ValueError` and `except OSError`
    none."""
    assert issubclass(kind, areplay.AreplayError)
    assert not issubclass(kind, (ValueError, TypeError, OSError, RuntimeError, AssertionError))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_of_ours_is_public(kind: type[BaseException]) -> None:
    """Whoever is to catch it can name it without knowing the module."""
    assert getattr(areplay, kind.__name__) is kind
    assert kind.__name__ in areplay.__all__


def test_a_killed_child_is_told_from_one_that_exited() -> None:
    """A negative exit code is a signal, and the text says so."""
    assert "killed by signal 9" in str(errors.ActorFailed("actor 0", 1, -9, 0, ""))
    assert "exit code 3" in str(errors.ActorFailed("actor 0", 1, 3, 0, ""))


def test_the_family_ties_that_users_may_rely_on() -> None:
    """A full inbox is a timeout; a failed actor or sampler is a failed child."""
    assert issubclass(errors.InboxFull, errors.WaitTimeout)
    assert issubclass(errors.ActorFailed, errors.ChildFailed)
    assert issubclass(errors.SamplerFailed, errors.ChildFailed)
