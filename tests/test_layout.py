"""Tests of `_shm.layout`: every process sees the same bytes in the same place."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np
import pytest

from areplay._shm.layout import Layout, int64_view, int64_word
from areplay.errors import LayoutMismatch

ARRAYS: dict[str, Any] = {
    "words": ((2, 8), np.int64),
    "flags": ((3,), np.bool_),
    "empty": ((0, 4), np.float32),
    "scalar": ((), np.float64),
    "frames": ((5, 7, 3), np.uint8),
}


def memory_of(layout: Layout) -> memoryview:
    """Zeroed memory of exactly that size, aligned as a mapping is."""
    raw = np.zeros(layout.size_bytes + 4_096, np.uint8)
    start = -raw.ctypes.data % 4_096
    return memoryview(raw[start : start + layout.size_bytes])


def test_arrays_have_their_shapes_and_lie_on_cache_lines_of_their_own() -> None:
    """No two arrays share a cache line, none lies outside of the memory, and none over the
    header."""
    layout = Layout("ring", ARRAYS)
    memory = memory_of(layout)
    base = np.frombuffer(memory, np.uint8).ctypes.data
    lines: set[int] = {0}
    arrays = layout.arrays(memory)
    assert list(arrays) == list(ARRAYS)
    for name, array in arrays.items():
        shape, dtype = ARRAYS[name]
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        start = array.ctypes.data - base
        if array.size == 0:
            continue
        assert start % 64 == 0
        mine = set(range(start // 64, (start + array.nbytes - 1) // 64 + 1))
        assert not mine & lines
        lines |= mine
    assert max(lines) < layout.size_bytes / 64


def test_sizes_are_the_bytes_of_each_array_and_fit_into_the_whole() -> None:
    """`sizes` counts what the arrays hold; the whole adds padding and the header, less than a line
    an array."""
    layout = Layout("ring", ARRAYS)
    assert layout.sizes() == {"words": 128, "flags": 3, "empty": 0, "scalar": 8, "frames": 105}
    assert 64 + 244 <= layout.size_bytes <= 64 + 244 + 64 * len(ARRAYS)


def test_sizes_do_not_wrap_around() -> None:
    """An array too large for this world has a size too large for this world: the limit check relies
    on it."""
    assert Layout("ring", {"x": ((1 << 32, 1 << 32), np.float64)}).sizes() == {"x": 8 << 64}


def test_arrays_are_views_that_two_mappings_share() -> None:
    """What is written through one view is read through another, array by array, with no overlap."""
    layout = Layout("ring", ARRAYS)
    memory = memory_of(layout)
    writers, readers = layout.arrays(memory), pickle.loads(pickle.dumps(layout)).arrays(memory)
    for number, array in enumerate(writers.values(), 1):
        array[...] = number % 2 if array.dtype == np.bool_ else number
    for number, array in enumerate(readers.values(), 1):
        assert (array == (number % 2 if array.dtype == np.bool_ else number)).all()


def test_the_header_is_recognised_by_an_equal_layout() -> None:
    """A child that unpickles the layout accepts what its parent has laid out."""
    layout = Layout("ring", ARRAYS)
    memory = memory_of(layout)
    layout.write_header(memory)
    pickle.loads(pickle.dumps(layout)).check_header(memory)


def test_the_header_is_where_the_docstring_says() -> None:
    """Magic word, version, kind and size, in this order: other tools may look at it."""
    layout = Layout("slots", ARRAYS)
    memory = memory_of(layout)
    layout.write_header(memory)
    assert bytes(memory[:8]) == b"areplay\0"
    assert struct.unpack("=q", memory[8:16]) == (1,)
    assert bytes(memory[16:32]) == b"slots".ljust(16, b"\0")
    assert struct.unpack("=q", memory[32:40]) == (layout.size_bytes,)
    assert bytes(memory[40:]) == bytes(layout.size_bytes - 40)


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 20, 32, 39])
def test_a_header_that_differs_in_any_byte_is_refused(at: int) -> None:
    """Another magic, version, kind or size: LayoutMismatch, with both sides in the message."""
    layout = Layout("ring", ARRAYS)
    memory = memory_of(layout)
    layout.write_header(memory)
    memory[at] ^= 1
    with pytest.raises(LayoutMismatch, match="kind 'ring', version 1"):
        layout.check_header(memory)


def test_another_kind_or_size_is_refused() -> None:
    """Attaching to the wrong segment is noticed before anything is read from it."""
    memory = memory_of(Layout("ring", ARRAYS))
    Layout("ring", ARRAYS).write_header(memory)
    with pytest.raises(LayoutMismatch):
        Layout("slots", ARRAYS).check_header(memory)
    with pytest.raises(LayoutMismatch):
        Layout("ring", {**ARRAYS, "more": ((1,), np.int8)}).check_header(memory)


def test_a_word_is_the_head_of_its_own_line() -> None:
    """`int64_word(array, k)[0]` is `array[k, 0]`, for reading and writing, and nothing beside
    it."""
    words = np.zeros((3, 8), np.int64)
    second = int64_word(words, 1)
    assert len(second) == 1
    second[0] = -7
    assert words.tolist() == [[0] * 8, [-7] + [0] * 7, [0] * 8]
    words[1, 0] = 1 << 62
    assert second[0] == 1 << 62
    deep = np.zeros((2, 3, 8), np.int64)
    int64_word(deep, 1, 2)[0] = 5
    assert deep[1, 2, 0] == 5 and deep.sum() == 5


def test_an_int64_view_has_all_numbers_of_an_array() -> None:
    """The memoryview reads and writes the array; other dtypes and shapes are a mistake."""
    array = np.arange(4)
    view = int64_view(array)
    view[2] = 9
    assert array.tolist() == [0, 1, 9, 3]
    assert view.tolist() == [0, 1, 9, 3]
    for wrong in (np.zeros(2, np.int32), np.zeros((2, 2), np.int64)):
        with pytest.raises(AssertionError):
            int64_view(wrong)
