"""Jobs for several threads. They spend their time in the kernel and in C, where Python's lock is free."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

MOST = 16
Job = TypeVar("Job")
Done = TypeVar("Done")


def workers(configured: int) -> int:
    """How many threads: as configured, or one for each core that we may use, 16 at most: more are no faster."""
    return configured or min(MOST, len(os.sched_getaffinity(0)))


def each(do: Callable[[Job], Done], jobs: Sequence[Job], count: int) -> list[Done]:
    """Do `do` for each job, on `count` threads; the results in the order of the jobs.

    No thread is left when it returns or raises, also after a signal: the caller closes files that they use. Where no
    more threads are to be had (pids.max), those that there are do it.

    Raises:
        BaseException: the first that one of them raised; jobs that weren't begun by then are left.
    """
    results: dict[int, Done] = {}
    errors: list[BaseException] = []
    numbers = iter(range(len(jobs)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = do(jobs[number])
            except BaseException as err:  # noqa: BLE001 - raised again by the caller's thread
                errors.append(err)

    threads: list[threading.Thread] = []
    try:
        _start(work, min(count, len(jobs)) - 1, threads)
        work()
        _join(threads)
    except BaseException as err:
        errors.append(err)
        _join(threads)
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(jobs))]


def _start(work: Callable[[], None], count: int, threads: list[threading.Thread]) -> None:
    for _ in range(count):
        thread = threading.Thread(target=work)
        try:
            thread.start()
        except RuntimeError:
            return
        threads.append(thread)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
