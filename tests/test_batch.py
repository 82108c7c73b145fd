"""Tests of `batch`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from areplay._sampling.batch_memory import BatchArrays
from areplay.batch import Batch
from areplay.errors import BatchReleased
from areplay.items.item import BatchFields


def arrays() -> BatchArrays:
    """Memory for three items."""
    filled = BatchArrays.empty(3, BatchFields({"obs": ((2,), "float32"), "done": ((), "bool")}))
    filled.indices[:] = [7, 8, 9]
    filled.importance_weights[:] = [1, 0.5, 0.25]
    filled.probabilities[:] = [0.1, 0.2, 0.3]
    filled.fields["obs"][:] = [[1, 2], [3, 4], [5, 6]]
    filled.fields["done"][:] = [True, False, True]
    return filled


def test_a_batch_is_a_mapping_of_its_fields() -> None:
    """Names in order, arrays by name, and beside them indices, weights and probabilities: views,
    not copies."""
    memory = arrays()
    batch = Batch(memory)
    assert list(batch) == ["obs", "done"]
    assert len(batch) == 2
    assert "obs" in batch and "reward" not in batch
    assert dict(batch).keys() == {"obs", "done"}
    assert batch["obs"] is memory.fields["obs"]
    assert batch.indices is memory.indices
    assert batch.importance_weights is memory.importance_weights
    assert batch.probabilities is memory.probabilities
    assert repr(batch) == "<Batch of 3: obs, done>"
    with pytest.raises(KeyError):
        _ = batch["reward"]


def test_a_copy_lives_on_its_own() -> None:
    """Equal in every array, and untouched by what happens to the slot, or by the release of the
    original."""
    memory = arrays()
    batch = Batch(memory, lambda: None)
    copy = batch.copy()
    for array in (
        memory.indices,
        memory.importance_weights,
        memory.probabilities,
        *memory.fields.values(),
    ):
        array[:] = 0
    batch.release()
    assert not copy.is_released
    assert copy.indices.tolist() == [7, 8, 9]
    assert copy.importance_weights.tolist() == [1, 0.5, 0.25]
    assert copy.probabilities.tolist() == [0.1, 0.2, 0.3]
    assert copy["obs"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert copy["done"].tolist() == [True, False, True]
    assert list(copy) == ["obs", "done"]
    assert [array.dtype for array in copy.values()] == [np.float32, np.bool_]


def test_a_release_gives_back_once() -> None:
    """The slot is returned by the first call; a second one does nothing."""
    returned: list[int] = []
    batch = Batch(arrays(), lambda: returned.append(1))
    assert not batch.is_released
    batch.release()
    assert batch.is_released and returned == [1]
    batch.release()
    assert returned == [1]


def test_the_release_of_a_copy_gives_nothing_back() -> None:
    """Its memory is its own; the slot stays with the original."""
    returned: list[int] = []
    batch = Batch(arrays(), lambda: returned.append(1))
    copy = batch.copy()
    copy.release()
    assert copy.is_released and not batch.is_released and returned == []
    assert batch["obs"].tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    "use",
    [
        lambda batch: batch["obs"],
        lambda batch: batch["no such field"],
        lambda batch: batch.indices,
        lambda batch: batch.importance_weights,
        lambda batch: batch.probabilities,
        lambda batch: batch.copy(),
        lambda batch: list(batch),
        lambda batch: len(batch),
        lambda batch: "obs" in batch,
        lambda batch: dict(batch),
    ],
)
def test_a_released_batch_cannot_be_read(use: Callable[[Batch], object]) -> None:
    """Its memory holds other rows by now: BatchReleased, and how to keep a batch."""
    batch = Batch(arrays(), lambda: None)
    batch.release()
    with pytest.raises(BatchReleased, match=r"batch\.copy\(\)"):
        use(batch)
    assert repr(batch) == "<Batch, released>"
