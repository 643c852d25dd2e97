"""What `report` says of real checkpoints and restores, and its page in a real browser."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.oci.log import last_error
from grit_runtime.report import model, page
from tests.integration.machine import Bundle, Machine, Ran
from tests.requirements import RUNTIME
from tests.unit.pages import HOSTILE, RECORD, elements

_STEP = 0.01  # of a process' start time


class Timed:
    """The installed launcher, with every call timed from outside."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.took = machine, 0.0
        self.operations = machine.logs / "operations"

    def call(self, *args: str) -> Ran:
        log, nothing = self.machine.path / "log.json", subprocess.DEVNULL
        log.unlink(missing_ok=True)
        argv, env = self.machine.argv(*args), self.machine.environment()
        begun = time.monotonic()
        # Not subprocess.run with a timeout, which looks for the end every 50 ms.
        code = subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing, env=env).wait()
        self.took = time.monotonic() - begun
        return Ran(code=code, out="", err=last_error(log.read_text()) if log.exists() else "")

    def newest(self) -> model.Operation:
        """The newest record, whose phases add up to the wall clock."""
        path = max(self.operations.iterdir())
        assert path.stat().st_mode & 0o777 == 0o600
        found = model.parse(json.loads(path.read_text()), str(path))
        assert found.covered == pytest.approx(self.took, rel=0.1, abs=_STEP)
        assert found.covered == pytest.approx(found.seconds, rel=0.001)
        assert found.added == pytest.approx(found.covered, rel=0.001)
        return found

    def names(self) -> list[str]:
        return [phase.name for phase in self.newest().phases if not phase.span]


@pytest.fixture
def images(machine: Machine) -> Path:
    """A checkpoint of a counter."""
    machine.start("old", machine.bundle("old"))
    made = machine.checkpoints / "ns/counter/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(made), "old").ok()
    return made


@pytest.fixture
def timed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """A machine on which the launcher is called."""
    options = ["--root", str(machine.root), "--log", str(machine.path / "log.json"), "--log-format", "json"]
    monkeypatch.setattr(machine, "argv", lambda *args: [str(RUNTIME), *options, *args])
    return Timed(machine)


def _report(machine: Machine, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [str(RUNTIME), "report", *args]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=machine.environment())


@pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")
def test_phases_add_up_to_the_wall_clock(machine: Machine, timed: Timed) -> None:
    machine.start("old", machine.bundle("old"))
    images = machine.checkpoints / "ns/counter/app/checkpoint"
    timed.call("checkpoint", "--image-path", str(images), "old").ok()
    assert timed.names() == [
        "begin", "lock", "look", "cuda", "freeze", "describe", "criu", "memory", "contents", "flush", "publish",
    ]  # fmt: skip
    memory = next(phase for phase in timed.newest().phases if phase.name == "memory")
    assert memory.size
    said = json.loads((images / "grit.json").read_text())["phases"]
    assert [phase["name"] for phase in said] == timed.names()[:-1]

    new = machine.bundle("new")
    timed.call("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
    assert timed.newest().operation == "restore"
    restoring = ["begin", "lock", "open", "plan", "stage", "contents", "mountpoints", "criu", "verify", "release"]
    assert timed.names() == restoring
    machine.counts(new)

    pod = _annotated(machine, str(images.parent.parent))
    timed.call("create", "--bundle", str(pod.path), "pod").ok()
    assert (timed.newest().operation, timed.names()) == ("create", restoring)
    machine.grit("delete", "--force", "pod").ok()

    text = _report(machine, "old").stdout
    assert re.search(r"^  criu +\d", text, re.MULTILINE)
    assert "by the wall clock (100.0%)" in text
    assert json.loads(_report(machine, "--json", str(images.parent)).stdout)["complete"]
    shutil.rmtree(timed.operations)
    assert not json.loads(_report(machine, "--json", str(images.parent)).stdout)["complete"]
    nothing = _report(machine)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith(f"grit-runtime: there is no record in {timed.operations}")


def _annotated(machine: Machine, checkpoint: str) -> Bundle:
    made = machine.bundle("pod")
    made.annotate(type="container", name="app", namespace="ns", checkpoint=checkpoint)
    return made


@pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")
def test_failures_are_recorded_with_their_line_and_phase(machine: Machine, timed: Timed, images: Path) -> None:
    bundle = machine.bundle("new")
    (bundle.path / "rootfs/bin/busybox").unlink()
    (images / "grit.json").unlink()
    ran = timed.call("restore", "--detach", "--image-path", str(images), "--bundle", str(bundle.path), "new")
    found = timed.newest()
    assert (found.outcome, found.error) == ("failed", ran.err)
    assert timed.names()[-1] == "criu"
    said = _report(machine)
    assert said.returncode == 0
    assert "restore of container new failed after" in said.stdout
    assert "failed in `criu`" in said.stdout
    assert "`grit-runtime diagnose new`" in said.stdout

    ran = timed.call("create", "--bundle", str(_annotated(machine, str(machine.checkpoints / "ns/nix")).path), "pod")
    assert ran.code == 1
    assert timed.newest().error == ran.err
    ran = timed.call("checkpoint", "--image-path", str(images), "nix")
    assert (timed.newest().operation, timed.newest().error) == ("checkpoint", ran.err)
    listed = json.loads(_report(machine, "--list", "--json").stdout)["operations"]
    assert [(each["operation"], each["outcome"]) for each in listed][:3] == [
        ("checkpoint", "failed"), ("create", "failed"), ("restore", "failed"),
    ]  # fmt: skip


@pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")
def test_a_call_succeeds_where_no_record_can_be_written(machine: Machine, images: Path) -> None:
    full = machine.path / "full"
    full.mkdir()
    machine.shell("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "tmpfs", str(full))
    machine.mounted.append(full)
    (full / "operations").mkdir()
    (full / "data").write_bytes(b"x" * 4096)
    for name, log_dir in (("one", full), ("other", full / "data")):
        machine.configure(log_dir=str(log_dir))
        new = machine.bundle(name)
        machine.grit("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), name).ok()
        machine.counts(new)
    assert list((full / "operations").iterdir()) == []


@pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")
def test_a_restore_in_the_foreground_is_recorded_while_its_container_runs(machine: Machine, images: Path) -> None:
    new, nothing = machine.bundle("new"), subprocess.DEVNULL
    argv = machine.argv("restore", "--image-path", str(images), "--bundle", str(new.path), "new")
    with subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing, env=machine.environment()) as call:
        machine.counts(new)
        machine.wait(lambda: any("-restore-new" in path.name for path in (machine.logs / "operations").iterdir()))
        assert call.poll() is None
        machine.runc("kill", "new", "KILL").ok()
    machine.runc("delete", "--force", "new")


def _in_chromium(path: Path, *args: str) -> str:
    """A page as Debian's browser makes it of a file, with no way to any other host."""
    argv = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={path.parent}/profile", f"--log-net-log={path.parent}/net.json", *args, path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=90).stdout


def _asked_for(folder: Path) -> set[str]:
    """The hosts that the browser was made to ask by a page, by the log of its network (the browser's own aside)."""
    asked = re.findall(r'"url":"https?://([^/"]*)', (folder / "net.json").read_text())
    return {host for host in asked if host.endswith(".invalid")}


@pytest.mark.needs("chromium")
def test_a_browser_shows_the_timeline_and_fetches_nothing(tmp_path: Path) -> None:
    record: dict[str, Any] = {**RECORD, "outcome": "failed", "error": HOSTILE, "container": HOSTILE}
    written = page.render(model.parse(record, HOSTILE))
    file = tmp_path / "report.html"
    file.write_text(written, errors="backslashreplace")
    shown = _in_chromium(file, "--dump-dom")
    assert _asked_for(tmp_path) == set()
    there = elements(shown)
    (timeline,) = [attributes for tag, attributes in there if attributes.get("id") == "timeline"]
    assert timeline["viewbox"].startswith("0 0 1000 ")
    bars = [attributes["data-name"] for tag, attributes in there if attributes.get("class") == "phase"]
    assert sorted(bars) == sorted(phase["name"] for phase in RECORD["phases"])
    assert not {"script", "img"} & {tag for tag, _ in there}
    assert re.findall(r"(?:https?|file|ftp)://[^\s\"'<]*", shown.replace('xmlns="http://www.w3.org/2000/svg"', "")) in (
        [], ["http://x.invalid/a"] * shown.count("http://x.invalid/a"),  # in the text of the error
    )  # fmt: skip
    (tmp_path / "other.html").write_text('<img src="http://control.invalid/a">')
    _in_chromium(tmp_path / "other.html", "--dump-dom")
    assert _asked_for(tmp_path) == {"control.invalid"}, "what would be fetched shows"
    picture = tmp_path / "report.png"
    _in_chromium(file, f"--screenshot={picture}", "--window-size=1100,900")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.stat(picture).st_size > 10_000
