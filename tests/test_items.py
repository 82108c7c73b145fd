"""Tests of `areplay.items`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from areplay.items import Rows
from areplay.ring import Ring, RingGuard, StreamWriter
from areplay.spec import Spec
from areplay.windows import WindowFinder, Windows

SPEC = Spec(obs=((2, 3), "uint8"), reward=((), "float32"), done=((), "bool"), z=((1,), "complex128"))


@pytest.fixture
def ring() -> Iterator[Ring]:
    """4 blocks of 4 rows, gone round more than twice; row number n has n in every field."""
    ring = Ring(SPEC, 4, 4)
    writer = StreamWriter(ring, ring.block_locks(), RingGuard())
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


@pytest.mark.parametrize("names", [[37], [24, 37, 30, 24, 24], list(range(24, 38)), list(range(37, 23, -1))])
def test_each_row_is_copied_to_the_place_of_its_index(ring: Ring, names: list[int]) -> None:
    """`out[field][i]` is the row that `indices[i]` names: any order, repetitions, blocks of any lap."""
    out = {name: np.full((len(names), *field.shape), 99, field.dtype) for name, field in SPEC.items()}
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


def test_what_was_copied_is_nobody_elses(ring: Ring) -> None:
    """Changing the copy does not change the ring."""
    out = {name: np.zeros((1, *field.shape), field.dtype) for name, field in SPEC.items()}
    Rows().assemble(windows(ring, [30]), out)
    out["obs"][:] = 0
    assert (ring.columns["obs"][30 % 16] == 30).all()
