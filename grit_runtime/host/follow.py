"""Following a thread of another process from one system call to the next, for the large memory that it takes at once
(ptrace(2)).

The CUDA driver takes staging memory, as much as a process has on the GPU, by one mmap(2) with MAP_POPULATE, and the
kernel makes it page by page then, in that one thread (measured, driver 580: 9 s of 16 for 16 GiB). Here that flag is
taken out of the call, and the memory is made by many workers before the call returns: the caller can't tell. What is
taken is told: a restore makes use of it.

The thread belongs to the tracer, a process of ours; if that dies, the kernel lets the thread go on: with memory that is
made as it is touched. So nothing depends on us, and a thread that can't be followed isn't. (The tracer's workers die
with it; the driver makes hundreds of system calls, for 26 ms under strace, before it first writes to its memory.) Each
system call of a followed thread takes longer: so it is let go soon after what it was followed for.
"""

import array
import ctypes
import errno
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from grit_runtime.host import pool, vm

SMALLEST = 16 << 20  # bytes taken at once; less isn't worth our while
_CONT_SYSCALL, _DETACH = 24, 17
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT, _LISTEN, _SYSCALL_INFO = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208, 0x420E
_SYSGOOD = 1
_EVENT_STOP = 128
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_PRSTATUS, _WALL = 1, 0x40000000
# struct ptrace_syscall_info: op, arch, instruction and stack pointer, then what the op has.
_INFO = struct.Struct("=BxxxIQQQQQQQQQ")
_ENTRY, _EXIT = 1, 2
_X86_64 = 0xC000003E
_MMAP = 9
_READ_WRITE = 3
_PRIVATE_ANONYMOUS, _POPULATE = 0x22, 0x8000
_R10 = 7  # of struct user_regs_struct, in words: a system call's fourth argument
_WORDS = 27
_MOST_ERRNO = 4095
_READY = 5.0  # seconds
_STOPPING = 2.0
_ENDING = 60.0
_MOST_AT_ONCE = 1024
_MOST_STOPS = 20_000  # of a thread, two for a system call; the driver took memory after some 30 calls (580)
_MOST_STOPS_AFTER = 2_000
_JOB = 64 << 20  # bytes
_STRETCH = 1024 * vm.PAGE  # of one call: IOV_MAX pages

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.process_vm_writev.restype = ctypes.c_ssize_t
_libc.process_vm_writev.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip


@dataclass(slots=True)
class Taken:
    """What was taken: by pid, start and end."""

    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    problem: str = ""
    """Why a thread wasn't followed, or not to the end; empty if all were."""


def is_supported() -> bool:
    """Whether this machine's registers are known here."""
    return os.uname().machine == "x86_64"


@contextmanager
def followed(threads: Sequence[tuple[int, int]], workers: int) -> Iterator[Taken]:
    """Follow threads for as long as the block takes; what they took is known afterwards.

    Args:
        threads: a process and one of its threads, each.
        workers: how many processes make the memory.
    """
    taken = Taken()
    ready, said = os.pipe()
    end, ending = os.pipe()
    try:
        with pool.aside(lambda: _Tracer(threads, workers).run(said, end), timeout=_ENDING) as result:
            if result is None:
                taken.problem = "no process is to be had for it"
            elif not select.select([ready], [], [], _READY)[0]:
                taken.problem = "it did not begin in time"
            begun = result is not None and not taken.problem
            try:
                yield taken
            finally:
                os.write(ending, b"x")
                if result is not None and begun:
                    _note(taken, result)
    finally:
        for fd in (ready, said, end, ending):
            os.close(fd)


def _note(taken: Taken, result: Callable[[], tuple[list[tuple[int, int, int]], str]]) -> None:
    try:
        ranges, taken.problem = result()
    except OSError as err:
        taken.problem = str(err)
        return
    for pid, start, end in ranges:
        taken.ranges.setdefault(pid, []).append((start, end))


class _Tracer:
    """The process that follows."""

    def __init__(self, threads: Sequence[tuple[int, int]], workers: int) -> None:
        self._pids = {thread: pid for pid, thread in threads}
        self._stops = dict.fromkeys(self._pids, _MOST_STOPS)
        self._workers = workers
        self._awaited: dict[int, int] = {}
        """Threads within an mmap of ours, to how much they take."""
        self._followed: set[int] = set()
        self._taken: list[tuple[int, int, int]] = []
        self._problem = ""

    def run(self, ready: int, end: int) -> tuple[list[tuple[int, int, int]], str]:
        """Follow until something can be read from `end`, after a byte to `ready`; what was taken, and what went
        wrong.
        """
        woken, wake = os.pipe()
        for fd in (woken, wake):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only by a handler is `wake` written to
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            for thread in self._pids:
                self._seize(thread)
            os.write(ready, b"x")
            poll = select.poll()
            poll.register(woken, select.POLLIN)
            poll.register(end, select.POLLIN)
            more = True
            while end not in (events := dict(poll.poll(0 if more else None))):
                if woken in events:
                    os.read(woken, _MOST_AT_ONCE)
                more = self._drain()
        finally:
            for thread in self._followed:
                self._let_go(thread)
        return self._taken, self._problem

    def _seize(self, thread: int) -> None:
        try:
            _ptrace(_SEIZE, thread, _SYSGOOD)
            self._followed.add(thread)
            _ptrace(_INTERRUPT, thread, 0)
        except OSError as err:
            self._problem = f"thread {thread}: {err.strerror}"

    def _drain(self) -> bool:
        """Answer the stops that are there; whether there may be more."""
        for _ in range(_MOST_AT_ONCE):
            try:
                thread, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return False
            if not thread:
                return False
            if thread not in self._followed:
                continue
            if not os.WIFSTOPPED(status):
                self._followed.discard(thread)
                continue
            try:
                self._stopped(thread, os.WSTOPSIG(status), status >> 16)
            except ProcessLookupError:  # killed meanwhile: it is reported next
                continue
        return True

    def _stopped(self, thread: int, number: int, event: int) -> None:
        """Have a thread go on from a stop, with the signal that it was to get, if it was that."""
        delivered = 0
        if number == _SYSCALL_STOP:
            self._call(thread)
        elif event == _EVENT_STOP and number != signal.SIGTRAP:
            _ptrace(_LISTEN, thread, 0)  # a group-stop: it stays in it
            return
        elif event != _EVENT_STOP:
            delivered = number
        self._stops[thread] -= 1
        if self._stops[thread] > 0:
            _ptrace(_CONT_SYSCALL, thread, delivered)
        else:
            self._followed.discard(thread)
            _ptrace(_DETACH, thread, delivered)

    def _call(self, thread: int) -> None:
        """It enters or leaves a system call."""
        buffer = ctypes.create_string_buffer(_INFO.size)
        if _libc.ptrace(_SYSCALL_INFO, thread, _INFO.size, ctypes.addressof(buffer)) <= 0:
            return
        operation, machine, _, _, first, *arguments = _INFO.unpack(buffer.raw)
        if operation == _ENTRY and machine == _X86_64 and first == _MMAP and _is_large(arguments):
            self._awaited[thread] = arguments[1]
            _without_populate(thread)
        elif operation == _EXIT and thread in self._awaited:
            size = -(-self._awaited.pop(thread) // vm.PAGE) * vm.PAGE
            if first < (1 << 64) - _MOST_ERRNO:
                self._make(self._pids[thread], first, size)
                self._stops[thread] = min(self._stops[thread], _MOST_STOPS_AFTER)

    def _make(self, pid: int, address: int, size: int) -> None:
        self._taken.append((pid, address, address + size))
        try:
            make(pid, address, size, self._workers)
        except OSError as err:  # it is made as it is touched, then
            self._problem = f"memory of process {pid}: {err}"

    def _let_go(self, thread: int) -> None:
        """Detach; a thread must be in a stop for that."""
        deadline = time.monotonic() + _STOPPING
        try:
            _ptrace(_INTERRUPT, thread, 0)
            while time.monotonic() < deadline:
                found, status = os.waitpid(thread, os.WNOHANG | _WALL)
                if not found:
                    time.sleep(0.0005)
                    continue
                if os.WIFSTOPPED(status):
                    number = os.WSTOPSIG(status)
                    is_signal = number != _SYSCALL_STOP and status >> 16 != _EVENT_STOP
                    _ptrace(_DETACH, thread, number if is_signal else 0)
                return
        except (ProcessLookupError, ChildProcessError):
            return  # it has ended


def make(pid: int, address: int, size: int, workers: int) -> None:
    """Have memory made that a process has just taken and that nobody has touched: a zero is written to each page.

    Raises OSError: some of it can't be made.
    """
    jobs = [(at, min(_JOB, address + size - at)) for at in range(address, address + size, _JOB)]
    pool.each(lambda job: _make(pid, *job), jobs, pool.fitting(workers, size))


def _make(pid: int, address: int, size: int) -> None:
    zeros = ctypes.create_string_buffer(_STRETCH // vm.PAGE)
    for begin in range(address, address + size, _STRETCH):
        pages = range(begin, min(begin + _STRETCH, address + size), vm.PAGE)
        remote = array.array("Q", bytes(16 * len(pages)))
        remote[0::2], remote[1::2] = array.array("Q", pages), array.array("Q", [1] * len(pages))
        local = (ctypes.c_uint64 * 2)(ctypes.addressof(zeros), len(pages))
        done = _libc.process_vm_writev(pid, ctypes.addressof(local), 1, remote.buffer_info()[0], len(pages), 0)
        if done != len(pages):
            number = ctypes.get_errno() if done < 0 else errno.EFAULT
            raise OSError(number, os.strerror(number))


def _is_large(arguments: Sequence[int]) -> bool:
    """Whether it is fresh memory, wherever the kernel likes, all to be made at once."""
    address, size, protection, flags = arguments[:4]
    return not address and size >= SMALLEST and protection == _READ_WRITE and flags == _PRIVATE_ANONYMOUS | _POPULATE


def _without_populate(thread: int) -> None:
    registers = (ctypes.c_uint64 * _WORDS)()
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(registers), ctypes.sizeof(registers))
    _ptrace(_GETREGSET, thread, ctypes.addressof(vector), _PRSTATUS)
    registers[_R10] &= ~_POPULATE
    _ptrace(_SETREGSET, thread, ctypes.addressof(vector), _PRSTATUS)


def _ptrace(request: int, thread: int, data: int, address: int = 0) -> None:
    if _libc.ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
