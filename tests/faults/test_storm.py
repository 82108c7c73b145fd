"""Row 8, in short: see `tests.faults.storm`, which `make faults` runs for as many kills as it is
told."""

from __future__ import annotations

import dataclasses
import random

import pytest

from tests.faults.storm import KINDS, storm

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_a_short_storm_loses_nothing() -> None:
    """Random SIGKILLs under full load in rounds of three kinds: no row torn, lost or there twice,
    nobody hung, and as many descriptors, mappings, threads and processes as before."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    smaller = (dataclasses.replace(KINDS[0], capacity=1_000_000), *KINDS[1:])
    kinds = tuple(random.Random(seed).sample(smaller, 3))
    outcome = await storm(
        40, seed, actors=2, samplers=2, interval_s=0.05, round_kills=14, kinds=kinds
    )
    print(outcome.table())
    assert outcome.is_clean, outcome.notes
    assert outcome.kills == 40
    assert outcome.batches > 0
