"""Tests of `selectors.selector`: every committed row with the same probability, and nothing
else."""

from __future__ import annotations

import importlib
import logging
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import areplay
from areplay._storage import ring as ring_module
from areplay._storage import stream_writer as writer_module
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay.selectors import selector as select
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec

SPEC = Spec(x=((), "int64"))
DRAWS = 60_000
SEED = 20_240_607


class Scene:
    """A ring, and in plain Python which names it must have."""

    def __init__(self, blocks: int, block_rows: int) -> None:
        self.ring = Ring(SPEC, blocks, block_rows)
        self.blocks, self.block_rows = blocks, block_rows
        self._registry = WriterRegistry()
        self.writers: list[StreamWriter] = []
        self._written: dict[int, list[int]] = {}  # place -> names there

    def writer(self) -> StreamWriter:
        """One more stream."""
        self.writers.append(StreamWriter(self.ring, self.ring.block_locks(), self._registry))
        return self.writers[-1]

    def write(self, writer: StreamWriter, rows: int) -> None:
        """Append rows, one after the other."""
        for name in writer.write({"x": np.zeros(rows, np.int64)}, 0, rows).tolist():
            serial = name // self.block_rows
            names = self._written.setdefault(serial % self.blocks, [])
            if names and names[0] // self.block_rows != serial:
                names.clear()
            names.append(name)

    @property
    def names(self) -> set[int]:
        """The rows that are there."""
        return {name for names in self._written.values() for name in names}

    def close(self) -> None:
        """Give everything back."""
        for writer in self.writers:
            writer.close()
        self.ring.segment.close()


def one_block_part_filled(scene: Scene) -> None:
    """The very first rows."""
    scene.write(scene.writer(), 5)


def several_blocks_the_last_part_filled(scene: Scene) -> None:
    """Before the first lap is over."""
    scene.write(scene.writer(), 3 * scene.block_rows + 7)


def exactly_full(scene: Scene) -> None:
    """Each place has a full block."""
    scene.write(scene.writer(), scene.blocks * scene.block_rows)


def after_wrapping(scene: Scene) -> None:
    """Some laps later, the newest block part-filled."""
    scene.write(scene.writer(), 5 * scene.blocks * scene.block_rows // 2 + 3)


def several_streams(scene: Scene) -> None:
    """Each with an open block of another length, after some laps."""
    writers = [scene.writer() for _ in range(3)]
    rng = np.random.default_rng(1)
    while scene.ring.next_serial[0] < 3 * scene.blocks:
        scene.write(writers[rng.integers(3)], int(rng.integers(1, scene.block_rows)))


def mostly_empty(scene: Scene) -> None:
    """Blocks sealed after a row or two: guessing names would rarely hit."""
    writer = scene.writer()
    for turn in range(scene.blocks + 3):
        scene.write(writer, 1 + turn % 2)
        writer.close_block()


def half_empty(scene: Scene) -> None:
    """Just on the side of guessing, with many misses."""
    writer = scene.writer()
    for _ in range(scene.blocks):
        scene.write(writer, scene.block_rows // 2 + 1)
        writer.close_block()


Arrange = Callable[[Scene], None]
SITUATIONS = [
    one_block_part_filled,
    several_blocks_the_last_part_filled,
    exactly_full,
    after_wrapping,
    several_streams,
    mostly_empty,
    half_empty,
]


@contextmanager
def a_scene(arrange: Arrange, blocks: int = 8, block_rows: int = 16) -> Iterator[Scene]:
    """A ring in that situation."""
    scene = Scene(blocks, block_rows)
    arrange(scene)
    yield scene
    scene.close()


def critical_chi_square(degrees: int) -> float:
    """What a chi-square variable exceeds with a probability of 1e-6 (Wilson and Hilferty, within 3
    % of tables)."""
    z = 4.7534
    return degrees * (1 - 2 / (9 * degrees) + z * (2 / (9 * degrees)) ** 0.5) ** 3


def chi_square(counts: Counter[int], names: set[int]) -> float:
    """How far the counts are from equal ones."""
    expected = sum(counts.values()) / len(names)
    return sum((counts[name] - expected) ** 2 / expected for name in names)


@pytest.mark.parametrize("arrange", SITUATIONS)
@pytest.mark.parametrize("count", [1, 32, 500])
def test_every_row_that_is_there_has_the_same_probability(arrange: Arrange, count: int) -> None:
    """Chi-square over all rows at a significance of 1e-6, for batches small and large; no other
    name is ever drawn."""
    with a_scene(arrange) as scene:
        rng = np.random.default_rng(SEED)
        draws = DRAWS if count > 1 else DRAWS // 15
        counts: Counter[int] = Counter()
        for _ in range(draws // count):
            indices, probability = Uniform().draw(scene.ring, count, rng)
            assert indices.dtype == np.int64 and indices.shape == (count,)
            assert probability == pytest.approx(1 / len(scene.names), rel=1e-12)
            counts.update(indices.tolist())
        assert set(counts) <= scene.names
        assert chi_square(counts, scene.names) < critical_chi_square(len(scene.names) - 1)


@pytest.mark.parametrize("arrange", SITUATIONS)
def test_draws_are_independent_of_each_other(arrange: Arrange) -> None:
    """Within a batch, how a draw is followed by the next is as good as chance: over pairs of halves
    of the rows."""
    with a_scene(arrange) as scene:
        rng = np.random.default_rng(SEED + 1)
        half = set(sorted(scene.names)[: len(scene.names) // 2])
        share = len(half) / len(scene.names)
        pairs: Counter[int] = Counter()
        for _ in range(DRAWS // 100):
            drawn = [index in half for index in Uniform().draw(scene.ring, 100, rng)[0].tolist()]
            pairs.update(2 * a + b for a, b in zip(drawn[::2], drawn[1::2], strict=True))
        total = sum(pairs.values())
        odds = [(1 - share) ** 2, (1 - share) * share, share * (1 - share), share**2]
        distance = sum((pairs[k] - total * odds[k]) ** 2 / (total * odds[k]) for k in range(4))
        assert distance < critical_chi_square(3)


def test_the_statistic_would_notice_a_bias() -> None:
    """Rows of the open block drawn half again as often: rejected by far. So the test above can
    fail."""
    rng = np.random.default_rng(SEED)
    names = set(range(135))
    counts = Counter(rng.integers(0, 135, DRAWS).tolist())
    assert chi_square(counts, names) < critical_chi_square(134)
    counts.update(rng.integers(128, 135, DRAWS * 7 // 270).tolist())
    assert chi_square(counts, names) > critical_chi_square(134)


@pytest.mark.parametrize(
    ("degrees", "table"), [(10, 46.9), (50, 112.6), (134, 226.7), (1000, 1227.2)]
)
def test_the_critical_values_are_those_of_the_tables(degrees: int, table: float) -> None:
    """The quantile at 1 - 1e-6."""
    assert critical_chi_square(degrees) == pytest.approx(table, rel=0.03)


def test_the_same_seed_draws_the_same() -> None:
    """Draws depend on the generator and the ring's contents, and on nothing else."""
    drawn = []
    for _ in range(2):
        with a_scene(several_streams) as scene:
            rng = np.random.default_rng(SEED)
            drawn.append([Uniform().draw(scene.ring, 33, rng)[0].tolist() for _ in range(20)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize("blocks_begun", [0, 1, 20])
def test_without_rows_nothing_is_drawn(blocks_begun: int) -> None:
    """An empty draw, no error and no endless search: before the first row, and while all blocks are
    being recycled."""
    with a_scene(lambda scene: None) as scene:
        scene.ring.next_serial[0] = blocks_begun
        indices, _ = Uniform().draw(scene.ring, 8, np.random.default_rng(0))
        assert indices.dtype == np.int64 and len(indices) == 0


def test_more_can_be_drawn_than_there_are_rows() -> None:
    """With replacement: a single row fills a whole batch."""
    with a_scene(lambda scene: scene.write(scene.writer(), 1)) as scene:
        indices, probability = Uniform().draw(scene.ring, 1_000, np.random.default_rng(0))
        assert indices.tolist() == [0] * 1_000
        assert probability == 1.0


def test_a_block_being_recycled_is_not_drawn_from() -> None:
    """Its end is -1: neither its old rows nor the new ones that are not yet whole."""
    with a_scene(exactly_full) as scene:
        scene.ring.ends[3] = -1
        gone = set(range(3 * 16, 4 * 16))
        for _ in range(20):
            drawn = set(Uniform().draw(scene.ring, 500, np.random.default_rng())[0].tolist())
            assert drawn and not drawn & gone


class Laps:
    """At the n-th fence of a reader, the writer goes once around the ring."""

    def __init__(self, scene: Scene, at: int) -> None:
        self._scene, self._at, self.calls = scene, at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ring_module, "order", lambda: None)
                patch.setattr(writer_module, "order", lambda: None)
                self._scene.write(
                    self._scene.writers[0], self._scene.blocks * self._scene.block_rows
                )


@pytest.mark.parametrize(
    "arrange", [after_wrapping, half_empty, mostly_empty, one_block_part_filled]
)
@pytest.mark.parametrize("at", [1, 2])
def test_a_draw_that_was_stopped_for_a_lap_is_whole_or_empty(
    arrange: Arrange, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped in mid-draw while the ring wraps: as many indices as asked for, or
    none; the check after copying tells the stale ones."""
    for count in (1, 64, 400):
        with a_scene(arrange) as scene:
            laps = Laps(scene, at)
            monkeypatch.setattr(ring_module, "order", laps)
            monkeypatch.setattr(writer_module, "order", laps)
            indices, _ = Uniform().draw(scene.ring, count, np.random.default_rng(SEED))
            monkeypatch.undo()
            assert len(indices) in (0, count)
            fresh = scene.ring.unchanged(indices)
            assert set(indices[fresh].tolist()) <= scene.names


def test_a_single_held_block_does_not_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    """Draws go on while a block is left out by the writers; only rows that are there are drawn."""
    caplog.set_level(logging.ERROR, "areplay")
    with a_scene(exactly_full) as scene:
        reader = scene.ring.block_locks()
        assert reader.try_shared(2)
        scene.write(scene.writers[0], 8 * 16)
        drawn: set[Any] = set()
        for _ in range(50):
            drawn |= set(Uniform().draw(scene.ring, 100, np.random.default_rng())[0].tolist())
        assert drawn <= scene.names
        reader.close()


def test_repr_names_it() -> None:
    """As it is written."""
    assert repr(Uniform()) == "Uniform()"


async def test_the_documented_selector_draws_recent_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands in the docstring: in this process and in samplers, in proportion, from few rows
    and many."""
    lines = (select.__doc__ or "").split("::\n", 1)[1].splitlines()
    code = "\n".join(takewhile(lambda line: not line or line.startswith("    "), lines))
    (tmp_path / "recency.py").write_text("import numpy as np\n\n" + textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    recent = importlib.import_module("recency").Recent
    async with areplay.Replay(
        areplay.Spec(x=((), "int64")), 4_096, seed=3, block_rows=256
    ) as replay:
        for rows, mean_age in ((310, 10), (310, 1_000), (9_000, 30)):
            first = replay.statistics().rows_inserted
            for start in range(first, first + rows, 1_000):
                await replay.extend({"x": np.arange(start, min(start + 1_000, first + rows))})
            last = first + rows - 1
            batch = replay.sample(4_000, selector=recent(mean_age))
            ages = last - batch["x"]
            there = np.arange(min(len(replay), 20 * mean_age))
            chances = (1 - 1 / mean_age) ** there / mean_age
            chances /= 1 - (1 - 1 / mean_age) ** len(replay)
            assert np.allclose(batch.probabilities, chances[ages])
            groups = np.array_split(there, 10)
            counts = np.array([np.isin(ages, group).sum() for group in groups])
            expected = np.array([chances[group].sum() for group in groups])
            few = expected * len(ages) < 5
            counts, expected = counts[~few], expected[~few]
            assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-4
        async with replay.batches(batch_size=64, selector=recent(30), timeout_s=30.0) as batches:
            assert (last - (await anext(batches))["x"]).max() < 1_000
