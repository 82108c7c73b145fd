"""Tests of `spec`: what fits a spec, what is refused, and that what is stored is stored bit for
bit."""

from __future__ import annotations

import pickle
import re
import struct
from typing import Any

import numpy as np
import pytest

from areplay._base.field import Field
from areplay._storage.row_writer import RowWriter
from areplay.errors import SpecMismatch
from areplay.spec import Spec

NATIVE = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
]
NATIVE += ["float64", "complex64", "complex128"]


def scalar_field(dtype: str) -> Field:
    """A field of shape ()."""
    return Field("x", (), np.dtype(dtype))


def through_row_writer(dtype: str, value: object) -> Any:
    """`value` as a single row's only field, read back from the column."""
    spec = Spec(x=((), dtype))
    columns = {"x": np.zeros(3, dtype)}
    RowWriter(spec, columns).write(1, {"x": value})
    assert columns["x"][0] == 0 and columns["x"][2] == 0
    return columns["x"][1]


def through_columns(dtype: str, value: object) -> Any:
    """`value` as a column of one row, given as a list."""
    _, columns = Spec(x=((), dtype)).convert_columns({"x": [value]})
    assert columns["x"].dtype == dtype and columns["x"].shape == (1,)
    return columns["x"][0]


BOTH_WAYS = pytest.mark.parametrize("way", [through_row_writer, through_columns])


# The spec itself.


def test_a_spec_is_a_mapping_of_fields_in_the_order_given() -> None:
    """Names, shapes, dtypes and sizes come back as they were given."""
    spec = Spec(obs=((4, 84, 84), "uint8"), action=((), np.int64), reward=([], "f4"))
    assert list(spec) == ["obs", "action", "reward"]
    assert len(spec) == 3
    assert spec["obs"] == Field("obs", (4, 84, 84), np.dtype("uint8"))
    assert spec["reward"] == Field("reward", (), np.dtype("float32"))
    assert [field.row_bytes for field in spec.values()] == [28_224, 8, 4]
    assert spec.row_bytes == 28_236
    assert "next_obs" not in spec


def test_equal_specs_are_equal_and_hash_alike_also_after_pickling() -> None:
    """A spec travels to children by value; order, shape and dtype all count."""
    spec = Spec(a=((2,), "float32"), b=((), "int64"))
    twin = pickle.loads(pickle.dumps(spec))
    assert twin == spec
    assert hash(twin) == hash(spec)
    assert spec != Spec(b=((), "int64"), a=((2,), "float32"))
    assert spec != Spec(a=((3,), "float32"), b=((), "int64"))
    assert spec != Spec(a=((2,), "float64"), b=((), "int64"))
    assert spec != Spec(c=((2,), "float32"), b=((), "int64"))
    assert spec != {"a": spec["a"], "b": spec["b"]}


def test_repr_can_be_typed_in_again() -> None:
    """The representation is the call that makes an equal spec."""
    spec = Spec(obs=((4, 2), "float32"), flag=((), "bool"))
    assert eval(repr(spec), {"Spec": Spec}) == spec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (((0,), "float32"), "at least 1"),
        (((-1,), "float32"), "at least 1"),
        (((2.0,), "float32"), "whole number"),
        (((True,), "float32"), "whole number"),
        (("ab", "float32"), "whole number"),
        ((4, "float32"), "must be"),
        ("float32", "must be"),
        (None, "must be"),
        (((4,),), "must be"),
        (((4,), "float32", 1), "must be"),
        (((), "object"), "cannot be shared"),
        (((), "U4"), "cannot be shared"),
        (((), "S4"), "cannot be shared"),
        (((), "datetime64[ns]"), "cannot be shared"),
        (((), [("a", "int8")]), "cannot be shared"),
        (((), "V8"), "cannot be shared"),
        (((), ">f4"), "foreign byte order"),
        (((), ">i8"), "foreign byte order"),
        (((), "longdouble"), "differs between machines"),
        (((), "clongdouble"), "differs between machines"),
    ],
)
def test_a_field_that_cannot_be_shared_is_refused(given: Any, said: str) -> None:
    """A ValueError names the field and says what is allowed."""
    with pytest.raises(ValueError, match=said) as caught:
        Spec(good=((), "float32"), bad=given)
    assert "'bad'" in str(caught.value)


class Raises:
    """Whatever it is asked for, it raises something of its own."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("nor that")


@pytest.mark.parametrize(
    "given",
    [Raises(), (Raises(), "int8"), ((Raises(),), "int8"), ((), Raises())],
    ids=["field", "shape", "axis", "dtype"],
)
def test_an_object_that_raises_is_no_field(given: Any) -> None:
    """A ValueError like any other, however odd the object."""
    with pytest.raises(ValueError, match="'bad'"):
        Spec(bad=given)


def test_a_dtype_that_numpy_does_not_know_is_a_value_error() -> None:
    """A misspelt dtype is a wrong option like any other, and the message names the field."""
    with pytest.raises(ValueError, match="'bad'"):
        Spec(bad=((), "flaot32"))


def test_a_spec_without_fields_is_refused() -> None:
    """There would be nothing to store."""
    with pytest.raises(ValueError, match="at least one field"):
        Spec()


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (1 << 31, 1 << 31, 2), (1 << 62, 3)])
def test_the_bytes_of_a_row_are_exact_however_large(shape: tuple[int, ...]) -> None:
    """Sizes are compared with the memory that is there, so they must not wrap around."""
    expected = 8
    for axis in shape:
        expected *= axis
    assert Spec(x=(shape, "float64")).row_bytes == expected


@pytest.mark.parametrize("dtype", NATIVE)
def test_every_native_numeric_dtype_is_taken(dtype: str) -> None:
    """Bool, integers, floats and complex numbers are what a field may be."""
    assert Spec(x=((2,), dtype))["x"].dtype == np.dtype(dtype)


# Values that fit.


@pytest.mark.parametrize("dtype", NATIVE)
def test_an_array_of_the_fields_dtype_is_taken_without_a_copy(dtype: str) -> None:
    """The common case costs nothing: the very array is passed on, whatever its strides."""
    array = np.zeros((6, 4), dtype)
    assert Field("x", (4,), np.dtype(dtype)).convert(array, (6,)) is array
    strided = array[::2, ::-1]
    assert Field("x", (4,), np.dtype(dtype)).convert(strided, (3,)) is strided


@pytest.mark.parametrize(
    "bits",
    [
        0x7FC0_0000,  # a quiet NaN
        0xFFC1_2345,  # a negative NaN with a payload
        0x7F80_0001,  # a signalling NaN
        0x7F80_0000,  # infinity
        0xFF80_0000,
        0x0000_0001,  # the smallest denormal
        0x807F_FFFF,  # the largest negative denormal
        0x8000_0000,  # minus zero
        0x7F7F_FFFF,  # the largest finite number
    ],
)
def test_floats_of_the_fields_dtype_are_stored_bit_for_bit(bits: int) -> None:
    """NaNs with their payload, infinities, denormals and minus zero arrive as they were given, by
    each way in."""
    value = np.array([bits, bits], np.uint32).view(np.float32)
    spec = Spec(x=((2,), "float32"), y=((), "float32"))
    columns = {"x": np.zeros((1, 2), np.float32), "y": np.zeros(1, np.float32)}
    RowWriter(spec, columns).write(0, {"x": value, "y": value[0]})
    assert columns["x"].view(np.uint32).tolist() == [[bits, bits]]
    assert columns["y"].view(np.uint32).tolist() == [bits]
    _, converted = spec.convert_columns({"x": value[None], "y": value[:1]})
    assert converted["x"].view(np.uint32).tolist() == [[bits, bits]]
    assert converted["y"].view(np.uint32).tolist() == [bits]


def test_an_array_that_is_not_contiguous_is_stored_by_value() -> None:
    """Strides, also negative and transposed ones, are the giver's business."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    spec = Spec(x=((2, 3), "float32"))
    for view in (base[::2, ::2], base[::-2, ::-2], base.T[:4:2, :3]):
        columns = {"x": np.zeros((1, 2, 3), np.float32)}
        RowWriter(spec, columns).write(0, {"x": view})
        assert columns["x"][0].tolist() == view.tolist()


@BOTH_WAYS
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("bool", True),
        ("bool", False),
        ("bool", np.True_),
        ("int8", 127),
        ("int8", -128),
        ("int8", np.int64(-128)),
        ("uint8", 255),
        ("uint8", np.int8(3)),
        ("uint8", True),
        ("int64", (1 << 63) - 1),
        ("int64", -(1 << 63)),
        ("int64", np.uint64(5)),
        ("uint64", (1 << 64) - 1),
        ("uint64", np.int64(5)),
        ("float16", 65_504),
        ("float32", 0.5),
        ("float32", 1 << 24),
        ("float32", np.float64(0.5)),
        ("float32", np.float16(0.5)),
        ("float32", True),
        ("float64", -1),
        ("float64", np.float32(0.1)),
        ("complex64", 1 + 2j),
        ("complex64", 3),
        ("complex128", np.complex64(1 - 1j)),
    ],
)
def test_a_plain_number_that_survives_is_taken_by_value(way: Any, dtype: str, value: Any) -> None:
    """Python numbers and numpy scalars have no dtype worth keeping: it is the value that must
    fit."""
    stored = way(dtype, value)
    assert stored == value
    assert stored.dtype == dtype


@BOTH_WAYS
def test_a_float_is_rounded_to_a_shorter_float(way: Any) -> None:
    """Rounding is what a float32 field asks for; the nearest float32 is stored."""
    assert way("float32", 0.1) == struct.unpack("f", struct.pack("f", 0.1))[0]
    assert way("float32", np.float64(0.1)) == struct.unpack("f", struct.pack("f", 0.1))[0]
    assert way("float16", 1e-9) == 0.0


@BOTH_WAYS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_plain_nan_and_inf_are_taken_by_every_float(way: Any, value: float) -> None:
    """They are values like others, as Python floats too."""
    for dtype in ("float16", "float32", "float64", "complex64"):
        assert np.array_equal(way(dtype, value), value, equal_nan=True)


def test_an_array_of_a_narrower_dtype_is_widened() -> None:
    """A cast that can lose nothing, whatever the values, is done."""
    field = Field("x", (), np.dtype("float32"))
    for given in ("float16", "int16", "uint8", "bool"):
        converted = field.convert(np.ones(3, given), (3,))
        assert converted.dtype == np.float32
        assert converted.tolist() == [1.0] * 3


def test_lists_of_numbers_are_taken_by_value() -> None:
    """Nested lists and tuples of the right shape work as an array would."""
    field = Field("x", (2, 2), np.dtype("int16"))
    assert field.convert([[1, 2], (3, 4)]).tolist() == [[1, 2], [3, 4]]
    assert field.convert([[1, 2], (3, 4)]).dtype == np.int16


# Values that do not fit.


@BOTH_WAYS
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("bool", 1),
        ("bool", 0.0),
        ("bool", np.int8(1)),
        ("int8", 128),
        ("int8", -129),
        ("int8", 1.0),
        ("int8", float("nan")),
        ("int8", np.float32(1)),
        ("uint8", -1),
        ("uint8", 256),
        ("uint64", -1),
        ("uint64", np.int64(-1)),
        ("uint64", 1 << 64),
        ("int64", 1 << 63),
        ("int64", np.uint64(1 << 63)),
        ("int64", -(1 << 63) - 1),
        ("int64", 1 << 100),
        ("float16", 70_000),
        ("float16", 70_000.0),
        ("float32", 1e39),
        ("float32", np.float64(-1e39)),
        ("float32", (1 << 24) + 1),
        ("float64", (1 << 53) + 1),
        ("float64", (1 << 63) - 1),
        ("float32", 1j),
        ("complex64", 1e39j),
        ("float32", "1.0"),
        ("float32", b"1"),
        ("float32", None),
        ("float32", {"a": 1}),
        ("int64", object()),
        ("int64", np.datetime64("2020-01-01")),
    ],
)
def test_a_number_that_would_lose_something_is_refused(way: Any, dtype: str, value: object) -> None:
    """Out of range, fractional for an integer, no number at all: SpecMismatch with field, expected
    and got."""
    with pytest.raises(SpecMismatch) as caught:
        way(dtype, value)
    error = caught.value
    assert error.field == "x"
    assert dtype in error.expected
    assert error.got and error.remedy


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("float32", np.zeros(3, "float64")),
        ("float32", np.zeros(3, "int32")),
        ("int32", np.zeros(3, "int64")),
        ("int32", np.zeros(3, "uint32")),
        ("uint8", np.zeros(3, "int8")),
        ("int8", np.zeros(3, "float16")),
        ("bool", np.zeros(3, "uint8")),
        ("float64", np.zeros(3, "complex64")),
        ("float32", np.zeros(3, ">f4")),
        ("int64", np.zeros(3, ">i4")),
        ("float32", np.zeros(3, "object")),
        ("float32", np.zeros(3, "U1")),
        ("int64", np.zeros(3, "datetime64[s]")),
    ],
)
def test_an_array_whose_dtype_could_lose_something_is_refused(dtype: str, array: Any) -> None:
    """An array has a dtype on purpose, so it is judged by it, even if these very values would
    survive."""
    with pytest.raises(SpecMismatch) as caught:
        Field("x", (), np.dtype(dtype)).convert(array, (3,))
    assert array.dtype.name in caught.value.got
    assert dtype in caught.value.expected
    with pytest.raises(SpecMismatch):
        RowWriter(Spec(x=((3,), dtype)), {"x": np.zeros((1, 3), dtype)}).write(0, {"x": array})


def test_foreign_byte_order_is_named() -> None:
    """The message says why an array of the right name is refused."""
    with pytest.raises(SpecMismatch, match="foreign byte order"):
        scalar_field("float32").convert(np.zeros((), ">f4"))


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ((), np.zeros(1, np.float32)),
        ((), [0.0]),
        ((1,), np.float32(0)),
        ((1,), 0.0),
        ((4,), np.zeros((1, 4), np.float32)),
        ((4,), np.zeros((4, 1), np.float32)),
        ((4,), np.zeros(3, np.float32)),
        ((4,), np.zeros(8, np.float32)),
        ((2, 2), np.zeros(4, np.float32)),
        ((2,), [[1.0], [2.0, 3.0]]),
        ((3,), [1.0, 2.0]),
    ],
)
def test_another_shape_is_refused_and_never_broadcast(shape: tuple[int, ...], value: Any) -> None:
    """What numpy would broadcast or reshape is refused, with both shapes in the message."""
    spec = Spec(x=(shape, "float32"))
    columns = {"x": np.full((2, *shape), 7, np.float32)}
    with pytest.raises(SpecMismatch) as caught:
        RowWriter(spec, columns).write(0, {"x": value})
    assert str(shape) in caught.value.expected
    assert (columns["x"] == 7).all()


def test_columns_of_another_length_than_their_rows_are_refused() -> None:
    """`(n, *shape)` is exact: neither a single row nor a flat column passes for a column of
    rows."""
    spec = Spec(x=((2,), "float32"))
    for wrong in (
        np.zeros(2, np.float32),
        np.zeros((3, 3), np.float32),
        np.zeros((3, 2, 1), np.float32),
    ):
        with pytest.raises(SpecMismatch):
            spec.convert_columns({"x": wrong})


# Names and lengths.


@pytest.mark.parametrize(
    ("names", "culprit"),
    [((), "a"), (("a",), "b"), (("b",), "a"), (("a", "b", "c"), "c"), (("a", "B"), "B")],
)
def test_missing_extra_and_misspelt_fields_are_named(names: tuple[str, ...], culprit: str) -> None:
    """SpecMismatch names the field at fault, and lists what the spec has."""
    spec = Spec(a=((), "int64"), b=((), "int64"))
    columns = {"a": np.zeros(1, np.int64), "b": np.zeros(1, np.int64)}
    for attempt in (
        lambda: RowWriter(spec, columns).write(0, dict.fromkeys(names, 1)),
        lambda: spec.convert_columns({name: [1] for name in names}),
        lambda: spec.check_names(dict.fromkeys(names, 1)),
    ):
        with pytest.raises(SpecMismatch) as caught:
            attempt()
        assert caught.value.field == culprit
        assert "a, b" in str(caught.value)


def test_a_row_that_has_the_right_names_in_another_order_fits() -> None:
    """The order of keywords does not matter."""
    spec = Spec(a=((), "int64"), b=((), "int64"))
    columns = {"a": np.zeros(1, np.int64), "b": np.zeros(1, np.int64)}
    RowWriter(spec, columns).write(0, {"b": 2, "a": 1})
    assert (columns["a"][0], columns["b"][0]) == (1, 2)
    spec.check_names({"b": 2, "a": 1})


def test_ragged_columns_are_refused() -> None:
    """All columns of a call have one number of rows; the message names the one that differs, and
    both lengths."""
    spec = Spec(a=((), "int64"), b=((), "int64"))
    with pytest.raises(SpecMismatch, match="3 rows") as caught:
        spec.convert_columns({"a": np.zeros(3, np.int64), "b": np.zeros(2, np.int64)})
    assert caught.value.field == "b"
    assert "2" in caught.value.got


def test_zero_rows_are_refused() -> None:
    """A call without rows is a mistake, not a wish."""
    with pytest.raises(SpecMismatch, match="at least 1 row"):
        Spec(a=((), "int64")).convert_columns({"a": np.zeros(0, np.int64)})


@pytest.mark.parametrize("value", [5, None, np.int64(3), np.array(3)])
def test_a_column_without_a_row_axis_is_refused(value: Any) -> None:
    """A single value is no column; the message points to `add`."""
    with pytest.raises(SpecMismatch, match="row axis"):
        Spec(a=((), "int64")).convert_columns({"a": value})


def test_conversion_gives_exact_columns_of_all_fields() -> None:
    """The number of rows, and each field as an array of its dtype and of shape `(n, *shape)`."""
    spec = Spec(a=((2,), "float32"), b=((), "int64"))
    rows, columns = spec.convert_columns(
        {"b": [1, 2, 3], "a": np.arange(6, dtype=np.float16).reshape(3, 2)}
    )
    assert rows == 3
    assert list(columns) == ["a", "b"]
    assert (columns["a"].dtype, columns["a"].shape) == (np.float32, (3, 2))
    assert columns["a"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert columns["b"].tolist() == [1, 2, 3]


def test_a_refused_row_leaves_all_other_positions_alone() -> None:
    """Only the position that was to be written may have been touched: it is not published yet."""
    spec = Spec(a=((), "int64"), b=((), "int64"))
    columns = {"a": np.arange(4), "b": np.arange(4)}
    with pytest.raises(SpecMismatch):
        RowWriter(spec, columns).write(2, {"a": 9, "b": "no"})
    for column in columns.values():
        assert np.delete(column, 2).tolist() == [0, 1, 3]


def test_the_message_of_a_mismatch_says_how_to_mend_it() -> None:
    """Field, expected, got and the remedy are all in the sentence."""
    with pytest.raises(SpecMismatch) as caught:
        Spec(reward=((), "float32")).convert_columns({"reward": np.zeros(3)})
    text = str(caught.value)
    assert all(part in text for part in ("'reward'", "float32", "float64", ".astype('float32')"))


def test_an_unpickled_spec_writes_arrays_without_converting_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an actor the spec was unpickled, and its dtypes are not numpy's own objects: that must
    cost nothing."""
    spec = pickle.loads(pickle.dumps(Spec(obs=((4,), "float32"))))
    columns = {"obs": np.zeros((2, 4), np.float32)}
    writer = RowWriter(spec, columns)
    monkeypatch.setattr(Field, "convert", None)
    writer.write(1, {"obs": np.ones(4, np.float32)})
    assert columns["obs"].tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_whole_numbers_in_arrays_are_not_rounded(kind: Any, dtype: str) -> None:
    """numpy calls the cast of int64 to float64 safe; each way in judges it by value."""
    spec, big = Spec(x=((), dtype), y=((2,), dtype)), (1 << 53) + 1
    for fits, wide in ((True, 1 << 53), (True, 7), (True, 1 << 60), (False, big)):
        for x, y in (
            (np.array(wide, kind), [1, 2]),
            (0, np.array([1, wide], kind)),
            (0, [1, kind(wide)]),
        ):
            columns = {"x": np.zeros(1, dtype), "y": np.zeros((1, 2), dtype)}
            writer, column = RowWriter(spec, columns), {"x": np.reshape(x, 1), "y": [y]}
            if not fits:
                with pytest.raises(SpecMismatch):
                    writer.write(0, {"x": x, "y": y})
                with pytest.raises(SpecMismatch):
                    spec.convert_columns(column)
                continue
            writer.write(0, {"x": x, "y": y})
            for stored in (columns, spec.convert_columns(column)[1]):
                assert wide in (int(stored["x"][0].real), int(stored["y"][0, 1].real))


def test_a_tensor_is_judged_as_an_array_and_a_single_one_as_a_number() -> None:
    """A remedy names the call that mends it, torch's own where it is a tensor."""
    torch = pytest.importorskip("torch")
    field = Field("x", (2,), np.dtype("float32"))
    assert field.convert(torch.ones(2)).tolist() == [1, 1]
    assert scalar_field("float32").convert(torch.tensor(0.5, dtype=torch.float64)) == 0.5
    assert scalar_field("int8").convert(torch.tensor(7)) == 7
    for value, remedy in (
        (torch.ones(2, dtype=torch.float64), ".to(torch.float32)"),
        (torch.ones(2, requires_grad=True), ".detach().cpu()"),
        (torch.ones(2).bfloat16(), ".float()"),
    ):
        with pytest.raises(SpecMismatch) as caught:
            field.convert(value)
        assert remedy in caught.value.remedy
    with pytest.raises(SpecMismatch, match="row axis"):
        Spec(x=((), "int64")).convert_columns({"x": torch.tensor(1)})


# Names that mean something else.


def test_a_field_that_add_could_never_be_given_is_refused() -> None:
    """`add(priority=...)` is no field; neither plainly nor within an extra. All other names can be
    handed in."""
    for make in (
        lambda: Spec(priority=((), "float32")),
        lambda: Spec.steps(obs=((), "int8"), action=((), "int8"), priority=((), "float32")),
        lambda: Spec.steps(
            obs=((), "int8"), action=((), "int8"), priority={"mine": ((), "float32")}
        ),
    ):
        with pytest.raises(ValueError, match=r"'priority.*another name"):
            make()
    names = ["self", "columns", "priorities", "row", "cls", "next_obs", "obs", "env"]
    spec = Spec(**dict.fromkeys(names, ((), "int64")))
    columns = {name: np.zeros(1, np.int64) for name in names}
    RowWriter(spec, columns).write(0, dict.fromkeys(names, 3))
    assert all(column[0] == 3 for column in columns.values())
    assert Spec.steps(
        obs=((), "int8"), action=((), "int8"), self=((), "int8"), cls=((), "int8")
    ).extras


def test_a_spec_with_such_a_field_that_is_stored_already_can_still_be_made() -> None:
    """A checkpoint of before loads; what it lacks is said when a row is handed in."""
    for steps in (None, {"obs": ["obs"], "action": ["action"], "extras": ["priority"]}):
        names = ["obs", "action", "priority"]
        spec = Spec.described({"fields": [[name, [], "float32"] for name in names], "steps": steps})
        assert list(spec) == names and spec.is_steps == (steps is not None)
        assert (
            Spec.described(spec.description()) == spec and pickle.loads(pickle.dumps(spec)) == spec
        )
        with pytest.raises(SpecMismatch, match=r"extend\(\)") as caught:
            spec.check_names({"obs": 0, "action": 0})
        assert caught.value.field == "priority"
    with pytest.raises(ValueError, match="without fields"):
        Spec.described({"fields": [], "steps": None})


# Specs of steps.


def test_a_spec_of_steps_has_what_a_step_consists_of() -> None:
    """Observation, action, reward, the two flags and the extras, in that order; stored with the
    links."""
    spec = Spec.steps(obs=((2,), "uint8"), action=((), "int64"), state=((4,), "float16"))
    assert list(spec) == ["obs", "action", "reward", "terminated", "truncated", "state"]
    assert (spec["reward"].dtype, spec["terminated"].dtype) == (np.float32, np.bool_)
    assert (spec.observations, spec.actions, spec.extras) == (("obs",), ("action",), ("state",))
    assert spec.is_steps and not Spec(obs=((2,), "uint8")).is_steps
    assert spec.row_bytes == 2 + 8 + 4 + 1 + 1 + 8 + 12
    assert list(spec.rows)[-3:] == ["steps.step_id", "steps.next_offset", "steps.prev_offset"]
    assert repr(spec).startswith("Spec.steps(obs=")


def test_nested_observations_and_actions_become_fields_with_dotted_names() -> None:
    """To any depth; extras, too."""
    spec = Spec.steps(
        obs={"camera": ((2, 2), "uint8"), "arm": {"0": ((3,), "float32"), "1": ((), "bool")}},
        action={"0": ((), "int64")},
        reward=((2,), "float64"),
        lstm={"h": ((4,), "float32")},
    )
    assert spec.observations == ("obs.camera", "obs.arm.0", "obs.arm.1")
    assert spec.actions == ("action.0",) and spec.extras == ("lstm.h",)
    assert spec["reward"].shape == (2,)


def test_a_spec_of_steps_is_equal_to_its_like_only() -> None:
    """Also after a way through pickle; not to a plain one with the same fields."""
    spec = Spec.steps(obs=((2,), "uint8"), action=((), "int64"))
    twin = pickle.loads(pickle.dumps(spec))
    assert twin == spec and twin.is_steps and twin.rows == spec.rows and hash(twin) == hash(spec)
    plain = Spec(**{name: (field.shape, field.dtype) for name, field in spec.items()})
    assert plain != spec and not pickle.loads(pickle.dumps(plain)).is_steps


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"next_obs": ((2,), "uint8")}, "next_obs"),
        ({"terminated": ((), "bool")}, "terminated"),
        ({"steps.next_offset": ((), "int16")}, "steps.next_offset"),
        ({"reward": {"a": ((), "float32")}}, "reward"),
        ({"obs": {}}, "obs"),
        ({"obs": {"a.b": ((), "int8")}}, "a.b"),
        ({"obs": {1: ((), "int8")}}, "obs"),
        ({"obs": {"a": ((), "int8")}, "obs.a": ((), "int8")}, "obs.a"),
        ({"extra": ((), "object")}, "extra"),
    ],
)
def test_a_step_that_cannot_be_described_so_is_refused(wrong: dict[str, Any], named: str) -> None:
    """Names that mean something else, that occur twice, or that cannot be part of a field's
    name."""
    with pytest.raises(ValueError, match=re.escape(named)):
        Spec.steps(**({"obs": ((2,), "uint8"), "action": ((), "int64")} | wrong))
