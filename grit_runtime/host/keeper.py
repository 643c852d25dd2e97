"""Work that a container depends on after our call is over, done so that its end is never silent.

Two processes of ours do it: one that works and one that watches. They have one table of descriptors (clone(2),
CLONE_FILES): what one of them holds is let go by the kernel only when both are gone, and whichever is killed, the other
knows. So a userfaultfd whose worker is killed does not turn what is missing into zeros: the watcher ends the container
while everybody who touches that memory still waits. The worker has another watcher if that one is killed. Only both
being killed at once is not noticed.
"""

import contextlib
import ctypes
import gc
import mmap
import os
import select
import signal
from collections.abc import Callable, Collection

_CLONE, _CLONE_FILES = 56, 0x400  # <asm/unistd_64.h>, <linux/sched.h>
_PR_SET_NAME = 15
_STARTED = 10_000  # milliseconds for both to be there
_MOST_WATCHERS = 100
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT)
_LEAST_WANTED = -1000  # oom_score_adj: the kernel looks for somebody else

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Beside = Callable[[], None]
"""To be called by the work again and again: it sees to it that there is a watcher. Raises OSError: there is none."""


def start(work: Callable[[Beside], None], failed: Callable[[str], None], keep: Collection[int]) -> bool:
    """Have it done by processes of its own, which outlive us.

    Args:
        work: does it, in the process that works.
        failed: is told why it was not done, and sees to it that nobody is misled by that. It is called in either
            process, with everything in `keep` still open.
        keep: the descriptors that are needed; all others are closed there.

    Returns:
        Whether both are there; if not, nothing was begun.
    """
    over = mmap.mmap(-1, mmap.PAGESIZE)  # shared by all: not zero once there is nothing to watch
    ready, say = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(ready)
        os.close(say)
        return False
    if not pid:
        _be_there(work, _Watched(failed, over), {*keep, say}, say)
    os.close(say)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if poll.poll(_STARTED) and os.read(ready, 1):
            return True
    finally:
        os.close(ready)
    over[0] = 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _be_there(work: Callable[[Beside], None], watched: "_Watched", keep: Collection[int], say: int) -> None:
    """What the process that works does; it doesn't return."""
    code = 1
    try:
        _detach(keep)
        watched.beside()
        os.write(say, b"y")
        os.close(say)
        code = watched.do(work)
    finally:
        os._exit(code)


def _detach(keep: Collection[int]) -> None:
    """Have nothing of the call's: its terminal, stdio, locks, directory; and be killed by nothing polite."""
    os.setsid()
    os.chdir("/")
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for word in os.listdir("/proc/self/fd"):
        if int(word) > 2 and int(word) not in keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(word))
    gc.disable()  # what is left of the call's objects must not close a descriptor that has a number of theirs
    with (
        contextlib.suppress(OSError),  # without CAP_SYS_RESOURCE
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream,
    ):
        stream.write(str(_LEAST_WANTED))
    _be_called(b"grit-filler")


def _be_called(name: bytes) -> None:
    _libc.prctl(_PR_SET_NAME, name)


class _Watched:
    """The work, and its watchers."""

    def __init__(self, failed: Callable[[str], None], over: mmap.mmap) -> None:
        self._failed, self._over = failed, over
        self._self, self._watcher, self._pid, self._count = -1, -1, 0, 0
        self._poll = select.poll()

    def do(self, work: Callable[[Beside], None]) -> int:
        """The exit code."""
        why = ""
        try:
            work(self.beside)
        except BaseException as err:  # noqa: BLE001 - nobody else would hear of it
            why = " ".join(str(err).split()) or type(err).__name__
        if why:
            self._failed(why)
        self._over[0] = 1
        return bool(why)

    def beside(self) -> None:
        """See `Beside`."""
        if self._self < 0:
            self._self = os.pidfd_open(os.getpid())
        if self._watcher >= 0 and not self._poll.poll(0):
            return
        if self._watcher >= 0:
            self._poll.unregister(self._watcher)
            os.close(self._watcher)
            os.waitpid(self._pid, 0)
            self._watcher = -1
        self._count += 1
        if self._count > _MOST_WATCHERS:
            raise OSError("whoever watches over it is killed again and again")
        # Not fork(2), whose child has a table of its own. What Python and libc do for that child concerns other
        # threads, of which there are none.
        pid = _libc.syscall(_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "there is no process to watch over it")
        if not pid:
            self._watch()
        self._pid, self._watcher = pid, os.pidfd_open(pid)
        self._poll.register(self._watcher, select.POLLIN)

    def _watch(self) -> None:
        """What the other process does; it doesn't return, and closes nothing, for that would be closed for both."""
        code = 1
        try:
            os.setsid()
            _be_called(b"grit-watcher")
            poll = select.poll()
            poll.register(self._self, select.POLLIN)
            poll.poll()
            code = 0
            if not self._over[0]:
                self._failed("the process that filled its memory was killed")
        finally:
            os._exit(code)
