"""What a process holds open: deleted files, locks, watches, and descriptors that are no files."""

import re
from typing import Any

import pytest

from tests.integration.machine import Machine
from tests.integration.surroundings import Situation, all_ok

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox", "cc")


@pytest.mark.parametrize("where", ["rootfs", "bind-mount", "tmpfs"])
def test_a_deleted_file_of_five_mebibytes_that_is_open_comes_back(machine: Machine, where: str) -> None:
    assert all_ok(Situation(machine, f"deleted-in-{where}").travel())


def test_a_deleted_file_above_the_configured_limit_is_refused_with_what_to_set(machine: Machine) -> None:
    machine.configure(criu={"dump": {"ghost-limit": "1M"}})
    said = Situation(machine, "deleted-in-rootfs").cannot_be_dumped()
    assert "ghost" in said
    assert "raise ghost-limit" in said
    assert "`grit-runtime diagnose` reads it" in said
    found = machine.grit("diagnose").ok().out
    assert "1. ghost-file: " in found, found
    assert re.search(r"-dump\.log:\d+: \(.*ghost", found)
    (log,) = machine.logs.glob("*.log")
    (machine.path / "work").mkdir()
    (machine.path / "work/dump.log").write_bytes(log.read_bytes())
    container = log.name.removesuffix("-dump.log").partition("Z-")[2]
    for words in ([container], [str(machine.path / "work")], ["--images", str(machine.path), str(log)]):
        assert "1. ghost-file: " in machine.grit("diagnose", *words).ok().out, words


def test_the_configured_timeout_reaches_criu_and_not_its_ten_seconds(machine: Machine) -> None:
    machine.configure(criu={"dump": {"timeout": 77}})
    situation = Situation(machine, "threads")
    situation.start()
    situation.checkpoint()
    text = (situation.images / "dump.log").read_text()
    assert re.search(r"freezing cgroup .* timeout: 77s", text)


def test_flock_posix_and_open_file_description_locks_are_held_again(machine: Machine) -> None:
    assert all_ok(Situation(machine, "locks").travel())


def test_file_locks_that_the_configuration_leaves_out_are_refused_with_what_to_set(machine: Machine) -> None:
    machine.configure(criu={"dump": {"file-locks": False}, "restore": {"file-locks": False}})
    assert "set file-locks: true" in Situation(machine, "locks").cannot_be_dumped()


@pytest.mark.parametrize("where", ["rootfs", "tmpfs", "bind-mount"])
def test_an_inotify_watch_reports_what_happens_in_the_new_container(machine: Machine, where: str) -> None:
    assert all_ok(Situation(machine, f"inotify-{where}").travel())


def test_a_watch_on_a_deleted_file(machine: Machine) -> None:
    assert all_ok(Situation(machine, "inotify-deleted").travel())


def test_a_fanotify_mark_reports_what_happens_in_the_new_container(machine: Machine) -> None:
    def allow(config: dict[str, Any]) -> None:
        for kind in ("bounding", "effective", "permitted"):
            config["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")

    assert all_ok(Situation(machine, "fanotify", allow).travel())


def test_eventfd_timerfd_and_signalfd_come_back_in_their_epoll_set(machine: Machine) -> None:
    assert all_ok(Situation(machine, "descriptors").travel())


def test_a_pidfd_refers_to_its_process_again(machine: Machine) -> None:
    assert all_ok(Situation(machine, "pidfd").travel())


def test_a_memfd_and_its_shared_mapping_come_back(machine: Machine) -> None:
    assert all_ok(Situation(machine, "memfd").travel())


def test_a_process_with_an_io_uring_is_refused_by_name(machine: Machine) -> None:
    assert "io_uring" in Situation(machine, "io-uring").cannot_be_dumped()


@pytest.mark.parametrize("where", ["rootfs", "bind-mount"])
def test_an_open_file_whose_name_was_deleted_while_another_is_left_comes_back(machine: Machine, where: str) -> None:
    assert all_ok(Situation(machine, f"linked-in-{where}").travel())


@pytest.mark.parametrize("where", ["rootfs", "bind-mount"])
def test_a_container_that_runs_on_keeps_no_name_of_crius(machine: Machine, where: str) -> None:
    situation = Situation(machine, f"linked-in-{where}")
    situation.start()
    machine.grit("checkpoint", "--leave-running", "--image-path", str(situation.images), "old").ok()
    assert (situation.images / "remap-fpath.img").exists()
    assert list(situation.old.path.rglob("link_remap.*")) == []
    assert all_ok(situation.answer(situation.old))


def test_a_kill_while_a_name_of_crius_is_kept_leaves_no_such_name(machine: Machine) -> None:
    situation = Situation(machine, "linked-in-rootfs")
    situation.start()
    kept = 0
    for step in range(1, 100):
        images = machine.checkpoints / f"step-{step}"
        machine.grit("checkpoint", "--leave-running", "--image-path", str(images), "old", GRIT_TEST_KILL_AT=str(step))
        text = "".join(journal.read_text() for journal in machine.state.rglob("journal"))
        kept += '"effect":"keep-name"' in text
        machine.grit("recover").ok()
        assert list(situation.old.path.rglob("link_remap.*")) == [], f"step {step}"
        assert machine.status("old") == "running"
        if '"phase":"publishing"' in text:
            break
    assert kept > 3
    assert all_ok(situation.answer(situation.old))
