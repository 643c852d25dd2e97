"""Memory of stopped processes, filled by many workers from pages images, whose checksums are compared on the way."""

import errno
import functools
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grit_runtime.criu.pagemap import Run
from grit_runtime.errors import CheckpointError
from grit_runtime.host import digest, pool, vm


class Memory(Protocol):
    """The memory of a process."""

    is_there: bool
    """It holds what it is to hold already."""

    def put(self, address: int, source: int, size: int) -> None:
        """Copy memory of ours there. Raises OSError."""


# How far ahead of the workers the kernel is asked to read a file that isn't in memory yet: their reads, side by side in
# one file, look random to it.
_AHEAD = 8 * digest.CHUNK


@dataclass(frozen=True, slots=True)
class ByWriting:
    """process_vm_writev(2): the kernel makes each page, zeroes it, and copies."""

    pid: int
    is_there = False

    def put(self, address: int, source: int, size: int) -> None:
        """See `Memory.put`."""
        vm.write(self.pid, [(address, size)], source)


@dataclass(frozen=True, slots=True)
class ByMapping:
    """The file's own pages, mapped there (host/remap.py): only the page table is left to be filled."""

    pid: int
    is_there = True

    def put(self, address: int, source: int, size: int) -> None:  # noqa: ARG002 - it is there
        """See `Memory.put`."""
        vm.touch(self.pid, address, size)


@dataclass(frozen=True, slots=True)
class ByUserfault:
    """UFFDIO_COPY: the kernel puts a page with our content there; twice as fast."""

    pid: int
    userfault: vm.Userfault
    is_there = False

    def put(self, address: int, source: int, size: int) -> None:
        """See `Memory.put`."""
        try:
            self.userfault.copy(address, source, size)
        except OSError as err:
            if err.errno != errno.EEXIST:
                raise
            vm.write(self.pid, [(address, size)], source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A pages image, with what of it goes where; what belongs to no run is compared only."""

    path: str
    size: int
    runs: tuple[tuple[Run, Memory], ...]
    """In the order of their offsets."""
    checksums: tuple[str, ...] | None
    """Of its chunks; None if nobody recorded them: what is in no run isn't read then."""
    fd: int = -1
    """The file, where it is open already and no other may be read; the caller's to close."""


def fill(images: Sequence[Image], workers: int, *, timeout: float = pool.LONGEST) -> int:
    """Fill, and compare, all chunks but those that `compare` is for.

    Returns:
        How many bytes were put into memory.

    Raises:
        CheckpointError: an image is shorter than its pagemap says, or not what it was.
        OSError: an image can't be read, or the memory not be filled.
    """
    return _each(images, workers, timeout, there=False)


def compare(images: Sequence[Image], workers: int, *, timeout: float = pool.LONGEST) -> int:
    """Compare the chunks whose memory is there already, which may be in use meanwhile.

    Returns and raises as `fill` does.
    """
    return _each(images, workers, timeout, there=True)


def _each(images: Sequence[Image], workers: int, timeout: float, *, there: bool) -> int:
    opened = [(image, _open(image)) for image in images]
    try:
        jobs = []
        for image, fd in opened:
            runs = _Runs(image.runs)
            chunks = [
                (number, start, end)
                for number, (start, end) in enumerate(digest.chunks(image.size))
                if runs.are_there(start, end - start) is there
            ]
            jobs += [(runs, image, fd, *chunk) for chunk in chunks]
            if chunks:
                os.posix_fadvise(fd, chunks[0][1], _AHEAD, os.POSIX_FADV_WILLNEED)
        count = pool.fitting(workers, digest.CHUNK * len(jobs))
        return sum(pool.each(lambda job: _chunk(*job), jobs, count, timeout=timeout))
    finally:
        for _, fd in opened:
            os.close(fd)


def _open(image: Image) -> int:
    return os.dup(image.fd) if image.fd >= 0 else os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)


@functools.cache
def _buffer() -> vm.Buffer:
    """A worker's own: it has one job at a time."""
    return vm.Buffer(digest.STEP)


def _chunk(runs: "_Runs", image: Image, fd: int, number: int, start: int, end: int) -> int:
    if image.checksums is None and not runs.pieces(start, end - start):
        return 0
    os.posix_fadvise(fd, start + _AHEAD, digest.CHUNK, os.POSIX_FADV_WILLNEED)
    made, buffer, done = digest.Digest() if image.checksums is not None else None, _buffer(), 0
    for offset, size in digest.steps(start, end):
        try:
            digest.read(fd, buffer, offset, size)
        except EOFError:
            raise CheckpointError(
                f"image {image.path} is shorter than its pagemap says", hint="copy it again"
            ) from None
        if vm.is_zero(buffer.address, size):
            continue  # so is memory that nobody has touched
        if made:
            made.add(offset, buffer.address, size)
        for memory, address, skipped, length in runs.pieces(offset, size):
            memory.put(address, buffer.address + skipped, length)
            done += length
    if made and image.checksums is not None and made.value() != image.checksums[number]:
        raise CheckpointError(
            f"image {image.path} is not what it was: its bytes {start} to {end} have another checksum",
            hint="copy it again",
        )
    return done


class _Runs:
    """What of a part of the file goes where."""

    def __init__(self, runs: Sequence[tuple[Run, Memory]]) -> None:
        self._runs, self._ends = runs, [run.offset + run.size for run, _ in runs]

    def are_there(self, offset: int, size: int) -> bool:
        """Whether there is nothing but memory that is there in this part of the file."""
        pieces = self.pieces(offset, size)
        return bool(pieces) and all(memory.is_there for memory, *_ in pieces)

    def pieces(self, offset: int, size: int) -> list[tuple[Memory, int, int, int]]:
        """Memory, address, how far into the part, and size."""
        found, end = [], offset + size
        for run, memory in self._runs[bisect_right(self._ends, offset) :]:
            if run.offset >= end:
                break
            first, last = max(offset, run.offset), min(end, run.offset + run.size)
            found.append((memory, run.address + first - run.offset, first - offset, last - first))
        return found
