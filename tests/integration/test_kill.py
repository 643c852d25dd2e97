"""SIGKILL at every step of a capture and of a restore: nothing is lost, nothing is left, a second attempt works.

A first run counts the steps (journal lines, and changes of names in the file system); then every one of them is killed
at once each.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from grit_runtime.host import proc
from tests.integration.machine import Machine, tree
from tests.integration.test_mounts import add_hook

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox"), pytest.mark.timeout(600)]


def _steps(machine: Machine, *args: str) -> int:
    file = machine.path / "steps"
    machine.grit(*args, GRIT_TEST_STEPS=str(file)).ok()
    return int(file.read_text())


def _killed(machine: Machine, step: int, *args: str) -> bool:
    """Kill a call at a step; False if it ended before (the number of images varies with the moment of the dump)."""
    ran = machine.grit(*args, GRIT_TEST_KILL_AT=str(step))
    assert ran.code in (-9, 0), f"step {step}: {ran}"
    return ran.code == -9


def test_a_capture_killed_at_any_step_costs_nothing(machine: Machine) -> None:
    bundle = machine.bundle("c")
    machine.start("c", bundle)
    probe = machine.checkpoints / "probe"
    steps = _steps(machine, "checkpoint", "--leave-running", "--image-path", str(probe), "c")
    killed = 0
    for step in range(1, steps + 1):
        flags = ("--leave-running",) if step % 2 else ()
        images = machine.checkpoints / f"step-{step}"
        killed += _killed(machine, step, "checkpoint", *flags, "--image-path", str(images), "c")

        assert "could not" not in machine.grit("recover").ok().out
        assert machine.leftovers() == [], f"step {step}"
        whole = (images / "grit.json").exists()
        if whole:
            sizes = {entry["name"]: entry["bytes"] for entry in json.loads((images / "grit.json").read_text())["files"]}
            assert sizes == {f.name: f.stat().st_size for f in images.iterdir() if f.name != "grit.json"}
        else:
            assert not images.exists(), f"step {step}: {list(images.iterdir())}"
        if machine.containers():
            machine.counts(bundle)
        else:
            assert whole
            assert not flags
            machine.grit("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), "c").ok()
            machine.counts(bundle)
    assert killed > 40
    machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "last"), "c").ok()


@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_restore_killed_at_any_step_leaves_nothing_and_the_next_call_works(machine: Machine, verb: str) -> None:
    old = machine.bundle("old")
    library = machine.path / "libcuda.so.1"
    library.touch()
    (old.path / "rootfs/usr/lib").mkdir(parents=True)
    (old.path / "rootfs/usr/lib/libcuda.so.1").touch()
    add_hook(old, f"mount --bind {library} @/usr/lib/libcuda.so.1")
    machine.start("old", old)
    images = machine.checkpoints / "ns/first/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    new = machine.bundle("new")
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")
    args = {
        "create": ("create", "--bundle", str(new.path), "--pid-file", str(machine.path / "pid"), "new"),
        "restore": (
            "restore",
            "-d",
            "--image-path",
            str(images),
            "--bundle",
            str(new.path),
            "--pid-file",
            str(machine.path / "pid"),
            "new",
        ),
    }[verb]
    pristine, before = tree(images), new.config()
    steps = _steps(machine, *args)
    machine.grit("delete", "--force", "new").ok()
    (machine.path / "pid").unlink()
    (new.data / "out").write_text("")
    shutil.rmtree(new.path / "rootfs/usr")
    for step in range(1, steps + 1):
        assert _killed(machine, step, *args)
        committed = _is_committed(machine)
        if step % 2:
            machine.grit("recover").ok()
            if _is_whole(machine):
                machine.grit("delete", "--force", "new").ok()
                (machine.path / "pid").unlink(missing_ok=True)
            assert machine.leftovers() == [], f"step {step}"
            assert machine.containers() == [], f"step {step}"
            assert not (machine.path / "pid").exists(), f"step {step}"
        else:
            machine.grit("delete", "--force", "new").ok()
            (machine.path / "pid").unlink(missing_ok=True)
            assert machine.containers() == [], f"step {step}"
        assert _processes_below(new.path) == [], f"step {step}"
        assert new.config() == before, f"step {step}"
        assert not (new.path / "rootfs/usr").exists() or committed, f"step {step}"
        shutil.rmtree(new.path / "rootfs/usr", ignore_errors=True)
        assert tree(images) == pristine, f"step {step}"
        (new.data / "out").write_text("")
    machine.grit(*args).ok()
    if verb == "create":
        machine.grit("start", "new").ok()
    machine.counts(new)


def test_a_killed_create_is_undone_by_the_next_create(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "ns/first/app/checkpoint"), "old").ok()
    new = machine.bundle("new")
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")
    args = ("create", "--bundle", str(new.path), "new")
    assert _killed(machine, 12, *args)
    assert machine.state.exists()
    machine.grit(*args).ok()
    machine.grit("start", "new").ok()
    machine.counts(new)


@pytest.mark.parametrize("victims", ["runtime", "runtime-and-runc"])
def test_a_dump_under_way_outlives_us_and_the_container_runs_on(machine: Machine, victims: str) -> None:
    """CRIU has code of its own in the tasks while it dumps: it is given time to end, whoever else is dead."""
    bundle = machine.bundle("c")
    machine.start("c", bundle)
    for delay in (0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15):
        images = machine.checkpoints / f"after-{delay}"
        pid = os.fork()
        if pid == 0:
            _exec(machine, "checkpoint", "--image-path", str(images), "c")
        machine.wait_for_effect("programs")
        time.sleep(delay)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        if victims == "runtime-and-runc":
            for runc in _marked_programs(machine, "runc"):
                os.kill(runc, 9)
        machine.grit("recover").ok()
        assert machine.leftovers() == [], f"after {delay} s"
        whole = (images / "grit.json").exists()
        assert whole or not images.exists(), f"after {delay} s"
        if machine.containers():
            assert machine.status("c") == "running"
            machine.counts(bundle)
        else:
            assert whole, f"after {delay} s"
            machine.grit("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), "c").ok()
            machine.counts(bundle)


def test_a_criu_that_has_outlived_runc_is_waited_for(machine: Machine) -> None:
    """It has overwritten its environment with its title: its open images say whose it is."""
    bundle = machine.bundle("c")
    machine.start("c", bundle)
    images = machine.checkpoints / "c"
    pid = os.fork()
    if pid == 0:
        _exec(machine, "checkpoint", "--image-path", str(images), "c")
    found: list[int] = []
    machine.wait(lambda: bool(found.extend(proc.criu_with_open(str(images / ".grit-partial"))) or found))
    criu = found[0]
    machine.wait(lambda: proc.command_line(criu)[0].startswith("criu: dump"))
    os.kill(criu, signal.SIGSTOP)
    runc = proc.parent(criu)
    assert runc
    for victim in (pid, runc):
        os.kill(victim, signal.SIGKILL)
    os.waitpid(pid, 0)
    recover = subprocess.Popen(machine.argv("recover"), env=machine.environment(), stdout=subprocess.DEVNULL)
    time.sleep(1)
    assert recover.poll() is None
    os.kill(criu, signal.SIGCONT)
    assert recover.wait(20) == 0
    assert not proc.is_running(criu)
    assert machine.leftovers() == []
    assert machine.status("c") == "running"
    machine.counts(bundle)


def _marked_programs(machine: Machine, name: str) -> list[int]:
    """Processes of this name that a call of this machine's started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
            ours = b"GRIT_RUNTIME_CALL=" in environment and str(machine.config).encode() in environment
            if ours and (entry / "comm").read_text().strip() == name:
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def test_runc_killed_within_a_restore_leaves_no_mount_and_no_task(machine: Machine) -> None:
    """The downstream and CRIU go on when we are killed: recovery ends them first, wherever they are."""
    machine.start("old", machine.bundle("old"))
    images = machine.checkpoints / "images"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    new = machine.bundle("new")
    new.edit(lambda c: c["linux"].pop("cgroupsPath"))  # runc's default, relative to its own cgroup
    for delay in (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12):
        pid = os.fork()
        if pid == 0:
            _exec(machine, "restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
        journal = machine.wait_for_effect("programs")
        assert journal
        time.sleep(delay)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        machine.grit("recover").ok()
        assert machine.leftovers() == [], f"after {delay} s"
        assert machine.containers() == [], f"after {delay} s"
        assert _processes_below(new.path) == [], f"after {delay} s"
        assert (new.path / "rootfs/bin/busybox").exists(), "the rootfs was removed through a bind"
        (new.data / "out").write_text("")
    machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
    machine.counts(new)


def _exec(machine: Machine, *args: str) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    argv = machine.argv(*args)
    os.execve(argv[0], argv, {**os.environ, "GRIT_RUNTIME_CONFIG": str(machine.config)})


def test_what_a_killed_restore_left_goes_with_the_next_restore_of_any_container(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    first, second = machine.bundle("first"), machine.bundle("second")
    args = ("restore", "-d", "--image-path", str(images), "-b")
    steps = _steps(machine, *args, str(first.path), "first")
    machine.grit("delete", "--force", "first").ok()
    assert _killed(machine, steps // 2, *args, str(first.path), "first")
    assert machine.leftovers() != []
    machine.grit(*args, str(second.path), "second").ok()
    machine.counts(second)
    assert machine.containers() == ["second"]
    assert machine.leftovers() == []


def _is_whole(machine: Machine) -> bool:
    """The kill came after the last effect: then the restored container stands."""
    return machine.status("new") == "running"


def _is_committed(machine: Machine) -> bool:
    """Nothing of the call will be undone any more."""
    journals = [journal.read_text() for journal in machine.state.rglob("journal")]
    return all('"phase":"created"' in text for text in journals)


def _processes_below(path: Path) -> list[int]:
    """Processes whose own mount namespace has something from below `path`; what is dying may end."""
    found: list[int] = []

    def none() -> bool:
        found[:] = [
            int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_below(entry, path)
        ]
        return not found

    deadline = time.monotonic() + 2
    while not none() and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _is_below(process: Path, path: Path) -> bool:
    try:
        elsewhere = os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt")
        return elsewhere and str(path) in (process / "mountinfo").read_text()
    except OSError:
        return False
