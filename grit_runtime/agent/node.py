"""The agent of a node: captures the pods of its node, keeps their sets, brings those of pods that come to its node."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grit_runtime.agent import capture, checkpoints, outcome, pods, restores, sets, status, words
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.client import Api
from grit_runtime.agent.errors import ApiError, ConflictError, NotFoundError
from grit_runtime.agent.model import Condition, Do, Object, Step, condition, moment
from grit_runtime.agent.queue import Key
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.agent.stores import KeptError, Stores, UnknownStoreError
from grit_runtime.errors import CaptureError, GritError

_LOG = logging.getLogger("grit-agent")
_REPORT = 2.0  # seconds between two reports of a copy's progress
_GOES = 30.0  # seconds that frozen containers wait for their pod to be deleted
_LATER = 60.0
_ATTEMPTS = 5


@dataclass(slots=True, kw_only=True)
class Node:
    """Looks at one object at a time (`queue.Queue`)."""

    api: Api
    name: str
    """The node's."""
    root: str
    """Its checkpoint root, by the runtime's configuration."""
    stores: Stores
    program: capture.Program
    now: Callable[[], float] = time.time
    goes: float = _GOES
    busy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Captures and copies, one at a time: each takes all of the disk."""

    def known(self) -> list[Key]:
        """The Checkpoints that have left something on this node, for a look at each when the agent starts."""
        return [(words.CHECKPOINTS, place.namespace, place.name) for place in sets.of_checkpoints(self.root)]

    def concerns(self, found: Mapping[str, Any]) -> bool:
        """Whether a Checkpoint of which there is an event is of this node, or has left something here."""
        if (found.get("status") or {}).get("nodeName") == self.name:
            return True
        meta = found["metadata"]
        return bool(sets.made_by(self.root, meta["namespace"], meta["name"]).uid)

    async def look(self, key: Key) -> float | None:
        """Look at a Checkpoint, or at a pod of this node that is to be restored; when to look again."""
        kind, namespace, name = key
        if kind == words.CHECKPOINTS:
            return await self._checkpoint(namespace, name)
        return await self._pod(namespace, name)

    # --- Checkpoints --------------------------------------------------------------------------------------------------

    async def _checkpoint(self, namespace: str, name: str) -> float | None:
        found = await self.api.get(words.CHECKPOINTS, namespace, name)
        here = sets.made_by(self.root, namespace, name)
        if here.uid and (found is None or found["metadata"]["uid"] != here.uid):
            await asyncio.to_thread(sets.remove, here)  # its Checkpoint is gone
        if found is None:
            return None
        place = self._place(found)
        data = sets.look(place, _names(found))
        step = checkpoints.on_node(found, self.name, data, self.now())
        if step.status.get("phase") == words.CHECKPOINTED:
            step = await self._described(step, found, place)
        found = await status.write(self.api, words.CHECKPOINTS, found, step, self.now())
        for do in step.do:
            await self._do(do, found, place)
        return step.after

    async def _do(self, do: Do, found: Object, place: Place) -> None:
        if do is Do.CAPTURE:
            async with self.busy:
                await self._capture(found, place)
        elif do is Do.STORE:
            async with self.busy:
                await self._store(found, place)
        elif do is Do.REMOVE:
            await self._remove(found, place)
        elif do is Do.REMOVE_LOCAL:
            await asyncio.to_thread(sets.remove, place)
        elif do is Do.DROP_FINALIZER:
            await status.finalizers(self.api, found, drop=(words.FINALIZER,))

    async def _capture(self, found: Object, place: Place) -> None:
        meta = found["metadata"]
        pod = await self.api.get("pods", meta["namespace"], found["spec"]["podName"])
        try:
            identities = _identities(found, pod)
            await asyncio.to_thread(sets.claim, place)

            async def ends() -> bool:
                return await self._ends(found, place)

            asks = ends if checkpoints.replaces(found) else None
            await capture.capture(self.program, meta["name"], identities, asks)
        except (GritError, OSError) as err:
            if sets.look(place, _names(found)) is not Data.WHOLE:
                await self._failed(found, err)
                return
            # The set is whole; what failed came after it.
            await self._captured(found, place)
            return
        await self._captured(found, place)

    async def _remove(self, found: Object, place: Place) -> None:
        """Remove the data here and where it is kept. Raises GritError: that isn't there now."""
        if checkpoints.is_kept(found):
            try:
                await asyncio.to_thread(self.stores.of(found, self.name).remove, place)
            except KeptError as err:
                await self._warns(found, "DataKept", str(err))
            except (GritError, OSError) as err:
                reason = err.reason if isinstance(err, UnknownStoreError) else "RemovalFailed"
                if isinstance(err, UnknownStoreError) and not checkpoints.is_stored(found):
                    await asyncio.to_thread(sets.remove, place)
                    return
                why = f"the data that is kept for other nodes can't be removed: {err}"
                await self._warns(found, reason, why)
                raise GritError(why) from None
        await asyncio.to_thread(sets.remove, place)

    async def _warns(self, found: Object, reason: str, message: str) -> None:
        await self.api.event(words.CHECKPOINT, found, reason, message, moment(self.now()), warning=True)

    async def _captured(self, found: Object, place: Place) -> None:
        """Say that the set is whole; nothing if that was said. Containers may be frozen meanwhile: it is said at once,
        also if somebody else has changed the object.
        """
        for attempt in range(_ATTEMPTS):
            current = await self._again(found)
            if checkpoints.phase(current) != words.CHECKPOINTING:
                return
            step = await self._described(checkpoints.captured(current, self.now()), current, place)
            try:
                await status.write(self.api, words.CHECKPOINTS, current, step, self.now())
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    async def _described(self, step: Step, found: Object, place: Place) -> Step:
        """The step, with what is in the set; or the end, if that can't be read."""
        try:
            contents = await asyncio.to_thread(sets.contents, place, _names(found))
        except (GritError, OSError) as err:
            return checkpoints.failed("DataDamaged", str(err), self.now())
        total = sum(int(str(entry["bytes"])) for entry in contents)
        return replace(step, status={**step.status, "containers": contents, "bytes": total})

    async def _failed(self, found: Object, err: Exception) -> None:
        current = await self._again(found)
        reason = "CaptureFailed" if isinstance(err, CaptureError) else "NodeFailed"
        step = checkpoints.failed(reason, str(err), self.now())
        await status.write(self.api, words.CHECKPOINTS, current, step, self.now())

    async def _ends(self, found: Object, place: Place) -> bool:
        """Say that the set is whole; whether the pod is being deleted then. The containers are frozen meanwhile, so
        that takes `goes` at most, also if the API server is away or, while it starts, forbids everything.
        """
        told = False
        with contextlib.suppress(TimeoutError, NotFoundError):  # the Checkpoint is gone
            async with asyncio.timeout(self.goes):
                while True:
                    try:
                        if not told:
                            await self._captured(found, place)
                            told = True
                        pod = await self.api.get("pods", found["metadata"]["namespace"], found["spec"]["podName"])
                        if pods.uid(pod) != found["status"]["podUID"] or pods.ends(pod):
                            return True
                    except NotFoundError:
                        raise
                    except ApiError as err:
                        _LOG.warning("%s is frozen, and waits: %s", place.path, err)
                    await asyncio.sleep(0.2)
        return False

    async def _store(self, found: Object, place: Place) -> None:
        try:
            store = self.stores.of(found, self.name)
            told = await self._copied(found, functools.partial(store.put, place))
        except UnknownStoreError as err:
            await self._says(found, _stored(err.reason, str(err)))
            return
        except (GritError, OSError) as err:
            await self._says(found, _stored("CopyFailed", str(err)))
            raise GritError(f"cannot copy {place.path} to where it is kept: {err}") from None
        done = Condition(type=words.STORED, status=True, reason="Stored", message=f"{store.shown} has the data")
        await self._says(found, done, **told)

    async def _copied(self, found: Object, copy: Callable[[Progress], Object]) -> Object:
        """Copy a set, and report how far it is."""
        progress, begun = Progress(), self.now()
        copying = asyncio.create_task(asyncio.to_thread(copy, progress))
        try:
            while not (await asyncio.wait({copying}, timeout=_REPORT))[0]:
                await self._progressed(found, progress, self.now() - begun)
            made = await copying
            await self._progressed(found, progress, self.now() - begun)
        finally:
            progress.stop.set()
            await asyncio.wait({copying})
        return made

    async def _progressed(self, found: Object, progress: Progress, seconds: float) -> None:
        rate = int(progress.done / seconds) if seconds > 0 else 0
        counted = Step(status={"storedBytes": min(progress.done, progress.total), "bytesPerSecond": rate})
        with contextlib.suppress(ApiError):  # the next report says it
            current = await self._again(found)
            await status.write(self.api, words.CHECKPOINTS, current, counted, self.now())

    async def _says(self, found: Object, *conditions: Condition, **told: Any) -> None:
        current = await self._again(found)
        await status.write(self.api, words.CHECKPOINTS, current, Step(status=told, conditions=conditions), self.now())

    async def _again(self, found: Object) -> Object:
        """The object as it is now; as it was, if it is gone."""
        meta = found["metadata"]
        return await self.api.get(words.CHECKPOINTS, meta["namespace"], meta["name"]) or found

    # --- Restores -----------------------------------------------------------------------------------------------------

    async def _pod(self, namespace: str, name: str) -> float | None:
        pod = await self.api.get("pods", namespace, name)
        if pod is None or pods.ends(pod) or pod["spec"].get("nodeName") != self.name:
            return None
        label = (pod["metadata"].get("labels") or {}).get(words.RESTORE_LABEL, "")
        restore = await self.api.get(words.RESTORES, namespace, label) if label else None
        if restore is None:
            return None
        if not pods.progress(pod):
            await self._began(restore, pod)
            return None
        found = await self.api.get(words.CHECKPOINTS, namespace, restore["spec"]["checkpointName"])
        there = found is not None and sets.look(self._place(found), _names(found)) is Data.WHOLE
        step = restores.on_node(restore, found, self.name, there=there)
        restore = await status.write(self.api, words.RESTORES, restore, step, self.now())
        if Do.FETCH in step.do and found is not None:
            return await self._fetch(restore, found)
        return step.after

    async def _began(self, restore: Object, pod: Object) -> None:
        """The pod runs: say which of its containers have started from scratch, where they may."""
        if not restores.waits(restore) and not condition(restore, words.ORIGIN):
            step = restores.began(await outcome.of(self.program, pods.identities(pod)))
            await status.write(self.api, words.RESTORES, restore, step, self.now())

    async def _fetch(self, restore: Object, found: Object) -> float | None:
        place, progress = self._place(found), Progress()
        async with self.busy:
            try:
                copy = functools.partial(self.stores.of(found, self.name).get, place, progress)
                copying = asyncio.create_task(asyncio.to_thread(copy))
                try:
                    await asyncio.shield(copying)
                finally:
                    progress.stop.set()
                    await asyncio.wait({copying})
            except (GritError, OSError) as err:
                reason = err.reason if isinstance(err, UnknownStoreError) else "CopyFailed"
                lacks = Condition(type=words.DATA, status=False, reason=reason, message=str(err))
                await status.write(self.api, words.RESTORES, restore, Step(conditions=(lacks,)), self.now())
                return _LATER
        return 0

    # --- both ---------------------------------------------------------------------------------------------------------

    def _place(self, found: Object) -> Place:
        meta = found["metadata"]
        return Place(root=self.root, namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])


def _names(found: Object) -> list[str]:
    return [str(entry["name"]) for entry in (found.get("status") or {}).get("containers") or []]


def _identities(found: Object, pod: Object | None) -> Sequence[str]:
    """The ids of the containers to be captured. Raises CaptureError: the pod is another, or they don't run."""
    name = found["spec"]["podName"]
    if pods.uid(pod) != found["status"]["podUID"] or pod is None:
        raise CaptureError(f"pod {name} is gone, or another of that name has taken its place")
    running = pods.identities(pod)
    missing = [container for container in _names(found) if container not in running]
    if missing:
        raise CaptureError(f"containers of pod {name} don't run: {', '.join(missing)}")
    return [running[container] for container in _names(found)]


def _stored(reason: str, message: str) -> Condition:
    return Condition(type=words.STORED, status=False, reason=reason, message=message)
