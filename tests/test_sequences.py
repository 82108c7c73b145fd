"""Tests of `items.sequences`: options, fields, and a few windows worked out by hand. The rest is
the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import areplay
from areplay.items.item import BatchFields

SPEC = areplay.Spec.steps(obs=((), "uint8"), action=((), "int64"), state=((2,), "float32"))


async def episode(replay: areplay.Replay, steps: int, first: int) -> None:
    """One episode whose observations and actions count from `first`."""
    for t in range(steps):
        await replay.add(
            obs=first + t,
            action=first + t,
            reward=1.0,
            terminated=False,
            truncated=t == steps - 1,
            next_obs=first + t + 1,
            state=[t, t],
        )


async def by_start(replay: areplay.Replay, item: areplay.Item) -> dict[int, dict[str, Any]]:
    """Each sequence, by the action of its first step."""
    batch = replay.sample(400, item)
    return {
        int(a): {name: batch[name][k].tolist() for name in batch}
        for k, a in enumerate(batch["action"][:, 0])
    }


async def test_a_sequence_ends_with_its_episode() -> None:
    """What follows is masked and zero, but the final observation."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, 6, 10)
        await episode(replay, 2, 20)
        found = await by_start(replay, areplay.Sequences(4))
    assert sorted(found) == [10, 11, 12, 13, 14, 15, 20, 21]
    assert found[10]["obs"] == [10, 11, 12, 13] and found[10]["mask"] == [True] * 4
    assert found[12]["truncated"] == [False, False, False, True]
    assert found[14]["obs"] == [14, 15, 16, 0]
    assert found[14]["action"] == [14, 15, 0, 0]
    assert found[14]["mask"] == [True, True, False, False]
    assert found[14]["state"] == [[4, 4], [5, 5], [0, 0], [0, 0]]
    assert found[20]["is_first"] == [True, False, False, False]
    assert found[11]["is_first"] == [False] * 4


async def test_across_episodes_the_next_one_follows_at_once() -> None:
    """Final observations are left out, nothing is masked, and a sequence that would go beyond what
    is there is none."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, 3, 10)
        await episode(replay, 2, 20)
        await episode(replay, 3, 30)
        found = await by_start(replay, areplay.Sequences(4, across_episodes=True))
    assert sorted(found) == [10, 11, 12, 20, 21]
    assert found[11]["obs"] == [11, 12, 20, 21]
    assert found[11]["is_first"] == [False, False, True, False]
    assert found[11]["truncated"] == [False, True, False, True]
    assert found[12]["obs"] == [12, 20, 21, 30]
    assert all(sequence["mask"] == [True] * 4 for sequence in found.values())


async def test_burn_in_period_and_states() -> None:
    """Masked at the beginning; begun at every second step; the state of the first step only, if
    asked for."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, 6, 10)
        item = areplay.Sequences(4, burn_in=2, period=2, first_step_only=["state"])
        found = await by_start(replay, item)
    assert sorted(found) == [10, 12], (
        "one from 14 would have nothing to learn from after the burn-in"
    )
    assert found[10]["mask"] == [False, False, True, True]
    assert found[12]["state"] == [2, 2]


@pytest.mark.parametrize("pad", ["first", "zero"])
async def test_each_time_has_its_stack(pad: str) -> None:
    """Three frames deep, from frames that are there once; an episode that follows begins with a
    stack of its own."""
    async with areplay.Replay(SPEC, 64, seed=0) as replay:
        await episode(replay, 3, 10)
        await episode(replay, 3, 20)
        within = await by_start(replay, areplay.Sequences(3, frame_stack=3, pad=pad))
        across = await by_start(
            replay, areplay.Sequences(3, frame_stack=3, pad=pad, across_episodes=True)
        )

    def stack(t: int, first: int) -> list[int]:
        return [u if u >= first else (first if pad == "first" else 0) for u in (t - 2, t - 1, t)]

    assert within[10]["obs"] == [stack(t, 10) for t in (10, 11, 12)]
    assert within[21]["obs"] == [stack(t, 20) for t in (21, 22, 23)]
    assert within[21]["mask"] == [True, True, False]
    assert across[11]["obs"] == [stack(11, 10), stack(12, 10), stack(20, 20)]
    fields = BatchFields(areplay.Sequences(80, frame_stack=4).fields(SPEC))
    assert fields.stored["frames:obs"].shape == (83,), "frames are there once"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sequence_length": 0}, "sequence_length"),
        ({"sequence_length": 4, "burn_in": 4}, "burn_in"),
        ({"sequence_length": 4, "period": 0}, "period"),
        ({"sequence_length": 4, "frame_stack": -1}, "frame_stack"),
        ({"sequence_length": 4, "pad": "none"}, "pad"),
        ({"sequence_length": 4, "first_step_only": "state"}, "first_step_only"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], named: str
) -> None:
    """By its name."""
    with pytest.raises(ValueError, match=named):
        areplay.Sequences(**options)


async def test_what_a_spec_does_not_give_is_refused_where_it_is_asked_for() -> None:
    """No such extra, a name that is taken, no steps at all."""
    clash = areplay.Spec.steps(obs=((), "uint8"), action=((), "int64"), mask=((), "bool"))
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(ValueError, match=r"'hidden'.*state"):
            replay.batches(areplay.Sequences(4, first_step_only=["hidden"]))
    async with areplay.Replay(clash, 64) as replay:
        with pytest.raises(ValueError, match="'mask'"):
            replay.sample(1, areplay.Sequences(4))
    with pytest.raises(ValueError, match=r"Spec\.steps"):
        areplay.Sequences(4).fields(areplay.Spec(obs=((), "uint8")))
    assert repr(areplay.Sequences(4, burn_in=1, period=2)) == "Sequences(4, burn_in=1, period=2)"


async def test_one_replay_is_read_as_transitions_and_as_sequences_at_once() -> None:
    """Two streams over the same rows, each with samplers of its own."""
    async with areplay.Replay(SPEC, 256, seed=0) as replay:
        await episode(replay, 100, 10)
        async with (
            replay.batches(areplay.Transitions(3), batch_size=8) as transitions,
            replay.batches(areplay.Sequences(20), batch_size=4) as sequences,
        ):
            for _ in range(5):
                one, other = await anext(transitions), await anext(sequences)
                assert (one["next_obs"] == one["obs"] + one["n"]).all()
                assert (np.diff(other["obs"].astype(int), axis=1)[other["mask"][:, 1:]] == 1).all()
