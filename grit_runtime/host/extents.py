"""What a file occupies (fallocate(2), statfs(2))."""

import ctypes
import errno
import os
from collections.abc import Iterator

_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
_TMPFS_MAGIC = 0x01021994  # <linux/magic.h>

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


def is_tmpfs(fd: int) -> bool:
    """Whether a file lies in memory."""
    buffer = (ctypes.c_long * 32)()
    return _libc.fstatfs(fd, buffer) == 0 and buffer[0] == _TMPFS_MAGIC


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give back a part of a file, which reads as zeros then; nothing where the file system has no holes."""
    _libc.fallocate(fd, _PUNCH_HOLE, offset, size)


def preallocate(fd: int, size: int) -> None:
    """Take the room of a file. Raises OSError: there isn't enough."""
    os.posix_fallocate(fd, 0, size)


def data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a part of a file is no hole, as start and end (lseek(2), SEEK_DATA); all of it, where the file system has
    no holes. Raises OSError: it can't be read.
    """
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # a hole up to its end
                return
            raise
        if begin >= end:
            return
        start = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        yield begin, start
