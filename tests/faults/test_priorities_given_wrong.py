"""Row 18: what makes no sense as a priority or an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import areplay

SPEC = areplay.Spec(x=((), "int64"))

WRONG: dict[str, Any] = {
    "NaN": [1.0, np.nan, 1.0, 1.0],
    "inf": [1.0, np.inf, 1.0, 1.0],
    "-inf": [1.0, -np.inf, 1.0, 1.0],
    "too few": [1.0, 1.0, 1.0],
    "too many": np.ones(5),
    "text": ["a"] * 4,
    "objects": np.array([None] * 4),
    "no number": None,
    "rounded": np.array([1, 1, 1, (1 << 53) + 1]),
    "rounded beside a float": [1.0, 1, 1, (1 << 53) + 1],
    "masked": np.ma.array([1.0, 2.0, 3.0, 4.0], mask=[False, True, False, False]),
}


async def test_each_is_refused_or_counted_and_nothing_else_changes() -> None:
    """Wrong ones are a ValueError; a negative one counts by its size; stale and foreign indices are
    counted and change nobody; of repeated ones the last wins."""
    async with areplay.Replay(SPEC, 64, seed=1) as replay:
        indices = await replay.extend({"x": np.arange(4)})
        selector = areplay.Prioritized(1.0)
        replay.sample(1, selector=selector)
        (tree,) = replay._opened().priorities.values()
        replay.update_priorities(indices, [1.0, 2.0, 3.0, 4.0])

        def masses() -> list[float]:
            return [float(mass) for mass in tree.masses[:4]]

        assert masses() == [1.0, 2.0, 3.0, 4.0]
        for name, wrong in WRONG.items():
            with pytest.raises((ValueError, TypeError)):
                replay.update_priorities(indices, wrong)
            assert masses() == [1.0, 2.0, 3.0, 4.0], name
        assert replay.update_priorities(indices[:1], [-5.0]) == (1, 0)
        assert masses() == [5.0, 2.0, 3.0, 4.0]
        for foreign in ([-1], [1 << 62], [4], [64 + 1], [np.iinfo(np.int64).min]):
            assert replay.update_priorities(np.array(foreign), [9.0]) == (0, 1), foreign
            assert masses() == [5.0, 2.0, 3.0, 4.0], foreign
        repeated = np.array([indices[1], indices[2], indices[1]])
        replay.update_priorities(repeated, [7.0, 8.0, 6.0])
        assert masses() == [5.0, 6.0, 8.0, 4.0]
        await replay.extend({"x": np.arange(100, 164)})
        assert replay.update_priorities(indices, np.full(4, 50.0)) == (0, 4)
        assert 50.0 not in [float(mass) for mass in tree.masses]
        assert replay.statistics().priorities_stale == 9
