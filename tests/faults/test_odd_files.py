"""Row 31: what stands in a checkpoint's place is no checkpoint, no file, or no end of one; and
means run out.

A typed error, in bounded time and memory; what a save can replace, it replaces.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import json
import os
import random
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_oracle import check_files, manifest_of

import areplay
from areplay import Replay
from areplay._checkpoint.manifest import MOST_BYTES, allocated, manifest_checksum
from areplay._checkpoint.reader import Checkpoint
from areplay._ingest.inbox import Inboxes
from areplay.cli import main

STEPS = areplay.Spec.steps(obs=((2,), "float32"), action=((), "int64"))
MANIFEST = "manifest.json"
MOST_ALLOCATED = 64 << 20


async def saved(path: Path) -> None:
    """A checkpoint with every kind of file."""
    async with Replay(STEPS, 200, block_rows=16, seed=1) as replay:
        await fill(replay)
        replay.sample(4, selector=areplay.Prioritized())
        limiter = areplay.SamplesPerInsert(1, min_size_to_sample=10)
        replay.batches(batch_size=4, limiter=limiter)
        await replay.save(path)


async def fill(replay: Replay) -> None:
    """Some steps."""
    numbers = np.arange(100)
    await replay.extend(
        {
            "obs": np.zeros((100, 2), np.float32),
            "action": numbers,
            "reward": np.ones(100, np.float32),
            "terminated": numbers % 10 == 9,
            "truncated": np.zeros(100, np.bool_),
            "next_obs": np.zeros((100, 2), np.float32),
        }
    )


def write_manifest(path: Path, manifest: Any) -> None:
    """With the right checksum."""
    if isinstance(manifest, dict):
        manifest["crc32"] = manifest_checksum(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def a_pipe(file: Path) -> None:
    """Nobody writes to it."""
    os.mkfifo(file)


def a_device(file: Path) -> None:
    """It has no end."""
    file.symlink_to("/dev/zero")


def a_folder(file: Path) -> None:
    """With something in it."""
    file.mkdir()
    (file / "x").touch()


def a_socket(file: Path) -> None:
    """Nobody listens. Its name would be too long for its address, so it is made elsewhere."""
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(file.parent)
        try:
            bound.bind(file.name)
        finally:
            os.chdir(here)


def a_terabyte_of_holes(file: Path) -> None:
    """It takes no room on the disk."""
    file.touch()
    os.truncate(file, 1 << 40)


def a_link_to_itself(file: Path) -> None:
    """It leads nowhere."""
    file.symlink_to(file.name)


def half_a_million_brackets(file: Path) -> None:
    """A reader that goes down one by one runs out of stack."""
    file.write_text("[" * 500_000)


def many_lists(file: Path) -> None:
    """More than a manifest has, and of little text a lot of memory."""
    file.write_text(f"[{'[],' * (MOST_BYTES // 3)}[]]")


ODD = [
    a_pipe,
    a_device,
    a_folder,
    a_socket,
    a_terabyte_of_holes,
    a_link_to_itself,
    half_a_million_brackets,
    many_lists,
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fail if the test allocates much at once."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_ALLOCATED


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
@pytest.mark.usefixtures("little_memory")
async def test_a_manifest_that_is_none(
    make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named as damage, by a load and by `areplay inspect`; a save replaces it, but for a
    folder with files."""
    await saved(tmp_path)
    (tmp_path / MANIFEST).unlink()
    make(tmp_path / MANIFEST)
    async with asyncio.timeout(30), Replay(STEPS, 200) as replay:
        with pytest.raises(
            areplay.CheckpointDamaged,
            match=r"manifest\.json (is no "
            r"file|has|cannot be)",
        ):
            await Replay.load(tmp_path)
        assert main(["inspect", str(tmp_path)]) == 1
        assert "manifest.json" in capsys.readouterr().err
        if make is a_folder:
            with pytest.raises(areplay.CheckpointFailed, match="directory"):
                await replay.save(tmp_path)
            assert (tmp_path / MANIFEST / "x").exists()
        else:
            await replay.save(tmp_path)
            check_files(tmp_path)


@pytest.mark.parametrize("kind", ["blocks", "masses", "block-"])
@pytest.mark.parametrize("make", ODD[:6], ids=lambda make: make.__name__)
@pytest.mark.usefixtures("little_memory")
async def test_a_table_or_a_block_that_is_none(
    make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    """It is named as damage; the next save of another replay replaces it, or leaves a folder where
    it is."""
    await saved(tmp_path)
    file = tmp_path / next(name for name in sorted(os.listdir(tmp_path)) if name.startswith(kind))
    file.unlink()
    make(file)
    if make is a_terabyte_of_holes and kind != "block-":  # and the manifest says so
        manifest = manifest_of(tmp_path)
        tables = {"blocks": manifest["blocks"], "masses": manifest["masses"][0]}
        tables[kind]["bytes"] = 1 << 40
        write_manifest(tmp_path, manifest)
    async with asyncio.timeout(30), Replay(STEPS, 200) as replay:
        with pytest.raises(areplay.CheckpointDamaged) as caught:
            await Replay.load(tmp_path)
        assert caught.value.file == file.name
        await replay.save(tmp_path)
        async with await Replay.load(tmp_path) as loaded:
            assert len(loaded) == 0


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a document, and to each table and list."""
    yield path
    for key in (
        node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    ):
        yield from leaves(node[key], (*path, key))


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    1e308,
    "",
    "x",
    "../x",
    "\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
    "V8",
    ">f4",
]


async def test_a_value_of_a_manifest_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it stands, with the right checksum: a load works or says what is wrong, as
    `areplay inspect` does."""
    await saved(tmp_path)
    whole, seed = manifest_of(tmp_path), random.randrange(1 << 32)
    rng, refused, loaded = random.Random(seed), 0, 0
    for path in list(leaves(whole)):
        for value in rng.sample(ODD_VALUES, 5):
            manifest = copy.deepcopy(whole)
            place = manifest
            for key in path[:-1]:
                place = place[key]
            if path:
                place[path[-1]] = value
            write_manifest(tmp_path, manifest if path else value)
            try:
                async with await Replay.load(tmp_path) as replay:
                    (
                        replay.sample(2),
                        replay.batches(batch_size=4, selector=areplay.Fifo()).statistics(),
                    )
                    loaded += 1
            except areplay.AreplayError as error:
                assert str(error)
                refused += 1
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}, seed {seed}") from error
            assert main(["inspect", str(tmp_path)]) in (0, 1), (path, value, seed)
            capsys.readouterr()
    assert refused > 20 * loaded / 9 > 0


@pytest.mark.parametrize(
    "text", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5_000], ids=lambda text: text[:8]
)
async def test_a_number_that_is_none(text: str, tmp_path: Path) -> None:
    """JSON's grammar knows some, and Python's reader more, that no computer has."""
    await saved(tmp_path)
    for table in (lambda manifest: manifest, lambda manifest: manifest["masses"][0]):
        manifest = manifest_of(tmp_path)
        manifest["crc32"] = manifest_checksum(json.loads(json.dumps(manifest | {"x": 0})))
        table(manifest)["largest"] = "here"
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / MANIFEST).write_text(json.dumps(manifest).replace('"here"', text))
        with pytest.raises(
            areplay.CheckpointDamaged,
            match=r"manifest\.json cannot be "
            r"understood",
        ) as caught:
            await Replay.load(tmp_path / "odd")
        assert "checksum" not in str(caught.value)


async def test_odd_files_in_the_way_of_a_save(tmp_path: Path) -> None:
    """Whatever is called as files of a checkpoint are: the save works, and deletes what it can."""
    makes = [a_pipe, a_device, a_socket, a_link_to_itself]
    for k, make in enumerate(makes):
        make(tmp_path / f"blocks-{k}.npy")
        make(tmp_path / f"block-{k}-16-7.npys")
    (tmp_path / "gone").touch()
    (tmp_path / "masses-0-3.npy").symlink_to(tmp_path / "gone")
    (tmp_path / "gone").unlink()
    (tmp_path / f"blocks-{'9' * 18}.npy").touch()
    (tmp_path / f"blocks-{'9' * 30}.npy").touch()  # no name of ours
    os.mkfifo(tmp_path / "manifest.json.new")
    async with asyncio.timeout(30), Replay(STEPS, 200) as replay:
        await fill(replay)
        for _ in range(2):
            await replay.save(tmp_path)
        (tmp_path / f"blocks-{'9' * 30}.npy").unlink()
        check_files(tmp_path)


async def test_paths_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long, too deep, of a working directory that is gone: typed errors, and nothing is made on
    the way."""
    async with asyncio.timeout(30), Replay(STEPS, 200) as replay:
        for name in ("n" * 256, "d/" * 3_000, "x/" + "n" * 256):
            with pytest.raises(areplay.CheckpointFailed, match="too long"):
                await replay.save(tmp_path / name)
            with pytest.raises((areplay.CheckpointDamaged, areplay.CheckpointMissing)):
                await Replay.load(tmp_path / name)
        assert os.listdir(tmp_path) == []
        for given in (b"bytes", 3, None):
            with pytest.raises(TypeError):
                replay.save(given)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await Replay.load(given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="null"):
            replay.save("a\0b")
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        for relative in ("here", "here/and/there"):
            with pytest.raises(areplay.CheckpointFailed):
                await replay.save(relative)
            with pytest.raises(areplay.CheckpointMissing):
                await Replay.load(relative)
        await replay.save(tmp_path / "absolute")


@pytest.mark.parametrize("name", [MANIFEST, "blocks-1.npy", ".npys"])
async def test_out_of_descriptors_is_no_damage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it hits: a load and a save say what has run out, and the checkpoint stays."""
    await saved(tmp_path)
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(name):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *args, **kwargs)

    async with Replay(STEPS, 200) as replay:
        await fill(replay)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(areplay.ResourceUnavailable, match="Too many open files"):
                await Replay.load(tmp_path)
            with pytest.raises(areplay.ResourceUnavailable, match="Too many open files"):
                await replay.save(tmp_path)
        check_files(tmp_path)
        assert (await replay.save(tmp_path)).rows == 110


async def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that needs one says so, and has done nothing; what is open can be closed."""
    await saved(tmp_path)
    rows = {"x": np.zeros((160, 1 << 14))}  # 21 MB, more than are written on the loop

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with asyncio.timeout(30), Replay(areplay.Spec(x=((1 << 14,), "float64")), 200) as replay:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for call in (
                partial(replay.extend, rows),
                partial(replay.save, tmp_path / "there"),
                partial(Replay.load, tmp_path),
                Replay(STEPS, 200).__aenter__,
                replay.batches(batch_size=4, selector=areplay.Fifo()).__aenter__,
                replay.batches(batch_size=4).__aenter__,
            ):
                with pytest.raises(
                    (areplay.ResourceUnavailable, areplay.SamplerFailed),
                    match="can't start new thread",
                ):
                    await call()
        assert len(replay) == 0 and not (tmp_path / "there").exists()
        assert len(await replay.extend(rows)) == 160
        monkeypatch.setattr(threading.Thread, "start", refuse)  # and closing goes on without one


async def test_closing_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the thread that has written the actors' rows is waited for in one, where there is
    one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with asyncio.timeout(60), Replay(STEPS, 200) as replay:
        inbox = Inboxes(STEPS, 1, 8)
        await replay._opened().coordinator.attach(inbox.inbox(0), "actor 0")
        thread = replay._opened().coordinator._thread
        assert thread is not None and thread.is_alive()
        await replay._opened().coordinator.detach(inbox.inbox(0))
        inbox.close()
        monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not thread.is_alive()


def test_what_no_machine_has_is_not_allocated(tmp_path: Path) -> None:
    """Neither what is compared with the memory that is left, nor what the kernel refuses."""
    for size in (1 << 46, 1 << 62):
        with pytest.raises(
            areplay.MemoryLimitExceeded,
            match=r"blocks-1\.npy of the checkpoint "
            r"in",
        ):
            allocated(str(tmp_path), "blocks-1.npy", size)


def test_a_checkpoint_that_is_told_to_stop(tmp_path: Path) -> None:
    """Also while its tables are read."""
    from areplay._checkpoint.format import CancelToken

    asyncio.run(saved(tmp_path))
    stop = CancelToken()
    stop.set()
    with pytest.raises(areplay.WouldBlock):
        Checkpoint(str(tmp_path), stop)
