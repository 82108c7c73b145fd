"""Batches as torch tensors: the very memory of the batch on the CPU, or on their way to a device.

On the way to a CUDA device, one copy an array that is stored, and none a view of it:

    slot (shared memory, pinned once) --copy on a stream of our own--> device --views--> tensors
                                                    |
              the current stream waits for the copies, and so does the release of
              the slot; the host does not wait otherwise

Rule: the memory of a batch does not change, and is not unpinned, before its copies are done.
Whoever gives it back asks the `Transfer`, and whoever unmaps it calls `unpin`.

torch is imported when it is needed, not before: the package works without it. Knows nothing of
slots.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from areplay._base.arrays import Array
from areplay._sampling.batch_memory import BatchArrays
from areplay.errors import MissingDependency
from areplay.items.item import FieldView

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)


class Transfer:
    """The tensors of a batch, perhaps still being copied to a device.

    Attributes:
        tensors: by field. Work that is enqueued on the stream that was current finds them complete.
    """

    def __init__(self, tensors: dict[str, Tensor], copied: Any = None) -> None:
        self.tensors = tensors
        self._copied = copied  # a CUDA event; torch types only half of it

    def is_done(self) -> bool:
        """Whether the batch's own memory is no longer read. Never waits."""
        if self._copied is not None and self._copied.query():
            self._copied = None
        return self._copied is None

    def wait(self) -> None:
        """Return when `is_done`: after the time of a copy at most, and mostly at once. Other
        threads run meanwhile."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None


def tensors(
    arrays: BatchArrays,
    device: torch.device | str | int | None = None,
    on_transfer: Callable[[Transfer], object] | None = None,
) -> dict[str, Tensor]:
    """The fields of a batch as tensors, of the same shapes and dtypes.

    On the CPU they are the batch's memory itself, not a copy. On a CUDA device the copies may still
    be running when this returns: what is enqueued after it on the stream that is current waits for
    them, work on other streams must do so itself. The first call pins the memory that the batch
    lies in, all slots of it, which takes milliseconds.

    Args:
        device: as for `Tensor.to`; None is the CPU.
        on_transfer: called with the `Transfer` if copies are running, before the batch's memory may
            be written again somebody must `wait` for it.

    Raises:
        MissingDependency: torch is not installed.
        TypeError: a field has a dtype that torch lacks; names it.
        RuntimeError, AssertionError: torch's own, for a device that is not there.
    """
    torch = _load()
    target = torch.device("cpu" if device is None else device)
    stored = {name: _from_numpy(torch, name, array) for name, array in arrays.stored.items()}
    if target.type == "cuda":
        transfer = _to_cuda(torch, arrays, stored, target)
        if on_transfer is not None and not transfer.is_done():
            on_transfer(transfer)
        return transfer.tensors
    if target.type != "cpu":  # no streams that we know: copied when this returns
        stored = {name: tensor.to(target) for name, tensor in stored.items()}
    return _fields_of(arrays, stored)


def unpin(arrays: BatchArrays) -> None:
    """Let go of the memory that a batch lies in, once the copies from it are done. For when the
    slots are closed.

    Batches in it may be read, and made tensors, also after this: on the slow way.
    """
    for array in arrays.stored.values():
        memory = _memory_of(array)
        if memory is not None:
            _unpinned.add(memory)
            pin = _pins.pop(memory, None)
            if pin is not None:
                pin.close()


class _Pin:
    """Shared memory that devices copy from directly, from the first copy until `close`.

    It stays mapped for so long: CUDA would take other memory, mapped later at the same address, for
    this one.
    """

    def __init__(self, torch: Any, memory: mmap.mmap, device: torch.device) -> None:
        self._cudart = torch.cuda.cudart()
        self._memory = np.frombuffer(memory, np.uint8)
        # by device, whose copies follow each other
        self.last_copied: dict[int, torch.cuda.Event] = {}
        error = int(self._cudart.cudaHostRegister(self._memory.ctypes.data, self._memory.nbytes, 0))
        self.is_registered = error == 0
        if error:
            logger.warning(
                "cudaHostRegister failed with error %d for %d bytes of batches: they cannot be "
                "pinned, and each is waited for while it is copied; lower prefetch or batch_size, "
                "or raise the limit of locked memory",
                error,
                self._memory.nbytes,
            )
            # CUDA tells of the error once more, to whoever comes next
            with contextlib.suppress(RuntimeError):
                torch.ones(1, device=device)

    def close(self) -> None:
        """Unpin it, after the last copy."""
        for event in self.last_copied.values():
            event.synchronize()
        if self.is_registered:
            error = int(self._cudart.cudaHostUnregister(self._memory.ctypes.data))
            if error:
                logger.warning(
                    "cudaHostUnregister failed with error %d for %d bytes",
                    error,
                    self._memory.nbytes,
                )


_pins: dict[mmap.mmap, _Pin] = {}
"""Of this process, until they are closed. As a key here, their memory stays mapped."""

_unpinned: WeakSet[mmap.mmap] = WeakSet()
"""What is not pinned again, since nobody would unpin it."""

_streams: dict[int, torch.cuda.Stream] = {}
"""By device: where copies run beside the learner's work."""


def _to_cuda(
    torch: Any, arrays: BatchArrays, stored: Mapping[str, Tensor], device: torch.device
) -> Transfer:
    index = device.index if device.index is not None else torch.cuda.current_device()
    device = torch.device("cuda", index)
    if index not in _streams:
        torch.empty(0, device=device)  # or torch says what is wrong with it
        _streams[index] = torch.cuda.Stream(device)
    stream, user = _streams[index], torch.cuda.current_stream(device)
    pins = {name: _pinned(torch, array, device) for name, array in arrays.stored.items()}
    with torch.cuda.stream(stream):
        # Allocated on our stream, so that the copies need not wait for what the learner has
        # enqueued. What is not pinned is there when `to` returns, since nobody holds that memory
        # until the event.
        copies = {
            name: tensor.to(device, non_blocking=pins[name] is not None)
            for name, tensor in stored.items()
        }
        copied = torch.cuda.Event()
        copied.record(stream)
    user.wait_event(copied)
    for copy in copies.values():
        # its memory is reused only after what the user has enqueued by the time it is freed
        copy.record_stream(user)
    for pin in pins.values():
        if pin is not None:
            pin.last_copied[index] = copied
    return Transfer(_fields_of(arrays, copies), copied)


def _pinned(torch: Any, array: Array, device: torch.device) -> _Pin | None:
    """The pin of the mapping that an array lies in, pinned now if it was not; `None` if it cannot
    be."""
    memory = _memory_of(array)
    if memory is None or memory in _unpinned:
        return None
    if memory not in _pins:
        _pins[memory] = _Pin(torch, memory, device)
    return _pins[memory] if _pins[memory].is_registered else None


def _memory_of(array: Array) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    memory = base.obj if isinstance(base, memoryview) else base
    return memory if isinstance(memory, mmap.mmap) else None


def _fields_of(arrays: BatchArrays, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields that the learner sees."""
    views = arrays.views
    return {
        name: _view(stored, views[name]) if name in views else stored[name]
        for name in arrays.fields
    }


def _view(stored: Mapping[str, Tensor], view: FieldView) -> Tensor:
    """What `FieldView.of` is for arrays."""
    part = stored[view.source][:, view.start : view.stop]
    return part.unfold(1, view.stack, 1).movedim(-1, 2) if view.stack else part


def _from_numpy(torch: Any, name: str, array: Array) -> Tensor:
    try:
        # By the canonical dtype: C's unsigned long long is a uint64 too, but torch knows only
        # numpy's first one.
        tensor: Tensor = torch.from_numpy(array.view(array.dtype.str))
    except TypeError as error:
        raise TypeError(
            f"field {name!r} is {array.dtype.name}, which this torch ({torch.__version__}) cannot "
            f"hold ({error}); give the field another dtype in the spec, or convert batch[{name!r}] "
            "yourself"
        ) from error
    return tensor


def _load() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("batch.torch()", "torch") from error
    return torch
