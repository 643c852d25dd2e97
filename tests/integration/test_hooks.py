"""The hooks in real containers' config.json: what is recorded, what a capture makes of it, what is cleaned up."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.host import proc, workspace
from tests.integration.machine import Bundle, Machine
from tests.requirements import RUNTIME

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")

HOOKS = RUNTIME.parent.parent / "lib/grit-runtime/hooks"


def _hooked(machine: Machine, name: str, *, record: bool = True, cleanup: bool = True) -> Bundle:
    """A bundle with our hooks in its config.json."""
    bundle = machine.bundle(name)
    state = ["--state-dir", str(machine.state)]
    hooks: dict[str, Any] = {}
    if record:
        hooks["createRuntime"] = [{"path": str(HOOKS / "grit-record"), "args": ["grit-record", *state]}]
    if cleanup:
        args = ["grit-cleanup", *state, "--config", str(machine.config)]
        hooks["poststop"] = [{"path": str(HOOKS / "grit-cleanup"), "args": args}]
    bundle.edit(lambda config: config.update(hooks=hooks))
    return bundle


def _file(machine: Machine, name: str) -> Path:
    """The file with a container's record, whether or not it is there."""
    pid = machine.state_of(name)["pid"]
    return machine.state / ".recorded" / f"{pid}-{proc.start_time(pid)}.json"


def _record(machine: Machine, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_file(machine, name).read_text())
    return loaded


def _images(machine: Machine) -> Path:
    return machine.checkpoints / "ns/first/app/checkpoint"


def _annotated(machine: Machine, bundle: Bundle) -> Bundle:
    bundle.annotate(type="container", name="app", namespace="ns", checkpoint=str(machine.checkpoints / "ns/first"))
    return bundle


def _log(machine: Machine) -> str:
    return (machine.path / "log.json").read_text() if (machine.path / "log.json").exists() else ""


def test_a_container_is_recorded_and_forgotten_when_it_is_deleted(machine: Machine) -> None:
    bundle = _hooked(machine, "old")
    machine.start("old", bundle)
    record, pid = _record(machine, "old"), machine.state_of("old")["pid"]
    assert (record["id"], record["bundle"], record["pid"]) == ("old", str(bundle.path), pid)
    assert record["start"] == proc.start_time(pid)
    assert record["config"] == bundle.config()
    assert f" {bundle.path}/rootfs/data " in record["mountinfo"]
    assert _file(machine, "old").stat().st_mode & 0o777 == 0o600
    assert _file(machine, "old").parent.stat().st_mode & 0o777 == 0o700
    machine.runc("delete", "--force", "old").ok()
    assert list(machine.state.iterdir()) == []


@pytest.mark.parametrize("how", ["removed", "changed", "torn"])
def test_a_container_whose_configuration_is_gone_is_captured_and_restored(machine: Machine, how: str) -> None:
    """What the record said counts; the new container has hooks, too."""
    old = _hooked(machine, "old")
    machine.start("old", old)
    config = old.path / "config.json"
    made_of = json.loads(config.read_text())
    if how == "removed":
        config.unlink()
    else:
        old.written = json.dumps({**made_of, "mounts": made_of["mounts"][:3]}).encode() if how == "changed" else b"{"
        config.write_bytes(old.written)
    machine.grit("checkpoint", "--image-path", str(_images(machine)), "old").ok()
    assert "what was recorded at its creation counts" in _log(machine)
    assert json.loads((_images(machine) / "grit.json").read_text())["spec"] == made_of
    assert not machine.state.exists() or list(machine.state.iterdir()) == []

    new = _hooked(machine, "new")
    machine.grit("restore", "-d", "--image-path", str(_images(machine)), "--bundle", str(new.path), "new").ok()
    machine.counts(new)


def test_a_container_without_a_record_needs_its_configuration(machine: Machine) -> None:
    """A record of another container is no record of it."""
    old = _hooked(machine, "old")
    machine.start("old", old)
    _file(machine, "old").write_text(json.dumps({**_record(machine, "old"), "id": "other"}))
    (old.path / "config.json").rename(old.path / "pods/config.json")
    failed = machine.grit("checkpoint", "--image-path", str(_images(machine)), "old")
    assert failed.code != 0
    assert "configuration is needed" in failed.err
    (old.path / "pods/config.json").rename(old.path / "config.json")
    machine.counts(old)


def test_what_is_recorded_at_a_restore_is_of_the_new_container(machine: Machine) -> None:
    """runc runs createRuntime hooks at a restore too, before anything is mounted, with our config.json."""
    old = _hooked(machine, "old")
    machine.start("old", old)
    machine.grit("checkpoint", "--image-path", str(_images(machine)), "old").ok()
    new = _hooked(machine, "new")
    machine.grit("restore", "-d", "--image-path", str(_images(machine)), "--bundle", str(new.path), "new").ok()
    record, pid = _record(machine, "new"), machine.state_of("new")["pid"]
    assert (record["pid"], record["start"], record["bundle"]) == (pid, proc.start_time(pid), str(new.path))
    assert record["config"]["annotations"]["org.criu.config"].startswith(str(machine.state))
    assert record["config"]["mounts"] == new.config()["mounts"]
    assert f" {new.path}/rootfs/data " not in record["mountinfo"]

    # The bundle counts, which has no edit of ours; without it, the record does.
    again = machine.checkpoints / "ns/second/app/checkpoint"
    machine.grit("checkpoint", "--leave-running", "--image-path", str(again), "new").ok()
    assert "recorded at its creation" not in _log(machine)
    assert json.loads((again / "grit.json").read_text())["spec"] == new.config()
    (new.path / "config.json").unlink()
    third = machine.checkpoints / "ns/third/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(third), "new").ok()
    spec = json.loads((third / "grit.json").read_text())["spec"]
    assert "org.criu.config" not in spec["annotations"]
    last = _hooked(machine, "last")
    machine.grit("restore", "-d", "--image-path", str(third), "--bundle", str(last.path), "last").ok()
    machine.counts(last)


def test_a_restored_container_that_plain_runc_deletes_leaves_nothing(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    machine.grit("checkpoint", "--image-path", str(_images(machine)), "old").ok()
    new = _annotated(machine, _hooked(machine, "new"))
    pid_file = machine.path / "pid"
    machine.grit("create", "--bundle", str(new.path), "--pid-file", str(pid_file), "new").ok()
    assert list(machine.state.rglob("journal"))
    assert pid_file.exists()
    machine.runc("delete", "--force", "new").ok()
    assert list(machine.state.iterdir()) == []
    assert not pid_file.exists()
    assert machine.leftovers() == []


def test_the_hook_does_nothing_while_grit_runtime_deletes(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    machine.grit("checkpoint", "--image-path", str(_images(machine)), "old").ok()
    new = _annotated(machine, _hooked(machine, "new"))
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    machine.grit("delete", "new").ok()
    assert list(machine.state.iterdir()) == []


def test_a_workspace_in_use_is_left_alone(machine: Machine) -> None:
    bundle = _hooked(machine, "c")
    machine.start("c", bundle)
    held = workspace.open_workspace(workspace.path_of(str(machine.state), str(machine.root), "c"), timeout=0)
    Path(held.file("journal")).write_text("")
    machine.runc("delete", "--force", "c").ok()
    assert Path(held.path).is_dir()
    held.close(remove=True)


def test_another_container_of_that_id_keeps_what_it_has(machine: Machine) -> None:
    """The hook isn't told the runtime's --root: a restored container of the same id elsewhere waits on."""
    machine.start("old", machine.bundle("old"))
    machine.grit("checkpoint", "--leave-running", "--image-path", str(_images(machine)), "old").ok()
    machine.runc("delete", "--force", "old").ok()
    new = _annotated(machine, _hooked(machine, "c"))
    machine.grit("create", "--bundle", str(new.path), "c").ok()
    elsewhere = ["runc", "--root", str(machine.path / "other")]
    twin = _hooked(machine, "twin", record=False)
    null = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run([*elsewhere, "run", "-d", "-b", str(twin.path), "c"], check=True, **null)
    subprocess.run([*elsewhere, "delete", "--force", "c"], check=True)
    shutil.rmtree(machine.path / "other")
    assert _file(machine, "c").exists()
    machine.grit("start", "c").ok()
    machine.counts(new)


def test_recover_or_another_containers_end_forgets_containers_that_are_gone(machine: Machine) -> None:
    """Not every engine calls the hook for every container: podman 4.3.1 doesn't for one that it has restored."""
    for how in ("recover", "another"):
        machine.start(how, _hooked(machine, how, cleanup=False))
        file = _file(machine, how)
        machine.grit("recover").ok()
        assert file.exists()
        machine.runc("delete", "--force", how).ok()
        assert file.exists()
        if how == "recover":
            machine.grit("recover", "--container", "other").ok()
        else:
            machine.start("other", _hooked(machine, "other"))
            machine.runc("delete", "--force", "other").ok()
        assert not file.parent.exists()


@pytest.mark.parametrize("trouble", ["foreign", "no-launcher", "bad-usage"])
def test_a_hook_that_cannot_do_its_work_costs_no_container(machine: Machine, trouble: str) -> None:
    bundle = _hooked(machine, "c")
    machine.state.mkdir(mode=0o777)
    if trouble == "foreign":
        machine.state.chmod(0o777)  # somebody else may write there

    def spoil(config: dict[str, Any]) -> None:
        record, cleanup = config["hooks"]["createRuntime"][0], config["hooks"]["poststop"][0]
        if trouble == "bad-usage":
            record["args"] = cleanup["args"] = ["hook", "--nonsense"]
        if trouble == "no-launcher":
            cleanup["args"] += ["--launcher", "/nonexistent"]

    bundle.edit(spoil)
    machine.start("c", bundle)
    assert _file(machine, "c").exists() == (trouble == "no-launcher")
    left = machine.state / "root" / "c"
    left.mkdir(parents=True, mode=0o700)
    machine.runc("delete", "--force", "c").ok()
    assert machine.containers() == []
    shutil.rmtree(machine.state)


def test_a_hook_ends_when_nobody_closes_its_stdin(machine: Machine) -> None:
    """Its time limit; shortened here by the signal that it sends itself."""
    read, write = os.pipe()
    process = subprocess.Popen([HOOKS / "grit-record"], stdin=read, stderr=subprocess.PIPE)
    time.sleep(0.3)
    process.send_signal(signal.SIGALRM)
    _, said = process.communicate(timeout=5)
    os.close(read)
    os.close(write)
    assert process.returncode == 0
    assert b"not done within" in said
