"""The table is whole: a row for each fault, and each test that it names is there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults.table import ROWS

ROOT = Path(__file__).parents[2]


@cache
def _functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_fault_has_its_row() -> None:
    """1 to 25 and those of what outsiders found, in order, each with a test at least."""
    assert list(ROWS) == sorted(ROWS) and set(range(1, 26)) <= set(ROWS)
    assert all(row.tests for row in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_every_named_test_exists(number: int) -> None:
    """By its node id; a file alone stands for all that is in it."""
    for node in ROWS[number].tests:
        path, _, name = node.partition("::")
        assert (ROOT / path).exists(), node
        assert not name or name in _functions(path), node
