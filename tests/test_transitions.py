"""Tests of `items.transitions`: options, fields, and a few windows worked out by hand. The rest is
the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import areplay
from areplay.items.item import BatchFields

SPEC = areplay.Spec.steps(obs=((), "uint8"), action=((), "int64"), tag=((2,), "float32"))
STEPS = 5


async def episode(
    replay: areplay.Replay, steps: int = STEPS, ends: str = "truncated", **changed: Any
) -> None:
    """One episode: observations 10, 11, ..., rewards 1, 2, 4, ..."""
    for t in range(steps):
        is_last = t == steps - 1
        row = {
            "obs": 10 + t,
            "action": t,
            "reward": 2.0**t,
            "terminated": is_last and ends == "terminated",
            "truncated": is_last and ends == "truncated",
            "next_obs": 11 + t,
            "tag": [t, -t],
        }
        await replay.add(**(row | changed))


async def by_action(replay: areplay.Replay, item: areplay.Item) -> dict[int, dict[str, Any]]:
    """What each step's item is."""
    batch = replay.sample(200, item)
    return {
        int(a): {name: batch[name][k].tolist() for name in batch}
        for k, a in enumerate(batch["action"])
    }


@pytest.mark.parametrize("ends", ["truncated", "terminated"])
async def test_three_steps_of_an_episode_worked_out_by_hand(ends: str) -> None:
    """Rewards 1, 2, 4, 8, 16 with gamma 0.5: full windows, and the shorter ones at the end."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, ends=ends)
        items = await by_action(replay, areplay.Transitions(n_step=3, gamma=0.5))
    assert sorted(items) == [0, 1, 2, 3, 4]
    assert [items[t]["reward"] for t in range(5)] == [3.0, 6.0, 12.0, 16.0, 16.0]
    assert [items[t]["n"] for t in range(5)] == [3, 3, 3, 2, 1]
    assert [items[t]["next_obs"] for t in range(5)] == [13, 14, 15, 15, 15]
    is_end = [t >= 2 for t in range(5)]
    assert [items[t][ends] for t in range(5)] == is_end
    gammas = [0.125, 0.125, 0.125, 0.25, 0.5]
    ended = ends == "terminated"
    assert [items[t]["discount"] for t in range(5)] == [
        0 if ended and e else g for g, e in zip(gammas, is_end, strict=True)
    ]
    assert [items[t]["tag"] for t in range(5)] == [[t, -t] for t in range(5)]


@pytest.mark.parametrize("n_step", [1, 2, 4])
@pytest.mark.parametrize("pad", ["first", "zero"])
async def test_stacks_worked_out_by_hand(n_step: int, pad: str) -> None:
    """Three frames deep; before the first frame comes that one again, or zero; the end has the
    final observation."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay)
        items = await by_action(replay, areplay.Transitions(n_step=n_step, frame_stack=3, pad=pad))

    def stack(t: int) -> list[int]:
        return [10 + u if u >= 0 else (10 if pad == "first" else 0) for u in (t - 2, t - 1, t)]

    for t in range(STEPS):
        assert items[t]["obs"] == stack(t)
        assert items[t]["next_obs"] == stack(min(t + n_step, STEPS))


async def test_with_one_step_the_stacks_share_their_frames() -> None:
    """Five frames for two stacks of four: the memory of one is the memory of the other, and a copy
    keeps it so."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay)
        batch = replay.sample(4, areplay.Transitions(frame_stack=4)).copy()
    assert np.shares_memory(batch["obs"], batch["next_obs"])
    assert BatchFields(areplay.Transitions(frame_stack=4).fields(SPEC)).stored[
        "frames:obs"
    ].shape == (5,)
    assert batch["obs"][:, 1:].tolist() == batch["next_obs"][:, :-1].tolist()
    assert "frames:obs" not in batch


def test_fields_have_the_specs_shapes_and_dtypes() -> None:
    """Nested observations each by their name, some stacked; a reward that is no float becomes
    one."""
    spec = areplay.Spec.steps(
        obs={"camera": ((8, 8), "uint8"), "speed": ((), "float32")},
        action={"0": ((2,), "float32")},
        reward=((3,), "int16"),
    )
    fields = BatchFields(areplay.Transitions(2, frame_stack={"obs.camera": 4}).fields(spec)).stored
    assert {name: (field.shape, field.dtype.name) for name, field in fields.items()} == {
        "frames:obs.camera": ((8, 8, 8), "uint8"),
        "obs.speed": ((), "float32"),
        "next_obs.speed": ((), "float32"),
        "action.0": ((2,), "float32"),
        "reward": ((3,), "float32"),
        "discount": ((), "float32"),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "n": ((), "int64"),
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_step": 0}, "n_step"),
        ({"n_step": 1.0}, "n_step"),
        ({"gamma": 1.01}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": "0.9"}, "gamma"),
        ({"frame_stack": 0}, "frame_stack"),
        ({"frame_stack": {"obs": 0}}, "frame_stack"),
        ({"pad": "last"}, "pad"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], named: str
) -> None:
    """By its name, and with what is allowed."""
    with pytest.raises(ValueError, match=named):
        areplay.Transitions(**options)


async def test_what_a_spec_does_not_give_is_refused_where_it_is_asked_for() -> None:
    """Before any process is started: no steps, no such field, a name that is taken, a window that
    is too long."""
    plain = areplay.Spec(obs=((), "uint8"))
    clash = areplay.Spec.steps(obs=((), "uint8"), action=((), "int64"), n=((), "int64"))
    async with areplay.Replay(plain, 64) as replay:
        with pytest.raises(ValueError, match=r"Spec\.steps"):
            replay.batches(areplay.Transitions())
    async with areplay.Replay(clash, 64) as replay:
        with pytest.raises(ValueError, match="'n'"):
            replay.sample(1)
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(ValueError, match=r"'camera'.*obs"):
            replay.batches(areplay.Transitions(frame_stack={"camera": 4}))
        with pytest.raises(ValueError, match=r"34 rows.*raise capacity"):
            replay.sample(1, areplay.Transitions(n_step=33))
        replay.batches(areplay.Transitions(n_step=31))
    async with areplay.Replay(SPEC, 1_024, block_rows=16) as replay:
        with pytest.raises(ValueError, match=r"17 rows.*leave block_rows out"):
            replay.batches(areplay.Transitions(n_step=16))


async def test_steps_are_sampled_as_transitions_by_default() -> None:
    """And rows as rows; a replay whose steps cannot make one yet says so."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, steps=2, ends="")
        assert "next_obs" in replay.sample(1)
        assert list(replay.sample(3, areplay.Rows())) == list(SPEC)
        with pytest.raises(areplay.Stalled, match=r"2 rows of which no Transitions\(n_step=2"):
            replay.sample(1, areplay.Transitions(n_step=2))


async def test_integer_rewards_become_the_nearest_floats() -> None:
    """As documented: above 2**53 they are rounded, where `Rows` and `Sequences` keep them."""
    spec = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"), reward=((), "int64"))
    reward = 2**53 + 3
    async with areplay.Replay(spec, 64, seed=0) as replay:
        for number in range(2):
            await replay.add(
                obs=number,
                action=0,
                reward=reward,
                terminated=number == 1,
                truncated=False,
                next_obs=number + 1,
            )
        transition = replay.sample(1)["reward"]
        assert transition.dtype == np.float64 and transition.tolist() == [2.0**53 + 4]
        sequence = replay.sample(1, areplay.Sequences(1))["reward"]
        assert sequence.ravel().tolist() == [reward]
        rows = replay.sample(50, areplay.Rows())["reward"]
        assert set(rows.tolist()) - {0} == {reward}
