"""Memory filled behind a container that runs: whatever it does meanwhile, it never sees anything but its own memory."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import Bundle, Machine
from tests.integration.surroundings import Situation

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "cc", "userfaultfd"), pytest.mark.timeout(120)]


class Behind(Situation):
    """A situation whose restore fills behind it, slowly."""

    def __init__(self, machine: Machine, name: str) -> None:
        super().__init__(machine, name)
        machine.configure(memory={"fill": "behind"})
        self.start()
        self.checkpoint()
        self.new = self.bundle("new")
        self.bring(self.new)

    def begin(self, slow: str = "0.01", *more: str) -> None:
        """Restore."""
        argv = ["restore", "-d", "--image-path", str(self.images), "-b", str(self.new.path), *more, "new"]
        self.machine.grit(*argv, GRIT_TEST_SLOW_BEHIND=slow).ok()

    def is_filling(self) -> bool:
        return any(self.machine.state.glob(".filling*"))

    def workers(self) -> dict[str, int]:
        """The processes that fill, by their names."""
        found = {}
        for word in os.listdir("/proc"):
            try:
                name = Path(f"/proc/{word}/comm").read_text().strip() if word.isdigit() else ""
                if name.startswith("grit-") and str(self.machine.path).encode() in _environment(int(word)):
                    found[name] = int(word)
            except OSError:
                continue
        return found

    def record(self) -> dict[str, Any]:
        """What was recorded of the filling, once it is over."""
        self.machine.wait(lambda: not self.is_filling() and not self.workers(), 60)
        (path,) = (self.machine.logs / "operations").glob("*-fill-new.json")
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _good(answer: list[str]) -> None:
    assert answer
    assert [line for line in answer if not line.startswith("ok ")] == []


def _rounds(bundle: Bundle, name: str) -> int:
    file = bundle.data / name
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_whatever_a_process_does_it_sees_its_own_memory(machine: Machine) -> None:
    situation = Behind(machine, "behind-everything")
    (situation.new.data / "go").touch()
    situation.begin("0.002")
    answer = situation.new.data / "answer"
    assert not answer.exists() or not answer.read_text().endswith("end\n")
    assert situation.is_filling()
    machine.wait(lambda: answer.exists() and answer.read_text().endswith("end\n"), 60)
    _good(answer.read_text().splitlines()[:-1])
    assert situation.record()["outcome"] == "ok"
    assert "MiB of memory are filled while it runs" in (machine.path / "log.json").read_text()


@pytest.mark.parametrize("program", ["memory-kinds", "memory-inherited", "memory-threads", "memory-segments"])
def test_every_byte_is_what_it_was(machine: Machine, program: str) -> None:
    situation = Behind(machine, program)
    situation.begin("0")
    _good(situation.answer(situation.new))
    if program != "memory-inherited":
        assert situation.record()["outcome"] == "ok"


def test_a_container_that_waits_for_its_start_is_filled_meanwhile(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    situation.new.annotate(checkpoint=str(situation.images.parent.parent), name="app", type="container")
    machine.grit("create", "--bundle", str(situation.new.path), "new", GRIT_TEST_SLOW_BEHIND="0.002").ok()
    assert situation.is_filling()
    assert situation.record()["outcome"] == "ok"
    machine.grit("start", "new").ok()
    _good(situation.answer(situation.new))


def test_a_checkpoint_waits_until_all_is_there(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    situation.begin()
    assert situation.is_filling()
    again = machine.checkpoints / "again"
    machine.grit("checkpoint", "--image-path", str(again), "new").ok()
    assert situation.record()["outcome"] == "ok"
    third = situation.bundle("third")
    shutil.copytree(situation.new.data, third.data, dirs_exist_ok=True)
    machine.configure()
    machine.grit("restore", "-d", "--image-path", str(again), "-b", str(third.path), "third").ok()
    _good(situation.answer(third))


def test_a_checkpoint_does_not_wait_for_ever(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    situation.begin("0.1")
    machine.configure(timeouts={"checkpoint": 1})
    failed = machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "again"), "new")
    assert failed.code != 0
    assert "cannot checkpoint container new: its memory is still being filled" in failed.err
    assert machine.status("new") == "running"
    machine.grit("kill", "new", "KILL").ok()
    situation.record()


def test_a_container_that_is_killed_meanwhile_leaves_nobody(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    situation.begin("0.05")
    assert situation.workers().keys() == {"grit-filler", "grit-watcher"}
    machine.grit("delete", "--force", "new").ok()
    begun = time.monotonic()
    situation.record()
    assert time.monotonic() - begun < 5


def test_a_frozen_container_is_filled(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    situation.begin()
    machine.runc("pause", "new").ok()
    assert situation.is_filling()
    assert situation.record()["outcome"] == "ok"
    machine.runc("resume", "new").ok()
    _good(situation.answer(situation.new))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_filler_that_is_killed_costs_the_container_and_never_its_memory(machine: Machine, frozen: bool) -> None:
    situation = Behind(machine, "behind-reader")
    (situation.new.data / "go").touch()
    situation.begin()
    if frozen:
        machine.runc("pause", "new").ok()
    os.kill(situation.workers()["grit-filler"], signal.SIGKILL)
    record = situation.record()
    assert record["outcome"] == "failed"
    assert "the process that filled its memory was killed" in record["error"]
    assert machine.status("new") == "stopped"
    assert not (situation.new.data / "answer").exists()  # which says what was wrong
    assert _rounds(situation.new, "parent") + _rounds(situation.new, "child") == 0


def test_a_watcher_that_is_killed_gets_a_successor(machine: Machine) -> None:
    situation = Behind(machine, "behind-reader")
    (situation.new.data / "go").touch()
    situation.begin()
    first = situation.workers()["grit-watcher"]
    os.kill(first, signal.SIGKILL)
    machine.wait(lambda: situation.workers().get("grit-watcher", first) != first)
    assert situation.record()["outcome"] == "ok"
    machine.wait(lambda: _rounds(situation.new, "parent") > 1 and _rounds(situation.new, "child") > 1, 30)
    assert not (situation.new.data / "answer").exists()


@pytest.mark.parametrize("damage", ["a wrong bit", "cut"])
def test_a_damaged_image_costs_the_container(machine: Machine, damage: str) -> None:
    situation = Behind(machine, "behind-reader")
    (situation.new.data / "go").touch()
    pages = max(situation.images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    whole = pages.stat().st_size
    if damage == "a wrong bit":
        with pages.open("r+b") as stream:
            stream.seek(whole - 4096)
            byte = stream.read(1)[0]
            stream.seek(whole - 4096)
            stream.write(bytes([byte ^ 1]))
    situation.begin()
    if damage == "cut":
        os.truncate(pages, whole // 2)
    record = situation.record()
    assert record["outcome"] == "failed"
    assert str(pages) in record["error"]
    assert ("is not what it was" if damage == "a wrong bit" else "is shorter than its pagemap says") in record["error"]
    assert machine.status("new") == "stopped"
    assert not (situation.new.data / "answer").exists()
    assert _rounds(situation.new, "parent") + _rounds(situation.new, "child") == 0


def test_what_goes_on_has_nothing_of_the_call(machine: Machine) -> None:
    situation = Behind(machine, "memory-threads")
    argv = machine.argv("restore", "-d", "--image-path", str(situation.images), "-b", str(situation.new.path), "new")
    environment = {**machine.environment(), "GRIT_TEST_SLOW_BEHIND": "0.05"}
    process = subprocess.Popen(
        argv, env=environment, cwd=machine.path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.wait(60) == 0
    assert situation.is_filling()
    for pid in situation.workers().values():
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        kinds = ("/dev/null", "anon_inode:[userfaultfd]", "anon_inode:[pidfd]", "anon_inode:[eventpoll]")
        rest = {name for name in opened if name not in kinds and not name.startswith("pidfd:")}
        assert all(
            name.startswith((str(situation.images / "pages-"), str(machine.state / ".filling"))) for name in rest
        )
        os.kill(pid, signal.SIGTERM)
    _good(situation.answer(situation.new))
    assert situation.record()["outcome"] == "ok"
