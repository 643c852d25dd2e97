"""Names and numbers of system calls, by libseccomp, which runc itself takes them from."""

import ctypes
import functools

_ERROR = -1  # __NR_SCMP_ERROR


class Library:
    """libseccomp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._number = library.seccomp_syscall_resolve_name_arch
        self._number.argtypes, self._number.restype = (ctypes.c_uint32, ctypes.c_char_p), ctypes.c_int
        self._name = library.seccomp_syscall_resolve_num_arch
        self._name.argtypes, self._name.restype = (ctypes.c_uint32, ctypes.c_int), ctypes.c_void_p
        self._free = ctypes.CDLL(None).free
        self._free.argtypes, self._free.restype = (ctypes.c_void_p,), None

    def number(self, architecture: int, name: str) -> int | None:
        """A system call's number; None if it isn't known. Negative: the architecture has it by another one only."""
        found = int(self._number(architecture, name.encode(errors="replace")))
        return None if found == _ERROR else found

    def name(self, architecture: int, number: int) -> str:
        """A system call's name; empty if it isn't known."""
        found = self._name(architecture, number)
        if not found:
            return ""
        try:
            return (ctypes.string_at(found) or b"").decode()
        finally:
            self._free(found)


@functools.cache
def library() -> Library | None:
    """libseccomp, if the machine has it."""
    try:
        return Library(ctypes.CDLL("libseccomp.so.2"))
    except (OSError, AttributeError):
        return None
