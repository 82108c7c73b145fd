"""Tests of `_base.arrays`: what comes in is the very values that were given, or refused with a
remedy.

torch and jax are asked for where a test is about their arrays; without them those tests are
skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from areplay._base.arrays import (
    Refusal,
    as_array,
    detached,
    exactly,
    own_columns,
    plain,
    share_memory,
    shown,
    torch_tensor_in,
)

BIG = (1 << 53) + 1  # the first whole number that float64 lacks
WHOLE = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]


def holds(number: int, dtype: str) -> bool:
    """Whether a float of that kind is that whole number; by Python's own arithmetic, that does not
    round."""
    with np.errstate(all="ignore"):
        nearest = float(np.dtype(dtype).type(number).real)
    return math.isfinite(nearest) and Fraction(nearest) == number


# Whole numbers in floats.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_number_comes_out_as_it_went_in_or_not_at_all(
    kind: type[np.integer[Any]], dtype: str
) -> None:
    """Of every width, around every power of two, and at both ends of its range."""
    info = np.iinfo(kind)
    numbers = {
        sign * (1 << power) + off for power in range(65) for off in (-1, 0, 1) for sign in (1, -1)
    }
    for number in sorted(
        {int(info.min), int(info.max)} | {n for n in numbers if info.min <= n <= info.max}
    ):
        converted = exactly(np.array([0, number], kind), np.dtype(dtype))
        if holds(number, dtype):
            assert converted is not None and converted.dtype == dtype, number
            assert int(converted[1].real) == number
        else:
            assert converted is None, number


@pytest.mark.parametrize(
    "pair", [("float64", "float32"), ("float32", "float16"), ("complex128", "complex64")]
)
def test_a_float_may_be_rounded_but_not_overflow(pair: tuple[str, str]) -> None:
    """NaN and infinities are values like others."""
    longer, shorter = pair
    values = np.array([0.1, math.nan, math.inf, -math.inf, 1.0], longer)
    converted = exactly(values, np.dtype(shorter))
    assert converted is not None and np.array_equal(
        converted, values.astype(shorter), equal_nan=True
    )
    assert (
        exactly(np.array([1e300 if longer != "float32" else 1e30], longer), np.dtype(shorter))
        is None
    )


def test_a_longdouble_is_taken_if_it_is_a_value_of_float64() -> None:
    """What only a longdouble can tell apart would be lost."""
    for value in (0.1, 2.0**60, math.nan, -math.inf):
        converted = exactly(np.array([value], np.longdouble), np.dtype("float64"))
        assert converted is not None and np.array_equal(converted, [value], equal_nan=True)
    if np.finfo(np.longdouble).nmant > 52:
        assert exactly(np.array([BIG], np.longdouble), np.dtype("float64")) is None
        assert (
            exactly(np.array([BIG], np.longdouble).astype(np.clongdouble), np.dtype("complex128"))
            is None
        )


@pytest.mark.parametrize(
    "values",
    [
        [BIG, 0.5],
        (0.5, BIG),
        [[BIG], [0.5]],
        [(1 << 63) + 1, -1],
        [np.int64(BIG), 0.5],
        [np.array([BIG]), np.array([0.5])],
        [BIG, 1j],
        [-BIG, math.nan],
    ],
)
def test_a_list_in_which_numpy_would_round_a_whole_number_is_refused(values: Any) -> None:
    """numpy makes floats of whole numbers that stand beside a float, before anybody could look at
    them."""
    refusal = as_array(values)
    assert isinstance(refusal, Refusal)
    assert "rounded" in refusal.got and refusal.remedy


@pytest.mark.parametrize(
    "values", [[1 << 53, 0.5], [1e300, 2], [1 << 63, -1], [BIG, 2], [BIG - 2, 1.5], [], [[]]]
)
def test_a_list_of_which_each_number_survives_is_an_array(values: Any) -> None:
    """Large floats beside small whole numbers, and large whole numbers among themselves."""
    array = as_array(values)
    assert not isinstance(array, Refusal)
    assert array.tolist() == values


# Arrays of other libraries.

TENSORS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a gradient": (lambda torch: torch.zeros(3, requires_grad=True), ".detach().cpu()"),
    "a single number's gradient": (
        lambda torch: torch.tensor(1.0, requires_grad=True),
        ".detach().cpu()",
    ),
    "bfloat16": (lambda torch: torch.zeros(3).bfloat16(), ".detach().cpu().float()"),
    "no memory": (lambda torch: torch.zeros(3, device="meta"), ".detach().cpu()"),
    "sparse": (lambda torch: torch.eye(3).to_sparse(), ".detach().to_dense().cpu()"),
    "quantized": (
        lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        ".detach().dequantize().cpu()",
    ),
    "nested": (
        lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        ".detach().to_padded_tensor(0).cpu()",
    ),
    "nested and jagged": (
        lambda torch: torch.nested.nested_tensor(
            [torch.ones(2), torch.ones(3)], layout=torch.jagged
        ),
        ".detach().to_padded_tensor(0).cpu()",
    ),
    "conjugated": (lambda torch: torch.ones(3, dtype=torch.complex64).conj(), ".resolve_conj()"),
    "a parameter": (lambda torch: torch.nn.Parameter(torch.zeros(3)), ".detach().cpu()"),
    "a list": (lambda torch: [0.0, torch.tensor(1.0, requires_grad=True)], ".detach().cpu()"),
    "a list of lists": (lambda torch: [[torch.zeros(3).bfloat16()]], ".detach().cpu().float()"),
}


# torch says of quantized and nested tensors that they are about to change.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_has_no_array_is_refused_with_the_way_to_one(name: str) -> None:
    """Never torch's own exception; the remedy is the call that makes an array of it."""
    torch = pytest.importorskip("torch")
    make, remedy = TENSORS[name]
    refusal = as_array(make(torch))
    assert isinstance(refusal, Refusal)
    assert refusal.got.startswith("a torch tensor of torch.") and remedy in refusal.remedy
    if "requires_grad" in str(make(torch)):
        assert "requires a gradient" in refusal.got
    tensor = torch_tensor_in(make(torch))
    *_, call = re.findall(r"tensor(?:\.\w+\([\w, ]*\))+", refusal.remedy)
    if tensor.device.type != "meta":
        assert isinstance(as_array(eval(call, {"tensor": tensor})), np.ndarray), call


def test_tensors_on_the_cpu_are_arrays() -> None:
    """With their own dtype, and of a single one the number."""
    torch = pytest.importorskip("torch")
    array = as_array(torch.arange(3))
    assert (
        not isinstance(array, Refusal) and array.dtype == np.int64 and array.tolist() == [0, 1, 2]
    )
    assert as_array([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]  # type: ignore[union-attr]
    assert plain(torch.tensor(5)) == 5 and isinstance(plain(torch.tensor(5)), np.int64)
    assert plain(torch.zeros(1)) is not None and not isinstance(plain(torch.zeros(1)), np.generic)


def test_jax_arrays_are_arrays_unless_they_are_gone() -> None:
    """A key has no numbers, and one that was donated no values any more."""
    jax = pytest.importorskip("jax")
    assert as_array(jax.numpy.arange(3)).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    gone = jax.numpy.zeros(3)
    gone.delete()
    for value in (gone, jax.random.key(0)):
        assert isinstance(as_array(value), Refusal)


class Raises:
    """Whatever it is asked for, it raises something of its own."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("no")

    def __repr__(self) -> str:
        raise RuntimeError("nor that")


@pytest.mark.parametrize("value", [Raises(), [Raises()], [[1], [2, 3]], [1, [2]]])
def test_what_raises_is_refused(value: Any) -> None:
    """Whatever it raises."""
    refusal = as_array(value)
    assert isinstance(refusal, Refusal) and "no array" in refusal.got
    assert shown(Raises()) == "a Raises"


def test_masked_values_are_refused_and_a_mask_of_none_is_not() -> None:
    """numpy would store what lies under the mask."""
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    for value in (masked, [masked, masked], np.ma.masked):
        refusal = as_array(value)
        assert isinstance(refusal, Refusal) and ".filled(" in refusal.remedy
    assert as_array(np.ma.array([1.0, 2.0])).tolist() == [1.0, 2.0]  # type: ignore[union-attr]


# Memory of one's own.


def test_what_is_detached_is_out_of_the_callers_reach() -> None:
    """Arrays in dicts, tuples, lists and object arrays; what cannot change stays what it is."""
    array, within = np.zeros(3), np.zeros(2)
    each = np.array([None, None], object)
    each[0] = within
    view = array[1:]
    given = {
        "a": array,
        "t": (view, 5),
        "l": [within, None],
        "o": each,
        "m": memoryview(array),
        "s": "x",
    }
    kept = detached(given)
    array[:] = 7
    within[:] = 7
    each[1] = 7
    assert kept["a"].tolist() == [0, 0, 0] and kept["t"][0].tolist() == [0, 0] and kept["t"][1] == 5
    assert kept["l"][0].tolist() == [0, 0] and kept["l"][1] is None
    assert kept["o"][0].tolist() == [0, 0] and kept["o"][1] is None
    assert kept["m"].tolist() == [0, 0, 0] and kept["s"] == "x"


def test_tensors_are_detached_too() -> None:
    """They share their memory with the arrays that numpy makes of them."""
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3)
    kept = detached({"x": tensor})
    tensor += 1
    assert kept["x"].tolist() == [0, 0, 0]


def test_who_else_can_write_to_an_array() -> None:
    """An array, its views and what wraps it reach one memory; a conversion has its own."""
    array = np.zeros(4)
    assert (
        share_memory(array, array)
        and share_memory(array, array[1:])
        and share_memory(array[:2], array[1:])
    )
    assert not share_memory(array, array.copy()) and not share_memory(array[:2], array[2:])
    assert not share_memory(5, 5) and not share_memory("a", "a")
    numbers = [1, 2]
    assert share_memory(numbers, numbers)


def test_columns_of_ones_own_are_copied_only_where_they_have_to_be() -> None:
    """A conversion has a memory of its own already, and what is read-only down to its base nobody
    writes to."""
    array, frozen, numbers = np.zeros(4), np.zeros(4), [1.0, 2.0]
    frozen.flags.writeable = False
    through_a_view = array[:]
    through_a_view.flags.writeable = False
    fixed = {
        "converted": array.astype(np.float32),
        "frozen": frozen,
        "its view": frozen[1:],
        "list": np.array(numbers),
    }
    kept = own_columns(
        fixed, {"converted": array, "frozen": frozen, "its view": frozen, "list": numbers}
    )
    assert all(kept[name] is column for name, column in fixed.items())
    loose = {
        "array": array,
        "view": array[:2],
        "seen through": through_a_view,
        "wrapped": array,
        "not given": array[1:],
        "windows": np.lib.stride_tricks.sliding_window_view(array, 2),
        "read-only buffer": np.frombuffer(memoryview(array).toreadonly()),
    }
    assert not loose["windows"].flags.writeable and not loose["read-only buffer"].flags.writeable
    given = {
        "array": array,
        "view": array,
        "seen through": through_a_view,
        "wrapped": memoryview(array),
    }
    for name, column in own_columns(loose, given).items():
        assert not np.may_share_memory(column, array), name
