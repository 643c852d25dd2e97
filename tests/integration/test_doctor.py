"""`doctor` on this machine, with what it may meet made around it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import Machine
from tests.requirements import RUNTIME
from tests.simulated.driver import SimulatedGpu

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def _doctor(machine: Machine, *flags: str, **env: str) -> dict[str, Any]:
    """What it says, by a check's id and what it is about."""
    ran = machine.grit("doctor", "--json", *flags, **env)
    document: dict[str, Any] = json.loads(ran.out)
    failed = any(check["state"] == "fail" for check in document["checks"])
    assert ran.code == (1 if failed else 0), ran.err
    return {f"{check['id']} {check['about']}".strip(): check for check in document["checks"]}


@pytest.fixture
def containerd(machine: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called containerd, and has a PATH of its own. It is none."""
    program = machine.path / "containerd"
    program.write_bytes(Path(shutil.which("sleep") or "/bin/sleep").read_bytes())
    program.chmod(0o755)
    process = subprocess.Popen([str(program), "1000"], env={"PATH": "/nowhere"}, stdin=subprocess.DEVNULL)
    machine.wait(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "containerd\n")
    yield process
    process.kill()
    process.wait()


def test_this_machine(machine: Machine) -> None:
    before = sorted(machine.path.rglob("*"))
    found = _doctor(machine, "--node")
    assert sorted(machine.path.rglob("*")) == before
    for check in ("kernel.checkpoint", "kernel.ptrace", "runtime.downstream", "criu.found", "criu.check", "leftovers"):
        assert found[check]["state"] == "ok", found[check]
    root = str(machine.checkpoints)
    assert "free" in found[f"storage.space {root}"]["found"]
    assert "a second, reads" in found[f"storage.speed {root}"]["found"]
    assert [name for name in found if name.startswith("engine.")] == ["engine.found"]
    text = machine.grit("doctor", "--node", "--no-disk").out
    assert "not measured" in text
    assert "\x1b" not in text


@pytest.mark.needs("no containerd")
def test_path_is_that_of_the_engine_s_process(machine: Machine, containerd: subprocess.Popen[bytes]) -> None:
    found = _doctor(machine, "--engine", "containerd", "--no-disk")
    path = found["engine.path containerd"]
    assert str(containerd.pid) in found["engine.running containerd"]["found"]
    assert (path["state"], path["found"]) == (
        "fail", "criu, runc is not in the PATH of containerd's process: /nowhere",
    )  # fmt: skip
    assert found["criu.found"]["found"] == "criu is not in PATH (/nowhere)"
    assert found["criu.check"]["state"] == "skip"
    text = machine.grit("doctor", "--engine", "containerd", "--fix-hints", "--no-disk").out
    fix = [command for check in found.values() for command in check["fix"]]
    assert path["todo"] in text
    assert fix, "no check has a command that puts things right"
    assert all(command in text for command in fix)


@pytest.mark.needs("runtime")
def test_a_registration(machine: Machine) -> None:
    name = f"grit-test-{os.getpid()}"
    flags, env = ("--engine", "podman", "--runtime-name", name), {"PATH": f"{RUNTIME.parent}:{os.environ['PATH']}"}

    def state() -> str:
        return str(_doctor(machine, *flags, "--no-disk", **env)["engine.registered podman"]["state"])

    assert state() == "fail"
    try:
        machine.grit("install", *flags, **env).ok()
        assert state() == "ok"
    finally:
        machine.grit("uninstall", *flags, **env).ok()
    assert state() == "fail"


def test_what_killed_calls_left(machine: Machine) -> None:
    (machine.state / "run-runc/lost").mkdir(parents=True)
    journal = machine.state / "run-runc/lost/journal"
    journal.write_text(json.dumps({"header": {"operation": "restore", "container": "lost"}}) + "\n")
    assert "of 1 container: lost" in _doctor(machine, "--node", "--no-disk")["leftovers"]["found"]
    held = os.open(journal.parent, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        assert _doctor(machine, "--node", "--no-disk")["leftovers"]["state"] == "ok"
    finally:
        os.close(held)
    journal.write_text('{"effect": "unknown", "n": 0, "args": {}}\n')
    assert _doctor(machine, "--node", "--no-disk")["leftovers"]["state"] == "fail"
    shutil.rmtree(machine.state)
    machine.unpacked.mkdir()
    (machine.unpacked / "run-runc!gone").mkdir()
    assert "run-runc!gone" in _doctor(machine, "--node", "--no-disk")["leftovers"]["found"]


def test_a_root_that_others_may_write_to(machine: Machine) -> None:
    with tempfile.TemporaryDirectory(dir="/run") as root:  # not below /tmp, where anybody may write
        machine.configure(checkpoint_roots=[root])
        assert _doctor(machine, "--node", "--no-disk")[f"storage.owner {root}"]["state"] == "ok"
        os.chmod(root, 0o777)
        found = _doctor(machine, "--node", "--no-disk")[f"storage.owner {root}"]
        assert (found["state"], root in found["todo"]) == ("fail", True)


def test_labels_and_metrics(machine: Machine) -> None:
    metrics = machine.path / "grit.prom"
    ran = machine.grit("doctor", "--node", "--no-disk", "--labels", "-", "--metrics", str(metrics))
    assert ran.out.splitlines()[0].startswith("grit.dev/restore=")
    assert "grit_runtime_able{" in metrics.read_text()
    assert metrics.stat().st_mode & 0o777 == 0o644
    assert machine.grit("doctor", "--node", "--metrics", "/proc/no/such").code == 2
    assert machine.grit("doctor", "--node", "--engine", "podman").code == 2


@pytest.mark.needs("cc")
@pytest.mark.timeout(300)
def test_a_simulated_gpu(gpu: SimulatedGpu) -> None:
    found = _doctor(gpu.machine, "--node", "--no-disk", **gpu.environment)
    assert found["gpu.api"]["found"] == "CUDA's process checkpoint API answers, by driver"
    assert found["gpu.driver"]["state"] == "ok"
    gpu.settings(mig=1)
    assert found["gpu.state"]["state"] == "ok"
    assert _doctor(gpu.machine, "--node", "--no-disk", **gpu.environment)["gpu.state"]["state"] == "fail"
    gpu.settings()
