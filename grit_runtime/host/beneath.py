"""What lies below a directory, opened one name at a time by descriptors: no link leads out of it, and what was looked
at is what is used, whoever renames things meanwhile.

openat2(2) is asked for each name with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS. Where it isn't
there (before Linux 5.6, or kept away by a seccomp filter) openat(2) with O_NOFOLLOW is as good: of one single name that
is not `..`, nothing but a link could lead elsewhere, and a link is found by fstat(2) of what was opened.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

_OPENAT2 = 437  # on every architecture (include/uapi/asm-generic/unistd.h)
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08  # include/uapi/linux/openat2.h
_PATH = os.O_PATH | os.O_CLOEXEC
_TRIES = 100  # EAGAIN: something was renamed while the kernel looked (openat2(2))

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Pin:
    """A directory or file that is held open: it stays what it is, whatever becomes of its name.

    `path` leads to it for us, and for whoever of our programs may look at our descriptors, as long as we live.
    """

    fd: int
    shown: str
    """What people know it by."""

    @property
    def path(self) -> str:
        """proc_pid_fd(5): a magic link to what was opened, not to its name."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def stat(self) -> os.stat_result:
        """fstat(2)."""
        return os.fstat(self.fd)


def pin(path: str) -> Pin:
    """Hold what is at `path`, whatever leads there. Raises OSError: there is nothing."""
    return Pin(os.open(path, os.O_PATH | os.O_CLOEXEC), path)


def descend(root: str, inner: str, look: Callable[[Pin], None]) -> Pin:
    """Open `inner` below the directory `root`, by names that are no links.

    Args:
        root: followed, should it be a link: whoever names it is trusted.
        look: is shown the root and everything on the way, the last included, each open.

    Raises:
        FileNotFoundError: it isn't there.
        OSError: a link is in the way (ELOOP), a file (ENOTDIR), `..` (EXDEV), or what openat2(2) says.
    """
    words = [word for word in inner.split("/") if word not in ("", ".")]
    if ".." in words or "\0" in inner:
        raise OSError(errno.EXDEV, f"{inner!r} leads out of {root}")
    here = Pin(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), root)
    try:
        look(here)
        for word in words:
            below = Pin(open_name(here.fd, word), os.path.join(here.shown, word))
            os.close(here.fd)
            here = below
            look(here)
    except BaseException:
        os.close(here.fd)
        raise
    return here


def open_name(directory: int, name: str) -> int:
    """A descriptor (O_PATH) of one name in an open directory. Raises OSError, ELOOP for a link."""
    try:
        return _openat2(directory, name)
    except OSError as err:
        if err.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            raise
    return _openat(directory, name)


def _openat2(directory: int, name: str) -> int:
    how, number = _How(_PATH, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS), 0
    for _ in range(_TRIES):
        fd: int = _libc.syscall(_OPENAT2, directory, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), name)


def _openat(directory: int, name: str) -> int:
    fd = os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=directory)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return fd
