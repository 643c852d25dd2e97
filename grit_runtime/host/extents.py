"""What a file occupies (fallocate(2), statfs(2))."""

import ctypes
import errno
import os
from collections.abc import Iterator

_PUNCH_HOLE = 0x02 | 0x01  # with FALLOC_FL_KEEP_SIZE
# <linux/magic.h>, and XFS's of fs/xfs/libxfs/xfs_format.h.
_TMPFS_MAGIC = 0x01021994
_EXT4_MAGIC, _XFS_MAGIC = 0xEF53, 0x58465342

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


def is_tmpfs(fd: int) -> bool:
    """Whether a file lies in memory."""
    return _magic(fd) == _TMPFS_MAGIC


def writes_directly(fd: int) -> bool:
    """Whether the file's file system writes past the page cache side by side into room that was taken before."""
    return _magic(fd) in (_EXT4_MAGIC, _XFS_MAGIC)


def _magic(fd: int) -> int | None:
    buffer = (ctypes.c_long * 32)()
    return buffer[0] if _libc.fstatfs(fd, buffer) == 0 else None


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
            if err.errno != errno.EINVAL:
                raise
            yield start, end
            return
        if begin >= end:
            return
        start = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        yield begin, start
