"""What the webhook answers about a pod that is to be created: from which checkpoint it starts, if from one. Pure.

Never by accident: a pod for which there is a Restore starts from the checkpoint, or is refused (and so waits, for its
owner tries again), or starts from scratch because the Restore says so, with a warning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.agent import checkpoints, pods, restores, words
from grit_runtime.agent.model import Object, condition

_NEVER = "its restartPolicy is Never, and its owner has to make another"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What becomes of the pod."""

    allowed: bool = True
    message: str = ""
    """Why it isn't allowed."""
    warnings: tuple[str, ...] = ()
    restore: Object | None = None
    """The Restore that it was chosen for, to be marked."""
    patch: list[Object] = field(default_factory=list)
    """JSON patch (RFC 6902)."""


def decide(
    pod: Object,
    found: Sequence[Object],
    known: Mapping[str, Object],
    there: Sequence[Object],
    *,
    runtime_class: str,
    now: float,
) -> Answer:
    """What becomes of a pod.

    Args:
        found: the Restores of its namespace.
        known: the Checkpoints of its namespace, by name.
        there: the pods of its namespace with the label of a Restore.
        runtime_class: whose handler is grit-runtime; empty if the nodes' default is.
        now: seconds since the epoch.
    """
    annotations = pod["metadata"].get("annotations") or {}
    if names.CHECKPOINT in annotations or names.RESTORE_NAME in annotations:
        return Answer()  # somebody has said so by hand
    warnings: list[str] = []
    running = [one for one in there if not pods.ends(one) and not pods.has_ended(one)]
    waiting = [one for one in found if not restores.of(one, running) and _waits_for(one, pod)]
    for restore in sorted(waiting, key=lambda entry: str(entry["metadata"].get("creationTimestamp", ""))):
        name = restore["metadata"]["name"]
        checkpoint = known.get(restore["spec"]["checkpointName"])
        if checkpoint is not None and _still_runs(checkpoint):
            continue
        why = _why_not(restore, checkpoint)
        if why and restores.waits(restore):
            return Answer(allowed=False, message=f"Restore {name}: {why}; the pod waits, by its onFailure: Wait")
        if why and _may_come(checkpoint):
            return Answer(allowed=False, message=f"Restore {name}: {why}; the pod waits for it")
        if why:
            warnings.append(f"Restore {name}: {why}; the pod starts from scratch, by its onFailure: ColdStart")
            continue
        assert checkpoint is not None
        if pods.spec_hash(pod["spec"]) != checkpoint["status"].get("podSpecHash"):
            warnings.append(f"Restore {name}: this pod's spec is not the captured pod's; it starts from scratch")
            continue
        if _chosen_yet_absent(restore, now):
            return Answer(allowed=False, message=f"Restore {name}: it has just chosen a pod that isn't there yet")
        if _starts_once(pod, checkpoint):
            warnings.append(f"Restore {name}: this pod fails if it starts before the data is on its node: {_NEVER}")
        return Answer(warnings=tuple(warnings), restore=restore, patch=_patch(pod, restore, checkpoint, runtime_class))
    return Answer(warnings=tuple(warnings))


def _waits_for(restore: Object, pod: Object) -> bool:
    """Whether a Restore, of whose pods none is there, means this one. Its phase may lag behind the pod's end."""
    if checkpoints.deleting(restore) or restores.phase(restore) == words.RESTORED:
        return False
    spec = restore["spec"]
    owner = spec.get("ownerRef")
    if owner:
        same = ("uid", "kind", "apiVersion")
        owners = pod["metadata"].get("ownerReferences") or []
        return any(all(other.get(key) == owner.get(key) for key in same) for other in owners)
    return bool(spec.get("selector")) and selects(spec["selector"], pod["metadata"].get("labels") or {})


def _chosen_yet_absent(restore: Object, now: float) -> bool:
    """Whether a pod was chosen of which nobody knows yet: it may come, or was refused by somebody after us. So the next
    one is perhaps the same once more, and not another replica, which would start from scratch.
    """
    return restores.phase(restore) == words.CREATED and restores.chosen_for(restore, now) is not None


def _starts_once(pod: Object, checkpoint: Object) -> bool:
    """Whether kubelet won't start it again if the data comes too late."""
    return pod["spec"].get("restartPolicy") == "Never" and checkpoints.is_kept(checkpoint)


def _still_runs(checkpoint: Object) -> bool:
    """Whether the pod that is to be replaced is still there: another one of its owner is no replacement."""
    migrates = checkpoint["spec"].get("autoMigration")
    return bool(migrates) and checkpoints.phase(checkpoint) not in (words.SUBMITTING, words.SUBMITTED, words.FAILED)


def _may_come(checkpoint: Object | None) -> bool:
    return checkpoint is not None and checkpoints.phase(checkpoint) != words.FAILED


def _why_not(restore: Object, checkpoint: Object | None) -> str:
    name = restore["spec"]["checkpointName"]
    if restores.phase(restore) == words.FAILED:
        return f"it has failed: {condition(restore, words.READY).get('message', '')}"
    if checkpoint is None:
        return f"there is no Checkpoint {name}"
    if checkpoints.phase(checkpoint) == words.FAILED:
        return f"Checkpoint {name} has failed: {condition(checkpoint, words.READY).get('message', '')}"
    if checkpoints.phase(checkpoint) not in words.COMPLETE or checkpoints.deleting(checkpoint):
        return f"Checkpoint {name} isn't complete"
    return ""


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects nothing here, for it would be any pod."""
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    if not wanted and not expressions:
        return False
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(expression, labels) for expression in expressions)


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }.get(expression["operator"], False)


def _patch(pod: Object, restore: Object, checkpoint: Object, runtime_class: str) -> list[Object]:
    """The pod's annotation, and a node that can do it; that which has the data, where no other can have it in time."""
    metadata, spec = pod["metadata"], pod["spec"]
    policy = names.FAIL if restores.waits(restore) else names.COLD_START
    annotations = {
        **(metadata.get("annotations") or {}),
        names.RESTORE_NAME: checkpoint["metadata"]["name"],
        names.ON_RESTORE_FAILURE: policy,
    }
    labels = {**(metadata.get("labels") or {}), words.RESTORE_LABEL: restore["metadata"]["name"]}
    selector = {**(spec.get("nodeSelector") or {}), words.ABLE: "true"}
    made = [
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
        {"op": "add", "path": "/metadata/labels", "value": labels},
        {"op": "add", "path": "/spec/nodeSelector", "value": selector},
    ]
    if runtime_class and not spec.get("runtimeClassName"):
        made.append({"op": "add", "path": "/spec/runtimeClassName", "value": runtime_class})
    # A pod that may start from scratch would do so before a copy is complete.
    if not checkpoints.is_kept(checkpoint) or not restores.waits(restore):
        affinity = pods.pinned(spec.get("affinity") or {}, checkpoint["status"]["nodeName"])
        made.append({"op": "add", "path": "/spec/affinity", "value": affinity})
    return made
