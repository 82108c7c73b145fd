"""Why a peer is ahead, where it is: written by hand, by peer and work, and looked up when the page is made.

Keys are `(peer, work)`, with None for any; the most particular one that has the quantity is taken.
"""

from __future__ import annotations

TWO_COPIES = (
    "areplay copies a row twice, into the inbox of its actor and from there into a block, so that it is safe once "
    "`add` has returned and no actor ever waits for a lock; here it is copied once, under a lock over the whole buffer."
)
IN_THREADS = (
    "areplay copies a row twice, and across processes; here the producer is a thread of the learner's process and "
    "copies once, under a lock, and could not step an environment at the same time."
)

EXPLANATIONS: dict[tuple[str | None, str | None], dict[str, str]] = {
    ("cpprb", None): {"rows_per_s": TWO_COPIES},
    ("stable_baselines3", None): {"rows_per_s": IN_THREADS},
    ("flashbax", None): {"rows_per_s": IN_THREADS},
    (None, None): {
        "memory_bytes": "areplay keeps a queue of ready batches, and a process for the sampler and for each actor.",
        "cpu_s_per_million_rows": "Handing a batch or a row over to another process costs wake-ups that a call "
        "within a process does not; they buy that nobody waits for anybody.",
    },
}


def explanation(peer: str, work: str, quantity: str) -> str:
    """Why; empty when nobody has found out yet."""
    for key in ((peer, work), (peer, None), (None, work), (None, None)):
        if quantity in EXPLANATIONS.get(key, {}):
            return EXPLANATIONS[key][quantity]
    return ""
