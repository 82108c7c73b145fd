"""Tests of `python -m benchmarks.row`: from the command line to the files."""

from __future__ import annotations

import json
import logging
import sys
from datetime import date
from pathlib import Path

import pytest

from benchmarks.harness.figures import Figure
from benchmarks.harness.options import Options, Progress
from benchmarks.harness.panels import Measurement
from benchmarks.row import catalogue, plots
from benchmarks.row.__main__ import main
from benchmarks.workloads import Workload

from .workers import PANELS

PNG = b"\x89PNG\r\n\x1a\n"


async def measured(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """Nothing, but at once."""
    progress("at work")
    figures = (Figure.of("rate", options.capacity, "rows/s", "a note"),)
    return Measurement(
        "throughput",
        workload.name,
        "what was done",
        figures,
        PANELS,
        ("left out: 10,000,000 rows",),
    )


async def failing(workload: Workload, options: Options, progress: Progress) -> Measurement:
    """No measurement."""
    raise MemoryError("there is none left")


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time."""
    monkeypatch.setitem(catalogue.MEASURES, "throughput", measured)
    monkeypatch.setitem(catalogue.MEASURES, "queue", failing)


def test_bench_measures_and_leaves_json_a_table_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """End to end, with real children and rows of the user's own."""
    out, today = tmp_path / "out", date.today()
    assert (
        main(
            [
                "--quick",
                "--only",
                "torn",
                "--fields",
                "obs=8:float32",
                "done=:bool",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    record = json.loads((out / "bench.json").read_text())
    (found,) = record["measurements"]
    versions = {
        name: sys.modules[name].__version__
        for name in ("areplay", "numpy", "uvloop", "aiomultiprocess")
    }
    assert versions.items() <= record["machine"].items()
    assert record["rows"] == {
        "own": {"row_bytes": 33, "fields": {"obs": [[8], "float32"], "done": [[], "bool"]}}
    }
    assert found["name"] == "torn"
    assert {figure["name"]: figure["value"] for figure in found["figures"]}[
        "torn rows accepted"
    ] == 0
    table = (out / "bench.md").read_text()
    assert {f"- {name}: {version}" for name, version in versions.items()} <= set(table.splitlines())
    assert today <= date.fromisoformat(record["measured_on"]) <= date.today()
    assert f"- measured on: {record['measured_on']}" in table.splitlines()
    asked = (
        "- asked for: 0.1 s a figure, 2,048 rows a replay, 256 a batch, 10 s for more and "
        "more actors or rows"
    )
    assert asked in table.splitlines()
    assert "| torn rows accepted | 0 rows | must be 0 |" in table.splitlines()
    assert "![torn](torn-33-bytes.png)" in table
    assert (out / "torn-33-bytes.png").read_bytes().startswith(PNG)
    assert "| torn rows accepted | 0 rows | must be 0 |" in capsys.readouterr().out
    assert logging.root.manager.disable == logging.NOTSET


def test_by_default_two_kinds_of_rows_are_measured(
    instead: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Large ones and small ones, each with a plot of every kind of panel; options reach the
    measurement."""
    asked = ["--capacity", "300", "--batch-size", "8", "--seconds", "0.5", "--budget", "7"]
    assert main(["--only", "throughput", *asked, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "bench.json").read_text())
    wanted = {"capacity": 300, "batch_size": 8, "seconds": 0.5, "budget_s": 7.0}
    assert wanted.items() <= record["options"].items()
    assert [found["rows"] for found in record["measurements"]] == ["frames", "cartpole"]
    assert [found["figures"][0]["value"] for found in record["measurements"]] == [300, 300]
    assert "- left out: 10,000,000 rows" in (tmp_path / "bench.md").read_text().splitlines()
    for row_bytes in (28_240, 45):
        assert (tmp_path / f"throughput-{row_bytes}-bytes.png").read_bytes().startswith(PNG)
    assert "at work" in capsys.readouterr().err


def test_what_cannot_be_measured_is_said_and_the_rest_is_measured(
    instead: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status says so too."""
    assert main(["--row", "64", "--only", "queue", "throughput", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["failures"] == {"queue, 64-byte rows": "MemoryError: there is none left"}
    assert [found["name"] for found in record["measurements"]] == ["throughput"]
    assert (
        "- queue, 64-byte rows: MemoryError: there is none left"
        in capsys.readouterr().out.splitlines()
    )


def test_without_matplotlib_all_but_the_plots_is_there(
    instead: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line names the extra."""
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    assert main(["--row", "64", "--only", "throughput", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "![" not in (tmp_path / "bench.md").read_text()
    assert "pip install '.[bench]'` in a clone of areplay" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fields", "obs=4x:uint8"], "field 'obs': an axis must be a whole number"),
        (["--row", "0"], "argument --row: expected a whole number of at least 1, got '0'"),
        (
            ["--capacity", "many"],
            "argument --capacity: expected a whole number of at least 1, got 'many'",
        ),
        (["--row", "64", "--fields", "obs=4:uint8"], "not allowed with"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--seconds", "0"], "argument --seconds: expected a number of seconds above 0, got '0'"),
        (
            ["--seconds", "nan"],
            "argument --seconds: expected a number of seconds above 0, got 'nan'",
        ),
        (
            ["--seconds", "few"],
            "argument --seconds: expected a number of seconds above 0, got 'few'",
        ),
    ],
)
def test_a_wrong_option_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured, and it says which."""
    with pytest.raises(SystemExit) as raised:
        main([*arguments])
    assert raised.value.code == 2
    assert said in capsys.readouterr().err
