"""`areplay inspect CHECKPOINT`: what a checkpoint contains, and whether it is damaged."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from areplay._checkpoint.manifest import OWN_FILES
from areplay._checkpoint.reader import Checkpoint
from areplay.cli import terminal as terminal
from areplay.cli.summary import lines
from areplay.errors import CheckpointDamaged

_LABEL = 18  # columns


def add_to(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "inspect",
        help="what is in a checkpoint",
        description="Say what is in a checkpoint. Its manifest and tables are read and compared "
        "with their checksums, its blocks with --verify. Exit status 1 if there is none, or it is "
        "damaged.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the directory given to Replay.save"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all files and compare them with their checksums"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the checkpoint and show it."""
    checkpoint = Checkpoint(arguments.checkpoint)
    damages: list[CheckpointDamaged] | None = None
    if arguments.verify:
        with progress(arguments.json) as on_progress:
            checkpoint, damages = verified(checkpoint, on_progress)
    document = description(checkpoint, damages)
    if arguments.json:
        terminal.write_json(document)
    else:
        show(document)
    return 1 if damages else 0


def show(document: dict[str, Any]) -> None:
    """Print the description as text, with colours if rich is installed."""
    if not terminal.has_rich():
        for line in lines(document):
            terminal.write_columns((line.label, line.text), (_LABEL, 0))
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_LABEL)
    grid.add_column()
    for line in lines(document):
        grid.add_row(Text(line.label, "dim"), Text(line.text, line.style))
    terminal.console("areplay inspect").print(grid)


def verified(
    checkpoint: Checkpoint, on_progress: Callable[[int, int], None] | None
) -> tuple[Checkpoint, list[CheckpointDamaged]]:
    """Read all files of a checkpoint: the checkpoint that was read, and its damages.

    If a save replaces the checkpoint meanwhile, the new one is read.
    """
    while True:
        damages = list(checkpoint.damages(on_progress))
        if not damages:
            return checkpoint, damages
        now = Checkpoint(checkpoint.path)
        if now.id == checkpoint.id:
            return checkpoint, damages
        checkpoint = now


def description(checkpoint: Checkpoint, damages: list[CheckpointDamaged] | None) -> dict[str, Any]:
    """Describe a checkpoint, ready for JSON.

    Args:
        damages: of the files that were read; None if the files were not read.
    """
    sizes = {name: size for name, size, _ in checkpoint.files()}
    return {
        "format": "areplay inspect",
        "version": 1,
        "path": os.path.abspath(checkpoint.path),
        **_origin(checkpoint),
        **_rows(checkpoint),
        "row_bytes": checkpoint.spec.row_bytes,
        "spec": _fields(checkpoint),
        "is_steps": checkpoint.spec.is_steps,
        "priorities": _priorities(checkpoint),
        "streams": _streams(checkpoint),
        "bytes": _bytes(checkpoint, sizes),
        "files": len(sizes) + 1,
        "left_over": _left_over(checkpoint.path, sizes),
        "is_verified": damages is not None,
        "damages": [{"file": damage.file, "what": damage.what} for damage in damages or []],
    }


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "checkpoint_version": manifest["version"],
        "id": checkpoint.id,
        "save": manifest["save"],
        "saved_at_s": manifest["time"],
        "age_s": time.time() - manifest["time"],
    }


def _rows(checkpoint: Checkpoint) -> dict[str, Any]:
    table = checkpoint.table
    return {
        "rows": int(table["rows"].sum()),
        "capacity_rows": checkpoint.capacity_rows,
        "rows_inserted": checkpoint.counters["rows_inserted"],
        "blocks": len(table),
        "block_rows": checkpoint.block_rows,
        "row_streams": len(set(table["stream"].tolist())),
    }


def _fields(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "shape": list(field.shape),
            "dtype": field.dtype.name,
            "row_bytes": field.row_bytes,
        }
        for field in checkpoint.spec.values()
    ]


def _priorities(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    keys = ("exponent", "largest")
    return [{key: masses[key] for key in keys} for masses in checkpoint.manifest["masses"]]


def _streams(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    keys = ("what", "batches_delivered", "limiter")
    return [
        {**{key: stream[key] for key in keys}, "is_fifo": bool(stream["delivered"])}
        for stream in checkpoint.streams
    ]


def _bytes(checkpoint: Checkpoint, sizes: dict[str, int]) -> dict[str, int]:
    files = sum(sizes.values())
    return {
        "blocks": checkpoint.size_bytes,
        "tables": files - checkpoint.size_bytes,
        "manifest": checkpoint.manifest_bytes,
        "total": files + checkpoint.manifest_bytes,
    }


def _left_over(path: str, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes of the files that are named like a checkpoint's and do not belong to this one."""
    found = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if OWN_FILES.fullmatch(entry.name) and entry.name not in sizes:
                with suppress(FileNotFoundError):  # a running save has just deleted it
                    found[entry.name] = entry.stat().st_size
    return found


@contextmanager
def progress(is_quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show how far the reading is, by a bar on a terminal; yield what to call with that."""
    if is_quiet or not sys.stderr.isatty() or not terminal.has_rich():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
