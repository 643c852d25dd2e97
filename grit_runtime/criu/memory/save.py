"""Pages images, written by many threads from the memory of frozen processes."""

import ctypes
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grit_runtime.criu.pagemap import PAGE, Pagemap, Run
from grit_runtime.host import digest, extents, pool, vm


class Memory(Protocol):
    """Where the pages of one pagemap are now."""

    def read(self, pieces: vm.Pieces, address: int) -> None:
        """Read into memory of ours. Raises OSError."""


@dataclass(frozen=True, slots=True)
class OfProcess:
    """A process' own memory."""

    pid: int

    def read(self, pieces: vm.Pieces, address: int) -> None:
        """See `Memory.read`."""
        vm.read(self.pid, pieces, address)


@dataclass(frozen=True, slots=True)
class OfFile:
    """A file in memory (memfd_create(2)); addresses are offsets in it."""

    fd: int

    def read(self, pieces: vm.Pieces, address: int) -> None:
        """See `Memory.read`."""
        for offset, size in pieces:
            view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
            done = 0
            while done < size:
                count = os.preadv(self.fd, [view[done:]], offset + done)
                if not count:
                    view[done:] = self._behind_its_end(offset + done).ljust(size - done, b"\0")
                    break
                done += count
            address += size

    def _behind_its_end(self, end: int) -> bytes:
        """The rest of the file's last page, which is memory to who has it mapped (a System V segment of 56 bytes has a
        whole page), but not read by read(2).
        """
        inside = end % PAGE
        if not inside:
            return b""
        with mmap.mmap(self.fd, 0, access=mmap.ACCESS_COPY, offset=end - inside) as last:
            first = ctypes.c_char.from_buffer(last)
            found = ctypes.string_at(ctypes.addressof(first) + inside, PAGE - inside)
            del first  # the mapping can't be closed before
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A pages image to be written."""

    path: str
    pagemap: Pagemap
    memory: Memory


def save(images: Sequence[Image], workers: int) -> dict[str, list[str]]:
    """Write pages images, which must not exist.

    Returns:
        The checksums of each file's chunks, by its name.

    Raises:
        OSError: memory couldn't be read, or a file not be written.
    """
    sinks = [_sink(image) for image in images]
    try:
        jobs = [
            (image, sink, start, end)
            for image, sink in zip(images, sinks, strict=True)
            for start, end in digest.chunks(image.pagemap.size)
        ]
        runs = {image.path: _Runs(image.pagemap.runs()) for image in images}
        values = pool.each(lambda job: _chunk(job[0], runs[job[0].path], job[1], job[2], job[3]), jobs, workers)
    finally:
        for sink in sinks:
            sink.close()
    found: dict[str, list[str]] = {os.path.basename(image.path): [] for image in images}
    for (image, *_), value in zip(jobs, values, strict=True):
        found[os.path.basename(image.path)].append(value)
    return found


def _chunk(image: Image, runs: "_Runs", sink: "_Sink", start: int, end: int) -> str:
    made = digest.Digest()
    for offset, size in digest.steps(start, end):
        address = sink.place(offset)
        image.memory.read(runs.pieces(offset, size), address)
        if vm.is_zero(address, size):
            sink.leave_hole(offset, size)
            continue
        made.add(offset, address, size)
        sink.store(offset, size)
    return made.value()


class _Runs:
    """Which memory stands at an offset of the file."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs, self._starts = runs, [run.offset for run in runs]

    def pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        """Addresses and sizes, one after the other."""
        found = []
        number = bisect_right(self._starts, offset) - 1
        while size:
            run = self._runs[number]
            skipped = offset - run.offset
            length = min(size, run.size - skipped)
            found.append((run.address + skipped, length))
            offset, size, number = offset + length, size - length, number + 1
        return found


class _Sink(Protocol):
    """Where the bytes of a file go: they are put at a place in our memory, and stored from there."""

    def place(self, offset: int) -> int: ...
    def store(self, offset: int, size: int) -> None: ...
    def leave_hole(self, offset: int, size: int) -> None: ...
    def close(self) -> None: ...


def _sink(image: Image) -> _Sink:
    size = image.pagemap.size
    fd = os.open(image.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
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


class _Mapped:
    """On tmpfs a write takes the file's lock, so that threads wait for each other; pages of a mapping don't. A file
    system that is full shows as EFAULT of the kernel's copy.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._map = fd, mmap.mmap(fd, size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def place(self, offset: int) -> int:
        return self._address + offset

    def store(self, offset: int, size: int) -> None:
        """It is there."""

    def leave_hole(self, offset: int, size: int) -> None:
        extents.punch_hole(self._fd, offset, size)

    def close(self) -> None:
        os.close(self._fd)


class _Written:
    """A file of a disk; each thread has one buffer."""

    def __init__(self, fd: int) -> None:
        self._fd, self._own = fd, threading.local()

    def place(self, _: int) -> int:
        return self._buffer().address

    def store(self, offset: int, size: int) -> None:
        view, done = self._buffer().view, 0
        while done < size:
            done += os.pwrite(self._fd, view[done:size], offset + done)

    def leave_hole(self, offset: int, size: int) -> None:
        extents.punch_hole(self._fd, offset, size)

    def close(self) -> None:
        os.close(self._fd)

    def _buffer(self) -> vm.Buffer:
        buffer: vm.Buffer | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = vm.Buffer(digest.STEP)
        return buffer
