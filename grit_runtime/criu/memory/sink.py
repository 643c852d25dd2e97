"""Files that several workers write at once, each its own chunks."""

import errno
import functools
import os
import time
from typing import Protocol

from grit_runtime.host import digest, extents, mapped, vm

_LARGE = 64 << 20  # bytes; less is quickly written, and then in memory for whoever reads it next


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


def create(path: str, size: int, *, direct: bool = False) -> Sink:
    """Create a file, which must not exist, and has this size then.

    Args:
        direct: on a disk, write past the page cache, where the file system is known to do that well.

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
        return _Written(fd, _opened_directly(fd) if direct and size >= _LARGE else -1)
    except BaseException:
        os.close(fd)
        raise


def _opened_directly(fd: int) -> int:
    """The file once more, for writes past the page cache (open(2), O_DIRECT); -1 if that can't be had, or is no use."""
    if not extents.writes_directly(fd):
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


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
    """A file of a disk; each worker has one buffer.

    Through the page cache a large file is written at a fraction of the disk's rate once there is more to be written
    than the kernel lets lie (vm.dirty_ratio): 0.5 to 1.2 GiB/s where 1.7 to 2.3 go past it (docs/benchmarks.md).
    """

    def __init__(self, fd: int, direct: int) -> None:
        self._fd, self._direct = fd, direct

    def begin(self, offset: int, size: int) -> None:
        """Its room was taken at once."""

    def place(self, _: int) -> int:
        return _buffer().address

    def store(self, offset: int, size: int) -> None:
        view, done = _buffer().view, 0
        while done < size:
            try:
                done += os.pwrite(self._fd if self._direct < 0 else self._direct, view[done:size], offset + done)
            except OSError as err:
                if err.errno != errno.EINVAL or self._direct < 0:
                    raise
                self._drop_direct()  # a disk with larger blocks than pages, for one

    def leave_hole(self, offset: int, size: int) -> None:
        extents.punch_hole(self._fd, offset, size)

    def end(self) -> None:
        """It is written."""

    def close(self) -> None:
        self._drop_direct()
        os.close(self._fd)

    def _drop_direct(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
        self._direct = -1
