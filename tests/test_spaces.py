"""Tests of `_base.spaces`: what an environment sees and does, as shapes and dtypes, or a refusal
that says where."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from areplay._base.field import Field
from areplay._base.spaces import env_fields
from areplay.errors import AreplayError, MissingDependency

BOX = spaces.Box(-1, 1, (3,), np.float32)


class Env(gymnasium.Env[Any, Any]):
    """Has spaces, and does nothing."""

    def __init__(self, observation: Any = BOX, action: Any = BOX) -> None:
        self.observation_space, self.action_space = observation, action


def fields_of(space: Any) -> object:
    """What becomes of an observation space; the same as of an action space."""
    observation, _ = env_fields(Env(space))
    _, action = env_fields(Env(action=space))
    assert observation == action
    return observation


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(0, 255, (84, 84), np.uint8), (84, 84), "uint8"),
        (spaces.Box(-np.inf, np.inf, (), np.float64), (), "float64"),
        (spaces.Discrete(4), (), "int64"),
        (spaces.Discrete(4, start=-2, dtype=np.int32), (), "int32"),
        (spaces.MultiBinary(5), (5,), "int8"),
        (spaces.MultiBinary([2, 3]), (2, 3), "int8"),
        (spaces.MultiDiscrete([3, 4]), (2,), "int64"),
        (spaces.MultiDiscrete([[3, 4], [5, 6]], dtype=np.int16), (2, 2), "int16"),
    ],
)
def test_a_space_of_fixed_shape_is_its_shape_and_dtype(
    space: Any, shape: tuple[int, ...], dtype: str
) -> None:
    """Those of its samples, which therefore fit the field."""
    assert fields_of(space) == (shape, dtype)
    Field("obs", shape, np.dtype(dtype)).convert(space.sample())


def test_dicts_and_tuples_become_dicts_of_fields() -> None:
    """As deep as they are, in their order; the parts of a tuple are named by their numbers."""
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (4, 4), np.uint8),
            "arm": spaces.Tuple([BOX, spaces.Dict(grip=spaces.Discrete(2))]),
        }
    )
    assert fields_of(space) == {
        "camera": ((4, 4), "uint8"),
        "arm": {"0": ((3,), "float32"), "1": {"grip": ((), "int64")}},
    }


def test_of_a_vector_those_of_one_environment_are_taken() -> None:
    """Not the batched ones beside them."""
    one, vector = (
        gymnasium.make("CartPole-v1"),
        gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync"),
    )
    assert env_fields(one) == env_fields(vector) == (((4,), "float32"), ((), "int64"))
    one.close()
    vector.close()


def test_wrappers_count() -> None:
    """What is handed in comes out of the outermost wrapper."""
    env = gymnasium.wrappers.FlattenObservation(Env(spaces.Dict(a=BOX, b=BOX)))
    assert env_fields(env)[0] == ((6,), "float32")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Graph(BOX, None),
        spaces.Sequence(BOX),
        spaces.OneOf([BOX, spaces.Discrete(2)]),
        spaces.Space((3,), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
def test_a_space_without_a_fixed_shape_is_refused_by_its_place(space: Any) -> None:
    """The message says which space of the environment, where in it, what it is, and what to do."""
    nested = spaces.Dict(pair=spaces.Tuple([BOX, space]))
    for env, place in (
        (Env(space), r"env\.observation_space: 'obs' is "),
        (Env(nested), r"env\.observation_space: 'obs\.pair\.1' is "),
        (Env(action=nested), r"env\.action_space: 'action\.pair\.1' is "),
    ):
        with pytest.raises(ValueError, match=f"{place}.*no fixed shape; .*wrap"):
            env_fields(env)


@pytest.mark.parametrize("key", ["a.b", "", 3])
def test_keys_that_cannot_be_part_of_a_name_are_refused(key: Any) -> None:
    """A dot would make two fields one, and only strings are names."""
    with pytest.raises(
        ValueError,
        match=r"env\.action_space: 'action\.inner' has the key "
        r".*rename",
    ):
        env_fields(Env(action=spaces.Dict(inner=spaces.Dict({key: BOX}))))


@pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Tuple([])], ids=["Dict", "Tuple"])
def test_empty_spaces_are_refused(space: Any) -> None:
    """There would be no field of that name."""
    with pytest.raises(ValueError, match=r"'obs\.none' is an empty (Dict|Tuple)"):
        env_fields(Env(spaces.Dict(none=space)))


@pytest.mark.parametrize(
    "thing", ["CartPole-v1", Env, None, object(), spaces.Discrete(3), np.zeros(3)]
)
def test_what_is_no_environment_is_refused(thing: object) -> None:
    """With what to do instead."""
    with pytest.raises(TypeError, match=r"gymnasium\.make|Spec\.steps"):
        env_fields(thing)


def test_environments_of_the_old_gym_are_refused() -> None:
    """Whether the environment is one, or only a space; gymnasium need not be there to say so."""
    old = type("Env", (), {"__module__": "gym.core"})
    with pytest.raises(TypeError, match=r"old gym.*shimmy"):
        env_fields(type("MyEnv", (old,), {})())
    with pytest.raises(TypeError, match=r"env\.action_space is a space of the old gym"):
        env_fields(Env(action=type("Discrete", (), {"__module__": "gym.spaces.discrete"})()))


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of areplay's own, that says what to install."""
    env = Env()
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        MissingDependency,
        match=r"pip install '\.\[gymnasium\]'` in a clone of "
        r"areplay",
    ) as caught:
        env_fields(env)
    assert isinstance(caught.value, AreplayError)


def test_the_package_imports_without_the_libraries_of_its_extras() -> None:
    """gymnasium, torch and jax are neither needed nor imported by importing all of areplay."""
    program = """
import sys
extras = ("gymnasium", "torch", "jax")
for name in extras:
    sys.modules[name] = None
import areplay, areplay._base.spaces, areplay._sampling.jax, areplay._sampling.torch
assert all(sys.modules[name] is None for name in extras)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
