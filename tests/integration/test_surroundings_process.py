"""What a process is: limits, credentials, signals, timers, sessions, and what belongs to its container."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.host import cgroups, mounts, proc
from tests.integration.machine import Machine
from tests.integration.surroundings import Situation, all_ok

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox", "cc")


def _attributes(config: dict[str, Any]) -> None:
    config["process"].update(
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 300},
            {"type": "RLIMIT_CORE", "soft": 4096, "hard": 8192},
        ],
        noNewPrivileges=True,
        oomScoreAdj=500,
    )
    config["process"]["capabilities"].update(inheritable=["CAP_KILL"], ambient=["CAP_KILL"])
    config["process"]["env"].append("WHOSE=old")


def test_limits_credentials_priorities_and_the_environment_are_the_old_ones(machine: Machine) -> None:
    situation = Situation(machine, "attributes", _attributes)
    situation.start()
    situation.checkpoint()
    answer = situation.restore(change=lambda c: c["process"]["env"].append("WHOSE=new"))
    assert answer.pop() == "environment old"
    assert all_ok(answer)


def test_timers_go_on_and_pending_signals_are_pending(machine: Machine) -> None:
    assert all_ok(Situation(machine, "timers-and-signals").travel())


def test_threads_go_on_with_their_own_memory(machine: Machine) -> None:
    assert all_ok(Situation(machine, "threads").travel())


def test_sessions_and_process_groups_are_as_before(machine: Machine) -> None:
    assert all_ok(Situation(machine, "sessions").travel())


def test_a_zombie_still_has_its_exit_status(machine: Machine) -> None:
    assert all_ok(Situation(machine, "zombie").travel())


def test_a_stopped_process_stays_stopped_or_is_refused_where_criu_hangs(machine: Machine) -> None:
    situation = Situation(machine, "stopped")
    if cgroups.is_unified():
        assert all_ok(situation.travel())
    else:
        said = situation.cannot_be_dumped()
        assert "(/bin/probe stopped) is stopped" in said
        assert "SIGCONT" in said


def test_the_seccomp_filter_of_the_old_configuration_is_in_force(machine: Machine) -> None:
    def forbid(config: dict[str, Any]) -> None:
        rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 33}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

    situation = Situation(machine, "seccomp", forbid)
    situation.start()
    situation.checkpoint()
    assert all_ok(situation.restore(change=lambda c: c["linux"].pop("seccomp")))


@pytest.fixture
def passable(machine: Machine) -> Iterator[None]:
    """Let other users through to the test's directory, which pytest keeps closed."""
    closed = {path: path.stat().st_mode for path in (machine.path, *machine.path.parents[:2])}
    for path, mode in closed.items():
        path.chmod(mode | 0o011)
    yield
    for path, mode in closed.items():
        path.chmod(mode)


@pytest.mark.usefixtures("passable")
def test_a_container_with_a_user_namespace_is_dumped_and_its_restore_refused_before_anything_is_touched(
    machine: Machine,
) -> None:
    def mapped(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            config["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]

    situation = Situation(machine, "user", mapped)
    for path in [situation.old.path, *situation.old.path.rglob("*")]:
        os.chown(path, 100000, 100000, follow_symlinks=False)
    situation.start()
    situation.checkpoint()
    said = situation.cannot_be_restored()
    assert "has a user namespace, into which nothing can be restored" in said
    assert "nothing was touched" in said


def test_a_paused_container_comes_back_running(machine: Machine) -> None:
    situation = Situation(machine, "threads")
    situation.start()
    machine.runc("pause", "old").ok()
    situation.checkpoint()
    assert all_ok(situation.restore())


def test_a_process_that_exec_started_is_left_out_with_a_warning(machine: Machine) -> None:
    situation = Situation(machine, "threads")
    situation.start()
    command = ["runc", "--root", str(machine.root), "exec", "-d", "old", "/bin/sleep", "1000"]
    nothing = subprocess.DEVNULL
    subprocess.run(command, stdin=nothing, stdout=nothing, stderr=nothing, check=True)
    situation.checkpoint()
    entries = [json.loads(line) for line in (machine.path / "log.json").read_text().splitlines()]
    (warning,) = [entry["msg"] for entry in entries if "not in the checkpoint" in entry["msg"]]
    assert "(/bin/sleep 1000) is no child of its first process" in warning
    assert all_ok(situation.restore())
    pids = json.loads(machine.runc("ps", "--format", "json", "new").ok().out)
    assert [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids] == [b"/bin/probe\0threads\0"]


def test_a_read_only_rootfs_stays_read_only(machine: Machine) -> None:
    def read_only(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = True

    situation = Situation(machine, "threads", read_only)
    assert all_ok(situation.travel())
    assert machine.runc("exec", "new", "/bin/sh", "-c", "echo > /written").code != 0


@pytest.mark.parametrize("readonly", [False, True])
def test_every_mount_is_as_protected_as_before(machine: Machine, readonly: bool) -> None:
    def change(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = readonly
        (token,) = [m for m in config["mounts"] if m["destination"] == "/var/run/secrets/token"]
        token["options"] = ["rbind", "ro", "nosuid", "noexec"]

    situation = Situation(machine, "threads", change)
    situation.start()
    before = _protection(machine, "old")
    situation.checkpoint()
    situation.restore()
    assert "ro" in before["/proc/sys"]
    assert "ro" in before["/var/run/secrets/token"]
    assert _protection(machine, "new") == before


def _protection(machine: Machine, name: str) -> dict[str, set[str]]:
    """The options of each mount of a container that keep its processes from something."""
    pid = json.loads(machine.runc("state", name).ok().out)["pid"]
    mounted = mounts.parse(proc.mountinfo(pid))
    looked_for = {"ro", "nosuid", "nodev", "noexec"}
    # What is masked by /dev/null has the flags of the node's own /dev.
    return {e.mountpoint: set(e.options.split(",")) & looked_for if e.root != "/null" else set() for e in mounted}


def test_a_rootfs_that_is_an_overlay_is_replaced_by_another_overlay(machine: Machine) -> None:
    situation = Situation(machine, "deleted-in-rootfs")
    mounted = []

    def overlay(rootfs: Path) -> None:
        layers = [rootfs.with_name(f"{rootfs.parent.name}-{name}") for name in ("lower", "upper", "work")]
        layers = [machine.path / layer.name for layer in layers]
        rootfs.rename(layers[0])
        for path in (rootfs, *layers[1:]):
            path.mkdir()
        options = f"lowerdir={layers[0]},upperdir={layers[1]},workdir={layers[2]}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, rootfs], check=True)
        mounted.append(rootfs)

    try:
        overlay(situation.old.path / "rootfs")
        situation.start()
        machine.grit("checkpoint", "--image-path", str(situation.images), "old").ok()
        new = situation.bundle("new")
        overlay(new.path / "rootfs")
        machine.grit("restore", "-d", "--image-path", str(situation.images), "-b", str(new.path), "new").ok()
        assert all_ok(situation.answer(new))
    finally:
        machine.clean()
        for rootfs in mounted:
            subprocess.run(["umount", rootfs], check=True)
