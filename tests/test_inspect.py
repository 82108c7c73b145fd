"""Tests of `areplay inspect`: good, damaged, newer and missing checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_oracle import block_files, manifest_of

import areplay
from areplay._checkpoint.manifest import manifest_checksum
from areplay._checkpoint.reader import Checkpoint
from areplay.cli import main

SPEC = areplay.Spec.steps(obs=((2, 3), "float32"), action=((), "int64"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with steps, priorities and streams of batches; the second save of its
    directory."""
    areplay.run(save_twice(tmp_path / "run-1"))
    return tmp_path / "run-1"


async def save_twice(path: Path) -> None:
    """30 steps, and 60 more."""
    streams = []  # what nobody keeps is dropped, and not in the checkpoint
    async with areplay.Replay(SPEC, 200, block_rows=16) as replay:
        for k in range(2):
            for _ in range(30 * (k + 1)):
                step = {"obs": np.zeros((2, 3), np.float32), "action": k, "reward": 0.0}
                await replay.add(**step, terminated=False, truncated=False)
            replay.sample(4, areplay.Transitions(), areplay.Prioritized(0.7))
            limiter = areplay.SamplesPerInsert(2.0, min_size_to_sample=10)
            streams.append(replay.batches(batch_size=8, limiter=limiter))
            await replay.save(path)


def inspected(
    path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, Any, str]:
    """Exit status, the document, and what was said on standard error."""
    status = main(["inspect", str(path), "--json", *options])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def flip_a_bit(file: Path) -> None:
    """In its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_what_is_in_a_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, blocks, the spec field by field, priorities and streams; sizes as they are on disk."""
    status, document, err = inspected(saved, capsys)
    assert (status, err) == (0, "")
    assert (document["format"], document["version"], document["checkpoint_version"]) == (
        "areplay inspect",
        1,
        1,
    )
    assert (document["path"], document["save"], document["id"]) == (
        str(saved),
        2,
        manifest_of(saved)["id"],
    )
    assert (document["rows"], document["rows_inserted"], document["capacity_rows"]) == (90, 90, 208)
    assert (document["blocks"], document["block_rows"], document["row_streams"]) == (6, 16, 1)
    assert (
        0 <= document["age_s"] < 100
        and abs(document["saved_at_s"] + document["age_s"] - time.time()) < 100
    )
    fields = {
        field["name"]: (tuple(field["shape"]), field["dtype"], field["row_bytes"])
        for field in document["spec"]
    }
    assert fields["obs"] == ((2, 3), "float32", 24) and fields["action"] == ((), "int64", 8)
    assert (
        list(fields) == ["obs", "action", "reward", "terminated", "truncated"]
        and document["is_steps"]
    )
    assert [each["exponent"] for each in document["priorities"]] == [0.7]
    assert [stream["batches_delivered"] for stream in document["streams"]] == [0, 0]
    assert "Transitions" in document["streams"][0]["what"]
    sizes = {path.name: path.stat().st_size for path in saved.iterdir()}
    assert document["files"] == len(sizes)
    assert document["bytes"]["total"] == sum(sizes.values())
    assert document["bytes"]["blocks"] == sum(
        size for name, size in sizes.items() if name.startswith("block-")
    )
    assert document["bytes"]["manifest"] == sizes["manifest.json"]
    assert (document["is_verified"], document["damages"], document["left_over"]) == (False, [], {})


def test_a_good_checkpoint_is_verified(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its files, and with how far it is."""
    status, document, err = inspected(saved, capsys, "--verify")
    assert (status, err) == (0, "")
    assert (document["is_verified"], document["damages"]) == (True, [])
    seen: list[tuple[int, int]] = []
    assert list(Checkpoint(str(saved)).damages(lambda *done: seen.append(done))) == []
    total = document["bytes"]["total"] - document["bytes"]["manifest"]
    assert len(seen) == document["files"] - 1 and seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_each_damaged_file_is_named(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bit that flipped, a file cut short, one that is gone: all of them, with the rest still
    shown."""
    flipped, short, gone = (saved / name for name in sorted(block_files(saved))[:3])
    flip_a_bit(flipped)
    with short.open("r+b") as file:
        file.truncate(short.stat().st_size - 1)
    gone.unlink()
    (masses,) = saved.glob("masses-*")
    flip_a_bit(masses)
    assert inspected(saved, capsys)[0] == 0, "it was not asked to read them"
    status, document, _ = inspected(saved, capsys, "--verify")
    assert status == 1
    whats = {damage["file"]: damage["what"] for damage in document["damages"]}
    assert set(whats) == {flipped.name, short.name, gone.name, masses.name}
    assert "checksum" in whats[flipped.name] and "checksum" in whats[masses.name]
    assert "bytes instead of" in whats[short.name] and whats[gone.name] == "is missing"
    assert document["rows"] == 90
    assert main(["inspect", str(saved), "--verify"]) == 1
    assert f"{flipped.name} has another checksum" in capsys.readouterr().out


def test_what_a_fifo_has_delivered_belongs_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown as one of the streams, and verified."""

    async def save() -> None:
        async with areplay.Replay(areplay.Spec(x=((), "int64")), 100) as replay:
            await replay.extend({"x": np.arange(50)})
            async with replay.batches(batch_size=8, selector=areplay.Fifo()) as batches:
                await anext(batches)
                await replay.save(tmp_path)

    areplay.run(save())
    _, document, _ = inspected(tmp_path, capsys, "--verify")
    assert [(stream["batches_delivered"], stream["is_fifo"]) for stream in document["streams"]] == [
        (1, True)
    ]
    (delivered,) = tmp_path.glob("delivered-*")
    flip_a_bit(delivered)
    status, document, _ = inspected(tmp_path, capsys, "--verify")
    assert status == 1 and [damage["file"] for damage in document["damages"]] == [delivered.name]


@pytest.mark.parametrize("damaged", ["manifest.json", "blocks-2.npy"])
def test_without_its_tables_there_is_nothing_to_show(
    damaged: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damage is named, the exit status is 1, nothing is on standard output."""
    flip_a_bit(saved / damaged)
    status, document, err = inspected(saved, capsys)
    assert (status, document) == (1, None)
    assert err.startswith(
        f"areplay inspect: the checkpoint in {str(saved)!r} is damaged: {damaged} "
    )


def test_a_newer_checkpoint_is_not_guessed_at(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both versions are said."""
    manifest = manifest_of(saved)
    manifest["version"] = 2
    manifest["crc32"] = manifest_checksum(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    status, document, err = inspected(saved, capsys)
    assert (status, document) == (1, None)
    assert "version: expected at most 1, got 2" in err


def test_there_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in an empty directory nor where there is none."""
    for path in (tmp_path, tmp_path / "nowhere"):
        status, document, err = inspected(path, capsys)
        assert (status, document) == (1, None)
        assert err.startswith(f"areplay inspect: there is no checkpoint in {str(path)!r}")


def test_what_a_cut_off_save_has_left_is_told(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It belongs to nobody, and is no damage; what is not a checkpoint's file is not looked at."""
    (saved / "block-99-16-3.npys").write_bytes(b"12345")
    (saved / "notes.txt").write_text("mine")
    status, document, _ = inspected(saved, capsys, "--verify")
    assert (status, document["left_over"]) == (0, {"block-99-16-3.npys": 5})
    assert main(["inspect", str(saved)]) == 0
    assert "1 file of a save that goes on or was cut off" in capsys.readouterr().out


async def test_a_save_may_replace_what_is_being_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the new one is verified: no damage is made up."""
    async with areplay.Replay(SPEC, 64, block_rows=16) as replay:

        async def add(count: int) -> None:
            for _ in range(count):
                step = {"obs": np.zeros((2, 3), np.float32), "action": 0, "reward": 0.0}
                await replay.add(**step, terminated=False, truncated=False)

        await add(40)
        await replay.save(tmp_path)
        before = manifest_of(tmp_path)["id"]
        checkpoint = Checkpoint(str(tmp_path))
        await add(100)
        await replay.save(tmp_path)
    monkeypatch.setattr("areplay.cli.inspect.Checkpoint", lambda path: found.pop(0))
    found = [checkpoint, Checkpoint(str(tmp_path))]
    status, document, _ = inspected(tmp_path, capsys, "--verify")
    assert (status, document["damages"], document["save"]) == (0, [], 2)
    assert document["id"] != before and found == []


def test_people_are_shown_the_same(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lines of at most 100 columns, with rich and without; nothing in it can move the cursor."""
    shown = []
    monkeypatch.setattr(time, "time", lambda: 1_900_000_000.0)  # the same age
    for has_rich in (True, False):
        monkeypatch.setattr("areplay.cli.terminal.has_rich", lambda has_rich=has_rich: has_rich)
        monkeypatch.chdir(saved.parent)
        assert main(["inspect", saved.name]) == 0
        shown.append([line.rstrip() for line in capsys.readouterr().out.splitlines()])
    assert shown[0] == shown[1]
    text = "\n".join(shown[0])
    for word in (
        "90 of capacity 208",
        "float32 (2, 3)",
        "int64 ()",
        "exponent 0.7",
        "save number 2",
        "steps of episodes",
    ):
        assert word in text, word
    assert max(map(len, shown[0][1:])) <= 100 and "\x1b" not in text


def test_whoever_reads_may_have_seen_enough(saved: Path) -> None:
    """As `areplay ... | head -1`: no traceback, and the status of a program that a broken pipe
    ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        command = [sys.executable, "-m", "areplay", "inspect", str(saved)]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60.0)
    assert (done.returncode, done.stderr) == (141, "")
