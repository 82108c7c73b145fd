"""What an actor is given: seeds of its own, and the learner's weights, whole and never older than
before."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import areplay

from . import workers
from .oracle import SPEC
from .watching import until

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


async def test_seeds_repeat_under_the_same_seed_and_differ_otherwise() -> None:
    """Replay(seed=) decides actor.seed and actor.rng: the same again, different for each actor,
    group and restart."""

    async def seeds(seed: int | None, runs: int) -> dict[tuple[int, int], tuple[object, object]]:
        """`(actor, run)` -> what that one was given; two actors with so many runs each."""
        found: dict[tuple[int, int], tuple[object, object]] = {}
        async with (
            areplay.Replay(SPEC, 1_000, seed=seed) as replay,
            replay.actors(workers.tell_seed_and_raise, 2, max_restarts=runs - 1) as actors,
        ):
            await until(lambda: actors.alive == 0)
            for report in actors.reports():
                run = sum(actor == report.actor for actor, _ in found)
                found[report.actor, run] = report.values["seed"], report.values["number"]
        return found

    first, again, unseeded = await seeds(5, 2), await seeds(5, 1), await seeds(None, 1)
    assert len(first) == 4, "two actors, each restarted once"
    assert again == {key: first[key] for key in again}
    assert len({seed for seed, _ in first.values()} | {seed for seed, _ in unseeded.values()}) == 6
    assert (
        len({number for _, number in first.values()} | {number for _, number in unseeded.values()})
        == 6
    )
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed, _ in first.values())


async def test_actors_see_weights_that_are_whole_and_never_older() -> None:
    """While the learner publishes in long bursts, and more actors than there are processors look,
    each sees only arrays of one version, and versions that never go back; the last version
    arrives."""
    actors_count, enough, size = 3, 100, 20_000
    weights = areplay.Weights(
        {"w": np.zeros(size), "b": np.zeros((3, 7), np.int64), "is_last": np.bool_(False)}
    )
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(
            workers.watch_weights, actors_count, args=(enough,), weights=weights
        ) as actors,
    ):

        def publish(is_last: bool = False) -> int:
            version = weights.version + 1
            new = {
                "w": np.full(size, float(version)),
                "b": np.full((3, 7), version),
                "is_last": np.bool_(is_last),
            }
            assert weights.publish(new) == version
            return version

        reports: list[areplay.Report] = []
        # until each has seen enough of them
        while len({report.actor for report in reports}) < actors_count:
            for _ in range(400):
                publish()
            await asyncio.sleep(0.001)
            reports.extend(actors.reports())
        last, reports = publish(is_last=True), []
        await until(lambda: reports.extend(actors.reports()) or len(reports) == actors_count)
        print(
            f"{last} versions published; seen:",
            {report.actor: report.values["seen"] for report in reports},
        )
        for report in reports:
            assert report.values["torn"] == report.values["back"] == 0
            assert report.values["version"] == last
    weights.close()


async def test_a_restarted_actor_goes_on_with_the_newest_weights() -> None:
    """Weights live in the learner's memory: an actor's death and restart changes nothing."""
    weights = areplay.Weights({"w": np.zeros(3)})
    weights.publish({"w": np.ones(3)})
    async with areplay.Replay(SPEC, 1_000) as replay:
        async with replay.actors(
            workers.tell_weights_and_raise, 1, weights=weights, max_restarts=1
        ) as actors:
            with pytest.raises(areplay.ActorFailed):
                await actors.wait()
            assert [report.values for report in actors.reports()] == [
                {"version": 1, "sum": 3.0}
            ] * 2
        assert weights.publish({"w": np.zeros(3)}) == 2, (
            "the publisher does not care that nobody reads"
        )
    weights.close()


async def test_an_actor_without_weights_is_told_so() -> None:
    """actor.weights names the option that was left out."""
    async with (
        areplay.Replay(SPEC, 1_000) as replay,
        replay.actors(workers.watch_weights, 1, max_restarts=0) as actors,
    ):
        with pytest.raises(areplay.ActorFailed, match=r"pass weights= to Replay\.actors"):
            await actors.wait()
