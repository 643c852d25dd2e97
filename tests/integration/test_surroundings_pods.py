"""Containers of a pod: namespaces of a sandbox, containers side by side, pods side by side, generations."""

import os
import subprocess
from pathlib import Path

import pytest

from grit_runtime.host import proc
from tests.integration.machine import Bundle, Machine, tree
from tests.integration.surroundings import Sandbox, Situation

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def _restore(machine: Machine, images: Path, bundle: Bundle, name: str) -> None:
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), name).ok()


@pytest.mark.needs("cc")
def test_the_namespaces_of_another_sandbox_are_the_restored_containers(machine: Machine) -> None:
    first, second = Sandbox(machine, "sandbox-1"), Sandbox(machine, "sandbox-2")
    situation = Situation(machine, "names", first.within)
    situation.start()
    situation.checkpoint()
    assert situation.restore(change=second.within) == ["hostname sandbox-2", "pid 1"]
    assert machine.runc("exec", "sandbox-2", "/bin/cat", "/proc/sys/kernel/hostname").ok().out == "sandbox-2\n"


@pytest.mark.needs("cc")
def test_a_shared_pid_namespace_in_which_the_pids_are_free(machine: Machine) -> None:
    kinds = ("network", "ipc", "uts", "pid")
    first, second = Sandbox(machine, "sandbox-1", *kinds), Sandbox(machine, "sandbox-2", *kinds)
    machine.runc("exec", "sandbox-1", "/bin/sh", "-c", "i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done").ok()
    situation = Situation(machine, "names", first.within)
    situation.start()
    situation.checkpoint()
    hostname, pid = situation.restore(change=second.within)
    assert hostname == "hostname sandbox-2"
    assert int(pid.split()[1]) > 50


@pytest.mark.needs("cc")
def test_a_shared_pid_namespace_in_which_a_pid_is_taken_is_found_before_anything_is_touched(machine: Machine) -> None:
    kinds = ("network", "ipc", "uts", "pid")
    first, second = Sandbox(machine, "sandbox-1", *kinds), Sandbox(machine, "sandbox-2", *kinds)
    situation = Situation(machine, "names", first.within)
    situation.start()
    pid = proc.inner_pid(machine.state_of("old")["pid"])
    assert pid
    situation.checkpoint()
    second.take_pid(pid)
    other = machine.bundle("other")
    other.edit(second.within)
    machine.start("other", other)
    said = situation.cannot_be_restored(change=second.within)
    assert "pids of the checkpoint are taken in the shared pid namespace" in said
    assert "nothing was touched" in said
    machine.counts(other)


@pytest.mark.parametrize("first_back", ["reader", "writer"])
def test_two_containers_of_a_pod_come_back_in_another_pod_with_their_shared_volume(
    machine: Machine, first_back: str
) -> None:
    writer = "i=0; while :; do i=$((i+1)); echo $i >> /data/out; sleep 0.02; done"
    reader = (
        "exec 3</shared/out; while :; do while read -r line; do echo $line > /data/seen; done <&3; sleep 0.02; done"
    )
    first, second = Sandbox(machine, "sandbox-1"), Sandbox(machine, "sandbox-2")

    def pod(sandbox: Sandbox, generation: str) -> tuple[Bundle, Bundle]:
        writing, reading = (
            machine.bundle(f"writer-{generation}", writer),
            machine.bundle(f"reader-{generation}", reader),
        )
        mount = {"destination": "/shared", "type": "bind", "source": str(writing.data), "options": ["rbind", "rw"]}
        reading.edit(lambda c: c["mounts"].append(mount))
        for bundle in (writing, reading):
            bundle.edit(sandbox.within)
        return writing, reading

    writing, reading = pod(first, "old")
    machine.start("writer", writing)
    machine.runc("run", "-d", "-b", str(reading.path), "reader").ok()
    machine.wait(lambda: (reading.data / "seen").exists())
    for name in ("reader", "writer"):
        machine.runc("pause", name).ok()  # CRIU compares the sizes of open files with those at the dump
    for name in ("reader", "writer"):
        machine.grit("checkpoint", "--image-path", str(machine.checkpoints / name), name).ok()
    last = writing.numbers()[-1]
    volume = {path.name: path.read_bytes() for path in writing.data.iterdir()}
    for bundle in (writing, reading):
        bundle.path.rename(machine.path / f"gone-{bundle.path.name}")
    writing, reading = pod(second, "new")
    for name, content in volume.items():
        (writing.data / name).write_bytes(content)
    containers = [("writer", writing), ("reader", reading)]
    for name, bundle in containers if first_back == "writer" else reversed(containers):
        _restore(machine, machine.checkpoints / name, bundle, name)
        if name == "writer":
            machine.counts(bundle)  # what the reader has open has grown when it comes second
    machine.wait(lambda: int(seen.read_text() or 0) > last if (seen := reading.data / "seen").exists() else False)


def test_one_checkpoint_is_restored_into_two_pods_at_the_same_time(machine: Machine) -> None:
    old = machine.bundle("old")
    sandboxes = [Sandbox(machine, f"sandbox-{number}") for number in (1, 2, 3)]
    old.edit(sandboxes[0].within)
    machine.start("old", old)
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    last, before = old.numbers()[-1], tree(images)
    new = [machine.bundle(f"new-{number}") for number in (1, 2)]
    running = []
    for bundle, sandbox in zip(new, sandboxes[1:], strict=True):
        bundle.edit(sandbox.within)
        argv = machine.argv("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), bundle.path.name)
        running.append(_started(machine, argv))
    assert [process.wait(60) for process in running] == [0, 0]
    for bundle in new:
        machine.counts(bundle)
        assert bundle.numbers()[0] == last + 1
    assert tree(images) == before


def _started(machine: Machine, argv: list[str]) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "GRIT_RUNTIME_CONFIG": str(machine.config)}
    nothing = subprocess.DEVNULL
    return subprocess.Popen(argv, env=env, stdin=nothing, stdout=nothing, stderr=nothing)


def test_three_generations_in_three_sandboxes_count_on(machine: Machine) -> None:
    bundle = machine.bundle("g0")
    bundle.edit(Sandbox(machine, "s0").within)
    machine.start("g0", bundle)
    for generation in range(1, 4):
        images = machine.checkpoints / f"generation-{generation}"
        machine.grit("checkpoint", "--image-path", str(images), f"g{generation - 1}").ok()
        last = bundle.numbers()[-1]
        bundle.path.rename(machine.path / f"gone-{generation}")
        bundle = machine.bundle(f"g{generation}")
        bundle.edit(Sandbox(machine, f"s{generation}").within)
        _restore(machine, images, bundle, f"g{generation}")
        machine.counts(bundle)
        assert bundle.numbers()[0] == last + 1


def test_a_container_goes_into_the_cgroup_of_its_new_pod(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle, pod in ((old, "pod-1"), (new, "pod-2")):
        path = f"{bundle.cgroup}/{pod}/app"
        bundle.edit(lambda c, path=path: c["linux"].update(cgroupsPath=path))
    machine.start("old", old)
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    _restore(machine, images, new, "new")
    machine.counts(new)
    (pid, *_) = machine.runc("ps", "--format", "json", "new").ok().out.strip("[]\n").split(",")
    where = {line.rpartition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
    assert f"{new.cgroup}/pod-2/app" in where
    assert not any(old.cgroup in path for path in where)
    machine.runc("delete", "--force", "new").ok()
    for bundle in (old, new):
        for parent in bundle.cgroups():
            for path in [*sorted(parent.rglob("pod-*")), parent]:
                path.rmdir()
