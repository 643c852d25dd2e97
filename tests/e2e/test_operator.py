"""The operator's commands on a node with a real containerd, called as a person would: no `--root` is given."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pods import Containerd, Pod, wait

from tests.requirements import RUNTIME

pytestmark = pytest.mark.needs("root", "runc", "criu", "containerd", "busybox", "runtime")


def _call(containerd: Containerd, *args: str) -> "subprocess.CompletedProcess[str]":
    argv = [str(RUNTIME), *args]
    return subprocess.run(argv, env=containerd.environment(), capture_output=True, text=True, check=False, timeout=60)


def _started(containerd: Containerd, name: str, **annotations: str) -> Pod:
    pod = Pod(base=containerd.base, name=name)
    containerd.start_pod(pod, **annotations)
    wait("it counts", lambda: len(pod.lines()) >= 5)
    return pod


def test_a_pod_is_captured_by_name_and_a_new_one_starts_from_it(containerd: Containerd) -> None:
    old = _started(containerd, "old")
    said = _call(containerd, "capture", "--json", "--name", "by-name", old.container[:-1])
    assert said.returncode == 0, said.stderr
    captured: dict[str, Any] = json.loads(said.stdout)
    assert captured["path"] == str(containerd.checkpoints / old.namespace / "by-name/app/checkpoint")
    sandbox = _call(containerd, "capture", "--name", "other", old.sandbox)
    assert (sandbox.returncode, "is a pod's sandbox" in sandbox.stderr) == (1, True)
    (entry,) = json.loads(_call(containerd, "checkpoints", "--json").stdout)["checkpoints"]
    assert (entry["name"], entry["container"], entry["pod"]) == ("by-name", "app", "old")
    last = old.lines()[-1]
    containerd.remove_pod(old)

    new = _started(containerd, "new", restore_name="by-name")
    assert new.lines()[0] > 1
    assert abs(new.lines()[0] - last) < 200
    # The same bundle again: it runs, and nothing else keeps it from being restored.
    bundle = str(containerd.bundle(new.container))
    taken = _call(containerd, "--root", containerd.runc_root, "plan", "--json", "--bundle", bundle)
    assert taken.returncode == 1
    plan = json.loads(taken.stdout)
    assert plan["checkpoint"] == captured["path"]
    assert plan["container"] == new.container
    exists, in_use = plan["problems"]
    assert "container with given ID already exists" in exists
    assert in_use.endswith("is in use")
    sources = {mount["destination"]: (mount["old_source"], mount["new_source"]) for mount in plan["mounts"]}
    assert sources["/data"] == (str(old.data), str(new.data))
    assert _call(containerd, "prune", "--keep", "0").returncode == 0
    assert list(containerd.checkpoints.iterdir()) == []


def test_doctor_looks_at_the_environment_of_the_running_containerd(containerd: Containerd) -> None:
    said = _call(containerd, "doctor", "--json", "--no-disk", "--engine", "containerd")
    checks = {check["id"]: check for check in json.loads(said.stdout)["checks"]}
    pid = int(checks["engine.running"]["found"].removeprefix("process "))
    assert Path(f"/proc/{pid}/comm").read_text() == "containerd\n"
    assert checks["engine.path"]["state"] == "ok"
    assert checks["engine.path"]["found"] == "everything is in the PATH of containerd's process"
