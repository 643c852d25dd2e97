"""Files that several workers write at once, each its own chunks."""

import functools
import os
import time
from typing import Protocol

from grit_runtime.host import digest, extents, mapped, vm


class Sink(Protocol):
    """Where the bytes of a file go: they are put at a place in our memory, and stored from there. `begin` and `end`
    surround each chunk.
    """

    def begin(self, offset: int, size: int) -> None: ...
    def place(self, offset: int) -> int: ...
    def store(self, offset: int, size: int) -> None: ...
    def leave_hole(self, offset: int, size: int) -> None: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


def create(path: str, size: int) -> Sink:
    """Create a file, which must not exist, and has this size then.

    Raises:
        OSError: it is there, or there is no room.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size and extents.is_tmpfs(fd):
            os.ftruncate(fd, size)
            return _Mapped(fd, size)
        if size:
            extents.preallocate(fd, size)  # a full disk shows now
        return _Written(fd)
    except BaseException:
        os.close(fd)
        raise


class Pace:
    """Whether huge pages make a chunk sooner: where they lie ready, several times; where the kernel must make them of
    small ones, or a hypervisor back them first, they make it later. Each worker finds out for itself: one chunk without
    them, then one with them; if that was sooner, on like that until two in a row take longer.
    """

    def __init__(self) -> None:
        self._without: float | None = None
        self._later = 1

    @property
    def in_huge_pages(self) -> bool:
        """Whether the next chunk is to be in huge pages."""
        return self._without is not None and self._later < 2

    def took(self, seconds: float, *, in_huge_pages: bool) -> None:
        """How long a chunk took."""
        if not in_huge_pages:
            self._without = self._without or seconds
        elif self._without is not None:
            self._later = self._later + 1 if seconds > self._without else 0

    def give_up(self) -> None:
        """There are none to be had."""
        self._later = 2


class _Mapped:
    """On tmpfs a write takes the file's lock, so that workers wait for each other; those who write into a mapping wait
    for the lock of its pages only, and with huge pages hardly. A file system that is full shows as EFAULT of the
    kernel's copy.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._map = fd, mapped.Mapped(fd, size)
        self._begun, self._in_huge_pages = 0.0, False

    def begin(self, offset: int, size: int) -> None:
        self._begun, self._in_huge_pages = time.monotonic(), False
        if size == digest.CHUNK and _pace().in_huge_pages:
            self._in_huge_pages = self._map.take_huge_pages(offset, size)
            if not self._in_huge_pages:
                _pace().give_up()

    def place(self, offset: int) -> int:
        return self._map.address + offset

    def store(self, offset: int, size: int) -> None:
        """It is there."""

    def leave_hole(self, offset: int, size: int) -> None:
        extents.punch_hole(self._fd, offset, size)

    def end(self) -> None:
        _pace().took(time.monotonic() - self._begun, in_huge_pages=self._in_huge_pages)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)


@functools.cache
def _pace() -> Pace:
    """A worker's own."""
    return Pace()


@functools.cache
def _buffer() -> vm.Buffer:
    """A worker's own: it has one job at a time."""
    return vm.Buffer(digest.STEP)


class _Written:
    """A file of a disk; each worker has one buffer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, offset: int, size: int) -> None:
        """Its room was taken at once."""

    def place(self, _: int) -> int:
        return _buffer().address

    def store(self, offset: int, size: int) -> None:
        view, done = _buffer().view, 0
        while done < size:
            done += os.pwrite(self._fd, view[done:size], offset + done)

    def leave_hole(self, offset: int, size: int) -> None:
        extents.punch_hole(self._fd, offset, size)

    def end(self) -> None:
        """It is written."""

    def close(self) -> None:
        os.close(self._fd)
