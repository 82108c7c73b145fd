"""Actors whose code misbehaves in every way: a typed error with what the child had to say, and
others untouched."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

import areplay

from . import workers
from .oracle import SPEC, lives
from .watching import is_running, until


@dataclass
class Outcome:
    """What became of a group of actors that misbehave in all ways at once."""

    failures: dict[str, areplay.ActorFailed] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """One group with an actor for each way to misbehave, none of them restarted, and well-behaved
    ones beside."""
    ways = list(workers.MISBEHAVIOURS)
    found = Outcome()
    orphans: list[int] = []
    output = tmp_path_factory.mktemp("misbehaviour") / "output"

    async def main() -> None:
        async with areplay.Replay(SPEC, 100_000) as replay:
            async with replay.actors(
                workers.misbehave, len(ways), args=(ways,), max_restarts=0, grace_s=10.0
            ) as actors:
                await until(lambda: actors.alive == 0, within=60.0)
                orphans.extend(
                    int(r.values["forked"]) for r in actors.reports() if "forked" in r.values
                )
                for failure in actors.failures:
                    found.failures[ways[int(failure.child.split()[1])]] = failure
                for record in actors.statistics():
                    found.restarts[ways[record.index]] = record.restarts
            found.rows = {ways[actor]: count for (actor, _), count in lives(replay).items()}

    try:
        with (
            _standard_output_into(output),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(main())
        assert output.stat().st_size == (1 << 20) + 1, "all that was printed came out"
        assert orphans, "the forked process said who it is"
        assert all(is_running(pid) for pid in orphans), "and outlived its parent all the while"
        yield found
    finally:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _standard_output_into(path: Path) -> Iterator[None]:
    """Let this process and the children that it starts write to a file."""
    kept = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@pytest.mark.parametrize(
    ("way", "exit_code", "said"),
    [
        pytest.param(
            "raises",
            1,
            r"(?s)Traceback.*in misbehave.*RuntimeError: the environment "
            r"broke",
            id="raises",
        ),
        pytest.param(
            "raises what cannot be pickled",
            1,
            r"(?s)Traceback.*Unpicklable: with a lock",
            id="raises-what-cannot-be-pickled",
        ),
        pytest.param(
            "raises what cannot be printed",
            1,
            r"(?s)Traceback.*Unprintable",
            id="raises-what-cannot-be-printed",
        ),
        pytest.param("raises at length", 1, "🙂🙂🙂", id="raises-at-length"),
        pytest.param(
            "raises an interrupt", 1, r"(?s)Traceback.*KeyboardInterrupt", id="raises-an-interrupt"
        ),
        pytest.param("exits with 3", 3, "SystemExit: 3", id="exits-with-3"),
        pytest.param("exits with 0", 0, "SystemExit: 0", id="exits-with-0"),
        pytest.param("exits with words", 1, "SystemExit: no more", id="exits-with-words"),
        pytest.param("leaves with 0", 0, "without a word", id="leaves-with-0"),
        pytest.param(
            "is cancelled by its own code", 1, "CancelledError", id="is-cancelled-by-its-own-code"
        ),
        pytest.param(
            "breaks in native code", -signal.SIGSEGV, "signal 11", id="breaks-in-native-code"
        ),
        pytest.param("forks and raises", 1, "RuntimeError: after the fork", id="forks-and-raises"),
    ],
)
def test_misbehaviour_is_a_typed_error_with_the_childs_words(
    outcome: Outcome, way: str, exit_code: int, said: str
) -> None:
    """ActorFailed with the exit code and the traceback; the rows that were handed in before are
    kept."""
    assert way in outcome.failures, "counted as a failure"
    failure = outcome.failures[way]
    assert failure.exit_code == exit_code
    with pytest.raises(areplay.ActorFailed, match=said):
        raise failure.with_traceback(None)
    assert outcome.rows[way] == 5


@pytest.mark.parametrize(
    "way",
    ["behaves", "returns at once", "prints a lot", "blocks its loop", "recovers from bad rows"],
)
def test_others_are_untouched(outcome: Outcome, way: str) -> None:
    """Actors that do nothing wrong finish beside those that do, and are not restarted."""
    assert way not in outcome.failures
    assert outcome.restarts[way] == 0
    assert outcome.rows.get(way, 0) == {"behaves": 2_000, "returns at once": 0}.get(way, 5)


def test_every_misbehaviour_is_looked_at(outcome: Outcome) -> None:
    """The group ended as a whole: each of its actors finished or failed."""
    assert outcome.restarts.keys() == set(workers.MISBEHAVIOURS)
