"""Atari from pixels: each frame is stored once, and learnt from in stacks of four and transitions
of three steps.

    python examples/atari.py --game pong

Each actor is a process that plays in several environments with the newest weights, and hands in
single frames. What the learner, a double DQN in PyTorch, gets to see is `ITEM`; the sampler puts it
together ahead of time. The examiner is an actor that hands in nothing: it plays without random
actions and reports how well that goes. On a GPU the batches go from the sampler's memory to the
device without another copy, while the learner learns from those before.

It ends after `--frames`, or when a test is passed (Pong: 18 points of 21), with a last test, a
checkpoint, a table of figures and a picture. That wants a GPU and a dozen cores. Two cores run the
same program, to look at: there the actors bring in an hour what the learner would need days for.

`explore`, `examine` and `train` are the use of areplay. What learns is in `atari_dqn.py`, what you
see in `display.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ale_py.roms
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

import areplay
from display import Chart, Progress, display, draw_picture

if (
    TYPE_CHECKING
    # where it is needed, it is imported there: the sampler's process, which imports this file too,
    # starts
):
    # ten times faster without torch, and is 200 MB smaller
    from atari_dqn import DoubleDQN, Network

Floats = NDArray[np.float64]

# frames that an action lasts; of them one is seen, and the last four seen are an observation
FRAME_SKIP, STACK = 4, 4
SPEC = areplay.Spec.steps(obs=((84, 84), "uint8"), action=((), "int64"))
# ale-py begins with black frames too
ITEM = areplay.Transitions(n_step=3, gamma=0.99, frame_stack=STACK, pad="zero")
CAPACITY_ROWS, PREFETCH_BATCHES = 1_000_000, 16
# 8 samples a row are those of Nature, 32 every fourth step; in batches of 256 more of them are
# needed
DEFAULTS = {
    "cpu": {"batch_size": 32, "samples_a_row": 8, "samplers": 1},
    "cuda": {"batch_size": 256, "samples_a_row": 16, "samplers": 2},
}

PUBLISH_STEPS = 25  # learner steps from one publishing of weights to the next
CHECKPOINT_S = 60.0
# an actor may be asked to end while it imports torch, which takes seconds where cores are short
GRACE_S = 10.0
# after which an episode is cut, as in Ape-X: a greedy player may go in circles for ever
MOST_FRAMES = 50_000
TEST_SEED = 1_000_000
SOLVED_RETURNS = {"pong": 18.0}
RETURN_RANGES = {"pong": (-21.0, 21.0)}

# Epsilon of environment i of N is 0.4 ** (1 + 7 i / (N - 1)), as in Ape-X: from 40 % to 0.07 %.
# Curves are of a third.
EPSILON_BOUNDS = (0.01, 0.05)
SERIES = ("actors, random up to 1 %", "actors, random up to 5 %", "actors, random up to 40 %")


async def explore(actor: areplay.Actor, game: str, actors: int, count: int) -> None:
    """Play in `count` environments with the newest weights and hand in every step. Runs in a
    process of its own."""
    from atari_dqn import Network, set_up

    set_up(threads=1)  # the other cores have actors of their own
    epsilons = epsilons_of(actors * count)[actor.index :: actors]
    envs = make_envs(game, count, threads=max(1, cores() // actors))
    actor.autoreset_mode = envs.autoreset_mode
    network = Network(envs.single_action_space.n)
    # ale-py takes 31 bits, and adds the environment's number
    obs, _ = envs.reset(seed=actor.seed >> 2)
    returns = np.zeros(count)
    while not actor.stopping:
        network.follow(actor.weights)
        is_random = actor.rng.random(count) < epsilons
        actions = np.where(
            is_random, actor.rng.integers(network.actions, size=count), network.act(obs)
        )
        next_obs, rewards, terminated, truncated, _ = envs.step(actions)
        await actor.add(
            obs=obs[:, -1],  # only the newest frame: the others were handed in before
            action=actions,
            reward=np.sign(rewards).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs[:, -1],
        )
        obs = next_obs
        returns += rewards
        for k in np.flatnonzero(terminated | truncated):
            series = int(np.searchsorted(EPSILON_BOUNDS, epsilons[k]))
            actor.report(episode_return=returns[k], series=series)
            returns[k] = 0.0
    envs.close()


async def examine(actor: areplay.Actor, game: str, episodes: int) -> None:
    """Test the newest weights, again and again, and report the mean return. Runs in a process of
    its own."""
    from atari_dqn import Network, set_up

    set_up(threads=1)
    os.nice(5)  # when cores are short, those who learn go first
    network = Network(number_of_actions(game))
    while not actor.stopping:
        if not network.follow(actor.weights):
            await asyncio.sleep(0.1)
            continue
        returns, _ = await play(network, game, episodes, is_over=lambda: actor.stopping)
        if not actor.stopping:
            actor.report(test_return=returns.mean())


async def train(learner: DoubleDQN, run: Run, options: argparse.Namespace) -> None:
    """Learn until the frames are used up or a test is passed, then test the network once more."""
    weights = areplay.Weights(learner.network.arrays())
    play_args, test_args = (
        (options.game, options.actors, options.envs),
        (options.game, options.test_episodes),
    )
    async with (
        areplay.Replay(SPEC, capacity=options.capacity, seed=options.seed) as replay,
        replay.batches(
            ITEM,
            options.batch_size,
            samplers=options.samplers,
            prefetch=PREFETCH_BATCHES,
            min_size_to_sample=options.min_rows,
        ) as batches,
        replay.actors(
            examine, args=test_args, weights=weights, inbox_rows=2, grace_s=GRACE_S
        ) as examiner,
        replay.actors(
            explore, options.actors, args=play_args, weights=weights, grace_s=GRACE_S
        ) as players,
    ):
        with display(run, options.quiet) as show:
            while not (run.is_solved or run.frames >= options.frames):
                if (
                    learner.steps_now * options.batch_size <= options.samples_a_row * run.rows
                    or not players.alive
                ):
                    batch = await run.timed(anext(batches))
                    learner.learn(batch.torch(options.device))
                    if learner.steps % PUBLISH_STEPS == 0:
                        weights.publish(learner.network.arrays())
                        run.note_loss(learner.loss.item())
                    if run.wants_checkpoint():
                        learner.save(options.checkpoint)
                else:  # the learner waits for rows, lest it learn them by heart
                    await asyncio.sleep(0.001)
                for report in players.reports():
                    run.note_episode(report)
                for report in examiner.reports():
                    run.note_test(report.values["test_return"])
                run.look(replay.statistics(), weights.version)
                show()
    learner.save(options.checkpoint)
    run.final_returns, run.final_steps = await play(
        learner.network, options.game, options.test_episodes
    )
    run.note_test(run.final_returns.mean())


async def play(
    network: Network, game: str, episodes: int, is_over: Callable[[], bool] = lambda: False
) -> tuple[Floats, int]:
    """Returns of so many episodes without any random action, and the steps that they took together.

    They are played side by side, from the same starts each time; `is_over` ends them early.
    """
    envs = make_envs(game, episodes, threads=1)
    obs, _ = envs.reset(seed=TEST_SEED)
    returns, steps, is_playing = np.zeros(episodes), 0, np.ones(episodes, dtype=bool)
    while is_playing.any() and not is_over():
        obs, rewards, terminated, truncated, _ = envs.step(network.act(obs))
        returns += rewards * is_playing
        steps += int(is_playing.sum())
        is_playing &= ~(terminated | truncated)
        await asyncio.sleep(0)
    envs.close()
    return returns, steps


def make_envs(game: str, count: int, threads: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """A vector environment of ale-py: 84 x 84 pixels, grey, stacks of four, and rewards as the game
    gives them."""
    return AtariVectorEnv(
        game,
        count,
        frameskip=FRAME_SKIP,
        stack_num=STACK,
        reward_clipping=False,
        max_num_frames_per_episode=MOST_FRAMES,
        num_threads=threads,
    )


def number_of_actions(game: str) -> int:
    """How many a player can choose from."""
    envs = make_envs(game, 1, threads=1)
    envs.close()
    return int(envs.single_action_space.n)


def epsilons_of(environments: int) -> Floats:
    """How often each of all environments gets a random action."""
    return 0.4 ** (1 + 7 * np.arange(environments) / max(environments - 1, 1))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------------------ figures


class Run(Progress):
    """What happens in a run, and its figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        game, episodes = options.game, options.test_episodes
        title = game.replace("_", " ").title()
        super().__init__(
            Chart(
                name=title,
                title=f"{title}: the score of an episode",
                unit="points",
                series=SERIES,
                test=f"test, never random: mean of {episodes}",
                returns=RETURN_RANGES.get(game),
                solved_return=SOLVED_RETURNS.get(game),
                max_rows=options.frames // FRAME_SKIP,
            )
        )
        self.rows = self.row_bytes = 0
        self.final_returns, self.final_steps = np.zeros(0), 0
        self._waits_s: list[float] = []
        self._saved_s = self.seconds()

    @property
    def frames(self) -> int:
        """Played since the start."""
        return self.rows * FRAME_SKIP

    async def timed(self, batch: Awaitable[areplay.Batch]) -> areplay.Batch:
        """The batch, and the time that it took to come is noted."""
        asked_s = time.perf_counter()
        taken = await batch
        self._waits_s.append(time.perf_counter() - asked_s)
        return taken

    def look(self, statistics: areplay.Statistics, weight_version: int) -> None:
        """See how far the actors are, and note all of it now and then."""
        self.rows, self.row_bytes = statistics.rows_inserted, statistics.row_bytes
        if self.wants_look():
            self.note_look(statistics, weight_version)

    def note_loss(self, loss: float) -> None:
        """Of a step.

        Raises:
            FloatingPointError: it is no number any more, so learning is over.
        """
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} after {self.looks[-1].batches:,} learner steps"
            )
        median, late = self._waits(newest=1_000)
        self.facts = {"loss": (f"{loss:.4f}", ""), "learner's wait": (median, f"p99 {late}")}

    def wants_checkpoint(self) -> bool:
        """Whether the last one is old enough; then the next is due later."""
        is_due = self.seconds() - self._saved_s >= CHECKPOINT_S
        if is_due:
            self._saved_s = self.seconds()
        return is_due

    def figures(self) -> dict[str, str]:
        """All that is worth to be known of the run."""
        rows_per_s, steps_per_s = self.rates(over_s=np.inf)
        median, late = self._waits()
        returns = [pair for episodes in self.episodes.values() for pair in episodes]
        newest = [episode_return for _, episode_return in sorted(returns)[-100:]]
        return {
            "frames/s": f"{rows_per_s * FRAME_SKIP:,.0f}",
            "learner steps/s": f"{steps_per_s:,.1f}",
            "learner's wait for a batch, p50": median,
            "learner's wait for a batch, p99": late,
            "queue's fill, mean": f"{np.mean([look.fill for look in self.looks[1:]]):.0%}",
            "bytes a step": f"{self.row_bytes:,}",
            "rows stored": f"{self.rows:,}",
            "learner steps": f"{self.looks[-1].batches:,}",
            "weight versions": f"{self.looks[-1].weight_version:,}",
            "loss": self.facts.get("loss", ("-", ""))[0],
            "episodes of actors": f"{len(returns):,}",
            "mean return of the newest 100": f"{np.mean(newest):.1f}" if newest else "-",
            "tests meanwhile": f"{len(self.tests) - 1}",
            "mean return of the last test": f"{self.final_returns.mean():.1f}",
            "steps of the last test": f"{self.final_steps:,}",
            "time": f"{self.looks[-1].time_s:,.0f} s",
        }

    def _waits(self, newest: int = 0) -> tuple[str, str]:
        """p50 and p99, without the first: before it there were no rows."""
        waits_s = self._waits_s[1:][-newest:]
        if not waits_s:
            return "-", "-"
        median_s, late_s = np.percentile(waits_s, [50, 99])
        return _short(median_s), _short(late_s)


def _short(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


# ------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train as the command line says, print the figures, draw the picture."""
    from atari_dqn import DoubleDQN, best_device, set_up

    options = _parse(arguments, best_device())
    # more would wait for each other, with actors on the same cores
    set_up(threads=max(1, cores() - options.actors))
    learner = DoubleDQN(number_of_actions(options.game), options.device, options.seed)
    if options.resume is not None:
        learner.load(options.resume)
    run = Run(options)
    areplay.run(train(learner, run, options))
    game, players = options.game, f"{options.actors} actors with {options.envs} environments each"
    print(
        f"| {game}, {players}, batches of {options.batch_size} on {options.device} | |\n|---|---|"
    )
    for name, figure in run.figures().items():
        print(f"| {name} | {figure} |")
    draw_picture(run, options.picture)
    print(f"Checkpoint: {options.checkpoint}\nLearning curve and queue: {options.picture}")
    return run


def _parse(arguments: Sequence[str] | None, best_device: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn an Atari game from pixels, and watch it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--game", default="pong", help="such as pong, breakout, ms_pacman")
    add("--frames", type=int, default=20_000_000, help="of all environments together, four a step")
    add("--actors", type=int, default=max(1, cores() - 4), help="processes that play")
    add("--envs", type=int, default=16, help="environments an actor")
    add("--seed", type=int, default=0, help="of actors, sampling and first weights")
    add("--device", choices=("cpu", "cuda"), default=best_device, help="where the learner learns")
    add(
        "--batch-size",
        type=int,
        help="transitions a learner step (default: 256 on cuda, 32 on cpu)",
    )
    add(
        "--samples-a-row",
        type=float,
        help="how often a row is learnt from, at most (default: 16 on cuda, 8 on cpu)",
    )
    add(
        "--samplers",
        type=int,
        help="processes that put batches together (default: 2 on cuda, 1 on cpu)",
    )
    add(
        "--capacity",
        type=int,
        help="rows of 7 kB in the replay (default: 1,000,000, or all of the frames)",
    )
    add("--min-rows", type=int, default=20_000, help="before learning begins")
    add("--test-episodes", type=int, default=10, help="side by side")
    add(
        "--checkpoint",
        type=Path,
        default=Path("atari.pt"),
        help="written each minute and at the end",
    )
    add("--resume", type=Path, help="a checkpoint to go on from, with an empty replay")
    add("--picture", type=Path, default=Path("atari.png"), help="written at the end")
    add("--quiet", action="store_true", help="no display while it learns")
    options = parser.parse_args(arguments)
    if options.game not in ale_py.roms.get_all_rom_ids():
        parser.error(
            f"ale-py has no game {options.game!r}; it has "
            f"{', '.join(ale_py.roms.get_all_rom_ids())}"
        )
    for name, default in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.capacity = options.capacity or min(
        CAPACITY_ROWS, max(options.frames // FRAME_SKIP, options.min_rows)
    )
    return options


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell expects after Ctrl-C; the processes are gone by now
