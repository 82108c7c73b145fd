"""Tests of `_storage.windows`. What the windows are is held by the oracle in `tests/models`; here
the two ways to them are held against each other, and what a writer does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from areplay._ingest.episodes import Episodes
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.window_search import WindowFinder
from areplay._storage.window_walk import Walk
from areplay._storage.windows import Window, Windows
from areplay.spec import Spec

SPEC = Spec.steps(obs=((), "int64"), action=((), "int8"))


class Scene:
    """A ring with streams of vectors of made-up environments, whose observations count rows of
    their own."""

    def __init__(self, blocks: int = 12, block_rows: int = 16) -> None:
        self.ring, self.registry = Ring(SPEC, blocks, block_rows), WriterRegistry()
        self.writers: list[StreamWriter] = []

    def stream(
        self, environments: int, mode: str, steps: int, seed: int, mean: float = 1e9
    ) -> StreamWriter:
        """Write a stream; its writer, to go on with. With short episodes some blocks stay short."""
        rng, episodes = np.random.default_rng(seed), Episodes(SPEC)
        episodes.autoreset_mode = mode
        writer = StreamWriter(self.ring, self.ring.block_locks(), self.registry)
        self.writers.append(writer)
        resets = np.zeros(environments, bool)
        for number in range(steps):
            ended = (rng.random(environments) < 1 / mean) & ~resets
            obs = np.arange(environments) * 10_000 + number
            rows = episodes.rows(
                {
                    "obs": obs,
                    "action": np.zeros(environments, np.int8),
                    "reward": np.zeros(environments),
                    "terminated": ended,
                    "truncated": np.zeros(environments, bool),
                    "next_obs": obs + 1 if mode == "Disabled" else None,
                }
            )
            episodes.advance()
            resets = ended if mode == "NextStep" else resets
            assert not isinstance(rows, tuple)
            writer.write(rows, 0, len(rows["reward"]))
            if mean < 1e9 and rng.random() < 0.03:
                writer.close_block()  # as when a block is held by somebody: it stays short
        return writer

    def committed(self) -> np.ndarray:
        """The indices of all rows that are there."""
        first, end = self.ring.index_range()
        names = np.arange(first, end)
        return names[self.ring.committed(names)]

    def close(self) -> None:
        """Give everything back."""
        for writer in self.writers:
            writer.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty ring."""
    scene = Scene()
    yield scene
    scene.close()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("back", "forward"), [(0, 0), (0, 1), (3, 1), (3, 3), (0, 10), (2, 40)])
@pytest.mark.parametrize("environments", [1, 3, 20])
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_guessing_and_walking_find_the_same(
    scene: Scene, environments: int, mode: str, back: int, forward: int, across: bool
) -> None:
    """For every row of a ring that was overwritten in part: same windows, same verdicts, whatever
    lies in between."""
    for seed in range(3):
        scene.stream(environments, mode, 300 // environments, seed, mean=6.0 if seed else 50.0)
    window = Window(back=back, forward=forward, across_episodes=across)
    rows = scene.committed()
    found = WindowFinder(scene.ring, window).find(rows)
    steps = rows[scene.ring.columns["steps.next_offset"][scene.ring.positions(rows)] > 0]
    walk = Walk(scene.ring, window, steps)
    walk.forward()
    walk.back()
    assert found.indices.tolist() == steps[walk.valid].tolist()
    assert found.positions.tolist() == scene.ring.positions(walk.found[walk.valid]).tolist()
    assert found.ahead.tolist() == walk.ahead[walk.valid].tolist()
    assert found.behind.tolist() == walk.behind[walk.valid].tolist()
    assert found.unchanged().all()


def test_a_window_changes_with_each_block_that_it_lies_in(scene: Scene) -> None:
    """Recycling any one of its blocks, also one that the drawn row is not in, is seen; other
    windows stay."""
    scene.stream(1, "Disabled", 40, 0)  # rows 0 to 39 in blocks 0 to 2
    windows = WindowFinder(scene.ring, Window(back=3, forward=20)).find(np.array([5, 17, 18, 19]))
    assert windows.indices.tolist() == [5, 17, 18, 19]
    assert windows.blocks() == [0, 1, 2]
    assert windows.unchanged().tolist() == [True] * 4
    scene.ring.ends[0] = -1
    assert windows.unchanged().tolist() == [False, False, False, True], "19 - 3 is in block 1"
    scene.ring.ends[0] = 16
    scene.ring.ends[2] = -1
    assert windows.unchanged().tolist() == [True, False, False, False], "5 + 20 is in block 1"
    assert windows.part(0, 1).unchanged().tolist() == [True]
    joined = Windows.joined([windows.part(0, 1), windows, windows.part(0, 2)])
    assert joined.unchanged().tolist() == [True, True, False, False, False, True, False]
    assert len(joined) == 7


def test_all_are_unchanged_only_if_no_block_of_any_is_due(scene: Scene) -> None:
    """One look at the next serial, and a closer one if that has passed any block of theirs, or one
    beside the row's."""
    scene.stream(1, "Disabled", 40, 0)  # rows 0 to 39 in blocks 0 to 2
    finder = WindowFinder(scene.ring, Window(back=3, forward=2))
    across, within = finder.find(np.array([17])), finder.find(np.array([30]))
    blocks, looks = scene.ring.blocks, []
    scene.ring.committed = lambda indices, real=scene.ring.committed: (
        looks.append(1),
        real(indices),
    )[1]
    assert len(across.changed()) == len(within.changed()) == 0 and not looks
    scene.ring.next_serial[0] = blocks + 1  # block 0 is due, though nobody has touched it
    assert len(within.changed()) == 0 and not looks
    assert len(across.changed()) == 0 and len(looks) == 2, "17 - 3 is in block 0"
    scene.ring.ends[0] = -1
    assert across.changed().tolist() == [0] and len(within.changed()) == 0


def test_values_are_taken_by_their_distance(scene: Scene) -> None:
    """One step, or a range of them; before the episode's beginning its first row."""
    scene.stream(1, "Disabled", 40, 0)
    windows = WindowFinder(scene.ring, Window(back=3, forward=2)).find(np.array([1, 30]))
    assert windows.take("obs").tolist() == [1, 30]
    assert windows.take("obs", 2).tolist() == [3, 32]
    assert windows.take("obs", slice(-3, 3)).tolist() == [
        [0, 0, 0, 1, 2, 3],
        [27, 28, 29, 30, 31, 32],
    ]
    assert windows.take("obs", slice(None, None)).tolist() == [[1, 2, 3], [30, 31, 32]]
    assert windows.behind.tolist() == [1, 3]
    assert windows.numbers().tolist() == [[0, 0, 0, 1, 2, 3], [27, 28, 29, 30, 31, 32]]
    assert windows.steps.tolist() == [3, 3]


def test_only_every_period_th_step_begins_a_window(scene: Scene) -> None:
    """Counted from the first step of each episode; and only with enough steps before its end."""
    scene.stream(1, "Disabled", 150, 4, mean=8.0)
    rows = scene.committed()
    numbers = scene.ring.columns["steps.step_id"][scene.ring.positions(rows)] & 0xFFFFFFFF
    every = WindowFinder(scene.ring, Window(forward=4)).find(rows)
    third = WindowFinder(scene.ring, Window(forward=4, period=3)).find(rows)
    assert third.indices.tolist() == [
        n for n in every.indices.tolist() if numbers[rows == n][0] % 3 == 0
    ]
    long = WindowFinder(scene.ring, Window(forward=4, min_steps=3)).find(rows)
    kept = every.steps >= 3
    assert 0 < kept.sum() < len(kept)
    assert long.indices.tolist() == every.indices[kept].tolist()


@pytest.mark.parametrize(
    "wrong", [{"back": -1}, {"forward": 1.5}, {"period": 0}, {"forward": 2, "min_steps": 4}]
)
def test_a_window_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    """By the name of the option."""
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        Window(**wrong)


def test_what_lies_outside_the_window_is_not_to_be_had(scene: Scene) -> None:
    """Neither the row before it nor the one behind: an index that wraps would give another row."""
    scene.stream(1, "Disabled", 40, 0)
    windows = WindowFinder(scene.ring, Window(back=1, forward=2)).find(np.array([10]))
    for offset in (-2, 3, slice(-2, 1), slice(0, 4), slice(2, 2)):
        with pytest.raises(IndexError, match="from -1 to 2"):
            windows.take("obs", offset)
