"""Power loss at any write of a capture: what is on disk then is refused, or whole; and nothing that was there is lost.

The calls are real, with real runc and CRIU; the disk is a model (`powerloss`).
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from grit_runtime import names
from grit_runtime.checkpoint import integrity, kinds, manifest
from grit_runtime.errors import CheckpointError
from grit_runtime.workflow import interrupted
from tests.integration import powerloss
from tests.integration.machine import Machine
from tests.integration.powerloss import Disk, Outcome

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "strace"), pytest.mark.timeout(300)]

_ENOUGH = 100  # different outcomes of one capture; it has some hundred


def _is_whole(images: Path) -> bool:
    """Whether a restore by hand, which asks for least, would take what is there. If so, it must be what was written.

    A name that isn't there, or whose directory holds nothing, is no checkpoint at all.
    """
    try:
        found = kinds.find(str(images))
        document = manifest.read(found.images)
    except CheckpointError:
        return False
    if document is None:
        assert manifest.is_unfinished(found.images), f"taken for plain images: {sorted(os.listdir(images))}"
        return False
    sums = integrity.recorded(document.data, str(images))
    assert set(sums) == set(document.sizes)
    integrity.require(str(images), document.sizes, sums, 1)
    return True


class Recording:
    """A capture's system calls, replayed on a model of the disk."""

    def __init__(self, machine: Machine, *args: str) -> None:
        copies, log = machine.path / "copies", machine.path / "strace"
        copies.mkdir()
        self.machine = machine
        self.disk = Disk(machine.checkpoints, copies)
        done = powerloss.record(machine.argv(*args), machine.environment(), machine.path, log)
        assert done.returncode == 0, (machine.path / "log.json").read_text()
        self.killing: list[Outcome] = []
        """What there may be when the container is killed."""
        self.outcomes = list(self._replayed(log))
        self.disk.collect()

    def _replayed(self, log: Path) -> Iterator[Outcome]:
        seen = set[tuple[tuple[str, str], ...]]()
        for event in powerloss.with_untraced(powerloss.events(log, self.machine.checkpoints)):
            if event.call == "kill" and not self.killing:
                self.killing = [*self.disk.outcomes()]
            self.disk.apply(event)
            for outcome in self.disk.outcomes():
                if outcome.entries not in seen:
                    seen.add(outcome.entries)
                    yield outcome
        self.end = [*self.disk.outcomes()]

    def made(self, outcome: Outcome) -> Path:
        place = self.machine.path / "crashed"
        shutil.rmtree(place, ignore_errors=True)
        outcome.make(place)
        return place


def _reboot(images: Path) -> None:
    """Have what was written be another boot's."""
    link = images / names.PARTIAL / names.WRITER
    if link.is_symlink():
        machine, _, _ = os.readlink(link).rpartition("/")
        link.unlink()
        link.symlink_to(f"{machine}/another-boot")
    if link.parent.is_dir():
        os.utime(link.parent, (0, 0))


@pytest.fixture(autouse=True)
def _no_crashed_disk(machine: Machine) -> Iterator[None]:
    """A disk after a power loss holds what a machine may not."""
    yield
    shutil.rmtree(machine.path / "crashed", ignore_errors=True)


@pytest.mark.parametrize("older", [False, True], ids=["first", "replaces-another"])
def test_power_loss_at_any_write_of_a_capture(machine: Machine, older: bool) -> None:
    bundle = machine.bundle("c")
    machine.start("c", bundle)
    images = machine.checkpoints / "ns/first/app/checkpoint"
    if older:
        machine.grit("checkpoint", "--leave-running", "--image-path", str(images), "c").ok()
    recorded = Recording(machine, "checkpoint", "--image-path", str(images), "c")
    assert len(recorded.outcomes) > _ENOUGH
    whole = 0
    for number, outcome in enumerate(recorded.outcomes):
        place = recorded.made(outcome) / "ns/first/app/checkpoint"
        before = _is_whole(place)
        _reboot(place)
        interrupted.settle(str(place))
        after = _is_whole(place)
        assert after >= before, f"outcome {number}, {outcome.word}: lost when it was put right"
        assert after or not older, f"outcome {number}, {outcome.word}: neither the old checkpoint nor the new"
        assert not (place / names.PARTIAL / names.MANIFEST).exists(), f"outcome {number}, {outcome.word}: unsettled"
        whole += after
    assert whole
    assert recorded.killing
    for outcome in recorded.killing + recorded.end:
        place = recorded.made(outcome) / "ns/first/app/checkpoint"
        assert _is_whole(place), f"the container is gone, and its checkpoint may be, too: {outcome.word}"
        wanted = json.loads((images / names.MANIFEST).read_text())["created"]
        assert json.loads((place / names.MANIFEST).read_text())["created"] == wanted
    print(f"{len(recorded.outcomes)} outcomes, {whole} of them whole")


def test_power_loss_at_any_write_of_an_export(machine: Machine) -> None:
    machine.start("c", machine.bundle("c"))
    images, target = machine.path / "images", machine.checkpoints / "c.tar"
    machine.grit("checkpoint", "--image-path", str(images), "c").ok()
    recorded = Recording(machine, "export", str(images), str(target))
    for outcome in recorded.outcomes:
        made = recorded.made(outcome) / "c.tar"
        assert not made.exists() or made.read_bytes() == target.read_bytes(), outcome.word
    for outcome in recorded.end:
        assert (recorded.made(outcome) / "c.tar").exists(), outcome.word
