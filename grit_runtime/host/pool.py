"""Jobs for several processes, forked from this one. Threads would wait for each other at Python's lock, which each
takes some ten times for every MiB that it moves: 4 filled 4.8 GiB/s where 4 processes fill 7.5 (docs/benchmarks.md).
"""

import errno
import marshal
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from grit_runtime.host import proc

MOST = 16
LONGEST = 1800.0  # seconds, where a caller says nothing else
WORTH = 32 << 20  # bytes to move for each worker; for less, none is forked: it takes a few milliseconds
_NUMBER = 4  # bytes of a job's number in the pipe
_BATCH = select.PIPE_BUF  # what a pipe takes as a whole or not at all; a multiple of _NUMBER
_READ = 1 << 16
_POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Job = TypeVar("Job")
Done = TypeVar("Done")


def workers(configured: int) -> int:
    """How many workers: as configured, or one for each core that we may use, 16 at most."""
    return configured or min(MOST, len(os.sched_getaffinity(0)))


def fitting(count: int, size: int) -> int:
    """How many of `count` workers are worth it for moving `size` bytes."""
    return min(count, 1 + size // WORTH)


def each(do: Callable[[Job], Done], jobs: Sequence[Job], count: int, *, timeout: float = LONGEST) -> list[Done]:
    """Do `do` for each job, in `count` processes; the results in the order of the jobs.

    A worker has what we have: memory as of now, descriptors. What it changes in memory of its own is lost but for the
    result, which must be made of `str`, `bytes`, numbers, and lists and tuples of these. No worker is left when this
    returns or raises, also after a signal; killed with us, they end at once. Where no more processes are to be had
    (pids.max), those that there are do it, or we ourselves; and beside other threads, whose locks a forked process
    would find taken for ever, we ourselves do.

    Args:
        timeout: seconds for the workers; what we do ourselves takes as long as the kernel takes.

    Raises:
        OSError: a worker was ended by a signal (ECHILD), or they did not end in time (ETIMEDOUT).
        BaseException: the first that a job raised; jobs that weren't begun by then are left.
    """
    count = min(count, len(jobs))
    if count < 2 or threading.active_count() > 1:
        return [do(job) for job in jobs]
    numbers, feed = os.pipe()
    opened = [numbers, feed]
    children: dict[int, int] = {}
    try:
        for _ in range(count):
            if not _start(do, jobs, numbers, opened, children):
                break
        os.close(opened.pop(0))
        results = _collect(_numbers(len(jobs)), feed, children, timeout) if children else dict(enumerate(map(do, jobs)))
        return [results[number] for number in range(len(jobs))]
    finally:
        _end(children)
        for fd in opened:
            os.close(fd)


@contextmanager
def aside(do: Callable[[], Done], *, timeout: float = LONGEST) -> Iterator[Callable[[], Done] | None]:
    """Have something done in a process of its own while we go on; what that may be is as of a job of `each`.

    Yields:
        Waits for the result, and may raise as `each` does; called once. Without it, what is done ends with the block.
        None where no process is to be had, and beside other threads: nothing is done then.
    """
    if threading.active_count() > 1:
        yield None
        return
    numbers, feed = os.pipe()
    opened = [numbers, feed]
    children: dict[int, int] = {}
    try:
        if not _start(lambda _: do(), (None,), numbers, opened, children):
            yield None
            return
        os.close(opened.pop(0))
        _hand_out(_numbers(1), feed)
        yield lambda: _collect(_numbers(0), feed, children, timeout)[0]
    finally:
        _end(children)
        for fd in opened:
            os.close(fd)


def _numbers(count: int) -> memoryview:
    return memoryview(b"".join(number.to_bytes(_NUMBER, "little") for number in range(count)))


def _start(
    do: Callable[[Job], Done], jobs: Sequence[Job], numbers: int, opened: list[int], children: dict[int, int]
) -> bool:
    """Fork one, and note where its results can be read; False if no more are to be had."""
    parent, (answers, answer) = os.getpid(), os.pipe()
    opened.append(answers)
    # Else a handler that raises could have the child go on as a second one of us, or us forget the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _POLITE)
    try:
        pid = os.fork()
        if not pid:
            _be_worker(do, jobs, numbers, answer, [fd for fd in opened if fd != numbers], parent)
        children[answers] = pid
    except OSError:
        return False
    finally:
        os.close(answer)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


def _be_worker(
    do: Callable[[Job], Done], jobs: Sequence[Job], numbers: int, answer: int, others: list[int], parent: int
) -> None:
    """What a worker does; it doesn't return. A polite signal is its parent's to answer."""
    code = 1
    try:
        proc.die_with_parent()
        for number in _POLITE:
            signal.signal(number, signal.SIG_IGN)
        for fd in others:
            os.close(fd)
        if os.getppid() == parent:
            said = marshal.dumps(_work(do, jobs, numbers))
            while said:
                said = said[os.write(answer, said) :]
            code = 0
    finally:
        os._exit(code)


def _work(do: Callable[[Job], Done], jobs: Sequence[Job], numbers: int) -> tuple[list[tuple[int, Done]], bytes]:
    """Results by the jobs' numbers, and what was raised."""
    results = []
    try:
        while word := os.read(numbers, _NUMBER):
            number = int.from_bytes(word, "little")
            results.append((number, do(jobs[number])))
    except BaseException as err:  # noqa: BLE001 - raised again by the parent
        return results, _packed(err)
    return results, b""


def _packed(err: BaseException) -> bytes:
    import pickle

    try:
        packed = pickle.dumps(err)
        pickle.loads(packed)  # some can't be made anew
    except Exception:  # noqa: BLE001 - whatever it raises
        return pickle.dumps(RuntimeError(f"{type(err).__name__}: {err}"))
    return packed


def _collect(numbers: memoryview, feed: int, children: dict[int, int], timeout: float) -> dict[int, Any]:
    """Hand out the numbers, and gather the results until every worker is through."""
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    said: dict[int, bytearray] = {answers: bytearray() for answers in children}
    poll = select.poll()
    for answers in said:
        poll.register(answers, select.POLLIN)
    os.set_blocking(feed, False)
    numbers = _hand_out(numbers, feed)
    if numbers:
        poll.register(feed, select.POLLOUT)
    while said:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            raise OSError(errno.ETIMEDOUT, f"worker processes did not end within {timeout:.0f} s")
        for fd, _ in ready:
            if fd == feed:
                numbers = _hand_out(numbers, feed)
                if not numbers:
                    poll.unregister(feed)
            elif data := os.read(fd, _READ):
                said[fd] += data
            else:
                poll.unregister(fd)
                results.update(_results(children.pop(fd), said.pop(fd)))
    return results


def _hand_out(numbers: memoryview, feed: int) -> memoryview:
    """Put into the pipe what it takes; what is left. At the end, and if nobody reads any more, the pipe is closed."""
    try:
        while numbers:
            numbers = numbers[os.write(feed, numbers[:_BATCH]) :]
    except BlockingIOError:
        return numbers
    except BrokenPipeError:
        pass
    _close_for_good(feed)
    return numbers[:0]


def _close_for_good(feed: int) -> None:
    """End the pipe, keeping its number taken: whoever opened it closes it."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, feed, inheritable=False)
    os.close(null)


def _results(pid: int, said: bytearray) -> list[tuple[int, Any]]:
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        why = f"was ended by signal {-code}, for want of memory perhaps" if code < 0 else f"exited with {code}"
        raise OSError(errno.ECHILD, f"a worker process {why}")
    results: list[tuple[int, Any]]
    results, raised = marshal.loads(said)
    if raised:
        import pickle

        raise pickle.loads(raised)
    return results


def _end(children: dict[int, int]) -> None:
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
    for pid in children.values():
        os.waitpid(pid, 0)
