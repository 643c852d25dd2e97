"""The hooks as podman gives them to a container, by the registration files that `make install` puts there."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.host import proc
from tests.integration.test_podman import COUNT, LIMITS, Podman, podman
from tests.requirements import RUNTIME

__all__ = ["podman"]

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "podman", "runtime"), pytest.mark.timeout(180)]

INSTALLED = RUNTIME.parent.parent / "share/containers/oci/hooks.d"


@pytest.fixture
def hooks(podman: Podman) -> Podman:
    """podman whose containers get the hooks, which are told where the test has its state."""
    directory = podman.path / "hooks.d"
    directory.mkdir()
    for file in sorted(INSTALLED.glob("99-grit-*.json")):
        entry = json.loads(file.read_text())
        entry["hook"]["args"] += ["--state-dir", str(podman.path / "state")]
        if file.stem == "99-grit-cleanup":
            entry["hook"]["args"] += ["--config", str(podman.path / "grit.yaml")]
        (directory / file.name).write_text(json.dumps(entry))
    assert len(list(directory.iterdir())) == 2
    return podman


def _run(podman: Podman, *args: str, runtime: str = "grit") -> str:
    """Run podman with our hooks. Without --runtime-flag: its `cleanup`, which deletes the container, isn't told it."""
    places = ["--root", f"{podman.path}/storage", "--runroot", f"{podman.path}/run", "--storage-driver", "vfs"]
    argv = ["podman", *places, "--runtime", runtime, "--hooks-dir", f"{podman.path}/hooks.d", *args]
    done = subprocess.run(
        argv, env=podman.env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _start(podman: Podman, name: str, runtime: str = "grit") -> dict[str, Any]:
    """Start a counter; what was recorded of it."""
    command = ["run", "-d", "--network", "none", *LIMITS, "--name", name, "busybox:test", "/bin/sh", "-c", COUNT]
    _run(podman, *command, runtime=runtime)
    _wait(podman, name, 3)
    found = _run(podman, "inspect", "--format", "{{.Id}} {{.State.Pid}}", name).split()
    (file,) = [file for file in _records(podman) if file.name.startswith(f"{found[1]}-")]
    record: dict[str, Any] = json.loads(file.read_text())
    pid = int(found[1])
    assert (record["id"], record["pid"], record["start"]) == (found[0], pid, proc.start_time(pid))
    return record


def _wait(podman: Podman, name: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(_run(podman, "logs", name).split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _records(podman: Podman) -> list[Path]:
    return sorted((podman.path / "state").rglob(".recorded/*"))


def _remove(podman: Podman, name: str) -> None:
    _run(podman, "rm", "--force", "--time", "0", name)
    assert _records(podman) == []


def test_podman_has_a_container_recorded_moved_and_forgotten(hooks: Podman) -> None:
    _start(hooks, "old")
    archive = hooks.path / "checkpoint.tar"
    _run(hooks, "container", "checkpoint", "--compress", "none", "--export", str(archive), "old")
    assert _records(hooks) == []
    _run(hooks, "rm", "old")
    _run(hooks, "container", "restore", "--import", str(archive), "--name", "new")
    _wait(hooks, "new", len(_run(hooks, "logs", "new").split()) + 3)
    assert len(_records(hooks)) == 1
    # podman calls poststop hooks itself, and none of a container that it has restored (libpod, postDeleteHooks, of the
    # state's ExtensionStageHooks, which only a start fills): the record goes with the end of any other container.
    _start(hooks, "other")
    _run(hooks, "rm", "--force", "--time", "0", "new")
    _remove(hooks, "other")


def test_a_container_that_others_started_is_captured_without_its_configuration(hooks: Podman) -> None:
    """podman with plain runc; its config.json is gone before grit-runtime hears of the container."""
    record = _start(hooks, "c", runtime="runc")
    config = Path(record["bundle"]) / "config.json"
    kept = config.read_bytes()
    config.unlink()
    images = hooks.path / "images"
    argv = [RUNTIME, "checkpoint", "--leave-running", "--image-path", images, record["id"]]
    done = subprocess.run(
        argv, env=hooks.env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "what was recorded at its creation counts" in done.stderr
    assert json.loads((images / "grit.json").read_text())["spec"] == record["config"] == json.loads(kept)
    config.write_bytes(kept)
    _remove(hooks, "c")
