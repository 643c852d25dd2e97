"""Many restores at once, one after another, and without room or descriptors: each works, or fails with one line and
leaves nothing.

How many is bounded for every run; GRIT_TEST_LOAD raises it.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

_LOAD = int(os.environ.get("GRIT_TEST_LOAD", "1"))


@pytest.fixture
def images(machine: Machine) -> Path:
    """A checkpoint of a counter that is gone."""
    machine.start("old", machine.bundle("old"))
    path = machine.checkpoints / "ns/first/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(path), "old").ok()
    return path


def _restore(machine: Machine, images: Path, bundle: Bundle, name: str) -> list[str]:
    argv = machine.argv("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), name)
    argv[argv.index("--log") + 1] += f".{name}"
    return argv


@pytest.mark.timeout(600)
def test_many_restores_at_once(machine: Machine, images: Path) -> None:
    bundles = {f"c{number}": machine.bundle(f"c{number}") for number in range(12 * _LOAD)}
    calls = [
        subprocess.Popen(
            _restore(machine, images, bundle, name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=machine.environment(), cwd=machine.path,
        )
        for name, bundle in bundles.items()
    ]  # fmt: skip
    said = [f"{machine.path}/log.json.{name}" for name in bundles]
    assert [call.wait(timeout=300) for call in calls] == [0] * len(calls), [
        Path(log).read_text() for log in said if Path(log).exists()
    ]
    for bundle in bundles.values():
        machine.counts(bundle)


def _counted(machine: Machine) -> dict[str, int]:
    """What must not grow."""
    cgroups = sum(1 for path in Path("/sys/fs/cgroup").rglob("*grit-test-*") if path.is_dir())
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "state": len(list(machine.state.rglob("*"))) if machine.state.exists() else 0,
        "logs": len(list(machine.logs.glob("*.log"))),  # of the records of operations the newest are kept
        "cgroups": cgroups,
        "containers": len(machine.containers()),
        "unpacked": len(list(machine.unpacked.rglob("*"))),
    }


def _held(machine: Machine) -> dict[str, int]:
    """What the container's first process has: descriptors, mappings, and KiB of memory that it alone has."""
    place = Path(f"/proc/{machine.state_of('c')['pid']}")
    private = [line.split()[1] for line in (place / "smaps_rollup").read_text().splitlines() if "Private_Dirty" in line]
    return {
        "descriptors": len(list((place / "fd").iterdir())),
        "mappings": len((place / "maps").read_text().splitlines()),
        "memory": int(private[0]),
    }


@pytest.mark.timeout(3600)
def test_cycles_of_checkpoint_and_restore_grow_nothing(machine: Machine, images: Path) -> None:
    before, held = dict[str, int](), dict[str, int]()
    bundle = machine.bundle("c")
    machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "c").ok()
    for number in range(4 * _LOAD):
        target = machine.checkpoints / f"cycle/{number % 2}/checkpoint"
        machine.grit("checkpoint", "--image-path", str(target), "c").ok()
        machine.grit("restore", "-d", "--image-path", str(target), "--bundle", str(bundle.path), "c").ok()
        machine.counts(bundle)
        if number == 1:
            before, held = _counted(machine), _held(machine)
    assert _counted(machine) == before
    after = _held(machine)
    # The shell may be on its way to open or write its file, or have a page more of its own.
    assert abs(after["descriptors"] - held["descriptors"]) <= 2, (held, after)
    assert abs(after["mappings"] - held["mappings"]) <= 2, (held, after)
    assert after["memory"] <= held["memory"] + 64, (held, after)
    print(before, held, after)


@pytest.fixture
def small(machine: Machine) -> Iterator[Path]:
    """A state directory with hardly any room."""
    place = machine.path / "small"
    place.mkdir()
    machine.shell("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(place))
    machine.mounted.append(place)
    yield place
    machine.shell("umount", str(place))
    machine.mounted.remove(place)


@pytest.mark.parametrize("room", [0, 8, 16, 32])
@pytest.mark.parametrize("verb", ["restore", "checkpoint"])
def test_a_full_state_directory_is_one_line_and_costs_nothing(
    machine: Machine, images: Path, small: Path, verb: str, room: int
) -> None:
    machine.configure(**{"state-dir": str(small)})
    (small / "fill").write_bytes(b"x" * ((64 - room) << 10))
    bundle = machine.bundle("c")
    if verb == "restore":
        ran = machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "c")
    else:
        machine.start("c", bundle)
        ran = machine.grit("checkpoint", "--leave-running", "--image-path", str(machine.checkpoints / "x"), "c")
    _fine_or_one_line(machine, ran.code, ran.err, bundle, running=verb == "checkpoint")
    assert sorted(path.name for path in small.iterdir() if path.name != "links") == ["fill"]


def _fine_or_one_line(machine: Machine, code: int, said: str, bundle: Bundle, *, running: bool) -> None:
    if code:
        assert said.strip()
        assert "\n" not in said.strip()
        assert "internal error" not in said
    if not code or running:
        machine.counts(bundle)
    else:
        assert machine.containers() == []


def _call(machine: Machine, images: Path, bundle: Bundle, verb: str) -> list[str]:
    """The command line of a restore as `c`, or of a checkpoint of it, which runs then; an older log is gone."""
    (machine.path / "log.json").unlink(missing_ok=True)
    if verb == "restore":
        return machine.argv("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "c")
    machine.start("c", bundle)
    return machine.argv("checkpoint", "--leave-running", "--image-path", str(machine.checkpoints / "x"), "c")


@pytest.mark.parametrize("limit", [10, 16, 24, 32])
@pytest.mark.parametrize("verb", ["restore", "checkpoint"])
def test_no_more_descriptors_is_one_line_and_costs_nothing(
    machine: Machine, images: Path, verb: str, limit: int
) -> None:
    bundle = machine.bundle("c")
    argv, log = _call(machine, images, bundle, verb), machine.path / "log.json"
    done = subprocess.run(
        ["prlimit", f"--nofile={limit}:{limit}", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=machine.environment(), cwd=machine.path, check=False, timeout=60,
    )  # fmt: skip
    said = log.read_text() if log.exists() else ""
    if done.returncode:
        assert "internal error" not in said
    if not done.returncode or verb == "checkpoint":
        machine.counts(bundle)
    else:
        assert machine.containers() == []


@pytest.fixture
def crowded(machine: Machine) -> Iterator[Path]:
    """A cgroup in which there may be only so many tasks (pids.max)."""
    base = Path("/sys/fs/cgroup/pids")
    if not base.is_dir():
        base = Path("/sys/fs/cgroup")
        (base / "cgroup.subtree_control").write_text("+pids")
    place = base / f"grit-test-pids-{os.getpid()}"
    place.mkdir()
    yield place
    machine.wait(lambda: not (place / "cgroup.procs").read_text())
    place.rmdir()


@pytest.mark.parametrize("most", [1, 2, 6, 10, 16])
@pytest.mark.parametrize("verb", ["restore", "checkpoint"])
def test_no_more_processes_is_one_line_and_costs_nothing(
    machine: Machine, images: Path, crowded: Path, verb: str, most: int
) -> None:
    """What can't be undone for want of processes is undone by the next call: the journal stays."""
    (crowded / "pids.max").write_text(str(most))
    bundle = machine.bundle("c")
    argv, log = _call(machine, images, bundle, verb), machine.path / "log.json"
    done = subprocess.run(
        ["sh", "-c", f'echo $$ > {crowded}/cgroup.procs && exec "$@"', "sh", *argv], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=machine.environment(), cwd=machine.path,
        check=False, timeout=90,
    )  # fmt: skip
    said = log.read_text() if log.exists() else ""
    (crowded / "pids.max").write_text("max")
    if done.returncode:
        assert "internal error" not in said, said
        assert '"level": "error"' in said
        machine.grit("recover").ok()
    if not done.returncode or verb == "checkpoint":
        machine.counts(bundle)
    else:
        assert machine.containers() == []
