"""Row 11: each system call that takes a resource fails at its 1st, 2nd, 3rd ... time, until a run
does not meet it."""

from __future__ import annotations

import errno
import gc
import mmap
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import areplay
from areplay._shm import segment
from tests.processes import workers
from tests.processes.oracle import OWNER, SPEC, rows, torn
from tests.processes.watching import children, descriptors, until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

CALLS: dict[str, tuple[Any, str, int]] = {
    "memfd_create": (os, "memfd_create", errno.ENFILE),
    "fallocate": (os, "posix_fallocate", errno.ENOSPC),
    "mmap": (mmap, "mmap", errno.ENOMEM),
    "eventfd": (os, "eventfd", errno.EMFILE),
    "pidfd_open": (os, "pidfd_open", errno.EMFILE),
}


class Fails:
    """Stands in for a system call: fails at its n-th call, once or for ever."""

    def __init__(self, call: Callable[..., Any], nth: int, error: int, *, for_ever: bool) -> None:
        self._call, self._nth, self._error, self._for_ever = call, nth, error, for_ever
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self._nth or (self._for_ever and self.calls > self._nth):
            raise OSError(self._error, os.strerror(self._error))
        return self._call(*args, **kwargs)

    @property
    def has_failed(self) -> bool:
        """Whether the fault was met."""
        return self.calls >= self._nth


async def pipeline() -> None:
    """All that takes resources: rows, weights, priorities, a limiter, batches, an actor."""
    weights = areplay.Weights({"w": np.zeros(3)})
    try:
        async with areplay.Replay(SPEC, 1_000) as replay:
            await replay.extend(rows(OWNER, 1, 0, 100))
            async with (
                replay.batches(batch_size=8, selector=areplay.Prioritized(), prefetch=2) as batches,
                replay.actors(workers.hand_in, 1, args=(5,), weights=weights) as actors,
            ):
                assert torn(await anext(batches)) == 0
                await actors.wait()
    finally:
        weights.close()


def mappings() -> int:
    """How many of our memory files are mapped here."""
    with open("/proc/self/maps") as file:
        return sum("memfd:areplay" in line for line in file)


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_refused_call_is_a_typed_error_and_leaves_nothing(
    call: str, for_ever: bool
) -> None:
    """Whichever call of a whole pipeline is refused: one of our errors, which names it; as many
    descriptors, mappings and children as before; and right after it the same pipeline can be
    opened."""
    module, name, error_number = CALLS[call]
    met = 0
    for nth in range(1, 40):
        before, mapped, born = descriptors(), mappings(), children()
        failing = Fails(getattr(module, name), nth, error_number, for_ever=for_ever)
        with pytest.MonkeyPatch.context() as patch:
            if module is mmap:  # for segments only: others ask whether something is a `mmap.mmap`
                patch.setattr(segment, "mmap", SimpleNamespace(**vars(mmap) | {"mmap": failing}))
            else:
                patch.setattr(module, name, failing)
            try:
                await pipeline()
            except areplay.AreplayError as error:
                assert failing.has_failed
                assert os.strerror(error_number) in str(error), error
                del error
            else:
                assert not failing.has_failed, (
                    f"call {nth} of {name} was refused, and nobody said so"
                )
                break
        met += 1
        gc.collect()
        assert children() == born
        await until(
            lambda before=before: _new(before) == {}, within=5.0, what="descriptors as before"
        )
        assert mappings() <= mapped
    else:
        pytest.fail("the fault was met again and again")
    print(f"{name}: met at {met} places")
    assert met >= 2


def _new(before: dict[int, str]) -> dict[int, str]:
    gc.collect()
    return {fd: name for fd, name in descriptors().items() if before.get(fd) != name}
