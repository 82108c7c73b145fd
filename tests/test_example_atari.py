"""The Atari example: what its rows make of real games, what learns from them, and the program, run
as a user does.

torch and ale-py belong to the extra `atari`; without them this file is skipped.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import areplay
from tests.processes.watching import marked

pytest.importorskip("torch")
pytest.importorskip("ale_py")

import torch

import atari
from atari_dqn import TARGET_STEPS, DoubleDQN, Network

EXAMPLES = Path(atari.__file__).parent
FRAMES = 10_000  # with two environments, enough for an episode of each
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests share the cores with each other."""
    torch.set_num_threads(1)


# --------------------------------------------------------------------------------------------- rows


@dataclass
class Episode:
    """What an environment itself showed: the stacks that it made, and the rewards."""

    stacks: list[NDArray[np.uint8]]
    rewards: list[float] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    is_terminated: bool = False


async def played(replay: areplay.Replay, game: str, steps: int) -> dict[int, tuple[Episode, int]]:
    """Play at random as `explore` does; by the index of each row of a step, its episode and its
    number in it."""
    envs, rng, count = atari.make_envs(game, 2, threads=1), np.random.default_rng(0), 2
    replay.autoreset_mode = envs.autoreset_mode
    obs, _ = envs.reset(seed=0)
    open_now = [Episode([obs[k]]) for k in range(count)]
    has_ended, where = np.zeros(count, dtype=bool), {}
    for _ in range(steps):
        actions = rng.integers(envs.single_action_space.n, size=count)
        next_obs, rewards, terminated, truncated, _ = envs.step(actions)
        indices = await replay.add(
            obs=obs[:, -1],
            action=actions,
            reward=np.sign(rewards).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs[:, -1],
        )
        for k, episode in enumerate(open_now):
            if has_ended[k]:  # this was the step that only begins the next episode
                open_now[k] = Episode([next_obs[k]])
                continue
            where[int(indices[k])] = episode, len(episode.actions)
            episode.stacks.append(next_obs[k])
            episode.rewards.append(float(np.sign(rewards[k])))
            episode.actions.append(int(actions[k]))
            episode.is_terminated = bool(terminated[k])
        has_ended, obs = terminated | truncated, next_obs
    envs.close()
    return where


@pytest.mark.parametrize("game", ["pong", "breakout"])
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_transitions_are_what_the_environment_showed(game: str) -> None:
    """Stacks from single stored frames are the environment's own, black before an episode's first
    frame; rewards, discounts and next stacks are those of three steps, or fewer before an end."""
    async with areplay.Replay(atari.SPEC, capacity=4_000, seed=0) as replay:
        where = await played(replay, game, 1_100)
        batch = replay.sample(3_000, atari.ITEM)
        assert batch["obs"].dtype == np.uint8 and batch["obs"].shape == (3_000, 4, 84, 84)
        ends, beginnings = 0, 0
        for i, index in enumerate(batch.indices.tolist()):
            episode, at = where[index]
            n = min(3, len(episode.rewards) - at)
            is_last = episode.is_terminated and at + n == len(episode.rewards)
            assert batch["n"][i] == n
            assert (batch["obs"][i] == episode.stacks[at]).all()
            assert (batch["next_obs"][i] == episode.stacks[at + n]).all()
            assert batch["action"][i] == episode.actions[at]
            assert batch["reward"][i] == pytest.approx(
                sum(0.99**j * episode.rewards[at + j] for j in range(n))
            )
            assert batch["discount"][i] == (0 if is_last else np.float32(0.99**3))
            ends, beginnings = ends + is_last, beginnings + (at < 3)
        assert ends and beginnings


def test_environments_explore_as_in_ape_x() -> None:
    """Each environment of each actor has an epsilon of its own; every curve has some of them."""
    epsilons = atari.epsilons_of(12)
    assert epsilons[0] == pytest.approx(0.4) and epsilons[-1] == pytest.approx(0.4**8)
    assert set(np.searchsorted(atari.EPSILON_BOUNDS, epsilons)) == set(range(len(atari.SERIES)))
    assert atari.epsilons_of(1) == [0.4]


# ----------------------------------------------------------------------------------------- learning


def batch_of(rows: int, discount: float = 0.5) -> dict[str, torch.Tensor]:
    """Made up, with actions from 0 to 5."""
    generator = torch.Generator().manual_seed(0)
    stacks = torch.randint(256, (2, rows, 4, 84, 84), dtype=torch.uint8, generator=generator)
    return {
        "obs": stacks[0],
        "next_obs": stacks[1],
        "action": torch.randint(6, (rows,), generator=generator),
        "reward": torch.randn(rows, generator=generator),
        "discount": torch.full((rows,), discount),
    }


def test_the_loss_is_that_of_a_double_dqn() -> None:
    """Against the same in numpy, with a target network that differs."""
    learner, batch = DoubleDQN(6, "cpu", seed=0), batch_of(8)
    learner.target = Network(6)
    with torch.no_grad():
        values, next_values, next_targets = (
            network(batch[name]).numpy()
            for network, name in (
                (learner.network, "obs"),
                (learner.network, "next_obs"),
                (learner.target, "next_obs"),
            )
        )
    rows = np.arange(8)
    targets = batch["reward"].numpy() + 0.5 * next_targets[rows, next_values.argmax(axis=1)]
    errors = np.abs(values[rows, batch["action"].numpy()] - targets)
    learner.learn(batch)
    assert learner.loss.item() == pytest.approx(
        np.where(errors < 1, errors**2 / 2, errors - 0.5).mean(), rel=1e-4
    )


def test_it_learns_a_batch_by_heart() -> None:
    """Where nothing is to be expected of the future, the values become the rewards."""
    learner, batch = DoubleDQN(6, "cpu", seed=0), batch_of(8, discount=0.0)
    learner.learn(batch)
    first = learner.loss.item()
    for _ in range(60):
        learner.learn(batch)
    assert learner.loss.item() < first / 10


def test_the_target_network_follows_in_jumps() -> None:
    """It stays what it is, until the step that is due."""
    learner, batch = DoubleDQN(6, "cpu", seed=0), batch_of(2)
    before = learner.target.arrays()["layers.0.weight"].copy()
    learner.steps = TARGET_STEPS - 2
    learner.learn(batch)
    assert (learner.target.arrays()["layers.0.weight"] == before).all()
    learner.learn(batch)
    assert (
        learner.target.arrays()["layers.0.weight"] == learner.network.arrays()["layers.0.weight"]
    ).all()
    assert (learner.target.arrays()["layers.0.weight"] != before).any()


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    """The same actions, and after one more step on both sides the same weights; a failed save
    leaves the last one."""
    learner, batch, path = DoubleDQN(6, "cpu", seed=0), batch_of(8), tmp_path / "deep" / "atari.pt"
    learner.learn(batch)
    learner.save(path)
    other = DoubleDQN(6, "cpu", seed=1)
    other.load(path)
    assert other.steps == 1 and other.steps_now == 0
    stacks = batch["obs"].numpy()
    assert (other.network.act(stacks) == learner.network.act(stacks)).all()
    learner.learn(batch)
    other.learn(batch)
    for name, array in learner.network.arrays().items():
        assert (other.network.arrays()[name] == array).all()
    kept = path.read_bytes()
    path.with_name("atari.pt.new").mkdir()
    with pytest.raises((OSError, RuntimeError)):
        learner.save(path)
    assert path.read_bytes() == kept


def test_actors_take_over_new_weights_only() -> None:
    """A network acts as the one whose weights were published."""
    first, actors, stacks = Network(6), Network(6), batch_of(16)["obs"].numpy()
    weights = areplay.Weights(first.arrays())
    assert actors.follow(weights)
    assert not actors.follow(weights)
    assert (actors.act(stacks) == first.act(stacks)).all()
    second = Network(6)
    weights.publish(second.arrays())
    assert actors.follow(weights)
    assert torch.equal(actors(torch.from_numpy(stacks)), second(torch.from_numpy(stacks)))
    weights.close()


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    """Rather than to learn nothing all night, and to write that into the checkpoint."""
    run = atari.Run(atari._parse(["--frames", "1000"], "cpu"))
    run.note_loss(1.0)
    with pytest.raises(FloatingPointError, match="nan"):
        run.note_loss(float("nan"))


def test_wrong_games_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names of those that there are."""
    with pytest.raises(SystemExit, match="2"):
        atari._parse(["--game", "chess"], "cpu")
    assert "no game 'chess'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ program


@dataclass
class Done:
    """The program after its end."""

    folder: Path
    code: int
    out: str
    err: str
    figures: dict[str, str]
    left: set[int]

    def number(self, name: str) -> float:
        """Of that line of the table, without its unit; times in seconds."""
        text = self.figures[name]
        factor = {"us": 1e-6, "ms": 1e-3}.get(text.split()[-1], 1.0)
        return float(re.sub(r"[,%a-z ]", "", text)) * factor


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """10,000 frames of Pong on whatever this machine has, without its GPU."""
    folder = tmp_path_factory.mktemp("atari")
    mark = f"ATARI_EXAMPLE={folder}"
    command: list[Any] = [
        sys.executable,
        "-W",
        "error",
        EXAMPLES / "atari.py",
        "--frames",
        FRAMES,
        "--device",
        "cpu",
    ]
    command += ["--actors", 1, "--envs", 2, "--min-rows", 500, "--test-episodes", 1, "--seed", 3]
    command += ["--checkpoint", folder / "pong.pt", "--picture", folder / "pong.png"]
    ran = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=170,  # below the watchdog; 20 s as a rule
        env=os.environ | {"ATARI_EXAMPLE": str(folder)},
    )
    rows = re.findall(r"^\| (.+?) \| (.*?) \|$", ran.stdout, re.MULTILINE)
    return Done(folder, ran.returncode, ran.stdout, ran.stderr, dict(rows), marked(mark))


def test_the_program_ends_well(done: Done) -> None:
    """Exit code 0, no traceback, nothing left running."""
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert done.left == set()


def test_the_program_plays_and_learns(done: Done) -> None:
    """All frames came in, the learner has learnt from batches of them, actors got its weights and
    ended episodes."""
    assert FRAMES / 4 <= done.number("rows stored") < 2 * FRAMES / 4, done.out
    assert done.number("learner steps") >= 5
    assert done.number("episodes of actors") >= 1
    assert -21 <= done.number("mean return of the newest 100") <= 21


def test_the_program_prints_all_figures(done: Done) -> None:
    """Those that docs show: rates, waits, fill and bytes."""
    assert done.number("frames/s") > 0, done.out
    assert done.number("learner steps/s") > 0.1
    assert (
        0
        < done.number("learner's wait for a batch, p50")
        <= done.number("learner's wait for a batch, p99")
    )
    assert 0 < done.number("queue's fill, mean") <= 100
    assert 84 * 84 < done.number("bytes a step") < 1.02 * 84 * 84  # one frame, not eight


def test_the_checkpoint_plays_as_the_network_did(done: Done) -> None:
    """Loaded, it is the finite network that played the last test: from the same start it plays the
    same game."""
    checkpoint = torch.load(done.folder / "pong.pt", weights_only=True)
    assert checkpoint["steps"] == done.number("learner steps")
    learner = DoubleDQN(atari.number_of_actions("pong"), "cpu", seed=99)
    learner.load(done.folder / "pong.pt")
    assert all(np.isfinite(array).all() for array in learner.network.arrays().values())
    returns, steps = asyncio.run(atari.play(learner.network, "pong", 1))
    assert returns.mean() == done.number("mean return of the last test")
    assert steps == done.number("steps of the last test")


def test_the_program_draws_a_picture(done: Done) -> None:
    """A PNG of some substance."""
    picture = (done.folder / "pong.png").read_bytes()
    assert picture.startswith(PNG) and len(picture) > 10_000


def test_the_program_shows_its_progress(done: Done) -> None:
    """Not in a terminal it prints plain lines."""
    shown = re.findall(r"rows/s in \| [\d,]+ batches/s out \| queue \d+/16", done.out)
    assert shown, done.out
