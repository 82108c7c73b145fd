"""A checkpoint read with json and numpy alone, as docs/checkpoints.md says; nothing of areplay is
used."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]


def manifest_of(path: Path) -> dict[str, Any]:
    """What the checkpoint says it is."""
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return manifest


def block_files(path: Path) -> dict[str, NDArray[Any]]:
    """File name -> its record in the table, oldest block first; each file is checked against it."""
    table = np.load(path / manifest_of(path)["blocks"]["file"])
    found = {}
    for block in table:
        name = f"block-{block['serial']}-{block['rows']}-{block['save']}.npys"
        content = (path / name).read_bytes()
        assert len(content) == block["bytes"]
        assert zlib.crc32(content) == block["crc32"]
        found[name] = block
    return found


def columns_of(path: Path) -> Columns:
    """All rows, oldest block first, and their indices as a column of their own."""
    manifest, parts = manifest_of(path), []
    for name, block in block_files(path).items():
        with open(path / name, "rb") as file:
            part = {column: np.load(file) for column in manifest["columns"]}
            assert not file.read()
        part["indices"] = block["serial"] * manifest["block_rows"] + np.arange(block["rows"])
        assert {len(column) for column in part.values()} == {block["rows"]}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def masses_of(path: Path, exponent: float) -> NDArray[np.float32]:
    """The mass of each row, in the order of `columns_of`."""
    (entry,) = (entry for entry in manifest_of(path)["masses"] if entry["exponent"] == exponent)
    masses: NDArray[np.float32] = np.load(path / entry["file"])
    return masses


def check_files(path: Path) -> None:
    """Each file that is there belongs to the checkpoint, and the other way round."""
    manifest = manifest_of(path)
    tables = [manifest["blocks"], *manifest["masses"]]
    tables += [stream["delivered"] for stream in manifest["streams"] if stream["delivered"]]
    for table in tables:
        content = (path / table["file"]).read_bytes()
        assert (len(content), zlib.crc32(content)) == (table["bytes"], table["crc32"])
    named = {"manifest.json", *block_files(path), *(table["file"] for table in tables)}
    assert {file.name for file in path.iterdir()} == named
