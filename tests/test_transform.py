"""Tests of `items.transform`: functions over assembled batches, in this process and in samplers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import areplay
from areplay.items.item import BatchFields
from areplay.items.transform import split_fields

SPEC = areplay.Spec.steps(obs=((3,), "uint8"), action=((), "int64"))


def halved(batch: Mapping[str, Any], out: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Observations as fractions."""
    np.divide(batch["obs"], 2, out=out["obs"], casting="unsafe")


def noisy(batch: Mapping[str, Any], out: Mapping[str, Any], rng: np.random.Generator) -> None:
    """A field of its own, from the sampler's generator; and one made of another."""
    out["noise"][:] = rng.random(len(batch["obs"]))
    out["twice"][:] = batch["next_obs"].astype(np.int64).sum(axis=-1) * 2


def broken(batch: Mapping[str, Any], out: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Raise."""
    raise ZeroDivisionError("in a transform")


async def filled(replay: areplay.Replay, steps: int = 30) -> None:
    """Steps of one episode, whose observations count."""
    obs = np.repeat(np.arange(steps, dtype=np.uint8)[:, None], 3, axis=1)
    await replay.extend(
        {
            "obs": obs,
            "action": np.arange(steps),
            "reward": np.ones(steps, np.float32),
            "terminated": np.arange(steps) == steps - 1,
            "truncated": np.zeros(steps, bool),
            "next_obs": obs + 1,
        }
    )


@pytest.mark.parametrize("stack", [None, 2])
async def test_what_it_writes_takes_the_place_of_the_items_field(stack: int | None) -> None:
    """Of the declared shape and dtype; the item's other fields stay, those that shared memory with
    it, too."""
    shape = (3,) if stack is None else (stack, 3)
    async with areplay.Replay(SPEC, 64, seed=1) as replay:
        await filled(replay)
        transform = areplay.Transform(halved, obs=(shape, "float32"))
        item = areplay.Transitions(frame_stack=stack)
        batch = replay.sample(16, item, transform=transform)
        plain = areplay.Transitions(frame_stack=stack)
        assert list(batch) == list(replay.sample(1, plain))
        assert batch["obs"].dtype == np.float32 and batch["obs"].shape == (16, *shape)
        newest = batch["obs"].reshape(16, -1)[:, -1] * 2
        assert newest.tolist() == batch["action"].tolist()
        assert batch["next_obs"].dtype == np.uint8
        assert batch["next_obs"].reshape(16, -1)[:, -1].tolist() == (batch["action"] + 1).tolist()


async def test_fields_of_its_own_come_behind_and_its_noise_is_seeded() -> None:
    """The generator is the sampler's: the same seed gives the same batches."""
    drawn = []
    for seed in (1, 1, 2):
        async with areplay.Replay(SPEC, 64, seed=seed) as replay:
            await filled(replay)
            batch = replay.sample(
                8, transform=areplay.Transform(noisy, noise=((), "float64"), twice=((), "int64"))
            )
            assert list(batch)[-2:] == ["noise", "twice"]
            assert (
                batch["twice"].tolist() == (batch["next_obs"].astype(int).sum(axis=1) * 2).tolist()
            )
            drawn.append(batch["noise"].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


async def test_it_runs_in_the_samplers() -> None:
    """Batches come transformed through the queue; what it raises is the sampler's failure, with its
    traceback."""
    async with areplay.Replay(SPEC, 64, seed=1) as replay:
        await filled(replay)
        async with asyncio.timeout(60):
            transform = areplay.Transform(halved, obs=((3,), "float32"))
            async with replay.batches(batch_size=8, transform=transform, prefetch=2) as batches:
                for _ in range(6):
                    batch = await anext(batches)
                    assert (batch["obs"][:, 0] * 2).tolist() == batch["action"].tolist()
            transform = areplay.Transform(broken, obs=((3,), "float32"))
            async with replay.batches(batch_size=8, transform=transform, max_restarts=0) as batches:
                with pytest.raises(areplay.SamplerFailed, match="in a transform"):
                    await anext(batches)


async def test_what_cannot_be_applied_is_refused_where_it_is_given() -> None:
    """No function, no fields, a function that cannot reach another process, a field that others are
    views of."""
    with pytest.raises(TypeError, match="function"):
        areplay.Transform("halved", obs=((3,), "float32"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fields"):
        areplay.Transform(halved)
    with pytest.raises(ValueError, match="obs"):
        areplay.Transform(halved, obs=((0,), "float32"))
    async with areplay.Replay(SPEC, 64) as replay:
        with pytest.raises(TypeError, match=r"areplay\.Transform"):
            replay.batches(transform=halved)  # type: ignore[arg-type]
        local = areplay.Transform(lambda batch, out, rng: None, obs=((3,), "float32"))
        with pytest.raises(ValueError, match="module level"):
            replay.batches(transform=local)
        frames = areplay.Transform(halved, **{"frames:obs": ((3, 3), "float32")})
        with pytest.raises(ValueError, match="views"):
            replay.batches(areplay.Transitions(frame_stack=2), transform=frames)


def test_memory_that_no_field_of_the_batch_needs_is_not_in_the_slots() -> None:
    """Replacing both views of the shared frames leaves the frames to the sampler's own memory."""
    item = BatchFields(areplay.Transitions(frame_stack=4).fields(SPEC))
    both = areplay.Transform(halved, obs=((4, 3), "float32"), next_obs=((4, 3), "float32"))
    after, scratch = split_fields(both, item)
    assert list(scratch) == ["frames:obs"] and "frames:obs" not in after.stored
    assert after.names == item.names
    one, scratch = split_fields(areplay.Transform(halved, obs=((4, 3), "float32")), item)
    assert scratch == {} and "frames:obs" in one.stored and list(one.views) == ["next_obs"]
    assert repr(both) == "Transform(halved, obs, next_obs)"


def named_as_parameters(
    batch: Mapping[str, Any], out: Mapping[str, Any], rng: np.random.Generator
) -> None:
    """Fields that are called like the parameters of `Transform`."""
    out["function"][:] = batch["action"]
    out["self"][:] = batch["action"] + 1


async def test_fields_may_have_any_name() -> None:
    """Also those of the parameters of `Transform`."""
    number = ((), "int64")
    transform = areplay.Transform(named_as_parameters, function=number, self=number)
    async with areplay.Replay(SPEC, 64, seed=1) as replay:
        await filled(replay)
        batch = replay.sample(8, transform=transform)
    assert batch["function"].tolist() == batch["action"].tolist()
    assert batch["self"].tolist() == (batch["action"] + 1).tolist()
    assert repr(transform) == "Transform(named_as_parameters, function, self)"
