"""Memory of other processes: reading it, writing it, and filling what isn't there yet (process_vm_readv(2),
userfaultfd(2), proc_pid_mem(5)). Every call releases Python's lock while the kernel copies.
"""

import ctypes
import errno
import functools
import mmap
import os
import time
from collections.abc import Sequence

PAGE = 4096
_IOV_MAX = 1024
_AROUND = 65536  # bytes that one fault of a file's page maps (fault_around_bytes)
_RETRY = 0.0005  # seconds
_MOST_RETRIES = 4000

# <linux/userfaultfd.h>; ioctl numbers are _IOWR(0xAA, n, size).
_UFFD_API = 0xAA


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _UFFD_API << 8 | number


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _UFFD_API << 8 | number


_API, _REGISTER, _COPY, _ZEROPAGE = _iowr(0x3F, 24), _iowr(0x00, 32), _iowr(0x03, 40), _iowr(0x04, 32)
_UNREGISTER, _WAKE = _ior(0x01, 16), _ior(0x02, 16)
_MODE_MISSING = 1


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("size", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = _libc.process_vm_writev.restype = ctypes.c_ssize_t
for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

Pieces = Sequence[tuple[int, int]]
"""Addresses and sizes in another process, one after the other."""


class Buffer:
    """Page-aligned memory of our own; a forked worker has a copy."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


def is_zero(address: int, size: int) -> bool:
    """Whether memory of our own holds nothing but zeros; of other memory that shows at the first byte that differs."""
    head = min(size, PAGE)
    if _libc.memcmp(address, _zeros, head):
        return False
    return size == head or not _libc.memcmp(address, address + head, size - head)


_zeros = bytes(PAGE)


def read(pid: int, pieces: Pieces, address: int) -> None:
    """Read memory of a process into ours.

    What may not be read even by the process itself is read through /proc/PID/mem.

    Raises:
        OSError: it isn't there.
    """
    for batch, base in _batches(pieces, address):
        wanted = sum(size for _, size in batch)
        if _transfer(_libc.process_vm_readv, pid, batch, base, wanted) != wanted:
            _read_each(pid, batch, base)


def write(pid: int, pieces: Pieces, address: int) -> None:
    """Write our memory into a process'. Raises OSError: it isn't there, or is read-only."""
    for batch, base in _batches(pieces, address):
        wanted = sum(size for _, size in batch)
        done = _transfer(_libc.process_vm_writev, pid, batch, base, wanted)
        if done != wanted:
            number = ctypes.get_errno() if done < 0 else errno.EFAULT
            raise OSError(number, f"cannot write {wanted} bytes at {batch[0][0]:#x}: {os.strerror(number)}")


def touch(pid: int, address: int, size: int) -> None:
    """Have the page table of memory that is mapped from a file filled, as far as it is still there: a read of one page
    maps those around it, too (mm/memory.c, do_fault_around).
    """
    pieces = [(at, 1) for at in range(address, address + size, _AROUND)]
    for batch, base in _batches(pieces, _sink().address):
        _transfer(_libc.process_vm_readv, pid, batch, base, len(batch))


@functools.cache
def _sink() -> Buffer:
    return Buffer(PAGE)


def _batches(pieces: Pieces, address: int) -> list[tuple[Pieces, int]]:
    found, base = [], address
    for start in range(0, len(pieces), _IOV_MAX):
        batch = pieces[start : start + _IOV_MAX]
        found.append((batch, base))
        base += sum(size for _, size in batch)
    return found


def _transfer(function: "ctypes._NamedFuncPointer", pid: int, pieces: Pieces, address: int, wanted: int) -> int:
    remote = (_Iovec * len(pieces))()
    for place, (base, size) in zip(remote, pieces, strict=True):
        place.base, place.size = base, size
    local = _Iovec(address, wanted)
    done: int = function(pid, ctypes.byref(local), 1, ctypes.byref(remote), len(pieces), 0)
    return done


def _read_each(pid: int, pieces: Pieces, base: int) -> None:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as stream:
        for address, size in pieces:
            if _transfer(_libc.process_vm_readv, pid, [(address, size)], base, size) != size:
                view = memoryview((ctypes.c_char * size).from_address(base))
                done = 0
                while done < size:
                    count = os.preadv(stream.fileno(), [view[done:]], address + done)
                    if not count:
                        raise OSError(errno.EFAULT, f"cannot read {size} bytes at {address:#x}")
                    done += count
            base += size


class Userfault:
    """A userfaultfd of another process, whose memory is filled through it.

    Nobody may touch that memory meanwhile: there is nobody who would answer.
    """

    def __init__(self, fd: int, *, features: int = 0) -> None:
        self.fd = fd
        api = (ctypes.c_uint64 * 3)(_UFFD_API, features, 0)
        self._call(_API, api, "UFFDIO_API")

    def register(self, start: int, size: int) -> None:
        """Take a range that lies within mappings."""
        self._call(_REGISTER, (ctypes.c_uint64 * 4)(start, size, _MODE_MISSING, 0), "UFFDIO_REGISTER")

    def unregister(self, start: int, size: int) -> None:
        """Give it back: what is missing is zero when it is touched."""
        self._call(_UNREGISTER, (ctypes.c_uint64 * 2)(start, size), "UFFDIO_UNREGISTER")

    def copy(self, target: int, source: int, size: int) -> None:
        """Put pages of ours there.

        Raises:
            OSError: one is there already (EEXIST), there is no memory (ENOMEM), or the process is gone (ESRCH).
        """
        for _ in range(_MOST_RETRIES):
            done, number = self.try_copy(target, source, size)
            if not number:
                return
            if number != errno.EAGAIN:
                raise OSError(number, f"UFFDIO_COPY of {size} bytes to {target:#x}: {os.strerror(number)}")
            if done:
                target, source, size = target + done, source + done, size - done
            else:
                time.sleep(_RETRY)
        raise OSError(errno.EAGAIN, f"UFFDIO_COPY to {target:#x} does not come to an end")

    def try_copy(self, target: int, source: int, size: int) -> tuple[int, int]:
        """Put pages of ours there, once: how many bytes were, and the errno that ended it, 0 for none
        (fs/userfaultfd.c, userfaultfd_copy).
        """
        asked = (ctypes.c_uint64 * 5)(target, source, size, 0, 0)
        if _libc.ioctl(self.fd, _COPY, asked) == 0:
            return size, 0
        return max(0, ctypes.c_int64(asked[4]).value), ctypes.get_errno()

    def zero(self, target: int) -> None:
        """Have a page of zeros there. Raises OSError: as `copy`."""
        self._call(_ZEROPAGE, (ctypes.c_uint64 * 4)(target, PAGE, 0, 0), "UFFDIO_ZEROPAGE")

    def wake(self, target: int) -> None:
        """Let whoever waits for a page look again."""
        self._call(_WAKE, (ctypes.c_uint64 * 2)(target, PAGE), "UFFDIO_WAKE")

    def close(self) -> None:
        """Let go of all ranges."""
        os.close(self.fd)

    def _call(self, number: int, argument: "ctypes.Array[ctypes.c_uint64]", name: str) -> None:
        if _libc.ioctl(self.fd, number, argument):
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")
