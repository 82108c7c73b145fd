"""What is drawn while an actor laps the ring: in proportion, for every selector that draws."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import areplay
from areplay.selectors import AnySelector

SPEC = areplay.Spec(x=((), "int64"), padding=((64,), "float64"))
CLASSES, ROWS, LAPS = 5, 4_000, 3
UNIFORM_SHARE = 0.25


async def hand_in_classes(actor: areplay.Actor) -> None:
    """Rows of five classes in turn, of priorities 1 to 5."""
    x = np.arange(1_000) % CLASSES
    while not actor.stopping:
        await actor.extend({"x": x, "padding": np.zeros((1_000, 64))}, priorities=x + 1.0)


@pytest.mark.parametrize(
    ("make", "expected", "of_newcomers"),
    [
        (areplay.Uniform, np.ones(CLASSES), 1.0),
        (lambda: areplay.Prioritized(0.7), np.arange(1, 6) ** 0.7, 0.0),
        (
            lambda: areplay.Prioritized(1.0, uniform_sample_probability=UNIFORM_SHARE),
            (1 - UNIFORM_SHARE) * np.arange(1, 6) / 3 + UNIFORM_SHARE,
            # a row that is there already, and has no mass yet, is drawn by this share only
            UNIFORM_SHARE,
        ),
    ],
    ids=["uniform", "prioritized", "mixed"],
)
async def test_items_are_drawn_in_proportion_while_rows_are_overwritten(
    make: Callable[[], AnySelector],
    expected: np.ndarray[tuple[int], np.dtype[np.float64]],
    of_newcomers: float,
) -> None:
    """Chi-square by class over three laps and 100,000 items or more; the probabilities that come
    with them are those of their rows."""
    counts, odd = np.zeros(CLASSES), 0
    expected = expected / expected.mean()
    async with areplay.Replay(SPEC, ROWS, seed=1) as replay:
        # Before the first row: those that are there already when priorities begin to be kept have
        # none of their own.
        stream = replay.batches(
            batch_size=256, selector=make(), min_size_to_sample=ROWS, samplers=2
        )
        async with replay.actors(hand_in_classes, 1), stream as batches, asyncio.timeout(60):
            end = replay.statistics().rows_inserted + LAPS * ROWS
            while counts.sum() < 100_000 or replay.statistics().rows_inserted < end:
                batch = await anext(batches)
                counts += np.bincount(batch["x"], minlength=CLASSES)
                share = batch.probabilities * ROWS
                # While blocks are being recycled their rows have no mass: a few of 250 blocks less
                # than all.
                is_odd = ~np.isclose(share, expected[batch["x"]], rtol=0.1)
                assert np.allclose(share[is_odd], of_newcomers, rtol=0.1)
                odd += int(is_odd.sum())
                await asyncio.sleep(0)
    assert odd <= 0.01 * counts.sum()
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-9
