"""What costs time without a clock: what a restore and a capture import, and the programs that they start."""

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

_VERBS = ("restore", "checkpoint", "state", "ps", "pause", "resume", "delete", "kill", "--version", "--help")
# jsonschema with what it needs, click, NVML; what is for archives, links, CUDA, CDI specs.
_NEVER = {
    "attr", "click", "jsonschema", "psutil", "pycriu", "pynvml", "referencing", "rpds", "tarfile", "tomli_w",
    "tomllib", "traceback", "uuid", "grit_runtime.cdi.spec", "grit_runtime.cli", "grit_runtime.contents.unpack",
    "grit_runtime.cuda", "grit_runtime.workflow.cudacapture", "grit_runtime.workflow.cudarestore",
    "grit_runtime.workflow.cudastate",
}  # fmt: skip


class Programs:
    """runc and CRIU that write down how they are called."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.folder, self._record = machine.path / "programs", machine.path / "record"
        self.folder.mkdir()
        for name in ("runc", "criu"):
            file = self.folder / name
            file.write_text(f'#!/bin/sh\necho "{name} $*" >>{self._record}\nexec {shutil.which(name)} "$@"\n')
            file.chmod(0o755)
        machine.configure(downstream=str(self.folder / "runc"))

    def call(self, *args: str) -> list[str]:
        """Call us, and return the verbs of the downstream that we called, in turn."""
        self._record.write_text("")
        self.machine.grit(*args, PATH=f"{self.folder}:{os.environ['PATH']}").ok()
        calls = [line.split() for line in self._record.read_text().splitlines()]
        assert {call[1] for call in calls if call[0] == "criu"} <= {"swrk"}  # by runc
        return [next(word for word in reversed(call) if word in _VERBS) for call in calls if call[0] == "runc"]


@pytest.fixture
def programs(machine: Machine) -> Programs:
    """The programs of a machine."""
    return Programs(machine)


def _annotated(machine: Machine, images: Path) -> Bundle:
    made = machine.bundle("pod")
    made.annotate(type="container", name="app", namespace="ns", checkpoint=str(images.parent.parent))
    return made


def test_no_program_is_started_that_is_not_needed(machine: Machine, programs: Programs) -> None:
    machine.start("old", machine.bundle("old"))
    images = machine.checkpoints / "counter/app/checkpoint"
    capture = ["checkpoint", "--image-path", str(images)]
    assert programs.call(*capture, "--leave-running", "old") == [
        "state", "pause", "--version", "checkpoint", "resume",
    ]  # fmt: skip
    shutil.rmtree(images)
    machine.runc("pause", "old").ok()  # as containerd does
    assert programs.call(*capture, "--leave-running", "old") == ["state", "--version", "checkpoint"]
    assert machine.status("old") == "paused"
    shutil.rmtree(images)
    assert programs.call(*capture, "old") == ["state", "--version", "checkpoint", "delete"]

    new = machine.bundle("new")
    assert programs.call("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), "new") == [
        "restore",
    ]  # fmt: skip
    machine.counts(new)
    pod = _annotated(machine, images)
    assert programs.call("create", "--bundle", str(pod.path), "pod") == ["restore"]
    assert programs.call("start", "pod") == ["state"]
    machine.counts(pod)


@pytest.mark.parametrize("verb", ["restore", "create", "checkpoint"])
def test_nothing_is_imported_that_is_not_needed(machine: Machine, verb: str) -> None:
    machine.start("old", machine.bundle("old"))
    images, listed = machine.checkpoints / "counter/app/checkpoint", machine.path / "modules"
    more = {"GRIT_TEST_MODULES": str(listed)}
    machine.grit("checkpoint", "--image-path", str(images), "old", **more).ok()
    if verb == "restore":
        new = machine.bundle("new")
        machine.grit("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), "new", **more).ok()
    elif verb == "create":
        machine.grit("create", "--bundle", str(_annotated(machine, images).path), "pod", **more).ok()
        machine.grit("delete", "--force", "pod").ok()
    imported = dict(line.split("\t") for line in listed.read_text().splitlines())
    assert not imported.keys() & _NEVER
    installed = {name.partition(".")[0] for name, file in imported.items() if "/site-packages/" in file}
    assert installed - {"_distutils_hack"} <= {"yaml", "_yaml", "google", "xxhash"}
    assert len([name for name in imported if name.endswith("_pb2")]) <= (0 if verb == "checkpoint" else 60)
