"""Block locks: one descriptor, a million locks, each freed by the kernel when its holder dies.

Byte i of the memory file stands for block i, locked by open-file-description range locks
(`F_OFD_SETLK`). A lock that is not held costs nothing, neither memory nor a descriptor; taking and
giving back costs 1.3 us.

Rules: each process, and each thread that writes, makes its own `BlockLocks`, which opens a
description of its own; an inherited or passed descriptor shares its description and excludes no
other holder. Nothing here waits: a lock is had at once or not at all. Few are held at a time, since
the kernel walks a list of them.

A copy of the descriptor would keep locks alive after their holder died. So a forked child closes
its copy, and `close` unlocks first, for the sake of copies made by other means.

`holders[block]` names the process that took the block's lock last, for messages only. The process
that takes the lock writes it and never clears it: a dead owner leaves its old number there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from areplay._base import forks
from areplay._base.arrays import Array
from areplay.errors import ResourceUnavailable

_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, (padding), l_start, l_len, l_pid
_F_OFD_GETLK = 36
_F_OFD_SETLK = 37


class BlockLocks:
    """The locks of all blocks, as one process or thread sees them."""

    _descriptor = -1  # of locks whose making failed

    def __init__(self, descriptor: int, holders: Array) -> None:
        try:
            self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ResourceUnavailable("open", "the block locks", str(error)) from error
        self._holders = holders
        self._pid = os.getpid()
        self._origin = forks.current
        forks.register(self)

    def try_exclusive(self, block: int) -> bool:
        """Take the block for writing: False if another holder has it. Never take it twice."""
        return self._try(fcntl.F_WRLCK, block)

    def try_shared(self, block: int) -> bool:
        """Take the block for reading: `False` if a writer has it."""
        return self._try(fcntl.F_RDLCK, block)

    def has_writer(self, block: int) -> bool:
        """Whether another holder has the block for writing at this moment.

        Looks only, so that no writer has to pass by.
        """
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, block, 1, 0)
        found = fcntl.fcntl(self._descriptor, _F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def release(self, block: int) -> None:
        """Give the block back. Does nothing in a forked child, which has no locks."""
        if self._origin is not forks.current:
            return
        fcntl.fcntl(
            self._descriptor, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, block, 1, 0)
        )

    def holder(self, block: int) -> int:
        """Process id of the last holder of this block's lock, 0 before the first."""
        return int(self._holders[block])

    def close(self) -> None:
        """Give back everything held, and the descriptor. May be called twice."""
        descriptor = self._descriptor
        self._descriptor = -1
        if descriptor >= 0:
            all_blocks = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            try:
                fcntl.fcntl(descriptor, _F_OFD_SETLK, all_blocks)
            finally:
                os.close(descriptor)

    def after_fork(self) -> None:
        """Close the child's descriptor. No unlocking: that would unlock the parent's."""
        self._descriptor = forks.close(self._descriptor)

    def __del__(self) -> None:
        self.close()

    def _try(self, mode: int, block: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, _F_OFD_SETLK, _FLOCK.pack(mode, os.SEEK_SET, block, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._holders[block] = self._pid
        return True
