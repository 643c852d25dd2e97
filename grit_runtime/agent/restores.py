"""The states of a Restore: what is seen of it, and what is to be done. Pure.

Created -> Pending     a pod was chosen (by the webhook, which labels it)
Pending -> Restoring   it has a node
Restoring -> Restored  its containers run
Pending, Restoring -> Created   the pod went before it ran: the next one is chosen
Created -> Failed      the Checkpoint failed
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grit_runtime.agent import checkpoints, pods, words
from grit_runtime.agent.model import NOTHING, Condition, Do, Object, Step, condition, lifetime, moment, seconds
from grit_runtime.agent.outcome import Outcome

_SOON = 5.0
LONGEST = 60.0
"""Seconds between the webhook's choice of a pod and that pod; after them, it was never created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the manager sees of a Restore."""

    restore: Object
    checkpoint: Object | None
    pods: Sequence[Object]
    """Those that were chosen for it (`of`)."""
    now: float


def phase(found: Object) -> str:
    """Its phase; Created if nobody has looked at it."""
    return str((found.get("status") or {}).get("phase") or words.CREATED)


def waits(restore: Object) -> bool:
    """Whether a pod that can't be restored waits, rather than starts from scratch."""
    return bool(restore["spec"].get("onFailure", words.WAIT) == words.WAIT)


def chosen_for(restore: Object, now: float) -> float | None:
    """Seconds for which the pod that the webhook chose may still come; None if none was chosen, or it never came."""
    selected = (restore["metadata"].get("annotations") or {}).get(words.POD_SELECTED)
    if not selected:
        return None
    try:
        left = seconds(selected) + LONGEST - now
    except ValueError:
        return None
    return left if 0 < left <= LONGEST else None


def of(restore: Object, there: Sequence[Object]) -> list[Object]:
    """The pods that were chosen for a Restore: with its name in their label, and not for an older one of that name."""
    name, since = restore["metadata"]["name"], str(restore["metadata"].get("creationTimestamp", ""))
    return [
        pod
        for pod in there
        if (pod["metadata"].get("labels") or {}).get(words.RESTORE_LABEL) == name
        and str(pod["metadata"].get("creationTimestamp", "")) >= since
    ]


def _not_ready(reason: str, message: str) -> Condition:
    return Condition(type=words.READY, status=False, reason=reason, message=message)


def manage(seen: Seen) -> Step:
    """What the manager does."""
    restore = seen.restore
    if checkpoints.deleting(restore):
        return NOTHING
    if phase(restore) in (words.RESTORED, words.FAILED):
        return lifetime(restore, seen.now)
    through = next((pod for pod in seen.pods if pods.has_succeeded(pod)), None)
    if through is not None:
        return _restored(seen, through, f"pod {through['metadata']['name']} has run to its end")
    pod = min(
        (pod for pod in seen.pods if not pods.ends(pod) and not pods.has_ended(pod)),
        key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")),
        default=None,
    )
    if pod is not None:
        return _with_pod(seen, pod)
    return _without_pod(seen)


def _with_pod(seen: Seen, pod: Object) -> Step:
    node, status = pod["spec"].get("nodeName", ""), _of_pod(seen, pod)
    missing = pods.progress(pod)
    # From here on the pod itself says that there is one; once it goes, the next one is chosen without a pause.
    marked = (seen.restore["metadata"].get("annotations") or {}).get(words.POD_SELECTED)
    do = (Do.RELEASE,) if marked else ()
    if not node:
        waits_for = _not_ready("PodPending", missing)
        return Step(status={**status, "phase": words.PENDING}, conditions=(waits_for,), do=do, after=_SOON)
    if missing:
        lacks = condition(seen.restore, words.DATA)
        reason = "WaitingForData" if lacks.get("status") == "False" else "PodStarting"
        waits_for = _not_ready(reason, missing)
        return Step(status={**status, "phase": words.RESTORING}, conditions=(waits_for,), do=do, after=_SOON)
    return _restored(seen, pod, f"the containers of pod {pod['metadata']['name']} run")


def _of_pod(seen: Seen, pod: Object) -> dict[str, object]:
    began = (seen.restore.get("status") or {}).get("startTime") or moment(seen.now)
    return {"targetPod": pod["metadata"]["name"], "nodeName": pod["spec"].get("nodeName", ""), "startTime": began}


def _restored(seen: Seen, pod: Object, message: str) -> Step:
    if not waits(seen.restore):
        message += f"; by onFailure: ColdStart, they may have started from scratch: condition {words.ORIGIN}"
    done = Condition(type=words.READY, status=True, reason="PodRuns", message=message)
    status = {**_of_pod(seen, pod), "phase": words.RESTORED, "completionTime": moment(seen.now)}
    return Step(status=status, conditions=(done,), after=0)


def _without_pod(seen: Seen) -> Step:
    restore, checkpoint = seen.restore, seen.checkpoint
    name = restore["spec"]["checkpointName"]
    selected = (restore["metadata"].get("annotations") or {}).get(words.POD_SELECTED)
    left = chosen_for(restore, seen.now)
    if selected and left is None:
        return Step(do=(Do.RELEASE,), after=0)
    back = {"phase": words.CREATED, "targetPod": "", "nodeName": ""}
    if left is not None:
        chosen = _not_ready("PodChosen", "a pod was chosen, and is not there yet")
        return Step(status=back, conditions=(chosen,), after=left)
    if checkpoint is None:
        return Step(status=back, conditions=(_not_ready("CheckpointNotFound", f"there is no Checkpoint {name}"),))
    if checkpoints.phase(checkpoint) == words.FAILED:
        why = condition(checkpoint, words.READY).get("message", "")
        return Step(
            status={**back, "phase": words.FAILED, "completionTime": moment(seen.now)},
            conditions=(_not_ready("CheckpointFailed", f"Checkpoint {name} has failed: {why}"),),
        )
    if checkpoints.phase(checkpoint) not in words.COMPLETE:
        return Step(status=back, conditions=(_not_ready("CheckpointNotComplete", f"Checkpoint {name} isn't complete"),))
    ended = next((pod for pod in seen.pods if pods.has_ended(pod) and pods.progress(pod)), None)
    why = (
        f"pod {ended['metadata']['name']} has ended: {pods.progress(ended)}" if ended else "no pod has been chosen yet"
    )
    return Step(status=back, conditions=(_not_ready("WaitingForPod", why),))


def in_progress(restore: Object, now: float) -> bool:
    """Whether a pod was chosen that doesn't run yet: it may need the data at any moment."""
    if phase(restore) in (words.RESTORED, words.FAILED):
        return False
    return phase(restore) in (words.PENDING, words.RESTORING) or chosen_for(restore, now) is not None


def on_node(restore: Object, checkpoint: Object | None, node: str, *, there: bool) -> Step:
    """What the agent of the node does to which a chosen pod was bound.

    Args:
        node: the agent's.
        there: the node has the Checkpoint's set, whole.
    """
    if phase(restore) in (words.RESTORED, words.FAILED):
        return NOTHING
    if there:
        return Step(conditions=(_data(True, "OnNode", f"node {node} has the data"),))
    if checkpoint is None or checkpoints.phase(checkpoint) not in words.COMPLETE:
        return Step(conditions=(_data(False, "NoCheckpoint", "there is no complete Checkpoint"),), after=_SOON)
    if not checkpoints.is_kept(checkpoint):
        other = (checkpoint.get("status") or {}).get("nodeName")
        message = f"the data is on node {other} alone: the Checkpoint names no volumeClaim and no registry"
        return Step(conditions=(_data(False, "OnAnotherNode", message),))
    if not checkpoints.is_stored(checkpoint):
        return Step(
            conditions=(_data(False, "NotStored", "the data isn't in its volume or registry yet"),), after=_SOON
        )
    return Step(
        conditions=(_data(False, "Copying", f"the data is being copied to node {node}"),), do=(Do.FETCH,), after=0
    )


def began(found: Sequence[Outcome]) -> Step:
    """What the agent says of a pod that runs, and may have started from scratch."""
    listed = [{"name": one.name, **({} if one.restored is None else {"restored": one.restored})} for one in found]
    cold = [f"{one.name}: {one.why}" for one in found if one.restored is False]
    unknown = [one.name for one in found if one.restored is None]
    reason, message = "AllRestored", "all go on from the checkpoint"
    if cold:
        reason, message = "StartedCold", f"from scratch: {'; '.join(cold)}"
    elif unknown:
        reason, message = "NoRecord", f"the runtime has no record of: {', '.join(unknown)}"
    said = Condition(type=words.ORIGIN, status=not cold and not unknown, reason=reason, message=message)
    return Step(status={"containers": listed}, conditions=(said,))


def _data(there: bool, reason: str, message: str) -> Condition:
    return Condition(type=words.DATA, status=there, reason=reason, message=message)
