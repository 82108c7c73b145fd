"""The board: what the learner's process and the samplers of one stream tell each other, beside
batches.

Shared words (int64), one cache line each, in this order:

    gate                 by the learner's process: 0 until samplers may sample, then 1.
    stopping             by the learner's process: 1 when the samplers are to end.
    learner_sleep        by the learner: its doorbell, which samplers ring, and the learner itself
                         when it gives back its own slot.
    sampler_sleep[k]     by sampler k: its doorbell, which the learner's process rings.
    redrawn[k]           by sampler k: rows that it copied for nothing since its start.
    fruitless[k]         by sampler k: 0; or, if its last search found no item, 1 more than the rows
                         that had been inserted when it began to search.

Rule: each word has one writer, and one aligned store changes it. What a dead sampler leaves in its
words is true until its successor writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from areplay._base.arrays import Array
from areplay._shm.doorbell import Doorbell, EventFd
from areplay._shm.layout import int64_word

_OF_ALL = 3  # gate, stopping, learner_sleep
_OF_A_SAMPLER = 3  # sampler_sleep, redrawn, fruitless


def board_words(samplers: int) -> int:
    """How many words a stream with that many samplers has."""
    return _OF_ALL + _OF_A_SAMPLER * samplers


class Board:
    """A view of the board of one stream, in any of its processes.

    Args:
        words: (board_words(samplers), WORDS_A_LINE) int64.
        events: the learner's, then one for each sampler. Their owner closes them.
    """

    def __init__(self, words: Array, events: Sequence[EventFd]) -> None:
        samplers = len(events) - 1
        self._gate = int64_word(words, 0)
        self._stopping = int64_word(words, 1)
        self.learner_bell = Doorbell(events[0], int64_word(words, 2))
        sleeps, self._redrawn, self._fruitless = (
            [int64_word(words, _OF_ALL + kind * samplers + k) for k in range(samplers)]
            for kind in range(_OF_A_SAMPLER)
        )
        self.sampler_bells = [
            Doorbell(event, sleep) for event, sleep in zip(events[1:], sleeps, strict=True)
        ]

    # By the learner's process.

    def open_gate(self) -> None:
        """Let the samplers begin. They stay allowed."""
        self._gate[0] = 1
        self._ring_samplers()

    def stop(self) -> None:
        """Ask the samplers to end."""
        self._stopping[0] = 1
        self._ring_samplers()

    def wake_samplers(self) -> None:
        """Let samplers that sleep look again: there are new items."""
        for bell in self.sampler_bells:
            bell.notify()

    def _ring_samplers(self) -> None:
        # Whether they sleep or not: a sampler that does not sleep yet may have looked at the word.
        for bell in self.sampler_bells:
            bell.event.notify()

    # By samplers.

    def note_filled(self, sampler: int, rows_redrawn: int) -> None:
        """The sampler found items; it copied `rows_redrawn` rows for nothing since its start."""
        self._redrawn[sampler][0] = rows_redrawn
        self._fruitless[sampler][0] = 0

    def note_fruitless(self, sampler: int, rows_inserted: int) -> None:
        """The sampler found no item. `rows_inserted` rows had been inserted when it began to
        search."""
        self._fruitless[sampler][0] = rows_inserted + 1

    # In any process.

    @property
    def is_open(self) -> bool:
        """Whether the samplers may sample."""
        return bool(self._gate[0])

    @property
    def is_stopping(self) -> bool:
        """Whether the samplers are to end."""
        return bool(self._stopping[0])

    def redrawn(self, sampler: int) -> int:
        """Rows that a sampler copied for nothing, since its last start."""
        count: int = self._redrawn[sampler][0]
        return count

    @property
    def rows_redrawn(self) -> int:
        """Rows that the samplers copied for nothing, since their last start."""
        return sum(word[0] for word in self._redrawn)

    @property
    def found_no_items(self) -> bool:
        """Whether the last search of a sampler found no item."""
        return any(word[0] for word in self._fruitless)

    def found_no_items_since(self, rows_inserted: int) -> bool:
        """Whether the last search of each sampler found no item, and began when `rows_inserted`
        rows had been inserted."""
        return all(word[0] == rows_inserted + 1 for word in self._fruitless)
