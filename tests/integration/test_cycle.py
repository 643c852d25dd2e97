"""A container is checkpointed and comes back as another one: real runc, real CRIU."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.host import effects
from tests.integration.machine import Bundle, Machine, tree

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def _checkpoint(machine: Machine, *flags: str, name: str = "old") -> Path:
    images = machine.checkpoints / "ns/first/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(images), *flags, name).ok()
    return images


def _annotated(machine: Machine, name: str = "new") -> Bundle:
    bundle = machine.bundle(name)
    bundle.annotate(type="container", name="app", namespace="ns", checkpoint=str(machine.checkpoints / "ns/first"))
    return bundle


def test_a_container_comes_back_with_new_sources_and_goes_on_from_where_it_was(machine: Machine) -> None:
    old = machine.bundle("old", "cat /etc/hostname /var/run/secrets/token/token > /data/seen; " + _COUNT_AND_LOOK)
    machine.start("old", old)
    images = _checkpoint(machine)
    assert machine.containers() == []
    last = old.numbers()[-1]
    old.path.rename(machine.path / "gone")

    new = machine.bundle("new")
    machine.grit("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), "new").ok()

    machine.counts(new)
    assert new.numbers()[0] == last + 1
    (new.data / "ask").touch()
    machine.wait(lambda: (new.data / "look").exists() and (new.data / "look").read_text() == "new\ntoken of new\n")
    assert machine.state.exists() is False or list(machine.state.iterdir()) == []


_COUNT_AND_LOOK = (
    "i=0; while :; do i=$((i+1)); echo $i >> /data/out;"
    " [ -e /data/ask ] && cat /etc/hostname /var/run/secrets/token/token > /data/look; sleep 0.02; done"
)


def test_leave_running_leaves_it_running_with_no_number_lost(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    images = _checkpoint(machine, "--leave-running")
    assert machine.status("old") == "running"
    machine.counts(old)
    assert (images / "grit.json").exists()


def test_a_container_that_the_caller_paused_stays_paused_and_resumes(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    machine.runc("pause", "old").ok()
    images = _checkpoint(machine, "--leave-running")
    assert machine.status("old") == "paused"
    machine.runc("resume", "old").ok()
    machine.counts(old)
    new = machine.bundle("new")
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(new.path), "new").ok()
    machine.counts(new)


def test_a_paused_container_is_gone_after_a_checkpoint_without_leave_running(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    machine.runc("pause", "old").ok()
    _checkpoint(machine)
    assert machine.containers() == []


def test_the_manifest_says_what_a_restore_needs(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    images = _checkpoint(machine)
    manifest = json.loads((images / "grit.json").read_text())
    assert manifest["format"] == 1
    assert manifest["container"]["id"] == "old"
    assert manifest["spec"] == old.config()
    assert manifest["versions"]["kernel"] == os.uname().release
    assert manifest["versions"]["criu"]
    assert manifest["versions"]["downstream"]["version"].startswith("runc version")
    assert manifest["machine"]["architecture"] == os.uname().machine
    assert manifest["machine"]["cpu"]["flags"]
    assert {"/data", "/etc/hostname"} <= {mount["destination"] for mount in manifest["mounts"]}
    assert manifest["namespaces"]["net"].startswith("net:[")
    first = next(process for process in manifest["processes"] if process["pid"] == 1)
    assert first["command"][0] == "/bin/sh"
    sizes = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
    assert sizes == {f.name: f.stat().st_size for f in images.iterdir() if f.name != "grit.json"}
    assert manifest["bytes"] == sum(sizes.values())
    assert set(manifest["seconds"]) == {"freeze", "dump", "flush"}


def test_plain_runc_restores_what_we_wrote_and_we_restore_what_plain_runc_wrote(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    ours = _checkpoint(machine)
    node = effects.cgroup_options()
    new = machine.bundle("new")
    work = str(machine.path / "work")
    machine.runc("restore", "-d", "--image-path", str(ours), "--work-path", work, "--bundle", str(new.path), "new").ok()
    machine.counts(new)
    theirs = machine.path / "theirs"
    machine.start("other", machine.bundle("other"))
    machine.runc("checkpoint", "--image-path", str(theirs), "other").ok()
    # What plain runc and CRIU do on cgroup v2 isn't what is tested here: to the node's cgroup2 mount, and (before runc
    # 1.2) a restore into the old container's cgroup, which nobody removes then.
    for effect in node:
        effect.undo()
    machine.runc("delete", "--force", "new").ok()
    machine.wait(lambda: all(_removed(p) for b in (old, new) for p in b.cgroups()))
    third = machine.bundle("third")
    machine.grit("restore", "-d", "--image-path", str(theirs), "--bundle", str(third.path), "third").ok()
    machine.counts(third)


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True


def test_a_restore_writes_nothing_into_the_checkpoint_nor_the_bundle(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    images = _checkpoint(machine)
    new = machine.bundle("new")
    before, config = tree(images), new.config()
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(new.path), "new").ok()
    assert tree(images) == before
    assert new.config() == config
    assert sorted(p.name for p in new.path.iterdir()) == ["config.json", "pods", "rootfs", "sandboxes"]


def test_a_second_checkpoint_replaces_the_first(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    images = _checkpoint(machine, "--leave-running")
    first = json.loads((images / "grit.json").read_text())["created"], old.numbers()[-1]
    (images / "pages-99.img").write_text("of no checkpoint")
    machine.counts(old)
    _checkpoint(machine)
    assert (images / "pages-99.img").exists(), "a file that the manifest doesn't list isn't ours to remove"
    new = machine.bundle("new")
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(new.path), "new").ok()
    machine.counts(new)
    assert new.numbers()[0] == old.numbers()[-1] + 1 > first[1]


def test_three_generations(machine: Machine) -> None:
    bundle = machine.bundle("g0")
    machine.start("g0", bundle)
    for generation in range(1, 4):
        images = machine.checkpoints / f"generation-{generation}"
        machine.grit("checkpoint", "--image-path", str(images), f"g{generation - 1}").ok()
        last = bundle.numbers()[-1]
        bundle = machine.bundle(f"g{generation}")
        name = f"g{generation}"
        machine.grit("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), name).ok()
        machine.counts(bundle)
        assert bundle.numbers()[0] == last + 1


def test_create_restores_by_annotation_and_user_code_waits_for_start(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    _checkpoint(machine)
    new = _annotated(machine)
    pid_file = machine.path / "init.pid"
    machine.grit("create", "--bundle", str(new.path), "--pid-file", str(pid_file), "new").ok()
    pid = int(pid_file.read_text())
    assert pid_file.read_text() == str(pid)
    time.sleep(0.2)
    assert new.numbers() == []
    assert json.loads(machine.grit("state", "new").ok().out)["status"] == "created"
    assert json.loads(machine.grit("state", "new").ok().out)["pid"] == pid
    machine.grit("exec", "new", "/bin/true").ok()
    assert new.numbers() == []
    machine.grit("start", "new").ok()
    machine.counts(new)
    assert new.numbers()[0] == old.numbers()[-1] + 1
    assert json.loads(machine.grit("state", "new").ok().out)["status"] == "running"
    again = machine.grit("start", "new")
    assert again.code == 1
    assert "cannot start an already running container" in again.err
    machine.grit("kill", "new", "KILL").ok()
    machine.wait(lambda: machine.status("new") == "stopped")
    machine.grit("delete", "new").ok()
    assert machine.containers() == []


def test_create_restores_by_name(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    _checkpoint(machine)
    new = machine.bundle("new")
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    machine.grit("start", "new").ok()
    machine.counts(new)


@pytest.mark.parametrize("how", ["delete", "force", "kill-term"])
def test_a_created_container_can_be_ended_before_its_code_runs(machine: Machine, how: str) -> None:
    machine.start("old", machine.bundle("old"))
    _checkpoint(machine)
    new = _annotated(machine)
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    if how == "kill-term":
        machine.grit("kill", "new", "TERM").ok()
        machine.wait(lambda: machine.status("new") == "stopped")
        failed = machine.grit("start", "new")
        assert failed.code == 1
        assert "stopped" in failed.err
    machine.grit("delete", *(["--force"] if how == "force" else []), "new").ok()
    assert machine.containers() == []
    assert new.numbers() == []


def test_the_sandbox_of_an_annotated_pod_starts_as_ever(machine: Machine) -> None:
    sandbox = machine.bundle("sandbox")
    sandbox.annotate(type="sandbox", checkpoint=str(machine.checkpoints / "no/such"))
    machine.grit("create", "--bundle", str(sandbox.path), "sandbox").ok()
    machine.grit("start", "sandbox").ok()
    machine.counts(sandbox)
    assert sandbox.numbers()[0] == 1


def test_the_foreground_restore_has_the_containers_exit_code(machine: Machine) -> None:
    script = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i >> /data/out; sleep 0.02; done"
    machine.start("old", machine.bundle("old", script))
    images = _checkpoint(machine)
    new = machine.bundle("new", script)
    pid = os.fork()
    if pid == 0:
        ran = machine.grit("restore", "--image-path", str(images), "-b", str(new.path), "new")
        os._exit(ran.code)
    machine.wait(lambda: len(new.numbers()) > 3)
    machine.runc("kill", "new", "TERM").ok()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert machine.containers() == []


@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_terminal_comes_back_through_the_console_socket(machine: Machine, verb: str) -> None:
    script = "trap 'echo signalled' USR1; i=0; while :; do i=$((i+1)); echo $i; echo $i >> /data/out; sleep 0.02; done"
    old, new = machine.bundle("old", script), _annotated(machine)
    for bundle in (old, new):
        bundle.edit(lambda c: c["process"].update(terminal=True))
    with console(machine.path / "old.sock") as terminal:
        machine.runc("run", "-d", "--console-socket", str(machine.path / "old.sock"), "-b", str(old.path), "old").ok()
        machine.wait(lambda: b"5" in terminal())
        images = _checkpoint(machine)
    last = old.numbers()[-1]
    with console(machine.path / "new.sock") as terminal:
        console_socket = ("--console-socket", str(machine.path / "new.sock"))
        flags = ("-d", "--image-path", str(images)) if verb == "restore" else ()
        machine.grit(verb, *flags, *console_socket, "--bundle", str(new.path), "new").ok()
        if verb == "create":
            machine.grit("start", "new").ok()
        machine.wait(lambda: str(last + 5).encode() in terminal())
        machine.grit("kill", "new", "USR1").ok()
        machine.wait(lambda: b"signalled" in terminal())
        machine.grit("delete", "--force", "new").ok()


@contextmanager
def console(path: Path) -> Iterator[Callable[[], bytes]]:
    """Listen for a terminal as an engine does (runc, docs/terminals.md); yields what has been written to it so far."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    seen = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        _, (fd, *_), _, _ = socket.recv_fds(connection, 1024, 1)
        while True:
            try:
                seen.extend(os.read(fd, 4096))
            except OSError:
                os.close(fd)
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield lambda: bytes(seen)
    listener.close()


def test_the_users_criu_configuration_is_merged(machine: Machine) -> None:
    machine.start("old", machine.bundle("old"))
    images = _checkpoint(machine)
    new = machine.bundle("new")
    users = machine.path / "users.conf"
    users.write_text("log-file users-name.log\n")
    new.edit(lambda c: c.setdefault("annotations", {}).update({"org.criu.config": str(users)}))
    work = machine.path / "work"
    machine.grit(
        "restore", "-d", "--image-path", str(images), "--work-path", str(work), "-b", str(new.path), "new"
    ).ok()
    machine.counts(new)
    assert (work / "users-name.log").exists()
    assert new.config()["annotations"] == {"org.criu.config": str(users)}


def test_a_signal_to_the_runtime_undoes_what_was_begun(machine: Machine) -> None:
    old = machine.bundle("old")
    machine.start("old", old)
    pid = os.fork()
    if pid == 0:
        os._exit(machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "x"), "old").code)
    machine.wait_for_effect("programs")
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    machine.counts(old)
    assert not (machine.checkpoints / "x").exists()
