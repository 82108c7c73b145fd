"""Tests of `_shm.segment`: sealed, allocated, shared, and given back whole when something fails."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from kit import FailsAt, PassedDescriptor, descriptors_pass_by_pickle, open_descriptors

from areplay._shm import segment as segment_module
from areplay._shm.layout import Layout
from areplay._shm.segment import Segment
from areplay.errors import Closed, LayoutMismatch, MemoryLimitExceeded, ResourceUnavailable

LAYOUT = Layout("ring", {"rows": ((1_000, 64), np.uint8), "words": ((4,), np.int64)})


@contextmanager
def fresh_segment(layout: Layout = LAYOUT) -> Iterator[Segment]:
    """A segment that is closed in the end."""
    segment = Segment(layout, "a test's rows")
    try:
        yield segment
    finally:
        segment.close()


def test_fresh_memory_is_zero_and_behind_its_header() -> None:
    """Arrays have the layout's shapes, all zero; the header says what it is."""
    with fresh_segment() as segment:
        assert {name: array.shape for name, array in segment.arrays.items()} == {
            "rows": (1_000, 64),
            "words": (4,),
        }
        assert not segment.arrays["rows"].any() and not segment.arrays["words"].any()
        LAYOUT.check_header(memoryview(os.pread(segment.descriptor, 64, 0)))


def test_its_birth_and_its_end_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, by the process that made it; those that attach to it, and one that could not be
    made, say nothing."""
    caplog.set_level(logging.INFO, "areplay._shm.segment")
    with descriptors_pass_by_pickle(), fresh_segment() as segment:
        twin = pickle.loads(pickle.dumps(segment))
        twin.close()
        assert caplog.messages == [f"memory for a test's rows allocated, {LAYOUT.size_bytes} bytes"]
        segment.close()
    assert caplog.messages[1:] == ["memory for a test's rows given up, gone with its last view"]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


@pytest.mark.parametrize("change", [-1, 1, 4_096])
def test_nobody_can_resize_it(change: int) -> None:
    """A child that truncates the memory gets EPERM, where others would get SIGBUS."""
    with fresh_segment() as segment:
        with pytest.raises(PermissionError) as caught:
            os.ftruncate(segment.descriptor, LAYOUT.size_bytes + change)
        assert caught.value.errno == errno.EPERM
        assert os.fstat(segment.descriptor).st_size == LAYOUT.size_bytes


def test_nobody_can_take_the_seals_away_or_add_one() -> None:
    """The set of seals is sealed too: a child that sealed the memory against writing would stop
    everybody."""
    with fresh_segment() as segment:
        seals = fcntl.fcntl(segment.descriptor, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        future_write = 0x10  # F_SEAL_FUTURE_WRITE, which the fcntl module of 3.11 lacks
        with pytest.raises(PermissionError):
            fcntl.fcntl(segment.descriptor, fcntl.F_ADD_SEALS, future_write)


@pytest.mark.parametrize("size", [1, 4_096 * 3 + 1, 5 << 20])
def test_all_of_it_is_allocated_before_it_is_used(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page has its memory: a lack of it is an error now, not a kill later. Also with several
    steps."""
    monkeypatch.setattr(segment_module, "_STEP_BYTES", 1 << 20)
    with fresh_segment(Layout("ring", {"x": ((size,), np.uint8)})) as segment:
        assert os.fstat(segment.descriptor).st_blocks * 512 >= segment.layout.size_bytes


@pytest.mark.alone
def test_it_has_no_name_in_any_folder() -> None:
    """A memory file: nothing in /dev/shm that could be left over, and it does not pass to a program
    by exec."""
    before = sorted(os.listdir("/dev/shm"))
    with fresh_segment() as segment:
        assert sorted(os.listdir("/dev/shm")) == before
        assert os.readlink(f"/proc/self/fd/{segment.descriptor}").startswith("/memfd:areplay")
        assert not os.get_inheritable(segment.descriptor)


def test_whoever_attaches_sees_the_same_memory() -> None:
    """Pickling passes the descriptor: writes of either side are read by the other, at once."""
    with fresh_segment() as segment, descriptors_pass_by_pickle():
        twin = pickle.loads(pickle.dumps(segment))
        try:
            assert twin.descriptor != segment.descriptor
            segment.arrays["rows"][7] = 42
            assert (twin.arrays["rows"][7] == 42).all()
            twin.arrays["words"][:] = [1, 2, 3, 4]
            assert segment.arrays["words"].tolist() == [1, 2, 3, 4]
        finally:
            twin.close()


def test_attaching_to_memory_of_another_layout_is_refused() -> None:
    """The header is compared before an array can be read, and the passed descriptor is given
    back."""
    with fresh_segment() as segment:
        before = open_descriptors()
        other = Layout("slots", {"rows": ((1_000, 64), np.uint8), "words": ((4,), np.int64)})
        wrong = Segment.__new__(Segment)
        with pytest.raises(LayoutMismatch):
            wrong.__setstate__((other, "slots", PassedDescriptor(segment.descriptor)))
        del wrong
        assert open_descriptors() == before


def test_a_view_outlives_the_segment() -> None:
    """`close` gives back the descriptor; memory that somebody still looks at stays what it was."""
    segment = Segment(LAYOUT, "a test's rows")
    rows = segment.arrays["rows"]
    rows[:] = 9
    segment.close()
    assert (rows == 9).all()
    rows[3] = 1
    assert (segment.arrays["rows"][3] == 1).all()
    del segment
    assert (rows[0] == 9).all()


def test_closing_gives_back_the_descriptor_and_may_be_repeated() -> None:
    """Its number is free for others at once; with the last view the rest follows."""
    before = open_descriptors()
    segment = Segment(LAYOUT, "a test's rows")
    view, descriptor = segment.arrays["rows"], segment.descriptor
    segment.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    somebody_elses = os.dup(0)
    segment.close()
    os.close(somebody_elses)
    assert not view.any()
    del segment, view
    assert open_descriptors() == before


def test_a_segment_that_is_dropped_leaves_nothing() -> None:
    """Without `close`, the descriptor and the mapping go with the last reference."""
    before = open_descriptors()
    segment = Segment(LAYOUT, "a test's rows")
    assert segment.descriptor >= 0
    del segment
    assert open_descriptors() == before


def test_a_closed_segment_says_so() -> None:
    """The descriptor, and with it pickling, is refused with the segment's name."""
    segment = Segment(LAYOUT, "a test's rows")
    assert repr(segment) == (
        f"<Segment a test's rows: {LAYOUT.size_bytes:,} bytes, descriptor {segment.descriptor}>"
    )
    segment.close()
    assert repr(segment) == f"<Segment a test's rows: {LAYOUT.size_bytes:,} bytes, closed>"
    with pytest.raises(Closed, match="a test's rows"):
        _ = segment.descriptor
    with pytest.raises(Closed):
        pickle.dumps(segment)


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        (os, "memfd_create", "memfd_create"),
        (os, "ftruncate", "ftruncate"),
        (os, "posix_fallocate", "fallocate"),
        (fcntl, "fcntl", "fcntl"),
        (mmap, "mmap", "mmap"),
    ],
)
@pytest.mark.parametrize("error", [errno.ENFILE, errno.ENOMEM, errno.ENOSPC])
def test_every_refused_call_is_a_typed_error_and_leaves_nothing(
    where: object, name: str, said: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 1st, 2nd, 3rd ... call fails, until one run meets no fault: descriptors are as before,
    whatever failed."""
    monkeypatch.setattr(segment_module, "_STEP_BYTES", 16_384)
    met = 0
    for nth in range(1, 100):
        before = open_descriptors()
        with pytest.MonkeyPatch.context() as patch:
            call = FailsAt(getattr(where, name), nth, error)
            patch.setattr(where, name, call)
            try:
                with fresh_segment():
                    pass
            except ResourceUnavailable as refused:
                assert refused.call.startswith(said)
                assert refused.what == "a test's rows"
                assert os.strerror(error) in refused.reason
                assert len(os.listdir("/proc/self/fd")) == before, (
                    "given back before the error is even handled"
                )
                met += 1
            else:
                assert not call.has_failed
                break
        assert open_descriptors() == before
    else:
        pytest.fail("the fault was met again and again")
    assert met == (-(-LAYOUT.size_bytes // 16_384) if name == "posix_fallocate" else 1)


def test_any_other_exception_in_between_leaves_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while memory is being allocated gives back the descriptor, and stays what it is."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = open_descriptors()
    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Segment(LAYOUT, "a test's rows")
    assert open_descriptors() == before


def test_more_than_this_process_may_take_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limits are compared with the sizes of the arrays; no descriptor is made."""
    monkeypatch.setattr(os, "memfd_create", lambda *_: pytest.fail("it was created"))
    with pytest.raises(MemoryLimitExceeded) as caught:
        Segment(
            Layout("ring", {"obs": ((1 << 50,), np.uint8), "words": ((4,), np.int64)}),
            "a replay of many rows",
        )
    assert caught.value.parts == {"obs": 1 << 50, "words": 32}
    assert caught.value.what == "a replay of many rows"


@pytest.mark.parametrize("kernel_is_old", [False, True])
def test_prefault_touches_all_and_changes_nothing(
    kernel_is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes stay what they were, and progress ends with the whole; also where the kernel cannot
    populate."""
    monkeypatch.setattr(segment_module, "_STEP_BYTES", 16_384)
    if kernel_is_old:
        monkeypatch.setattr(segment_module, "_MADV_POPULATE_WRITE", 9_999)
    with fresh_segment() as segment:
        segment.arrays["rows"][:] = np.arange(64_000, dtype=np.uint8).reshape(1_000, 64)
        seen: list[tuple[int, int]] = []
        segment.prefault(lambda done, size: seen.append((done, size)))
        size = LAYOUT.size_bytes
        assert seen == [
            (min(size, step * 16_384), size) for step in range(1, -(-size // 16_384) + 1)
        ]
        assert (segment.arrays["rows"].ravel() == np.arange(64_000, dtype=np.uint8)).all()
        segment.prefault()


def test_prefault_makes_the_pages_resident() -> None:
    """After it, no page of the mapping needs a first touch."""
    layout = Layout("ring", {"x": ((8 << 20,), np.uint8)})
    with fresh_segment(layout) as segment:
        segment.prefault()
        assert resident_bytes(segment.arrays["x"].ctypes.data) >= 8 << 20


def resident_bytes(address: int) -> int:
    """Bytes of the mapping around that address that are mapped in, by the kernel's own account."""
    within = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                within = start <= address < end
            elif within and first == "Rss:":
                return int(line.split()[1]) * 1024
    return 0
