"""Tests of `_storage.priorities`: masses, their sums, and what is drawn by them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from areplay._ingest.episodes import Episodes
from areplay._storage.priorities import Priorities
from areplay._storage.priority_tables import PriorityTables
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.window_search import WindowFinder
from areplay._storage.windows import Window
from areplay.spec import Spec

SPEC = Spec(x=((), "int64"))
NONE = float("nan")


class Scene:
    """A ring, a writer, and priorities that watch it."""

    def __init__(
        self, blocks: int = 8, block_rows: int = 24, exponent: float = 1.0, spec: Spec = SPEC
    ) -> None:
        self.ring, self.registry = Ring(spec, blocks, block_rows), WriterRegistry()
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), self.registry)
        self.priorities = Priorities(self.ring, exponent)
        self.registry.add_listener(self.priorities)

    def write(self, count: int, priorities: list[float] | None = None) -> list[int]:
        """Append rows; their indices."""
        columns = {"x": np.arange(count)}
        given = None if priorities is None else np.array(priorities)
        return self.writer.write(columns, 0, count, given).tolist()

    def mass(self, indices: list[int]) -> list[float]:
        """The masses in those rows' positions."""
        return self.priorities.masses[self.ring.positions(np.array(indices))].tolist()

    def close(self) -> None:
        """Give everything back."""
        self.writer.close()
        self.priorities.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty ring of 192 rows."""
    scene = Scene()
    yield scene
    scene.close()


def test_new_rows_enter_with_the_largest_mass_so_far_or_their_own(scene: Scene) -> None:
    """1 at first; then the largest that any row was given, also by an update."""
    assert scene.mass(scene.write(3)) == [1, 1, 1]
    assert scene.mass(scene.write(3, [0.5, NONE, 4.0])) == [0.5, 1.0, 4.0]
    assert scene.mass(first := scene.write(2)) == [4.0, 4.0]
    assert scene.priorities.update(np.array(first), np.array([9.0, -2.0])).all()
    assert scene.mass(first) == [9.0, 2.0], "signs do not matter"
    assert scene.mass(scene.write(1)) == [9.0]
    scene.priorities.check()


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_masses_are_priorities_raised_to_the_exponent(exponent: float) -> None:
    """Also tiny and huge ones, which neither vanish nor become infinite; zero stays zero, also
    with the exponent 0."""
    scene = Scene(exponent=exponent)
    given = [1e-30, 0.5, 1.0, 7.0, 1e30, 1e300, 5e-324]
    mass = scene.mass(scene.write(7, given))
    smallest, largest = (
        float(np.finfo(np.float32).smallest_subnormal),
        float(np.finfo(np.float32).max),
    )
    expected = [min(max(p**exponent, smallest), largest) for p in given]
    assert np.allclose(mass, expected, rtol=1e-6, atol=0)
    assert all(m > 0 for m in mass) and np.isfinite(mass).all()
    assert scene.mass(scene.write(1, [0.0])) == [0.0]
    scene.priorities.check()
    scene.close()


@pytest.mark.parametrize(("blocks", "block_rows"), [(4, 16), (8, 24), (40, 64), (700, 128)])
def test_rows_are_drawn_in_proportion_to_their_masses(blocks: int, block_rows: int) -> None:
    """Chi-square over all rows, in rings with one level of sums and with two; some rows have no
    mass."""
    scene, rng = Scene(blocks, block_rows), np.random.default_rng(11)
    capacity = scene.ring.capacity_rows
    names = scene.write(capacity - 5)
    masses = rng.random(len(names)) ** 4 * (rng.random(len(names)) > 0.2)
    assert scene.priorities.update(np.array(names), masses).all()
    scene.priorities.check()
    counts, drawn = np.zeros(len(names)), 0
    while drawn < 40 * len(names):
        indices, probabilities = scene.priorities.draw(256, rng)
        assert np.allclose(probabilities, masses[indices] / masses.sum(), rtol=1e-5)
        counts += np.bincount(indices, minlength=len(names))
        drawn += len(indices)
    assert counts[masses == 0].sum() == 0
    expected = masses / masses.sum() * drawn
    large = expected > 5
    seen, hoped = [*counts[large], counts[~large].sum()], [*expected[large], expected[~large].sum()]
    assert stats.chisquare(seen, np.array(hoped) * sum(seen) / sum(hoped)).pvalue > 1e-3
    assert (abs(counts - expected)[large] < 6 * np.sqrt(expected[large])).all()
    scene.close()


def test_a_batch_is_stratified_and_in_no_order(scene: Scene) -> None:
    """One row from each equal share of the mass, so that no part of the ring is missed;
    shuffled."""
    names = scene.write(192)
    indices, _ = scene.priorities.draw(96, np.random.default_rng(0))
    assert sorted(index // 2 for index in indices.tolist()) == [name // 2 for name in names[::2]]
    assert indices.tolist() != sorted(indices.tolist())


def test_batches_that_are_drawn_at_once_are_stratified_each_by_itself(scene: Scene) -> None:
    """One row from each equal share in each of them, and no two of them alike."""
    names = scene.write(192)
    indices, probabilities = scene.priorities.draw(96, np.random.default_rng(0), batches=5)
    batches = indices.reshape(5, 96)
    for batch in batches:
        assert sorted(index // 2 for index in batch.tolist()) == [name // 2 for name in names[::2]]
        assert batch.tolist() != sorted(batch.tolist())
    assert len({tuple(batch.tolist()) for batch in batches}) == 5
    assert np.allclose(probabilities, 1 / 192)


def test_batches_that_are_drawn_at_once_have_the_right_proportions() -> None:
    """Chi-square over all rows, of each of the batches: it does not matter which of them a row
    stands in."""
    scene, rng = Scene(40, 64), np.random.default_rng(12)
    names = scene.write(scene.ring.capacity_rows)
    masses = rng.random(len(names)) ** 2
    scene.priorities.update(np.array(names), masses)
    counts = np.zeros((3, len(names)))
    for _ in range(300):
        indices, probabilities = scene.priorities.draw(100, rng, batches=3)
        assert np.allclose(probabilities, masses[indices] / masses.sum(), rtol=1e-5)
        for count, batch in zip(counts, indices.reshape(3, 100), strict=True):
            np.add.at(count, batch, 1)
    expected = masses / masses.sum() * 30_000
    large = expected > 5
    for count in counts:
        seen, hoped = (
            [*count[large], count[~large].sum()],
            [*expected[large], expected[~large].sum()],
        )
        assert stats.chisquare(seen, np.array(hoped) * sum(seen) / sum(hoped)).pvalue > 1e-3
    scene.close()


@pytest.mark.parametrize(
    "masses", [[1e-38, 3e38], [1e-45, 1e-45], [3e38] * 5, [0.0, 0.0, 2.0, 0.0]]
)
def test_edge_cases_of_float32_draw_only_what_has_mass(scene: Scene, masses: list[float]) -> None:
    """Tiny beside huge, all tiny, all huge, one that is not zero."""
    names = scene.write(len(masses), masses)
    indices, probabilities = scene.priorities.draw(100, np.random.default_rng(1))
    assert len(indices) == 100
    allowed = {name for name, mass in zip(names, masses, strict=True) if mass > 1e-30 * max(masses)}
    assert set(indices.tolist()) <= allowed
    assert np.isfinite(probabilities).all() and (probabilities > 0).all()
    if len(set(masses)) == 1:
        assert set(indices.tolist()) == allowed


def test_without_any_mass_nothing_is_drawn(scene: Scene) -> None:
    """No rows, or none with a priority."""
    assert len(scene.priorities.draw(8, np.random.default_rng(0))[0]) == 0
    scene.write(3, [0.0] * 3)
    assert len(scene.priorities.draw(8, np.random.default_rng(0))[0]) == 0


def test_an_update_of_an_overwritten_row_is_recognised(scene: Scene) -> None:
    """It is left out, and the newcomer in its place keeps what it has."""
    old = scene.write(192)
    new = scene.write(30)  # recycles two blocks of 24
    updated = scene.priorities.update(
        np.array([old[0], old[47], old[48], new[0]]), np.array([5.0, 5.0, 7.0, 8.0])
    )
    assert updated.tolist() == [False, False, True, True]
    assert scene.mass([new[0], new[29], old[48]]) == [8.0, 1.0, 7.0]
    assert scene.mass([30 + old[0]]) == [0.0], (
        "what was there is gone, and nothing new has come yet"
    )
    scene.priorities.check()


def test_rows_that_were_there_before_get_the_same_mass() -> None:
    """Priorities may be kept from any moment on, also with a ring that has gone round."""
    scene = Scene()
    scene.registry.remove(scene.priorities)
    scene.write(250)
    late = Priorities(scene.ring, 0.5)
    late.begin()
    late.check()
    indices = np.arange(250)
    there = scene.ring.committed(indices)
    assert late.total == there.sum() == scene.ring.rows_now[0]
    assert set(late.draw(400, np.random.default_rng(0))[0].tolist()) <= set(indices[there].tolist())
    late.close()
    scene.close()


def test_final_observations_have_no_mass() -> None:
    """No item is drawn by them; and an update by mistake gives them none."""
    spec = Spec.steps(obs=((), "int64"), action=((), "int64"))
    scene, episodes = Scene(spec=spec), Episodes(spec)
    for t in range(60):
        step = {
            "obs": t,
            "action": t,
            "reward": 0.0,
            "terminated": t % 3 == 2,
            "truncated": False,
            "next_obs": t + 1,
        }
        rows = episodes.rows(step)
        assert isinstance(rows, tuple)
        scene.writer.write_rows(*rows)
        episodes.advance()
    assert scene.priorities.total == 60 and scene.ring.rows_now[0] == 80
    indices, _ = scene.priorities.draw(300, np.random.default_rng(0))
    assert len(WindowFinder(scene.ring, Window()).find(indices)) == len(indices) == 300
    everything = np.arange(80)
    scene.priorities.update(everything, np.full(80, 2.0))
    assert scene.priorities.total == 120
    scene.close()


@pytest.mark.parametrize(("blocks", "block_rows"), [(8, 24), (700, 128)])
def test_rows_that_are_left_out_are_not_drawn_and_change_no_proportion(
    blocks: int, block_rows: int
) -> None:
    """Chi-square over the others, also beside a mass that a difference of sums would drown them
    in."""
    scene, rng = Scene(blocks, block_rows), np.random.default_rng(5)
    names = np.array(scene.write(scene.ring.capacity_rows - 3))
    out = np.unique(
        np.concatenate([[0, 1, 2, len(names) - 1], rng.integers(0, len(names), len(names) // 3)])
    )
    masses = np.exp(rng.normal(-40, 1.0, len(names)))
    masses[out] = 10.0 ** rng.integers(-9, 9, len(out))
    scene.priorities.update(names, masses)
    kept = np.setdiff1d(np.arange(len(names)), out)
    expected = np.float32(masses[kept]).astype(float) / np.float32(masses[kept]).astype(float).sum()
    counts = np.zeros(len(names))
    for _ in range(60):
        indices, probabilities = scene.priorities.draw(
            512, rng, without=scene.priorities.without(names[out])
        )
        counts += np.bincount(indices, minlength=len(names))
        assert np.allclose(probabilities, expected[np.searchsorted(kept, indices)], rtol=1e-6)
    assert counts.sum() == 60 * 512 and counts[out].sum() == 0
    groups = np.array_split(np.argsort(expected), 40)
    seen = [counts[kept][group].sum() for group in groups]
    hoped = np.array([expected[group].sum() for group in groups]) * counts.sum()
    assert stats.chisquare(seen, hoped).pvalue > 1e-3
    assert scene.priorities.without(names).total == 0
    assert len(scene.priorities.draw(9, rng, without=scene.priorities.without(names))[0]) == 0
    scene.priorities.check()
    scene.close()


def test_rows_of_a_block_that_was_left_for_a_lap_are_not_drawn(scene: Scene) -> None:
    """They are not counted as there, so they have no mass either, and an update does not give them
    one."""

    class First:
        name = "Fifo()"

        def pinned(self) -> np.ndarray:
            return np.arange(8) == 0

    names = np.array(scene.write(192))
    scene.registry.add_pins(First())
    scene.write(30)
    assert scene.ring.committed(names[:24]).all() and not scene.ring.committed(names[24:48]).any()
    assert scene.priorities.total == scene.ring.rows_now[0] == 192 - 72 + 30
    assert not scene.priorities.update(names[:24], np.ones(24)).any()
    assert scene.priorities.total == 192 - 72 + 30
    scene.priorities.check()


def test_a_block_that_is_left_while_its_writer_is_in_it_has_no_mass_either(scene: Scene) -> None:
    """The writer publishes rows into a block that the ring has passed meanwhile."""
    other = StreamWriter(scene.ring, scene.ring.block_locks(), scene.registry)

    class Overtaken(Priorities):
        def written(self, at: int, count: int, priorities: np.ndarray | None = None) -> None:
            if at == 0 and count == 10:
                other.write({"x": np.arange(8 * 24)}, 0, 8 * 24)
            super().written(at, count, priorities)

    overtaken = Overtaken(scene.ring, 1.0)
    scene.registry.add_listener(overtaken)
    scene.write(10)
    assert scene.ring.committed(np.arange(10)).all()
    assert scene.priorities.total == overtaken.total == scene.ring.rows_now[0]
    overtaken.close()
    other.close()


@pytest.mark.parametrize("exponents", [(1.0, 0.5), (0.5, 1.0), (0.3, 0.6, 0.0, 0.9), (0.0, 0.7)])
def test_priorities_given_before_a_table_exists_are_in_each_that_is_made(
    exponents: tuple[float, ...],
) -> None:
    """By rows, by updates, or the largest so far; also where rows were recycled in between."""
    ring, registry = Ring(SPEC, 8, 24), WriterRegistry()
    writer = StreamWriter(ring, ring.block_locks(), registry)
    tables = PriorityTables(ring, registry, mine := {})
    expected: dict[int, float] = {}

    def write(count: int, given: list[float] | None) -> None:
        largest = max([1.0, *expected.values()])
        column = None if given is None else np.array(given)
        for k, name in enumerate(writer.write({"x": np.arange(count)}, 0, count, column).tolist()):
            expected[name] = largest if given is None or np.isnan(given[k]) else abs(given[k])

    def check(exponent: float) -> None:
        table = tables.of_exponent(exponent)
        there = np.array(sorted(name for name in expected if ring.committed(np.array([name]))[0]))
        priorities = [expected[name] for name in there.tolist()]
        masses = np.array([priority and priority**exponent for priority in priorities])
        assert np.allclose(table.masses[ring.positions(there)], masses, rtol=1e-6, atol=0)
        assert np.isclose(table.total, masses.sum()), "and nothing else has a mass"
        table.check()

    write(5, None)
    write(3, [NONE] * 3)
    assert not mine and not registry.listeners, "nothing is kept as long as none is given"
    write(7, [0.5, -3.0, NONE, 1e-9, 0.0, 4.0, 2.0])
    write(150, None)
    write(40, (np.arange(40) / 7).tolist())  # recycles the first block
    write(2, None)
    for number, exponent in enumerate(exponents):
        tables.of_exponent(exponent).exponents.take(0.0)
        write(1, None)
        check(exponent)
        name = max(expected) - number
        assert tables.update(np.array([name]), np.array([50.0 + number])).all()
        expected[name] = 50.0 + number
        write(3, None)
        write(1, [0.25])
        for other in exponents[: number + 1]:
            check(other)
    writer.close()
    tables.close()
    ring.segment.close()


@pytest.mark.parametrize("seed", range(4))
def test_sums_never_drift_under_writers_and_updates_at_once(seed: int) -> None:
    """Two threads write, two update what they know, one draws: afterwards every sum is that of its
    masses, and rows that are not there have none."""
    scene, rng = Scene(blocks=12, block_rows=16), np.random.default_rng(seed)
    writers = [scene.writer, StreamWriter(scene.ring, scene.ring.block_locks(), scene.registry)]
    known: list[int] = []
    stop = threading.Event()
    stale = 0

    def write(writer: StreamWriter) -> None:
        for _ in range(150):
            known.extend(writer.write({"x": np.arange(7)}, 0, 7).tolist())

    def update(numbers: np.random.Generator) -> None:
        nonlocal stale
        while not stop.is_set():
            if known:
                names = numbers.choice(known[-300:], 64)
                stale += int((~scene.priorities.update(names, numbers.random(64) * 10)).sum())

    def draw() -> None:
        while not stop.is_set():
            indices, probabilities = scene.priorities.draw(32, rng)
            assert len(indices) == len(probabilities) <= 32

    changing = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    others = [threading.Thread(target=update, args=(np.random.default_rng(k),)) for k in range(2)]
    others.append(threading.Thread(target=draw))
    for thread in [*changing, *others]:
        thread.start()
    for thread in changing:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    scene.priorities.check()
    positions = np.arange(scene.ring.capacity_rows)
    serials = (scene.ring.ends[positions // 16] - 1) // 16
    there = scene.ring.committed(serials * 16 + positions % 16)
    masses = scene.priorities.masses[: len(positions)]
    assert (masses[~there] == 0).all() and (masses[there] > 0).all()
    writers[1].close()
    scene.close()
