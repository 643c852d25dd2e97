"""Shared memory as it is read for a checkpoint: what a process sees of it, also behind the file's end."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from grit_runtime.criu.memory.save import OfFile
from grit_runtime.criu.pagemap import PAGE


@pytest.fixture
def segment() -> Iterator[int]:
    fd = os.memfd_create("segment")
    yield fd
    os.close(fd)


def _read(fd: int, pieces: list[tuple[int, int]]) -> bytes:
    size = sum(length for _, length in pieces)
    place = ctypes.create_string_buffer(b"\xff" * size, size)
    OfFile(fd).read(pieces, ctypes.addressof(place))
    return place.raw


def _map_whole_pages(fd: int, pages: int) -> mmap.mmap:
    """Python maps no more than the file's size; so the size is set afterwards."""
    os.ftruncate(fd, pages * PAGE)
    return mmap.mmap(fd, pages * PAGE)


@pytest.mark.parametrize("size", [1, 56, PAGE - 1, PAGE, PAGE + 56, 3 * PAGE - 1])
def test_what_a_process_wrote_behind_the_end_is_read(segment: int, size: int) -> None:
    pages = -(-size // PAGE)
    seen = _map_whole_pages(segment, pages)
    os.ftruncate(segment, size)
    seen[:] = bytes(range(1, 252)) * (pages * PAGE // 251) + b"x" * (pages * PAGE % 251)
    assert _read(segment, [(0, pages * PAGE)]) == seen[:]
    if pages > 1:
        pieces = [(PAGE * (pages - 1), PAGE), (0, PAGE)]
        assert _read(segment, pieces) == seen[-PAGE:] + seen[:PAGE]
    seen.close()


def test_whole_pages_behind_the_end_are_zeros(segment: int) -> None:
    os.pwrite(segment, b"z" * 56, 0)
    assert _read(segment, [(0, 3 * PAGE)]) == b"z" * 56 + bytes(3 * PAGE - 56)
    assert _read(segment, [(PAGE, PAGE)]) == bytes(PAGE)
