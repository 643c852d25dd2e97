"""SIGKILL at steps of the commands that name checkpoints: what is listed as complete is whole, a second call works."""

import json
import shutil
from pathlib import Path

import pytest

from grit_runtime.checkpoint import integrity, manifest
from tests.integration.machine import Machine
from tests.integration.test_byhand import _pod
from tests.integration.test_kill import _killed, _steps

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox"), pytest.mark.timeout(120)]


def _complete(machine: Machine) -> list[Path]:
    """The checkpoints that are listed as complete; every byte of them is what it was."""
    listed = json.loads(machine.grit("checkpoints", "--json").ok().out)["checkpoints"]
    found = [Path(each["path"]) / "checkpoint" for each in listed if each["state"] == "complete"]
    for images in found:
        document = manifest.read(str(images))
        assert document
        integrity.require(str(images), document.sizes, integrity.recorded(document.data, str(images)), 1)
    return found


def test_a_prune_killed_at_any_step_leaves_whole_checkpoints_or_none(machine: Machine) -> None:
    machine.start("c", _pod(machine, "c"))
    machine.grit("capture", "--name", "kept", "c").ok()
    first = _complete(machine)[0].parent.parent
    shutil.copytree(first, machine.path / "copy")

    def again() -> None:
        for name in ("kept", "a", "b"):
            if not (first.parent / name).exists():
                shutil.copytree(machine.path / "copy", first.parent / name)

    again()
    steps = _steps(machine, "prune", "--keep", "1")
    assert len(_complete(machine)) == 1
    killed = 0
    for step in range(1, steps + 1):
        again()
        killed += _killed(machine, step, "prune", "--keep", "1")
        assert _complete(machine), step
        machine.grit("prune", "--keep", "1").ok()
        assert len(_complete(machine)) == 1, step
        assert list(machine.checkpoints.rglob(".grit-*")) == [], step
    assert killed >= 3


def test_a_replacing_capture_killed_on_the_way_leaves_the_old_or_the_new(machine: Machine) -> None:
    bundle = _pod(machine, "c")
    machine.start("c", bundle)
    args = ("capture", "--name", "x", "--replace", "c")
    machine.grit("capture", "--name", "x", "c").ok()
    steps = _steps(machine, *args)
    for step in range(3, steps + 1, 7):
        _killed(machine, step, *args)
        machine.grit("recover").ok()
        assert len(_complete(machine)) == 1, step
        machine.counts(bundle)
    assert machine.leftovers() == []


def test_a_restore_into_killed_on_the_way_leaves_nothing(machine: Machine) -> None:
    machine.start("old", _pod(machine, "old"))
    machine.grit("capture", "--name", "x", "--stop", "old").ok()
    new = _pod(machine, "new")
    args = ("restore-into", "--name", "x", str(new.path), "new")
    steps = _steps(machine, *args)
    machine.grit("delete", "--force", "new").ok()
    for step in range(2, steps, 9):
        (new.data / "out").write_text("")
        assert _killed(machine, step, *args)
        machine.grit("recover").ok()
        if machine.status("new") == "running":
            machine.grit("delete", "--force", "new").ok()
        assert machine.containers() == [], step
        assert machine.leftovers() == [], step
    (new.data / "out").write_text("")
    machine.grit(*args).ok()
    machine.counts(new)
