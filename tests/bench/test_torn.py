"""Tests of `benchmarks.row.torn`: what it would count if a torn row came through."""

from __future__ import annotations

import pytest

import areplay
from benchmarks.harness.options import Options
from benchmarks.row.torn import (
    BLOCKS,
    CHECKSUM,
    CHUNKS,
    MAX_BLOCK_ROWS,
    checksums,
    chunk_rows_for,
    counted,
    torn_rows,
    with_checksum,
)
from benchmarks.workloads import CARTPOLE

from . import workers
from .test_measures import ignore, value_of

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


@pytest.mark.parametrize("field", CARTPOLE.fields)
async def test_a_row_of_which_one_bit_changed_is_torn(field: str) -> None:
    """Whichever field it is in, and only that row; nor does one pass whose checksum changed."""
    rows = CARTPOLE.columns(16, seed=3)
    rows[CHECKSUM] = checksums(rows)
    assert torn_rows(rows) == 0
    rows[field].reshape(16, -1).view("uint8")[7, 0] ^= 1
    assert torn_rows(rows) == 1
    rows[CHECKSUM][7] = checksums(rows)[7]
    rows[CHECKSUM][3] ^= 1
    assert torn_rows(rows) == 1


async def test_torn_rows_that_come_through_are_counted() -> None:
    """A copy that spoils a row: one of each batch at least is reported as accepted."""
    options = Options.quick()
    found = await counted(CARTPOLE, options, ignore, workers.Tears("obs"))
    batches = value_of(found, "rows compared with their checksum") / options.batch_size
    assert value_of(found, "torn rows accepted") >= batches > 0


async def test_no_chunk_is_written_over_itself() -> None:
    """Then a row that is put together from two laps would be put together from equal ones, and look
    whole."""
    for block_rows in range(1, MAX_BLOCK_ROWS + 1):
        assert BLOCKS * block_rows % (CHUNKS * chunk_rows_for(block_rows)) != 0


async def test_the_checksum_is_a_field_of_its_own() -> None:
    """The user's fields stay as they are."""
    assert areplay.Spec(**with_checksum(CARTPOLE).fields).keys() - CARTPOLE.spec().keys() == {
        CHECKSUM
    }
