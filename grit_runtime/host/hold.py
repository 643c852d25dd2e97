"""Letting one thread of a stopped process run while all its others stay where they are (ptrace(2)).

A process that CRIU left stopped (`leave-stopped`) has to be continued for the CUDA driver to do anything in it, and
SIGCONT continues all of its threads. So the others are seized first: a seized thread that is in a group-stop stays in a
ptrace-stop across SIGCONT until its tracer lets it go. After SIGSTOP the process is in a group-stop again, in which a
detached thread stays. CRIU's cuda_plugin does the like for its own dump (plugins/cuda/cuda_plugin.c,
resume_restore_thread).

If we die meanwhile, the kernel kills the process (PTRACE_O_EXITKILL): it must not run on half restored.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from grit_runtime.host import proc

_DETACH = 17
_SEIZE = 0x4206
_EXITKILL = 0x00100000
_STOPPED, _TRACED = "T", "t"
_INTERVAL = 0.002  # seconds


class HoldError(OSError):
    """A thread could not be held, or did not stop in time."""


@contextmanager
def held(pids: Iterable[int], running: Iterable[int], *, timeout: float) -> Iterator[None]:
    """Continue stopped processes with all of their threads held but those of `running`; afterwards they are stopped as
    they were.

    ptrace knows tracers by thread: entered and left in the same one.

    Args:
        pids: stopped processes.
        running: the thread ids, of any of them, that may run.
        timeout: seconds that stopping may take.

    Raises:
        HoldError: a process isn't stopped, or a thread can't be seized, or doesn't stop again. What was seized is let
            go, stopped.
    """
    pids, free = list(pids), frozenset(running)
    seized: list[int] = []
    try:
        for pid in pids:
            if proc.state(pid) != _STOPPED:
                raise HoldError(f"process {pid} is not stopped: it is in state {proc.state(pid)}")
            for thread in sorted(proc.threads(pid) - free):
                _ptrace(_SEIZE, thread, _EXITKILL)
                seized.append(thread)
        _wait(seized, _TRACED, timeout)
        for pid in pids:
            proc.send_signal(pid, signal.SIGCONT)
        yield
    finally:
        for pid in pids:
            proc.send_signal(pid, signal.SIGSTOP)
        _let_go(pids, seized, free, timeout)


def _let_go(pids: list[int], seized: list[int], free: frozenset[int], timeout: float) -> None:
    present = {thread for pid in pids for thread in proc.threads(pid)}
    _wait(sorted(free & present), _STOPPED, timeout)
    for thread in seized:
        if thread in present:
            _ptrace(_DETACH, thread, 0)
    _wait([thread for thread in seized if thread in present], _STOPPED, timeout)


def _wait(threads: Iterable[int], state: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    for thread in threads:
        while proc.state(thread) not in (state, None, "Z", "X"):
            if time.monotonic() > deadline:
                raise HoldError(f"thread {thread} did not stop: it is in state {proc.state(thread)}")
            time.sleep(_INTERVAL)


def _ptrace(request: int, thread: int, data: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, thread, None, data) < 0:
        number = ctypes.get_errno()
        raise HoldError(number, f"cannot hold thread {thread}: {os.strerror(number)}")
