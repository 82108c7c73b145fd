"""CartPole learns to balance while you watch: actors play, a sampler draws, a learner learns, none
waits for another.

    python examples/cartpole.py

Each actor is a process that plays with the newest weights and hands every step to the replay. The
sampler is a process that keeps a queue of random batches full. The learner, a double DQN in plain
numpy in this process, takes batch after batch and publishes its weights now and then. It is over
when the network alone holds the pole up through 20 test episodes, as a rule within half a minute;
then come a summary and a picture of the learning curve and the queue's fill.

`explore` and `train` are the use of areplay. What they use stands below them; what you see is in
`display.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Said before numpy is imported: these matrices are small, and more threads would only take the
# cores from the actors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gymnasium
import numpy as np
from numpy.typing import NDArray

import areplay
from display import Chart, Progress, display, draw_picture

Floats = NDArray[np.float32]
Params = Mapping[str, Floats]

ENV_ID = "CartPole-v1"
SPEC = areplay.Spec.steps(obs=((4,), "float32"), action=((), "int64"))
# its discount is 0 where the pole fell, not after the 500th step
ITEM = areplay.Transitions(n_step=1, gamma=0.99)
CAPACITY_ROWS, MIN_ROWS = 100_000, 1_000
BATCH_SIZE, PREFETCH_BATCHES = 256, 16
LEAST_EPSILON, MOST_EPSILON = 0.05, 0.5

PUBLISH_STEPS, TEST_STEPS = 50, 250  # learner steps from one publishing, one test to the next
TEST_EPISODES, TEST_SEED, SOLVED_RETURN = 20, 1_000_000, 475.0

HIDDEN_UNITS = 64
# metres, m/s, radians and rad/s, all to about -2..2
OBS_SCALE = np.array([0.8, 1.0, 9.5, 1.0], np.float32)
LEARNING_RATE = 2e-3
# the part of the way that the target network moves towards the online network in a step
TARGET_RATE = 0.02
HUBER_DELTA = 10.0  # values go up to 100, so an error of 10 is where "large" begins


async def explore(actor: areplay.Actor, actors: int) -> None:
    """Play CartPole with the newest weights and hand in every step. Runs in a process of its
    own."""
    epsilon = epsilon_of(actor.index, actors)
    env = gymnasium.make(ENV_ID)
    obs, _ = env.reset(seed=actor.seed)
    episode_return = 0.0
    while not actor.stopping:
        _, params = actor.weights.latest()
        is_random = actor.rng.random() < epsilon
        action = (
            int(actor.rng.integers(2)) if is_random else int(action_values(params, obs).argmax())
        )
        next_obs, reward, terminated, truncated, _ = env.step(action)
        await actor.add(
            obs=obs,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs,
        )
        obs = next_obs
        episode_return += float(reward)
        if terminated or truncated:
            actor.report(episode_return=episode_return, series=actor.index)
            obs, _ = env.reset()
            episode_return = 0.0
    env.close()


async def train(
    seed: int, actors: int, max_steps: int, progress: Progress, quiet: bool = False
) -> None:
    """Learn until a test is passed or `max_steps` batches are learnt from."""
    learner = DoubleDQN(np.random.default_rng(seed))
    weights = areplay.Weights(learner.params)
    with display(progress, quiet) as show:
        async with (
            areplay.Replay(SPEC, capacity=CAPACITY_ROWS, seed=seed) as replay,
            replay.actors(explore, actors, args=(actors,), weights=weights) as players,
            replay.batches(
                ITEM, BATCH_SIZE, prefetch=PREFETCH_BATCHES, min_size_to_sample=MIN_ROWS
            ) as batches,
        ):
            async for batch in batches:
                learner.learn(batch)
                if learner.steps % PUBLISH_STEPS == 0:
                    weights.publish(learner.params)
                if learner.steps % TEST_STEPS == 0:
                    progress.note_test(greedy_return(learner.params))
                for report in players.reports():
                    progress.note_episode(report)
                is_over = progress.is_solved or learner.steps >= max_steps
                if is_over or progress.wants_look():
                    progress.note_look(replay.statistics(), weights.version)
                    show()
                if is_over:
                    break


def epsilon_of(index: int, actors: int) -> float:
    """How often an actor acts at random: the first seldom, the last half of the time, the others
    between (Ape-X)."""
    return float(LEAST_EPSILON * (MOST_EPSILON / LEAST_EPSILON) ** (index / max(actors - 1, 1)))


def chart_of(actors: int, max_steps: int) -> Chart:
    """What the display and the picture are to show."""
    return Chart(
        name="CartPole",
        title="CartPole-v1: how long the pole stays up",
        unit="steps",
        series=[
            f"actor {index}, random {epsilon_of(index, actors):.0%} of the time"
            for index in range(actors)
        ],
        test="test, never random: mean of 20",
        returns=(0.0, 500.0),  # CartPole cuts an episode there
        solved_return=SOLVED_RETURN,
        max_batches=max_steps,
    )


def greedy_return(params: Params) -> float:
    """Mean return of 20 episodes without any random action, from the same 20 starts each time.

    They are played side by side in one vector environment, which takes about 0.1 s when no pole
    falls. The learner can afford that: meanwhile the actors play on and the queue stays full.
    """
    envs = gymnasium.make_vec(ENV_ID, TEST_EPISODES, vectorization_mode="vector_entry_point")
    obs, _ = envs.reset(seed=TEST_SEED)
    is_playing = np.ones(TEST_EPISODES, dtype=bool)
    steps = 0
    while is_playing.any():
        obs, _, terminated, truncated, _ = envs.step(action_values(params, obs).argmax(axis=1))
        steps += int(is_playing.sum())  # each step is worth 1
        is_playing &= ~(terminated | truncated)
    envs.close()
    return steps / TEST_EPISODES


# ------------------------------------------------------------------------------------------ network


def action_values(params: Params, obs: Floats) -> Floats:
    """What the two actions are worth: (2,) for one observation (4,), (n, 2) for n of them (n,
    4)."""
    return _layers(params, obs)[-1]


def _layers(params: Params, obs: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    scaled = obs * OBS_SCALE
    hidden_1 = np.maximum(scaled @ params["w1"] + params["b1"], 0)
    hidden_2 = np.maximum(hidden_1 @ params["w2"] + params["b2"], 0)
    return scaled, hidden_1, hidden_2, hidden_2 @ params["w3"] + params["b3"]


class DoubleDQN:
    """A network of two hidden layers that learns action values from batches of rows.

    Weights, target weights, gradient and Adam's moments are flat vectors, so that Adam is four
    lines; `params` and its like are views of them by name.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.steps = 0
        self._online, self.params = _flat_and_named()
        for name in ("w1", "w2", "w3"):
            array = self.params[name]
            array[:] = rng.normal(scale=np.sqrt(2 / len(array)), size=array.shape)
        self._target, self._target_params = _flat_and_named()
        self._target[:] = self._online
        self._gradient, self._gradients = _flat_and_named()
        self._mean, self._square = np.zeros_like(self._online), np.zeros_like(self._online)

    def learn(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """One step: the online network goes down the Huber loss's gradient, the target network
        follows a little."""
        rows = np.arange(len(batch["reward"]))
        next_actions = action_values(self.params, batch["next_obs"]).argmax(axis=1)
        next_values = action_values(self._target_params, batch["next_obs"])[rows, next_actions]
        targets = batch["reward"] + batch["discount"] * next_values
        scaled, hidden_1, hidden_2, values = _layers(self.params, batch["obs"])
        errors = values[rows, batch["action"]] - targets
        slopes = np.zeros_like(values)
        slopes[rows, batch["action"]] = np.clip(errors, -HUBER_DELTA, HUBER_DELTA) / len(rows)
        self._set_gradient(scaled, hidden_1, hidden_2, slopes)
        self._step_adam()
        self._target += TARGET_RATE * (self._online - self._target)

    def _set_gradient(
        self, scaled: Floats, hidden_1: Floats, hidden_2: Floats, slopes: Floats
    ) -> None:
        slopes_2 = slopes @ self.params["w3"].T * (hidden_2 > 0)
        slopes_1 = slopes_2 @ self.params["w2"].T * (hidden_1 > 0)
        for layer, inputs, slope in (
            (1, scaled, slopes_1),
            (2, hidden_1, slopes_2),
            (3, hidden_2, slopes),
        ):
            np.matmul(inputs.T, slope, out=self._gradients[f"w{layer}"])
            slope.sum(axis=0, out=self._gradients[f"b{layer}"])

    def _step_adam(self) -> None:
        self.steps += 1
        self._mean += 0.1 * (self._gradient - self._mean)
        self._square += 0.001 * (self._gradient**2 - self._square)
        mean, square = self._mean / (1 - 0.9**self.steps), self._square / (1 - 0.999**self.steps)
        self._online -= LEARNING_RATE * mean / (np.sqrt(square) + 1e-8)


def _flat_and_named() -> tuple[Floats, dict[str, Floats]]:
    """Zeros for all weights as one flat vector, and the same memory as the arrays of the three
    layers."""
    shapes = {
        "w1": (4, HIDDEN_UNITS),
        "b1": (HIDDEN_UNITS,),
        "w2": (HIDDEN_UNITS, HIDDEN_UNITS),
        "b2": (HIDDEN_UNITS,),
    }
    shapes |= {"w3": (HIDDEN_UNITS, 2), "b3": (2,)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    flat = np.zeros(ends[-1], np.float32)
    parts = np.split(flat, ends[:-1])
    return flat, {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


# ------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> Progress:
    """Train as the command line says, print a summary, draw the picture."""
    options = _parse(arguments)
    progress = Progress(chart_of(options.actors, options.max_steps))
    areplay.run(train(options.seed, options.actors, options.max_steps, progress, options.quiet))
    end = progress.looks[-1]
    print(
        f"{'Solved' if progress.is_solved else 'Not solved'} after {end.time_s:.1f} s: greedy "
        f"return {progress.test_return or 0:.0f} (mean of {TEST_EPISODES} episodes, "
        f"{SOLVED_RETURN:.0f} needed), {end.batches:,} learner steps on {end.rows:,} rows, "
        f"{end.weight_version:,} weight "
        "versions."
    )
    draw_picture(progress, options.picture)
    print(f"Learning curve and queue: {options.picture}")
    return progress


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn CartPole from actor and sampler processes, and watch it."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of actors, sampling and first weights (default: 0)"
    )
    parser.add_argument("--actors", type=int, default=2, help="actor processes (default: 2)")
    parser.add_argument(
        "--max-steps", type=int, default=40_000, help="learner steps after which to give up (40000)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("cartpole.png"),
        help="where to (default: cartpole.png)",
    )
    parser.add_argument("--quiet", action="store_true", help="no display while it learns")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(0 if main().is_solved else 1)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell expects after Ctrl-C; the processes are gone by now
