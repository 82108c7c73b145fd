"""Tests of `areplay top`, of its rates and its picture: made-up replays, and one of this
process."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from rich.console import Console, RenderableType
from test_statistics import WHOLE

import areplay
from areplay._status.client import fetch_report, running_replays
from areplay.cli import main, top
from areplay.cli import terminal as terminal
from areplay.cli.picture import command_of, picture
from areplay.cli.rates import rates
from areplay.errors import Closed, StatusUnavailable

SPEC = areplay.Spec(x=((), "int64"))


def answer(**changes: Any) -> dict[str, Any]:
    """What a replay might say; the changes are of its statistics."""
    statistics = dataclasses.asdict(dataclasses.replace(WHOLE, **changes))
    return {
        "format": "areplay replay",
        "version": 1,
        "pid": 17,
        "argv": ["/usr/bin/python3", "train.py", "--env", "Pong"],
        "time_s": 1_700_000_130.0,
        "uptime_s": 90.0,
        "versions": {"areplay": "0.1.0"},
        "spec": {"fields": [], "is_steps": False},
        "statistics": json.loads(json.dumps(statistics)),
    }


def shown(now: dict[str, Any], before: dict[str, Any] | None = None, width: int = 100) -> str:
    """The picture as text."""
    text = shown_by(picture(now, rates(now, before or now)), width)
    return "\n".join(line.rstrip() for line in text.splitlines())


def shown_by(part: RenderableType, width: int = 100) -> str:
    """What rich prints of it, without the last end of line."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(part)
    return console.export_text().removesuffix("\n")


def test_rates_are_differences_by_the_replays_clock() -> None:
    """Of the whole, of each actor, stream and sampler; one that was not there before has begun at
    nothing."""
    before, now = answer(), answer()
    now["uptime_s"] += 2.0
    now["statistics"]["rows_inserted"] += 50
    now["statistics"]["actors"][0]["rows"] += 30
    (stream,) = now["statistics"]["batches"]
    stream["batches_delivered"] += 8
    stream["learner_waited_s"] += 0.5
    stream["samplers"][0]["batches_filled"] += 10
    now["statistics"]["actors"].append(
        copy.deepcopy(now["statistics"]["actors"][0]) | {"index": 1, "rows": 6}
    )
    found = rates(now, before)
    assert (found["seconds"], found["rows_per_s"]) == (2.0, 25.0)
    assert [(actor["index"], actor["rows_per_s"]) for actor in found["actors"]] == [
        (0, 15.0),
        (1, 3.0),
    ]
    (rate,) = found["batches"]
    assert (rate["batches_per_s"], rate["items_per_s"], rate["waiting_share"]) == (
        4.0,
        4.0 * 256,
        0.25,
    )
    assert rate["samplers"] == [{"index": 0, "batches_per_s": 5.0}]
    now["statistics"]["batches"].append(
        copy.deepcopy(stream) | {"number": 9, "batches_delivered": 6}
    )
    assert rates(now, before)["batches"][1]["batches_per_s"] == 3.0
    assert rates(before, now)["rows_per_s"] == 0.0, "never less than nothing"
    stream["learner_waited_s"] += 100.0
    assert rates(now, before)["batches"][0]["waiting_share"] == 1.0, "never more than all the time"


def test_the_picture_shows_the_state_in_lines_that_fit() -> None:
    """Bars, numbers, each child, who waits for what, and how one ended."""
    text = shown(answer())
    assert "python3 train.py --env Pong  pid 17 · up 90.0 s · areplay 0.1.0" in text
    assert re.search(r"ring +█{18}▎ +90 rows +of 128", text)
    assert re.search(r"queue +█{13} +8 ready +full from 16; 1 being filled, 1 lent", text)
    assert re.search(
        r"% waiting +5 times, the longest 100 ms\n +3 batches +filled by itself, "
        r"since",
        text,
    )
    assert re.search(r"checkpoint +30\.0 s ago +5\.0 kB in 300 ms; 2 saves, 1 failed", text)
    assert re.search(r"limiter +█+.* holds neither +8 a step: 2,000 in, 8,012 out", text)
    assert re.search(r"actor 0 +17 +alive +1 +0\.0 rows/s +100 rows +█▌ +inbox 3", text)
    assert re.search(r"sampler 0 +18 +alive +0 +0\.0 batches/s +107 batches +████ +8 ready", text)
    assert re.search(r"learner +waits 1\.5 s +for rows", text)
    assert "actor 0 (pid 16) ended with -9: signal 9 ended it" in text
    assert max(map(len, text.splitlines())) <= 100
    unknown = answer()
    unknown["statistics"]["actors"][0]["last_failure"]["exit_code"] = None
    assert "actor 0 (pid 16) ended with an unknown code: signal 9 ended it" in shown(unknown)


def test_the_picture_of_a_large_run_fits() -> None:
    """Numbers of many digits, many actors, long lists of waits: nothing is wrapped, and the rest is
    counted."""
    (actor,), (stream,) = WHOLE.actors, WHOLE.batches
    large = dataclasses.replace(
        actor, rows=9_999_999_999, pid=4_194_303, restarts=100, last_failure=None
    )
    actors = tuple(dataclasses.replace(large, index=k, group=k // 50) for k in range(64))
    counts = {
        "batches_delivered": 999_999_999,
        "learner_waits": 9_999_999,
        "prefetch": 100_000,
        "ready": 90_000,
    }
    counts["filled_by_learner"] = 9_999_999
    streams = tuple(
        dataclasses.replace(stream, number=k, what="Transitions(" * 20, **counts) for k in range(2)
    )
    waits = tuple(areplay.Wait(f"actor {k}", "short", 100.0) for k in range(64))
    now = answer(
        rows=99_999_999,
        capacity_rows=100_000_000,
        rows_inserted=99_999_999_999,
        row_bytes=28_240,
        memory_bytes=int(3e12),
        actors=actors,
        batches=streams,
        waits=waits,
    )
    before = copy.deepcopy(now)
    before["statistics"]["rows_inserted"] -= 9_999_999
    before["uptime_s"] -= 1.0
    lines = shown(now, before).splitlines()
    assert max(map(len, lines)) <= 100
    assert "actor 0.23" in "\n".join(lines) and any(
        re.match(r"42 more +42 alive", line) for line in lines
    )
    assert any(line.startswith("56 more") for line in lines)
    assert len(lines) < 60, "no line is wrapped"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_alive": False}, "starting"),
        ({"is_alive": False, "has_failed": True}, "failed"),
        ({"is_alive": False, "has_finished": True}, "done"),
        ({"waited_s": 7.0}, "waits 7.0 s"),
        ({"waited_s": 0.5}, "alive"),
        ({"quiet_s": 12.0}, "quiet 12.0 s"),
    ],
)
def test_the_state_of_a_child_is_a_word(changes: dict[str, Any], said: str) -> None:
    """Of those that run, those that wait, and those that do not run."""
    (actor,) = WHOLE.actors
    assert re.search(
        rf"actor 0 +17 +{said} ", shown(answer(actors=(dataclasses.replace(actor, **changes),)))
    )


@pytest.mark.parametrize(("waited_s", "is_shown"), [(0.9, False), (1.5, True)])
def test_an_actor_that_steps_between_two_looks_does_not_wait(
    waited_s: float, is_shown: bool
) -> None:
    """A wait that is shorter than from look to look, and comes again and again, is none; a
    learner's is."""
    (actor,) = WHOLE.actors
    waits = (
        areplay.Wait("actor 0", "for the learner", waited_s),
        areplay.Wait("learner", "for rows", 0.9),
    )
    now = answer(actors=(dataclasses.replace(actor, waited_s=waited_s),), waits=waits)
    before = copy.deepcopy(now)
    now["uptime_s"] += 1.0
    text = shown(now, before)
    assert ("for the learner" in text) == is_shown and "for rows" in text
    assert (
        "alive" in next(line for line in text.splitlines() if line.startswith("actor 0"))
    ) != is_shown


def test_the_queue_has_as_many_batches_ready_as_its_samplers_together() -> None:
    """Also if more are ready than fill it, for which there is room while nothing is lent or
    filled."""
    (stream,) = WHOLE.batches
    (sampler,) = stream.samplers
    samplers = tuple(
        dataclasses.replace(sampler, index=k, ready=ready) for k, ready in enumerate((8, 9))
    )
    text = shown(
        answer(batches=(dataclasses.replace(stream, ready=17, fill=1.0, samplers=samplers),))
    )
    assert re.search(r"queue +█{26} +17 ready +full from 16;", text)
    assert re.search(r"sampler 0 .* 8 ready", text) and re.search(r"sampler 1 .* 9 ready", text)


def test_who_failed_has_the_name_that_it_has_above() -> None:
    """With the number of its group or stream where there are several: each has an actor 0."""
    (actor,), (stream,) = WHOLE.actors, WHOLE.batches
    (sampler,) = stream.samplers
    failed = dataclasses.replace(sampler, last_failure=areplay.ChildExit(15, 1, "boom", 0.0))
    streams = tuple(dataclasses.replace(stream, number=k, samplers=(failed,)) for k in (3, 4))
    text = shown(answer(actors=(actor, dataclasses.replace(actor, group=2)), batches=streams))
    named = re.findall(r"^(.*) \(pid \d+\) ended with", text, re.MULTILINE)
    assert sorted(named) == ["actor 0.0", "actor 2.0", "sampler 3.0", "sampler 4.0"]
    for name in named:
        assert re.search(rf"^{name} +\d+ +alive", text, re.MULTILINE), name


def test_the_latest_failures_are_shown_in_their_order() -> None:
    """Eight of them, the last one below: a screen has no room for all."""
    (actor,) = WHOLE.actors
    times = [5, 11, 3, 9, 1, 7, 2, 8, 4, 10]
    actors = tuple(
        dataclasses.replace(
            actor, index=k, last_failure=areplay.ChildExit(time, 1, "boom", float(time))
        )
        for k, time in enumerate(times)
    )
    ended = re.findall(r"\(pid (\d+)\) ended with", shown(answer(actors=actors)))
    assert [int(pid) for pid in ended] == [3, 4, 5, 7, 8, 9, 10, 11]


def test_an_empty_replay_has_a_picture_too() -> None:
    """Nothing is divided by nothing."""
    saves = areplay.SavesStatistics(0, 0, 0, None, "", 0.0, "", 0.0)
    text = shown(answer(rows=0, actors=(), batches=(), waits=(), saves=saves))
    assert "0 rows" in text and "checkpoint" not in text and "no wait is longer than 100 ms" in text
    assert "none yet" in shown(answer(saves=dataclasses.replace(saves, failures=1)))


def test_what_comes_from_elsewhere_cannot_move_the_cursor() -> None:
    """A command line, a reason and a traceback are text of others."""
    evil = "\x1b[2J\x1b]0;title\x07\r"
    (actor,) = WHOLE.actors
    exit_ = areplay.ChildExit(1, 1, f"Error: {evil}", 0.0)
    now = answer(
        waits=(areplay.Wait(f"who {evil}", f"why [red]not markup[/red] {evil}", 2.0),),
        actors=(dataclasses.replace(actor, last_failure=exit_),),
    )
    now["argv"] = ["python", evil]
    now["versions"]["areplay"] = evil
    text = shown(now)
    assert "[red]not markup[/red]" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", text)
    assert len(command_of({"argv": ["python", "x" * 500]})) == 50


def test_bars_are_exact_to_an_eighth() -> None:
    """And stay within their width, whatever the share."""
    drawn = {
        share: shown_by(terminal.gauge(share, "cyan", 4))
        for share in (0, 1 / 32, 13 / 32, 0.5, 1, 2, -1)
    }
    assert drawn == {
        0: "    ",
        1 / 32: "▏   ",
        13 / 32: "█▋  ",
        0.5: "██  ",
        1: "████",
        2: "████",
        -1: "    ",
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (5e-6, "5 us"),
        (0.02, "20 ms"),
        (1.5, "1.5 s"),
        (150, "2 min"),
        (8_000, "2 h 13 min"),
        (300_000, "3 d 11 h"),
    ],
)
def test_times_are_for_people(seconds: float, said: str) -> None:
    """In the unit that fits."""
    assert terminal.span(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(5, "5 B"), (45_000, "45.0 kB"), (7e6, "7.0 MB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")],
)
def test_sizes_are_for_people(count: float, said: str) -> None:
    """In the unit that fits."""
    assert terminal.size(count) == said


async def test_one_replay_is_found_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even by its own process; of two it has to be said which, and both are listed."""
    mine = [address for address in running_replays() if address.pid == os.getpid()]
    assert mine == []
    monkeypatch.setattr(
        top, "fetch_report", lambda address, timeout_s=5.0: fetch_report(address, 30.0)
    )
    options = ["top", "--once", "--json", "--interval", "0.01"]
    async with areplay.Replay(SPEC, 100) as replay:
        await replay.extend({"x": np.arange(10)})
        assert main([*options, str(os.getpid())]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["pid"], document["statistics"]["rows"]) == (os.getpid(), 10)
        assert document["rates"]["rows_per_s"] == 0.0
        async with areplay.Replay(SPEC, 1_000):
            assert main([*options, str(os.getpid())]) == 2
            out, err = capsys.readouterr()
            assert out == "" and f"{os.getpid()}.0  up" in err and f"{os.getpid()}.1  up" in err
            assert "10 of 112 rows" in err and "0 of 1,008 rows" in err
            assert main([*options, f"{os.getpid()}.1"]) == 0
            assert json.loads(capsys.readouterr().out)["statistics"]["capacity_rows"] == 1_008
    assert main([*options, str(os.getpid())]) == 1
    assert f"no replay {os.getpid()} of this user is running here" in capsys.readouterr().err


def test_one_that_goes_away_or_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is the end of a run, the second an error."""
    address = top.ReplayAddress(17, 0, os.geteuid())
    monkeypatch.setattr(top, "running_replays", lambda: [address])
    said: list[Any] = [answer(), answer(), Closed("replay 17.0")]

    def fetch_report(asked: top.ReplayAddress, timeout_s: float = 1.0) -> Any:
        word = said.pop(0)
        if isinstance(word, Exception):
            raise word
        return word

    monkeypatch.setattr(top, "fetch_report", fetch_report)
    assert main(["top", "--interval", "0.01"]) == 0
    out, err = capsys.readouterr()
    assert "train.py" in out and err == (
        "areplay top: replay 17.0 is closed, or its process has ended\n"
    )
    said = [StatusUnavailable("replay 17.0", "no answer within 5 s", "ask again")]
    assert main(["top", "17", "--json"]) == 1
    assert "no answer within 5 s; ask again\n" in capsys.readouterr().err
    monkeypatch.setattr(
        top, "running_replays", lambda: [address, top.ReplayAddress(18, 0, os.geteuid())]
    )
    said = [
        StatusUnavailable("replay 17.0", "no answer within 1 s", "ask again"),
        Closed("replay 18.0"),
    ]
    assert main(["top"]) == 2
    assert re.search(r"17\.0  no answer within 1 s\n$", capsys.readouterr().err)


@pytest.mark.parametrize("options", [["--once"], ["--once", "--json"], ["--json"], []])
@pytest.mark.parametrize("looks", [0, 1])
def test_one_that_closes_before_there_is_a_picture_is_an_error(
    options: list[str],
    looks: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script that gets nothing is told so, by the exit status too."""
    monkeypatch.setattr(top, "running_replays", lambda: [top.ReplayAddress(17, 0, os.geteuid())])
    said: Iterator[dict[str, Any]] = iter([answer()] * looks)

    def fetch_report(asked: top.ReplayAddress) -> dict[str, Any]:
        for word in said:
            return word
        raise Closed("replay 17.0")

    monkeypatch.setattr(top, "fetch_report", fetch_report)
    assert main(["top", "--interval", "0.01", *options]) == 1
    out, err = capsys.readouterr()
    said_of_it = (
        "replay 17.0 is closed, or its process has ended, before there was anything to show"
    )
    assert (out, err) == ("", f"areplay top: {said_of_it}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["top", "--interval", "0"], "expected a number of seconds from 0.01 to 86400, got '0'"),
        (
            ["top", "--interval", "soon"],
            "expected a number of seconds from 0.01 to 86400, got 'soon'",
        ),
        ([], "COMMAND"),
        (["unheard-of"], "invalid choice: 'unheard-of'"),
    ],
)
def test_what_is_not_understood_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By argparse, with a line on how it is used, and one on what was expected."""
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    err = capsys.readouterr().err
    assert "usage: areplay" in err and said in err


def test_ctrl_c_ends_every_command_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it comes; and so does the end of whoever reads."""

    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(top, "running_replays", interrupt)
    monkeypatch.setattr("areplay.cli.checks.findings", interrupt)
    monkeypatch.setattr("areplay.cli.inspect.Checkpoint", interrupt)
    for arguments in (["top"], ["doctor"], ["inspect", "somewhere"]):
        assert main(arguments) == 130
    assert capsys.readouterr() == ("", "")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"areplay {areplay.__version__}\n"
