"""Too few file descriptors: a typed error that names the limit, before any child, and nothing kept
open."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import areplay

from . import workers
from .oracle import SPEC
from .watching import children, descriptors

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@contextmanager
def left_for_us(count: int) -> Iterator[int]:
    """So many descriptors more can be opened, and then no more; yields the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken, limit = descriptors(), 0
    # a limit is one of numbers: those below it that are free are what is left
    while count or limit in taken:
        count -= limit not in taken
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_too_few_descriptors_for_many_actors_are_noticed_before_any_is_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """50 actors under a limit of about 100 more: DescriptorLimitExceeded with the numbers and the
    knob."""
    caplog.set_level(logging.INFO, "areplay")
    before = children()
    async with areplay.Replay(SPEC, 1_000) as replay:
        with left_for_us(100) as limit, pytest.raises(areplay.DescriptorLimitExceeded) as refused:
            async with replay.actors(workers.hand_in, 50, args=(1,)):
                pass
        assert refused.value.limit == limit
        assert refused.value.needed > refused.value.available
        assert f"50 actors need {refused.value.needed} file descriptors" in str(refused.value)
        assert "ulimit -n" in str(refused.value)
        with (
            left_for_us(100),
            pytest.raises(areplay.DescriptorLimitExceeded, match="50 samplers need"),
        ):
            async with replay.batches(samplers=50, prefetch=50):
                pass
    assert children() == before
    assert not [message for message in caplog.messages if "started" in message]


@pytest.mark.parametrize("what", ["actors", "batches"])
async def test_whatever_the_limit_it_is_a_typed_error_or_it_works(what: str) -> None:
    """With 0, 1, 2, ... descriptors left, entering raises one of our errors and gives everything
    back, until there are enough, and then all goes well: never another error, never a hang, never a
    child that cannot be started."""
    for count in range(64):
        async with areplay.Replay(SPEC, 1_000) as replay:
            before = descriptors()
            group: areplay.Actors | areplay.Batches
            group = (
                replay.actors(workers.hand_in, 2, args=(5,))
                if what == "actors"
                else replay.batches(samplers=2)
            )
            try:
                with left_for_us(count):
                    async with asyncio.timeout(30.0), group:
                        break
            except (areplay.DescriptorLimitExceeded, areplay.ResourceUnavailable) as error:
                assert isinstance(error, areplay.DescriptorLimitExceeded), (
                    f"with {count} left: {error!r}"
                )
                assert {
                    fd: name for fd, name in descriptors().items() if before.get(fd) != name
                } == {}
    else:
        pytest.fail("64 descriptors were not enough")
    print(f"{what}: {count} descriptors are enough for two")
