"""Files that several workers write at once: what is written stands there, in huge pages or not."""

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grit_runtime.criu.memory import sink
from grit_runtime.host import digest, extents, mapped, vm

SIZE = 3 * digest.CHUNK + 5 * vm.PAGE
TMPFS = Path("/dev/shm")


@pytest.fixture(params=["tmpfs", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=TMPFS) as path:
        yield Path(path)


def _write(made: sink.Sink, start: int, end: int, what: bytes) -> None:
    made.begin(start, end - start)
    for offset, size in digest.steps(start, end):
        address = made.place(offset)
        ctypes.memmove(address, what * (size // len(what)), size)
        if what == b"\0":
            made.leave_hole(offset, size)
        else:
            made.store(offset, size)
    made.end()


@pytest.mark.parametrize("huge", [True, False])
def test_what_is_written_stands_there(folder: Path, huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a chunk of zeros, which is a hole."""
    monkeypatch.setattr(sink.Pace, "in_huge_pages", property(lambda _: huge))
    path = folder / "file"
    made = sink.create(str(path), SIZE)
    words = (b"grit", b"\0", b"rust", b"last")
    try:
        for (start, end), word in zip(digest.chunks(SIZE), words, strict=True):
            _write(made, start, end, word)
    finally:
        made.close()
    expected = b"".join(w * ((e - s) // len(w)) for (s, e), w in zip(digest.chunks(SIZE), words, strict=True))
    assert path.read_bytes() == expected
    assert path.stat().st_blocks * 512 <= SIZE - digest.CHUNK + vm.PAGE


@pytest.mark.parametrize("case", ["as it is", "no direct opening", "larger blocks"])
def test_what_is_written_past_the_page_cache_stands_there(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that can't, and a disk that can't, it goes through the cache."""
    real_open, real_write, direct = os.open, os.pwrite, list[int]()

    def opening(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and case == "no direct opening":
            raise OSError(errno.EINVAL, "no O_DIRECT")
        fd = real_open(path, flags & ~(0 if case == "as it is" else os.O_DIRECT), mode)
        direct.extend([fd] if flags & os.O_DIRECT else [])
        return fd

    def writing(fd: int, data: bytes, offset: int) -> int:
        if fd in direct and case == "larger blocks":
            raise OSError(errno.EINVAL, "not aligned")
        return real_write(fd, data, offset)

    monkeypatch.setattr(sink, "_LARGE", SIZE)
    monkeypatch.setattr(extents, "writes_directly", lambda _: True)
    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "pwrite", writing)
    path = tmp_path / "file"
    before = os.listdir("/proc/self/fd")
    made = sink.create(str(path), SIZE, direct=True)
    try:
        for start, end in digest.chunks(SIZE):
            _write(made, start, end, b"grit")
    finally:
        made.close()
    assert path.read_bytes() == b"grit" * (SIZE // 4)
    assert os.listdir("/proc/self/fd") == before
    assert bool(direct) == (case != "no direct opening")


def test_what_is_small_is_written_into_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise AssertionError

    monkeypatch.setattr(sink, "_opened_directly", refuse)
    sink.create(str(tmp_path / "small"), sink._LARGE - vm.PAGE, direct=True).close()
    sink.create(str(tmp_path / "large"), sink._LARGE, direct=False).close()
    with pytest.raises(AssertionError):
        sink.create(str(tmp_path / "directly"), sink._LARGE, direct=True)


def test_a_file_that_is_there_is_left(folder: Path) -> None:
    path = folder / "file"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        sink.create(str(path), SIZE)
    assert path.read_text() == "mine"


def _of_mapping(address: int, field: str) -> int:
    """Bytes, by proc_pid_smaps(5)."""
    _, _, after = Path("/proc/self/smaps").read_text().partition(f"\n{address:x}-")
    return int(next(line.split()[1] for line in after.splitlines() if line.startswith(f"{field}:"))) << 10


def _huge_pages() -> str:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    except OSError:
        return "[deny]"


@pytest.mark.skipif("[deny]" in _huge_pages(), reason="this kernel gives none to tmpfs")
def test_huge_pages_on_any_tmpfs() -> None:
    fd = os.open(TMPFS, os.O_TMPFILE | os.O_RDWR)
    try:
        assert extents.is_tmpfs(fd)
        os.ftruncate(fd, 2 * mapped.HUGE)
        there = mapped.Mapped(fd, 2 * mapped.HUGE)
        try:
            assert there.address % mapped.HUGE == 0
            assert there.take_huge_pages(0, 2 * mapped.HUGE)
            assert os.fstat(fd).st_blocks * 512 == 2 * mapped.HUGE
            assert _of_mapping(there.address, "ShmemPmdMapped") == 2 * mapped.HUGE
            ctypes.memset(there.address, 7, 100)
            assert os.pread(fd, 101, 0) == b"\7" * 100 + b"\0"
        finally:
            there.close()
    finally:
        os.close(fd)


def test_a_file_without_a_size_cannot_be_mapped(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    try:
        with pytest.raises(OSError, match="cannot map"):
            mapped.Mapped(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("with_them", "used"),
    [
        ([0.5, 0.5, 0.5], True),
        ([2.0], False),
        ([0.5, 2.0], True),
        ([0.5, 2.0, 2.0], False),
        ([0.5, 2.0, 0.5, 2.0], True),
    ],
)
def test_huge_pages_are_used_while_they_are_sooner(with_them: list[float], used: bool) -> None:
    pace = sink.Pace()
    assert not pace.in_huge_pages
    pace.took(1.0, in_huge_pages=False)
    for seconds in with_them:
        assert pace.in_huge_pages
        pace.took(seconds, in_huge_pages=True)
    assert pace.in_huge_pages is used


def test_huge_pages_that_are_not_there_are_not_asked_for_again() -> None:
    pace = sink.Pace()
    pace.took(1.0, in_huge_pages=False)
    pace.give_up()
    pace.took(1.0, in_huge_pages=False)
    assert not pace.in_huge_pages
