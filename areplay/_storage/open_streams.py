"""The streams that are being written, and the block that each of them has open.

All of it is written and read under the lock of the `areplay._storage.registry`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping


class OpenStreams:
    """The streams that have not ended.

    Attributes:
        places: for each stream the place of its open block, -1 if it has none.
        part_empty: of streams that ended and left their block in part empty, the index of the
            block's first row, and how many rows are empty; oldest first.
    """

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.part_empty: deque[tuple[int, int]] = deque()
        # Place -> stream: a ring may have a thousand streams, and pass one every 10 us.
        self._by_place: dict[int, int] = {}

    @property
    def open_places(self) -> Collection[int]:
        """The places of all open blocks."""
        return self._by_place.keys()

    def set_place(self, stream: int, place: int) -> None:
        """Note that the open block of a stream is in that place now; -1: it has none."""
        before = self.places.get(stream, -1)
        if before >= 0 and self._by_place.get(before) == stream:
            del self._by_place[before]
        self.places[stream] = place
        if place >= 0:
            self._by_place[place] = stream

    def end(self, stream: int) -> None:
        """Forget a stream, if it has not ended before."""
        if stream in self.places:
            self.set_place(stream, -1)
            del self.places[stream]

    def close_place(self, place: int) -> None:
        """Note that no stream goes on in the block in that place: the ring has passed it."""
        stream = self._by_place.get(place)
        if stream is not None:
            self.set_place(stream, -1)

    def have_room(self, besides: int | None) -> bool:
        """Whether a stream has an open block, apart from stream `besides`."""
        return bool(set(self._by_place.values()) - {besides})

    def move(self, places: Mapping[int, int]) -> None:
        """Note that blocks were split.

        Args:
            places: of each open block, and of the block in which its stream goes on.
        """
        self._by_place = {places[place]: stream for place, stream in self._by_place.items()}
        self.places = dict.fromkeys(self.places, -1)
        self.places |= {stream: place for place, stream in self._by_place.items()}
