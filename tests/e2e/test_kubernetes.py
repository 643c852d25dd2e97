"""The examples for Kubernetes: valid by the API's own schemas, and their scripts do what they say.

There is no API server here: kubelet and kubectl are stand-ins that answer as those do, and write down what was asked.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.requirements import ROOT, RUNTIME

pytestmark = [pytest.mark.needs("root", "runtime")]
EXAMPLES = ROOT / "examples/kubernetes"
SECTION = "io.containerd.grpc.v1.cri"
NODE = f"""version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."{SECTION}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{SECTION}".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """No containerd runs for these tests."""


def _objects() -> list[tuple[str, dict[str, Any]]]:
    files = sorted(EXAMPLES.glob("*.yaml"))
    return [(file.name, found) for file in files for found in yaml.safe_load_all(file.read_text())]


def _object(kind: str, name: str) -> dict[str, Any]:
    (found,) = [found for _, found in _objects() if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.needs("kubernetes-validate")
@pytest.mark.parametrize("version", ["1.31", "1.35"])
@pytest.mark.parametrize(
    ("file", "found"), _objects(), ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_the_objects_are_valid(file: str, found: dict[str, Any], version: str) -> None:
    """Unknown keys are mistakes."""
    import kubernetes_validate

    kubernetes_validate.validate(found, version, strict=True)


def test_the_validation_knows_a_mistake() -> None:
    import kubernetes_validate

    job = _object("Job", "training")
    job["spec"]["podReplacement"] = "Failed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_daemonset_installs_on_a_node(tmp_path: Path) -> None:
    """Its script, with a folder for the node and nothing to restart."""
    (script,) = _object("DaemonSet", "grit-runtime")["spec"]["template"]["spec"]["initContainers"][0]["args"]
    host, source = tmp_path / "host", tmp_path / "image"
    (source / "bin").mkdir(parents=True)
    (source / "lib/grit-runtime").mkdir(parents=True)
    (source / "lib/grit-runtime/boot.py").touch()
    (source / "bin/grit-runtime").symlink_to(RUNTIME)
    main = host / "etc/containerd/config.toml"
    main.parent.mkdir(parents=True)
    main.write_text(NODE)
    restarted, config = tmp_path / "restarted", tmp_path / "config.yaml"
    config.write_text("downstream: runc\n")
    env = {"PATH": os.environ["PATH"], "HOST": str(host), "SOURCE": str(source), "CONFIG": str(config)}
    env |= {"RESTART": f"touch {restarted}"}
    for first in (True, False):
        done = subprocess.run(["sh", "-ec", script], env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert restarted.exists() is first, "an installation that is there already restarts nothing"
        restarted.unlink(missing_ok=True)
    assert (host / "usr/local/bin/grit-runtime").read_bytes() == RUNTIME.read_bytes()
    assert [path.name for path in (host / "usr/local/lib").rglob("*")] == ["grit-runtime", "boot.py"]
    assert (host / "etc/grit-runtime/config.yaml").read_text() == "downstream: runc\n"
    assert "SystemdCgroup = true" in (host / "etc/containerd/conf.d/zz-grit.toml").read_text()
    assert main.read_text() == NODE


class Kubelet:
    """A stand-in for kubelet's checkpoint API (kubernetes.io, "Kubelet Checkpoint API")."""

    def __init__(self, host: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.fails = ""
        folder = host / "var/lib/kubelet/checkpoints"
        folder.mkdir(parents=True)
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kubelet.asked.append((self.path, self.headers["Authorization"]))
                name = self.path.rsplit("/", 1)[1]
                failed = name == kubelet.fails
                archive = f"checkpoint-{name}-2026.tar"
                if not failed:
                    (folder / archive).write_text(self.path)
                self.send_response(500 if failed else 200)
                self.end_headers()
                said = (
                    "no such container"
                    if failed
                    else json.dumps({"items": [f"/var/lib/kubelet/checkpoints/{archive}"]})
                )
                self.wfile.write(said.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    made = Kubelet(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def _capture(kubelet: Kubelet, host: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script, token = host / "capture", host / "token"
    script.write_text(_object("ConfigMap", "grit-runtime")["data"]["capture"])
    token.write_text("secret\n")
    env = {"KUBELET": f"http://127.0.0.1:{kubelet.server.server_port}", "HOST": str(host), "TOKEN": str(token)}
    argv = [sys.executable, str(script), *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_a_pod_is_captured_under_the_name_that_it_is_restored_from(kubelet: Kubelet, tmp_path: Path) -> None:
    done = _capture(kubelet, tmp_path, "team", "job-x", "training", "trainer", "side")
    assert done.returncode == 0, done.stderr
    assert kubelet.asked == [(f"/checkpoint/team/job-x/{name}", "Bearer secret") for name in ("trainer", "side")]
    kept = tmp_path / "var/lib/grit-runtime/checkpoints/team/training"
    assert {path.name: path.read_text() for path in kept.iterdir()} == {
        "trainer.tar": "/checkpoint/team/job-x/trainer",
        "side.tar": "/checkpoint/team/job-x/side",
    }
    # A later one that fails half-way leaves the older one whole.
    (kept / "side.tar").write_text("older")
    (kept / "trainer.tar").write_text("older")
    kubelet.fails = "side"
    failed = _capture(kubelet, tmp_path, "team", "job-y", "training", "trainer", "side")
    assert failed.returncode == 1
    assert "no such container" in failed.stderr
    assert {(kept / name).read_text() for name in ("trainer.tar", "side.tar")} == {"older"}
    refused = _capture(kubelet, tmp_path, "team", "job-y", "../training", "trainer")
    assert refused.returncode == 1
    assert not (tmp_path / "var/lib/grit-runtime/checkpoints/training").exists()


KUBECTL = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  "get pods -n grit-system"*) cat {agents} ;;
  "get pods -A"*) cat {pods} ;;
  *exec*" bad "*) exit 1 ;;
esac
"""


def _pod(name: str, **annotations: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": name, "annotations": annotations or None},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
    }


def _drain(path: Path, *pods: dict[str, Any]) -> tuple[int, list[str]]:
    log, program = path / "log", path / "bin/kubectl"
    for name, items in (("agents", [_pod("agent")]), ("pods", list(pods))):
        (path / name).write_text(json.dumps({"items": items}))
    program.parent.mkdir(exist_ok=True)
    program.write_text(KUBECTL.format(log=log, agents=path / "agents", pods=path / "pods"))
    program.chmod(0o755)
    log.unlink(missing_ok=True)
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, EXAMPLES / "drain.py", "node"], env=env, check=False, timeout=60)
    return done.returncode, log.read_text().splitlines()


def test_a_drain_captures_named_pods_before_it_deletes_them(tmp_path: Path) -> None:
    named = _pod("job", **{"grit.dev/restore-name": "training"})
    code, asked = _drain(tmp_path, _pod("other"), named)
    selector = "--field-selector spec.nodeName=node,status.phase=Running -o json"
    assert (code, asked) == (
        0,
        [
            "cordon node",
            f"get pods -n grit-system -l app=grit-runtime {selector}",
            f"get pods -A {selector}",
            "exec -n grit-system agent -c capture -- /grit/capture ns job training a b",
            "delete pod -n ns job",
            "drain node --ignore-daemonsets",
        ],
    )
    bad = _pod("bad", **{"grit.dev/restore-name": "x"})
    code, asked = _drain(tmp_path, bad, named)
    assert code == 1
    assert "delete pod -n ns bad" not in asked
    assert asked[-1] == "delete pod -n ns job", "the node is not drained while a pod could not be captured"
