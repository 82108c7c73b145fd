"""Each measurement, once and tiny, with real children. Asserted is that it is whole, never how fast
anything was."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options
from benchmarks.harness.panels import Measurement, Panel
from benchmarks.learners import WaitLog
from benchmarks.row import actors, capacity, recovery
from benchmarks.row.catalogue import MEASURES
from benchmarks.row.recovery import Recovery
from benchmarks.workloads import CARTPOLE

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])

QUICK = Options.quick()


def ignore(line: str) -> None:
    """What is going on is of no interest here."""


def value_of(measurement: Measurement, name: str) -> float:
    """The figure of that name."""
    (figure,) = (figure for figure in measurement.figures if figure.name == name)
    return figure.value


@pytest.mark.parametrize("name", MEASURES)
async def test_a_measurement_is_whole(name: str) -> None:
    """Figures with names of their own, all finite and none below 0; points for each panel; fit for
    JSON."""
    found = await MEASURES[name](CARTPOLE, QUICK, ignore)
    assert (found.name, found.rows) == (name, CARTPOLE.name)
    assert len({figure.name for figure in found.figures}) == len(found.figures) > 0
    assert all(math.isfinite(figure.value) and figure.value >= 0 for figure in found.figures), (
        found.figures
    )
    assert found.panels
    for panel in found.panels:
        check_panel(panel)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["title"] == found.title
    check_figures(found)


def check_panel(panel: Panel) -> None:
    """As many `x` as `y`, a histogram without `x`, and all of them finite."""
    for series in panel.series:
        assert series.y
        assert len(series.x) == (0 if panel.kind == "histogram" else len(series.y))
        assert all(math.isfinite(value) for value in (*series.x, *series.y))


def check_figures(found: Measurement) -> None:
    """What must hold of figures wherever they are measured."""
    if found.name == "torn":
        assert value_of(found, "torn rows accepted") == 0
        assert value_of(found, "rows compared with their checksum") > 0
        assert value_of(found, "laps of the ring") > 1
    if found.name == "recovery":
        assert (
            0
            < value_of(found, "successor READY")
            <= value_of(found, "queue as full as before, two samplers")
        )
        ready = value_of(found, "actor killed: successor READY")
        assert 0 < ready <= value_of(found, "actor killed: its first row stored")
        worst = value_of(found, "longest wait without a kill, worst")
        assert worst >= value_of(found, "longest wait without a kill, median") > 0
    if found.name == "throughput":
        assert value_of(found, "batches out alone") > 0 < value_of(found, "at once: batches out")
    if found.name == "capacity":
        for name in ("insert, uniform", "insert, prioritised", "update of a priority"):
            assert 0 < value_of(found, f"{name}, 10,000 rows: a row") < 100_000
    if found.name == "blocks":
        assert "left out: blocks of" not in " ".join(found.notes)
        assert all(figure.value <= 1 for figure in found.figures)


def log_of(*waits_s: float) -> WaitLog:
    """Steps that waited so long."""
    log = WaitLog()
    for step, wait_s in enumerate(waits_s):
        log.add(0.005 * step, wait_s, 1.0)
    return log


async def test_a_kill_is_compared_with_as_many_steps_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it took until all was as before: the longest of more steps would be longer by
    itself."""
    lengths, kills = [], []

    async def learner(
        *args: object, is_done: Callable[[WaitLog], bool] = lambda log: False
    ) -> WaitLog:
        """Takes no time."""
        log = log_of(1e-6)
        while len(log.at_s) < args[3] and not is_done(log):  # type: ignore[operator]
            log.add(log.at_s[-1] + 0.25, 1e-6, 1.0)
        lengths.append(len(log.at_s))
        return log

    monkeypatch.setattr(recovery, "blocked_learner", learner)
    monkeypatch.setattr(recovery.os, "kill", lambda pid, number: kills.append(pid))
    stages = iter([0] * 30 + [1] * 10 + [2])
    found = await recovery._killed(
        None, None, Options(prefetch=3), 4_711, lambda level: next(stages)
    )  # type: ignore[arg-type]
    assert kills == [4_711]
    assert len(found.log.at_s) == len(found.calm.at_s) == 41
    assert lengths == [3, 41, 13, 41], "the third is thrown away: 3 s of steps of 250 ms"


async def test_waits_with_and_without_a_kill_are_told_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worst of as many kills as of stretches without; the actors' by themselves."""
    samplers = [
        Recovery(log_of(0.001, 0.007), log_of(0.002, 0.001)),
        Recovery(log_of(0.003), log_of(0.004)),
    ]
    actors = [Recovery(log_of(0.005), log_of(0.006))]

    async def recoveries(*args: object) -> recovery.Recoveries:
        return recovery.Recoveries(samplers, actors)

    monkeypatch.setattr(recovery, "recoveries", recoveries)
    found = await recovery.measure(CARTPOLE, QUICK, ignore)
    told = {figure.name: round(figure.value) for figure in found.figures if figure.unit == "us"}
    assert told == {
        "longest wait, worst kill": 7_000,
        "longest wait, median kill": 5_000,
        "longest wait without a kill, worst": 4_000,
        "longest wait without a kill, median": 3_000,
        "actor killed: longest wait": 5_000,
        "actor killed: longest wait without a kill": 6_000,
    }


async def test_capacities_that_do_not_fit_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Powers of ten that take no more than half of the memory; the reason has both sizes."""
    monkeypatch.setattr(
        capacity, "available_memory", lambda: (200_000_000, "the host's available memory")
    )
    sizes, left_out = capacity.sizes_for(CARTPOLE, Options())
    assert sizes == [10_000, 100_000, 1_000_000]  # 85 bytes each: 85 of 100 MB
    assert left_out == ["10,000,000 rows: 0.8 GB, the host's available memory leaves 0.2 GB"]


async def test_actors_that_do_not_fit_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Powers of two, as far as memory and descriptors reach."""
    monkeypatch.setattr(actors, "available_memory", lambda: (1 << 30, "the limit"))
    counts, left_out = actors.counts_for(Options(max_actors=16))
    assert counts == [1, 2, 4, 8]  # 64 MiB each, in half of 1 GiB
    assert left_out == ["16 actors: 1.1 GB, the limit leaves 1.1 GB"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3, 3))
    assert actors.counts_for(Options(max_actors=2)) == (
        [],
        [f"{n} actors: RLIMIT_NOFILE is 3" for n in (1, 2)],
    )


async def test_where_nothing_fits_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an error, which the report lists beside what could be measured."""
    for module in (capacity, actors):
        monkeypatch.setattr(module, "available_memory", lambda: (1_000, "the limit"))
        with pytest.raises(ValueError, match="the limit leaves"):
            await module.measure(CARTPOLE, QUICK, ignore)


async def test_the_best_number_of_actors_is_shown_beside_the_first_and_the_last() -> None:
    """Each once, in order."""
    rates = {1: 10.0, 2: 30.0, 4: 20.0}

    def shown(*counts: int) -> list[tuple[str, float]]:
        points = [actors.Point(count, rates[count], 1.0, 1.0) for count in counts]
        figures = actors._measurement(CARTPOLE, points, []).figures
        return [(figure.name, figure.value) for figure in figures if figure.unit == "rows/s"]

    assert shown(1, 2, 4) == [("1 actor: in", 10.0), ("2 actors: in", 30.0), ("4 actors: in", 20.0)]
    assert shown(1, 2) == [("1 actor: in", 10.0), ("2 actors: in", 30.0)]
    assert shown(1) == [("1 actor: in", 10.0)]


async def test_more_actors_than_the_time_allows_are_left_out_and_named() -> None:
    """The first point is always measured."""
    found = await actors.measure(CARTPOLE, replace(QUICK, budget_s=1e-9, max_actors=4), ignore)
    assert found.notes == (
        "left out: 2, 4 actors: they would take more than the budget of 1e-09 s",
    )
    assert [figure.name for figure in found.figures][:2] == [
        "1 actor: in",
        "1 actor: processor time",
    ]


async def test_more_rows_than_the_time_allows_are_left_out_and_named() -> None:
    """The first size is always measured."""
    found = await capacity.measure(
        CARTPOLE, replace(QUICK, budget_s=1e-9, max_rows=1_000_000), ignore
    )
    assert found.notes == ("left out: 100,000, 1,000,000 rows: budget of 1e-09 s",)
    assert {series.x for panel in found.panels for series in panel.series} == {(10_000.0,)}


async def test_what_a_row_costs_is_the_median_time_of_a_chunk_or_batch_by_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay whose calls take 1, 1, 4, 1, ... ms by a clock of its own: 256 rows handed in, or a
    batch's updated."""

    class Timed:
        def __init__(self) -> None:
            self.now_s, self.asked = 0.0, list[int]()

        def _opened(self) -> SimpleNamespace:
            return SimpleNamespace(ring=self)

        def index_range(self) -> tuple[int, int]:
            return 100, 400

        def _call(self, rows: int) -> None:
            self.asked.append(rows)
            self.now_s += 0.004 if len(self.asked) % 3 == 0 else 0.001

        async def extend(self, columns: dict[str, np.ndarray[Any, Any]]) -> None:
            self._call(len(columns["reward"]))

        def update_priorities(
            self, indices: np.ndarray[Any, Any], errors: np.ndarray[Any, Any]
        ) -> None:
            assert ((indices >= 100) & (indices < 400)).all() and indices.shape == errors.shape
            self._call(len(indices))

    options = replace(QUICK, batch_size=50, seconds=0.4)
    for rows in (256, 50):
        replay: Any = Timed()
        monkeypatch.setattr(capacity.time, "perf_counter", lambda replay=replay: replay.now_s)
        if rows == 256:
            found_us = await capacity.insert_us(replay, CARTPOLE, options)
        else:
            found_us = capacity.update_us(replay, options)
        assert found_us == pytest.approx(1_000 / rows)
        assert set(replay.asked) == {rows} and 0.1 <= replay.now_s < 0.11


async def test_figures_say_their_unit() -> None:
    """After the number, unless it is a plain one."""
    assert [str(Figure.of("f", 1234.5, "rows/s")), str(Figure.of("f", 0.5, ""))] == [
        "1,234 rows/s",
        "0.500",
    ]
