"""The samplers as the learner's process sees them: how far they are, and what keeps them."""

from __future__ import annotations

from areplay._processes.supervisor import Supervisor
from areplay._processes.worker import Worker
from areplay._sampling.slots import Slots
from areplay.statistics import SamplerStatistics


def sampler_statistics(supervisor: Supervisor, slots: Slots) -> tuple[SamplerStatistics, ...]:
    """One record a sampler. From any thread."""
    return tuple(_record(worker, slots) for worker in supervisor.workers)


def _record(worker: Worker, slots: Slots) -> SamplerStatistics:
    # In this order: a sampler may publish between the two looks, and `ready` is never below 0.
    taken = slots.taken(worker.index)
    filled = slots.published(worker.index)
    return SamplerStatistics(
        index=worker.index,
        pid=worker.child.pid if worker.child is not None else 0,
        is_alive=worker.is_alive,
        restarts=worker.restarts,
        has_finished=worker.has_finished,
        has_failed=worker.failure is not None,
        last_failure=worker.last_failure,
        batches_filled=filled,
        ready=filled - taken,
        rows_redrawn=slots.board.redrawn(worker.index),
    )


def why_unfilled(supervisor: Supervisor, slots: Slots, batch: str = "") -> str:
    """Say why no batch is ready: how far the samplers are, and which of them are stopped.

    Args:
        batch: the next batch, if one certain sampler has to fill it.
    """
    state = f"{slots!r}, {supervisor.alive} of {slots.samplers} samplers alive"
    if batch:
        worker = supervisor.workers[slots.next_sampler]
        return f"{worker.described('sampler')} has not filled {batch}; {state}"
    stopped = [worker.described("sampler") for worker in supervisor.workers if worker.is_stopped]
    return ", ".join([state, *stopped])
