"""A memory cgroup around the call, ever smaller: it works, or fails with one line, or is killed and undone by the next
call; and no container ever runs on memory that isn't its own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine

pytestmark = [
    pytest.mark.needs("root", "runc", "criu", "busybox"),
    pytest.mark.timeout(120 if os.environ.get("GRIT_TEST_LOAD", "1") == "1" else 1800),
]

_LOAD = int(os.environ.get("GRIT_TEST_LOAD", "1"))
# KiB. 4 MiB kill Python at once, 64 are enough for each call; between 18 and 21 it ends later and later.
_FINE = range(18 << 10, 21 << 10, 1024 if _LOAD == 1 else 20)
_LIMITS = [4 << 10, 12 << 10, *_FINE, 64 << 10]
# It counts for as long as what it holds in memory is what it was.
_CHECKED = (
    "blob=$(seq 1 60000); i=0; while :; do i=$((i+1)); "
    'case "$blob" in *"59999\n60000") echo $i >> /data/out;; esac; sleep 0.02; done'
)


class _Limited:
    """A memory cgroup, of v1 or v2."""

    def __init__(self) -> None:
        base = Path("/sys/fs/cgroup/memory")
        self._v1 = base.is_dir()
        if not self._v1:
            base = Path("/sys/fs/cgroup")
            (base / "cgroup.subtree_control").write_text("+memory")
        self.path = base / f"grit-test-memory-{os.getpid()}"
        self.path.mkdir()

    def limit(self, size: int) -> None:
        if self._v1:
            (self.path / "memory.limit_in_bytes").write_text(str(size))
        else:
            (self.path / "memory.swap.max").write_text("0")
            (self.path / "memory.max").write_text(str(size))

    def kills(self) -> int:
        """How often something in it was killed."""
        file = self.path / ("memory.oom_control" if self._v1 else "memory.events")
        return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))


@pytest.fixture
def limited(machine: Machine) -> Iterator[_Limited]:
    made = _Limited()
    yield made
    made.limit(1 << 40)
    machine.clean()
    machine.wait(lambda: not (made.path / "cgroup.procs").read_text())
    made.path.rmdir()


# Somebody beside the call takes what is left, at moments of the call; then the killer takes the call's processes first.
_MOMENTS = [0.08 * moment for moment in range(2, 8)] if _LOAD == 1 else [0.01 * moment for moment in range(60)]
_GREEDY = "held = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))"


def _called_beside_a_greedy_one(machine: Machine, limited: _Limited, moment: float, *args: str) -> int:
    (machine.path / "log.json").unlink(missing_ok=True)
    enter = f'echo $$ > {limited.path}/cgroup.procs && echo %d > /proc/self/oom_score_adj && exec "$@"'
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    call = subprocess.Popen(
        ["sh", "-c", enter % 1000, "sh", *machine.argv(*args)], env=machine.environment(), cwd=machine.path, **options
    )
    time.sleep(moment)
    greedy = subprocess.Popen(["sh", "-c", enter % 0, "sh", sys.executable, "-c", _GREEDY], **options)
    code = call.wait(60)
    greedy.kill()
    greedy.wait()
    return code


def _called(machine: Machine, limited: _Limited, *args: str) -> int:
    (machine.path / "log.json").unlink(missing_ok=True)
    return subprocess.run(
        ["sh", "-c", f'echo $$ > {limited.path}/cgroup.procs && exec "$@"', "sh", *machine.argv(*args)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=machine.environment(),
        cwd=machine.path, check=False, timeout=90,
    ).returncode  # fmt: skip


def _check_words(machine: Machine, code: int) -> None:
    """It was killed, or says why it failed, or worked."""
    log = machine.path / "log.json"
    said = log.read_text() if log.exists() else ""
    assert "internal error" not in said, said
    assert code in (0, 137, -9) or '"level": "error"' in said, (code, said)
    machine.grit("recover").ok()
    assert machine.leftovers() == []


def _endure(machine: Machine, bundle: Bundle) -> None:
    machine.wait(lambda: len(bundle.numbers()) >= 3)
    machine.counts(bundle)


def test_a_capture_without_memory_costs_the_container_nothing(machine: Machine, limited: _Limited) -> None:
    bundle = machine.bundle("c", _CHECKED)
    machine.start("c", bundle)
    codes = []
    for room in _LIMITS:
        limited.limit(room << 10)
        images = machine.checkpoints / str(room)
        codes.append(_called(machine, limited, "checkpoint", "--leave-running", "--image-path", str(images), "c"))
        _check_words(machine, codes[-1])
        assert images.exists() == (images / "grit.json").exists(), room
        assert codes[-1] or images.exists(), room
        machine.counts(bundle)
    assert codes[0] != 0
    assert codes[-1] == 0
    assert limited.kills()
    print(dict(zip(_LIMITS, codes, strict=True)), limited.kills())


def test_a_restore_without_memory_leaves_nothing(machine: Machine, limited: _Limited) -> None:
    machine.start("old", machine.bundle("old", _CHECKED))
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    codes = []
    for room in _LIMITS:
        limited.limit(room << 10)
        bundle = machine.bundle(f"new-{room}", _CHECKED)
        codes.append(
            _called(machine, limited, "restore", "-d", "--image-path", str(images), "-b", str(bundle.path), "c")
        )
        _check_words(machine, codes[-1])
        if codes[-1] == 0 or machine.containers():
            _endure(machine, bundle)
            machine.grit("delete", "--force", "c").ok()
        assert machine.containers() == [], room
    assert codes[0] != 0
    assert codes[-1] == 0
    assert limited.kills()
    print(dict(zip(_LIMITS, codes, strict=True)), limited.kills())


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_memory_that_runs_out_on_the_way_costs_nothing(machine: Machine, limited: _Limited, verb: str) -> None:
    bundle = machine.bundle("c", _CHECKED)
    machine.start("c", bundle)
    images, ended = machine.checkpoints / "c", []
    if verb == "restore":
        machine.grit("checkpoint", "--image-path", str(images), "c").ok()
    for number, moment in enumerate(_MOMENTS):
        limited.limit(64 << 20)
        if verb == "checkpoint":
            images = machine.checkpoints / str(number)
            args = ("checkpoint", "--leave-running", "--image-path", str(images), "c")
        else:
            bundle = machine.bundle(f"new-{number}", _CHECKED)
            args = ("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), "c")
        ended.append(_called_beside_a_greedy_one(machine, limited, moment, *args))
        limited.limit(1 << 40)
        _check_words(machine, ended[-1])
        assert images.exists() == (images / "grit.json").exists(), moment
        if verb == "checkpoint":
            machine.counts(bundle)
            continue
        if machine.containers():
            _endure(machine, bundle)
            machine.grit("delete", "--force", "c").ok()
        assert ended[-1] == 0 or machine.containers() == [], moment
    assert any(ended), "it was never too late"
    print(ended, limited.kills())
