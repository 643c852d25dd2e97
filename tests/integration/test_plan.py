"""What `plan` says is what `restore` and `create` do, and it changes nothing: real runc, real CRIU."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.host.workspace import path_of
from tests.integration.machine import Bundle, Machine, Ran, tree
from tests.integration.test_inspect import sparse
from tests.integration.test_kinds import DUMPS, archive, by_runc, tar
from tests.integration.test_links import found_by_criu
from tests.integration.test_mounts import checkpoint
from tests.simulated.driver import SimulatedGpu

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

# Runs the command, and tells on standard error each thing that Python did which could change the machine, and how many
# bytes were read (proc_pid_io(5)). ctypes' calls of the kernel are told by their names.
_WATCHED = """
import os, sys
CHANGING = {"os.chmod", "os.chown", "os.kill", "os.killpg", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
            "os.symlink", "os.truncate", "os.utime", "shutil.rmtree", "signal.pthread_kill", "socket.connect",
            "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork",}
CALLS = {"mount", "umount2", "unshare", "setns", "ptrace"}
def hook(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in CHANGING or writes or (event == "ctypes.dlsym" and args[1] in CALLS):
        print("DID", event, args, file=sys.stderr)
from grit_runtime.__main__ import main
sys.dont_write_bytecode = True
sys.addaudithook(hook)
code = main(["verb", "-", "x", *sys.argv[1:]])
print("READ", open("/proc/self/io").read().split()[1], file=sys.stderr)
sys.exit(code)
"""


def _watched(machine: Machine, *args: str) -> tuple[dict[str, Any], Ran, list[str], int]:
    """The document, how it ended, what it did, and how much it read."""
    argv = [sys.executable, "-c", _WATCHED, "--root", str(machine.root), "plan", "--json", *args]
    done = subprocess.run(argv, env=machine.environment(), capture_output=True, text=True, check=False, timeout=60)
    lines = done.stderr.splitlines()
    did = [line for line in lines if line.startswith("DID ")]
    (read,) = [int(line.split()[1]) for line in lines if line.startswith("READ ")]
    return json.loads(done.stdout), Ran(code=done.returncode, out=done.stdout, err=done.stderr), did, read


def _surroundings(machine: Machine) -> list[Any]:
    """All that a restore touches."""
    places = [machine.checkpoints, machine.state, machine.unpacked, *(bundle.path for bundle in machine.bundles)]
    cgroups = sorted(str(path) for bundle in machine.bundles for path in bundle.cgroups())
    mine = str(machine.path)
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mine in line]
    return [[tree(place) for place in places if place.is_dir()], cgroups, mounts, machine.containers()]


def _plan(machine: Machine, *args: str, code: int = 0) -> dict[str, Any]:
    """The plan; the machine is as before."""
    before = _surroundings(machine)
    document, ran, did, _ = _watched(machine, *args)
    assert ran.code == code, ran.out + ran.err
    assert did == []
    assert _surroundings(machine) == before
    return document


def _record(machine: Machine) -> Path:
    """Make the downstream a runc that writes down how it is called, a line a call."""
    program, record = machine.path / "recording-runc", machine.path / "record"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\037" "$@" >>{record}; echo >>{record}\nexec {shutil.which("runc")} "$@"\n'
    )
    program.chmod(0o755)
    record.touch()
    return program


def _restored_as_planned(machine: Machine, plan: dict[str, Any], new: Bundle, name: str) -> None:
    """The container's mounts are what the plan said."""
    root = Path(f"/proc/{machine.state_of(name)['pid']}/root")
    for mount in plan["mounts"]:
        if mount["new_source"]:
            inside, outside = os.stat(f"{root}{mount['destination']}"), os.stat(mount["new_source"])
            assert (inside.st_dev, inside.st_ino) == (outside.st_dev, outside.st_ino), mount
    moved = {mount["destination"]: mount["new_source"] for mount in plan["mounts"]}
    assert moved["/data"] == str(new.data)


@pytest.mark.parametrize("way", ["keys", "images", "links"])
def test_create_does_what_the_plan_says(machine: Machine, way: str) -> None:
    more = {"mounts": {"strategy": "links", "link-roots": [str(machine.path)]}} if way == "links" else {}
    machine.configure(downstream=str(_record(machine)), require_manifest=False, **more)
    old, new = machine.bundle("old"), machine.bundle("new")
    machine.start("old", old)
    taken = checkpoint(machine)
    if way != "keys":
        found_by_criu(taken, old)
    old.path.rename(machine.path / "gone")
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")

    plan = _plan(machine, "--bundle", str(new.path))
    assert (plan["works"], plan["problems"], plan["container"], plan["serves"]) == (True, [], "new", "create")
    assert plan["checkpoint"] == str(taken)
    actions = {mount["destination"]: mount["action"] for mount in plan["mounts"]}
    assert actions["/data"] == {"keys": "remap", "images": "rekey", "links": "link"}[way]
    assert bool(plan["links"]) == (way == "links")
    assert bool(plan["rewrites"]) == (way == "images")

    (machine.path / "record").write_text("")
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    calls = [line.split("\x1f")[:-1] for line in (machine.path / "record").read_text().splitlines()]
    (restored,) = [call for call in calls if "restore" in call]
    assert [str(machine.path / "recording-runc"), *restored] == plan["downstream"]["command"]
    (journal,) = machine.state.rglob("journal")
    assert (journal.parent / "criu.conf").read_text() == plan["criu"]["configuration"]
    effects = [entry for line in journal.read_text().splitlines() if "effect" in (entry := json.loads(line))]

    def done(kind: str, *keys: str) -> list[dict[str, Any]]:
        return [{key: e["args"][key] for key in keys} for e in effects if e["effect"] == kind]

    assert done("shared-link", "path", "target") == plan["links"]
    assert done("make-mountpoint", "base", "path", "directory") == plan["mountpoints"]
    _restored_as_planned(machine, plan, new, "new")
    machine.grit("start", "new").ok()
    machine.counts(new)


def test_restore_does_what_the_plan_says_of_an_archive(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    files = {"rootfs-diff.tar": tar({"etc/added": b"added"}), "container.log": b"", **DUMPS}
    path = archive(machine.path / "checkpoint-pod_ns-app-2026.tar", images, files)
    new = machine.bundle("new")
    args = ("--bundle", str(new.path), "--image-path")
    unpacked, scratch = _plan(machine, *args, str(images)), machine.path / "tmp"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    try:
        before = _surroundings(machine)
        packed, ran, did, _ = _watched(machine, *args, str(path))
    finally:
        del os.environ["TMPDIR"]
    assert ran.code == 0, ran.err
    assert _surroundings(machine) == before
    assert list(scratch.iterdir()) == []
    # shutil.rmtree removes by descriptors, and names relative to them.
    assert all(str(scratch) in line for line in did if not line.startswith(("DID os.remove", "DID os.rmdir"))), did
    assert packed["mounts"] == unpacked["mounts"]
    assert packed["criu"] == unpacked["criu"]
    assert packed["memory"] == unpacked["memory"]
    diff, log = packed["contents"]
    assert (diff["name"], diff["target"]) == ("rootfs-diff.tar", str(new.path / "rootfs"))
    assert log["left_out"] == "the container's annotations name no pod and container"
    assert str(scratch) not in ran.out
    machine.grit("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new").ok()
    _restored_as_planned(machine, packed, new, "new")
    machine.counts(new)
    assert (new.path / "rootfs/etc/added").read_text() == "added"


def test_every_problem_is_that_of_the_restore(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    machine.start("old", old)
    taken = checkpoint(machine)
    data = str(new.data)

    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/etc/hosts"]
        for mount in config["mounts"]:
            if mount["destination"] == "/data":
                mount["source"] = f"{data}/out"
        config["linux"]["namespaces"].append({"type": "user"})

    new.edit(change)
    args = ("--bundle", str(new.path), "--image-path", str(taken))
    plan = _plan(machine, *args, code=1)
    assert not plan["works"]
    said = machine.grit("restore", "--detach", *args, "new")
    problems = "; ".join(plan["problems"])
    assert (
        said.err == f"cannot restore container new: {len(plan['problems'])} problems: {problems} (nothing was touched)"
    )
    for word in ("/etc/hosts", "was a directory", "user namespace"):
        assert word in problems
    text = machine.grit("plan", *args)
    assert (text.code, text.out.splitlines()[-1]) == (1, f"it would fail: {len(plan['problems'])} problems")


def _cut(file: Path) -> None:
    """Cut an image short."""
    file.write_bytes(file.read_bytes()[:-1])


# What is made wrong, the arguments, and the exit code.
_WRONG: dict[str, tuple[Callable[[Machine, Bundle, Path], object], list[str], int]] = {
    "the id is taken": (lambda m, _b, _t: m.start("new", m.bundle("other")), ["--image-path", "TAKEN"], 1),
    "the cgroup is in use": (
        lambda m, b, _t: b.edit(lambda config: config["linux"].update(cgroupsPath=m.bundles[0].cgroup)),
        ["--image-path", "TAKEN"],
        1,
    ),
    "pages are missing": (lambda _m, _b, t: os.truncate(t / "pages-1.img", 4096), ["--image-path", "TAKEN"], 1),
    "an image is cut": (lambda _m, _b, t: _cut(t / "pstree.img"), ["--image-path", "TAKEN"], 1),
    "no checkpoint": (lambda _m, _b, _t: None, ["--image-path", "."], 1),
    "outside of the roots": (
        lambda _m, b, _t: b.annotate(type="container", name="app", namespace="ns", checkpoint="/etc"), [], 1,
    ),
    "no annotation": (lambda _m, _b, _t: None, [], 2),
    "no config.json": (lambda m, b, _t: (b.path / "config.json").rename(m.path / "away"), ["--image-path", "TAKEN"], 2),
}  # fmt: skip


@pytest.mark.parametrize("wrong", list(_WRONG))
def test_what_ends_a_restore_ends_the_plan(machine: Machine, wrong: str) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    machine.start("old", old)
    taken = checkpoint(machine, "--leave-running")
    make, args, code = _WRONG[wrong]
    make(machine, new, taken)
    args = [str(taken) if word == "TAKEN" else word for word in args]
    ran = machine.grit("plan", "--bundle", str(new.path), *args, "new")
    assert ran.code == code, ran.out + ran.err
    if code == 1:
        verb = ["restore", "--detach", *args] if args else ["create"]
        assert machine.grit(*verb, "--bundle", str(new.path), "new").err in ran.out
    else:
        assert (ran.out, ran.err.count("\n")) == ("", 1)
    if (machine.path / "away").exists():
        (machine.path / "away").rename(new.path / "config.json")
    shutil.rmtree(taken)


def test_what_lies_in_the_state_directory_is_said(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    new, taken = machine.bundle("new"), checkpoint(machine)
    workspace = Path(path_of(str(machine.state), str(machine.root), "new"))
    workspace.mkdir(parents=True, mode=0o700)
    journal, header = workspace / "journal", {"header": {"operation": "restore", "container": "new"}}
    journal.write_text(json.dumps(header) + "\n")
    args = ("--bundle", str(new.path), "--image-path", str(taken))
    assert _plan(machine, *args)["steps"][0] == "what a killed restore of container new left is put right"
    held = os.open(workspace, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert _plan(machine, *args, code=1)["problems"] == ["container new is busy: another grit-runtime works on it"]
    os.close(held)
    journal.write_text(json.dumps(header) + "\n" + json.dumps({"phase": "created"}) + "\n")
    assert "container with given ID already exists" in _plan(machine, *args, code=1)["problems"][0]
    shutil.rmtree(machine.state)


@pytest.mark.parametrize("packed", [False, True])
def test_of_thirty_gibibytes_no_page_is_read(machine: Machine, packed: bool) -> None:
    taken = machine.checkpoints / "c"
    by_runc(machine, taken)
    new = machine.bundle("new")
    args = ("--bundle", str(new.path), "--image-path")
    _, _, _, before = _watched(machine, *args, str(taken))
    os.truncate(taken / "pages-1.img", 30 << 30)
    path = taken
    if packed:
        path = machine.path / "large.tar"
        sparse(path, taken)
    document, ran, _, read = _watched(machine, *args, str(path))
    assert (ran.code, document["problems"]) == (0, []), ran.err
    assert read < before + (4 << 20)


@pytest.mark.needs("cc")
@pytest.mark.timeout(300)
def test_a_simulated_gpu(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    gpu.capture().ok()
    new, machine = gpu.copy_of(old), gpu.machine
    before = _surroundings(machine)
    ran = gpu.grit("plan", "--json", "--bundle", str(new.path), "--image-path", str(machine.checkpoints / "c")).ok()
    assert (_surroundings(machine), gpu.used()) == (before, 0)
    plan = json.loads(ran.out)
    assert plan["cuda"]["by"] == "driver"
    assert [sum(process["memory"].values()) >> 20 for process in plan["cuda"]["processes"]] == [64]
    assert any(step.startswith("bring CUDA back, by driver") for step in plan["steps"])
    gpu.settings(taken=1023)
    short = gpu.grit("plan", "--bundle", str(new.path), "--image-path", str(machine.checkpoints / "c"))
    assert short.code == 1
    assert "1 MiB free, and 64 MiB are needed" in short.out
    gpu.settings()
    gpu.restore(new).ok()
    gpu.goes_on(new)


@pytest.mark.parametrize("wrong", ["another namespace's", "others may write to it"])
def test_what_the_site_does_not_trust_is_said(machine: Machine, wrong: str) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    old.annotate(type="container", name="app", namespace="ns")
    machine.start("old", old)
    taken = checkpoint(machine)
    namespace = "other" if wrong == "another namespace's" else "ns"
    new.annotate(type="container", name="app", namespace=namespace, checkpoint=str(taken.parents[1]))
    if wrong == "others may write to it":
        taken.chmod(0o777)
    plan = _plan(machine, "--bundle", str(new.path), code=1)
    said = machine.grit("create", "--bundle", str(new.path), "new")
    assert said.code == 1
    assert len(plan["problems"]) == 1
    assert plan["problems"][0] in said.err
