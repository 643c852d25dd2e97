"""A reboot between checkpoint and restore, and at every step of both.

The journal, on tmpfs, is gone with all processes, mounts and cgroups; what lies on disk is recognised.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from grit_runtime import names
from tests.integration.machine import Machine
from tests.integration.test_kill import _killed, _steps

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox"), pytest.mark.timeout(300)]


def _reboot(machine: Machine) -> None:
    """Take away what a reboot does."""
    machine.clean()
    for place in (machine.state, machine.root):
        shutil.rmtree(place, ignore_errors=True)
    for link in [path for path in machine.checkpoints.rglob("*") if path.name == names.WRITER]:
        node, _, _ = os.readlink(link).rpartition("/")
        link.unlink()
        link.symlink_to(f"{node}/the-boot-before")

    for partial in machine.checkpoints.rglob(names.PARTIAL):
        os.utime(partial, (0, 0))


def _state(machine: Machine) -> list[str]:
    return [entry["state"] for entry in json.loads(machine.grit("checkpoints", "--json").ok().out)["checkpoints"]]


@pytest.mark.parametrize("older", [False, True], ids=["first", "replaces-another"])
def test_a_reboot_at_any_step_of_a_capture(machine: Machine, older: bool) -> None:
    bundle = machine.bundle("c")
    machine.start("c", bundle)
    images = machine.checkpoints / "ns/first/app/checkpoint"
    args = ("checkpoint", "--leave-running", "--image-path", str(images), "c")
    _steps(machine, *args)
    if not older:
        shutil.rmtree(images)
    steps = _steps(machine, *args)  # the first one made the directories above, too
    finished = 0
    few = range(6 if older else 4, steps - 16, 6)  # `test_kill` has every one of them
    for step in (*few, *range(steps - 15 | 1, steps + 1, 2)):
        if not older:
            shutil.rmtree(images, ignore_errors=True)
        if not machine.containers():
            (bundle.data / "out").write_text("")
            machine.start("c", bundle)
        if not _killed(machine, step, *args):
            continue
        _reboot(machine)
        partial = (images / names.PARTIAL).exists()
        if partial and step % 2:
            said = machine.grit("recover").ok().out
            assert f"{images}: " in said, step
            finished += "is finished now" in said
            assert not (images / names.PARTIAL).exists(), step
            assert _state(machine) in ([], ["complete"], ["incomplete"]), step
            assert not older or _state(machine) == ["complete"], step
        else:
            # the next capture puts it right by itself
            (bundle.data / "out").write_text("")
            machine.start("c", bundle)
            machine.grit(*args).ok()
            assert _state(machine) == ["complete"], step
    assert finished
    machine.clean()
    new = machine.bundle("new")
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(new.path), "new").ok()
    machine.counts(new)


def test_what_another_machine_writes_or_this_boot_is_left_alone(machine: Machine) -> None:
    images = machine.checkpoints / "ns/first/app/checkpoint"
    partial = images / names.PARTIAL
    partial.mkdir(parents=True, mode=0o700)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = Path("/etc/machine-id").read_text().strip()
    machine.start("c", machine.bundle("c"))
    writers = (f"{own}/{os.uname().nodename}/{boot}", f"another/{os.uname().nodename}/b", f"{own}/another-node/b")
    for writer in writers:
        (partial / names.WRITER).symlink_to(writer)
        assert machine.grit("recover").ok().out == ""
        ran = machine.grit("checkpoint", "--image-path", str(images), "c")
        assert "another checkpoint into this directory was begun" in ran.err
        (partial / names.WRITER).unlink()
    (partial / names.WRITER).symlink_to(f"{own}/{os.uname().nodename}/b")
    partial.chmod(0o777)
    assert machine.grit("recover").ok().out == ""
    partial.chmod(0o700)
    assert machine.grit("recover").ok().out == f"{images}: an unfinished dump was removed\n"
    assert list(images.iterdir()) == []


def test_an_archive_that_was_unpacked_for_a_restore_before_a_reboot_is_removed(machine: Machine) -> None:
    place = machine.unpacked / f"{str(machine.root).strip('/').replace('/', '-')}!c"
    (place / "checkpoint").mkdir(parents=True)
    assert machine.grit("recover").ok().out == f"{place}: removed, no restore needs it\n"
    assert list(machine.unpacked.iterdir()) == []
    assert not machine.state.exists() or not list(machine.state.rglob("c"))


@pytest.mark.parametrize("step", range(3, 60, 8))
def test_a_reboot_at_a_step_of_a_restore_leaves_the_checkpoint_as_it_is(machine: Machine, step: int) -> None:
    machine.start("old", machine.bundle("old"))
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    new = machine.bundle("new")
    args = ("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    if not _killed(machine, step, *args):
        return
    machine.grit("recover").ok()  # processes and mounts, as a reboot has it; then what is on tmpfs
    _reboot(machine)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    again = machine.bundle("again")  # of a new pod, as kubelet makes one
    machine.grit(*args[:-2], str(again.path), "again").ok()
    machine.counts(again)
