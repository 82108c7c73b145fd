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

    states[slot]     FREE, FILLING or LENT, written by whom the drawing names. READY is a FILLING
                     slot in the queue.
    queue[sampler]   a ring of the slots that this sampler has filled, in order. Written by it
                     before `published`.
    published[sampler]   how many that were since the start, by the sampler: one store makes a batch
                         the learner's. What a sampler that dies before that store leaves is a
                         FILLING slot, until `recover`.
    taken[sampler]       how many of them were lent, by the learner.
    redrawn[sampler]       by that sampler: items copied in vain since its start.
    fruitless[sampler]     by that sampler: 0, or, if it found no item in the rows when it looked
                           last, 1 more than the
                         number of rows that had been inserted when it began to look.
    learner_sleep          by the learner: its doorbell, rung by samplers, and by itself for its own
                           slot.
    sampler_sleep[sampler] by that sampler: its doorbell, rung by the learner's process.
    gate             by the learner's process: 0 until sampling may begin, then 1.
    stopping         by the learner's process: 1 when the samplers are to end.
"""

from __future__ import annotations

import numpy as np

from areplay._base.debug import check_step, poison
from areplay._base.failpoints import failpoint
from areplay._sampling.batch_memory import BatchArrays
from areplay._shm.doorbell import Doorbell, EventFd
from areplay._shm.layout import WORDS_A_LINE, Layout, int64_view, int64_word
from areplay._shm.memory_order import order
from areplay._shm.segment import Segment
from areplay.items.item import BatchFields

FREE, FILLING, READY, LENT = range(4)
_STATE_LETTERS = "frRL"


class Slots:
    """The slots of one stream of batches. Pickles into a sampler that is being spawned.

    Args:
        fields: of a batch.
        slots: how many; at least one a sampler.
        in_turn: the learner takes one batch of each sampler after the other, also if the next one
            has to be waited for.
        has_own: there is one slot more, which the learner fills itself.
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
        self.fields, self.batch_size, self.slots, self.samplers = (
            fields,
            batch_size,
            slots,
            samplers,
        )
        self.in_turn, self.has_own = in_turn, has_own
        places = slots + has_own
        columns = {
            f"field:{f.name}": ((places, batch_size, *f.shape), f.dtype)
            for f in fields.stored.values()
        }
        layout = Layout(
            "slots",
            {
                "states": ((places,), np.int64),
                "queue": ((samplers, slots), np.int64),
                "words": ((3 + 5 * samplers, WORDS_A_LINE), np.int64),
                "indices": ((places, batch_size), np.int64),
                "weights": ((places, batch_size), np.float32),
                "probabilities": ((places, batch_size), np.float64),
                **columns,
            },
        )
        self._segment = Segment(layout, f"{places} slots for batches of {batch_size:,}")
        self._events: list[EventFd] = []
        try:
            for whose in ("the learner's", *(f"sampler {k}'s" for k in range(samplers))):
                self._events.append(EventFd(f"{whose} doorbell"))
        except BaseException:
            self.close()
            raise
        self._view()

    def _view(self) -> None:
        arrays = self._segment.arrays
        words = arrays["words"]
        self._states = int64_view(arrays["states"])
        self._queues = [int64_view(queue) for queue in arrays["queue"]]
        self._leased: set[int] = set()  # by this process
        self._next_sampler = 0  # whose queue the learner looks at first
        self._gate, self._stopping = int64_word(words, 0), int64_word(words, 1)
        self._redrawn, self._published, self._taken, self._fruitless = (
            [int64_word(words, 3 + kind * self.samplers + k) for k in range(self.samplers)]
            for kind in (1, 2, 3, 4)
        )
        self.learner_bell = Doorbell(self._events[0], int64_word(words, 2))
        self.sampler_bells = [
            Doorbell(event, int64_word(words, 3 + k)) for k, event in enumerate(self._events[1:])
        ]
        self._batches = [
            BatchArrays(
                arrays["indices"][slot],
                arrays["weights"][slot],
                arrays["probabilities"][slot],
                {name: arrays[f"field:{name}"][slot] for name in self.fields.stored},
                self.fields,
            )
            for slot in range(self.slots + self.has_own)
        ]

    def batch(self, slot: int) -> BatchArrays:
        """The memory of one slot, for its owner."""
        return self._batches[slot]

    # The sampler's side.

    def lease(self, sampler: int) -> int | None:
        """A free slot of this sampler, now FILLING and its own; `None` if it has none or may not
        begin yet."""
        slot = self._free_slot(sampler)
        if slot is not None:
            self._states[slot] = FILLING
            self._leased.add(slot)
        return slot

    def can_lease(self, sampler: int) -> bool:
        """Whether `lease` would find a slot."""
        return self._free_slot(sampler) is not None

    def abandon(self, slot: int, rows_inserted: int = 0) -> None:
        """Return a leased slot unfilled: no item can be made of the rows that are there. Tells a
        waiting learner.

        Args:
            rows_inserted: how many there had been since the start when the sampler began to look.
        """
        assert slot in self._leased, self
        self._fruitless[slot % self.samplers][0] = rows_inserted + 1
        self._leased.remove(slot)
        self._states[slot] = FREE
        self.learner_bell.notify()

    def publish(self, slot: int, rows_redrawn: int = 0) -> None:
        """Pass a filled slot to the learner, and wake it if it sleeps."""
        assert slot in self._leased, self
        self._leased.remove(slot)
        sampler = slot % self.samplers
        number = self._published[sampler][0]
        self._queues[sampler][number % self.slots] = slot
        self._redrawn[sampler][0], self._fruitless[sampler][0] = rows_redrawn, 0
        failpoint("sampler.publish")
        order()
        self._published[sampler][0] = number + 1
        self.learner_bell.notify()

    def published(self, sampler: int) -> int:
        """How many batches that sampler has published since the start, with all its
        predecessors."""
        published: int = self._published[sampler][0]
        return published

    @property
    def all_published(self) -> int:
        """How many batches all samplers have published since the start."""
        return sum(map(self.published, range(self.samplers)))

    def taken(self, sampler: int) -> int:
        """How many of them the learner has taken."""
        taken: int = self._taken[sampler][0]
        return taken

    @property
    def is_stopping(self) -> bool:
        """Whether the samplers are to end."""
        return bool(self._stopping[0])

    # The learner's side.

    def lend(self) -> int | None:
        """A READY slot, now LENT and the learner's; `None` if none is ready.

        Of one sampler they come in the order in which they were filled; the samplers take turns.
        """
        turns = 1 if self.in_turn else self.samplers
        for turn in range(self._next_sampler, self._next_sampler + turns):
            sampler = turn % self.samplers
            number = self._taken[sampler][0]
            if self._published[sampler][0] > number:
                order()
                slot: int = self._queues[sampler][number % self.slots]
                self._states[slot] = LENT
                self._taken[sampler][0] = number + 1
                self._next_sampler = (sampler + 1) % self.samplers
                check_step(self)
                return slot
        return None

    def lend_own(self) -> int | None:
        """The learner's own slot, now LENT, for it to fill; `None` if there is none, or it is LENT
        already."""
        if not self.has_own or self._states[self.slots] != FREE:
            return None
        self._states[self.slots] = LENT
        return self.slots

    def give_back(self, slot: int) -> None:
        """Return a lent slot to its sampler, the learner's own to the learner, and wake whoever
        waits for it."""
        assert self._states[slot] == LENT, self
        poison(self._batches[slot])
        order()  # what was read from the slot, before it may be written again
        self._states[slot] = FREE
        bell = self.sampler_bells[slot % self.samplers] if slot < self.slots else self.learner_bell
        bell.notify()
        check_step(self)

    def recover(self, sampler: int) -> int:
        """Free the slots that a sampler, dead and reaped, was filling; how many. Its ready batches
        stay."""
        states = self.states()
        torn = [
            slot for slot in range(sampler, self.slots, self.samplers) if states[slot] == FILLING
        ]
        for slot in torn:
            self._states[slot] = FREE
            self._leased.discard(slot)
        check_step(self)
        return len(torn)

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

    @property
    def next_sampler(self) -> int:
        """Whose batch the learner takes next, `in_turn`; else whose it looks at first."""
        return self._next_sampler

    @property
    def is_open(self) -> bool:
        """Whether the samplers may sample."""
        return bool(self._gate[0])

    def redrawn(self, sampler: int) -> int:
        """Rows that that sampler copied in vain, since its last start."""
        count: int = self._redrawn[sampler][0]
        return count

    @property
    def rows_redrawn(self) -> int:
        """Rows that the samplers copied in vain, since their last start."""
        return sum(map(self.redrawn, range(self.samplers)))

    @property
    def size_bytes(self) -> int:
        """Of all slots."""
        return self._segment.size_bytes

    @property
    def found_no_items(self) -> bool:
        """Whether a sampler found no item in the rows when it looked last."""
        return any(word[0] for word in self._fruitless)

    def found_no_items_since(self, rows_inserted: int) -> bool:
        """Whether every sampler found no item although so many rows had been inserted when it
        looked."""
        return all(word[0] == rows_inserted + 1 for word in self._fruitless)

    def count(self, state: int) -> int:
        """How many slots are in that state."""
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
        """Assert what must always hold. By the learner's process: a sampler may see slots in the
        middle of a step."""
        states = self.states()
        assert all(state in (FREE, FILLING, READY, LENT) for state in states), self
        for sampler in range(self.samplers):
            filling = [s for s in range(sampler, self.slots, self.samplers) if states[s] == FILLING]
            assert len(filling) <= 1, f"sampler {sampler} fills {filling} at once: {self}"

    def _free_slot(self, sampler: int) -> int | None:
        if self._gate[0]:
            for slot in range(sampler, self.slots, self.samplers):
                if self._states[slot] == FREE:
                    return slot
        return None

    def _ring_samplers(self) -> None:
        for event in self._events[1:]:
            event.notify()

    def __getstate__(self) -> dict[str, object]:
        kept = (
            "fields",
            "batch_size",
            "slots",
            "samplers",
            "in_turn",
            "has_own",
            "_segment",
            "_events",
        )
        return {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._view()

    def __repr__(self) -> str:
        states = "".join(_STATE_LETTERS[state] for state in self.states())
        return f"<Slots {states} ({self.count(READY)} ready, {self.count(LENT)} lent)>"
