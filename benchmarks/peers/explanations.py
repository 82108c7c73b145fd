"""Why a peer is ahead, where it is: written by hand, by peer and work, and looked up when the page
is made.

Keys are `(peer, work)`, with None for any; the most particular one that has the quantity is taken.
Waits of a learner that does nothing else are quantities of their own, `flat_us`.
"""

from __future__ import annotations

from benchmarks.peers.protocol import FLAT

TWO_COPIES = (
    "areplay copies a row twice, into the inbox of its actor and from there into a block, so that "
    "it is safe once `add` has returned and no actor ever waits for a lock; here it is copied "
    "once, under a lock over the whole buffer."
)
IN_THREADS = (
    "areplay copies a row twice, and across processes; here the producer is a thread of the "
    "learner's process and copies once, under a lock, and could not step an environment at the "
    "same time."
)
SMALL_ROWS = (
    "With rows so small numpy's calls take the time, not the copies. The peer makes some eight of "
    "them for a batch, in the learner's process. areplay makes some twenty: it checks that each "
    "row is whole, keeps indices, probabilities and weights, and hands the batch over. It has two "
    "processes for it, which share the cores with the producers."
)
TWO_KINDS = (
    "A learner that does nothing else finds some batches ready, within some 15 us, and fills the "
    "others itself, which takes a whole copy: its waits are of two kinds, and the longer kind is "
    "longer than that of a peer whose waits are all alike, though the mean, which is what "
    "batches/s says, mostly is not. Of small rows the longest hundredth are those for which it "
    "drew eight batches at once (0.1 to 0.2 ms), and while rows come in those for which the "
    "coordinator's thread had the interpreter lock (0.3 to 0.6 ms). To draw fewer at once does not "
    "shorten the latter, and costs batches (decision 009). With large rows it was not looked into "
    "further."
)
ONE_STEP = (
    "The longest of some thousand steps: one late wake-up, of five processes on two cores, "
    "decides it."
)

EXPLANATIONS: dict[tuple[str | None, str | None], dict[str, str]] = {
    ("cpprb", None): {"rows_per_s": TWO_COPIES},
    ("stable_baselines3", None): {"rows_per_s": IN_THREADS},
    ("flashbax", None): {"rows_per_s": IN_THREADS},
    ("rlpyt", None): {"rows_per_s": TWO_COPIES},
    (None, "cartpole"): {"batches_per_s": SMALL_ROWS},
    (None, None): {
        "max_us": ONE_STEP,
        "flat_us": TWO_KINDS,
        "memory_bytes": "areplay keeps a queue of ready batches, and a process for the sampler and "
        "for each actor.",
        "cpu_s_per_million_rows": "Handing a batch or a row over to another process costs wake-ups "
        "that a call within a process does not; they buy that nobody waits for anybody.",
    },
}


def explanation(peer: str, work: str, mode: str, quantity: str) -> str:
    """Why; empty when nobody has found out yet."""
    if mode == FLAT and quantity.endswith("_us"):
        quantity = "flat_us"
    for key in ((peer, work), (peer, None), (None, work), (None, None)):
        if quantity in EXPLANATIONS.get(key, {}):
            return EXPLANATIONS[key][quantity]
    return ""
