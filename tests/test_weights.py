"""Tests of `weights`: one whole version, always, for everybody."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import FailsAt, descriptors_pass_by_pickle, open_descriptors

from areplay import weights as weights_module
from areplay.errors import Closed, MemoryLimitExceeded, ResourceUnavailable, SpecMismatch
from areplay.weights import Weights


def version_of(number: int, size: int = 5) -> dict[str, Any]:
    """Arrays that say their version's number in every element."""
    return {
        "w": np.full((size, 3), number, np.float32),
        "b": np.full(3, number, np.float64),
        "steps": np.full(1, number, np.int64),
    }


def number_of(arrays: Any) -> int:
    """The one number that all elements of all arrays say."""
    numbers = {value for array in arrays.values() for value in np.unique(array).tolist()}
    assert len(numbers) == 1, f"torn: {numbers}"
    return int(numbers.pop())


@pytest.fixture
def weights() -> Iterator[Weights]:
    """Version 0."""
    weights = Weights(version_of(0))
    yield weights
    weights.close()


def test_what_they_are_made_of_is_version_0(weights: Weights) -> None:
    """Same names in the same order, shapes and dtypes, as copies."""
    version, arrays = weights.latest()
    assert version == weights.version == 0
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "w": ((5, 3), "float32"),
        "b": ((3,), "float64"),
        "steps": ((1,), "int64"),
    }
    assert list(arrays) == ["w", "b", "steps"]
    assert number_of(arrays) == 0
    assert repr(weights) == "<Weights version 0 of w, b, steps>"


def test_versions_are_numbered_by_their_publication(weights: Weights) -> None:
    """Each publication is the newest version at once, over many rounds of the copies."""
    for number in range(1, 12):
        assert weights.publish(version_of(number)) == number
        version, arrays = weights.latest()
        assert (version, weights.version, number_of(arrays)) == (number, number, number)


def test_the_newest_is_read_whatever_was_missed(weights: Weights) -> None:
    """A reader that looks rarely skips versions."""
    assert weights.latest()[0] == 0
    for number in range(1, 8):
        weights.publish(version_of(number))
    version, arrays = weights.latest()
    assert (version, number_of(arrays)) == (7, 7)


def test_arrays_that_were_read_stay_as_they_are(weights: Weights) -> None:
    """They are the reader's own: later publications do not touch them, and nobody can write to
    them."""
    _, first = weights.latest()
    for number in range(1, 8):
        weights.publish(version_of(number))
    assert number_of(first) == 0
    with pytest.raises(ValueError, match="read-only"):
        first["w"][0] = 9
    with pytest.raises(TypeError):
        first["w"] = first["b"]  # type: ignore[index]
    assert weights.publish({name: array * 0 + 8 for name, array in first.items()}) == 8


def test_the_same_version_is_the_same_mapping(weights: Weights) -> None:
    """A reader may ask each step: nothing is copied until there is something new."""
    _, first = weights.latest()
    assert weights.latest()[1] is first
    weights.publish(version_of(1))
    assert weights.latest()[1] is not first


def test_what_was_published_is_a_copy(weights: Weights) -> None:
    """The learner may go on changing its arrays in place."""
    mine = version_of(1)
    weights.publish(mine)
    for array in mine.values():
        array[...] = 99
    assert number_of(weights.latest()[1]) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda arrays: arrays.pop("b"), "b"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "more"),
        (lambda arrays: arrays.update(w=np.zeros((3, 5), np.float32)), "w"),
        (lambda arrays: arrays.update(w=np.zeros((5, 3), np.float64)), "w"),
        (lambda arrays: arrays.update(steps=np.array(5)), "steps"),
        (lambda arrays: arrays.update(steps=[1.5]), "steps"),
    ],
    ids=["missing", "extra", "shape", "dtype", "axis", "value"],
)
def test_arrays_that_do_not_fit_change_nothing(
    weights: Weights, change: Callable[[dict[str, Any]], object], field: str
) -> None:
    """SpecMismatch names the array; the newest version stays what it was, and so do older
    copies."""
    weights.publish(version_of(1))
    wrong = version_of(2)
    change(wrong)
    with pytest.raises(SpecMismatch) as caught:
        weights.publish(wrong)
    assert caught.value.field == field
    assert weights.version == 1
    with descriptors_pass_by_pickle():
        fresh = pickle.loads(pickle.dumps(weights))
    assert number_of(fresh.latest()[1]) == 1
    fresh.close()
    assert weights.publish(version_of(2)) == 2


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        None,
        [np.zeros(3)],
        {"w": np.zeros(3, object)},
        {"w": np.zeros(3, "U2")},
        {"w": np.zeros(3, ">f4")},
    ],
)
def test_what_cannot_be_shared_is_refused(arrays: Any) -> None:
    """A ValueError that says what is allowed."""
    with pytest.raises(ValueError, match="weights"):
        Weights(arrays)


def test_whole_numbers_are_not_rounded() -> None:
    """Nor where numpy would call the cast a safe one."""
    one = Weights({"w": np.zeros(1)})
    one.publish({"w": np.array([1 << 53])})
    for wrong in (np.array([(1 << 53) + 1]), [(1 << 53) + 1]):
        with pytest.raises(SpecMismatch):
            one.publish({"w": wrong})
    assert (one.version, int(one.latest()[1]["w"][0])) == (1, 1 << 53)
    with pytest.raises(ValueError, match=r"'w'.*rounded"):
        Weights({"w": [(1 << 53) + 1, 0.5]})  # type: ignore[dict-item]


def test_tensors_are_weights_once_they_are_detached() -> None:
    """A module's state is; its parameters are refused with the remedy, whole."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)
    one = Weights(module.state_dict())
    with torch.no_grad():
        module.weight.fill_(7)
    one.publish(module.state_dict())
    assert one.latest()[1]["weight"].tolist() == [[7, 7]]
    with pytest.raises(SpecMismatch, match=r"'weight'.*\.detach\(\)\.cpu\(\)"):
        one.publish(dict(module.named_parameters()))
    assert one.version == 1
    with pytest.raises(ValueError, match=r"'weight'.*\.detach\(\)\.cpu\(\)"):
        Weights(dict(module.named_parameters()))


def test_odd_shapes_are_weights_too() -> None:
    """Scalars, empty arrays, views with strides, lists."""
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights = Weights(
        {"none": np.zeros((0, 3)), "one": 1.5, "view": base[::-1, ::2], "list": [1, 2, 3]}
    )
    _, arrays = weights.latest()
    assert arrays["none"].shape == (0, 3)
    assert arrays["one"] == 1.5
    assert arrays["view"].tolist() == base[::-1, ::2].tolist()
    assert arrays["list"].tolist() == [1, 2, 3]
    assert weights.publish({**arrays, "one": 2.5}) == 1
    assert weights.latest()[1]["one"] == 2.5
    assert arrays["one"] == 1.5
    weights.close()


def test_an_actor_process_reads_what_is_published(weights: Weights) -> None:
    """Pickled into a child they are the same memory: it starts with the newest, and sees what
    comes."""
    weights.publish(version_of(1))
    with descriptors_pass_by_pickle():
        child = pickle.loads(pickle.dumps(weights))
    assert (child.version, number_of(child.latest()[1])) == (1, 1)
    weights.publish(version_of(2))
    assert (child.version, number_of(child.latest()[1])) == (2, 2)
    child.close()


def test_closed_weights_can_be_read_but_not_published(weights: Weights) -> None:
    """What readers hold stays; publishing raises, and the version stays what it was."""
    weights.publish(version_of(1))
    weights.close()
    weights.close()
    with pytest.raises(Closed):
        weights.publish(version_of(2))
    assert (weights.version, number_of(weights.latest()[1])) == (1, 1)


def test_nothing_is_left_when_they_are_gone() -> None:
    """Closed or dropped, every descriptor is given back."""
    before = open_descriptors()
    weights = Weights(version_of(0))
    weights.close()
    del weights
    dropped = Weights(version_of(0))
    del dropped
    assert open_descriptors() == before


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "posix_fallocate"])
def test_weights_that_cannot_be_made_leave_nothing(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed error, and every descriptor is back."""
    before = open_descriptors()
    monkeypatch.setattr(os, call, FailsAt(getattr(os, call), 1))
    with pytest.raises(ResourceUnavailable):
        Weights(version_of(0))
    monkeypatch.undo()
    assert open_descriptors() == before


def test_three_copies_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is three times the arrays that counts."""
    monkeypatch.setattr(
        "areplay._shm.resource_limits.available_memory", lambda root: (3 << 20, "a test")
    )
    Weights({"w": np.zeros((1 << 20) - 200, np.uint8)}).close()
    with pytest.raises(MemoryLimitExceeded):
        Weights({"w": np.zeros((1 << 20) + 1, np.uint8)})


# At every instant of a publication, and of a reading.


def fresh_reader(weights: Weights) -> Weights:
    """One more process that has not read yet."""
    with descriptors_pass_by_pickle():
        twin: Weights = pickle.loads(pickle.dumps(weights))
    return twin


def test_at_every_instant_of_a_publication_a_whole_version_is_read(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each fence of `publish`, a reader that starts then gets the version before, whole."""
    seen: list[tuple[int, int]] = []
    reading = False

    def look() -> None:
        nonlocal reading
        if not reading:
            reading = True
            reader = fresh_reader(weights)
            version, arrays = reader.latest()
            seen.append((version, number_of(arrays)))
            reader.close()
            reading = False

    monkeypatch.setattr(weights_module, "fence", look)
    monkeypatch.setattr(weights_module, "order", look)
    for number in range(1, 8):
        weights.publish(version_of(number))
        assert seen == [(number - 1, number - 1)] * 2
        seen.clear()


@pytest.mark.parametrize("publications", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("fence", [1, 2])
def test_a_reader_that_is_overtaken_reads_a_whole_version(
    weights: Weights, publications: int, fence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before or after its copying, while several versions are published: what it returns is
    one version, and if its copy may have been overwritten, a newer one."""
    weights.publish(version_of(1))
    reader, fences = fresh_reader(weights), 0

    def stopped() -> None:
        nonlocal fences
        fences += 1
        if fences == fence:
            monkeypatch.setattr(weights_module, "order", lambda: None)
            for number in range(2, 2 + publications):
                weights.publish(version_of(number))

    monkeypatch.setattr(weights_module, "order", stopped)
    version, arrays = reader.latest()
    assert number_of(arrays) == version
    assert version == 1 + publications if publications >= 3 else version in (1, 1 + publications)
    assert (reader.latest()[0], number_of(reader.latest()[1])) == (
        1 + publications,
        1 + publications,
    )
    reader.close()


def test_a_copy_that_is_being_overwritten_is_not_taken_for_whole(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher has begun version 4, in the copy of version 1 that a reader has just copied: it
    reads anew."""
    weights.publish(version_of(1))
    reader, fences = fresh_reader(weights), 0

    def stopped() -> None:
        nonlocal fences
        fences += 1
        if fences == 1:
            monkeypatch.setattr(weights_module, "order", lambda: None)
            weights.publish(version_of(2))
            weights.publish(version_of(3))
            weights._begun[0] = 4
            weights._copies["w"][1, :2] = 4
            monkeypatch.setattr(weights_module, "order", stopped)

    monkeypatch.setattr(weights_module, "order", stopped)
    version, arrays = reader.latest()
    assert (version, number_of(arrays)) == (3, 3)
    assert fences >= 3
    reader.close()


def test_a_publisher_that_is_faster_than_the_reader_holds_up_nobody(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overtaken again and again, a reader is content with the whole version that it had; one that
    has none goes on until it has one."""
    reader, late = fresh_reader(weights), fresh_reader(weights)
    assert reader.latest()[0] == 0
    weights.publish(version_of(1))
    fences = 0

    def overtaken() -> None:
        nonlocal fences
        fences += 1
        assert fences < 1_000, "held up for ever"
        if fences < 60:
            with monkeypatch.context() as patch:
                patch.setattr(weights_module, "order", lambda: None)
                for _ in range(3):
                    weights.publish(version_of(weights.version + 1))

    monkeypatch.setattr(weights_module, "order", overtaken)
    version, arrays = reader.latest()
    assert (version, number_of(arrays)) == (0, 0)
    assert fences < 20
    version, arrays = late.latest()
    assert version == number_of(arrays) > 1
    monkeypatch.undo()
    assert reader.latest()[0] == weights.version == number_of(reader.latest()[1])
    reader.close()
    late.close()


def test_a_publisher_that_dies_half_way_leaves_the_last_whole_version(weights: Weights) -> None:
    """Begun, partly written, never finished: readers go on with the version before."""
    weights.publish(version_of(1))
    weights._begun[0] = 2
    weights._copies["w"][2, 0] = 2
    reader = fresh_reader(weights)
    assert (reader.latest()[0], number_of(reader.latest()[1])) == (1, 1)
    reader.close()


def test_no_reader_in_another_thread_ever_sees_a_torn_version() -> None:
    """A thread publishes as fast as it can; every version read has one number in all its arrays,
    and versions only grow. Large enough that numpy copies without the interpreter's lock."""
    weights = Weights(version_of(0, size=40_000))
    reader = fresh_reader(weights)
    ready = [version_of(number, size=40_000) for number in range(8)]
    done = threading.Event()

    def publish() -> None:
        number = 0
        while not done.is_set():
            number += 1
            arrays = dict(ready[number % 8])
            weights.publish(arrays)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        last, seen = -1, 0
        while seen < 150:
            version, arrays = reader.latest()
            assert version >= last
            if version > last:
                assert number_of(arrays) == version % 8
                seen += 1
            last = version
    finally:
        done.set()
        thread.join()
        reader.close()
        weights.close()


READER = """
import sys
from multiprocessing import reduction
import numpy as np
from areplay._shm.layout import Layout
from areplay.weights import Weights

class Passed:
    def __init__(self, descriptor): self.descriptor = descriptor
    def detach(self): return self.descriptor

import pickle
fields, layout, what = pickle.loads(sys.stdin.buffer.read(int(sys.argv[2])))
from areplay._shm.segment import Segment
segment = Segment.__new__(Segment)
segment.__setstate__((layout, what, Passed(int(sys.argv[1]))))
weights = Weights.__new__(Weights)
weights.__setstate__({"_fields": fields, "_segment": segment})
print("READY", flush=True)
seen, last, torn = 0, -1, 0
while seen < 400 and last < 1_000_000:
    version, arrays = weights.latest()
    if version != last:
        numbers = {value for array in arrays.values() for value in np.unique(array).tolist()}
        torn += numbers != {version % 8} or version < last
        last, seen = version, seen + 1
print(seen, torn, flush=True)
"""


def test_no_reader_in_another_process_ever_sees_a_torn_version(tmp_path: Path) -> None:
    """The same with a process that runs truly beside us: 400 versions, none torn, none going
    back."""
    weights = Weights(version_of(0, size=4_000))
    ready = [version_of(number, size=4_000) for number in range(8)]
    segment = weights._segment
    script = tmp_path / "reader.py"
    script.write_text(READER)
    head = pickle.dumps((weights._fields, segment.layout, segment.what))
    child = subprocess.Popen(
        [sys.executable, script, str(segment.descriptor), str(len(head))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[segment.descriptor],
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(head)
        child.stdin.flush()
        assert child.stdout.readline() == b"READY\n"
        while child.poll() is None:
            for _ in range(20):
                weights.publish(ready[(weights.version + 1) % 8])
        assert child.stdout.read().split() == [b"400", b"0"]
    weights.close()
