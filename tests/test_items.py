"""Tests of `items.item`."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._base.arrays import Array
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Window, Windows
from areplay.items import item as items
from areplay.items.item import BatchFields, Fields, FieldView
from areplay.items.rows import Rows
from areplay.spec import Spec

SPEC = Spec(
    obs=((2, 3), "uint8"), reward=((), "float32"), done=((), "bool"), z=((1,), "complex128")
)


@pytest.fixture
def ring() -> Iterator[Ring]:
    """4 blocks of 4 rows, gone round more than twice; row number n has n in every field."""
    ring = Ring(SPEC, 4, 4)
    writer = StreamWriter(ring, ring.block_locks(), WriterRegistry())
    numbers = np.arange(38)
    columns = {
        "obs": np.repeat(numbers, 6).reshape(-1, 2, 3).astype(np.uint8),
        "reward": numbers.astype(np.float32),
        "done": numbers % 2 == 1,
        "z": numbers[:, None] * 1j,
    }
    assert writer.write(columns, 0, 38).tolist() == numbers.tolist()
    yield ring
    writer.close()
    ring.segment.close()


def windows(ring: Ring, names: list[int]) -> Windows:
    """The windows of those rows."""
    return WindowFinder(ring, Rows.window).find(np.array(names))


def test_the_fields_of_rows_are_those_of_the_spec() -> None:
    """Names, shapes, dtypes and order; and a dictionary of its own."""
    fields = Rows().fields(SPEC)
    assert list(fields.items()) == list(SPEC.items())
    fields.clear()
    assert len(SPEC) == 4
    assert repr(Rows()) == "Rows()"


@pytest.mark.parametrize(
    "names", [[37], [24, 37, 30, 24, 24], list(range(24, 38)), list(range(37, 23, -1))]
)
def test_each_row_is_copied_to_the_place_of_its_index(ring: Ring, names: list[int]) -> None:
    """`out[field][i]` is the row that `indices[i]` names: any order, repetitions, blocks of any
    lap."""
    out = {
        name: np.full((len(names), *field.shape), 99, field.dtype) for name, field in SPEC.items()
    }
    Rows().assemble(windows(ring, names), out)
    assert out["obs"].tolist() == [[[n] * 3] * 2 for n in names]
    assert out["reward"].tolist() == names
    assert out["done"].tolist() == [n % 2 == 1 for n in names]
    assert out["z"].tolist() == [[n * 1j] for n in names]


def test_a_stale_name_copies_something_and_does_not_fail(ring: Ring) -> None:
    """Rows may change while they are copied: whether what came is of use is decided elsewhere."""
    out = {name: np.zeros((2, *field.shape), field.dtype) for name, field in SPEC.items()}
    Rows().assemble(windows(ring, [3, 1_000_003]), out)
    assert out["reward"].tolist() == [35.0, 35.0], "the row that has the place now"


class NextRewards:
    """The example of the docstring of `areplay.items.item`: the discounted sum of the next five
    rewards."""

    window = Window(forward=4)

    def fields(self, spec: Spec) -> Fields:
        """See `Item.fields`."""
        return {"obs": spec["obs"], "returns": ((), "float32")}

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """See `Item.assemble`."""
        windows.take("obs", out=out["obs"])
        # (B, 5); behind an episode's end the last row is repeated
        rewards = windows.take("reward", slice(0, 5))
        is_step = np.arange(5) < windows.steps[:, None]
        out["returns"][:] = (rewards * is_step) @ 0.99 ** np.arange(5)


async def test_an_item_kind_of_the_users_own_is_drawn_and_put_together() -> None:
    """The documented example, in this process and in a sampler's; and it is what the documentation
    shows."""
    spec = Spec.steps(obs=((), "int64"), action=((), "int64"))
    async with areplay.Replay(spec, 64, seed=0) as replay:
        for t in range(12):
            await replay.add(
                obs=t,
                action=0,
                reward=float(t),
                terminated=t == 11,
                truncated=False,
                next_obs=t + 1,
            )
        expected = [sum(0.99**k * (t + k) for k in range(5) if t + k < 12) for t in range(12)]
        batch = replay.sample(200, NextRewards())
        assert set(batch["obs"].tolist()) == set(range(12))
        assert np.allclose(batch["returns"], [expected[t] for t in batch["obs"]])
        async with asyncio.timeout(60), replay.batches(NextRewards(), batch_size=16) as batches:
            batch = await anext(batches)
            assert np.allclose(batch["returns"], [expected[t] for t in batch["obs"]])
    shown = inspect.cleandoc(items.__doc__ or "").split("class NextRewards:")[1]
    for line in inspect.getsource(NextRewards.assemble).splitlines()[2:]:
        assert line.strip() in shown


def test_a_view_is_a_part_of_the_memory_that_it_names() -> None:
    """A range along axis 1, or stacks of neighbours in it, as views; the source is not shown."""
    views = {"a": FieldView("s", 0, 2), "w": FieldView("s", 1, 5, stack=3)}
    fields = BatchFields(views | {"s": ((5, 2), "int64"), "b": ((), "int8")})
    stored = fields.empty(3)
    stored["s"][:] = np.arange(30).reshape(3, 5, 2)
    shown = fields.of(stored)
    assert list(shown) == ["a", "w", "b"]
    assert shown["a"].shape == (3, 2, 2) and np.shares_memory(shown["a"], stored["s"])
    assert shown["w"].shape == (3, 2, 3, 2) and np.shares_memory(shown["w"], stored["s"])
    for t in range(2):
        assert shown["w"][:, t].tolist() == stored["s"][:, 1 + t : 4 + t].tolist()
    for wrong in (
        {},
        {"a": FieldView("s", 0, 2)},
        {"s": ((2,), "int8"), "a": FieldView("t", 0, 1)},
    ):
        with pytest.raises(ValueError, match="sources"):
            BatchFields(wrong)
    with pytest.raises(ValueError, match="'a'"):
        BatchFields({"a": "float32"})


def test_what_was_copied_is_nobody_elses(ring: Ring) -> None:
    """Changing the copy does not change the ring."""
    out = {name: np.zeros((1, *field.shape), field.dtype) for name, field in SPEC.items()}
    Rows().assemble(windows(ring, [30]), out)
    out["obs"][:] = 0
    assert (ring.columns["obs"][30 % 16] == 30).all()


def doubled(batch: Any, out: Any, rng: Any) -> None:
    """A transform."""


def test_items_and_transforms_are_values() -> None:
    """They cannot be changed; what was made of equal options is equal, in other processes, too."""
    for make in (
        Rows,
        lambda: areplay.Transitions(3, frame_stack={"obs": 4}, pad="zero"),
        lambda: areplay.Sequences(8, burn_in=2, first_step_only=["b", "a"]),
        lambda: areplay.Transform(doubled, obs=((), "float32")),
    ):
        one: Any = make()
        assert one == make() == pickle.loads(pickle.dumps(one))
        assert hash(one) == hash(make())
        for field in dataclasses.fields(one):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, field.name, 1)
    assert areplay.Transitions(3) != areplay.Transitions(4)
    assert areplay.Sequences(8) != areplay.Sequences(8, pad="zero")


def test_an_item_keeps_its_stacks_when_the_users_dict_changes() -> None:
    """It has a copy."""
    depths = {"obs": 4}
    item = areplay.Transitions(frame_stack=depths)
    depths["obs"] = 8
    assert item == areplay.Transitions(frame_stack={"obs": 4})
    assert item.window.back == 3
