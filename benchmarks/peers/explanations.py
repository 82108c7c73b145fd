"""Why a peer is ahead, where it is: written by hand, by peer and work, and looked up when the table is made.

Keys are `(peer, work)`, with None for any work; the most particular one that has the quantity is taken.
"""

from __future__ import annotations

EXPLANATIONS: dict[tuple[str | None, str | None], dict[str, str]] = {}


def explanation(peer: str, work: str, quantity: str) -> str:
    """Why; empty when nobody has found out yet."""
    for key in ((peer, work), (peer, None), (None, work), (None, None)):
        if quantity in EXPLANATIONS.get(key, {}):
            return EXPLANATIONS[key][quantity]
    return ""
