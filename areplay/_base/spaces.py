"""Spaces: the shapes and dtypes of what a gymnasium environment sees and does.

Knows gymnasium's spaces, and nothing of specs: a space becomes a `(shape, dtype name)`, a Dict or
Tuple space a dict of them, and a space whose samples have no fixed shape is refused by its place in
the whole, such as `obs.text`. gymnasium is imported when it is needed, not before: the package
works without it.
"""

from __future__ import annotations

from typing import Any

from areplay.errors import MissingDependency

Nested = tuple[tuple[int, ...], str] | dict[str, "Nested"]

_HINT = "leave it out of the space, or wrap the environment so that it becomes a Box"


def env_fields(env: object) -> tuple[Nested, Nested]:
    """The observation and the action of `env`, each as `(shape, dtype name)` or a dict of name to
    such, nested.

    Of a vector of environments: those of one of them.

    Args:
        env: a `gymnasium.Env`, or a vector of them.

    Raises:
        ValueError: a space has no fixed shape (Text, Graph, Sequence, OneOf), or a Dict or Tuple
            space is empty or has a key that cannot be part of a field's name.
        TypeError: `env` is no gymnasium environment.
        MissingDependency: gymnasium is not installed.
    """
    if _is_of_old_gym(env):
        raise TypeError(
            f"{type(env).__name__} is an environment of the old gym, which is no longer "
            "maintained; use gymnasium's, for example gymnasium.make('GymV26Environment-v0', "
            "env=env) of the package shimmy"
        )
    try:
        from gymnasium import Space
    except ImportError as error:
        raise MissingDependency("Spec.from_env", "gymnasium") from error
    if isinstance(env, (str, type)):
        raise TypeError(
            f"expected an environment, got {env!r}; make one first, with gymnasium.make or make_vec"
        )
    # a vector has its batched spaces beside
    one = "single_" if hasattr(env, "single_observation_space") else ""
    found: list[Nested] = []
    for attribute, root in ((f"{one}observation_space", "obs"), (f"{one}action_space", "action")):
        space = getattr(env, attribute, None)
        if space is not None and _is_of_old_gym(space):
            raise TypeError(
                f"env.{attribute} is a space of the old gym, {space}; use the one of "
                "gymnasium.spaces"
            )
        if not isinstance(space, Space):
            raise TypeError(
                f"expected a gymnasium environment, got {type(env).__name__}, whose {attribute} is "
                f"{'missing' if space is None else repr(space)}; describe it with "
                "Spec.steps(obs=..., action=...)"
            )
        found.append(_fields_of(space, f"env.{attribute}", root))
    observation, action = found
    return observation, action


def _fields_of(space: Any, whose: str, name: str) -> Nested:
    """The `(shape, dtype name)` of a space, or the dict of its parts; `name` is its place in the
    whole."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = [(str(number), part) for number, part in enumerate(space.spaces)]
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        return tuple(int(length) for length in space.shape or ()), str(space.dtype.name)
    else:
        raise ValueError(f"{whose}: {name!r} is {space}, which has no fixed shape; {_HINT}")
    if not parts:
        raise ValueError(
            f"{whose}: {name!r} is an empty {type(space).__name__}; leave it out of the space"
        )
    for key, _ in parts:
        if not isinstance(key, str) or not key or "." in key:
            raise ValueError(
                f"{whose}: {name!r} has the key {key!r}, but fields need names that are strings "
                f"without a dot; rename it in a wrapper"
            )
    return {key: _fields_of(part, whose, f"{name}.{key}") for key, part in parts}


def _is_of_old_gym(thing: object) -> bool:
    """Whether its class comes from the package `gym`; none of it is imported for that."""
    return any(kind.__module__.split(".")[0] == "gym" for kind in type(thing).__mro__)
