"""Threads that do a list of jobs: none is left behind, whatever happens."""

import signal
import threading
import time
from types import FrameType

import pytest

from grit_runtime.host import pool


class _Signal(Exception):
    """As a signal's handler raises it, in the main thread."""


def _others() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


def test_results_are_in_the_order_of_the_jobs() -> None:
    assert pool.each(lambda job: job * 2, range(100), 4) == [job * 2 for job in range(100)]
    assert pool.each(lambda job: job, [], 4) == []


def test_the_first_error_is_raised_and_the_rest_left() -> None:
    done: list[int] = []

    def do(job: int) -> None:
        if job == 3:
            raise ValueError("the third")
        done.append(job)
        time.sleep(0.001)

    with pytest.raises(ValueError, match="the third"):
        pool.each(do, range(10_000), 3)
    assert len(done) < 1000
    assert _others() == []


def test_a_signal_while_threads_are_waited_for_leaves_none() -> None:
    def interrupt(_: int, __: FrameType | None) -> None:
        raise _Signal

    before = signal.signal(signal.SIGALRM, interrupt)
    ended: list[int] = []

    def do(job: int) -> None:
        if threading.current_thread() is threading.main_thread():
            return  # so it waits for the others soon
        time.sleep(0.5)
        ended.append(job)

    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(_Signal):
            pool.each(do, range(8), 4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended
    assert _others() == []


def test_without_more_threads_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert pool.each(lambda job: job + 1, range(5), 4) == [1, 2, 3, 4, 5]
