"""Batches as the learner sees them: arrays by name, in a slot's memory or in memory of their
own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from areplay._base import forks
from areplay._base.arrays import Array, Indices
from areplay._sampling.batch_memory import BatchArrays
from areplay.errors import BatchReleased

if TYPE_CHECKING:
    import jax
    import torch

    from areplay._sampling.torch import Transfer


class Batch(Mapping[str, Array]):
    """B items: `batch["obs"]` is an array of shape `(B, *shape)`, dtype as in the spec.

    One that comes from `async for` is a view into shared memory, valid until the next step of the
    loop: after that its arrays show other items. `copy()` keeps it; `release()` gives its memory
    back earlier. In a forked child a view raises `WrongProcess`; copies and the batches of
    `Replay.sample` have memory of their own, and can be read there.
    """

    __slots__ = ("_arrays", "_give_back", "_origin", "_transfers")

    def __init__(self, arrays: BatchArrays, give_back: Callable[[], None] | None = None) -> None:
        self._arrays: BatchArrays | None = arrays
        self._give_back = give_back
        self._origin = forks.current
        self._transfers: list[Transfer] = []  # copies to a device that may still read our memory

    @property
    def indices(self) -> Indices:
        """(B,) int64: the name of each item's row, never used again for another row."""
        return self._whole().indices

    @property
    def importance_weights(self) -> NDArray[np.float32]:
        """(B,) float32: importance-sampling weights, all 1 for uniform sampling."""
        return self._whole().importance_weights

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(B,) float64: the probability with which the row that each item is drawn by was drawn.

        Rows by which no item can be drawn (the last ones of an episode that goes on) are drawn
        again: divide by the share of the others to get the item's own. Importance weights do not
        depend on it. Where such rows have an eighth of all priorities or more, `Prioritized` leaves
        them out, and these are the probabilities of the others.
        """
        return self._whole().probabilities

    def copy(self) -> Batch:
        """The same in memory of its own, valid for as long as it lives."""
        return Batch(self._whole().copy())

    def torch(self, device: torch.device | str | int | None = None) -> dict[str, torch.Tensor]:
        """The fields as torch tensors, of the same shapes and dtypes.

        On the CPU they are the batch's memory, valid as long as it is. On a CUDA device they are
        copies, made from pinned memory on a stream of their own, and valid as long as they live:
        what you enqueue on the stream that is current waits for them, the host does not. The
        batch's memory is given back when they are done.

        Raises:
            MissingDependency: torch is not installed.
            TypeError: torch lacks the dtype of a field; names it.
            BatchReleased: the batch was given back.
        """
        from areplay._sampling.torch import tensors

        return tensors(self._whole(), device, self._transfers.append)

    def jax(self, device: jax.Device | None = None, *, copy: bool = True) -> dict[str, jax.Array]:
        """The fields as jax arrays, valid as long as they live; 64-bit dtypes as jax is configured.

        Args:
            device: where to put them; None is jax's default device.
            copy: False shares the batch's memory with jax on the CPU, where it can. Such arrays are
                valid as long as the batch is: `jax.block_until_ready` what you made of them before
                the next step of the loop.

        Raises:
            MissingDependency: jax is not installed.
            TypeError: jax lacks the dtype of a field; names it.
            BatchReleased: the batch was given back.
        """
        from areplay._sampling.jax import arrays

        return arrays(self._whole(), device, copy=copy)

    def release(self) -> None:
        """Give the memory back now. Reading the batch after that raises `BatchReleased`. May be
        called twice.

        If it is still being copied to a device, that is waited for: as long as one copy takes at
        most. In a forked child a view is only dropped.
        """
        if self._origin is not forks.current:
            self._arrays = None if self._give_back is not None else self._arrays
            self._give_back, self._transfers = None, []
            return
        give_back, self._give_back = self._give_back, None
        self._arrays = None
        try:
            while self._transfers:
                self._transfers.pop().wait()
        finally:  # also if the device has failed
            if give_back is not None:
                give_back()

    @property
    def is_released(self) -> bool:
        """Whether its memory was given back, by `release` or by the next step of the loop."""
        return self._arrays is None

    def __getitem__(self, name: str) -> Array:
        return self._whole().fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole().fields)

    def __len__(self) -> int:
        return len(self._whole().fields)

    def _whole(self) -> BatchArrays:
        if self._origin is not forks.current and self._give_back is not None:
            forks.check(self._origin, "this batch")
        if self._arrays is None:
            raise BatchReleased
        return self._arrays

    def __repr__(self) -> str:
        if self._origin is not forks.current and self._give_back is not None:
            return f"<Batch of process {self._origin.pid}>"
        if self._arrays is None:
            return "<Batch, released>"
        return f"<Batch of {len(self._arrays.indices)}: {', '.join(self._arrays.fields)}>"
