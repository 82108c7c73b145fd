"""`areplay inspect CHECKPOINT`: what is in a checkpoint, and whether it is still as it was
written."""

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
from areplay.errors import CheckpointDamaged
from areplay.spec import Spec

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
    """Read it and show it."""
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


def verified(
    checkpoint: Checkpoint, on_progress: Callable[[int, int], None] | None
) -> tuple[Checkpoint, list[CheckpointDamaged]]:
    """The checkpoint that was read, and its damages. If a save replaces it meanwhile, the new one
    is read."""
    while True:
        damages = list(checkpoint.damages(on_progress))
        if not damages:
            return checkpoint, damages
        now = Checkpoint(checkpoint.path)
        if now.id == checkpoint.id:
            return checkpoint, damages
        checkpoint = now


def description(checkpoint: Checkpoint, damages: list[CheckpointDamaged] | None) -> dict[str, Any]:
    """All that there is to say of it, ready for JSON."""
    manifest, table = checkpoint.manifest, checkpoint.table
    names = {name: size for name, size, _ in checkpoint.files()}
    blocks_bytes = checkpoint.size_bytes
    return {
        "format": "areplay inspect",
        "version": 1,
        "path": os.path.abspath(checkpoint.path),
        "checkpoint_version": manifest["version"],
        "id": checkpoint.id,
        "save": manifest["save"],
        "saved_at_s": manifest["time"],
        "age_s": time.time() - manifest["time"],
        "rows": int(table["rows"].sum()),
        "capacity_rows": checkpoint.capacity_rows,
        "rows_inserted": checkpoint.counters["rows_inserted"],
        "blocks": len(table),
        "block_rows": checkpoint.block_rows,
        "row_streams": len(set(table["stream"].tolist())),
        "row_bytes": checkpoint.spec.row_bytes,
        "spec": _fields(checkpoint.spec),
        "is_steps": checkpoint.spec.is_steps,
        "priorities": [
            {"exponent": each["exponent"], "largest": each["largest"]}
            for each in manifest["masses"]
        ],
        "streams": [
            {
                **{key: stream[key] for key in ("what", "batches_delivered", "limiter")},
                "is_fifo": bool(stream["delivered"]),
            }
            for stream in checkpoint.streams
        ],
        "bytes": {
            "blocks": blocks_bytes,
            "tables": sum(names.values()) - blocks_bytes,
            "manifest": checkpoint.manifest_bytes,
            "total": sum(names.values()) + checkpoint.manifest_bytes,
        },
        "files": len(names) + 1,
        "left_over": _left_over(checkpoint.path, names),
        "is_verified": damages is not None,
        "damages": [{"file": damage.file, "what": damage.what} for damage in damages or []],
    }


def show(document: dict[str, Any]) -> None:
    """As text, with colours if there is rich."""
    lines = list(_lines(document))
    if terminal.has_rich():
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=_LABEL)
        grid.add_column()
        for label, text, style in lines:
            grid.add_row(Text(label, "dim"), Text(text, style))
        terminal.console("areplay inspect").print(grid)
    else:
        terminal.write(((label, text) for label, text, _ in lines), (_LABEL, 0))


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Label, text and style of each line."""
    size, bytes_ = terminal.size, document["bytes"]
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["saved_at_s"]))
    age = terminal.span(max(0.0, document["age_s"]))
    yield "checkpoint", terminal.clean(document["path"]), "bold"
    yield (
        "saved",
        f"{saved}, {age} ago, save number {document['save']}, format "
        f"{document['checkpoint_version']}",
        "",
    )
    so_far = f"{document['rows_inserted']:,} since the start"
    yield (
        "rows",
        f"{document['rows']:,} of capacity {document['capacity_rows']:,}; {so_far}",
        "cyan",
    )
    yield (
        "blocks",
        f"{document['blocks']:,} of {document['block_rows']:,} rows, of "
        f"{document['row_streams']:,} streams",
        "",
    )
    rest = bytes_["tables"] + bytes_["manifest"]
    yield (
        "on disk",
        f"{size(bytes_['total'])} in {document['files']:,} files: rows {size(bytes_['blocks'])}, "
        f"the rest {size(rest)}",
        "",
    )
    kind = "steps of episodes, with links between them" if document["is_steps"] else "plain rows"
    yield "a row", f"{document['row_bytes']:,} bytes, {kind}", ""
    width = max(len(field["name"]) for field in document["spec"])
    for field in document["spec"]:
        shape = f"({', '.join(map(str, field['shape']))}{',' if len(field['shape']) == 1 else ''})"
        yield "", f"{terminal.clean(field['name']):{width}}  {field['dtype']} {shape}", ""
    for each in document["priorities"]:
        yield "priorities", f"exponent {each['exponent']:g}, largest {each['largest']:g}", ""
    for stream in document["streams"]:
        yield (
            "stream of batches",
            f"{terminal.clean(stream['what'])}: {stream['batches_delivered']:,} delivered",
            "",
        )
        if stream["limiter"]:
            counts = ", ".join(f"{key} {value:g}" for key, value in stream["limiter"].items())
            yield "", f"limiter: {counts}", "dim"
    if document["left_over"]:
        count, left = len(document["left_over"]), sum(document["left_over"].values())
        files = "1 file" if count == 1 else f"{count:,} files"
        yield (
            "left over",
            f"{files} of a save that goes on or was cut off, {size(left)}; the next one clears up",
            "yellow",
        )
    for damage in document["damages"]:
        yield (
            "damaged",
            f"{terminal.clean(damage['file'])} {terminal.clean(damage['what'])}",
            "bold red",
        )
    if not document["is_verified"]:
        yield "verified", "the manifest and the table of blocks; --verify reads everything", "dim"
    elif not document["damages"]:
        yield "verified", "every file is as it was written", "green"


def _fields(spec: Spec) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "shape": list(field.shape),
            "dtype": field.dtype.name,
            "row_bytes": field.row_bytes,
        }
        for field in spec.values()
    ]


def _left_over(path: str, names: dict[str, int]) -> dict[str, int]:
    """Files in the directory that are named like a checkpoint's and do not belong to it, and their
    sizes."""
    found = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if OWN_FILES.fullmatch(entry.name) and entry.name not in names:
                with suppress(FileNotFoundError):  # a save that goes on has just deleted it
                    found[entry.name] = entry.stat().st_size
    return found


@contextmanager
def progress(is_quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What shows how far the reading is: a bar on a terminal, nothing elsewhere."""
    if is_quiet or not sys.stderr.isatty() or not terminal.has_rich():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
