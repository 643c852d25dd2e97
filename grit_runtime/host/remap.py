"""Memory of a stopped process that is a file's: mapped there, without a copy, and made the process' own again.

A process that reads its memory once and gives it back needs no copy of what stands in a file anyway: it can have the
file's pages (mmap(2), MAP_PRIVATE), whichever file system that is on. The process makes these system calls itself
(inject.py), with a descriptor of the file that it is given (handover.py).
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grit_runtime.host import extents, handover, inject, vm
from grit_runtime.host.inject import Call, InjectError

# <asm/unistd_64.h>, <asm-generic/mman-common.h>
_MMAP, _MPROTECT, _MADVISE = 9, 10, 28
_HUGEPAGE = 14
_READ, _WRITE = 1, 2
_PRIVATE, _FIXED, _ANONYMOUS = 0x02, 0x10, 0x20
_NOBODY = (1 << 64) - 1  # -1, as a descriptor
_PIECE = 64 << 20
_MOST = 4096  # mappings: the kernel has 65530 for a process (vm.max_map_count), and each takes some 30 microseconds


@dataclass(frozen=True, slots=True)
class Piece:
    """Memory and its place in the file: bytes, page aligned."""

    address: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file in a process' memory, as proc_pid_maps(5) names it: not every file system says the same there as stat(2)
    does.
    """

    pid: int
    file: tuple[str, str]
    """Device and inode."""


def map_file(pid: int, fd: int, pieces: Sequence[Piece]) -> Mapped:
    """Put parts of a file that we have open in the place of a stopped process' memory. It may read and write them, and
    the file stays as it is. A hole isn't mapped, for which tmpfs would take memory when it is read: what was there is
    left, and where nothing was it is zeros, in huge pages if the node has any.

    Raises:
        OSError: it can't be done, and none of it is mapped: the memory that was to be is empty.
    """
    parts = [each for piece in pieces for each in _without_holes(fd, piece)]
    if not 0 < len(parts) <= _MOST:
        raise InjectError(errno.E2BIG, f"it would be {len(parts)} mappings")
    with inject.calling(pid) as call, handover.scratch(call) as page, handover.sent(pid, call, page, fd) as theirs:
        for piece in pieces:
            with contextlib.suppress(InjectError):  # a kernel without huge pages
                call(_MADVISE, piece.address, piece.size, _HUGEPAGE)
        done: list[Piece] = []
        try:
            for each in parts:
                call(_MMAP, each.address, each.size, _READ | _WRITE, _PRIVATE | _FIXED, theirs, each.offset)
                done.append(each)
        except InjectError:
            for each in done:
                _empty(call, each.address, each.size)
            raise
    first = parts[0].address
    (file,) = {file for start, end, _, file in _maps(pid) if start <= first < end}
    return Mapped(pid, file)


def _without_holes(fd: int, piece: Piece) -> Iterator[Piece]:
    for start, end in extents.data(fd, piece.offset, piece.offset + piece.size):
        begin = start // vm.PAGE * vm.PAGE
        yield Piece(piece.address + begin - piece.offset, -(-(end - begin) // vm.PAGE) * vm.PAGE, begin)


def left(mapped: Mapped) -> list[tuple[int, int, int]]:
    """What of a process' memory is the file's still: start, end and protection.

    Raises:
        OSError: the process is gone.
    """
    return [(start, end, protection) for start, end, protection, file in _maps(mapped.pid) if file == mapped.file]


def make_own(mapped: Mapped) -> int:
    """Copy what is the file's still into memory of the stopped process' own, with its content as it is now.

    Returns:
        How many bytes.

    Raises:
        OSError: it can't be done; the process is not what it was then.
    """
    ranges = left(mapped)
    if not ranges:
        return 0
    pid, buffer = mapped.pid, vm.Buffer(_PIECE)
    with inject.calling(pid) as call:
        for start, end, protection in ranges:
            for address in range(start, end, _PIECE):
                size = min(_PIECE, end - address)
                vm.read(pid, [(address, size)], buffer.address)
                _empty(call, address, size)
                vm.write(pid, [(address, size)], buffer.address)
                if protection != _READ | _WRITE:
                    call(_MPROTECT, address, size, protection)
    return sum(end - start for start, end, _ in ranges)


def _empty(call: Call, address: int, size: int) -> None:
    """Have memory of the process' own there, which is zeros."""
    call(_MMAP, address, size, _READ | _WRITE, _PRIVATE | _FIXED | _ANONYMOUS, _NOBODY, 0)


def _maps(pid: int) -> Iterator[tuple[int, int, int, tuple[str, str]]]:
    """Start, end, protection, and device and inode of every mapping."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            addresses, flags, _, device, inode = line.split(maxsplit=5)[:5]
            start, end = (int(word, 16) for word in addresses.split("-"))
            yield start, end, sum(1 << bit for bit, letter in enumerate(flags[:3]) if letter != "-"), (device, inode)
