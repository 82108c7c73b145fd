"""Every exception that areplay raises on its own behalf, in one tree under `AreplayError`.

Rule: the name says what happened, the sentence gives the values, the last clause gives the knob to
turn. The arguments of an error are its fields, so that it crosses a process boundary by pickling. A
wrong option at the door (a batch size of 0) is a `ValueError` or `TypeError`; a broken invariant is
an `assert`; everything else is one of these.
"""

from __future__ import annotations


class AreplayError(Exception):
    """Anything that areplay itself has to say."""


class SpecMismatch(AreplayError):
    """Data that does not fit the spec. Nothing of the call was stored."""

    def __init__(self, field: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(field, expected, got, remedy)
        self.field, self.expected, self.got, self.remedy = field, expected, got, remedy

    def __str__(self) -> str:
        return f"field {self.field!r}: expected {self.expected}, got {self.got}; {self.remedy}"


class MissingDependency(AreplayError):
    """Something needs a library that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, extra)
        self.feature, self.extra = feature, extra

    def __str__(self) -> str:
        return (
            f"{self.feature} needs a library that is not installed; "
            f"`pip install '.[{self.extra}]'` in a clone of areplay brings it"
        )


class MemoryLimitExceeded(AreplayError):
    """The memory asked for is more than this process may take. Nothing was allocated."""

    def __init__(
        self, what: str, needed_bytes: int, available_bytes: int, limit: str, parts: dict[str, int]
    ) -> None:
        super().__init__(what, needed_bytes, available_bytes, limit, parts)
        self.what, self.needed_bytes, self.available_bytes = what, needed_bytes, available_bytes
        self.limit, self.parts = limit, parts

    def __str__(self) -> str:
        lines = [f"{name}: {size:,} bytes" for name, size in self.parts.items()]
        return (
            f"{self.what} needs {self.needed_bytes:,} bytes, but {self.limit} leaves "
            f"{self.available_bytes:,}; lower capacity, batch_size, prefetch or inbox_rows, or "
            "raise that limit\n  " + "\n  ".join(lines)
        )


class DescriptorLimitExceeded(AreplayError):
    """Too few file descriptors are left for the children asked for. No child was started."""

    def __init__(self, what: str, needed: int, available: int, limit: int) -> None:
        super().__init__(what, needed, available, limit)
        self.what, self.needed, self.available, self.limit = what, needed, available, limit

    def __str__(self) -> str:
        return (
            f"{self.what} need {self.needed} file descriptors, but RLIMIT_NOFILE ({self.limit}) "
            f"leaves {self.available}; raise it with `ulimit -n`, or start fewer"
        )


class ResourceUnavailable(AreplayError):
    """The operating system refused a call. What the operation had taken so far was given back."""

    def __init__(self, call: str, what: str, reason: str) -> None:
        super().__init__(call, what, reason)
        self.call, self.what, self.reason = call, what, reason

    def __str__(self) -> str:
        return (
            f"{self.call} failed for {self.what}: {self.reason}; free some of it, or raise the "
            "limit it names"
        )


class LayoutMismatch(AreplayError):
    """Shared memory that another version of areplay, or another kind of object, has laid out."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected, self.got = expected, got

    def __str__(self) -> str:
        return (
            f"expected shared memory of {self.expected}, found {self.got}; use one areplay "
            "version in all processes"
        )


class Closed(AreplayError):
    """The object has been closed, by leaving its `async with` block or because its owner is
    gone."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is closed; use it inside its `async with` block"


class WrongProcess(AreplayError):
    """The object was opened by another process, from which this one was forked. Nothing was
    done."""

    def __init__(self, what: str, pid: int) -> None:
        super().__init__(what, pid)
        self.what, self.pid = what, pid

    def __str__(self) -> str:
        return (
            f"{self.what} was opened by process {self.pid} and is used in a process forked from "
            f"it; use it in process {self.pid}, start the worker with the 'spawn' method or before "
            "the replay is opened, or hand the data over by a channel of your own, such as a "
            "multiprocessing queue"
        )


class EndOfEpochs(AreplayError):
    """All epochs were delivered. A loop over the stream of batches just ends."""

    def __init__(self, epochs: str) -> None:
        super().__init__(epochs)
        self.epochs = epochs

    def __str__(self) -> str:
        return f"all batches of {self.epochs} were delivered; open another stream for more"


class BatchReleased(AreplayError):
    """A batch was read after its slot went back to the samplers."""

    def __str__(self) -> str:
        return (
            "this batch was released, its memory holds other rows by now; keep it with batch.copy()"
        )


class WaitTimeout(AreplayError):
    """A wait outlasted the timeout that the caller gave. Nothing was taken and nothing was handed
    over."""

    def __init__(self, reason: str, timeout_s: float, option: str = "timeout_s") -> None:
        super().__init__(reason, timeout_s, option)
        self.reason = reason
        self.timeout_s = timeout_s
        self.option = option

    def __str__(self) -> str:
        return (
            f"{self.reason}; gave up after {self.timeout_s:g} s, raise {self.option} to wait longer"
        )


class InboxFull(WaitTimeout):
    """The coordinator did not make room in an actor's inbox before the deadline. What waited was
    not handed over."""


class Stalled(AreplayError):
    """A wait that can never end: what it waits for is gone, or waits for the caller."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ChildFailed(AreplayError):
    """A child process ended in a way it should not have, more often than `max_restarts` allows.

    `exit_code` is negative for the signal that ended it, and None if it is unknown: the kernel does
    not tell where SIGCHLD is ignored, or where other code in this process collects it with
    `os.waitpid(-1)`.
    """

    def __init__(
        self, child: str, pid: int, exit_code: int | None, restarts: int, details: str
    ) -> None:
        super().__init__(child, pid, exit_code, restarts, details)
        self.child, self.pid, self.exit_code, self.restarts, self.details = (
            child,
            pid,
            exit_code,
            restarts,
            details,
        )

    def __str__(self) -> str:
        if self.exit_code is None:
            how = "exit code unknown"
        else:
            how = (
                f"killed by signal {-self.exit_code}"
                if self.exit_code < 0
                else f"exit code {self.exit_code}"
            )
        again = (
            f" after {self.restarts} restarts, as many as max_restarts allows"
            if self.restarts
            else ""
        )
        return (
            f"{self.child} (pid {self.pid}, {how}) failed{again}; mend the cause:\n{self.details}"
        )


class ActorFailed(ChildFailed):
    """An actor failed for good. The rows it had handed in are kept."""


class SamplerFailed(ChildFailed):
    """A sampler failed for good. Its slots have been given back."""


class WouldBlock(AreplayError):
    """The operation cannot be done at this moment, and the caller asked not to wait. Nothing was
    done."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; try again, or use the method that waits"


class StatusUnavailable(AreplayError):
    """A running replay cannot be looked at from outside. It does not notice."""

    def __init__(self, what: str, reason: str, remedy: str) -> None:
        super().__init__(what, reason, remedy)
        self.what, self.reason, self.remedy = what, reason, remedy

    def __str__(self) -> str:
        return f"{self.what} cannot be watched: {self.reason}; {self.remedy}"


class CheckpointMissing(AreplayError):
    """There is no checkpoint in that directory."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"there is no checkpoint in {self.path!r}; make one with `await replay.save(path)`"


class CheckpointDamaged(AreplayError):
    """A checkpoint is not as it was written. Nothing was loaded."""

    def __init__(self, path: str, file: str, what: str) -> None:
        super().__init__(path, file, what)
        self.path, self.file, self.what = path, file, what

    def __str__(self) -> str:
        return (
            f"the checkpoint in {self.path!r} is damaged: {self.file} {self.what}; load another one"
        )


class CheckpointMismatch(AreplayError):
    """A checkpoint is not what is expected: of another spec, or of a newer version. Nothing was
    loaded."""

    def __init__(self, path: str, differences: dict[str, str]) -> None:
        super().__init__(path, differences)
        self.path, self.differences = path, differences

    def __str__(self) -> str:
        lines = [f"{name}: {difference}" for name, difference in self.differences.items()]
        return (
            f"the checkpoint in {self.path!r} does not fit; load it with what it was saved with, "
            "or leave spec out\n  " + "\n  ".join(lines)
        )


class CheckpointFailed(AreplayError):
    """A checkpoint could not be written. The one before it, if there was one, is as it was."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"no checkpoint could be written into {self.path!r}: {self.reason}; free room there, "
            "or give another path"
        )


class CheckpointBusy(AreplayError):
    """A checkpoint is being written into that directory at this moment, here or elsewhere. Nothing
    was done."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"a checkpoint is being written into {self.path!r} at this moment; wait for it, or "
            "give another path"
        )
