"""Memory of a process that runs while it is filled (userfaultfd(2)): what it touches that isn't there yet, and what it
does to its mappings meanwhile. Each such event has the thread that caused it wait until it is read here, but for a
fault, which waits until its page is there.
"""

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from grit_runtime.host import handover, inject, vm

DEVICE = "/dev/userfaultfd"
"""Since Linux 6.1: whoever may open it may have a userfaultfd that sees the kernel's own faults, too, which a system
call within a container may not (vm.unprivileged_userfaultfd).
"""

# <linux/userfaultfd.h>, <asm/unistd_64.h>
_NEW, _IOCTL = 0xAA00, 16
_FORKED, _MOVED, _EMPTIED, _UNMAPPED = 1 << 1, 1 << 2, 1 << 3, 1 << 6
_FEATURES = _FORKED | _MOVED | _EMPTIED | _UNMAPPED
_MESSAGE = struct.Struct("=BBHIQQQ")  # struct uffd_msg
_FAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
_MOST = 64  # messages in one read


@dataclass(frozen=True, slots=True)
class Touched:
    """A page that isn't there."""

    address: int


@dataclass(frozen=True, slots=True)
class Forked:
    """There is a copy of the memory as it is now, which is filled by a userfaultfd of its own."""

    faults: "Faults"


@dataclass(frozen=True, slots=True)
class Moved:
    """By mremap(2); in bytes."""

    source: int
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class Removed:
    """By madvise(2) or munmap(2): what it held is no more."""

    start: int
    end: int


Event = Touched | Forked | Moved | Removed


class Faults(vm.Userfault):
    """A userfaultfd whose process runs.

    Nothing is put there between an event and its reading: the kernel says EAGAIN (mm/userfaultfd.c, `mmap_changing`).
    """

    def __init__(self, fd: int, *, of_a_fork: bool = False) -> None:
        self.fd = fd
        if not of_a_fork:
            super().__init__(fd, features=_FEATURES)

    def read(self) -> list[Event]:
        """What has happened since, in its order; without waiting. Raises OSError."""
        try:
            data = os.read(self.fd, _MOST * _MESSAGE.size)
        except BlockingIOError:
            return []
        return list(_events(data))


def _events(data: bytes) -> Iterator[Event]:
    for kind, _, _, _, first, second, third in _MESSAGE.iter_unpack(data):
        if kind == _FAULT:
            yield Touched(second)  # `first` has the flags
        elif kind == _FORK:
            yield Forked(Faults(first & 0xFFFFFFFF, of_a_fork=True))
        elif kind == _REMAP:
            yield Moved(first, second, third)
        elif kind in (_REMOVE, _UNMAP):
            yield Removed(first, second)
        else:
            raise OSError(errno.EPROTO, f"event {kind:#x} of a userfaultfd is not known")


def of(pid: int) -> Faults:
    """Have a stopped process make one of the device, which it is lent for that.

    Raises:
        OSError: it can't be done.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        with (
            inject.calling(pid) as call,
            handover.scratch(call) as page,
            handover.sent(pid, call, page, device) as theirs,
        ):
            made = call(_IOCTL, theirs, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fd = inject.fetch(pid, made)
            finally:
                call(inject.CLOSE, made)
    finally:
        os.close(device)
    try:
        return Faults(fd)
    except OSError:
        os.close(fd)
        raise
