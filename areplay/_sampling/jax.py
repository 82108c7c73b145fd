"""Batches as jax arrays.

Rule: a jax array never changes, so what a learner is given is a copy, unless it asks for the
batch's own memory.

jax computes in the background, on the CPU too: a step that has returned may still be reading its
inputs, and when the learner takes the next batch, a sampler writes into the slot of the last one.
With the slot's memory in its inputs such a step computes from rows that change meanwhile, and
nothing tells. Copying 7 MB takes 0.3 to 1 ms, a step on them far longer.
(`jax.device_put(..., may_alias=False)` is no remedy: jax 0.10 shares numpy's memory all the same.)

jax is imported when it is needed, not before: the package works without it. Knows nothing of slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from areplay._base.arrays import Array
from areplay._sampling.batch_memory import BatchArrays
from areplay.errors import MissingDependency

if TYPE_CHECKING:
    import jax

# jax takes numpy's memory on the CPU as it is if it begins there, else it copies it once more
_ALIGNMENT_BYTES = 64


def arrays(
    batch: BatchArrays, device: jax.Device | None = None, *, copy: bool = True
) -> dict[str, jax.Array]:
    """The fields of a batch as jax arrays, valid for as long as they live.

    As everywhere in jax, 64-bit dtypes become 32-bit ones unless `jax_enable_x64` is set.

    Args:
        device: where to put them; None is jax's default device, from where computations may move
            them.
        copy: False shares the memory of the batch with jax where it can (through DLPack: on the
            CPU, for a field that lies in one piece and on a 64-byte boundary and keeps its dtype;
            others are copied). Such arrays are valid until the batch is released:
            `jax.block_until_ready` what you made of them before that.

    Raises:
        MissingDependency: jax is not installed.
        TypeError: a field has a dtype that jax lacks; names it.
    """
    jax = _load()
    target = device if device is not None else _default_device(jax)
    is_shared = not copy and target.platform == "cpu"
    found = {}
    for name, array in batch.fields.items():
        try:
            if is_shared and array.flags.c_contiguous:
                found[name] = jax.numpy.from_dlpack(array, device=target)
            else:
                found[name] = jax.device_put(_aligned_copy(array), device)
        except (TypeError, BufferError) as error:
            raise TypeError(
                f"field {name!r} is {array.dtype.name}, which jax {jax.__version__} cannot hold "
                f"({error}); give the field another dtype in the spec, or convert batch[{name!r}] "
                "yourself"
            ) from error
    if is_shared:
        # those that were converted, from memory that may change after this
        jax.block_until_ready(found)
    return found


def _default_device(jax: Any) -> Any:
    chosen = jax.config.jax_default_device
    if chosen is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen


def _aligned_copy(array: Array) -> Array:
    """A copy that jax takes over without one of its own."""
    memory = np.empty(array.nbytes + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    copy: Array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _load() -> Any:
    try:
        import jax
        import jax.numpy
    except ImportError as error:
        raise MissingDependency("batch.jax()", "jax") from error
    return jax
