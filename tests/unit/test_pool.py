"""Processes that do a list of jobs: none is left behind, whatever happens."""

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from grit_runtime.errors import CheckpointError
from grit_runtime.host import pool


class _Signal(Exception):
    """As a signal's handler raises it."""


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    assert _children() == []


def test_results_are_in_the_order_of_the_jobs() -> None:
    assert pool.each(lambda job: job * 2, range(100), 4) == [job * 2 for job in range(100)]
    assert pool.each(lambda job: job, [], 4) == []
    assert pool.each(lambda job: "x" * job, range(3), 2) == ["", "x", "xx"]


def test_more_jobs_than_the_pipe_holds_numbers() -> None:
    assert sum(pool.each(lambda job: job, range(50_000), 3)) == sum(range(50_000))


def test_several_processes_do_them_and_none_of_them_is_this_one() -> None:
    def do(_: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    found = set(pool.each(do, range(12), 3))
    assert len(found) == 3
    assert os.getpid() not in found
    assert pool.each(lambda _: os.getpid(), range(2), 1) == [os.getpid()] * 2


def test_beside_another_thread_nothing_is_forked() -> None:
    there = threading.Event()
    other = threading.Thread(target=there.wait, args=(10,))
    other.start()
    try:
        assert set(pool.each(lambda _: os.getpid(), range(4), 2)) == {os.getpid()}
    finally:
        there.set()
        other.join()


def test_the_first_error_is_raised_and_the_rest_left() -> None:
    shared = mmap.mmap(-1, 4096)
    count = ctypes.c_uint32.from_buffer(shared)

    def do(job: int) -> None:
        if job == 3:
            raise CheckpointError("the third", hint="leave it")
        count.value += 1
        time.sleep(0.001)

    with pytest.raises(CheckpointError, match=r"the third \(leave it\)"):
        pool.each(do, range(10_000), 3)
    assert count.value < 1000


def test_an_error_keeps_its_parts() -> None:
    def do(job: int) -> None:
        raise OSError(errno.ENOSPC, "no room", f"file-{job}")

    with pytest.raises(OSError, match="no room") as raised:
        pool.each(do, range(2), 2)
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.filename).startswith("file-")


class _Strange(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_sent_is_told() -> None:
    def do(_: int) -> None:
        raise _Strange(1, 2)

    with pytest.raises(RuntimeError, match="_Strange: 1 and 2"):
        pool.each(do, range(2), 2)


def test_a_worker_that_is_killed_is_an_error() -> None:
    def do(job: int) -> int:
        if job == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    with pytest.raises(OSError, match="ended by signal 9"):
        pool.each(do, range(100), 3)


def test_a_polite_signal_ends_no_worker() -> None:
    def do(job: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return job

    assert pool.each(do, range(4), 2) == [0, 1, 2, 3]


def test_a_polite_signal_right_after_the_fork_is_not_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raised there would have the worker go on as a second one of its parent."""
    parent, fork = os.getpid(), os.fork

    def interrupt(_: int, __: FrameType | None) -> None:
        os._exit(7 if os.getpid() != parent else 8)

    def interrupted() -> int:
        pid = fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    monkeypatch.setattr(os, "fork", interrupted)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        assert pool.each(lambda job: job, range(4), 2) == [0, 1, 2, 3]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_workers_that_do_not_end_are_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="did not end within 0 s"):
        pool.each(lambda _: time.sleep(60), range(4), 2, timeout=0.2)
    assert time.monotonic() - begun < 10


def test_a_signal_while_workers_are_waited_for_leaves_none() -> None:
    def interrupt(_: int, __: FrameType | None) -> None:
        raise _Signal

    before = signal.signal(signal.SIGALRM, interrupt)
    begun = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(_Signal):
            pool.each(lambda _: time.sleep(60), range(8), 4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 10


def test_workers_are_killed_with_their_parent() -> None:
    program = (
        "import os, time\nfrom grit_runtime.host import pool\n"
        "def do(_):\n    os.write(1, b'%d\\n' % os.getpid())\n    time.sleep(60)\n"
        "pool.each(do, range(2), 2)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.communicate(timeout=10)  # the end of its output is that of the workers, too
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("granted", [0, 1])
def test_without_more_processes_those_there_are_do_it_all(monkeypatch: pytest.MonkeyPatch, granted: int) -> None:
    fork, asked = os.fork, iter(range(100))

    def limited() -> int:
        if next(asked) >= granted:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    assert pool.each(lambda job: job + 1, range(5), 4) == [1, 2, 3, 4, 5]


def test_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    pool.each(lambda job: job, range(5), 4)
    with pytest.raises(ZeroDivisionError):
        pool.each(lambda _: 1 // 0, range(5), 4)
    assert os.listdir("/proc/self/fd") == before


def test_little_is_not_worth_a_worker() -> None:
    assert pool.fitting(16, 0) == 1
    assert pool.fitting(16, 100 * pool.WORTH) == 16
    assert pool.fitting(16, pool.WORTH) == 2


class TestAside:
    def test_it_is_done_while_we_go_on(self) -> None:
        with pool.aside(os.getpid) as result:
            assert result
            assert result() != os.getpid()

    def test_it_may_have_workers_of_its_own(self) -> None:
        with pool.aside(lambda: sum(pool.each(lambda job: job, range(100), 3))) as result:
            assert result
            assert result() == sum(range(100))

    def test_what_it_raises_is_raised(self) -> None:
        def do() -> None:
            raise CheckpointError("no")

        with pool.aside(do) as result:
            assert result
            with pytest.raises(CheckpointError, match="no"):
                result()

    def test_what_nobody_waits_for_is_ended(self) -> None:
        begun = time.monotonic()
        with pool.aside(lambda: pool.each(lambda _: time.sleep(60), range(4), 2)):
            time.sleep(0.2)
        assert time.monotonic() - begun < 5

    def test_it_has_its_time(self) -> None:
        with pool.aside(lambda: time.sleep(60), timeout=0.2) as result:
            assert result
            with pytest.raises(OSError, match="did not end within"):
                result()

    def test_beside_other_threads_there_is_none(self) -> None:
        there = threading.Event()
        other = threading.Thread(target=there.wait)
        other.start()
        try:
            with pool.aside(os.getpid) as result:
                assert result is None
        finally:
            there.set()
            other.join()
