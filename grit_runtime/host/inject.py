"""Having a stopped process make system calls (ptrace(2)): a userfaultfd belongs to the process that made it, and only
the process itself can map a file.

The process is in a group-stop and stays in it: only its first thread is seized, made to execute the instruction
`syscall` of its own vDSO, and let go with the registers that it had; it goes back into the group-stop then. Signals are
blocked and seccomp's filters suspended for that, as CRIU does (compel/src/lib/infect.c). If we die meanwhile the kernel
kills the process (PTRACE_O_EXITKILL).
"""

import ctypes
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grit_runtime.host import proc

_SINGLESTEP, _DETACH = 9, 17
_SETOPTIONS, _GETREGSET, _SETREGSET, _SEIZE = 0x4200, 0x4204, 0x4205, 0x4206
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_EXITKILL, _SUSPEND_SECCOMP = 0x00100000, 0x00200000
_PRSTATUS = 1
_WALL = 0x40000000
_TIMEOUT = 5.0  # seconds
_MOST_STEPS = 16
_MOST_ERRNO = 4095

# <asm/unistd_64.h>, <linux/userfaultfd.h>
CLOSE = 3
_USERFAULTFD, _PIDFD_GETFD = 323, 438
_USER_MODE_ONLY = 1

# struct user_regs_struct, in words of 8 bytes.
_WORDS = 27
_R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP, _CS, _EFLAGS = 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18
_USER_CS = 0x33  # of a 64-bit task
_TRAP_FLAG = 0x100
_ARGUMENTS = (_RDI, _RSI, _RDX, _R10, _R8, _R9)
_SYSCALL = b"\x0f\x05"
Call = Callable[..., int]
"""A system call in the process, by its number and up to six numbers; what it returned. Raises InjectError."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = _libc.syscall.restype = ctypes.c_long


class InjectError(OSError):
    """The process could not be made to do it."""


def is_supported() -> bool:
    """Whether this machine's registers are known here."""
    return os.uname().machine == "x86_64"


def why_no_userfaultfd() -> str:
    """Why a process like us can't have one, tried with one that is closed at once; empty if it can."""
    fd = _libc.syscall(_USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return ""


def userfaultfd(pid: int) -> int:
    """Have a stopped process make a userfaultfd; a descriptor of ours for it, the process' own is closed.

    Raises:
        InjectError: it isn't stopped, isn't 64 bits wide, or the kernel said no.
    """
    with calling(pid) as call:
        theirs = call(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
        try:
            return fetch(pid, theirs)
        finally:
            call(CLOSE, theirs)


@contextmanager
def calling(pid: int) -> Iterator[Call]:
    """Have a stopped process make system calls; it is stopped again afterwards.

    Raises:
        InjectError: it isn't stopped, isn't 64 bits wide, or didn't stop again.
    """
    if proc.state(pid) != "T":
        raise InjectError(errno.EINVAL, f"process {pid} is not stopped")
    instruction = _find_instruction(pid)
    with _seized(pid):
        yield lambda number, *arguments: _call(pid, instruction, number, arguments)


def _find_instruction(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) r-xp .*\[vdso\]$", maps.read(), re.MULTILINE)
        if found:
            start, end = int(found[1], 16), int(found[2], 16)
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                at = os.pread(memory.fileno(), end - start, start).find(_SYSCALL)
            if at >= 0:
                return start + at
    except OSError as err:
        raise InjectError(err.errno, f"cannot read the vDSO of process {pid}: {err.strerror}") from None
    raise InjectError(errno.ENOENT, f"process {pid} has no vDSO with a system call in it")


def fetch(pid: int, theirs: int) -> int:
    """A descriptor of ours for one of the process' (pidfd_getfd(2)). Raises InjectError."""
    pidfd = os.pidfd_open(pid)
    try:
        ours: int = _libc.syscall(_PIDFD_GETFD, pidfd, theirs, 0)
    finally:
        os.close(pidfd)
    if ours < 0:
        number = ctypes.get_errno()
        raise InjectError(number, f"cannot get descriptor {theirs} of process {pid}: {os.strerror(number)}")
    return ours


@contextmanager
def _seized(pid: int) -> Iterator[None]:
    _ptrace(_SEIZE, pid, 0, 0)
    try:
        _wait(pid)
        registers, mask = _registers(pid), _mask(pid)
        if registers[_CS] != _USER_CS:
            raise InjectError(errno.ENOEXEC, f"process {pid} is not 64 bits wide")
        # From here on until all is as it was, it must not live on without us.
        _ptrace(_SETOPTIONS, pid, 0, _EXITKILL | _SUSPEND_SECCOMP)
        try:
            _set_mask(pid, (1 << 64) - 1)
            yield
        finally:
            _set_registers(pid, registers)
            _set_mask(pid, mask)
            _ptrace(_SETOPTIONS, pid, 0, 0)
    finally:
        _ptrace(_DETACH, pid, 0, 0)
    deadline = time.monotonic() + _TIMEOUT
    while proc.state(pid) != "T":
        if time.monotonic() > deadline:
            raise InjectError(errno.ETIMEDOUT, f"process {pid} did not stop again: it is in state {proc.state(pid)}")
        time.sleep(0.001)


def _call(pid: int, instruction: int, number: int, arguments: tuple[int, ...]) -> int:
    """One system call; what it returned."""
    registers = _registers(pid)
    registers[_RIP], registers[_RAX] = instruction, number
    registers[_ORIG_RAX] = (1 << 64) - 1  # no system call is to be restarted
    for place, word in enumerate(_ARGUMENTS):
        registers[word] = arguments[place] if place < len(arguments) else 0
    registers[_EFLAGS] &= ~_TRAP_FLAG
    _set_registers(pid, registers)
    for _ in range(_MOST_STEPS):
        _ptrace(_SINGLESTEP, pid, 0, 0)
        _wait(pid)
        now = _registers(pid)
        if now[_RIP] == instruction:
            continue
        if now[_RIP] == instruction + len(_SYSCALL):
            value = ctypes.c_int64(now[_RAX]).value
            if -_MOST_ERRNO <= value < 0:
                raise InjectError(-value, f"system call {number} of process {pid}: {os.strerror(-value)}")
            return value
        break
    raise InjectError(errno.EINTR, f"process {pid} did not make system call {number}")


def _wait(pid: int) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG | _WALL)
        except ChildProcessError:
            raise InjectError(errno.ESRCH, f"process {pid} is gone") from None
        if found == pid:
            break
        if time.monotonic() > deadline:
            raise InjectError(errno.ETIMEDOUT, f"process {pid} did not come to a stop")
        time.sleep(0.0002)
    if not os.WIFSTOPPED(status):
        raise InjectError(errno.ESRCH, f"process {pid} has ended")
    if os.WSTOPSIG(status) not in (signal.SIGTRAP, signal.SIGSTOP):
        raise InjectError(errno.EINTR, f"process {pid} was stopped by signal {os.WSTOPSIG(status)}")


def _registers(pid: int) -> "ctypes.Array[ctypes.c_uint64]":
    registers = (ctypes.c_uint64 * _WORDS)()
    _regset(_GETREGSET, pid, registers)
    return registers


def _set_registers(pid: int, registers: "ctypes.Array[ctypes.c_uint64]") -> None:
    _regset(_SETREGSET, pid, registers)


def _regset(request: int, pid: int, registers: "ctypes.Array[ctypes.c_uint64]") -> None:
    iovec = (ctypes.c_uint64 * 2)(ctypes.addressof(registers), ctypes.sizeof(registers))
    _ptrace(request, pid, _PRSTATUS, ctypes.addressof(iovec))


def _mask(pid: int) -> int:
    mask = ctypes.c_uint64()
    _ptrace(_GETSIGMASK, pid, 8, ctypes.addressof(mask))
    return mask.value


def _set_mask(pid: int, value: int) -> None:
    mask = ctypes.c_uint64(value)
    _ptrace(_SETSIGMASK, pid, 8, ctypes.addressof(mask))


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise InjectError(number, f"ptrace of process {pid}: {os.strerror(number)}")
