"""Objects for the tests of the agent."""

import copy
import uuid
from typing import Any

Object = dict[str, Any]
OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "owner-1", "controller": True}


def pod(name: str = "web-0", *containers: str, node: str = "n1", running: bool = True, **more: Any) -> Object:
    """A pod as the API server has it."""
    names = containers or ("app",)
    token = {"name": f"kube-api-access-{uuid.uuid4().hex[:5]}", "projected": {}}
    made = [{"name": one, "image": "i", "volumeMounts": [{"name": token["name"], "mountPath": "/t"}]} for one in names]
    state = {"running": {"startedAt": "now"}} if running else {"waiting": {"reason": "ContainerCreating"}}
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": str(uuid.uuid4()),
            "labels": {"app": "web", "grit.dev/restorable": "true"},
            "ownerReferences": [copy.deepcopy(OWNER)],
            **more,
        },
        "spec": {
            "containers": made,
            "volumes": [token],
            "restartPolicy": "Always",
            **({"nodeName": node} if node else {}),
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": one, "containerID": f"containerd://id-{one}", "state": state} for one in names
            ],
        },
    }


def checkpoint(name: str = "one", **spec: Any) -> Object:
    """A Checkpoint as a user makes it."""
    return {
        "apiVersion": "grit.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podName": "web-0", **spec},
    }


def restore(name: str = "back", **spec: Any) -> Object:
    """A Restore as a user makes it."""
    owner = {key: value for key, value in OWNER.items() if key != "controller"}
    return {
        "apiVersion": "grit.dev/v1alpha1",
        "kind": "Restore",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"checkpointName": "one", "ownerRef": owner, **spec},
    }


def stored(found: Object, phase: str = "", **status: Any) -> Object:
    """The same as the API server has it, in a phase."""
    made = copy.deepcopy(found)
    defaults = {"uid": f"uid-{made['metadata']['name']}", "generation": 1, "resourceVersion": "7"}
    made["metadata"] = {**defaults, **made["metadata"]}
    if made["kind"] == "Checkpoint":
        made["metadata"].setdefault("finalizers", ["grit.dev/data", "grit.dev/restores"])
    if phase or status:
        made["status"] = {**({"phase": phase} if phase else {}), **status}
    return made
