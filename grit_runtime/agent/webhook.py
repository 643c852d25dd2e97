"""The mutating webhook for pods: an HTTPS server that answers AdmissionReviews (admission.k8s.io/v1).

A handler of our own, not kopf's: kopf's answers for an object that was seen before; here the Restores are read at the
moment of the question, and the one that is chosen is marked before the answer, by its version, so that two pods that
come at once don't get the same one.
"""

import base64
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from grit_runtime.agent import admission, words
from grit_runtime.agent.admission import Answer
from grit_runtime.agent.client import Api
from grit_runtime.agent.errors import ApiError, ConflictError
from grit_runtime.agent.model import Object, moment

PATH = "/mutate-core-v1-pod"
_ATTEMPTS = 4
_MOST = 4 << 20  # bytes of a review; etcd takes objects of 1.5 MiB


@dataclass(slots=True, kw_only=True)
class Webhook:
    """Answers reviews of pods that are to be created."""

    api: Api
    runtime_class: str
    now: Callable[[], float] = time.time

    def application(self) -> web.Application:
        """The server's routes."""
        made = web.Application(client_max_size=_MOST)
        made.router.add_post(PATH, self._serve)
        made.router.add_get("/healthz", _healthy)
        return made

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            review = await request.json()
            asked = review["request"]
            answer = {"uid": str(asked["uid"])}
            pod = asked["object"]
            namespace = str(asked["namespace"])
            metadata, _ = pod["metadata"], pod["spec"]["containers"]
            assert isinstance(metadata, dict)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise web.HTTPBadRequest(text="this is no AdmissionReview of a pod") from None
        try:
            decided = await self._decide(pod, namespace, dry=bool(asked.get("dryRun")))
        except ApiError as err:
            # The pod waits: without an answer nobody knows whether it is to be restored.
            decided = Answer(allowed=False, message=f"grit-agent can't look for Restores: {err}")
        return web.json_response(
            {
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {**answer, **_response(decided)},
            }
        )

    async def _decide(self, pod: Object, namespace: str, *, dry: bool) -> Answer:
        """The answer. Raises ApiError: the API server can't be asked, or the Restore changes all the time."""
        for _ in range(_ATTEMPTS):
            # The manager writes the status of a new Restore while the pod is being created.
            with contextlib.suppress(ConflictError):
                return await self._decide_once(pod, namespace, dry=dry)
        return await self._decide_once(pod, namespace, dry=dry)

    async def _decide_once(self, pod: Object, namespace: str, *, dry: bool) -> Answer:
        found = await self.api.list(words.RESTORES, namespace)
        if not found:
            return Answer()
        known = {entry["metadata"]["name"]: entry for entry in await self.api.list(words.CHECKPOINTS, namespace)}
        # After the Restores: a pod that one of them has chosen is among these, or its choice is seen.
        there = await self.api.list("pods", namespace, {words.RESTORE_LABEL: ""})
        decided = admission.decide(pod, found, known, there, runtime_class=self.runtime_class, now=self.now())
        if decided.restore is not None and not dry:
            meta = decided.restore["metadata"]
            # Raises ConflictError if it has changed: another pod was quicker, for one.
            mark = {"resourceVersion": meta["resourceVersion"], "annotations": {words.POD_SELECTED: moment(self.now())}}
            await self.api.patch(words.RESTORES, namespace, meta["name"], {"metadata": mark})
        return decided


def _response(decided: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {"allowed": decided.allowed}
    if decided.message:
        made["status"] = {"code": 409, "message": decided.message}
    if decided.warnings:
        made["warnings"] = [text[:256] for text in decided.warnings]
    if decided.patch:
        made["patchType"] = "JSONPatch"
        made["patch"] = base64.b64encode(json.dumps(decided.patch).encode()).decode()
    return made


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def serve(webhook: Webhook, host: str, port: int, context: ssl.SSLContext | None) -> web.AppRunner:
    """Serve until `cleanup()` of what is returned."""
    runner = web.AppRunner(webhook.application())
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=context).start()
    return runner
