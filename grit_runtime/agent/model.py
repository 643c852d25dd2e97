"""What a state machine answers with, and how that becomes a patch. Pure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


class Do(Enum):
    """What is done besides the status."""

    ADD_FINALIZER = "add the finalizer"
    DROP_FINALIZER = "drop the finalizer"
    DROP_HOLD = "let the data go"
    CREATE_RESTORE = "create the Restore"
    DELETE_POD = "delete the pod"
    DELETE = "delete the object"
    RELEASE = "forget the choice of a pod: it has come, or never will"
    CAPTURE = "capture"
    STORE = "copy to where it is kept"
    FETCH = "copy from where it is kept"
    REMOVE = "remove the data"
    REMOVE_LOCAL = "remove this node's copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition as it is to be; `lastTransitionTime` is found when it is put among the others."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be done about an object now: first the status, then the actions in their order."""

    status: Object = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    do: tuple[Do, ...] = ()
    after: float | None = None
    """Seconds after which to look again though nothing has changed."""


NOTHING = Step()


def moment(now: float) -> str:
    """A time as the API has it (RFC 3339), from seconds since the epoch."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def seconds(text: str) -> float:
    """Seconds since the epoch, of what `moment` made, or the API server. Raises ValueError: it is no such time."""
    import calendar

    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))


def merged(found: Sequence[Object], wanted: Sequence[Condition], now: float, generation: int) -> list[Object]:
    """The conditions with those that are wanted; the time is that of the last change of a status."""
    made = {str(entry.get("type")): entry for entry in found}
    for condition in wanted:
        status = "True" if condition.status else "False"
        old = made.get(condition.type)
        since = old["lastTransitionTime"] if old and old.get("status") == status else moment(now)
        made[condition.type] = {
            "type": condition.type,
            "status": status,
            "reason": condition.reason,
            "message": condition.message[:1000],
            "lastTransitionTime": since,
            "observedGeneration": generation,
        }
    return list(made.values())


def patched(found: Object, step: Step, now: float) -> Object:
    """The status' fields that change by a step; empty if none does."""
    status = found.get("status") or {}
    wanted = dict(step.status)
    if step.conditions:
        generation = int(found["metadata"].get("generation", 0))
        wanted["conditions"] = merged(status.get("conditions") or [], step.conditions, now, generation)
    return {name: value for name, value in wanted.items() if status.get(name) != value}


def condition(found: Object, kind: str) -> Object:
    """A condition of an object; empty if it has none of that kind."""
    listed = (found.get("status") or {}).get("conditions") or []
    return next((entry for entry in listed if entry.get("type") == kind), {})


def expired(found: Object, now: float) -> float | None:
    """Seconds until `ttlSecondsAfterFinished` is over, 0 or less if it is; None if there is no end."""
    lifetime = found["spec"].get("ttlSecondsAfterFinished")
    finished = (found.get("status") or {}).get("completionTime")
    if lifetime is None or not finished:
        return None
    return seconds(finished) + float(lifetime) - now


def lifetime(found: Object, now: float) -> Step:
    """What is left to do about one that is finished."""
    left = expired(found, now)
    if left is None:
        return NOTHING
    return Step(do=(Do.DELETE,)) if left <= 0 else Step(after=left)
