"""Experience replay for one big machine: actors in subprocesses, rows in shared memory, a learner
that never waits.

In short::

    async with areplay.Replay(spec, capacity=100_000) as replay:
        async with replay.actors(explore, 4) as actors, replay.batches(batch_size=256) as batches:
            async for batch in batches:
                learn(batch["obs"], batch["action"], batch["reward"])
"""

from areplay._base.field import Field
from areplay._engine.periodic import Checkpoints
from areplay._ingest.actors import Actors
from areplay._ingest.reports import Report
from areplay._processes.runner import run
from areplay._storage.windows import Window, Windows
from areplay.actor import Actor
from areplay.batch import Batch
from areplay.batches import Batches
from areplay.errors import (
    ActorFailed,
    AreplayError,
    BatchReleased,
    CheckpointBusy,
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointMismatch,
    CheckpointMissing,
    ChildFailed,
    Closed,
    DescriptorLimitExceeded,
    EndOfEpochs,
    InboxFull,
    LayoutMismatch,
    MemoryLimitExceeded,
    MissingDependency,
    ResourceUnavailable,
    SamplerFailed,
    SpecMismatch,
    Stalled,
    StatusUnavailable,
    WaitTimeout,
    WouldBlock,
    WrongProcess,
)
from areplay.items.item import FieldView, Item
from areplay.items.rows import Rows
from areplay.items.sequences import Sequences
from areplay.items.transform import Transform
from areplay.items.transitions import Transitions
from areplay.limiters import MinSize, SamplesPerInsert
from areplay.replay import Replay
from areplay.selectors.epochs import Epochs
from areplay.selectors.fifo import Fifo
from areplay.selectors.prioritized import Prioritized
from areplay.selectors.selector import Selector
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec
from areplay.statistics import (
    ActorStatistics,
    BatchesStatistics,
    ChildExit,
    LimiterStatistics,
    PriorityUpdate,
    SamplerStatistics,
    SaveResult,
    SavesStatistics,
    Statistics,
    Wait,
)
from areplay.weights import Weights

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "ActorFailed",
    "ActorStatistics",
    "Actors",
    "AreplayError",
    "Batch",
    "BatchReleased",
    "Batches",
    "BatchesStatistics",
    "CheckpointBusy",
    "CheckpointDamaged",
    "CheckpointFailed",
    "CheckpointMismatch",
    "CheckpointMissing",
    "Checkpoints",
    "ChildExit",
    "ChildFailed",
    "Closed",
    "DescriptorLimitExceeded",
    "EndOfEpochs",
    "Epochs",
    "Field",
    "FieldView",
    "Fifo",
    "InboxFull",
    "Item",
    "LayoutMismatch",
    "LimiterStatistics",
    "MemoryLimitExceeded",
    "MinSize",
    "MissingDependency",
    "Prioritized",
    "PriorityUpdate",
    "Replay",
    "Report",
    "ResourceUnavailable",
    "Rows",
    "SamplerFailed",
    "SamplerStatistics",
    "SamplesPerInsert",
    "SaveResult",
    "SavesStatistics",
    "Selector",
    "Sequences",
    "Spec",
    "SpecMismatch",
    "Stalled",
    "Statistics",
    "StatusUnavailable",
    "Transform",
    "Transitions",
    "Uniform",
    "Wait",
    "WaitTimeout",
    "Weights",
    "Window",
    "Windows",
    "WouldBlock",
    "WrongProcess",
    "run",
]
