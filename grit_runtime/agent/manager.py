"""The manager: which pod a Checkpoint means, what becomes of it afterwards, and how far a Restore's pod is."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.agent import checkpoints, pods, restores, status, words
from grit_runtime.agent.client import Api
from grit_runtime.agent.errors import ConflictError
from grit_runtime.agent.model import Do, Object
from grit_runtime.agent.queue import Key


@dataclass(slots=True, kw_only=True)
class Manager:
    """Looks at one object at a time (`queue.Queue`)."""

    api: Api
    wake: Callable[[Key], None]
    """Asks for a look at another object."""
    now: Callable[[], float] = time.time

    async def look(self, key: Key) -> float | None:
        """Look at a Checkpoint or a Restore; when to look again."""
        kind, namespace, name = key
        found = await self.api.get(kind, namespace, name)
        if kind == words.RESTORES:
            return None if found is None else await self._restore(found)
        # What becomes of a Checkpoint is of interest to the Restores that name it, also that it is gone.
        named = [one for one in await self.api.list(words.RESTORES, namespace) if one["spec"]["checkpointName"] == name]
        for restore in named:
            self.wake((words.RESTORES, namespace, str(restore["metadata"]["name"])))
        return None if found is None else await self._checkpoint(found, named)

    async def _checkpoint(self, found: Object, named: list[Object]) -> float | None:
        namespace = found["metadata"]["namespace"]
        node = (found.get("status") or {}).get("nodeName")
        pod = await self.api.get("pods", namespace, found["spec"]["podName"])
        there = not node or await self.api.get("nodes", "", node) is not None
        used = await self._used(found)
        now = self.now()
        restoring = tuple(str(one["metadata"]["name"]) for one in named if restores.in_progress(one, now))
        seen = checkpoints.Seen(checkpoint=found, pod=pod, node_there=there, in_use=used, restoring=restoring, now=now)
        step = checkpoints.manage(seen)
        found = await status.write(self.api, words.CHECKPOINTS, found, step, self.now())
        for do in step.do:
            await self._do(do, words.CHECKPOINTS, found, pod)
        return step.after

    async def _used(self, found: Object) -> bool:
        """Whether a pod is there that was restored from a Checkpoint; asked only about one whose time has an end."""
        if found["spec"].get("ttlSecondsAfterFinished") is None:
            return False
        meta = found["metadata"]
        for pod in await self.api.list("pods", meta["namespace"], {words.RESTORE_LABEL: ""}):
            annotations = pod["metadata"].get("annotations") or {}
            if annotations.get(names.RESTORE_NAME) == meta["name"] and not pods.has_ended(pod):
                return True
        return False

    async def _restore(self, found: Object) -> float | None:
        meta, before = found["metadata"], restores.phase(found)
        checkpoint = await self.api.get(words.CHECKPOINTS, meta["namespace"], found["spec"]["checkpointName"])
        listed = await self.api.list("pods", meta["namespace"], {words.RESTORE_LABEL: meta["name"]})
        its = restores.of(found, listed)
        seen = restores.Seen(restore=found, checkpoint=checkpoint, pods=its, now=self.now())
        step = restores.manage(seen)
        found = await status.write(self.api, words.RESTORES, found, step, self.now())
        if checkpoint is not None and checkpoints.deleting(checkpoint) and restores.phase(found) != before:
            self.wake((words.CHECKPOINTS, meta["namespace"], checkpoint["metadata"]["name"]))  # it may be waiting
        for do in step.do:
            await self._do(do, words.RESTORES, found, None)
        return step.after

    async def _do(self, do: Do, kind: str, found: Object, pod: Object | None) -> None:
        meta = found["metadata"]
        if do is Do.ADD_FINALIZER:
            await status.finalizers(self.api, found, add=(words.FINALIZER, words.HOLD))
        elif do is Do.DROP_FINALIZER:
            await status.finalizers(self.api, found, drop=(words.FINALIZER,))
        elif do is Do.DROP_HOLD:
            await status.finalizers(self.api, found, drop=(words.HOLD,))
        elif do is Do.CREATE_RESTORE and pod is not None:
            await self._create_restore(found, pod)
        elif do is Do.DELETE_POD and pod is not None:
            await self.api.delete("pods", meta["namespace"], pod["metadata"]["name"], pods.uid(pod))
        elif do is Do.DELETE:
            await self.api.delete(kind, meta["namespace"], meta["name"], meta["uid"])
        elif do is Do.RELEASE:
            gone = {"resourceVersion": meta["resourceVersion"], "annotations": {words.POD_SELECTED: None}}
            await self.api.patch(kind, meta["namespace"], meta["name"], {"metadata": gone})

    async def _create_restore(self, found: Object, pod: Object) -> None:
        """The Restore of a migration, of the Checkpoint's name, and deleted with it; nothing if there is one."""
        meta, owner = found["metadata"], pods.controller(pod)
        assert owner is not None
        reference = {
            "apiVersion": words.API_VERSION,
            "kind": words.CHECKPOINT,
            "name": meta["name"],
            "uid": meta["uid"],
        }
        body = {
            "apiVersion": words.API_VERSION,
            "kind": words.RESTORE,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "ownerReferences": [reference]},
            "spec": {
                "checkpointName": meta["name"],
                "ownerRef": {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")},
            },
        }
        try:
            await self.api.create(words.RESTORES, meta["namespace"], body)
        except ConflictError:
            return
