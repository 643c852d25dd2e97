"""How far something is that takes long, on a terminal; nothing where there is none."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grit_runtime.host import proc
from grit_runtime.inspection import words

_INTERVAL = 0.2  # seconds
_WIDTH = 24
_CLEAR = "\r\x1b[K"


@contextmanager
def shown(title: str, done: Callable[[], int], total: int) -> Iterator[None]:
    """Show it while the block runs.

    By a process of its own: the block starts programs with a `preexec_fn`, which must not be done beside threads.

    Args:
        done: how many bytes are done; called in the other process.
        total: about how many there are.
    """
    if not sys.stderr.isatty():
        yield
        return
    pid = os.fork()
    if pid == 0:
        try:
            proc.die_with_parent()
            _show(title, done, total)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        proc.send_signal(pid, 9)
        os.waitpid(pid, 0)
        os.write(2, _CLEAR.encode())


@contextmanager
def moved(title: str, counter: str, total: int) -> Iterator[None]:
    """As `shown`, by what we and the programs that we started read or write.

    Args:
        counter: `rchar` or `wchar` of proc_pid_io(5).
    """
    pid = os.getpid()
    begin = proc.moved(pid, counter)
    with shown(title, lambda: proc.moved(pid, counter) - begin, total):
        yield


def size(checkpoint: str) -> int:
    """The bytes of a directory's files, without those below it, or of an archive; 0 where it can't be looked at."""
    try:
        if os.path.isfile(checkpoint):
            return os.stat(checkpoint).st_size
        return sum(entry.stat().st_size for entry in os.scandir(checkpoint) if entry.is_file(follow_symlinks=False))
    except OSError:
        return 0


def _show(title: str, done: Callable[[], int], total: int) -> None:
    begun, most = time.monotonic(), 0
    while True:
        time.sleep(_INTERVAL)
        most = max(most, done())  # what a program has moved is not known any more when it is gone
        os.write(2, (_CLEAR + line(title, most, total, time.monotonic() - begun)).encode())


def line(title: str, done: int, total: int, seconds: float) -> str:
    """A bar, how much of how much, the rate, and the time left. Pure."""
    share = min(done / total, 1.0) if total > 0 else 0.0
    filled = int(share * _WIDTH)
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {(total - done) / rate:.0f} s left" if rate > 0 and total > done else ""
    bar = "#" * filled + "-" * (_WIDTH - filled)
    return f"{title} [{bar}] {words.size(done)} of about {words.size(total)}, {words.size(int(rate))}/s{left}"
