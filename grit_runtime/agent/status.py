"""Writing what a state machine has decided: the status, and an event where its reason has changed."""

from grit_runtime.agent import words
from grit_runtime.agent.client import Api
from grit_runtime.agent.model import Condition, Object, Step, condition, moment, patched

_KINDS = {words.CHECKPOINTS: words.CHECKPOINT, words.RESTORES: words.RESTORE}
_EVENTFUL = (words.READY, words.STORED, words.DATA, words.IN_USE, words.ORIGIN)


async def write(api: Api, kind: str, found: Object, step: Step, now: float) -> Object:
    """Change an object's status, if it is still of the version that was looked at; the object as it is then.

    Raises:
        ConflictError: it isn't.
        ApiError: it can't be written.
    """
    fields = patched(found, step, now)
    if not fields:
        return found
    meta = found["metadata"]
    body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": fields}
    changed = await api.patch(kind, meta["namespace"], meta["name"], body, part="status")
    for wanted in step.conditions:
        if wanted.type in _EVENTFUL and condition(found, wanted.type).get("reason") != wanted.reason:
            await _tell(api, kind, found, wanted, now, failed=fields.get("phase") == words.FAILED)
    return changed


async def _tell(api: Api, kind: str, found: Object, wanted: Condition, now: float, *, failed: bool) -> None:
    await api.event(_KINDS[kind], found, wanted.reason, wanted.message, moment(now), warning=failed)


async def finalizers(api: Api, found: Object, *, add: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> None:
    """Add finalizers of ours, or take them away."""
    meta = found["metadata"]
    others = [name for name in meta.get("finalizers") or [] if name not in (*add, *drop)]
    body = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": [*others, *add]}}
    await api.patch(words.CHECKPOINTS, meta["namespace"], meta["name"], body)
