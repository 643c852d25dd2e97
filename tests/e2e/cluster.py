"""`make e2e-cluster KUBECONFIG=FILE`: pods of two containers are captured, deleted and restored on a real cluster.

First a pod by a Restore, then one of a Deployment by `autoMigration`. Run as root on a node of the cluster on which
grit-runtime is installed and registered as the handler `grit` (docs/kubernetes.md). The definitions come from this
checkout, and the manager and the agent run as plain processes of it, with the example's roles and no other rights.
Everything that is made is taken away again: two namespaces, roles, a webhook for one of these namespaces alone, the
definitions and the RuntimeClass if they weren't there, the node's label.
"""

import argparse
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/kubernetes"
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
NAMES = ("front", "back")
LABELS = {"app": "count"}
ADDED = ("grit.dev/restore-name", "grit.dev/on-restore-failure")
PORT = 18443
Object = dict[str, Any]


class Failed(Exception):
    """Something isn't as it must be."""


def kubectl(*args: str, given: str | None = None) -> str:
    """Run kubectl; its output. Raises Failed with what it said."""
    done = subprocess.run(["kubectl", *args], input=given, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Failed(f"kubectl {' '.join(args[:4])}: {done.stderr.strip()}")
    return done.stdout


def apply(*objects: Object) -> None:
    """Apply objects."""
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def get(namespace: str, kind: str, name: str) -> Object | None:
    """An object, or None."""
    said = kubectl("get", "-n", namespace, kind, name, "--ignore-not-found", "-o", "json")
    return dict(json.loads(said)) if said.strip() else None


def until(what: str, condition: Callable[[], bool], timeout: float = 120) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.5)


def phase(namespace: str, kind: str, name: str) -> str:
    """A Checkpoint's or Restore's phase. Raises Failed if that is `Failed`."""
    status = (get(namespace, kind, name) or {}).get("status") or {}
    if status.get("phase") == "Failed":
        raise Failed(f"{kind} {name} has failed: {json.dumps(status.get('conditions'))}")
    return str(status.get("phase", ""))


def numbers(namespace: str, pod: str, container: str) -> list[int]:
    """What a container has counted, by its log."""
    return [int(line) for line in kubectl("logs", "-n", namespace, pod, "-c", container).split()]


def pod(namespace: str, name: str, image: str, node: str) -> Object:
    """Two containers that count."""
    containers = [{"name": one, "image": image, "command": ["sh", "-c", COUNT]} for one in NAMES]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {**LABELS, "grit.dev/restorable": "true"}},
        "spec": {
            "runtimeClassName": "grit",
            "containers": containers,
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": {"kubernetes.io/hostname": node},
        },
    }


def deployment(namespace: str, image: str, node: str) -> Object:
    """A Deployment of one such pod."""
    made, labels = pod(namespace, "", image, node), {"app": "moves"}
    template = {"metadata": {"labels": {**made["metadata"]["labels"], **labels}}, "spec": made["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "moves", "namespace": namespace},
            "spec": spec}  # fmt: skip


def identity(stack: ExitStack, system: str, folder: Path, part: str) -> dict[str, str]:
    """The example's service account and role, by names of our own; the environment of a process that has no others."""
    name, file = f"{system}-{part}", folder / f"{part}.kubeconfig"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": system}
    found = {one["kind"]: one for one in yaml.safe_load_all((EXAMPLES / f"agent/{part}.yaml").read_text())}
    account, role, binding = (found[kind] for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"))
    account["metadata"].update(name=name, namespace=system)
    role["metadata"]["name"] = binding["metadata"]["name"] = binding["roleRef"]["name"] = name
    binding["subjects"] = [subject]
    apply(account, role, binding)
    stack.callback(kubectl, "delete", "clusterrole,clusterrolebinding", name)
    config = json.loads(kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    token = kubectl("create", "token", name, "-n", system, "--duration=1h").strip()
    config["users"] = [{"name": name, "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = name
    file.touch(mode=0o600)
    file.write_text(json.dumps(config))
    return {**os.environ, "KUBECONFIG": str(file)}


def certificate(folder: Path, address: str) -> str:
    """A certificate for the webhook; the base64 of what the API server checks it with."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=grit-e2e",
         "-addext", f"subjectAltName=IP:{address}", "-keyout", folder / "key", "-out", folder / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    return base64.b64encode((folder / "cert").read_bytes()).decode()


def webhook(namespace: str, address: str, bundle: str) -> Object:
    """The example's, for the test's namespace alone, and with the process in place of the service."""
    found = yaml.safe_load((EXAMPLES / "agent/webhook.yaml").read_text())
    found["metadata"]["name"] = namespace
    (one,) = found["webhooks"]
    one["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    one["clientConfig"] = {"url": f"https://{address}:{PORT}/mutate-core-v1-pod", "caBundle": bundle}
    return dict(found)


@contextmanager
def agent(environment: dict[str, str], log: Path, *args: str) -> Iterator[None]:
    """A process of the agent."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "grit_runtime.agent", *args], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
        try:
            time.sleep(2)
            if process.poll() is not None:
                raise Failed(f"the agent has ended: {log.read_text()[-1000:]}")
            yield
        finally:
            process.terminate()
            process.wait(60)


def prepare(stack: ExitStack, options: argparse.Namespace, namespace: str, folder: Path) -> None:
    """Definitions, label, namespace, processes and webhook; each is taken away by `stack`."""
    node = get("", "node", options.node)
    if node is None:
        raise Failed(f"the cluster has no node {options.node}: say --node")
    address = next(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")
    for file in (EXAMPLES / "agent/crds.yaml", EXAMPLES / "runtimeclass.yaml"):
        there = kubectl("get", "-f", str(file), "--ignore-not-found", "-o", "name").strip()
        if there:
            continue
        kubectl("create", "-f", str(file))
        stack.callback(kubectl, "delete", "-f", str(file), "--wait=true")
    kubectl("wait", "--for=condition=Established", "crd/checkpoints.grit.dev", "crd/restores.grit.dev", "--timeout=60s")
    label = (node["metadata"].get("labels") or {}).get("grit.dev/restore")
    kubectl("label", "node", options.node, "grit.dev/restore=true", "--overwrite")
    before = f"grit.dev/restore={label}" if label else "grit.dev/restore-"
    stack.callback(kubectl, "label", "node", options.node, "--overwrite", before)
    bundle = certificate(folder, address)
    manager = ["--tls-cert", f"{folder}/cert", "--tls-key", f"{folder}/key", "--webhook-port", str(PORT)]
    # The accounts outlive the other namespace, whose end waits for what they have to remove.
    system = f"{namespace}-system"
    kubectl("create", "namespace", system)
    stack.callback(kubectl, "delete", "namespace", system, "--wait=true", "--timeout=100s")
    stack.enter_context(agent(identity(stack, system, folder, "manager"), folder / "manager.log", "manager", *manager))
    stack.enter_context(agent(identity(stack, system, folder, "node"), folder / "node.log", "node", "--node",
                              options.node, "--root", options.root, "--runtime", options.runtime))  # fmt: skip
    kubectl("create", "namespace", namespace)
    stack.callback(kubectl, "delete", "namespace", namespace, "--wait=true", "--timeout=100s")
    until("its service account", lambda: get(namespace, "serviceaccount", "default") is not None)
    apply(webhook(namespace, address, bundle))
    stack.callback(kubectl, "delete", "mutatingwebhookconfiguration", namespace)


def run(options: argparse.Namespace, namespace: str) -> None:
    """The pod counts, is captured and deleted, and goes on as another."""
    hostname = str(kubectl("get", "node", options.node, "-o", r"jsonpath={.metadata.labels.kubernetes\.io/hostname}"))
    apply(pod(namespace, "old", options.image, hostname))
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/old", "--timeout=120s")
    until("it counts", lambda: all(len(numbers(namespace, "old", name)) > 5 for name in NAMES))
    before = {name: numbers(namespace, "old", name)[-1] for name in NAMES}
    apply(_ours(namespace, "Checkpoint", "one", podName="old", leaveRunning=False))
    until("it is captured and gone", lambda: phase(namespace, "checkpoint.grit.dev", "one") == "Submitted")
    apply(_ours(namespace, "Restore", "one", checkpointName="one", selector={"matchLabels": LABELS}))
    apply(pod(namespace, "new", options.image, hostname))
    annotations = (get(namespace, "pod", "new") or {})["metadata"].get("annotations") or {}
    if [annotations.get(key) for key in ADDED] != ["one", "fail"]:
        raise Failed(f"the webhook has not chosen the pod: {annotations}")
    until("it is restored", lambda: phase(namespace, "restore.grit.dev", "one") == "Restored")
    for name in NAMES:
        goes_on(namespace, "new", name, before[name])
    move(options, namespace, hostname)
    kubectl("delete", "-n", namespace, "checkpoint.grit.dev/one", "checkpoint.grit.dev/two", "--timeout=60s")
    if (Path(options.root) / namespace).exists():
        raise Failed(f"{options.root}/{namespace} is still there, though the Checkpoints are gone")


def move(options: argparse.Namespace, namespace: str, hostname: str) -> None:
    """A Deployment's pod counts, and the one that replaces it goes on."""
    apply(deployment(namespace, options.image, hostname))
    kubectl("wait", "-n", namespace, "--for=condition=Available", "deployment/moves", "--timeout=120s")
    (old,) = _pods(namespace)
    until("it counts", lambda: all(len(numbers(namespace, old, name)) > 5 for name in NAMES))
    before = {name: numbers(namespace, old, name)[-1] for name in NAMES}
    apply(_ours(namespace, "Checkpoint", "two", podName=old, autoMigration=True))
    until("it is captured and gone", lambda: phase(namespace, "checkpoint.grit.dev", "two") == "Submitted")
    until("the next is restored", lambda: phase(namespace, "restore.grit.dev", "two") == "Restored")
    (new,) = _pods(namespace)
    if new == old:
        raise Failed(f"pod {old} was not replaced")
    for name in NAMES:
        goes_on(namespace, new, name, before[name])


def _ours(namespace: str, kind: str, name: str, **spec: Any) -> Object:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "grit.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


def _pods(namespace: str) -> list[str]:
    """The names of the Deployment's pods."""
    return kubectl(
        "get", "pods", "-n", namespace, "-l", "app=moves", "-o", "jsonpath={.items[*].metadata.name}"
    ).split()


def goes_on(namespace: str, pod: str, name: str, before: int) -> None:
    """A container's log is the old one's, without a gap, and goes on."""
    until(f"{name} goes on", lambda: numbers(namespace, pod, name)[-1:] > [before + 10])
    found = numbers(namespace, pod, name)
    if found != list(range(1, len(found) + 1)):
        raise Failed(f"{name} has not gone on where it was: {found[:5]} ... {found[-5:]}")
    print(f"pod {pod}, {name}: had counted to {before} before the checkpoint, and has to {found[-1]} since")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default=socket.gethostname(), help="this machine's name in the cluster [its own]")
    parser.add_argument("--root", default="/var/lib/grit-runtime/checkpoints")
    parser.add_argument("--runtime", default="/usr/local/bin/grit-runtime")
    parser.add_argument("--image", default="busybox:1.36")
    options = parser.parse_args()
    missing = [name for name in ("kubectl", "openssl") if shutil.which(name) is None]
    if missing or os.geteuid() != 0 or not Path(options.runtime).exists():
        print(
            f"needs root, kubectl, openssl and {options.runtime}: missing {', '.join(missing) or 'one of the others'}"
        )
        return 1
    namespace, folder = f"grit-e2e-{secrets.token_hex(3)}", Path(tempfile.mkdtemp(prefix="grit-e2e-"))
    try:
        print(kubectl("version", "-o", "yaml"))
        with ExitStack() as stack:
            prepare(stack, options, namespace, folder)
            run(options, namespace)
    except (Failed, subprocess.SubprocessError) as err:
        print(f"FAILED: {err}\nthe agent's logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    print(
        "pods of two containers were captured, deleted, and have gone on as others: by a Restore, and by autoMigration"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
