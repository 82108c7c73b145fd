"""The text that `areplay inspect` prints of a checkpoint's description.

Each line has a label, a text and a style of rich. The description is the document of
`areplay.cli.inspect`; nothing here reads the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from areplay.cli.terminal import clean, size, span

Document = dict[str, Any]


class Line(NamedTuple):
    """One line of the text."""

    label: str
    text: str
    style: str = ""


def lines(document: Document) -> Iterator[Line]:
    """Yield all lines, from the path to the damages."""
    yield Line("checkpoint", clean(document["path"]), "bold")
    yield _saved(document)
    yield from _rows(document)
    yield from _spec(document)
    yield from _sampling(document)
    if document["left_over"]:
        yield _left_over(document["left_over"])
    yield from _verification(document)


def _saved(document: Document) -> Line:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["saved_at_s"]))
    age = span(max(0.0, document["age_s"]))
    number = f"save number {document['save']}"
    return Line("saved", f"{at}, {age} ago, {number}, format {document['checkpoint_version']}")


def _rows(document: Document) -> Iterator[Line]:
    rows = f"{document['rows']:,} of capacity {document['capacity_rows']:,}"
    yield Line("rows", f"{rows}; {document['rows_inserted']:,} since the start", "cyan")
    blocks = f"{document['blocks']:,} of {document['block_rows']:,} rows"
    yield Line("blocks", f"{blocks}, of {document['row_streams']:,} streams")
    sizes = document["bytes"]
    files = f"{size(sizes['total'])} in {document['files']:,} files"
    rest = size(sizes["tables"] + sizes["manifest"])
    yield Line("on disk", f"{files}: rows {size(sizes['blocks'])}, the rest {rest}")


def _spec(document: Document) -> Iterator[Line]:
    kind = "steps of episodes, with links between them" if document["is_steps"] else "plain rows"
    yield Line("a row", f"{document['row_bytes']:,} bytes, {kind}")
    width = max(len(field["name"]) for field in document["spec"])
    for field in document["spec"]:
        shape = tuple(field["shape"])
        yield Line("", f"{clean(field['name']):{width}}  {field['dtype']} {shape}")


def _sampling(document: Document) -> Iterator[Line]:
    for masses in document["priorities"]:
        text = f"exponent {masses['exponent']:g}, largest {masses['largest']:g}"
        yield Line("priorities", text)
    for stream in document["streams"]:
        text = f"{clean(stream['what'])}: {stream['batches_delivered']:,} delivered"
        yield Line("stream of batches", text)
        if stream["limiter"]:
            counts = ", ".join(f"{key} {value:g}" for key, value in stream["limiter"].items())
            yield Line("", f"limiter: {counts}", "dim")


def _left_over(sizes: dict[str, int]) -> Line:
    files = "1 file" if len(sizes) == 1 else f"{len(sizes):,} files"
    origin = "of a save that goes on or was cut off"
    text = f"{files} {origin}, {size(sum(sizes.values()))}; the next one clears up"
    return Line("left over", text, "yellow")


def _verification(document: Document) -> Iterator[Line]:
    for damage in document["damages"]:
        yield Line("damaged", f"{clean(damage['file'])} {clean(damage['what'])}", "bold red")
    if not document["is_verified"]:
        text = "the manifest and the table of blocks; --verify reads everything"
        yield Line("verified", text, "dim")
    elif not document["damages"]:
        yield Line("verified", "every file is as it was written", "green")
