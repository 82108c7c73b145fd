"""Tests of `_sampling.torch`: the memory of a batch as tensors, and its way to a device.

There is hardly ever a GPU where these run: `Cuda` plays one, as slow as a test likes. The last
tests want a real one.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from areplay._sampling import torch as to_torch
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.slots import Slots
from areplay._sampling.torch import Transfer, tensors, unpin
from areplay.errors import MissingDependency
from areplay.items.item import BatchFields, FieldView

torch = pytest.importorskip("torch")

FIELDS = BatchFields(
    {
        "frames": ((5, 6), "uint8"),
        "obs": FieldView("frames", 0, 4),
        "next_obs": FieldView("frames", 1, 5),
        "history": ((7, 2, 3), "float32"),
        "stacks": FieldView("history", 1, 7, 4),
        "reward": ((), "float32"),
        "mask": ((3,), "bool"),
    }
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver."
)
STORED = ("frames", "history", "reward", "mask")
BATCH_SIZE = 8


def filled(arrays: BatchArrays, seed: int = 0) -> BatchArrays:
    """The same places, with bytes of chance that are valid values."""
    rng = np.random.default_rng(seed)
    for array in arrays.stored.values():
        array[...] = rng.integers(0, 2 if array.dtype == np.bool_ else 200, array.shape)
    return arrays


@pytest.fixture
def slots() -> Iterator[Slots]:
    """Shared memory for three batches, all filled."""
    found = Slots(FIELDS, BATCH_SIZE, 3, 1)
    for slot in range(3):
        filled(found.batch(slot), slot)
    yield found
    unpin(found.batch(0))
    found.close()


def as_numpy(found: dict[str, Any]) -> dict[str, Any]:
    """Tensors, real or played, as arrays."""
    return {
        name: (value.value if isinstance(value, Remote) else value).cpu().numpy()
        for name, value in found.items()
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Names, in order, dtypes, shapes and values."""
    assert list(found) == list(expected)
    for name, array in as_numpy(found).items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape, name
        assert np.array_equal(array, expected[name]), name


# On the CPU.


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_on_the_cpu_they_are_the_memory_of_the_batch(slots: Slots, device: Any) -> None:
    """The same fields with the same values, and what a sampler writes later is in them: nothing was
    copied."""
    arrays = slots.batch(1)
    found = tensors(arrays, device)
    assert_same(found, dict(arrays.fields))
    filled(arrays, 9)
    assert_same(found, dict(arrays.fields))


def test_views_of_one_field_share_its_memory(slots: Slots) -> None:
    """An observation and the next one have their common frames once, as in numpy."""
    found = tensors(slots.batch(0))
    assert found["next_obs"].data_ptr() == found["obs"].data_ptr() + 6
    assert found["stacks"].shape == (BATCH_SIZE, 3, 4, 2, 3)
    storage = found["stacks"].untyped_storage()
    assert storage.nbytes() == BATCH_SIZE * 7 * 2 * 3 * 4


def test_a_copy_becomes_tensors_too() -> None:
    """A batch need not lie in shared memory."""
    arrays = filled(BatchArrays.empty(BATCH_SIZE, FIELDS))
    assert_same(tensors(arrays), dict(arrays.fields))


@pytest.mark.parametrize("code", "?bBhHiIqQefdFD")
def test_every_dtype_of_a_spec_has_one_in_torch(code: str) -> None:
    """With the same values."""
    arrays = filled(BatchArrays.empty(4, BatchFields({"value": ((2,), code)})))
    assert_same(tensors(arrays), dict(arrays.fields))


def test_a_dtype_that_torch_lacks_is_refused_by_field() -> None:
    """The message names the field, its dtype and the torch at hand."""
    arrays = filled(BatchArrays.empty(4, BatchFields({"value": ((2,), "float64")})))
    odd = BatchArrays(
        arrays.indices,
        arrays.importance_weights,
        arrays.probabilities,
        {"value": np.zeros((4, 2), np.longdouble)},
        arrays.layout,
    )
    with pytest.raises(
        TypeError,
        match=r"field 'value' is "
        rf"{np.dtype(np.longdouble).name}.*torch.*batch\['value'\]",
    ):
        tensors(odd)


def test_devices_without_streams_get_their_copies_at_once(slots: Slots) -> None:
    """Shapes and dtypes are those of the fields; `meta` stands for whatever torch may have."""
    found = tensors(
        slots.batch(0), "meta", on_transfer=lambda transfer: pytest.fail("nothing is under way")
    )
    for name, array in slots.batch(0).fields.items():
        assert found[name].device.type == "meta" and found[name].shape == array.shape


@pytest.mark.parametrize("device", ["cuda:63", "hal9000", "mps:5"])
def test_a_device_that_is_not_there_is_torchs_own_error(slots: Slots, device: str) -> None:
    """It knows best what is wrong, and the slots are still as they were.

    What it says depends on how it was built, and on whether there is a driver.
    """
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|device|mps|driver"):
        tensors(slots.batch(0), device)
    assert_same(tensors(slots.batch(0)), dict(slots.batch(0).fields))


@pytest.mark.parametrize("device", ["cuda", "cuda:63"])
@pytest.mark.parametrize(
    "error", [RuntimeError(NO_DRIVER), AssertionError("Torch not compiled with CUDA enabled")]
)
def test_a_build_for_cuda_without_a_driver_is_torchs_own_error(
    slots: Slots, device: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is on a machine with torch's usual wheel and no GPU. Nothing of a stream is kept for a
    next try."""

    def refuse() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "_initialized", False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            tensors(slots.batch(0), device)
        assert caught.value is error
    assert_same(tensors(slots.batch(0)), dict(slots.batch(0).fields))


def test_without_torch_the_extra_is_named(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of areplay's own, that says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependency,
        match=r"batch\.torch\(\) needs.*pip install '\.\[torch\]'` in a clone "
        r"of areplay",
    ):
        tensors(slots.batch(0))


# To a device, played.


@dataclass
class Stream:
    """A queue of work that the device has not done yet."""

    name: str
    work: list[Callable[[], None]] = field(default_factory=list)

    def run(self) -> None:
        """Do all of it."""
        while self.work:
            self.work.pop(0)()

    def wait_event(self, event: Event) -> None:
        """What is enqueued from now on comes after the event."""
        self.work.append(event.synchronize)


class Event:
    """A place in a stream."""

    def __init__(self) -> None:
        self.is_reached, self.stream = False, Stream("none")

    def record(self, stream: Stream) -> None:
        """Be reached when what the stream has now is done."""
        self.stream = stream
        stream.work.append(self._reach)

    def query(self) -> bool:
        """Whether that has come."""
        return self.is_reached

    def synchronize(self) -> None:
        """Wait until then: do the work."""
        while not self.is_reached:
            self.stream.work.pop(0)()

    def _reach(self) -> None:
        self.is_reached = True


class Remote:
    """A tensor of the played device; what is in it is known when the work is done."""

    def __init__(self, cuda: Cuda, value: Any) -> None:
        self.cuda, self.value = cuda, value

    def __getitem__(self, at: Any) -> Remote:
        return Remote(self.cuda, self.value[at])

    def unfold(self, *args: int) -> Remote:
        """As torch's."""
        return Remote(self.cuda, self.value.unfold(*args))

    def movedim(self, *args: int) -> Remote:
        """As torch's."""
        return Remote(self.cuda, self.value.movedim(*args))

    def record_stream(self, stream: Stream) -> None:
        """As torch's."""
        self.cuda.recorded.append((self.value.data_ptr(), stream.name))


class Host:
    """A tensor in the memory of the host."""

    def __init__(self, cuda: Cuda, value: Any) -> None:
        self.cuda, self.value = cuda, value

    def to(self, device: Any, non_blocking: bool = False) -> Remote:
        """Copy it on the stream that is current; memory that is not pinned is staged, so that the
        host waits."""
        stream, remote = (
            self.cuda.current,
            torch.full_like(self.value, 77 if self.value.dtype != torch.bool else 0),
        )
        address = self.value.data_ptr()
        pinned = any(start <= address < start + size for start, size in self.cuda.pinned.items())
        assert pinned == non_blocking, "only pinned memory stays as it is until the copy is made"
        self.cuda.copies.append(
            (stream.name, self.value.numel() * self.value.element_size(), non_blocking)
        )
        stream.work.append(lambda: remote.copy_(self.value))
        if not non_blocking:
            stream.run()
        return Remote(self.cuda, remote)


class Cuda:
    """Plays the parts of the module `torch` that a batch needs on its way to a device, and writes
    down what happens."""

    __version__ = "played"
    device = staticmethod(torch.device)

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.users = [Stream(f"user {index}") for index in range(devices)]
        self.current = self.users[0]
        self.pinned: dict[int, int] = {}
        self.registered: list[tuple[int, int]] = []
        self.unregistered: list[int] = []
        self.copies: list[tuple[str, int, bool]] = []
        self.recorded: list[tuple[int, str]] = []
        self.register_error = self.pending_error = 0
        self.cuda = self  # torch.cuda

    def from_numpy(self, array: Any) -> Host:
        """As torch's."""
        return Host(self, torch.from_numpy(array))

    def empty(self, count: int, device: Any) -> None:
        """Fails if there is no such device."""
        if device.index >= self.devices:
            raise RuntimeError(f"invalid device ordinal {device.index}")

    def ones(self, count: int, device: Any) -> None:
        """The first kernel after an error tells of it."""
        error, self.pending_error = self.pending_error, 0
        if error:
            raise RuntimeError(f"CUDA error {error}, of an earlier call")

    def current_device(self) -> int:
        """The one that "cuda" is."""
        return 0

    def cudart(self) -> Cuda:
        """CUDA's own functions."""
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        """Pin memory."""
        self.registered.append((address, size))
        if self.register_error:
            self.pending_error = self.register_error
        else:
            assert not any(
                start < address + size and address < start + n for start, n in self.pinned.items()
            )
            self.pinned[address] = size
        return self.register_error

    def cudaHostUnregister(self, address: int) -> int:
        """Unpin it; by then no copy may be under way."""
        assert not any(stream.work for stream in STREAMS), "a copy was still reading"
        self.unregistered.append(address)
        del self.pinned[address]
        return 0

    def Stream(self, device: Any) -> Stream:
        """A new one."""
        STREAMS.append(Stream(f"side {device.index}"))
        return STREAMS[-1]

    def Event(self) -> Event:
        """A new one."""
        return Event()

    def current_stream(self, device: Any) -> Stream:
        """The one of whoever calls."""
        return self.users[device.index]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Enqueue to that one."""
        before, self.current = self.current, stream
        yield
        self.current = before


STREAMS: list[Stream] = []
"""All that were made."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """The played module, in the place of torch."""
    played = Cuda(devices=2)
    STREAMS.clear()
    monkeypatch.setattr(to_torch, "_load", lambda: played)
    monkeypatch.setattr(to_torch, "_streams", {})
    return played


def sent(arrays: BatchArrays, device: str = "cuda") -> tuple[dict[str, Any], Transfer]:
    """The tensors and the transfer of a batch that is on its way."""
    under_way: list[Transfer] = []
    found = tensors(arrays, device, under_way.append)
    (transfer,) = under_way
    return found, transfer


def test_a_slot_is_free_when_its_copies_are_done_and_not_before(cuda: Cuda, slots: Slots) -> None:
    """Until then `is_done` is false, and what is written into the slot would come out at the
    device; `wait` ends it."""
    expected = {name: array.copy() for name, array in slots.batch(0).fields.items()}
    found, transfer = sent(slots.batch(0))
    assert not transfer.is_done()
    assert (as_numpy(found)["obs"] == 77).all()  # nothing has been copied yet
    transfer.wait()
    assert transfer.is_done()
    filled(slots.batch(0), 9)
    assert_same(found, expected)
    transfer.wait()  # once more does no harm


def test_a_transfer_is_done_by_itself(cuda: Cuda, slots: Slots) -> None:
    """Who asks now and then need never wait."""
    _, transfer = sent(slots.batch(0))
    STREAMS[0].run()
    assert transfer.is_done()


def test_each_stored_array_is_copied_once_and_beside_the_users_work(
    cuda: Cuda, slots: Slots
) -> None:
    """On a stream of its own, of which each device has one for good; views cost nothing."""
    for slot in (0, 1):
        sent(slots.batch(slot))
    sizes = [slots.batch(0).stored[name].nbytes for name in STORED]
    assert cuda.copies == [("side 0", size, True) for size in sizes] * 2
    sent(slots.batch(2), "cuda:1")
    assert cuda.copies[8:] == [("side 1", size, True) for size in sizes]
    assert [stream.name for stream in STREAMS] == ["side 0", "side 1"]


def test_what_the_user_enqueues_next_comes_after_the_copies(cuda: Cuda, slots: Slots) -> None:
    """Work on the stream that was current finds the tensors complete; the host does not wait."""
    found, _ = sent(slots.batch(0))
    seen: list[Any] = []
    cuda.users[0].work.append(lambda: seen.append(as_numpy(found)["reward"].copy()))
    cuda.users[0].run()
    assert np.array_equal(seen[0], slots.batch(0).fields["reward"])


def test_memory_of_the_device_is_kept_for_the_users_stream(cuda: Cuda, slots: Slots) -> None:
    """It was allocated on our stream, so torch has to be told who else reads it: of each copy,
    once."""
    found, _ = sent(slots.batch(0))
    assert len(cuda.recorded) == len(STORED) and {name for _, name in cuda.recorded} == {"user 0"}
    assert {found["reward"].value.data_ptr(), found["obs"].value.data_ptr()} <= {
        address for address, _ in cuda.recorded
    }


def test_the_slots_are_pinned_once_and_as_a_whole(cuda: Cuda, slots: Slots) -> None:
    """From their first byte to their last, by the first batch that goes to a device."""
    for slot in (0, 1, 2, 0):
        sent(slots.batch(slot))
    ((address, size),) = cuda.registered
    assert size == slots._segment.layout.size_bytes
    for slot in range(3):
        for array in slots.batch(slot).stored.values():
            assert (
                address <= array.ctypes.data and array.ctypes.data + array.nbytes <= address + size
            )


def test_unpinning_waits_for_the_copies_of_all_devices(cuda: Cuda, slots: Slots) -> None:
    """Only then the memory is let go; the tensors are whole. Doing it twice, or never having
    pinned, does no harm."""
    found = [sent(slots.batch(0))[0], sent(slots.batch(1), "cuda:1")[0]]
    unpin(slots.batch(2))
    assert cuda.pinned == {} and len(cuda.unregistered) == 1
    for slot, one in enumerate(found):
        assert_same(one, dict(slots.batch(slot).fields))
    unpin(slots.batch(0))
    unpin(filled(BatchArrays.empty(2, FIELDS)))


def test_a_batch_can_be_sent_after_its_slots_were_unpinned(cuda: Cuda, slots: Slots) -> None:
    """It is copied while the caller waits, and nothing is pinned again, since nobody would unpin
    it."""
    sent(slots.batch(0))
    unpin(slots.batch(0))
    expected = {name: array.copy() for name, array in slots.batch(1).fields.items()}
    found = tensors(slots.batch(1), "cuda")
    filled(slots.batch(1), 9)
    assert_same(found, expected)
    assert len(cuda.registered) == 1


def test_memory_of_its_own_is_copied_while_the_caller_waits(cuda: Cuda) -> None:
    """A batch of `sample()` or `copy()` is not pinned, and nobody keeps it until the copy is
    made."""
    arrays = filled(BatchArrays.empty(BATCH_SIZE, FIELDS))
    expected = {name: array.copy() for name, array in arrays.fields.items()}
    found = tensors(arrays, "cuda")
    filled(arrays, 9)
    assert_same(found, expected)
    assert cuda.registered == []


def test_slots_that_cannot_be_pinned_go_the_slow_way(
    cuda: Cuda, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    """The learner is told once and works all the same; the error does not come up in its own next
    call."""
    cuda.register_error = 2
    expected = {name: array.copy() for name, array in slots.batch(0).fields.items()}
    with caplog.at_level(logging.WARNING, "areplay"):
        found = tensors(slots.batch(0), "cuda")
        tensors(slots.batch(1), "cuda")
    filled(slots.batch(0), 9)
    assert_same(found, expected)
    (record,) = caplog.records
    assert "error 2" in record.message and "prefetch" in record.message
    assert len(cuda.registered) == 1 and cuda.pending_error == 0
    unpin(slots.batch(0))
    assert cuda.unregistered == []


def test_pinned_memory_stays_mapped_until_it_is_unpinned(cuda: Cuda) -> None:
    """CUDA would take what is mapped at that address later for the old memory; after that nothing
    holds it."""
    slots = Slots(FIELDS, BATCH_SIZE, 1, 1)
    memory = weakref.ref(slots._segment._memory)
    sent(slots.batch(0))[1].wait()
    slots.close()
    del slots
    gc.collect()
    assert memory() is not None
    ((address, _),) = cuda.registered
    holder = next(iter(to_torch._pins))
    to_torch._pins[holder].close()
    del to_torch._pins[holder], holder
    gc.collect()
    assert cuda.unregistered == [address] and memory() is None


def test_a_device_number_that_is_not_there_leaves_nothing(cuda: Cuda, slots: Slots) -> None:
    """No stream was made and nothing pinned."""
    with pytest.raises(RuntimeError, match="ordinal 5"):
        tensors(slots.batch(0), "cuda:5")
    assert STREAMS == [] and cuda.registered == []


# To a real device, where there is one.


def has_a_gpu() -> bool:
    """Whether there is one that torch can use. A build that finds an old or broken driver says so
    in a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(torch.cuda.is_available())


needs_a_gpu = pytest.mark.skipif(not has_a_gpu(), reason="needs a CUDA device")


@needs_a_gpu
def test_on_a_real_device_the_values_are_the_same() -> None:
    """Over many batches, with slots that are written again as soon as their transfer is done."""
    slots = Slots(
        BatchFields({"frames": ((5, 84, 84), "uint8"), "obs": FieldView("frames", 0, 4)}), 256, 4, 1
    )
    sums = []
    for number in range(40):
        arrays = slots.batch(number % 4)
        arrays.stored["frames"][...] = number
        found, transfer = sent(arrays)
        sums.append(found["obs"].to(torch.float32).mean())
        transfer.wait()
    assert [float(mean) for mean in sums] == list(range(40))
    unpin(slots.batch(0))
    slots.close()


@needs_a_gpu
def test_on_a_real_device_slots_are_pinned() -> None:
    """CUDA itself says so, and after `unpin` no more."""
    slots = Slots(FIELDS, BATCH_SIZE, 2, 1)
    sent(slots.batch(0))
    assert torch.from_numpy(slots.batch(1).stored["frames"]).is_pinned()
    unpin(slots.batch(0))
    assert not torch.from_numpy(slots.batch(1).stored["frames"]).is_pinned()
    slots.close()
