"""Checksums of files, computed while their bytes pass.

A file is cut into chunks, each with a checksum of its own, so that they can be computed side by side. Within a chunk
the steps that hold nothing but zeros don't count, and those that do are preceded by their number: so a file that lost
or gained holes on its way has the checksums that it had.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Any

from grit_runtime.host import vm

ALGORITHM = "xxh3-128"
CHUNK = 16 << 20
STEP = 1 << 20


class Digest:
    """The checksum of one chunk."""

    def __init__(self) -> None:
        self._state = _xxhash().xxh3_128()

    def add(self, offset: int, address: int, size: int) -> None:
        """A step at this offset of the file, in memory of ours."""
        self._state.update(offset.to_bytes(8, "little"))
        self._state.update((ctypes.c_char * size).from_address(address))

    def value(self) -> str:
        """In hexadecimal digits."""
        value: str = self._state.hexdigest()
        return value


def chunks(size: int) -> list[tuple[int, int]]:
    """Begin and end of each chunk of a file."""
    return [(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


def steps(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each step of a chunk."""
    for offset in range(start, end, STEP):
        yield offset, min(STEP, end - offset)


def of_chunk(fd: int, start: int, end: int, base: int = 0) -> str:
    """The checksum of a chunk of a file, which begins at `base` of what is open.

    Raises OSError: it can't be read; EOFError: it is shorter.
    """
    digest, buffer = Digest(), vm.Buffer(STEP)
    for offset, size in steps(start, end):
        read(fd, buffer, base + offset, size)
        if not vm.is_zero(buffer.address, size):
            digest.add(offset, buffer.address, size)
    return digest.value()


def read(fd: int, buffer: vm.Buffer, offset: int, size: int) -> None:
    """Fill the buffer from a file. Raises OSError: it can't be read; EOFError: it is shorter."""
    done = 0
    while done < size:
        count = os.preadv(fd, [buffer.view[done:size]], offset + done)
        if not count:
            raise EOFError
        done += count


@functools.cache
def _xxhash() -> Any:
    import xxhash

    return xxhash
