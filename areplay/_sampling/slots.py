"""Batch slots: fixed places in shared memory where samplers leave batches and the learner finds
them.

Rule: a slot has exactly one owner in every state but FREE, and changes state in the same statement
that chooses the owner. Slot k belongs to sampler `k % samplers` for its whole life, so each change
has one process that may make it, and plain aligned stores suffice. One more slot, behind those, may
be the learner's own: it goes from FREE to LENT and back, and is filled while it is LENT. Nothing
here waits, and nothing here knows what a batch means.

         lease(sampler)      publish(slot)       lend()          give_back(slot)
   FREE --------------> FILLING ----------> READY ------> LENT ------------------> FREE
             sampler    |          sampler        learner          learner         ^
                        +----------------------------------------------------------+
                          recover(sampler), by the learner's process, after the sampler's death

Shared words (int64):

    states[slot]         FREE, FILLING or LENT, written by the process that the drawing names. READY
                         is a FILLING slot in the queue.
    queue[sampler]       a ring of the slots that this sampler has filled, in order. Written by it
                         before `published`.
    published[sampler]   by that sampler: how many slots it has filled since the start, with all its
                         predecessors. One store makes a batch the learner's. What a sampler that
                         dies before that store leaves is a FILLING slot, until `recover`.
    taken[sampler]       by the learner: how many of them were lent.

All that the processes tell each other beside that is in `areplay._sampling.board`.
"""

from __future__ import annotations

import numpy as np

from areplay._base.debug import check_step, poison
from areplay._base.failpoints import failpoint
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.board import Board, board_words
from areplay._shm.doorbell import EventFd
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_view, int64_word
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay.items.item import BatchFields

FREE, FILLING, READY, LENT = range(4)
_STATE_LETTERS = "frRL"

_PICKLED = (
    "fields",
    "batch_size",
    "slots",
    "samplers",
    "in_turn",
    "has_own",
    "places",
    "_segment",
    "_events",
)
"""What a sampler's process is given; it makes its own views of it."""


class Slots:
    """The slots of one stream of batches. Pickles into a sampler that is being spawned.

    Args:
        fields: of a batch.
        slots: how many; at least one a sampler.
        in_turn: the learner takes one batch of each sampler after the other, also if it has to wait
            for the next one.
        has_own: there is one slot more, which the learner fills itself.

    Attributes:
        places: all slots, the learner's own included.
        next_sampler: the sampler whose batch the learner takes next, if `in_turn`; otherwise the
            one whose queue it looks at first.
        board: what the processes tell each other beside batches.
    """

    def __init__(
        self,
        fields: BatchFields,
        batch_size: int,
        slots: int,
        samplers: int,
        *,
        in_turn: bool = False,
        has_own: bool = False,
    ) -> None:
        assert slots >= samplers >= 1
        self.fields = fields
        self.batch_size = batch_size
        self.slots = slots
        self.samplers = samplers
        self.in_turn = in_turn
        self.has_own = has_own
        self.places = slots + has_own
        name = f"{self.places} slots for batches of {batch_size:,}"
        self._segment = Segment(self._layout(), name)
        self._events: list[EventFd] = []
        try:
            for whose in ("the learner's", *(f"sampler {k}'s" for k in range(samplers))):
                self._events.append(EventFd(f"{whose} doorbell"))
        except BaseException:
            self.close()
            raise
        self._view()

    def _layout(self) -> Layout:
        batch = (self.places, self.batch_size)
        columns = {
            f"field:{field.name}": ((*batch, *field.shape), field.dtype)
            for field in self.fields.stored.values()
        }
        return Layout(
            "slots",
            {
                "states": ((self.places,), np.int64),
                "queue": ((self.samplers, self.slots), np.int64),
                "published": ((self.samplers, WORDS_A_LINE), np.int64),
                "taken": ((self.samplers, WORDS_A_LINE), np.int64),
                "words": ((board_words(self.samplers), WORDS_A_LINE), np.int64),
                "indices": (batch, np.int64),
                "weights": (batch, np.float32),
                "probabilities": (batch, np.float64),
                **columns,
            },
        )

    def _view(self) -> None:
        """Make this process's views of the shared words and arrays."""
        arrays = self._segment.arrays
        samplers = range(self.samplers)
        self.board = Board(arrays["words"], self._events)
        self._states = int64_view(arrays["states"])
        self._queues = [int64_view(queue) for queue in arrays["queue"]]
        self._published = [int64_word(arrays["published"], k) for k in samplers]
        self._taken = [int64_word(arrays["taken"], k) for k in samplers]
        self._leased: set[int] = set()  # by this process
        self.next_sampler = 0
        self._batches = [
            BatchArrays(
                arrays["indices"][slot],
                arrays["weights"][slot],
                arrays["probabilities"][slot],
                {name: arrays[f"field:{name}"][slot] for name in self.fields.stored},
                self.fields,
            )
            for slot in range(self.places)
        ]

    @property
    def prefetch(self) -> int:
        """Slots that may hold ready batches, beside one for the learner and one a sampler."""
        return self.slots - self.samplers - 1

    def batch(self, slot: int) -> BatchArrays:
        """The memory of one slot, for its owner."""
        return self._batches[slot]

    # The sampler's side.

    def lease(self, sampler: int) -> int | None:
        """Lease a free slot of this sampler, FILLING from now on; `None` if it has no free slot or
        may not begin yet."""
        slot = self._free_slot(sampler)
        if slot is not None:
            self._states[slot] = FILLING
            self._leased.add(slot)
        return slot

    def can_lease(self, sampler: int) -> bool:
        """Whether `lease` would find a slot."""
        return self._free_slot(sampler) is not None

    def abandon(self, slot: int, rows_inserted: int = 0) -> None:
        """Return a leased slot unfilled, since no item can be made of the rows. Wakes a learner
        that waits.

        Args:
            rows_inserted: rows inserted since the start when the sampler began to search.
        """
        assert slot in self._leased, self
        self.board.note_fruitless(slot % self.samplers, rows_inserted)
        self._leased.remove(slot)
        self._states[slot] = FREE
        self.board.learner_bell.notify()

    def publish(self, slot: int, rows_redrawn: int = 0) -> None:
        """Pass a filled slot to the learner, and wake it if it sleeps."""
        assert slot in self._leased, self
        self._leased.remove(slot)
        sampler = slot % self.samplers
        number = self._published[sampler][0]
        self._queues[sampler][number % self.slots] = slot
        self.board.note_filled(sampler, rows_redrawn)
        failpoint("sampler.publish")
        order()
        self._published[sampler][0] = number + 1
        self.board.learner_bell.notify()

    def published(self, sampler: int) -> int:
        """Count the batches that a sampler has published since the start, with all its
        predecessors."""
        published: int = self._published[sampler][0]
        return published

    @property
    def all_published(self) -> int:
        """Batches that all samplers have published since the start."""
        return sum(map(self.published, range(self.samplers)))

    def taken(self, sampler: int) -> int:
        """Count the batches of a sampler that the learner has taken."""
        taken: int = self._taken[sampler][0]
        return taken

    # The learner's side.

    def lend(self) -> int | None:
        """Lend a READY slot to the learner, LENT from now on; `None` if no slot is ready.

        Slots of one sampler come in the order in which it filled them; the samplers take turns.
        """
        turns = 1 if self.in_turn else self.samplers
        for turn in range(self.next_sampler, self.next_sampler + turns):
            sampler = turn % self.samplers
            number = self._taken[sampler][0]
            if self._published[sampler][0] > number:
                order()
                slot: int = self._queues[sampler][number % self.slots]
                self._states[slot] = LENT
                self._taken[sampler][0] = number + 1
                self.next_sampler = (sampler + 1) % self.samplers
                check_step(self)
                return slot
        return None

    def lend_own(self) -> int | None:
        """Lend the learner its own slot to fill, LENT from now on; `None` if it has no such slot,
        or it is LENT already."""
        if not self.has_own or self._states[self.slots] != FREE:
            return None
        self._states[self.slots] = LENT
        return self.slots

    def give_back(self, slot: int) -> None:
        """Return a lent slot to its sampler, or the learner's own to the learner, and wake the
        sampler or learner that waits for it."""
        assert self._states[slot] == LENT, self
        poison(self._batches[slot])
        order()  # what was read from the slot, before it may be written again
        self._states[slot] = FREE
        if slot < self.slots:
            self.board.sampler_bells[slot % self.samplers].notify()
        else:
            self.board.learner_bell.notify()
        check_step(self)

    def recover(self, sampler: int) -> int:
        """Free the slots that a dead and reaped sampler was filling, and count them. Its ready
        batches stay."""
        states = self.states()
        torn = [
            slot for slot in range(sampler, self.slots, self.samplers) if states[slot] == FILLING
        ]
        for slot in torn:
            self._states[slot] = FREE
            self._leased.discard(slot)
        check_step(self)
        return len(torn)

    @property
    def size_bytes(self) -> int:
        """Shared memory of all slots."""
        return self._segment.size_bytes

    def count(self, state: int) -> int:
        """Count the slots in a state."""
        return self.states().count(state)

    def states(self) -> list[int]:
        """The state of each slot."""
        states = self._states.tolist()
        for queue, taken, published in zip(self._queues, self._taken, self._published, strict=True):
            for number in range(taken[0], published[0]):
                states[queue[number % self.slots]] = READY
        return states

    def close(self) -> None:
        """Give back all descriptors. The memory stays mapped for as long as a view of it lives."""
        self._segment.close()
        for event in self._events:
            event.close()

    def check(self) -> None:
        """Assert what must always hold. For the learner's process: a sampler may see slots in the
        middle of a step."""
        states = self.states()
        assert all(state in (FREE, FILLING, READY, LENT) for state in states), self
        for sampler in range(self.samplers):
            filling = [s for s in range(sampler, self.slots, self.samplers) if states[s] == FILLING]
            assert len(filling) <= 1, f"sampler {sampler} fills {filling} at once: {self}"

    def _free_slot(self, sampler: int) -> int | None:
        if self.board.is_open:
            for slot in range(sampler, self.slots, self.samplers):
                if self._states[slot] == FREE:
                    return slot
        return None

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in _PICKLED}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        states = "".join(_STATE_LETTERS[state] for state in self.states())
        return f"<Slots {states} ({self.count(READY)} ready, {self.count(LENT)} lent)>"
