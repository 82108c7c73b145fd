"""torchrl: `TensorDictReplayBuffer` on one contiguous storage, shared with producer processes where
it can be."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import numpy as np
import torch

# The wheel's C++ part was built against a newer torch than the newest whose CPU build is on PyPI,
# and lacks one symbol of it. Its segment trees, all that is needed here, work when the missing
# symbol is not looked up before it is called.
sys.setdlopenflags(os.RTLD_LAZY)

from tensordict import TensorDict  # noqa: E402
from torchrl.data import (  # noqa: E402
    LazyTensorStorage,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)

from benchmarks.peers.protocol import Meter, Side, serve  # noqa: E402
from benchmarks.peers.switch import Switch, produce  # noqa: E402
from benchmarks.peers.works import Work  # noqa: E402

FILL_ROWS = 512
PREFETCH = 4


def push(switch: Switch, number: int, buffer: Any, work: Work) -> None:
    """A producer process."""
    torch.set_num_threads(1)
    produce(
        switch,
        number,
        work.chunk_rows,
        partial(buffer.extend, tensors(work, work.chunk_rows, number)),
    )


class Torchrl(Side):
    """Batches are tensordicts."""

    packages = ("torchrl", "tensordict", "torch", "numpy")
    choices = (
        "torchrl: `LazyTensorStorage`; `LazyMemmapStorage`, its other contiguous one, gave 0.8 to "
        "1.5 times as many batches each second.",
        "torchrl: four prefetching threads when nobody writes and the learner has steps to do, and "
        "with priorities; sixteen gave 0.7 to 1.6 times as many batches each second. None when it "
        "takes uniform batches flat out: of CartPole rows that gave 2,900 each second, against "
        "2,100 with four (medians of three rounds), of larger ones as many. Beside producer "
        "processes the buffer is opened with `shared=True`, which refuses prefetching.",
        "torchrl: its prioritised sampler refuses to be shared between processes, so there the "
        "producers are threads of the learner's process, with prefetching.",
        "torchrl: with torch 2.13.0, the newest whose CPU build is on PyPI; the C++ part of its "
        "wheel wants a newer one for a function that is not needed here.",
    )

    def __init__(self) -> None:
        super().__init__()
        self._kind: tuple[Work, bool] | None = None
        self._buffer: Any = None
        self._flat_out: Any = None
        self._batch: Any = None

    def prepare(self, work: Work, producers: int) -> None:
        """See `Side.prepare`."""
        self.end_producers()
        is_shared = producers > 0 and not work.is_prioritized
        if (work, is_shared) != self._kind:
            self._buffer = self._flat_out = self._batch = None
            self._buffer, self._kind = filled(work, is_shared), (work, is_shared)
        self._flat_out = self._buffer
        if not producers and not work.is_prioritized:  # the same rows, without prefetching
            self._flat_out = TensorDictReplayBuffer(
                storage=self._buffer.storage, batch_size=work.batch_size
            )
        self._errors = torch.rand(work.batch_size)
        if is_shared:
            self.spawn_producers(producers, push, self._buffer, work)
        else:
            chunk = tensors(work, work.chunk_rows)
            self.thread_producers(
                producers, work.chunk_rows, lambda: self._buffer.extend(chunk.clone(False))
            )

    def learn(self, work: Work, meter: Meter) -> None:
        """See `Side.learn`."""
        self._source = self._flat_out if meter.is_flat_out else self._buffer
        super().learn(work, meter)

    def take(self) -> np.ndarray[Any, Any]:
        """See `Side.take`."""
        self._batch = self._source.sample()
        return self._batch["obs"].numpy()

    def update(self) -> None:
        """See `Side.update`."""
        self._buffer.update_priority(self._batch["index"], self._errors)


def tensors(work: Work, rows: int, seed: int = 0) -> TensorDict:
    """A chunk."""
    return TensorDict(
        {name: torch.from_numpy(column) for name, column in work.columns(rows, seed).items()},
        [rows],
    )


def filled(work: Work, is_shared: bool) -> Any:
    """A buffer, full."""
    storage = LazyTensorStorage(work.capacity)
    settings: dict[str, Any] = {"storage": storage, "batch_size": work.batch_size}
    settings |= {"shared": True} if is_shared else {"prefetch": PREFETCH}
    if work.is_prioritized:
        buffer = TensorDictPrioritizedReplayBuffer(alpha=0.6, beta=0.4, **settings)
    else:
        buffer = TensorDictReplayBuffer(**settings)
    chunk = tensors(work, FILL_ROWS)
    for _ in range(-(-work.capacity // FILL_ROWS)):
        buffer.extend(chunk.clone(False))
    return buffer


if __name__ == "__main__":
    serve(Torchrl())
