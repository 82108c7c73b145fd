"""A world of counting environments: it hands their steps to a replay and keeps what they did, for
the oracle.

Each observation, action, reward and extra is made of a number that occurs once. A `Player` drives
the environments of one stream as a program with gymnasium would, in each autoreset mode, loses
steps, dies in mid-episode and starts anew.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from models.episode_oracle import Episode, Item, Lane, Oracle, Values

import areplay
from areplay._ingest.episodes import Episodes
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter

NOT_IN_A_BATCH = ("number", "next_number", "names")  # but in the oracle's items
MODES = ("one", "NextStep", "SameStep", "Disabled")


@dataclass(frozen=True)
class Kind:
    """A kind of environment: its spec, and what it makes of a number.

    Attributes:
        number: finds the number of an observation, given the columns of a ring.
    """

    spec: areplay.Spec
    observation: Callable[[int], Values]
    step: Callable[[int], Values]
    number: Callable[[Mapping[str, Any]], Any]

    def __repr__(self) -> str:
        return f"<Kind {', '.join(self.spec)}>"


PLAIN = Kind(
    areplay.Spec.steps(
        obs=((2,), "int64"), action=((), "int64"), version=((), "int64"), note=((2,), "float32")
    ),
    lambda n: {"obs": [n, 2 * n + 1]},
    lambda n: {"action": n, "reward": float(n), "version": -n, "note": [n + 0.5, n + 0.25]},
    lambda columns: columns["obs"][:, 0],
)
FRAMES = Kind(
    areplay.Spec.steps(
        obs={"camera": ((3, 3), "uint8"), "speed": ((), "float32")},
        action={"move": ((), "int32"), "aim": ((2,), "float64")},
        reward=((), "float64"),
        version=((), "int64"),
    ),
    lambda n: {
        "obs.camera": [[n % 251, n // 251, 1], [2, 7 * n % 256, 3], [11 * n % 256, 4, 5 * n % 256]],
        "obs.speed": float(n),
    },
    lambda n: {"action.move": n, "action.aim": [n / 2, n / 4], "reward": float(n), "version": -n},
    lambda columns: columns["obs.speed"],
)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with dotted names as dicts in dicts, the way environments give them."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = found
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return found


class Environment:
    """Counts; its episodes have the lengths and ends that it is told, again and again."""

    def __init__(self, numbers: Iterator[int], lengths: Sequence[tuple[int, str]]) -> None:
        self._numbers, self._lengths = numbers, itertools.cycle(lengths)
        self.is_over = False
        self.reset()

    def reset(self) -> int:
        """Begin an episode; its first observation."""
        self._left, self._end = next(self._lengths)
        self.is_over = False
        self.now = next(self._numbers)
        return self.now

    def step(self) -> tuple[int, bool, bool]:
        """One step: the number of what was done and got, terminated, truncated."""
        assert not self.is_over
        done, self.now = next(self._numbers), next(self._numbers)
        self._left -= 1
        self.is_over = self._left <= 0
        return (
            done,
            self.is_over and self._end != "truncated",
            self.is_over and self._end != "terminated",
        )


class OtherStream:
    """Another stream into the ring of a replay, as the coordinator would write it for an actor."""

    def __init__(self, replay: areplay.Replay) -> None:
        self._spec = replay.spec
        engine = replay._opened()
        self.writer = StreamWriter(engine.ring, engine.ring.block_locks(), engine.registry)
        self._episodes = Episodes(replay.spec)

    @property
    def autoreset_mode(self) -> str:
        """As of an actor."""
        return self._episodes.autoreset_mode

    @autoreset_mode.setter
    def autoreset_mode(self, mode: str) -> None:
        self._episodes.autoreset_mode = mode

    async def add(self, **step: Any) -> Any:
        """As of a replay."""
        with self._episodes.step(self._episodes.ticket()):
            rows = self._episodes.rows(step)
            if isinstance(rows, tuple):
                return self.writer.write_rows(*rows)
            return self.writer.write(rows, 0, len(rows["reward"]))[: len(step["reward"])]

    async def extend(self, steps: Mapping[str, Any]) -> Any:
        """As of a replay."""
        with self._episodes.step(self._episodes.ticket()):
            rows, which = self._episodes.columns(steps)
            return self.writer.write(rows, 0, len(rows["reward"]))[which]

    def end_episode(self, environments: Any = None) -> None:
        """As of a replay."""
        self._episodes.break_off(environments)

    def die(self) -> None:
        """The actor is dead, its successor begins."""
        mode = self._episodes.autoreset_mode
        self.writer.begin_stream()
        self._episodes = Episodes(self._spec)
        self._episodes.autoreset_mode = mode

    def close(self) -> None:
        """Give the locks back."""
        self.writer.close()


class Player:
    """The environments of one stream, stepped side by side, and their lanes.

    Args:
        hand: what takes the steps: a replay, or another stream.
        mode: "one", for an environment that is no vector; or how those of a vector begin their next
            episode.
    """

    def __init__(
        self,
        kind: Kind,
        hand: Any,
        mode: str,
        lengths: Sequence[Sequence[tuple[int, str]]],
        numbers: Iterator[int],
        lanes: list[Lane],
    ) -> None:
        self._kind, self._hand, self._mode, self._numbers, self._lanes = (
            kind,
            hand,
            mode,
            numbers,
            lanes,
        )
        self._lengths = lengths if mode != "one" else lengths[:1]
        if mode != "one":
            hand.autoreset_mode = mode
        self._begin()

    def _begin(self) -> None:
        """All environments anew."""
        self._environments = [Environment(self._numbers, lengths) for lengths in self._lengths]
        self._mine: list[Lane] = [[Episode()] for _ in self._environments]
        self._lanes += self._mine
        # In mode NextStep, after a step that got lost: nobody knows whether the next one is that of
        # a reset.
        self._is_adrift = [False] * len(self._environments)

    def die(self) -> None:
        """The actor dies between two steps. Its successor's environments are others."""
        self._hand.die()
        self._begin()

    def close_block(self) -> None:
        """The next row goes into a new block, as when a reader holds the open one for a moment."""
        self._hand_writer().close_block()

    def _hand_writer(self) -> StreamWriter:
        if isinstance(self._hand, OtherStream):
            return self._hand.writer
        return self._hand._opened().local_writer.writer

    async def play(self, gives_next: bool) -> None:
        """One step of each environment, handed in."""
        steps = [self._step(k) for k in range(len(self._environments))]
        self._keep(steps, await self._hand.add(**self._call(steps, gives_next)))

    async def play_some(self, count: int) -> None:
        """Many steps of the environment that is no vector, handed in together."""
        steps, columns = self._some(count)
        indices = await self._hand.extend(columns)
        assert indices.shape == (count,)
        for step, index in zip(steps, indices.tolist(), strict=True):
            self._record(step, index, self._mine[0])

    def _some(self, count: int) -> tuple[list[Player.Step], dict[str, Any]]:
        """So many steps of the one environment, and what `extend` is called with."""
        steps = []
        for _ in range(count):
            steps.append(self._step(0))
            self._go_on(steps[-1], 0)
        flat = [self._flat(step) for step in steps]
        columns = {name: self._array(name, [one[name] for one in flat]) for name in self._kind.spec}
        following = [self._kind.observation(step.following) for step in steps]
        columns |= {
            f"next_{name}": self._array(name, [one[name] for one in following])
            for name in following[0]
        }
        return steps, nested(columns)

    async def lose(self) -> None:
        """One step that does not fit the spec: it raises and is lost, and the environments have
        gone on."""
        steps = [self._step(k) for k in range(len(self._environments))]
        call = self._call(steps, gives_next=True)
        await self._refused(self._hand.add(**call | {"reward": np.zeros((7, 7))}))
        self._cut(steps)

    async def jump(self, *, some: bool = False) -> None:
        """An environment is reset in mid-episode, and nobody says so: the next step (or `some` of
        them) is refused."""
        steps = [self._step(k) for k in range(len(self._environments))]
        if any(step.terminated or step.truncated or step.is_reset for step in steps):
            self._keep(steps, await self._hand.add(**self._call(steps, gives_next=False)))
            return
        self._keep(steps, await self._hand.add(**self._call(steps, gives_next=True)))
        for environment in self._environments:
            environment.reset()
        if some:
            steps, columns = self._some(3)
            await self._refused(self._hand.extend(columns))
            self._cut(steps[-1:])
        else:
            steps = [self._step(k) for k in range(len(self._environments))]
            await self._refused(self._hand.add(**self._call(steps, gives_next=False)))
            self._cut(steps)

    def break_off(self, which: int | None = None) -> None:
        """An environment, or each of them, is reset in mid-episode, and that is said."""
        chosen = (
            range(len(self._environments)) if which is None else [which % len(self._environments)]
        )
        self._hand.end_episode(None if which is None else chosen)
        for k in chosen:
            self._environments[k].reset()
            self._is_adrift[k] = False
            lane = self._mine[k]
            # nothing was handed in since the last end, or since what got lost
            if not lane[-1].observations:
                lane.pop()
            lane.append(Episode())

    async def _refused(self, handing_in: Awaitable[Any]) -> None:
        """Hand in what does not fit."""
        try:
            await handing_in
        except areplay.SpecMismatch:
            return
        raise AssertionError("was to be refused")

    @dataclass
    class Step:
        """What one environment does in one step: numbers of the observation, the step and the
        observation after it."""

        now: int
        done: int
        following: int
        terminated: bool = False
        truncated: bool = False
        final: int | None = None  # an observation that comes beside the following one
        is_reset: bool = False

    def _step(self, k: int) -> Step:
        """A step as seen by the caller of `env.step`."""
        environment = self._environments[k]
        now = environment.now
        if environment.is_over:
            if self._mode == "NextStep":  # what is done now is ignored
                return self.Step(now, next(self._numbers), environment.reset(), is_reset=True)
            now = environment.reset()  # the caller does it
        done, terminated, truncated = environment.step()
        step = self.Step(now, done, environment.now, terminated, truncated)
        if environment.is_over and self._mode == "SameStep":
            step.final, step.following = environment.now, environment.reset()
        return step

    def _flat(self, step: Step) -> Values:
        flags = {"terminated": step.terminated, "truncated": step.truncated}
        return {**self._kind.observation(step.now), **self._kind.step(step.done), **flags}

    def _array(self, name: str, values: Any) -> Any:
        return np.array(values, self._kind.spec[name].dtype)

    def _call(self, steps: list[Step], gives_next: bool) -> dict[str, Any]:
        """What `add` is called with."""
        flat = [self._flat(step) for step in steps]
        following = [self._kind.observation(step.following) for step in steps]
        if self._mode == "one":
            call = {
                name: self._array(name, value) if np.ndim(value) else value
                for name, value in flat[0].items()
            }
        else:
            call = {name: self._array(name, [one[name] for one in flat]) for name in flat[0]}
        ends = any(step.terminated or step.truncated for step in steps)
        if gives_next or (ends and self._mode in ("one", "Disabled")):
            for name in following[0]:
                value = [one[name] for one in following]
                call[f"next_{name}"] = self._array(name, value[0] if self._mode == "one" else value)
        call = nested(call)
        if self._mode == "SameStep" and ends:
            call["final_obs"] = np.array([None] * len(steps), object)
            for k, step in enumerate(steps):
                if step.final is not None:
                    values = self._kind.observation(step.final)
                    call["final_obs"][k] = nested(
                        {n: self._array(n, v) for n, v in values.items()}
                    )["obs"]
        return call

    def _keep(self, steps: list[Step], returned: Any) -> None:
        """Write down a step that was handed in, and the indices that were returned, if any."""
        indices = np.broadcast_to(returned, len(steps)).tolist()
        for k, (step, index, lane) in enumerate(zip(steps, indices, self._mine, strict=True)):
            if self._is_adrift[k]:
                if not (step.terminated or step.truncated):
                    self._is_adrift[k] = False
                    lane.append(Episode(begins=False))
            else:
                self._record(step, index, lane)
            self._go_on(step, k)

    def _go_on(self, step: Step, k: int) -> None:
        """The caller resets what is over, unless the environments do."""
        if self._mode == "one" and (step.terminated or step.truncated):
            self._environments[k].reset()

    def _record(self, step: Step, index: int | None, lane: Lane) -> None:
        episode = lane[-1]
        episode.names.append(index)
        episode.observations.append({"number": step.now, **self._kind.observation(step.now)})
        if step.is_reset:
            lane.append(Episode())
            return
        episode.steps.append(self._kind.step(step.done))
        episode.terminated, episode.truncated = step.terminated, step.truncated
        if episode.ended and self._mode != "NextStep":
            number = step.following if step.final is None else step.final
            episode.names.append(None)
            episode.observations.append({"number": number, **self._kind.observation(number)})
            lane.append(Episode())

    def _cut(self, steps: list[Step]) -> None:
        """Write down that a step got lost."""
        for k, (step, lane) in enumerate(zip(steps, self._mine, strict=True)):
            if self._mode == "NextStep":
                self._is_adrift[k] = True
            else:
                lane.append(Episode(begins=False))
            self._go_on(step, k)


class World:
    """A replay, players that hand in to it, and the oracle of what came of that."""

    def __init__(self, replay: areplay.Replay, kind: Kind) -> None:
        self.replay, self.ring, self.kind = replay, replay._opened().ring, kind
        self.lanes: list[Lane] = []
        self.players: list[Player] = []
        self._others: list[OtherStream] = []
        self._numbers = itertools.count(1)
        self._holding = self.ring.block_locks()
        self.held: set[int] = set()
        # So that small blocks can be tested with long windows, which users are refused.
        replay._opened().config.__dict__["longest_window"] = 1_000_000
        replay._opened().sampler._longest_window = 1_000_000

    def player(
        self, mode: str, lengths: Sequence[Sequence[tuple[int, str]]], *, owner: bool = False
    ) -> Player:
        """One more stream; the first may be the replay's own, which cannot die."""
        hand: Any = self.replay
        if not owner:
            hand = OtherStream(self.replay)
            self._others.append(hand)
        self.players.append(Player(self.kind, hand, mode, lengths, self._numbers, self.lanes))
        return self.players[-1]

    def hold(self, place: int) -> None:
        """A reader holds a block for some time: writers leave it for another lap, and end it early
        if it is open."""
        if place not in self.held and len(self.held) < 2:
            assert self._holding.try_shared(place)
            self.held.add(place)

    def release(self) -> None:
        """All held blocks are free again."""
        for place in self.held:
            self._holding.release(place)
        self.held.clear()

    def close(self) -> None:
        """Give everything back."""
        for other in self._others:
            other.close()
        self._holding.close()

    def oracle(self) -> Oracle:
        """Of the state now. Rows of final observations, whose indices nobody was told, are found by
        their numbers."""
        present, reach = stored(self.ring, self.kind), range(*self.ring.index_range())
        for episode in itertools.chain.from_iterable(self.lanes):
            for at, observation in enumerate(episode.observations):
                found = present.get(observation["number"])
                if episode.names[at] is None:
                    episode.names[at] = found
                    if (
                        at > 0
                        and episode.names[at - 1] in reach
                        and episode.names[at - 1] in present.values()
                    ):
                        assert found is not None, (
                            "a final observation is newer than the step before it"
                        )
                else:
                    assert found in (episode.names[at], None), (
                        "a step's row has the index that was returned"
                    )
        return Oracle(self.lanes, set(present.values()))

    def valid(self, items: Callable[[Oracle], dict[int, Item]]) -> tuple[dict[int, Item], set[int]]:
        """The items that may be drawn now, and the indices of those that must be.

        They differ while a reader holds a block that the writers have passed: it is out of reach,
        so that no item is drawn by its rows; but as long as the way there is not overwritten
        either, they are found as earlier frames.
        """
        oracle, reach = self.oracle(), range(*self.ring.index_range())
        may_be = {index: item for index, item in items(oracle).items() if index in reach}
        return may_be, set(
            items(Oracle(self.lanes, {name for name in oracle.present if name in reach}))
        )


def stored(ring: Ring, kind: Kind) -> dict[int, int]:
    """Number of an observation -> index of its row, of all rows that are there."""
    names = np.arange(ring.index_range()[1])
    names = names[ring.committed(names)]
    numbers = kind.number(ring.columns).take(ring.positions(names))
    found = {int(number): int(name) for number, name in zip(numbers, names, strict=True)}
    assert len(found) == len(names), "no observation is stored twice"
    return found


def critical_chi_square(degrees: int, z: float = 4.7534) -> float:
    """What a chi-square variable exceeds with a probability of 1e-6 (Wilson and Hilferty, within 3
    % of tables)."""
    return degrees * (1 - 2 / (9 * degrees) + z * (2 / (9 * degrees)) ** 0.5) ** 3


def check_draws(batch: areplay.Batch, expected: Mapping[int, Item], required: Set[int]) -> None:
    """Every item drawn is a valid one, right in each field; every one required was drawn; all about
    equally often."""
    indices = batch.indices.tolist()
    never = set(indices) - expected.keys()
    assert not never, f"drawn, but not valid: {sorted(never)}"
    missing = required - set(indices)
    assert not missing, f"valid, but not drawn: {sorted(missing)}"
    names, first, which = np.unique(batch.indices, return_index=True, return_inverse=True)
    for name, at in zip(names.tolist(), first.tolist(), strict=True):
        item = {
            field: value for field, value in expected[name].items() if field not in NOT_IN_A_BATCH
        }
        assert set(batch) == item.keys()
        for field, value in item.items():
            if field in ("reward", "discount"):
                np.testing.assert_allclose(
                    batch[field][at], value, rtol=1e-6, err_msg=f"{field} of {name}"
                )
            else:
                assert batch[field][at].tolist() == value, f"{field} of {name}"
    for field, array in batch.items():
        np.testing.assert_array_equal(
            array, array[first[which]], err_msg=f"{field}: items of one index are the same"
        )
    counts = Counter(indices)
    mean = len(indices) / len(counts)
    distance = sum((count - mean) ** 2 / mean for count in counts.values())
    assert len(counts) == 1 or distance < critical_chi_square(len(counts) - 1, z=6.5)
