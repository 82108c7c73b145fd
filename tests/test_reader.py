"""Tests of `_sampling.reader`: whole rows only, whatever the writer does meanwhile.

The doubles here play the writer: an item that lets rows be overwritten before, in the middle of or
after its copying, and a selector that says exactly what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from kit import bound

from areplay._base.arrays import Array, Indices
from areplay._ingest.episodes import Episodes
from areplay._sampling import reader as reader_module
from areplay._sampling.batch_memory import BatchArrays
from areplay._sampling.item_search import SearchLimits
from areplay._sampling.reader import ROUNDS_WITHOUT_LOCK, Reader
from areplay._storage import ring as ring_module
from areplay._storage import stream_writer as writer_module
from areplay._storage.registry import WriterRegistry
from areplay._storage.ring import Ring
from areplay._storage.stream_writer import StreamWriter
from areplay._storage.windows import Window, Windows
from areplay.items.item import BatchFields, Fields
from areplay.items.rows import Rows
from areplay.selectors.uniform import Uniform
from areplay.spec import Spec

SPEC = Spec(a=((), "int64"), b=((2,), "float32"))


class Scene:
    """A full ring of 4 blocks of 4 rows whose row n has n in both fields, its writer and a second
    view of the locks."""

    def __init__(self, rows: int = 16) -> None:
        self.ring = Ring(SPEC, 4, 4)
        self.writer = StreamWriter(self.ring, self.ring.block_locks(), WriterRegistry())
        self.locks, self.others = self.ring.block_locks(), self.ring.block_locks()
        self.next = 0
        self.write(rows)

    def write(self, rows: int) -> None:
        """Append the next rows; a row's number is its index."""
        numbers = np.arange(self.next, self.next + rows)
        self.next += rows
        columns = {"a": numbers, "b": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}
        assert self.writer.write(columns, 0, rows).tolist() == numbers.tolist()

    def reader(
        self,
        item: Any = None,
        selector: Any = None,
        most_at_once: int = 1,
        *,
        after_the_draw: bool = False,
    ) -> Reader:
        """A reader of this ring; rows that a script draws though they are gone may have gone
        `after_the_draw`."""
        rng = np.random.default_rng(7)
        chosen = bound(selector or Uniform())
        if after_the_draw:
            chosen.is_of_user = False
        return Reader(
            self.ring,
            self.locks,
            item or Rows(),
            chosen,
            rng,
            most_at_once=most_at_once,
        )

    def is_free(self, block: int) -> bool:
        """Whether nobody holds that block."""
        free = self.others.try_exclusive(block)
        if free:
            self.others.release(block)
        return free

    def close(self) -> None:
        """Give everything back."""
        self.writer.close()
        self.locks.close()
        self.others.close()
        self.ring.segment.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A full ring."""
    scene = Scene()
    yield scene
    scene.close()


def batch(count: int) -> BatchArrays:
    """Fresh memory for a batch, filled with what no row has."""
    arrays = BatchArrays.empty(count, BatchFields(Rows().fields(SPEC)))
    for array in (
        arrays.indices,
        arrays.importance_weights,
        arrays.probabilities,
        *arrays.fields.values(),
    ):
        array.fill(-77)
    return arrays


def assert_whole(out: BatchArrays) -> list[int]:
    """Each item is the row that its index names; the indices."""
    indices = out.indices.tolist()
    assert out.fields["a"].tolist() == indices
    assert out.fields["b"].tolist() == [[index, index] for index in indices]
    return indices


class Scripted:
    """A selector that draws what a script says, and keeps how many were asked for."""

    def __init__(self, *draws: list[int], then: list[int] | None = None) -> None:
        self._draws, self._then = list(draws), then
        self.asked: list[int] = []

    def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, float]:
        """The next draw of the script; the last word again and again after that."""
        self.asked.append(count)
        drawn = self._draws.pop(0) if self._draws else (self._then or [])[:count]
        return np.array(drawn, np.int64), 0.25


class Disturbed(Rows):
    """Rows that are overwritten by a writer around the n-th copying: `before` it, or `after` it."""

    def __init__(
        self, before: Mapping[int, Callable[[], None]], after: Mapping[int, Callable[[], None]]
    ) -> None:
        self._before, self._after = before, after
        self.copies: list[list[int]] = []

    def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
        """As `Rows`, disturbed."""
        nth = len(self.copies)
        self.copies.append(windows.indices.tolist())
        self._before.get(nth, int)()
        super().assemble(windows, out)
        self._after.get(nth, int)()


def test_an_undisturbed_batch_is_drawn_and_copied_once(scene: Scene) -> None:
    """Indices as drawn, in order; each item whole; weights 1 and the probability of the draw."""
    item, selector = Disturbed({}, {}), Scripted([3, 15, 3, 8])
    reader, out = scene.reader(item, selector), batch(4)
    assert reader.fill(out)
    assert assert_whole(out) == [3, 15, 3, 8]
    assert out.importance_weights.tolist() == [1.0] * 4
    assert out.probabilities.tolist() == [0.25] * 4
    assert (selector.asked, len(item.copies), reader.rows_redrawn) == ([4], 1, 0)


def test_a_ring_without_rows_fills_nothing() -> None:
    """`False`, and nothing is copied."""
    scene = Scene(rows=0)
    item = Disturbed({}, {})
    assert not scene.reader(item).fill(batch(3))
    assert item.copies == []
    scene.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_overwritten_while_they_were_copied_are_drawn_anew(scene: Scene, when: str) -> None:
    """The writer recycles block 0 around the copy: only its rows are drawn again, the others stay
    as they are."""
    script = {0: lambda: scene.write(4)}
    item = Disturbed(script, {}) if when == "before" else Disturbed({}, script)
    selector = Scripted([2, 9, 0, 14], then=[17, 5])
    reader, out = scene.reader(item, selector), batch(4)
    assert reader.fill(out)
    assert assert_whole(out) == [17, 9, 5, 14]
    assert selector.asked == [4, 2]
    assert reader.rows_redrawn == 2
    assert out.importance_weights.tolist() == [1.0] * 4
    assert out.probabilities.tolist() == [0.25] * 4


def test_rows_torn_again_while_they_are_mended_are_drawn_again(scene: Scene) -> None:
    """Round after round, each with fewer rows, until all are whole."""
    script = {0: lambda: scene.write(4), 1: lambda: scene.write(4), 2: lambda: scene.write(4)}
    selector = Scripted([0, 1, 12], [5, 13], [9], [22])
    reader, out = scene.reader(Disturbed({}, script), selector), batch(3)
    assert reader.fill(out)
    assert assert_whole(out) == [22, 13, 12]
    assert selector.asked == [3, 2, 1, 1]
    assert reader.rows_redrawn == 4


@pytest.mark.parametrize("seed", range(20))
def test_random_disturbance_never_lets_a_torn_row_through(seed: int) -> None:
    """A writer that overwrites rows around every copy, by random amounts: every batch is whole and
    committed once."""
    scene, rng = Scene(), np.random.default_rng(seed)

    class Harried(Rows):
        def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
            for name in out:
                scene.write(int(rng.integers(0, 3)))
                windows.take(name, out=out[name])

    reader = scene.reader(Harried())
    for _ in range(50):
        out = batch(int(rng.integers(1, 40)))
        oldest = scene.next - 16
        assert reader.fill(out)
        assert min(assert_whole(out)) >= oldest
    assert reader.rows_redrawn > 0
    scene.close()


def fast_writer(scene: Scene, rounds: int) -> dict[int, Callable[[], None]]:
    """A writer that goes once around the ring after each of the first copies."""
    return {nth: lambda: scene.write(16) for nth in range(rounds)}


def test_a_writer_that_is_always_faster_is_met_with_a_shared_lock(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last round without a lock the rest is copied one by one while their block is
    locked: the writer leaves that block alone, and when the batch is full no lock is left."""
    held: list[bool] = []

    def failpoint(point: str) -> None:
        if point == "sampler.lock":
            held.append(not scene.is_free(int(scene.ring.index_range()[1] // 4 - 1) % 4))

    monkeypatch.setattr(reader_module, "failpoint", failpoint)

    asked: list[int] = []

    class Newest:
        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, float]:
            asked.append(count)
            return np.full(count, scene.next - 1, np.int64), 1.0

    item = Disturbed({}, fast_writer(scene, 1 + ROUNDS_WITHOUT_LOCK))
    reader, out = scene.reader(item, Newest()), batch(3)
    assert reader.fill(out)
    assert assert_whole(out) == [scene.next - 1] * 3
    assert asked == [3] * (1 + ROUNDS_WITHOUT_LOCK) + [1] * 3
    assert held == [True] * 3
    assert reader.rows_redrawn == 3 * ROUNDS_WITHOUT_LOCK
    assert all(scene.is_free(block) for block in range(4))


def test_items_drawn_ahead_are_used_until_others_would_be_drawn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as no row comes in they are as good as on the first day, and the same each time; rows
    make them stale, after a while; and so do priorities, which anyone may change."""
    drawn, draw = 0, Uniform.draw

    def counted(*args: Any) -> Any:
        nonlocal drawn
        drawn += 1
        return draw(*args)

    monkeypatch.setattr(Uniform, "draw", counted)
    reader = scene.reader(most_at_once=8)
    monkeypatch.setattr(reader_module, "_STOCK_S", 0.0)
    draws = []
    for rows in (0, 0, 1, 0):
        scene.write(rows)
        assert reader.fill(batch(4))
        draws.append(drawn)
    assert draws == [1, 1, 2, 2]
    monkeypatch.setattr(reader_module, "_STOCK_S", 1_000.0)
    assert [reader.fill(batch(4)) for _ in range(6)] == [True] * 6, "the last of eight"
    assert drawn == 2
    assert reader.fill(batch(4))
    assert drawn == 3
    monkeypatch.setattr(reader_module, "_STOCK_S", 0.0)
    scripted = Scripted(then=list(range(8, 16)) * 8)
    prioritised = scene.reader(selector=scripted, most_at_once=8)
    assert prioritised.fill(batch(4)) and prioritised.fill(batch(4))
    assert len(scripted.asked) == 2


def test_a_search_with_a_limit_is_given_up(scene: Scene) -> None:
    """Of rows by which no item can be drawn so many are drawn and no more; one without a limit goes
    on for longer."""
    drawn: list[int] = []

    class Barren(Uniform):
        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Any]:
            drawn.append(count)
            return super().draw(ring, count, rng)

    for limit, wanted in ((4, range(64, 65)), (None, range(200, 100_000))):
        reader = Reader(
            scene.ring,
            scene.locks,
            Rows(),
            bound(Barren()),
            np.random.default_rng(0),
            limits=SearchLimits(most_drawn=limit),
        )
        find = reader._search._finder.find
        reader._search._finder.find = lambda rows, chances, find=find: find(rows[:0])  # type: ignore[method-assign]
        drawn.clear()
        assert not reader.fill(batch(3))
        assert sum(drawn) in wanted


def test_rows_that_a_selector_of_the_users_has_made_up_are_not_delivered(scene: Scene) -> None:
    """A name in the range of the ring that no row has: it is left out, and others are asked for."""
    scene.write(4)
    first, end = scene.ring.index_range()
    scene.writer.close_block()
    scene.write(1)  # of its block's four places one has a row
    made_up = scene.next + 3 + 1
    assert not scene.ring.committed(np.array([made_up]))[0] and first < end <= made_up + 4
    selector, out = Scripted([made_up, 14], [15]), batch(2)
    assert scene.reader(None, selector).fill(out)
    assert assert_whole(out) == [14, 15] and len(selector.asked) == 2


GONE = {
    "gone": [0, 1, 2, 3],
    "never there": [10**9, 2**62, 2**63 - 1],
    "negative": [-5, -1, -(2**63)],
}


@pytest.mark.parametrize("is_steps", [False, True])
@pytest.mark.parametrize("names", GONE.values(), ids=GONE)
def test_a_selector_of_rows_that_are_not_there_fills_nothing_and_is_asked_a_few_times(
    names: list[int], is_steps: bool
) -> None:
    """However few it draws at a time; one of them that is there is enough. Nothing else is taken
    for one of them."""
    ring = Ring(Spec.steps(obs=((), "int64"), action=((), "int64")) if is_steps else SPEC, 4, 4)
    writer, locks = StreamWriter(ring, ring.block_locks(), WriterRegistry()), ring.block_locks()
    episodes = Episodes(ring.spec) if is_steps else None
    for number in range(20):
        if episodes is None:
            writer.write_rows({"a": number, "b": [0.0, 0.0]})
        else:
            step = {
                "obs": number,
                "action": 0,
                "reward": 0.0,
                "terminated": False,
                "truncated": False,
            }
            (row,) = episodes.rows(step)  # type: ignore[misc]
            writer.write_rows(row)  # type: ignore[arg-type]
            episodes.advance()
    one_at_a_time, many = Scripted(then=names[:1]), Scripted(then=names * 20_000)
    for selector in (one_at_a_time, many):
        reader = Reader(ring, locks, Rows(), bound(selector), np.random.default_rng(7))
        assert not reader.fill(BatchArrays.empty(3, reader.fields))
        assert len(selector.asked) <= 100
    selector = Scripted(*[names] * 60, [*names, 17], *[names] * 60, then=[18])
    reader = Reader(ring, locks, Rows(), bound(selector), np.random.default_rng(7))
    out = BatchArrays.empty(3, reader.fields)
    assert reader.fill(out)
    assert out.indices.tolist() == [17, 18, 18]
    writer.close()
    locks.close()
    ring.segment.close()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": (None, TypeError, "a tuple"),
    "only indices": (np.arange(3), TypeError, "a tuple"),
    "floats": ((np.array([14.0, 15.0]), 0.5), TypeError, "int64 indices, got float64"),
    "booleans": ((np.ones(3, bool), 0.5), TypeError, "int64 indices, got bool"),
    "names as text": ((np.array(["14"]), 0.5), TypeError, "int64 indices"),
    "a single index": ((14, 0.5), ValueError, r"shape \(n,\), got shape \(\)"),
    "a table": ((np.array([[14], [15]]), 0.5), ValueError, r"shape \(n,\), got shape \(2, 1\)"),
    "ragged lists": (([[14], [15, 14]], 0.5), TypeError, "arrays of indices"),
    "too few probabilities": (([14, 15], np.array([0.5])), ValueError, "one for each of 2 indices"),
    "no probability": (([14, 15], None), ValueError, "probabilities from 0 to 1, got nan"),
    "NaN": (([14, 15], np.array([0.5, np.nan])), ValueError, "from 0 to 1, got nan"),
    "inf": (([14, 15], np.inf), ValueError, "from 0 to 1, got inf"),
    "a negative one": (([14, 15], np.array([0.5, -0.1])), ValueError, "from 0 to 1, got -0.1"),
    "more than 1": (([14, 15], 2.0), ValueError, "from 0 to 1, got 2"),
    "text": (([14, 15], "much"), TypeError, "could not convert"),
}


@pytest.mark.parametrize("drawn, error, said", WRONG.values(), ids=WRONG)
def test_what_no_selector_may_draw_is_refused_by_its_name(
    scene: Scene, drawn: Any, error: type[Exception], said: str
) -> None:
    """With what was expected and what came; no block is locked."""

    class Mine:
        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> Any:
            return drawn

    with pytest.raises(error, match=rf"^Mine\.draw must return .*{said}"):
        scene.reader(None, Mine()).fill(batch(2))
    assert all(scene.is_free(block) for block in range(4))


def test_probabilities_of_0_are_refused_only_where_they_would_be_weighed(scene: Scene) -> None:
    """A small one may round to 0; as a weight it would be infinite."""

    class Mine:
        importance_sampling_exponent = 0.0

        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> Any:
            return [14, 15], [0.0, 1.0 + 1e-12]

    selector, out = Mine(), batch(2)
    assert scene.reader(None, selector).fill(out)
    assert (out.indices.tolist(), out.importance_weights.tolist()) == ([14, 15], [1.0, 1.0])
    selector.importance_sampling_exponent = 0.5
    with pytest.raises(ValueError, match="above 0 to 1, got 0"):
        scene.reader(None, selector).fill(out)


def test_arrays_that_a_selector_of_the_users_uses_again_are_copied(scene: Scene) -> None:
    """It draws one row at a time into the same arrays."""
    rows = iter([13, 14, 15])

    class Mine:
        def __init__(self) -> None:
            self.indices, self.chances = np.zeros(1, np.int64), np.zeros(1)

        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> Any:
            self.indices[:] = next(rows)
            self.chances[:] = self.indices / 100
            return self.indices, self.chances

    out = batch(3)
    assert scene.reader(None, Mine()).fill(out)
    assert assert_whole(out) == [13, 14, 15]
    assert out.probabilities.tolist() == [0.13, 0.14, 0.15]


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_search_without_success_ends_when_the_sampler_is_to_stop(
    scene: Scene, is_locked: bool
) -> None:
    """Between two draws: also while the one row that is drawn cannot be locked."""
    draws = 0

    class Endless(Uniform):
        def draw(self, ring: Ring, count: int, rng: np.random.Generator) -> tuple[Indices, Any]:
            nonlocal draws
            draws += 1
            return np.array([0]), 1.0

    scene.write(4)
    assert scene.others.try_exclusive(0)
    stops_after = 1 + ROUNDS_WITHOUT_LOCK + 3 if is_locked else 3
    rng = np.random.default_rng(7)
    selector = bound(Endless())
    # then row 0 is taken for one that was there when it was drawn
    selector.is_of_user = not is_locked
    reader = Reader(
        scene.ring,
        scene.locks,
        Rows(),
        selector,
        rng,
        limits=SearchLimits(gives_up=lambda: draws >= stops_after),
    )
    assert not reader.fill(batch(1))
    assert draws == stops_after
    scene.others.release(0)


def test_a_row_that_is_gone_when_its_lock_is_had_is_drawn_anew(scene: Scene) -> None:
    """Between the draw and the lock the block may be recycled: what is copied under the lock is
    committed."""
    stale, fresh = [0], [14]
    selector = Scripted(*[stale] * (1 + ROUNDS_WITHOUT_LOCK), stale, stale, fresh)
    scene.write(4)
    reader, out = scene.reader(None, selector, after_the_draw=True), batch(1)
    assert reader.fill(out)
    assert assert_whole(out) == [14]
    assert all(scene.is_free(block) for block in range(4))


def test_a_block_that_its_writer_holds_is_passed_over(scene: Scene) -> None:
    """Under a writer's lock rows may be half written: another row is drawn instead of waiting."""
    assert scene.others.try_exclusive(1)
    selector = Scripted(*[[0]] * (1 + ROUNDS_WITHOUT_LOCK), [5], [6], [13])
    scene.write(4)
    reader, out = scene.reader(None, selector, after_the_draw=True), batch(1)
    assert reader.fill(out)
    assert assert_whole(out) == [13]
    assert not scene.is_free(1) or scene.others.holder(1)
    scene.others.release(1)
    assert all(scene.is_free(block) for block in range(4))


def test_the_writer_does_not_wait_for_a_reader_that_has_a_lock(scene: Scene) -> None:
    """While the row is copied under the lock, a whole lap is written around its block, and the row
    stays whole."""
    selector = Scripted(*[[0]] * (1 + ROUNDS_WITHOUT_LOCK), [14])
    scene.write(4)

    def lap() -> None:
        numbers = np.arange(100, 116)
        columns = {"a": numbers, "b": np.repeat(numbers[:, None], 2, 1).astype(np.float32)}
        scene.writer.write(columns, 0, 16)

    item = Disturbed({1 + ROUNDS_WITHOUT_LOCK: lap}, {})
    reader, out = scene.reader(item, selector, after_the_draw=True), batch(1)
    assert reader.fill(out)
    assert assert_whole(out) == [14]


def test_a_failing_copy_under_the_lock_gives_the_lock_back(scene: Scene) -> None:
    """An item kind that raises does not leave a block that no writer can use."""

    def fail() -> None:
        raise RuntimeError("no")

    scene.write(4)
    item = Disturbed({1 + ROUNDS_WITHOUT_LOCK: fail}, {})
    reader = scene.reader(
        item, Scripted(*[[0]] * (1 + ROUNDS_WITHOUT_LOCK), [14]), after_the_draw=True
    )
    with pytest.raises(RuntimeError, match="no"):
        reader.fill(batch(1))
    assert all(scene.is_free(block) for block in range(4))


@pytest.mark.parametrize("rounds", [1, 1 + ROUNDS_WITHOUT_LOCK])
def test_a_ring_that_loses_all_rows_meanwhile_fills_nothing(scene: Scene, rounds: int) -> None:
    """Mended or locked: with nothing left to draw the answer is `False`, and no lock stays."""
    scene.write(4)
    reader = scene.reader(None, Scripted(*[[0, 1]] * rounds), after_the_draw=True)
    assert not reader.fill(batch(2))
    assert all(scene.is_free(block) for block in range(4))


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_reader_that_was_stopped_for_a_lap_goes_on(nth: int) -> None:
    """Stopped at any fence, while the ring wraps, and continued: the batch is whole, or there is
    none; no error."""
    for count in (1, 8, 300):
        scene, fences = Scene(rows=26), 0

        def order(scene: Scene = scene) -> None:
            nonlocal fences
            fences += 1
            if fences == nth:
                scene.write(16)

        out = batch(count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ring_module, "order", order)
            patch.setattr(writer_module, "order", order)
            filled = scene.reader().fill(out)
        if filled:
            assert min(assert_whole(out)) >= 26 - 16
        scene.close()


def test_an_item_kind_with_other_fields_is_mended_with_its_fields(scene: Scene) -> None:
    """What a batch holds is the item's business: shapes and dtypes come from the memory to be
    filled."""

    class Doubled:
        window = Window()

        def fields(self, spec: Spec) -> Fields:
            return {"twice": ((2,), "float64")}

        def assemble(self, windows: Windows, out: Mapping[str, Array]) -> None:
            out["twice"][:] = windows.take("a")[:, None] * 2.0

    scene.write(4)
    out = BatchArrays.empty(2, BatchFields(Doubled().fields(SPEC)))
    reader = scene.reader(Doubled(), Scripted([0, 9], [13]), after_the_draw=True)
    assert reader.fill(out)
    assert out.indices.tolist() == [13, 9]
    assert out.fields["twice"].tolist() == [[26.0, 26.0], [18.0, 18.0]]


def test_fresh_memory_has_the_shapes_and_dtypes_asked_for() -> None:
    """(B,) int64, float32 and float64, and each field with the batch axis first."""
    arrays = BatchArrays.empty(5, BatchFields({"x": ((2, 3), "uint8"), "y": ((), "bool")}))
    assert (arrays.indices.shape, arrays.indices.dtype) == ((5,), np.int64)
    assert (arrays.importance_weights.shape, arrays.importance_weights.dtype) == ((5,), np.float32)
    assert (arrays.probabilities.shape, arrays.probabilities.dtype) == ((5,), np.float64)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.fields.items()} == {
        "x": ((5, 2, 3), "uint8"),
        "y": ((5,), "bool"),
    }
