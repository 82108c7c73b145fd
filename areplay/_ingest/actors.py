"""`Actors`: what the user sees of a group of actors."""

from __future__ import annotations

from types import TracebackType

from areplay._ingest.actor_group import ActorGroup
from areplay._ingest.reports import Report
from areplay.errors import ActorFailed
from areplay.statistics import ActorStatistics


class Actors:
    """A group of actors: an async context manager, made by `Replay.actors`. Leaving it stops them
    in order."""

    def __init__(self, group: ActorGroup) -> None:
        self._group = group

    async def __aenter__(self) -> Actors:
        """Start the actors; returns when all have said READY.

        Raises:
            MemoryLimitExceeded, DescriptorLimitExceeded, ResourceUnavailable: before any actor was
            started.
            ActorFailed: one could not be started. All others have been stopped.
        """
        await self._group.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the group.

        Raises:
            ActorFailed: with `on_failure="raise"`, if an actor failed for good and no other error
                leaves the context.
        """
        await self._group.leave(kind, error, trace)

    async def close(self) -> None:
        """Stop the actors and take all their rows; leaving the context does it. May be called
        twice.

        Cancelled: it is closed all the same, then the cancellation is delivered. In a process
        forked from the one that opened it, this returns at once and does nothing.
        """
        await self._group.close()

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, to the end."""
        return self._group.is_closed

    @property
    def is_open(self) -> bool:
        """Whether it has been entered, and not begun to close."""
        return self._group.is_open

    def reports(self) -> list[Report]:
        """What the actors reported since the last call, oldest first; at most the newest 10,000."""
        return self._group.take_reports()

    async def wait(self) -> None:
        """Wait until all actors have returned by themselves. Cancelled: nothing changed.

        Raises:
            ActorFailed: one of them failed for good; the others go on.
        """
        await self._group.wait()

    @property
    def alive(self) -> int:
        """How many actors are running, or being restarted."""
        return self._group.alive

    @property
    def failures(self) -> list[ActorFailed]:
        """The actors that failed for good, as the errors that tell why."""
        return self._group.failures

    def statistics(self) -> tuple[ActorStatistics, ...]:
        """One record an actor. From any thread."""
        return self._group.statistics()
