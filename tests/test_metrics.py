"""Tests of `metrics`: everything that the statistics count is there, under names that Prometheus
likes."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from test_statistics import WHOLE

import areplay
from areplay.metrics import ReplayCollector

SPEC = areplay.Spec(x=((), "int64"))
LABELS = {"index", "group", "number"}
NO_METRICS = {"pid", "exit_code", "exited_at_s"}  # of one process
SUMS = {"batches.restarts"}  # of all samplers of a stream: Prometheus can add them up


class Made:
    """A replay of which only the statistics are there, and those made up."""

    def __init__(self, statistics: areplay.Statistics) -> None:
        self._statistics = statistics

    def statistics(self) -> areplay.Statistics:
        """Always the same."""
        return self._statistics


def scraped(collector: ReplayCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads: `{(name, labels): value}`."""
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def numbered(record: Any, numbers: Iterator[int]) -> Any:
    """The record with another number in each of its fields that are numbers."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = numbered(value, numbers)
        elif isinstance(value, tuple):
            changes[field.name] = tuple(numbered(each, numbers) for each in value)
        elif (isinstance(value, int | float) and not isinstance(value, bool)) or (
            value is None and field.name == "items_left"
        ):
            changes[field.name] = next(numbers)
    return dataclasses.replace(record, **changes)


def leaves(record: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`(path, value)` of all numbers in a record."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(each):
                yield from leaves(each, f"{path}{field.name}.")
            elif isinstance(each, int | float) and not {field.name, path + field.name} & (
                NO_METRICS | SUMS
            ):
                yield f"{path}{field.name}", each


def test_every_number_of_the_statistics_is_a_metric() -> None:
    """Each with its value, none twice; booleans are 0 and 1."""
    made = numbered(WHOLE, iter(range(2, 1_000)))
    replay = Made(made)
    found = list(scraped(ReplayCollector(replay)).values())  # type: ignore[arg-type]
    for path, value in leaves(made):
        name = path.rpartition(".")[2]
        if name in LABELS or isinstance(value, bool):
            continue
        assert found.count(float(value)) == 1, path
    booleans = [value for path, value in leaves(made) if isinstance(value, bool)]
    assert sorted(value for value in found if value in (0, 1)) == sorted(map(float, booleans))
    assert len(found) == sum(path.rpartition(".")[2] not in LABELS for path, _ in leaves(made))


def test_the_names_follow_prometheus() -> None:
    """The prefix, base units, `_total` for what only grows and for nothing else, and a sentence
    each."""
    replay = Made(WHOLE)
    collector = ReplayCollector(replay)  # type: ignore[arg-type]
    families = list(collector.collect())
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert re.fullmatch(r"areplay_[a-z_]+", family.name)
        assert not re.search(r"_(s|ms|mb)$", family.name)
        assert (family.documentation and family.documentation[0].isupper()) or family.documentation[
            0
        ].isdigit()
        assert all(
            sample.name.endswith("_total") == (family.type == "counter")
            for sample in family.samples
        )
    assert [family.name for family in collector.describe()] == names


def test_what_has_not_happened_yet_has_no_sample() -> None:
    """Of a replay without rows and saves no moment is told but that it was opened; 0 would be the
    year 1970."""
    saves = areplay.SavesStatistics(0, 0, 0, None, "", 0.0, "", 0.0)
    young = Made(dataclasses.replace(WHOLE, last_row_at_s=0.0, saves=saves))
    old = Made(WHOLE)
    moments = {
        name: {
            sample
            for sample, _ in scraped(ReplayCollector(replay))
            if sample.endswith("_timestamp_seconds")
        }  # type: ignore[arg-type]
        for name, replay in (("young", young), ("old", old))
    }
    assert moments["young"] == {"areplay_opened_timestamp_seconds"}
    assert moments["old"] == moments["young"] | {
        f"areplay_last_{what}_timestamp_seconds" for what in ("row", "save", "save_failure")
    }


def test_each_actor_stream_and_sampler_has_labels_of_its_own() -> None:
    """Groups may have actors of the same index; the longest wait of those who are called the same
    counts."""
    (actor,), (stream,) = WHOLE.actors, WHOLE.batches
    made = dataclasses.replace(
        WHOLE,
        actors=(actor, dataclasses.replace(actor, group=5, rows=7)),
        batches=(stream, dataclasses.replace(stream, number=6, ready=2, limiter=None)),
        waits=(
            areplay.Wait("learner", "", 2.0),
            areplay.Wait("learner", "", 3.0),
            areplay.Wait("learner", "", 1.0),
        ),
    )
    left, right = Made(made), Made(WHOLE)
    found = scraped(ReplayCollector({"left": left, "right": right}))  # type: ignore[dict-item]
    assert (
        found["areplay_actor_rows_total", (("actor", "0"), ("group", "0"), ("replay", "left"))]
        == 100
    )
    assert (
        found["areplay_actor_rows_total", (("actor", "0"), ("group", "5"), ("replay", "left"))] == 7
    )
    assert (
        found["areplay_actor_rows_total", (("actor", "0"), ("group", "0"), ("replay", "right"))]
        == 100
    )
    assert found["areplay_queue_ready_batches", (("replay", "left"), ("stream", "6"))] == 2
    assert (
        found[
            "areplay_sampler_batches_total", (("replay", "left"), ("sampler", "0"), ("stream", "6"))
        ]
        == 107
    )
    assert found["areplay_waiting_seconds", (("replay", "left"), ("who", "learner"))] == 3.0
    assert ("areplay_limiter_error_samples", (("replay", "left"), ("stream", "6"))) not in found


async def test_a_server_of_prometheus_gets_what_is_there_now() -> None:
    """In its own thread; after the replay is closed there are no samples, and it is not kept
    alive."""
    async with areplay.Replay(SPEC, 1_000) as replay:
        registry = CollectorRegistry()
        registry.register(ReplayCollector(replay))
        server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)

        def get() -> str:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{server.server_port}/metrics", timeout=30
            ) as answer:
                return str(answer.read().decode())

        try:
            assert 'areplay_rows{replay="replay"} 0.0\n' in get()
            await replay.extend({"x": np.arange(20)})
            assert 'areplay_rows{replay="replay"} 20.0\n' in get()
            await replay.close()
            assert "# TYPE areplay_rows gauge\n" in get() and "areplay_rows{" not in get()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    collector = ReplayCollector(replay)
    reference = collector._replays["replay"]
    del replay
    gc.collect()
    assert reference() is None
    assert scraped(collector) == {}


async def test_a_registry_refuses_a_second_collector_and_takes_one_of_several_replays() -> None:
    """Otherwise each metric would be described twice."""
    async with areplay.Replay(SPEC, 1_000) as left, areplay.Replay(SPEC, 2_000) as right:
        registry = CollectorRegistry()
        registry.register(ReplayCollector(left))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(ReplayCollector(right))
        found = scraped(ReplayCollector({"left": left, "right": right}))
        for name, replay in (("left", left), ("right", right)):
            assert found["areplay_capacity_rows", (("replay", name),)] == replay.capacity_rows


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the collector is made, not when the module is imported."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        areplay.MissingDependency,
        match=r"pip install '\.\[metrics\]'` in a clone "
        r"of areplay",
    ):
        ReplayCollector({})


EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_prometheus_example_ends_by_itself_and_shows_metrics() -> None:
    """Run as a user does, for a moment."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "prometheus.py"), "0", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "metrics at http://127.0.0.1:" in done.stdout
    (rows,) = re.findall(
        r'areplay_actor_rows_total\{actor="1",group="0",replay="replay"\} (\d+)', done.stdout
    )
    assert int(rows) > 0


def test_the_tensorboard_example_ends_by_itself_and_leaves_curves(tmp_path: Path) -> None:
    """Run as a user does; what it wrote is read back."""
    pytest.importorskip("tensorboardX")
    command = [
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / "tensorboard_curves.py"),
        str(tmp_path / "run"),
        "1.2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (events,) = (tmp_path / "run").iterdir()
    written = events.read_bytes()
    for name in (
        "replay/rows",
        "replay/rows_per_s",
        "queue/fill",
        "queue/learner_waiting_share",
        "learner/loss",
    ):
        assert name.encode() in written
    assert len((EXAMPLES / "tensorboard_curves.py").read_text().splitlines()) <= 70
    assert len((EXAMPLES / "prometheus.py").read_text().splitlines()) <= 70
