"""Tests of faults have real children: they run under what all tests with real children run
under."""

from tests.processes.conftest import (
    nothing_left,
    once_a_process,
    plain_main_module,
    pytest_runtest_makereport,
)

__all__ = ["nothing_left", "once_a_process", "plain_main_module", "pytest_runtest_makereport"]
