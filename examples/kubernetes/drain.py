#!/usr/bin/env python3
"""drain.py NODE: drain a node, and capture first the pods that say under which name (see job.yaml, daemonset.yaml).

A pod whose capture fails stays where it is and runs on, and so does the rest of the node; the exit code is 1 then.
"""

import json
import subprocess
import sys
from typing import Any

NAME = "grit.dev/restore-name"
SYSTEM = "grit-system"


def kubectl(*args: str) -> str:
    """Run kubectl; what it says goes on to the user."""
    return subprocess.run(["kubectl", *args], check=True, stdout=subprocess.PIPE, text=True).stdout


def pods(node: str, *args: str) -> list[dict[str, Any]]:
    """The running pods of a node."""
    selector = f"spec.nodeName={node},status.phase=Running"
    found: list[dict[str, Any]] = json.loads(kubectl("get", "pods", *args, "--field-selector", selector, "-o", "json"))[
        "items"
    ]
    return found


def capture(agent: str, pod: dict[str, Any]) -> bool:
    """Capture a pod's containers, and delete it."""
    meta = pod["metadata"]
    containers = [container["name"] for container in pod["spec"]["containers"]]
    words = [meta["namespace"], meta["name"], meta["annotations"][NAME], *containers]
    try:
        print(kubectl("exec", "-n", SYSTEM, agent, "-c", "capture", "--", "/grit/capture", *words), end="")
        kubectl("delete", "pod", "-n", meta["namespace"], meta["name"])
    except subprocess.CalledProcessError:
        print(f"{meta['namespace']}/{meta['name']} is not captured, and stays", file=sys.stderr)
        return False
    return True


def main(node: str) -> int:
    """Cordon, capture, drain."""
    kubectl("cordon", node)
    agents = pods(node, "-n", SYSTEM, "-l", "app=grit-runtime")
    if not agents:
        print(f"no pod of the DaemonSet grit-runtime runs on {node}", file=sys.stderr)
        return 1
    agent = agents[0]["metadata"]["name"]
    named = [pod for pod in pods(node, "-A") if NAME in (pod["metadata"].get("annotations") or {})]
    captured = [capture(agent, pod) for pod in named]
    if not all(captured):
        return 1
    kubectl("drain", node, "--ignore-daemonsets")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
