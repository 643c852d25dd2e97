"""Pages images, written by many workers from the memory of frozen processes."""

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grit_runtime.criu.memory import sink as sinking
from grit_runtime.criu.pagemap import PAGE, Pagemap, Run
from grit_runtime.host import digest, pool, vm


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


def save(
    images: Sequence[Image], workers: int, *, direct: bool = False, timeout: float = pool.LONGEST
) -> dict[str, list[str]]:
    """Write pages images, which must not exist.

    Args:
        direct: past the page cache, see `sink.create`.

    Returns:
        The checksums of each file's chunks, by its name.

    Raises:
        OSError: memory couldn't be read, or a file not be written.
    """
    sinks = [sinking.create(image.path, image.pagemap.size, direct=direct) for image in images]
    try:
        jobs = [
            (image, sink, start, end)
            for image, sink in zip(images, sinks, strict=True)
            for start, end in digest.chunks(image.pagemap.size)
        ]
        runs = {image.path: _Runs(image.pagemap.runs()) for image in images}
        count = pool.fitting(workers, sum(image.pagemap.size for image in images))
        values = pool.each(
            lambda job: _chunk(job[0], runs[job[0].path], job[1], job[2], job[3]), jobs, count, timeout=timeout
        )
    finally:
        for sink in sinks:
            sink.close()
    found: dict[str, list[str]] = {os.path.basename(image.path): [] for image in images}
    for (image, *_), value in zip(jobs, values, strict=True):
        found[os.path.basename(image.path)].append(value)
    return found


def _chunk(image: Image, runs: "_Runs", sink: sinking.Sink, start: int, end: int) -> str:
    made = digest.Digest()
    sink.begin(start, end - start)
    for offset, size in digest.steps(start, end):
        address = sink.place(offset)
        image.memory.read(runs.pieces(offset, size), address)
        if vm.is_zero(address, size):
            sink.leave_hole(offset, size)
            continue
        made.add(offset, address, size)
        sink.store(offset, size)
    sink.end()
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
