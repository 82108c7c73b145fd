"""A machine's examples in parts, a test each: the watchdog of 180 s is for what hangs, and looks at
one test at a time.

On a machine that gives the tests a hundredth of its time, all examples in one test would take as
long as that.
"""

from __future__ import annotations

from typing import Any
from unittest import TestCase

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

PARTS = 4
"""Of each set of examples."""

in_parts = pytest.mark.parametrize("part", range(PARTS))
"""A test with examples of its own each time; it takes the argument `part`, and its settings a
`PARTS`th of them."""


def machine_in_parts(
    machine: type[RuleBasedStateMachine], max_examples: int, **options: Any
) -> type[TestCase]:
    """The test case of a machine, that runs `max_examples` histories in all."""

    def run(case: TestCase) -> None:
        case.runTest()  # type: ignore[attr-defined]

    tests = {f"test_part_{part}": run for part in range(PARTS)}
    return type(
        machine.__name__,
        (machine.TestCase,),
        {"settings": settings(max_examples=max_examples // PARTS, **options), **tests},
    )
