"""Measurements have real children: they run under what all tests with real children run under."""

from __future__ import annotations

import pytest

from benchmarks.harness.panels import Measurement
from benchmarks.row import plots
from tests.processes.conftest import (
    nothing_left,
    once_a_process,
    plain_main_module,
    pytest_runtest_makereport,
)

from .workers import PANELS

__all__ = ["nothing_left", "once_a_process", "plain_main_module", "pytest_runtest_makereport"]


@pytest.fixture(scope="session", autouse=True)
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib opens its fonts with the first plot that needs them, and keeps them."""
    plots.draw(
        Measurement("any", "", "any", (), PANELS), tmp_path_factory.mktemp("any") / "any.png"
    )
