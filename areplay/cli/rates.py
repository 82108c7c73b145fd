"""Rates between two answers of a running replay, over the replay's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]

_LEAST_S = 1e-9
_NEW_STREAM: Answer = {"batches_delivered": 0, "learner_waited_s": 0.0, "samplers": []}


def rates(now: Answer, before: Answer) -> Answer:
    """Rates of the whole replay, of each actor and of each stream of batches, ready for JSON."""
    return _Interval(now, before).rates()


@dataclass(frozen=True)
class _Interval:
    """Two answers; what was not in the earlier one counts as if it had begun at 0."""

    now: Answer
    before: Answer

    def rates(self) -> Answer:
        statistics = self.now["statistics"]
        earlier = self.before["statistics"]
        rows = {(actor["group"], actor["index"]): actor["rows"] for actor in earlier["actors"]}
        streams = {stream["number"]: stream for stream in earlier["batches"]}
        return {
            "seconds": self.seconds,
            "rows_per_s": self.per_s(statistics["rows_inserted"], earlier["rows_inserted"]),
            "actors": [self.of_actor(actor, rows) for actor in statistics["actors"]],
            "batches": [
                self.of_stream(stream, streams.get(stream["number"], _NEW_STREAM))
                for stream in statistics["batches"]
            ],
        }

    @property
    def seconds(self) -> float:
        passed: float = self.now["uptime_s"] - self.before["uptime_s"]
        return max(passed, _LEAST_S)

    def per_s(self, count: float, earlier: float) -> float:
        """A rate, which is never negative: the two answers may come in the wrong order."""
        return max(0.0, count - earlier) / self.seconds

    def of_actor(self, actor: Answer, rows: dict[tuple[int, int], int]) -> Answer:
        place = (actor["group"], actor["index"])
        rows_per_s = self.per_s(actor["rows"], rows.get(place, 0))
        return {"group": actor["group"], "index": actor["index"], "rows_per_s": rows_per_s}

    def of_stream(self, stream: Answer, earlier: Answer) -> Answer:
        filled = {sampler["index"]: sampler["batches_filled"] for sampler in earlier["samplers"]}
        batches_per_s = self.per_s(stream["batches_delivered"], earlier["batches_delivered"])
        waiting_share = self.per_s(stream["learner_waited_s"], earlier["learner_waited_s"])
        return {
            "number": stream["number"],
            "batches_per_s": batches_per_s,
            "items_per_s": batches_per_s * stream["batch_size"],
            "waiting_share": min(1.0, waiting_share),
            "samplers": [self.of_sampler(sampler, filled) for sampler in stream["samplers"]],
        }

    def of_sampler(self, sampler: Answer, filled: dict[int, int]) -> Answer:
        batches_per_s = self.per_s(sampler["batches_filled"], filled.get(sampler["index"], 0))
        return {"index": sampler["index"], "batches_per_s": batches_per_s}
