"""Steps through directories that a tenant may have filled: by descriptor, following no link, never out of the root."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from grit_runtime.errors import GritError

MAX_DEPTH = 400  # one descriptor and one frame each
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def path_at(directory: int, name: bytes) -> bytes:
    """A path to a name in an open directory, for the calls that take no directory descriptor. Only its last component
    is the tenant's: with a call that doesn't follow links it leads nowhere else.
    """
    return b"/proc/self/fd/%d/%s" % (directory, name)


def xattrs(directory: int, name: bytes) -> dict[bytes, bytes]:
    """Every extended attribute that we can see; none where the file system has none."""
    path = path_at(directory, name)
    try:
        return {
            os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
    except OSError as err:
        if err.errno in (errno.ENOTSUP, errno.EPERM):
            return {}
        raise


def lstat(directory: int, name: bytes) -> os.stat_result | None:
    """What is at a name, None if nothing."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextmanager
def opened(path: bytes | str, directory: int | None = None) -> Iterator[int]:
    """A directory, open."""
    fd = os.open(path, DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def below(root: str, *names: str) -> int:
    """Open a directory some names below `root`, none of which may be a link.

    Raises:
        GritError: a name is none.
        OSError: it isn't there, or something on the way is no directory.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            os.close(fd)
            raise GritError(f"{name!r} is no file name")
        try:
            inner = os.open(name, DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def remove(directory: int, name: bytes, depth: int = 0) -> None:
    """Remove a name with everything below it; nothing if it isn't there.

    Raises:
        GritError: directories are nested too deeply.
    """
    found = lstat(directory, name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    if depth > MAX_DEPTH:
        raise GritError(f"{os.fsdecode(name)!r} is nested deeper than {MAX_DEPTH} directories")
    with opened(name, directory) as inner:
        for entry in os.listdir(inner):
            remove(inner, os.fsencode(entry), depth + 1)
    os.rmdir(name, dir_fd=directory)
