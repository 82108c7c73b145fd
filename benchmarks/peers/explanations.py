"""Why a peer is ahead, where it is: written by hand, by peer and work, and looked up when the page is made.

Keys are `(peer, work)`, with None for any; the most particular one that has the quantity is taken. Waits of a learner
that does nothing else are the batches each second the other way round, and have their explanation.
"""

from __future__ import annotations

from benchmarks.peers.protocol import FLAT

TWO_COPIES = (
    "areplay copies a row twice, into the inbox of its actor and from there into a block, so that it is safe once "
    "`add` has returned and no actor ever waits for a lock; here it is copied once, under a lock over the whole buffer."
)
IN_THREADS = (
    "areplay copies a row twice, and across processes; here the producer is a thread of the learner's process and "
    "copies once, under a lock, and could not step an environment at the same time."
)
IDLE_LEARNER = (
    "A learner that does nothing with a batch gives a queue no time to fill: it waits for the sampler, which takes "
    "twice as long for a batch of small rows while the learner runs on the other core ([figures](../figures.md)). The "
    "peer draws in the learner's own process and hands nothing over. With a training step in between it is the other "
    "way round."
)
LARGE_ROWS = (
    "A learner that does nothing with a batch gets them as fast as one process copies: the peer does it in the "
    "learner's own process. areplay's sampler fills sixteen places in turn, which do not stay in a cache (a bare "
    "`take` is slower by a third then, see [figures](../figures.md)), and shares the cores with a learner that only "
    "waits."
)
ONE_STEP = "The longest of some thousand steps: one late wake-up, of five processes on two cores, decides it."

EXPLANATIONS: dict[tuple[str | None, str | None], dict[str, str]] = {
    ("cpprb", None): {"rows_per_s": TWO_COPIES, "batches_per_s": LARGE_ROWS},
    ("cpprb", "cartpole"): {"batches_per_s": IDLE_LEARNER},
    ("stable_baselines3", None): {"rows_per_s": IN_THREADS},
    ("flashbax", None): {"rows_per_s": IN_THREADS, "batches_per_s": LARGE_ROWS},
    ("rlpyt", None): {"rows_per_s": TWO_COPIES, "batches_per_s": LARGE_ROWS},
    ("rlpyt", "cartpole"): {"batches_per_s": IDLE_LEARNER},
    (None, None): {
        "max_us": ONE_STEP,
        "memory_bytes": "areplay keeps a queue of ready batches, and a process for the sampler and for each actor.",
        "cpu_s_per_million_rows": "Handing a batch or a row over to another process costs wake-ups that a call "
        "within a process does not; they buy that nobody waits for anybody.",
    },
}


def explanation(peer: str, work: str, mode: str, quantity: str) -> str:
    """Why; empty when nobody has found out yet."""
    if mode == FLAT and quantity.endswith("_us"):
        quantity = "batches_per_s"
    for key in ((peer, work), (peer, None), (None, work), (None, None)):
        if quantity in EXPLANATIONS.get(key, {}):
            return EXPLANATIONS[key][quantity]
    return ""
