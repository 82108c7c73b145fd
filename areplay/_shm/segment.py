"""Segments: shared memory that several processes map, and that ends with the last of them.

A segment is an anonymous memory file (memfd): it has no name that could leak, it does not count
against a container's small /dev/shm, and the kernel frees it with its last user, however that one
dies. It is sealed against resizing, so that no process can turn another's access into a SIGBUS, and
allocated in full before it is used, so that a lack of memory is an error here and not a kill later.

Each process maps it once. The mapping lives as long as a view into it does: `close` gives back the
descriptor only, and Python's mmap holds another one until then.

A forked child sees the memory as it is, at the same addresses, but its own stores go into private
copies of the pages: code that unwinds there, or writes to an array it has inherited, changes
nothing of the parent's.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from areplay._base import forks
from areplay._base.arrays import Array
from areplay._shm.layout import Layout
from areplay._shm.resource_limits import check_memory
from areplay.errors import Closed, ResourceUnavailable

logger = logging.getLogger(__name__)

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# What is allocated or touched at once: between two steps other threads run, and see progress.
_STEP_BYTES = 64 << 20
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_libc_mmap = ctypes.CDLL(None).mmap
_libc_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc_mmap.restype = ctypes.c_void_p


class Segment:
    """Shared memory of one layout: `arrays` maps each name of the layout to a view.

    Pickles into a child that is being spawned, which maps the same memory. Unpickling compares the
    layouts.

    Raises:
        MemoryLimitExceeded: it is larger than this process may take. Nothing was allocated.
        ResourceUnavailable: memfd_create, fallocate or mmap failed. Nothing is left allocated.
    """

    _is_creator = False  # the creator logs its birth and its end
    _descriptor = -1  # of a segment whose making failed

    def __init__(self, layout: Layout, what: str) -> None:
        check_memory(what, layout.sizes())
        self.layout = layout
        self.what = what
        self._descriptor = _create(layout.size_bytes, what)
        try:
            self._map()
        except BaseException:
            self.close()
            raise
        layout.write_header(memoryview(self._memory))
        self._is_creator = True
        logger.info("memory for %s allocated, %d bytes", what, layout.size_bytes)

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return self.layout.size_bytes

    @property
    def descriptor(self) -> int:
        """The memory file's descriptor, open until `close`."""
        forks.check(self._origin, self.what)
        if self._descriptor < 0:
            raise Closed(self.what)
        return self._descriptor

    def prefault(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Touch all pages now rather than at their first use, where that costs 0.3 to 1 GB/s.

        Takes seconds a few GB: call it off the loop. `progress(done_bytes, size_bytes)` is called
        after each step.
        """
        size = self.layout.size_bytes
        for start in range(0, size, _STEP_BYTES):
            length = min(_STEP_BYTES, size - start)
            try:
                self._memory.madvise(_MADV_POPULATE_WRITE, start, length)
            # An older kernel: read and write back one byte a page, which changes nothing.
            except OSError:
                for at in range(start, start + length, mmap.PAGESIZE):
                    self._memory[at] = self._memory[at]
            if progress is not None:
                progress(start + length, size)

    def close(self) -> None:
        """Give back the descriptor; the memory follows when the last view into it is gone.

        May be called twice.
        """
        descriptor = self._descriptor
        self._descriptor = -1
        if descriptor >= 0:
            os.close(descriptor)
            if self._is_creator:
                logger.info("memory for %s given up, gone with its last view", self.what)

    def _map(self) -> None:
        try:
            self._memory = mmap.mmap(self._descriptor, self.layout.size_bytes)
        except OSError as error:
            raise ResourceUnavailable("mmap", self.what, str(error)) from error
        self.arrays: dict[str, Array] = self.layout.arrays(memoryview(self._memory))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._origin = forks.current
        forks.register(self)

    def after_fork(self) -> None:
        """Map the memory privately, in the same place, and close the child's descriptor.

        Where the kernel refuses, as it does for large memory if it never overcommits, the mapping
        stays shared.
        """
        if self._descriptor >= 0:
            # Without a reservation: hardly any page will be written to.
            access, kind = (
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE,
            )
            _libc_mmap(self._address, self.layout.size_bytes, access, kind, self._descriptor, 0)
        self._is_creator = False
        self._descriptor = forks.close(self._descriptor)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.layout, self.what, reduction.DupFd(self.descriptor)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.layout, self.what, descriptor = state
        self._descriptor = descriptor.detach()
        self._map()
        self.layout.check_header(memoryview(self._memory))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # without a word: there may be no logging any more

    def __repr__(self) -> str:
        state = "closed" if self._descriptor < 0 else f"descriptor {self._descriptor}"
        return f"<Segment {self.what}: {self.layout.size_bytes:,} bytes, {state}>"


def _create(size_bytes: int, what: str) -> int:
    """The descriptor of a new memory file of that size, allocated and sealed."""
    call = "memfd_create"
    descriptor = -1
    try:
        descriptor = os.memfd_create("areplay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        call = "ftruncate"
        os.ftruncate(descriptor, size_bytes)
        call = "fallocate"
        # in steps: each lets go of the GIL and can be interrupted
        for start in range(0, size_bytes, _STEP_BYTES):
            os.posix_fallocate(descriptor, start, min(_STEP_BYTES, size_bytes - start))
        call = "fcntl(F_ADD_SEALS)"
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise ResourceUnavailable(call, what, str(error)) from error
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        raise
    return descriptor
