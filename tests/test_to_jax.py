"""Tests of `_sampling.jax`: a batch as jax arrays, copies that stay as they are, or the memory of
the batch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.jax import arrays as jax_arrays
from areplay._sampling.slots import Slots
from areplay.errors import MissingDependency
from areplay.items.item import BatchFields, FieldView

jax = pytest.importorskip("jax")

FIELDS = BatchFields(
    {
        "frames": ((5, 6), "uint8"),
        "obs": FieldView("frames", 0, 4),
        "next_obs": FieldView("frames", 1, 5),
        "history": ((7, 2, 3), "float32"),
        "stacks": FieldView("history", 1, 7, 4),
        "state": ((16,), "float32"),
        "reward": ((), "float32"),
        "mask": ((64,), "bool"),
    }
)
BATCH_SIZE = 8


def filled(batch: BatchArrays, seed: int = 0) -> BatchArrays:
    """The same places, with bytes of chance that are valid values."""
    rng = np.random.default_rng(seed)
    for array in batch.stored.values():
        array[...] = rng.integers(0, 2 if array.dtype == np.bool_ else 100, array.shape)
    return batch


@pytest.fixture
def slots() -> Slots:
    """Shared memory for three batches, all filled."""
    found = Slots(FIELDS, BATCH_SIZE, 3, 1)
    for slot in range(3):
        filled(found.batch(slot), slot)
    return found


def one_field(values: Any) -> BatchArrays:
    """A batch in memory of its own, with one field of such values."""
    array = np.asarray(values)
    batch = BatchArrays.empty(len(array), BatchFields({"value": (array.shape[1:], "float32")}))
    return BatchArrays(
        batch.indices, batch.importance_weights, batch.probabilities, {"value": array}, batch.layout
    )


def values_of(batch: BatchArrays) -> dict[str, Any]:
    """Its fields, kept."""
    return {name: array.copy() for name, array in batch.fields.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Names, in order, dtypes, shapes and values."""
    assert list(found) == list(expected)
    for name, array in found.items():
        assert isinstance(array, jax.Array) and array.dtype == expected[name].dtype, name
        assert np.array_equal(np.asarray(array), expected[name]), name


@pytest.mark.parametrize("copy", [True, False])
def test_they_are_the_fields(slots: Slots, copy: bool) -> None:
    """The same names, shapes, dtypes and values, views and bools among them."""
    assert_same(jax_arrays(slots.batch(1), copy=copy), values_of(slots.batch(1)))


def test_they_stay_as_they_are_when_the_slot_is_filled_again(slots: Slots) -> None:
    """A jax array never changes: nothing of it lies in the slot."""
    found, expected = jax_arrays(slots.batch(0)), values_of(slots.batch(0))
    filled(slots.batch(0), 9)
    assert_same(found, expected)


def test_a_step_that_runs_in_the_background_computes_from_the_batch_it_was_given() -> None:
    """jax returns before it has computed; a slot that is filled again meanwhile does not reach
    it."""

    @jax.jit
    def step(x: Any) -> Any:
        y = jax.lax.fori_loop(0, 20, lambda _, y: y @ x / 512, x)
        return y.sum() + x.sum()

    slots = Slots(BatchFields({"x": ((512,), "float32")}), 512, 1, 1)
    batch = slots.batch(0)
    batch.stored["x"][...] = 1
    expected = float(step(jax_arrays(batch)["x"]))
    for _ in range(3):
        batch.stored["x"][...] = 1
        result = step(jax_arrays(batch)["x"])
        batch.stored["x"][...] = 0
        assert float(result) == expected == 2 * 512 * 512


def test_without_a_copy_fields_in_one_piece_are_the_memory_of_the_batch(slots: Slots) -> None:
    """If they lie on a 64-byte boundary, as `state` and `mask` do here; views, and scalars of a
    small batch, do not."""
    batch = slots.batch(1)
    found = jax_arrays(batch, copy=False)
    before = values_of(batch)
    assert batch.fields["state"].ctypes.data % 64 == batch.fields["mask"].ctypes.data % 64 == 0
    assert batch.fields["reward"].ctypes.data % 64 != 0
    filled(batch, 9)
    after = values_of(batch)
    shared = {"state", "mask"}
    assert_same(found, {name: after[name] if name in shared else before[name] for name in before})


def test_shared_memory_outlives_the_slots() -> None:
    """It is mapped for as long as a jax array shows it: to read one too late is an error of mind,
    not of memory."""
    slots = Slots(FIELDS, 64, 1, 1)
    expected = values_of(filled(slots.batch(0)))
    found = jax_arrays(slots.batch(0), copy=False)
    slots.close()
    del slots
    assert_same(found, expected)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("offset", [0, 4, 60])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)])
def test_memory_of_any_kind_is_taken(shape: tuple[int, ...], offset: int, copy: bool) -> None:
    """On a boundary or beside one, in one piece, transposed, or with gaps."""
    memory = np.zeros(4096, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    size = int(np.prod(shape))
    flat = memory[start : start + 4 * size].view(np.float32)
    flat[...] = np.arange(size)
    whole = flat.reshape(shape)
    for array in (whole, whole[::2], whole[::-1], whole.reshape(shape[::-1]).T, whole[:0]):
        assert_same(jax_arrays(one_field(array), copy=copy), {"value": array.copy()})


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "complex64"]
)
def test_dtypes_of_up_to_32_bits_are_kept(dtype: str, copy: bool) -> None:
    """With their values."""
    values = np.arange(16).astype(dtype)
    assert_same(jax_arrays(one_field(values), copy=copy), {"value": values})


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(
    ("dtype", "short"),
    [("int64", "int32"), ("uint64", "uint32"), ("float64", "float32"), ("complex128", "complex64")],
)
def test_64_bits_are_as_many_as_jax_is_set_to(dtype: str, short: str, copy: bool) -> None:
    """32 by default, and then the array is a copy; the same with `jax_enable_x64`."""
    memory = np.zeros(4096, np.uint8)
    start = -memory.ctypes.data % 64
    values = memory[start : start + 1024].view(dtype)
    values[...] = np.arange(len(values))
    expected = values.copy()
    found = jax_arrays(one_field(values), copy=copy)
    with jax.enable_x64(True):
        assert_same(jax_arrays(one_field(values), copy=copy), {"value": expected})
    values[...] = 7
    assert_same(found, {"value": expected.astype(short)})


@pytest.mark.parametrize("copy", [True, False])
def test_a_dtype_that_jax_lacks_is_refused_by_field(copy: bool) -> None:
    """The message names the field, its dtype and the jax at hand."""
    values = np.zeros(4, np.longdouble)
    with pytest.raises(
        TypeError,
        match=r"field 'value' is "
        rf"{values.dtype.name}.*jax.*batch\['value'\]",
    ):
        jax_arrays(one_field(values), copy=copy)


def test_a_device_can_be_named(slots: Slots) -> None:
    """The arrays are there; without one they are where jax puts things, and may be moved from
    there."""
    device = jax.devices()[0]
    assert all(array.device == device for array in jax_arrays(slots.batch(0), device).values())
    assert not any(array.committed for array in jax_arrays(slots.batch(0)).values())
    with jax.default_device("cpu"):
        assert_same(jax_arrays(slots.batch(0), copy=False), values_of(slots.batch(0)))
    with jax.default_device(device):
        assert_same(jax_arrays(slots.batch(0), copy=False), values_of(slots.batch(0)))


def test_without_jax_the_extra_is_named(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of areplay's own, that says what to install."""
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(
        MissingDependency,
        match=r"batch\.jax\(\) needs.*pip install '\.\[jax\]'` in a clone of "
        r"areplay",
    ):
        jax_arrays(slots.batch(0))
