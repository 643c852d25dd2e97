"""Ending what is in a container's cgroup, and nobody else who is there."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grit_runtime.host import cgroups, proc

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of ours, of v2 or of v1's controller devices."""
    path = Path(cgroups.MOUNT) / ("" if cgroups.is_unified() else "devices") / f"grit-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def _started(cgroup: Path, *argv: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([*argv, "sleep", "60"], stdin=subprocess.DEVNULL)
    (cgroup / "cgroup.procs").write_text(str(process.pid))
    return process


def _child(pid: int) -> int:
    while True:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if found:
            return int(found[0])


def test_only_the_containers_own_are_killed(cgroup: Path) -> None:
    container, other = _started(cgroup, "unshare", "--pid", "--fork", "--kill-child"), _started(cgroup)
    try:
        init = _child(container.pid)
        (cgroup / "cgroup.procs").write_text(str(init))
        paths = {"" if cgroups.is_unified() else "devices": str(cgroup)}
        cgroups.end(paths, other.pid, timeout=5)
        cgroups.end(paths, 0, timeout=5)
        assert proc.is_running(init), "a process of the host's pid namespace is no container's first one"
        cgroups.end(paths, init, timeout=5)
        assert not proc.is_running(init)
        assert other.poll() is None
        container.wait(5)
    finally:
        for process in (container, other):
            process.kill()
            process.wait()
