"""What the examples show: the figures behind it, in a terminal, in a log and as a picture."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

import areplay
import display
from areplay import BatchesStatistics, SavesStatistics, Statistics
from display import Chart, Look, Progress

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


def progress_of(**changed: object) -> Progress:
    """After 12 s of learning: 1,000 rows and 100 batches a second, returns that rise from -20 to
    20."""
    options: dict[str, object] = {
        "name": "Pong",
        "title": "Pong",
        "unit": "points",
        "series": ("seldom random", "often random"),
        "test": "test",
        "returns": (-21.0, 21.0),
        "solved_return": 18.0,
        "max_rows": 40_000,
    }
    progress = Progress(Chart(**(options | changed)))  # type: ignore[arg-type]
    progress.looks += [Look(s, 1_000 * s, 100 * (s - 2), min(s, 8), 8, s) for s in range(2, 13)]
    progress.tests += [(s, -20 + 4 * (s - 2)) for s in range(2, 13)]
    progress.episodes = {
        k: [(s, -20 + (4 - 2 * k) * (s - 2)) for s in range(2, 13)] for k in range(2)
    }
    return progress


def statistics(rows: int, ready: int) -> Statistics:
    """Of a replay with one stream of batches."""
    counts = (32, 8, ready, ready / 8, 0, rows // 10, 0, 0, 1, 0, 0, 0.0, 0.0)
    stream = BatchesStatistics(*counts, None, None, 0, "Rows() by Uniform()", 10, 0, 4_096, ())
    saves = SavesStatistics(0, 0, 0, None, "", 0.0, "", 0.0)
    return Statistics(
        rows, 10_000, rows, 45, 10, 1_000, 1, 0, 0, (), (stream,), (), 1.0, 450_000, 0.0, saves
    )


def text_of(progress: Progress) -> str:
    """The live panel, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(display.panel(progress))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_rates_are_of_the_last_second_or_of_all() -> None:
    """From the looks alone."""
    progress = progress_of()
    progress.looks[-1] = Look(12, 15_000, 1_500, 8, 8, 12)
    assert progress.rates() == (4_000, 600)
    assert progress.rates(over_s=float("inf")) == (1_300, 150)


@pytest.mark.parametrize(
    ("limit", "left"), [({}, "28 s"), ({"max_rows": None, "max_batches": 73_000}, "12 min")]
)
def test_the_time_left_is_that_until_the_limit(limit: dict[str, int | None], left: str) -> None:
    """Of rows or of batches, at the rate so far."""
    assert progress_of(**limit).left() == f"at most {left} left"


def test_the_line_has_all_in_one() -> None:
    """For logs."""
    assert display.line(progress_of()) == (
        "  12 s  return test 20, actors 2 -9 | 1,000 rows/s in | 100 batches/s out | queue 8/8 | "
        "weights 12 | at most 28 s left"
    )


def test_the_panel_has_a_line_for_each_thing() -> None:
    """And those that a program adds."""
    progress = progress_of()
    progress.facts["loss"] = "0.0123", "of one step"
    text = text_of(progress)
    for shown in (
        "Pong learns",
        "seldom random",
        "often random",
        "▁▁▂▃▄▅▅▆▇██",
        "8/8",
        "12,000 of at most 40,000",
    ):
        assert shown in text
    assert re.search(r"loss +0.0123 +of one step", text)


def test_nothing_yet_can_be_shown_too(tmp_path: Path) -> None:
    """Before the first episode, without bounds of returns and without any test."""
    progress = progress_of(returns=None, solved_return=None)
    progress.episodes.clear()
    progress.tests.clear()
    del progress.looks[2:]
    assert "return test -, actors -" in display.line(progress)
    assert "Pong learns" in text_of(progress)
    assert not progress.is_solved
    display.draw_picture(progress, tmp_path / "picture.png")


def test_unknown_bounds_are_those_of_the_returns_so_far() -> None:
    """The lowest return is 0, the highest 1."""
    progress = progress_of(returns=None)
    assert progress.share_of(-20) == 0 and progress.share_of(20) == 1


def test_solved_is_what_the_last_test_says() -> None:
    """Not an earlier one."""
    progress = progress_of()
    assert progress.is_solved
    progress.note_test(17.0)
    assert not progress.is_solved


def test_looks_become_rarer_in_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night of looks fits into memory; the start, the beginning of learning and the newest are
    kept."""
    monkeypatch.setattr(display, "MAX_LOOKS", 10)
    progress = Progress(progress_of().chart)
    for rows in range(1, 101):
        progress.note_look(statistics(rows, ready=4), weight_version=0)
        assert len(progress.looks) <= 10
    assert progress.looks[-1].fill == 0.5
    rows = [look.rows for look in progress.looks]
    assert rows[:2] == [0, 1] and rows[-1] == 100 and rows == sorted(rows)
    assert progress._look_s > display.LOOK_S


def test_episodes_come_from_reports() -> None:
    """Into the series that they name."""
    progress = progress_of()
    progress.note_episode(
        areplay.Report(5, progress._started_s + 1.5, {"episode_return": 3.0, "series": 1})
    )
    assert progress.episodes[1][-1] == pytest.approx((1.5, 3.0))


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    """In a folder that need not be there."""
    path = tmp_path / "docs" / "picture.png"
    display.draw_picture(progress_of(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
