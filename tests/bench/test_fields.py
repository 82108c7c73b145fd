"""Tests of `benchmarks.row.fields`."""

from __future__ import annotations

import pickle

import pytest

from benchmarks.row.fields import FieldMalformed, plain_rows, rows_of


def test_fields_are_read_as_they_are_written() -> None:
    """Shapes of any number of axes, none for a single number, any dtype that a spec takes."""
    rows = rows_of(["obs=4x84x84:uint8", "action=:int64", "reward=:float32", "mask=10:bool"])
    assert rows.fields == {
        "obs": ((4, 84, 84), "uint8"),
        "action": ((), "int64"),
        "reward": ((), "float32"),
        "mask": ((10,), "bool"),
    }
    assert rows.row_bytes == 28_224 + 8 + 4 + 10
    assert {name: column.shape for name, column in rows.columns(3).items()}["obs"] == (3, 4, 84, 84)


def test_plain_rows_have_as_many_bytes_as_asked_for() -> None:
    """In one field."""
    assert plain_rows(28_240).row_bytes == 28_240
    assert len(plain_rows(28_240).fields) == 1


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("obs=4x:uint8", "obs", "an axis must be a whole number of at least 1, got ''"),
        ("obs=4x0:uint8", "obs", "an axis must be a whole number of at least 1, got '0'"),
        ("obs=4x-1:uint8", "obs", "an axis must be a whole number of at least 1, got '-1'"),
        ("obs=four:uint8", "obs", "an axis must be a whole number of at least 1, got 'four'"),
        ("obs=٤:uint8", "obs", "an axis must be a whole number of at least 1, got '٤'"),
        ("obs=4", "obs", "'obs=4' has no :"),
        ("obs:uint8", "obs:uint8", "its name must be a Python name"),
        ("obs", "obs", "'obs' has no ="),
        ("=4:uint8", "=4:uint8", "its name must be a Python name"),
        ("my obs=4:uint8", "my obs", "its name must be a Python name"),
        ("obs=4:uint9", "obs", "data type 'uint9' not understood"),
        ("obs=4:", "obs", "data type 'no dtype' not understood"),
        ("obs=4:object", "obs", "object cannot be shared"),
        ("obs=4:>f4", "obs", ">f4 is in foreign byte order"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(text: str, field: str, reason: str) -> None:
    """With the reason, and with how it is written."""
    with pytest.raises(FieldMalformed) as raised:
        rows_of(["action=:int64", text])
    assert raised.value.field == field
    assert raised.value.reason.startswith(reason)
    assert "obs=4x84x84:uint8" in str(raised.value)


def test_a_field_given_twice_is_refused_and_so_is_none() -> None:
    """Neither makes a row."""
    with pytest.raises(FieldMalformed, match="'obs': was given before"):
        rows_of(["obs=4:uint8", "obs=5:uint8"])
    with pytest.raises(FieldMalformed, match="there is none"):
        rows_of([])


def test_the_error_crosses_a_process_boundary_whole() -> None:
    """Its arguments are its fields."""
    error = pickle.loads(pickle.dumps(FieldMalformed("obs", "has no :")))
    assert (error.field, error.reason) == ("obs", "has no :")
