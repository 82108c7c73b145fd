"""The oracle of items: episodes as plain Python lists, and what each item of them must be, slowly
and obviously.

An environment here counts: every observation, action, reward and extra of a test is made of a
number that occurs once, so whatever is mixed up is seen. The oracle keeps what each environment
did, in *lanes*: the episodes of one environment of one stream, in order. Nothing here knows how
areplay stores a row; of a ring it asks only which rows are there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]  # field name -> a number, or lists of numbers
Item = dict[str, Any]


@dataclass
class Episode:
    """What was handed in of one episode: the observation, and the step from there, of each time.

    Attributes:
        names: the index of the row of each observation; None for one that was not returned.
        observations: one for each step, and if it ended and that is known already, the final one.
        steps: action, reward and extras.
        begins: False if rows got lost before the first one here, so that nobody knows what came
            before.
    """

    names: list[int | None] = field(default_factory=list)
    observations: list[Values] = field(default_factory=list)
    steps: list[Values] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    begins: bool = True

    @property
    def ended(self) -> bool:
        """Whether its last step was the last one of the episode."""
        return self.terminated or self.truncated


Lane = list[Episode]


@dataclass(frozen=True)
class Stack:
    """Which observation fields are stacked how often, and how what came before the first frame
    looks."""

    counts: dict[str, int] = field(default_factory=dict)
    pad: str = "first"

    @property
    def back(self) -> int:
        """How many earlier frames are needed."""
        return max(self.counts.values(), default=1) - 1

    def frames(self, episode: Episode, at: int) -> Values:
        """The observation at that time, stacked, oldest frame first; zero after the episode's
        end."""
        found: Values = {}
        for name, first in episode.observations[0].items():
            known = [observation[name] for observation in episode.observations]
            before = first if self.pad == "first" else zeros(first)
            times = range(at - self.counts.get(name, 1) + 1, at + 1)
            frames = [
                before if t < 0 else known[t] if t < len(known) else zeros(first) for t in times
            ]
            found[name] = frames if name in self.counts else frames[0]
        return found

    def first_needed(self, episode: Episode, at: int) -> int | None:
        """The first time of which a row is needed for the frames at that time; None if it got
        lost."""
        if at >= self.back:
            return at - self.back
        return 0 if episode.begins else None


def zeros(value: Any) -> Any:
    """The same shape, filled with zeros."""
    return [zeros(inner) for inner in value] if isinstance(value, list) else type(value)(0)


class Oracle:
    """All lanes, and which rows are there."""

    def __init__(self, lanes: Sequence[Lane], present: Set[int | None]) -> None:
        self._lanes, self.present = lanes, present

    def _episodes(self) -> Iterator[Episode]:
        return itertools.chain.from_iterable(self._lanes)

    def _all_there(self, episode: Episode, first: int | None, last: int) -> bool:
        """Whether the rows from the `first` to the `last` time were handed in, and none of them is
        overwritten."""
        if first is None or last >= len(episode.observations):
            return False
        return all(name in self.present for name in episode.names[first : last + 1])

    def transitions(self, n_step: int, gamma: float, stack: Stack) -> dict[int, Item]:
        """Every valid n-step transition, by the index of its first step."""
        found: dict[int, Item] = {}
        for episode in self._episodes():
            for at in range(len(episode.steps)):
                n = min(n_step, len(episode.steps) - at) if episode.ended else n_step
                if not self._all_there(episode, stack.first_needed(episode, at), at + n):
                    continue
                is_last = at + n == len(episode.steps) and episode.ended
                item = {**stack.frames(episode, at), **episode.steps[at]}
                item |= {
                    f"next_{name}": value for name, value in stack.frames(episode, at + n).items()
                }
                item["reward"] = sum(gamma**k * episode.steps[at + k]["reward"] for k in range(n))
                item["terminated"] = is_last and episode.terminated
                item["truncated"] = is_last and episode.truncated
                item["discount"] = 0.0 if item["terminated"] else gamma**n
                item["n"] = n
                found[named(episode, at)] = item
        return found

    def sequences(
        self,
        length: int,
        burn_in: int,
        period: int,
        stack: Stack,
        first_step_only: Sequence[str] = (),
    ) -> dict[int, Item]:
        """Every valid sequence within an episode, by the index of its first step."""
        found: dict[int, Item] = {}
        for episode in self._episodes():
            for at in range(0, len(episode.steps), period):
                steps = min(length, len(episode.steps) - at)
                if steps < length and not episode.ended:
                    continue  # it goes on, or its actor died
                # with the final observation, if that is in it
                last = at + steps if steps < length else at + steps - 1
                if steps <= burn_in or not self._all_there(
                    episode, stack.first_needed(episode, at), last
                ):
                    continue
                times: list[Item] = [
                    time_step(episode, at + k, k >= burn_in, stack) for k in range(steps)
                ]
                nothing = {name: zeros(value) for name, value in times[0].items()}
                times += [nothing | stack.frames(episode, at + k) for k in range(steps, length)]
                found[named(episode, at)] = in_columns(times, first_step_only)
        return found

    def sequences_across(
        self,
        length: int,
        burn_in: int,
        period: int,
        stack: Stack,
        first_step_only: Sequence[str] = (),
    ) -> dict[int, Item]:
        """Every valid sequence that goes on with the next episode, by the index of its first
        step."""
        found: dict[int, Item] = {}
        for lane in self._lanes:
            for which, episode in enumerate(lane):
                for at in range(0, len(episode.steps), period):
                    places = list(itertools.islice(onward(lane, which, at), length))
                    if len(places) < length or not self._all_there(
                        episode, stack.first_needed(episode, at), at
                    ):
                        continue
                    if not all(self._all_there(where, time, time) for where, time in places):
                        continue
                    times = [
                        time_step(where, time, k >= burn_in, stack)
                        for k, (where, time) in enumerate(places)
                    ]
                    found[named(episode, at)] = in_columns(times, first_step_only)
        return found

    def windows(
        self, back: int, forward: int, period: int = 1, min_steps: int = 1, across: bool = False
    ) -> dict[int, Item]:
        """Every valid window of so many rows, by the index of the step in it: what
        `areplay.Windows` says of it, and the names of its rows."""
        found: dict[int, Item] = {}
        needs = Stack({"any": back + 1})
        for lane in self._lanes:
            for which, episode in enumerate(lane):
                for at in range(0, len(episode.steps), period):
                    # with its final observation
                    ends = episode.ended and at + forward >= len(episode.steps)
                    rows = [(episode, time) for time in range(at, len(episode.observations))][
                        : forward + 1
                    ]
                    if across:
                        rows, ends = (
                            list(itertools.islice(onward(lane, which, at), forward + 1)),
                            False,
                        )
                    if ends and (len(rows) < min_steps + 1 or rows[-1][1] < len(episode.steps)):
                        continue
                    if not ends and len(rows) < forward + 1:
                        continue
                    if not self._all_there(episode, needs.first_needed(episode, at), at):
                        continue
                    if not all(self._all_there(where, time, time) for where, time in rows):
                        continue
                    behind = min(at, back)
                    before = [(episode, max(time, 0)) for time in range(at - back, at)]
                    after = rows + rows[-1:] * (forward + 1 - len(rows))
                    item: Item = {
                        "behind": behind,
                        "ahead": len(rows) - 1,
                        "steps": len(rows) - ends,
                    }
                    for name in episode.observations[at]:
                        item[name] = [
                            where.observations[time][name] for where, time in before + after
                        ]
                    item["names"] = {where.names[time] for where, time in before + rows}
                    found[named(episode, at)] = item
        return found

    def rows(self) -> dict[int, Item]:
        """Every step as it was handed in, by its index. Final observations are rows, too, but no
        steps."""
        found: dict[int, Item] = {}
        for episode in self._episodes():
            for at, name in enumerate(episode.names[: len(episode.steps)]):
                if name in self.present:
                    found[named(episode, at)] = {
                        **episode.observations[at],
                        **episode.steps[at],
                        "terminated": is_last(episode, at) and episode.terminated,
                        "truncated": is_last(episode, at) and episode.truncated,
                    }
        return found


def named(episode: Episode, at: int) -> int:
    """The index of the step's row."""
    name = episode.names[at]
    assert name is not None, "a step's index is returned to whoever hands it in"
    return name


def is_last(episode: Episode, at: int) -> bool:
    """Whether that step was the last one of its episode, as far as it was handed in."""
    return at + 1 == len(episode.steps)


def onward(lane: Lane, which: int, at: int) -> Iterator[tuple[Episode, int]]:
    """The steps of an environment from there on, one after the other, up to where something got
    lost."""
    for number, episode in enumerate(lane[which:]):
        if number > 0 and not episode.begins:
            return
        for time in range(at if number == 0 else 0, len(episode.steps)):
            yield episode, time
        # its final one was not handed in
        if not episode.ended or len(episode.observations) == len(episode.steps):
            return


def time_step(episode: Episode, at: int, counts: bool, stack: Stack) -> Item:
    """One time of a sequence."""
    return {
        **stack.frames(episode, at),
        **episode.steps[at],
        "terminated": is_last(episode, at) and episode.terminated,
        "truncated": is_last(episode, at) and episode.truncated,
        "mask": counts,
        "is_first": at == 0 and episode.begins,
    }


def in_columns(times: Sequence[Item], first_step_only: Sequence[str]) -> Item:
    """A list of times as lists by field."""
    return {
        name: times[0][name] if name in first_step_only else [time[name] for time in times]
        for name in times[0]
    }
