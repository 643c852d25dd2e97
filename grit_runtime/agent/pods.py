"""What the agent reads of a pod: what can be captured, whether two are the same program, how far one is. Pure."""

import copy
import json
import re
from typing import Any

from grit_runtime.agent import words
from grit_runtime.agent.model import Object

_TOKEN_VOLUME = re.compile(r"^kube-api-access-[a-z0-9]{5}$")
_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193


def uid(pod: Object | None) -> str:
    """The pod's UID; empty for none."""
    return str(pod["metadata"].get("uid", "")) if pod else ""


def ends(pod: Object | None) -> bool:
    """Whether it is gone or being deleted."""
    return pod is None or bool(pod["metadata"].get("deletionTimestamp"))


def has_ended(pod: Object) -> bool:
    """Whether it has run, and will not again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def has_succeeded(pod: Object) -> bool:
    """Whether it has run to its end, each container with exit code 0."""
    return (pod.get("status") or {}).get("phase") == "Succeeded"


def spec_hash(spec: Object) -> str:
    """By what a pod is known for another of the same program: FNV-1a, 32 bits, of its spec.

    As GRIT's (pkg/gritmanager/controllers/util, ComputeHash), without the node's name and the names of the token's
    volume, which differ between two pods of one template; without what the webhook adds to a pod that is restored, so
    that a restored one can be captured again; and over JSON, where GRIT has Go's own notation.
    """
    made = copy.deepcopy(spec)
    for name in ("nodeName", "ephemeralContainers", "schedulingGates", "runtimeClassName", "affinity"):
        made.pop(name, None)
    selector = {key: value for key, value in (made.pop("nodeSelector", None) or {}).items() if key != words.ABLE}
    if selector:
        made["nodeSelector"] = selector
    affinity = _without_pin(spec.get("affinity") or {})
    if affinity:
        made["affinity"] = affinity
    for volume in made.get("volumes") or []:
        volume["name"] = _TOKEN_VOLUME.sub("kube-api-access", str(volume.get("name", "")))
    for container in [*(made.get("initContainers") or []), *(made.get("containers") or [])]:
        for mount in container.get("volumeMounts") or []:
            mount["name"] = _TOKEN_VOLUME.sub("kube-api-access", str(mount.get("name", "")))
    value = _FNV_OFFSET
    for byte in json.dumps(made, sort_keys=True, separators=(",", ":")).encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return str(value)


def pinned(affinity: Object, node: str) -> Object:
    """The affinity, with one node alone in it (by its name: `matchFields`)."""
    made = copy.deepcopy(affinity)
    required = made.setdefault("nodeAffinity", {}).setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    # Terms are alternatives: each is to have it.
    for term in required.setdefault("nodeSelectorTerms", [{}]):
        fields = [field for field in term.get("matchFields", []) if field.get("key") != "metadata.name"]
        term["matchFields"] = [*fields, {"key": "metadata.name", "operator": "In", "values": [node]}]
    return made


def _without_pin(affinity: Object) -> Object:
    made: Object = copy.deepcopy(affinity)
    required = (made.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        fields = [field for field in term.pop("matchFields", []) if field.get("key") != "metadata.name"]
        if fields:
            term["matchFields"] = fields
    pruned: Object = _pruned(made)
    return pruned


def _pruned(value: Any) -> Any:
    """Without what is empty, however deep."""
    if isinstance(value, dict):
        return {key: inner for key, inner in ((key, _pruned(inner)) for key, inner in value.items()) if inner}
    if isinstance(value, list):
        return [inner for inner in map(_pruned, value) if inner]
    return value


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return list(status.get("containerStatuses") or [])


def containers(pod: Object) -> list[str]:
    """The names of the containers that are captured and restored."""
    return [str(container["name"]) for container in pod["spec"]["containers"]]


def identities(pod: Object) -> dict[str, str]:
    """Container name to the CRI's id, of those that run (`containerID: containerd://...`)."""
    return {
        str(status["name"]): str(status.get("containerID", "")).partition("://")[2]
        for status in _statuses(pod)
        if (status.get("state") or {}).get("running") is not None and status.get("containerID")
    }


def why_never(pod: Object) -> tuple[str, str] | None:
    """Why a pod can't be captured, whatever becomes of it: a reason and a message; None if nothing is against it."""
    name = pod["metadata"]["name"]
    if ends(pod):
        return "PodIsEnding", f"pod {name} is being deleted"
    if has_ended(pod):
        return "PodEnded", f"pod {name} has ended: {pod['status']['phase']}"
    if pod["spec"].get("initContainers"):
        return (
            "InitContainers",
            f"pod {name} has init containers, which a pod with the annotation would have to restore, too",
        )
    ended = [str(status["name"]) for status in _statuses(pod) if (status.get("state") or {}).get("terminated")]
    if ended and pod["spec"].get("restartPolicy") != "Always":
        return "ContainerEnded", f"containers of pod {name} have ended: {', '.join(ended)}"
    return None


def why_not_yet(pod: Object) -> str:
    """What is to be waited for before it can be captured; empty for nothing."""
    if not pod["spec"].get("nodeName"):
        return "it has no node yet"
    missing = [name for name in containers(pod) if name not in identities(pod)]
    return f"not running: {', '.join(missing)}" if missing else ""


def progress(pod: Object) -> str:
    """What keeps a pod from running, in kubelet's and the scheduler's words; empty if all its containers run."""
    missing = [name for name in containers(pod) if name not in identities(pod)]
    if not missing:
        return ""
    for status in _statuses(pod):
        said = _said(status)
        if said:
            return f"container {status['name']}: {said}"
    for found in (pod.get("status") or {}).get("conditions") or []:
        if found.get("type") == "PodScheduled" and found.get("status") != "True" and found.get("message"):
            return f"{found.get('reason', '')}: {found['message']}"
    return f"not running yet: {', '.join(missing)}"


def _said(status: Object) -> str:
    """What kubelet says of a container that doesn't run: why it waits, why it ended.

    Between two attempts that is how long it waits; why the last attempt failed stands beside it.
    """
    state, last = status.get("state") or {}, status.get("lastState") or {}
    found = state.get("waiting") or state.get("terminated") or {}
    why = found.get("message", "")
    if found.get("reason") == words.BACK_OFF:
        why = (last.get("terminated") or {}).get("message") or why
    return f"{found.get('reason', '')}: {why}" if why else ""


def controller(pod: Object) -> Object | None:
    """The owner that replaces it."""
    owners = pod["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)
