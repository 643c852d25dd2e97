"""One thread of a stopped process runs, the others stay; real processes, real ptrace."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grit_runtime.host import hold, proc

_PROGRAM = """
import sys, threading, time
def count(name):
    n = 0
    while True:
        n += 1
        open(sys.argv[1] + name, "w").write(str(n))
        time.sleep(0.005)
threading.Thread(target=count, args=("two",), daemon=True).start()
open(sys.argv[1] + "ready", "w").write(str(threading.enumerate()[1].native_id))
count("one")
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """A stopped process of two threads that count, and the second one's id."""
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, f"{tmp_path}/"])
    deadline = time.monotonic() + 10
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("ready", "one", "two")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    while proc.state(process.pid) != "T":
        time.sleep(0.01)
    yield process, tmp_path, int((tmp_path / "ready").read_text())
    process.kill()
    process.wait()


def _moves(path: Path) -> bool:
    before = path.read_bytes()
    time.sleep(0.3)
    return path.read_bytes() != before


def test_only_the_thread_that_may_runs_and_afterwards_all_are_stopped(
    counting: tuple[subprocess.Popen[bytes], Path, int],
) -> None:
    process, path, second = counting
    with hold.held([process.pid], [second], timeout=5):
        # By state, not by what it counts: the one that is held may hold Python's interpreter lock.
        time.sleep(0.1)
        assert proc.state(second) in ("R", "S", "D")  # it writes to a disk
        assert {proc.state(thread) for thread in proc.threads(process.pid) - {second}} == {"t"}
        assert not _moves(path / "one")
    assert {proc.state(thread) for thread in proc.threads(process.pid)} == {"T"}
    assert not _moves(path / "two")
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert _moves(path / "one")
    assert _moves(path / "two")


def test_a_process_that_runs_is_refused(counting: tuple[subprocess.Popen[bytes], Path, int]) -> None:
    process, _, second = counting
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    with pytest.raises(hold.HoldError, match="is not stopped"), hold.held([process.pid], [second], timeout=5):
        pytest.fail("it was held")


def test_a_failure_within_leaves_it_stopped(counting: tuple[subprocess.Popen[bytes], Path, int]) -> None:
    process, path, second = counting
    with pytest.raises(ZeroDivisionError), hold.held([process.pid], [second], timeout=5):
        raise ZeroDivisionError
    assert not _moves(path / "one")
    assert not _moves(path / "two")


def test_a_process_whose_holder_is_killed_does_not_run_on(counting: tuple[subprocess.Popen[bytes], Path, int]) -> None:
    process, _, second = counting
    holder = os.fork()
    if holder == 0:
        with hold.held([process.pid], [second], timeout=5):
            time.sleep(60)
        os._exit(0)
    deadline = time.monotonic() + 5
    while proc.state(process.pid) != "t":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert process.wait(5) == -signal.SIGKILL
