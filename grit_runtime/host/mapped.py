"""Files in memory (tmpfs), written by mapping them."""

import ctypes
import os

HUGE = 2 << 20
_PAGE = 4096
_NONE, _READ_WRITE = 0, 3  # <asm-generic/mman-common.h>, PROT_*
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 0x01, 0x02, 0x10, 0x20  # MAP_*
_POPULATE_WRITE, _COLLAPSE = 23, 25  # MADV_*
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Mapped:
    """A whole file, mapped where huge pages fit. Whoever writes there where the file system is full gets SIGBUS, and a
    system call that does gets EFAULT: let only the kernel write there.

    Raises:
        OSError: it can't be mapped.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._room = size + HUGE
        self._start = _map(None, self._room, _NONE, _PRIVATE | _ANONYMOUS, -1)
        self.address = -(-self._start // HUGE) * HUGE
        try:
            _map(self.address, size, _READ_WRITE, _SHARED | _FIXED, fd)
        except OSError:
            self.close()
            raise

    def take_huge_pages(self, offset: int, size: int) -> bool:
        """Have a part of the file, which nobody has written yet, in huge pages of zeros, whatever the mount's option
        `huge` says (madvise(2), MADV_COLLAPSE, since Linux 6.1).

        Args:
            offset: a multiple of HUGE, as is `size`.

        Returns:
            Whether it is.
        """
        start = self.address + offset
        for address in range(start, start + size, HUGE):  # a page of each must be there
            if _libc.madvise(address, _PAGE, _POPULATE_WRITE):
                return False
        return bool(_libc.madvise(start, size, _COLLAPSE) == 0)

    def close(self) -> None:
        """Unmap it."""
        _libc.munmap(self._start, self._room)


def _map(address: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    found: int | None = _libc.mmap(address, size, protection, flags, fd, 0)
    if found is None or found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes: {os.strerror(number)}")
    return found
