"""The states of a Checkpoint: what is seen of it, and what is to be done. Pure.

The manager says which pod it is and what becomes of it afterwards; the agent of its node captures it. Each acts in
phases of its own, so that no two write the same:

    Created -> Pending             manager: the pod can be captured
    Pending -> Checkpointing       node
    Checkpointing -> Checkpointed  node: the set is whole on the node
    Checkpointed -> Submitting     manager: the pod is to be replaced, and is deleted
    Submitting -> Submitted        manager: it is gone
    any before Checkpointed -> Failed
"""

from dataclasses import dataclass
from enum import Enum

from grit_runtime.agent import pods, words
from grit_runtime.agent.model import NOTHING, Condition, Do, Object, Step, condition, lifetime, moment

_LATER = 60.0
_SOON = 5.0  # seconds until a pod that doesn't run yet is looked at again


class Data(Enum):
    """What is on a node under a Checkpoint's name."""

    NONE = "nothing, or what was cut short"
    WHOLE = "the set of this Checkpoint, whole"
    FOREIGN = "a checkpoint that this Checkpoint has not made"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the manager sees of a Checkpoint."""

    checkpoint: Object
    pod: Object | None
    """Of the name in its spec."""
    node_there: bool = True
    """Whether the node of its status exists."""
    in_use: bool = False
    """Whether a pod is there that was restored from it: kubelet restores its containers from there again."""
    restoring: tuple[str, ...] = ()
    """The Restores from it that are in progress."""
    now: float


def deleting(found: Object) -> bool:
    """Whether it is being deleted."""
    return bool(found["metadata"].get("deletionTimestamp"))


def phase(found: Object) -> str:
    """Its phase; Created if nobody has looked at it."""
    return str((found.get("status") or {}).get("phase") or words.CREATED)


def replaces(checkpoint: Object) -> bool:
    """Whether the pod goes when it is captured."""
    spec = checkpoint["spec"]
    return bool(spec.get("autoMigration")) or spec.get("leaveRunning", True) is False


def is_kept(checkpoint: Object) -> bool:
    """Whether the data is to be kept for other nodes, in a volume or in a registry."""
    return bool(checkpoint["spec"].get("volumeClaim") or checkpoint["spec"].get("registry"))


def is_stored(checkpoint: Object) -> bool:
    """Whether the volume or the registry has the data."""
    return condition(checkpoint, words.STORED).get("status") == "True"


def failed(reason: str, message: str, now: float) -> Step:
    """The end of one that can't be captured."""
    return Step(
        status={"phase": words.FAILED, "completionTime": moment(now)},
        conditions=(Condition(type=words.READY, status=False, reason=reason, message=message),),
    )


def manage(seen: Seen) -> Step:
    """What the manager does."""
    checkpoint, has = seen.checkpoint, seen.checkpoint["metadata"].get("finalizers") or []
    node = (checkpoint.get("status") or {}).get("nodeName")
    waits = Step(after=_LATER)  # for the node's agent: of a node's end there is no event
    if deleting(checkpoint):
        if words.HOLD in has:
            return _held(seen.restoring)
        # Without a node there is no data; that of a node which is gone is gone with it, or in the volume.
        orphan = words.FINALIZER in has and (not node or not seen.node_there)
        return Step(do=(Do.DROP_FINALIZER,)) if orphan else waits
    if not {words.FINALIZER, words.HOLD} <= set(has):
        return Step(do=(Do.ADD_FINALIZER,), after=0)
    current = phase(checkpoint)
    if current == words.CREATED:
        return _created(seen)
    if current in (words.PENDING, words.CHECKPOINTING):
        if not seen.node_there:
            return failed("NodeGone", f"node {node} is gone", seen.now)
        return waits
    if current == words.CHECKPOINTED and replaces(checkpoint):
        # The webhook takes a pod for the replacement from this phase on: it is said before the pod goes.
        return Step(
            status={"phase": words.SUBMITTING},
            conditions=(
                Condition(type=words.READY, status=True, reason="PodIsReplaced", message="the pod is deleted"),
            ),
            after=0,
        )
    if current == words.SUBMITTING:
        return _submitting(seen)
    step = lifetime(checkpoint, seen.now)
    return Step(after=_LATER) if seen.in_use and step.do else step


def _held(restoring: tuple[str, ...]) -> Step:
    """The data goes once no Restore is in progress; new ones aren't begun from a Checkpoint that is being deleted."""
    if not restoring:
        return Step(do=(Do.DROP_HOLD,), after=0)
    message = (
        f"it is deleted, and its data removed, once Restore {', '.join(restoring)} has its pod running, or is gone"
    )
    held = Condition(type=words.IN_USE, status=True, reason="RestoreInProgress", message=message)
    return Step(conditions=(held,), after=_SOON)


def _created(seen: Seen) -> Step:
    checkpoint, pod, now = seen.checkpoint, seen.pod, seen.now
    name = checkpoint["spec"]["podName"]
    if checkpoint["spec"].get("volumeClaim") and checkpoint["spec"].get("registry"):
        return failed("TwoPlaces", "the spec has both a volumeClaim and a registry: the data is kept in one", now)
    if pod is None:
        return failed("PodNotFound", f"there is no pod {name} in this namespace", now)
    never = pods.why_never(pod) or (_why_not_migrated(pod) if checkpoint["spec"].get("autoMigration") else None)
    if never:
        return failed(*never, now)
    wait = pods.why_not_yet(pod)
    if wait:
        message = f"pod {name} can't be captured yet: {wait}"
        waits = Condition(type=words.READY, status=False, reason="PodNotRunning", message=message)
        return Step(status={"phase": words.CREATED}, conditions=(waits,), after=_SOON)
    status = {
        "phase": words.PENDING,
        "nodeName": pod["spec"]["nodeName"],
        "podUID": pods.uid(pod),
        "podSpecHash": pods.spec_hash(pod["spec"]),
        "dataPath": f"{checkpoint['metadata']['namespace']}/{checkpoint['metadata']['name']}",
        "containers": [{"name": container} for container in pods.containers(pod)],
    }
    message = f"waiting for the agent of node {pod['spec']['nodeName']}"
    waits = Condition(type=words.READY, status=False, reason="WaitingForAgent", message=message)
    return Step(status=status, conditions=(waits,))


def _why_not_migrated(pod: Object) -> tuple[str, str] | None:
    name = pod["metadata"]["name"]
    if pods.controller(pod) is None:
        return "NoOwner", f"pod {name} has no owner that would replace it"
    if (pod["metadata"].get("labels") or {}).get(words.OPT_IN) != "true":
        return (
            "NotRestorable",
            f"pod {name} has no label {words.OPT_IN}=true: the pod that replaces it would start from scratch",
        )
    return None


def _submitting(seen: Seen) -> Step:
    checkpoint, status = seen.checkpoint, seen.checkpoint["status"]
    if pods.uid(seen.pod) != status.get("podUID"):
        gone = Condition(type=words.READY, status=True, reason="PodReplaced", message="the captured pod is gone")
        return Step(status={"phase": words.SUBMITTED}, conditions=(gone,))
    # The Restore first: the pod that replaces this one may be created at once.
    migrates = (Do.CREATE_RESTORE,) if checkpoint["spec"].get("autoMigration") else ()
    return Step(do=(*migrates, *(() if pods.ends(seen.pod) else (Do.DELETE_POD,))), after=_SOON)


def on_node(checkpoint: Object, node: str, data: Data, now: float) -> Step:
    """What the agent of a node does.

    Args:
        node: the agent's.
        data: what is there under this name.
    """
    status = checkpoint.get("status") or {}
    mine = status.get("nodeName") == node
    if deleting(checkpoint):
        return _removed(checkpoint, data, mine=mine)
    current = phase(checkpoint)
    if not mine:
        return NOTHING
    if current == words.PENDING:
        if data is Data.FOREIGN:
            message = f"node {node} has a checkpoint {status.get('dataPath')} that this Checkpoint has not made"
            return failed("NameTaken", message, now)
        begun = Condition(type=words.READY, status=False, reason="Capturing", message="the pod is being captured")
        return Step(
            status={"phase": words.CHECKPOINTING, "startTime": moment(now)}, conditions=(begun,), do=(Do.CAPTURE,)
        )
    if current == words.CHECKPOINTING:
        # Whole: the agent was restarted between the capture and saying so.
        return captured(checkpoint, now) if data is Data.WHOLE else Step(do=(Do.CAPTURE,))
    if current in words.COMPLETE and is_kept(checkpoint) and not is_stored(checkpoint):
        return _to_store(node, data)
    return NOTHING


def captured(checkpoint: Object, now: float) -> Step:
    """The set is whole on the node."""
    done = Condition(
        type=words.READY, status=True, reason="Captured", message="all containers were captured as one set"
    )
    stored: tuple[Condition, ...] = ()
    if is_kept(checkpoint):
        stored = (Condition(type=words.STORED, status=False, reason="Copying", message="the node has it alone"),)
    return Step(
        status={"phase": words.CHECKPOINTED, "completionTime": moment(now)}, conditions=(done, *stored), after=0
    )


def _to_store(node: str, data: Data) -> Step:
    if data is Data.WHOLE:
        return Step(do=(Do.STORE,))
    lost = Condition(type=words.STORED, status=False, reason="DataLost", message=f"node {node} has the data no more")
    return Step(conditions=(lost,))


def _removed(checkpoint: Object, data: Data, *, mine: bool) -> Step:
    has = checkpoint["metadata"].get("finalizers") or []
    if words.HOLD in has:
        return NOTHING
    kept = words.FINALIZER not in has
    if mine and not kept:
        return Step(do=(Do.REMOVE, Do.DROP_FINALIZER))
    return Step(do=(Do.REMOVE_LOCAL,)) if data is Data.WHOLE else NOTHING
