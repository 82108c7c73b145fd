"""The benchmarks run, with timing off: each once and tiny. Asserted is that they are whole, never
how fast."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.catalogue import BENCHMARKS
from benchmarks.harness.figures import Figure, Target, number, summary, table, write_json
from benchmarks.harness.options import Options
from benchmarks.harness.runner import run_each
from benchmarks.harness.turns import take_turns

WATCHDOG_S = 120.0
EXPECTED = {
    "delivery": 6,
    "cartpole": 4,
    "learner": 4,
    "ingest": 6,
    "items": 6,
    "limiter": 6,
    "prioritized": 7,
    "blocks": 4,
    "checkpoint": 4,
    "recovery": 6,
    "question": 4,
    "queue_fill": 3,
}


@pytest.mark.parametrize("name", BENCHMARKS)
async def test_benchmark_gives_all_its_figures(name: str, tmp_path: Path) -> None:
    """Every figure is there once, finite and positive, or says why it could not be measured."""
    options = replace(Options.quick(), picture=str(tmp_path / "queue_fill.png"))
    async with asyncio.timeout(WATCHDOG_S):
        figures = await BENCHMARKS[name](options)
    assert len({figure.name for figure in figures}) == len(figures) == EXPECTED[name]
    for figure in figures:
        assert figure.rounds or figure.note
        values = [*figure.rounds, *figure.beside.values()]
        assert all(math.isfinite(value) and value >= 0 for value in values), figure
        if figure.unit != "":  # a fill may be nothing at all, a rate or a ratio may not
            assert all(value > 0 for value in values), figure
    assert name != "queue_fill" or (tmp_path / "queue_fill.png").stat().st_size > 10_000


async def test_sides_take_turns_forwards_and_backwards() -> None:
    """Each side is measured once a round, in an order that alternates."""
    order: list[str] = []

    async def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    seen = await take_turns({name: partial(side, name) for name in "ab"}, Options(rounds=3))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seen == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_verdict_says_by_how_much_a_target_was_missed() -> None:
    """Met on the bound itself, missed by a share of the bound on the wrong side, in both
    directions."""
    assert Figure("a", (1.0, 9.0, 2.0), target=Target(">=", 2)).verdict == "met"
    assert Figure("a", (1.7,), target=Target(">=", 2)).verdict == "missed by 15 %"
    assert Figure("a", (30.0,), target=Target("<=", 20)).verdict == "missed by 50 %"
    assert Figure("a", (20.0,), target=Target("<=", 20)).verdict == "met"
    assert Figure("a", (), target=Target("<=", 20)).verdict == "not measured"


def test_table_and_json_hold_every_figure(tmp_path: Path) -> None:
    """Also one that could not be measured, whose JSON value is null and not a NaN that no parser
    takes."""
    figures = [
        Figure("fast", (2.0,), beside={"ours": 20.0}),
        Figure("absent", (), note="not installed"),
    ]
    assert [line.split()[0] for line in table(figures).splitlines()[2:]] == ["fast", "absent"]
    write_json(tmp_path / "results" / "out.json", figures, Options.quick(), {"delivery": 0.5})
    record = json.loads((tmp_path / "results" / "out.json").read_text())
    assert [figure["value"] for figure in record["figures"]] == [2.0, None]


def test_numbers_keep_three_digits_that_mean_something() -> None:
    """Whatever their size."""
    assert [number(value) for value in (0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        "0", "0.0123", "1.23", "12.3", "123", "12,346",
    ]  # fmt: skip


def test_the_end_of_a_run_says_which_targets_were_met() -> None:
    """Those missed say by how much, those not measured are named; figures without a target are left
    out."""
    figures = [
        Figure("a", (2.0,), target=Target(">=", 2)),
        Figure("b", (30.0,), "us", Target("<=", 20)),
        Figure("c", (), target=Target(">=", 1)),
        Figure("d", (1.0,)),
    ]
    assert summary(figures) == [
        "1 of 3 targets met",
        "  missed by 50 %: b: 30.0 us, target <= 20.0 us",
        "  not measured: c: - x, target >= 1.00 x",
    ]


def test_a_work_that_fails_does_not_end_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Its reason takes the place of its value."""

    async def fails() -> int:
        raise MemoryError("there is none left")

    async def works() -> int:
        return 3

    begun: list[str] = []
    first, second = run_each({"one": fails, "two": works}, begun.append)
    assert begun == ["one", "two"]
    assert (first.value, first.failure) == (None, "MemoryError: there is none left")
    assert (second.value, second.failure) == (3, "")
    assert "MemoryError" in capsys.readouterr().err
