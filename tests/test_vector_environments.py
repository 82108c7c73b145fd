"""Real vector environments, in all of gymnasium's autoreset modes: what comes out is what the
environments did.

The oracle steps the same environments one by one, with the same seeds and actions, and resets them
itself: there is no autoreset to get wrong. Its transitions and those that are sampled must be the
same, none missing and none more. So no transition pairs the observation at an episode's end with
the first one of the next, and none leads from the one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import areplay

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # nothing here is about the loop

SEED = 40
GAMMA = 0.5  # powers of it, times rewards that are small whole numbers, are exact
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]

Values = dict[str, Any]  # field name -> value
Action = Any
MakeVector = Callable[[AutoresetMode], Any]


# Environments.


class Counting(gymnasium.Env[Any, Any]):
    """Says where it is: `(environment, episode, step)`. The environment's number is the seed's
    distance from SEED.

    Episodes have 1 to 5 steps and end by turns with a termination, a truncation, and both. A reward
    tells the episode and the action, and is never 0.
    """

    observation_space: Any = spaces.Box(0, 1e6, (3,), np.float32)
    action_space: Any = spaces.Discrete(3)

    def __init__(self) -> None:
        self._number, self._episode, self._step = 0, -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._number, self._episode = seed - SEED, -1
        self._episode, self._step = self._episode + 1, 0
        return self.look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count on."""
        self._step += 1
        ended = self._step > (7 * self._number + 3 * self._episode) % 5
        kind = (self._number + self._episode) % 3
        reward = float(8 * self._episode + self.value_of(action) + 1)
        return self.look(), reward, ended and kind != 1, ended and kind != 0, {}

    def look(self) -> Any:
        """Where it is."""
        return np.array([self._number, self._episode, self._step], np.float32)

    def value_of(self, action: Any) -> int:
        """The action as a number."""
        return int(action)


class Quiet(Counting):
    """Gives no reward, and so nothing by which a step that only resets could be told from
    others."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count on."""
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 0.0, terminated, truncated, info


class Robot(Counting):
    """The same with observations and actions that have parts."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (2, 2), np.uint8),
        joints=spaces.Tuple([spaces.Box(0, 1e6, (), np.float32), spaces.MultiDiscrete([99, 99])]),
    )
    action_space = spaces.Dict(grip=spaces.Discrete(3), move=spaces.Box(-1, 1, (2,), np.float32))

    def look(self) -> Any:
        """Where it is, in every part."""
        camera = np.array([[self._number, self._episode], [self._step, 7]], np.uint8)
        return {
            "camera": camera,
            "joints": (np.float32(self._episode), np.array([self._number, self._step])),
        }

    def value_of(self, action: Any) -> int:
        """The action as a number."""
        return int(action["grip"])


def cartpole() -> Any:
    """Short episodes, that end in both ways."""
    return gymnasium.make("CartPole-v1", max_episode_steps=12)


@contextmanager
def closing(envs: Any) -> Iterator[Any]:
    """The environments, closed in the end."""
    try:
        yield envs
    finally:
        envs.close()


def sync(make: Callable[[], Any], count: int) -> MakeVector:
    """gymnasium's vector of environments in this process."""
    return lambda mode: SyncVectorEnv([make] * count, autoreset_mode=mode)


def in_processes(make: Callable[[], Any], count: int) -> MakeVector:
    """gymnasium's vector of environments in processes of their own."""
    return lambda mode: AsyncVectorEnv([make] * count, autoreset_mode=mode, context="spawn")


def atari(count: int, stack_num: int = 1) -> MakeVector:
    """ale-py's own vector; lives count as episodes, and an episode has at most 24 steps."""
    vector_env = pytest.importorskip("ale_py.vector_env")
    return lambda mode: vector_env.AtariVectorEnv(
        "breakout",
        count,
        autoreset_mode=mode,
        max_num_frames_per_episode=96,
        episodic_life=True,
        img_height=8,
        img_width=8,
        stack_num=stack_num,
        noop_max=5,
        num_threads=1,
    )


# What a user writes.


async def hand_in(
    into: Any, envs: Any, actions: Sequence[Action], seed: int = SEED, gives_next: bool = True
) -> None:
    """Step the environments, and hand in every step: to a replay, or from an actor."""
    mode = envs.metadata["autoreset_mode"]
    into.autoreset_mode = mode
    obs, _ = envs.reset(seed=seed)
    for action in actions:
        next_obs, reward, terminated, truncated, info = envs.step(action)
        await into.add(
            obs=obs,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs if gives_next or mode == AutoresetMode.DISABLED else None,
            final_obs=info.get("final_obs"),
        )
        obs = next_obs
        ended = terminated | truncated
        if mode == AutoresetMode.DISABLED and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended})


def actions_of(space: Any, steps: int, seed: int = 0) -> list[Action]:
    """Actions of chance for all environments, step by step."""
    space.seed(seed)
    return [space.sample() for _ in range(steps)]


def action_of(actions: Action, which: int) -> Action:
    """That of one environment."""
    if isinstance(actions, dict):
        return {name: action_of(part, which) for name, part in actions.items()}
    return actions[which]


# The oracle.


@dataclass
class Episode:
    """What one environment did from a reset on: one observation more than steps, if the end was
    seen."""

    observations: list[Any]
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        """Whether it did."""
        return self.terminated or self.truncated


def episodes_of(
    env: Any, actions: Sequence[Action], seed: int, mode: AutoresetMode
) -> list[Episode]:
    """Step one environment with those actions. In mode NextStep the vector loses one to each reset;
    and what an action at the very end leads to is in no later call, so nobody has seen it.
    """
    observation, _ = env.reset(seed=seed)
    episodes = [Episode([observation])]
    for number, action in enumerate(actions):
        episode = episodes[-1]
        if episode.ended:
            episodes.append(Episode([env.reset()[0]]))
            if mode == AutoresetMode.NEXT_STEP:
                continue
            episode = episodes[-1]
        observation, reward, episode.terminated, episode.truncated, _ = env.step(action)
        episode.actions.append(action)
        episode.rewards.append(float(reward))
        was_seen = episode.ended and mode != AutoresetMode.NEXT_STEP
        if number + 1 < len(actions) or was_seen:
            episode.observations.append(observation)
    env.close()
    return episodes


class Alone:
    """One environment out of a vector of one, which does nothing by itself."""

    def __init__(self, envs: Any) -> None:
        self._envs, self.close = envs, envs.close

    def reset(self, seed: int | None = None) -> tuple[Any, Any]:
        """Begin the next episode. This vector begins it by itself if asked to step after an end."""
        if seed is not None:
            return self._envs.reset(seed=seed)[0][0].copy(), {}
        return self._envs.step(np.zeros(1, np.int64))[0][0].copy(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        """One step."""
        observation, reward, terminated, truncated, _ = self._envs.step(np.array([action]))
        return observation[0].copy(), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def flat(name: str, value: Any) -> Values:
    """The parts of a value under dotted names."""
    if not isinstance(value, dict | tuple):
        return {name: np.asarray(value)}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        key: inner for part, given in parts for key, inner in flat(f"{name}.{part}", given).items()
    }


def stacked(episode: Episode, at: int, depth: int) -> Values:
    """The observation at that time; with a depth, the last so many of them, the first one repeated
    in front."""
    if not depth:
        return flat("obs", episode.observations[at])
    frames = [
        flat("obs", episode.observations[max(0, time)]) for time in range(at - depth + 1, at + 1)
    ]
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def transitions_of(episode: Episode, n_step: int, depth: int = 0) -> Iterator[Values]:
    """All that can be made of it: n steps long, or up to the end; an episode that goes on must have
    so many."""
    for at in range(len(episode.actions)):
        n = min(n_step, len(episode.actions) - at) if episode.ended else n_step
        if at + n >= len(episode.observations):
            continue
        is_last = episode.ended and at + n == len(episode.actions)
        yield {
            **stacked(episode, at, depth),
            **{f"next_{name}": value for name, value in stacked(episode, at + n, depth).items()},
            **flat("action", episode.actions[at]),
            "reward": sum(GAMMA**k * episode.rewards[at + k] for k in range(n)),
            "terminated": is_last and episode.terminated,
            "truncated": is_last and episode.truncated,
            "discount": 0.0 if is_last and episode.terminated else GAMMA**n,
            "n": n,
        }


def counted(items: Iterator[Values] | list[Values]) -> Counter[Any]:
    """How often each item is there, whatever the dtypes of its numbers."""
    return Counter(
        tuple(
            sorted(
                (name, np.shape(value), np.asarray(value, np.float64).tobytes())
                for name, value in item.items()
            )
        )
        for item in items
    )


def sampled(replay: areplay.Replay, item: areplay.Transitions, expected: int) -> list[Values]:
    """Each item that can be drawn: so many draws that one of `expected` is missed once in a million
    runs."""
    found: dict[int, Values] = {}
    for _ in range(max(2, -(-int(expected * np.log(1e6 * expected)) // 1024))):
        batch = replay.sample(1024, item)
        for k, index in enumerate(batch.indices.tolist()):
            if index not in found:
                found[index] = {name: array[k].copy() for name, array in batch.items()}
    return list(found.values())


def assert_all_and_no_others(
    replay: areplay.Replay, episodes: list[Episode], depth: int = 0
) -> None:
    """The transitions of one step and of three that can be sampled are those of the episodes."""
    assert sum(episode.ended for episode in episodes) >= 3, "a test without ends tests nothing"
    for n_step in (1, 3):
        expected = counted(
            [item for episode in episodes for item in transitions_of(episode, n_step, depth)]
        )
        item = areplay.Transitions(n_step=n_step, gamma=GAMMA, frame_stack=depth or None)
        assert counted(sampled(replay, item, expected.total())) == expected


async def check(
    make: MakeVector, make_one: Callable[[int], Any], mode: AutoresetMode, steps: int, **how: Any
) -> None:
    """Hand in so many steps of a vector, and compare."""
    depth = how.pop("depth", 0)
    with closing(make(mode)) as envs:
        actions = actions_of(envs.action_space, steps)
        async with areplay.Replay(
            areplay.Spec.from_env(envs), capacity=20 * steps, seed=1
        ) as replay:
            await hand_in(replay, envs, actions, **how)
            episodes = [
                episode
                for which in range(envs.num_envs)
                for episode in episodes_of(
                    make_one(which),
                    [action_of(action, which) for action in actions],
                    SEED + which,
                    mode,
                )
            ]
            assert_all_and_no_others(replay, episodes, depth)


# All is right.


@pytest.mark.parametrize("gives_next", [True, False], ids=["with next_obs", "without"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("make", [Counting, Robot, cartpole])
async def test_a_vector_in_this_process(
    make: Callable[[], Any], mode: AutoresetMode, count: int, gives_next: bool
) -> None:
    """Plain observations, nested ones, and CartPole; whether the next observations are handed in or
    not."""
    await check(sync(make, count), lambda _: make(), mode, 60, gives_next=gives_next)


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_a_vector_that_stops_at_any_step(mode: AutoresetMode, steps: int) -> None:
    """Also in the step of an end, or of a reset: what is not known yet is not sampled, all else
    is."""
    with closing(sync(Counting, 5)(mode)) as envs:
        actions = actions_of(envs.action_space, steps)
        async with areplay.Replay(areplay.Spec.from_env(envs), capacity=200, seed=1) as replay:
            await hand_in(replay, envs, actions)
            for n_step in (1, 3):
                expected = counted(
                    [
                        item
                        for k in range(5)
                        for episode in episodes_of(
                            Counting(), [action[k] for action in actions], SEED + k, mode
                        )
                        for item in transitions_of(episode, n_step)
                    ]
                )
                item = areplay.Transitions(n_step=n_step, gamma=GAMMA)
                if expected:
                    assert counted(sampled(replay, item, expected.total())) == expected
                else:
                    with pytest.raises(areplay.Stalled):
                        replay.sample(1, item)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("make", [Counting, Robot])
async def test_a_vector_of_processes(make: Callable[[], Any], mode: AutoresetMode) -> None:
    """They write their observations into shared memory, and give their final ones beside it."""
    await check(in_processes(make, 2), lambda _: make(), mode, 40)


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
async def test_atari_vectors(mode: AutoresetMode) -> None:
    """ale-py gives all observations as `final_obs`, also of environments that did not end; ends are
    of both kinds."""

    def make_one(which: int) -> Alone:
        return Alone(atari(1)(AutoresetMode.NEXT_STEP))

    await check(atari(3), make_one, mode, 60)


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
async def test_atari_frames_are_stacked_within_their_episode(mode: AutoresetMode) -> None:
    """Frames stored once, and stacked when they are sampled: never over a reset."""

    def make_one(which: int) -> Alone:
        return Alone(atari(1)(AutoresetMode.NEXT_STEP))

    await check(atari(2), make_one, mode, 60, depth=4)


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
async def test_stacks_of_atari_frames_are_those_that_ale_makes(mode: AutoresetMode) -> None:
    """With zeros before the first frame, as there: each frame is stored once instead of four
    times."""
    found = []
    for stack_num, item in (
        (1, areplay.Transitions(frame_stack=4, pad="zero")),
        (4, areplay.Transitions()),
    ):
        with closing(atari(2, stack_num=stack_num)(mode)) as envs:
            async with areplay.Replay(areplay.Spec.from_env(envs), capacity=400, seed=1) as replay:
                await hand_in(replay, envs, actions_of(envs.action_space, 60))
                items = sampled(replay, item, 120)
        for one in items:
            one["obs"], one["next_obs"] = (
                one["obs"].reshape(4, 8, 8),
                one["next_obs"].reshape(4, 8, 8),
            )
        found.append(counted(items))
    assert found[0] == found[1] and found[0].total() > 100


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_frames_of_a_vector_are_stacked_within_their_episode(mode: AutoresetMode) -> None:
    """Also where an episode is shorter than the stack, or than the steps of a transition."""
    await check(sync(Counting, 3), lambda _: Counting(), mode, 60, depth=4)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_a_ring_that_has_gone_round_holds_true_transitions_only(mode: AutoresetMode) -> None:
    """Of a vector that has overwritten its rows many times, all that is sampled was done by its
    environments."""
    steps, count = 400, 3
    with closing(sync(Counting, count)(mode)) as envs:
        actions = actions_of(envs.action_space, steps)
        async with areplay.Replay(areplay.Spec.from_env(envs), capacity=150, seed=1) as replay:
            await hand_in(replay, envs, actions)
            episodes = [
                episode
                for k in range(count)
                for episode in episodes_of(
                    Counting(), [action[k] for action in actions], SEED + k, mode
                )
            ]
            for n_step in (1, 3):
                truth = counted(
                    [item for episode in episodes for item in transitions_of(episode, n_step, 2)]
                )
                found = counted(
                    sampled(replay, areplay.Transitions(n_step, GAMMA, frame_stack=2), 150)
                )
                assert found <= truth and 40 < found.total() < truth.total()


# In an actor.


async def explore(actor: areplay.Actor, mode: str, steps: int) -> None:
    """A vector of three environments for each actor, all with seeds of their own."""
    with closing(SyncVectorEnv([Counting] * 3, autoreset_mode=mode)) as envs:
        actions = actions_of(envs.action_space, steps, actor.index)
        await hand_in(actor, envs, actions, SEED + 3 * actor.index)
    await actor.flush()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_vectors_in_actors(mode: AutoresetMode) -> None:
    """Two actors at once, through their inboxes: the rows of each are kept apart."""
    steps = 50
    episodes = []
    for which in range(6):
        with closing(SyncVectorEnv([Counting] * 3)) as envs:
            actions = [
                action[which % 3] for action in actions_of(envs.action_space, steps, which // 3)
            ]
        episodes += episodes_of(Counting(), actions, SEED + which, mode)
    spec = areplay.Spec.from_env(Counting())
    async with areplay.Replay(spec, capacity=2_000, seed=1) as replay:
        async with replay.actors(explore, 2, args=(mode.value, steps), inbox_rows=64) as actors:
            await actors.wait()
        assert_all_and_no_others(replay, episodes)


# Mistakes.


@contextmanager
def refused(replay: areplay.Replay, name: str, words: str) -> Iterator[None]:
    """It raises, about that field and with a remedy that says so, and no row was written."""
    rows = len(replay)
    with pytest.raises(areplay.SpecMismatch, match=words) as caught:
        yield
    assert caught.value.field == name
    assert len(replay) == rows


class Story:
    """A vector of three environments and a replay, told until an episode ends."""

    def __init__(self, replay: areplay.Replay, envs: Any) -> None:
        self.replay, self.envs = replay, envs
        self.obs, _ = envs.reset(seed=SEED)
        self.info: dict[str, Any] = {}

    def step(self) -> dict[str, Any]:
        """What the next step of the environments is, with `next_obs`."""
        action = np.ones(3, np.int64)
        obs = self.obs
        self.obs, reward, terminated, truncated, self.info = self.envs.step(action)
        return {
            "obs": obs,
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "next_obs": self.obs,
        }


@contextmanager
def closed_story(
    replay: areplay.Replay, mode: AutoresetMode, make: Callable[[], Any] = Counting
) -> Iterator[Story]:
    """Environment 0 ends in the first step, the others later."""
    with closing(SyncVectorEnv([make] * 3, autoreset_mode=mode)) as envs:
        yield Story(replay, envs)


@pytest.fixture
async def replay() -> Any:
    """For rows of `Counting`."""
    async with areplay.Replay(areplay.Spec.from_env(Counting()), capacity=500, seed=1) as found:
        yield found


async def test_same_step_without_final_observations_is_refused(replay: areplay.Replay) -> None:
    """The first end of an episode says so: nothing else would tell that `next_obs` is of another
    episode."""
    replay.autoreset_mode = "SameStep"
    with closed_story(replay, AutoresetMode.SAME_STEP) as story:
        step = story.step()
        with refused(replay, "final_obs", r"info\['final_obs'\]"):
            await replay.add(**step)


async def test_same_step_with_final_observations_of_another_step_is_refused(
    replay: areplay.Replay,
) -> None:
    """There is none of the environment that ended."""
    replay.autoreset_mode = "SameStep"
    with closed_story(replay, AutoresetMode.SAME_STEP) as story:
        step = story.step()
        wrong = np.array([None, np.zeros(3, np.float32), None], dtype=object)
        with refused(replay, "final_obs", r"environment 0"):
            await replay.add(**step, final_obs=wrong)
        await replay.add(**step, final_obs=story.info["final_obs"])


async def test_final_observations_in_the_default_mode_are_refused(replay: areplay.Replay) -> None:
    """Environments of mode SameStep, and nobody set the mode: the message says where to find it."""
    with closed_story(replay, AutoresetMode.SAME_STEP) as story:
        step = story.step()
        with refused(replay, "final_obs", r"envs\.metadata\['autoreset_mode'\]"):
            await replay.add(**step, final_obs=story.info["final_obs"])


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.value)
async def test_rewards_in_what_should_be_a_reset_are_refused(
    replay: areplay.Replay, mode: AutoresetMode
) -> None:
    """Environments of another mode, nobody set it and no final observation is given: the next step
    earns something."""
    with closed_story(replay, mode) as story:
        step = story.step()
        del step["next_obs"]
        await replay.add(**step)
        if mode == AutoresetMode.DISABLED:
            story.obs, _ = story.envs.reset(
                options={"reset_mask": step["terminated"] | step["truncated"]}
            )
        step = story.step()
        with refused(replay, "reward", r"envs\.metadata\['autoreset_mode'\]"):
            await replay.add(**step)


async def test_environments_that_were_reset_by_hand_in_mode_next_step_are_refused(
    replay: areplay.Replay,
) -> None:
    """Disabled autoreset, and nobody set the mode: the observation is not the one that was
    announced."""
    with closed_story(replay, AutoresetMode.DISABLED, Quiet) as story:
        step = story.step()
        await replay.add(**step)
        story.obs, _ = story.envs.reset(
            options={"reset_mask": step["terminated"] | step["truncated"]}
        )
        with refused(replay, "obs", r"environment 0"):
            await replay.add(**story.step())


async def test_next_step_environments_in_mode_same_step_are_refused(replay: areplay.Replay) -> None:
    """They have no `final_obs` to give."""
    replay.autoreset_mode = AutoresetMode.SAME_STEP
    with closed_story(replay, AutoresetMode.NEXT_STEP) as story:
        step = story.step()
        with refused(replay, "final_obs", r"SameStep.*info\['final_obs'\]"):
            await replay.add(**step, final_obs=story.info.get("final_obs"))


async def test_a_mode_that_comes_too_late_is_refused(replay: areplay.Replay) -> None:
    """The rows before it were linked in the other one; the same mode once more is none."""
    with closed_story(replay, AutoresetMode.NEXT_STEP) as story:
        await replay.add(**story.step())
        with pytest.raises(ValueError, match="NextStep since the first step"):
            replay.autoreset_mode = AutoresetMode.SAME_STEP
        replay.autoreset_mode = AutoresetMode.NEXT_STEP
        await replay.add(**story.step())


@pytest.mark.parametrize("mode", ["next_step", "SAME_STEP", 3, None])
async def test_a_mode_that_is_none_is_refused(replay: areplay.Replay, mode: Any) -> None:
    """With those that are."""
    with pytest.raises(ValueError, match=r"NextStep, SameStep, Disabled"):
        replay.autoreset_mode = mode


@pytest.mark.parametrize("slicing", [slice(2), slice(0, 0)], ids=["fewer", "none"])
async def test_another_number_of_environments_is_refused(
    replay: areplay.Replay, slicing: slice
) -> None:
    """Whose step would it be? The vector goes on with all of them."""
    with closed_story(replay, AutoresetMode.NEXT_STEP) as story:
        await replay.add(**story.step())
        step = story.step()
        with refused(replay, "terminated", r"\(3,\)|\(L,\)"):
            await replay.add(**{name: value[slicing] for name, value in step.items()})
        await replay.add(**story.step())


async def test_one_environment_after_a_vector_is_refused(replay: areplay.Replay) -> None:
    """One stream has one kind of steps."""
    with closed_story(replay, AutoresetMode.NEXT_STEP) as story:
        await replay.add(**story.step())
        one = {name: value[0] for name, value in story.step().items()}
        one |= {"terminated": bool(one["terminated"]), "truncated": bool(one["truncated"])}
        with refused(replay, "terminated", r"\(3,\)"):
            await replay.add(**one)


async def test_observations_that_the_environment_overwrites_are_refused(
    replay: areplay.Replay,
) -> None:
    """`SyncVectorEnv(copy=False)` writes each observation over the one before: what is handed in as
    `obs` is the next one already."""
    with closing(SyncVectorEnv([Counting] * 3, copy=False)) as envs:
        story = Story(replay, envs)
        await replay.add(**story.step())
        with refused(replay, "obs", r"does not write to later"):
            await replay.add(**story.step())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
async def test_vectors_that_do_not_copy_are_refused_without_next_obs(
    replay: areplay.Replay, mode: AutoresetMode, kind: Any
) -> None:
    """The loop of the how-to, in each mode: the second step is refused, and so are all after it."""
    with closing(kind([Counting] * 3, copy=False, autoreset_mode=mode)) as envs:
        replay.autoreset_mode = mode
        obs, _ = envs.reset(seed=SEED)
        for number in range(4):
            next_obs, reward, terminated, truncated, info = envs.step(np.zeros(3, np.int64))
            step = {"obs": obs, "action": np.zeros(3, np.int64), "reward": reward}
            step |= {
                "terminated": terminated,
                "truncated": truncated,
                "final_obs": info.get("final_obs"),
            }
            if mode == AutoresetMode.DISABLED:
                step |= {"next_obs": next_obs, "final_obs": None}
            if number == 0:
                await replay.add(**step)
            else:
                with refused(replay, "obs", "memory of its own|does not write to later"):
                    await replay.add(**step)
                if mode == AutoresetMode.DISABLED:
                    break
            obs = next_obs
            if mode == AutoresetMode.DISABLED:
                envs.reset(options={"reset_mask": terminated | truncated})


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
async def test_a_refused_step_leaves_a_gap_and_nothing_else(
    replay: areplay.Replay, mode: AutoresetMode
) -> None:
    """All that is sampled later is true: no transition spans the step that was not handed in."""
    steps, lost = 60, {7, 8, 30}
    with closing(SyncVectorEnv([Counting] * 3, autoreset_mode=mode)) as envs:
        actions = actions_of(envs.action_space, steps)
        replay.autoreset_mode = mode
        obs, _ = envs.reset(seed=SEED)
        for number, action in enumerate(actions):
            next_obs, reward, terminated, truncated, info = envs.step(action)
            step = {
                "obs": obs,
                "action": action,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
            step |= {"next_obs": next_obs, "final_obs": info.get("final_obs")}
            if number in lost:
                step["obs"] = obs.astype(np.float64)
                with refused(replay, "obs", "float64"):
                    await replay.add(**step)
            else:
                await replay.add(**step)
            obs = next_obs
            ended = terminated | truncated
            if mode == AutoresetMode.DISABLED and ended.any():
                obs, _ = envs.reset(options={"reset_mask": ended})
    episodes = [
        episode
        for k in range(3)
        for episode in episodes_of(Counting(), [a[k] for a in actions], SEED + k, mode)
    ]
    for n_step in (1, 3):
        truth = counted([item for episode in episodes for item in transitions_of(episode, n_step)])
        found = counted(sampled(replay, areplay.Transitions(n_step, GAMMA), truth.total()))
        # Of the steps that were lost, and those whose window spans one, there are at most so many.
        assert found <= truth and truth.total() - found.total() <= 3 * len(lost) * (n_step + 2)
