"""Prioritised sampling through the front door: batches, weights, updates from the learner,
priorities from actors."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from kit import until
from scipy import stats

import areplay
from areplay._storage.priorities import Priorities
from areplay._storage.windows import Windows

SPEC = areplay.Spec.steps(obs=((), "int64"), action=((), "int64"))
PLAIN = areplay.Spec(x=((), "int64"))


async def episode(replay: areplay.Replay, steps: int) -> np.ndarray:
    """One episode; the indices of its steps."""
    obs = np.arange(steps)
    return await replay.extend(
        {
            "obs": obs,
            "action": obs,
            "reward": np.zeros(steps, np.float32),
            "terminated": obs == steps - 1,
            "truncated": np.zeros(steps, bool),
            "next_obs": obs + 1,
        }
    )


async def hand_in_with_priorities(actor: areplay.Actor) -> None:
    """Plain rows, of which every other one comes with a priority of its own."""
    for x in range(20):
        await actor.add(x=x, priority=float(x)) if x % 2 else await actor.add(x=x)
    await actor.extend({"x": np.arange(20, 40)}, priorities=np.arange(20, 40) / 2)


async def test_items_are_drawn_in_proportion_and_weighed() -> None:
    """Chi-square over transitions of which the last ones are not possible yet; weights in float64
    by the formula."""
    async with areplay.Replay(SPEC, 256, seed=3) as replay:
        indices = await episode(replay, 60)
        last = len(indices) - 1
        selector = areplay.Prioritized(priority_exponent=0.7, importance_sampling_exponent=0.5)
        replay.sample(1, selector=selector)
        errors = np.random.default_rng(0).normal(size=60)
        assert replay.update_priorities(indices, errors) == (60, 0)
        counts = np.zeros(60)
        for _ in range(100):
            batch = replay.sample(256, areplay.Transitions(3), selector)
            counts += np.bincount(batch["obs"], minlength=60)
            p = np.abs(errors[batch["obs"]]) ** 0.7 / (np.abs(errors) ** 0.7).sum()
            assert np.allclose(batch.probabilities, p, rtol=1e-5)
            weights = (60 * p) ** -0.5
            assert np.allclose(batch.importance_weights, weights / weights.max(), rtol=1e-5)
        expected = np.abs(errors) ** 0.7
        assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3
        assert counts[last] > 0


async def steps_without_end(replay: areplay.Replay, count: int) -> np.ndarray:
    """One episode that goes on: no item can be made of its newest row yet. The indices of its
    rows."""
    rows = [
        await replay.add(obs=t, action=0, reward=0.0, terminated=False, truncated=False)
        for t in range(count)
    ]
    return np.array(rows)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("small", [1e-3, 1e-10, 1e-30])
async def test_a_row_that_makes_no_item_keeps_none_that_does_from_being_drawn(
    small: float, share: float
) -> None:
    """However large its priority is: items have the chances, probabilities and weights that they
    have among themselves. Chi-square, of `sample` and of batches with and without batches of the
    learner's own."""
    async with areplay.Replay(SPEC, 4096, seed=5) as replay:
        rows = await steps_without_end(replay, 300)
        selector = areplay.Prioritized(1.0, 1.0, share)
        replay.sample(1, selector=selector)
        masses = np.float32(small * (1 + np.arange(299) % 7)).astype(float)
        replay.update_priorities(rows, np.append(masses, 1.0))
        p = (1 - share) * masses / masses.sum() + share / 299

        def check(batches: list[areplay.Batch]) -> None:
            counts = np.zeros(299)
            for batch in batches:
                counts += np.bincount(batch["obs"], minlength=299)
                assert np.allclose(batch.probabilities, p[batch["obs"]], rtol=1e-4)
                assert np.allclose(
                    batch.importance_weights,
                    batch.probabilities.min() / batch.probabilities,
                    rtol=1e-4,
                )
            assert stats.chisquare(counts, p * counts.sum()).pvalue > 1e-4

        check([replay.sample(1_000, selector=selector) for _ in range(30)])
        for fills in (True, False):
            async with (
                asyncio.timeout(60),
                replay.batches(
                    batch_size=1_000, selector=selector, prefetch=2, inline_sampling=fills
                ) as stream,
            ):
                batches = [(await anext(stream)).copy() for _ in range(20)]
            check(batches)


async def test_where_only_rows_that_make_no_item_have_a_priority_that_is_said() -> None:
    """Not that no item can be made: with other priorities there are some."""
    async with areplay.Replay(SPEC, 4096, seed=5) as replay:
        rows = await steps_without_end(replay, 20)
        selector = areplay.Prioritized(1.0)
        replay.sample(8, selector=selector)
        replay.update_priorities(rows, np.append(np.zeros(19), 1.0))
        with pytest.raises(areplay.Stalled, match="of a priority above 0 can be made"):
            replay.sample(8, selector=selector)
        assert (
            len(
                replay.sample(
                    8, selector=areplay.Prioritized(1.0, uniform_sample_probability=0.1)
                ).indices
            )
            == 8
        )
        async with replay.batches(batch_size=8, selector=selector) as batches:
            with pytest.raises(areplay.WaitTimeout, match="of a priority above 0 can be made"):
                await batches.get(timeout_s=1.0)
            replay.update_priorities(rows, np.ones(20))
            assert len((await anext(batches)).indices) == 8


async def test_of_rows_that_make_no_item_it_is_said_that_none_can_be_made() -> None:
    """Only then: also one step among rows of priority 0, and of sequences that begin at other rows,
    is found."""
    async with areplay.Replay(SPEC, 4096, seed=5) as replay:
        rows = await steps_without_end(replay, 400)
        selector = areplay.Prioritized(1.0)
        with pytest.raises(areplay.Stalled, match="no Transitions"):
            replay.sample(8, areplay.Transitions(400), selector)
        replay.update_priorities(
            rows, np.where(np.isin(rows, rows[[7, 399]]), [1e-20] * 399 + [1.0], 0.0)
        )
        assert set(replay.sample(64, selector=selector)["obs"].tolist()) == {7}
        replay.update_priorities(
            rows, np.where(np.arange(400) % 20 == 0, 1e-8, 10.0 ** (np.arange(400) % 9))
        )
        batch = replay.sample(400, areplay.Sequences(20, period=20), selector)
        assert set(batch.indices.tolist()) == set(rows[::20].tolist())
        assert np.allclose(batch.probabilities, 1 / 20, rtol=1e-4)
        replay.update_priorities(rows, np.append(np.zeros(399), 1.0))
        with pytest.raises(areplay.Stalled):
            replay.sample(8, selector=selector)


async def test_items_drawn_in_place_of_torn_ones_have_probabilities_like_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where rows were left out of the first draw, or only of the second: weights of one batch are
    of one kind."""
    changed, rounds = Windows.changed, 0

    def tears_one(self: Windows) -> np.ndarray:
        nonlocal rounds
        rounds += 1
        return np.arange(min(1, len(self))) if rounds == 1 else changed(self)

    monkeypatch.setattr(Windows, "changed", tears_one)
    async with areplay.Replay(SPEC, 256, seed=5) as replay:
        rows = await steps_without_end(replay, 100)
        selector = areplay.Prioritized(1.0, 1.0)
        replay.sample(1, selector=selector)
        for large, samples in (
            (1e-9, 2),
            (550.0, 60),
            (1e9, 10),
        ):  # nothing, a tenth, and all but nothing of the masses
            replay.update_priorities(rows, np.append(1.0 + np.arange(99), large))
            for _ in range(samples):
                rounds = 0
                batch = replay.sample(64, selector=selector)
                masses = 1.0 + batch["obs"]
                assert np.allclose(batch.importance_weights, masses.min() / masses, rtol=1e-4)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
async def test_priorities_given_before_the_first_selector_are_what_it_begins_with(
    tmp_path: Path, exponent: float
) -> None:
    """By `extend`, `add` and actors; also after a checkpoint was saved and loaded in between, and
    for one more selector of another exponent."""
    expected = np.concatenate([1.0 + np.arange(10), [30.0], np.full(2, 30.0), [0.5]])
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(10)}, priorities=expected[:10])
        await replay.add(x=10, priority=30.0)
        await replay.extend({"x": np.arange(11, 13)})
        await replay.add(x=13, priority=-0.5)
        assert replay.update_priorities(indices[:1], [20.0]) == (1, 0)
        expected[0] = 20.0
        await replay.save(tmp_path)
    async with await areplay.Replay.load(tmp_path) as replay:
        for each in (exponent, 0.25):
            batch = replay.sample(4_000, selector=areplay.Prioritized(each))
            p = expected**each / (expected**each).sum()
            assert np.allclose(batch.probabilities, p[batch["x"]], rtol=1e-5)
            assert stats.chisquare(np.bincount(batch["x"], minlength=14), p * 4_000).pvalue > 1e-4
        assert len(replay._opened().priorities) == 2
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        async with asyncio.timeout(60), replay.actors(hand_in_with_priorities, 1) as actors:
            await actors.wait()
        batch = replay.sample(4_000, selector=areplay.Prioritized(exponent))
        masses = np.arange(20, 40)[batch["x"][batch["x"] >= 20] - 20] / 2
        assert np.ptp(batch.probabilities[batch["x"] >= 20] / masses**exponent) < 1e-6
        assert 0 not in batch["x"][batch["x"] > 13]


@pytest.mark.parametrize("is_bound_before", [True, False])
async def test_a_row_of_priority_0_is_not_drawn_by_the_exponent_0(is_bound_before: bool) -> None:
    """All others alike, whether the priorities came before the selector or after; a row that gets
    another priority is drawn again."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        uniform = areplay.Prioritized(priority_exponent=0.0)
        if is_bound_before:
            await replay.extend({"x": np.arange(1)})
            replay.sample(1, selector=uniform)
        given = np.where(np.arange(40) % 4 == 0, 0.0, np.arange(40) + 0.5)
        indices = await replay.extend({"x": np.arange(100, 140)}, priorities=given)
        drawn = replay.sample(4_000, selector=uniform)
        rows = {100 + k for k in range(40) if k % 4}
        assert set(drawn["x"].tolist()) - {0} == rows
        assert np.allclose(drawn.probabilities, 1 / (30 + is_bound_before))
        replay.update_priorities(indices[:2], np.array([7.0, 0.0]))
        drawn = replay.sample(4_000, selector=uniform)
        assert set(drawn["x"].tolist()) - {0} == rows - {101} | {100}


async def test_a_share_of_the_rows_is_drawn_uniformly() -> None:
    """Rows of priority 0, too; and the probabilities say so."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(40)})
        selector = areplay.Prioritized(1.0, 1.0, uniform_sample_probability=0.25)
        replay.sample(1, selector=selector)
        replay.update_priorities(indices, np.where(np.arange(40) < 4, 1.0, 0.0))
        batch = replay.sample(4_000, selector=selector)
        p = np.where(batch["x"] < 4, 0.75 / 4 + 0.25 / 40, 0.25 / 40)
        assert np.allclose(batch.probabilities, p)
        assert np.allclose(batch.importance_weights, p.min() / p)
        rare = (batch["x"] >= 4).mean()
        assert abs(rare - 0.225) < 0.04


async def test_rows_without_any_mass_can_still_be_drawn_uniformly() -> None:
    """If a share of the rows is; and if that share is all of them, priorities do not matter."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(40)})
        some, every = (
            areplay.Prioritized(1.0, uniform_sample_probability=share) for share in (0.1, 1.0)
        )
        replay.sample(1, selector=some)
        replay.update_priorities(indices, np.arange(40.0))
        batch = replay.sample(4_000, selector=every)
        assert np.bincount(batch["x"], minlength=40).min() > 50 and np.allclose(
            batch.probabilities, 1 / 40
        )
        replay.update_priorities(indices, np.zeros(40))
        batch = replay.sample(4_000, selector=some)
        assert np.bincount(batch["x"], minlength=40).min() > 50 and np.allclose(
            batch.probabilities, 1 / 40
        )


async def test_uniform_rows_stand_anywhere_in_a_batch() -> None:
    """So each batch has its share of them, also if several are drawn at once, and none is cut off
    with the rest."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(40)})
        selector = areplay.Prioritized(1.0, uniform_sample_probability=0.5)
        replay.sample(1, selector=selector)
        replay.update_priorities(indices, np.where(np.arange(40) < 4, 1.0, 0.0))
        rng = np.random.default_rng(0)
        drawn, _ = (
            replay._opened()
            .sampler.bind(selector)
            .draw_batches(replay._opened().ring, 4, 1_000, rng)
        )
        rare = (drawn.reshape(4, 1_000) >= 4).mean(axis=1)
        assert (abs(rare - 0.45) < 0.08).all()


async def test_stale_updates_are_counted_and_never_reach_a_newcomer() -> None:
    """Rows that were overwritten between the batch and its update."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        old = await replay.extend({"x": np.arange(64)})
        selector = areplay.Prioritized(1.0)
        replay.sample(1, selector=selector)
        new = await replay.extend({"x": np.arange(100, 116)})  # one block
        assert replay.update_priorities(old, np.full(64, 1e-6)) == areplay.PriorityUpdate(
            updated=48, stale=16
        )
        assert set(replay.sample(200, selector=selector).indices.tolist()) <= set(new.tolist())
        statistics = replay.statistics()
        assert (statistics.priorities_updated, statistics.priorities_stale) == (48, 16)


async def test_samplers_follow_updates_and_the_exponent() -> None:
    """What the learner changes reaches batches drawn after it; a schedule follows the batches
    delivered."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(64)})
        changed = areplay.Prioritized(1.0, 0.0)
        scheduled = areplay.Prioritized(1.0, lambda batches: min(1.0, batches / 8))
        async with (
            asyncio.timeout(60),
            replay.batches(batch_size=32, selector=changed, prefetch=1) as one,
            replay.batches(batch_size=32, selector=scheduled, prefetch=1) as other,
        ):
            assert (await anext(one)).importance_weights.tolist() == [1.0] * 32
            replay.update_priorities(indices, 1.0 + np.arange(64))
            one.importance_sampling_exponent = 1.0
            for _ in range(4):  # more than were drawn ahead
                batch = await anext(one)
            assert np.allclose(
                batch.importance_weights, batch.probabilities.min() / batch.probabilities, rtol=1e-5
            )
            assert np.allclose(batch.probabilities, (1 + batch["x"]) / 2080)
            for _ in range(12):
                batch = await anext(other)
            assert other.importance_sampling_exponent == 1.0
            assert np.allclose(
                batch.importance_weights, batch.probabilities.min() / batch.probabilities, rtol=1e-5
            )


async def test_actors_hand_in_priorities() -> None:
    """Row by row and in columns; rows without one enter with the largest so far."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        selector = areplay.Prioritized(1.0)
        replay._opened().sampler.bind(selector)
        async with asyncio.timeout(60), replay.actors(hand_in_with_priorities, 1) as actors:
            await actors.wait()
        batch = replay.sample(4_000, selector=selector)
        mass = {int(x): p for x, p in zip(batch["x"], batch.probabilities, strict=True)}
        given = {x: float(x) for x in range(1, 20, 2)} | {x: x / 2 for x in range(20, 40)}
        assert mass.keys() == set(range(40))
        unit = mass[1]
        assert all(abs(mass[x] / unit - given[x]) < 1e-4 for x in given)
        # Rows that are written together enter with the largest of those before them.
        assert all(1 - 1e-4 < mass[x] / unit < max(1, x - 1) + 1e-4 for x in range(0, 20, 2))


async def test_steps_of_vectors_and_of_one_environment_have_priorities() -> None:
    """In the owner's process: of an episode's last step, not of its final observation; of each
    environment."""
    async with areplay.Replay(SPEC, 64, seed=3) as replay:
        selector = areplay.Prioritized(1.0)
        replay._opened().sampler.bind(selector)
        await replay.add(
            obs=0, action=0, reward=0.0, terminated=True, truncated=False, next_obs=1, priority=3.0
        )
        (tree,) = replay._opened().priorities.values()
        assert tree.masses[:2].tolist() == [3.0, 0.0]
    async with areplay.Replay(SPEC, 64, seed=3) as replay:
        replay._opened().sampler.bind(areplay.Prioritized(1.0))
        replay.autoreset_mode = "Disabled"
        flags = np.array([True, False])
        step = {
            "obs": np.arange(2),
            "action": np.zeros(2, int),
            "reward": np.zeros(2),
            "terminated": flags,
        }
        await replay.add(
            **step, truncated=~flags & False, next_obs=np.arange(1, 3), priority=[5.0, 7.0]
        )
        (tree,) = replay._opened().priorities.values()
        assert tree.masses[:3].tolist() == [5.0, 7.0, 0.0]


async def test_a_sequence_has_one_priority_of_its_errors() -> None:
    """0.9 of the largest and 0.1 of the mean, of those that count."""
    async with areplay.Replay(SPEC, 64, seed=3) as replay:
        indices = await episode(replay, 10)
        replay._opened().sampler.bind(areplay.Prioritized(1.0))
        (tree,) = replay._opened().priorities.values()
        errors = np.array([[1.0, -3.0, 100.0], [2.0, 2.0, 2.0]])
        mask = np.array([[True, True, False], [True, True, True]])
        replay.update_priorities(indices[:2], errors, mask=mask)
        assert np.allclose(tree.masses[:2], [0.9 * 3 + 0.1 * 2, 2.0])
        replay.update_priorities(indices[:2], errors, max_mean_mix=0.0)
        assert np.allclose(tree.masses[:2], [104 / 3, 2.0])


async def test_what_makes_no_sense_is_refused_and_changes_nothing() -> None:
    """By the name of what was wrong."""
    for options in (
        {"priority_exponent": 1.1},
        {"importance_sampling_exponent": -1},
        {"uniform_sample_probability": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            areplay.Prioritized(**options)
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(4)})
        with pytest.raises(ValueError, match=r"selector=Prioritized"):
            replay.update_priorities(indices, np.ones(4))
        selector = areplay.Prioritized()
        replay.sample(1, selector=selector)
        for wrong in (
            np.ones(3),
            [1.0, np.nan, 1.0, 1.0],
            np.ones((4, 0)),
            ["a"] * 4,
            np.ones((4, 2, 2)),
        ):
            with pytest.raises(ValueError, match="priorities"):
                replay.update_priorities(indices, wrong)
        with pytest.raises(ValueError, match="indices"):
            replay.update_priorities(indices.astype(float), np.ones(4))
        with pytest.raises(ValueError, match="mask"):
            replay.update_priorities(indices, np.ones((4, 2)), mask=np.ones(4, bool))
        with pytest.raises(areplay.SpecMismatch, match="priority"):
            await replay.add(x=1, priority=float("nan"))
        with pytest.raises(areplay.SpecMismatch, match="priorit"):
            await replay.extend({"x": np.arange(3)}, priorities=[1.0])
        assert len(replay) == 4
        assert replay.statistics().priorities_updated == 0


async def test_rows_that_all_have_priority_0_are_refused_at_the_draw() -> None:
    """By `sample` at once, with the cause; a stream of batches says it in its reason, and goes on
    when one has some."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        indices = await replay.extend({"x": np.arange(4)})
        selector = areplay.Prioritized(1.0)
        replay.sample(1, selector=selector)
        assert replay.update_priorities(indices, np.zeros(4)) == (4, 0)
        with pytest.raises(
            areplay.Stalled, match="all rows have priority 0; give some a larger one"
        ):
            replay.sample(1, selector=selector)
        async with replay.batches(batch_size=8, selector=selector) as batches:
            waiting = asyncio.create_task(anext(batches))
            await until(
                lambda: any(
                    "all rows have priority 0" in wait.reason for wait in replay.statistics().waits
                )
            )
            replay.update_priorities(indices[2:3], np.ones(1))
            assert (await waiting)["x"].tolist() == [2] * 8


async def test_one_selector_serves_several_replays_and_streams() -> None:
    """Each stream draws by the priorities of its replay, and has an exponent of its own."""
    selector = areplay.Prioritized(1.0, importance_sampling_exponent=0.5)
    async with areplay.Replay(PLAIN, 64, seed=3) as one, areplay.Replay(PLAIN, 64) as other:
        for replay, likely in ((one, 1), (other, 2)):
            indices = await replay.extend({"x": np.arange(4)})
            replay.sample(1, selector=selector)
            replay.update_priorities(indices, np.where(np.arange(4) == likely, 1.0, 0.0))
        async with (
            asyncio.timeout(60),
            one.batches(batch_size=4, selector=selector) as first,
            one.batches(batch_size=4, selector=selector) as second,
            other.batches(batch_size=4, selector=selector) as third,
        ):
            first.importance_sampling_exponent = 0.75
            streams = (first, second, third)
            exponents = [stream.importance_sampling_exponent for stream in streams]
            assert exponents == [0.75, 0.5, 0.5]
            assert [(await anext(stream))["x"].tolist() for stream in streams] == [
                [1] * 4,
                [1] * 4,
                [2] * 4,
            ]
        assert selector == areplay.Prioritized(1.0, importance_sampling_exponent=0.5)


async def test_an_exponent_that_cannot_be_set_is_refused() -> None:
    """It is no number from 0 to 1, or the selector has none; nothing has changed."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        prioritized = replay.batches(batch_size=4, selector=areplay.Prioritized(1.0, 0.5))
        for wrong in (-0.1, 1.1, "1", None):
            with pytest.raises(ValueError, match="importance_sampling_exponent must be"):
                prioritized.importance_sampling_exponent = wrong  # type: ignore[assignment]
        assert prioritized.importance_sampling_exponent == 0.5
        for selector in (areplay.Uniform(), areplay.Fifo()):
            plain = replay.batches(batch_size=4, selector=selector)
            with pytest.raises(TypeError, match="only Prioritized has"):
                plain.importance_sampling_exponent = 0.5
            assert plain.importance_sampling_exponent == 0.0


async def test_streams_that_are_gone_leave_their_exponents_to_others() -> None:
    """However many there were, one after the other; of those that are there each has its own."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        await replay.extend({"x": np.arange(4)})
        selector = areplay.Prioritized(1.0, 0.25)
        kept = replay.batches(batch_size=4, selector=areplay.Prioritized(1.0, 0.75))
        for _ in range(1_100):
            replay.sample(4, selector=selector)
        closed = [replay.batches(batch_size=4, selector=selector) for _ in range(2)]
        for _ in range(1_100):
            await closed[-1].close()
            closed.append(replay.batches(batch_size=4, selector=selector))
        assert kept.importance_sampling_exponent == 0.75


async def test_a_closed_stream_has_the_exponent_that_it_had_last() -> None:
    """Though its place is another stream's by then, which it does not reach."""
    async with areplay.Replay(PLAIN, 64, seed=3) as replay:
        closed = replay.batches(batch_size=4, selector=areplay.Prioritized(1.0, 0.25))
        await closed.close()
        other = replay.batches(batch_size=4, selector=areplay.Prioritized(1.0, 0.75))
        assert closed.importance_sampling_exponent == 0.25
        closed.importance_sampling_exponent = 0.5
        assert other.importance_sampling_exponent == 0.75


def test_options_are_values() -> None:
    """They cannot be changed, and equal ones are equal."""
    for option in (
        areplay.Uniform(),
        areplay.Prioritized(0.5, 0.25, 0.125),
        areplay.Fifo(2),
        areplay.Epochs(None, drop_last=True),
    ):
        for field in dataclasses.fields(option):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(option, field.name, 1)
        names = {"areplay": areplay, **vars(areplay)}
        assert eval(repr(option), names) == option == pickle.loads(pickle.dumps(option))
    assert areplay.Prioritized(0.5) != areplay.Prioritized(0.6)


async def test_a_row_that_is_gone_again_is_not_replaced_by_a_uniform_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where all that was drawn by priority was overwritten meanwhile, there is nothing this time:
    only where no row has a priority are rows drawn uniformly, with the probability of that."""
    async with areplay.Replay(PLAIN, 256, seed=1) as replay:
        await replay.extend({"x": np.arange(100)})
        selector = areplay.Prioritized(1.0, uniform_sample_probability=0.25)
        replay.sample(4, selector=selector)
        ring, rng = replay._opened().ring, np.random.default_rng(0)
        monkeypatch.setattr(Priorities, "draw", lambda *_: (np.empty(0, np.int64), np.empty(0)))
        bound = replay._opened().sampler.bind(selector)
        indices, probabilities = bound.draw_batches(ring, 1, 1, rng)
        assert len(indices) == 0 and len(np.atleast_1d(probabilities)) == 0
        replay.update_priorities(np.arange(100), np.zeros(100))
        indices, chance = bound.draw_batches(ring, 1, 1, rng)
        assert len(indices) == 1 and chance == 1 / 100
