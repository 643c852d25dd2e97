"""Giving a stopped process a descriptor of ours, within system calls that it is made to execute (inject.py).

It may be in namespaces where the file has no name, so the descriptor goes through a pair of sockets of the process' own
(unix(7), SCM_RIGHTS).
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

from grit_runtime.host import inject, vm
from grit_runtime.host.inject import CLOSE, Call, InjectError

# <asm/unistd_64.h>, <asm-generic/mman-common.h>
_MMAP, _MUNMAP, _RECVMSG, _SOCKETPAIR = 9, 11, 47, 53
_READ, _WRITE = 1, 2
_PRIVATE, _ANONYMOUS = 0x02, 0x20
_CMSG_CLOEXEC = 0x40000000
_NOBODY = (1 << 64) - 1  # -1, as a descriptor
# struct msghdr, struct iovec, struct cmsghdr with one descriptor, and room for the byte that is sent.
_MESSAGE, _VECTOR, _CONTROL = struct.Struct("=QIxxxxQQQQixxxx"), struct.Struct("=QQ"), struct.Struct("=QiiI")
_CONTROL_SPACE = 24


@contextlib.contextmanager
def scratch(call: Call) -> Iterator[int]:
    """A page of the process' for what its system calls read and write. Raises InjectError."""
    address = call(_MMAP, 0, vm.PAGE, _READ | _WRITE, _PRIVATE | _ANONYMOUS, _NOBODY, 0)
    try:
        yield address
    finally:
        call(_MUNMAP, address, vm.PAGE)


@contextlib.contextmanager
def sent(pid: int, call: Call, page: int, fd: int) -> Iterator[int]:
    """The process' own descriptor for a file of ours, for as long as the block takes.

    Args:
        page: see `scratch`.

    Raises:
        InjectError: it can't be done, or a security module says no.
    """
    call(_SOCKETPAIR, socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0, page)
    theirs, other = struct.unpack("=ii", _peek(pid, page, 8))
    try:
        with socket.socket(fileno=inject.fetch(pid, other)) as ours:
            socket.send_fds(ours, [b"x"], [fd])
        received = _receive(pid, call, page, theirs)
    finally:
        call(CLOSE, theirs)
        call(CLOSE, other)
    try:
        yield received
    finally:
        call(CLOSE, received)


def _receive(pid: int, call: Call, page: int, theirs: int) -> int:
    vector, control, room = page + 64, page + 128, page + 192
    message = _MESSAGE.pack(0, 0, vector, 1, control, _CONTROL_SPACE, 0)
    data = bytearray(256)
    data[: len(message)] = message
    data[64 : 64 + _VECTOR.size] = _VECTOR.pack(room, 1)
    buffer = vm.Buffer(vm.PAGE)
    buffer.view[: len(data)] = data
    vm.write(pid, [(page, len(data))], buffer.address)
    call(_RECVMSG, theirs, page, _CMSG_CLOEXEC)
    size, level, kind, received = _CONTROL.unpack(_peek(pid, control, _CONTROL.size))
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or size < _CONTROL.size:
        raise InjectError(errno.EACCES, f"process {pid} did not get the file: a security module says no, perhaps")
    found: int = received
    return found


def _peek(pid: int, address: int, size: int) -> bytes:
    buffer = vm.Buffer(vm.PAGE)
    vm.read(pid, [(address, size)], buffer.address)
    return bytes(buffer.view[:size])
