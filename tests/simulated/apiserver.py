"""A simulated API server: the part of Kubernetes' HTTP that the agent and kopf ask for, in one process of the test.

Lists, watches (with bookmarks left out), merge patches, the status subresource, optimistic locking (409), finalizers,
graceful deletion of pods, pruning and the schema of our own resources, `410 Gone` for a version that was compacted, the
rules of RBAC for whoever says with a token who it is; and faults that a test asks for. What it is not: it has no
admission and evaluates no CEL.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import jsonschema
from aiohttp import web

from grit_runtime.agent import crds, words

Object = dict[str, Any]
Key = tuple[str, str, str]

_CORE = {"pods": "Pod", "events": "Event", "nodes": "Node", "namespaces": "Namespace"}
_OURS = {words.CHECKPOINTS: words.CHECKPOINT, words.RESTORES: words.RESTORE}
_CLUSTER = {"nodes", "namespaces"}
_VERBS = ["get", "list", "watch", "create", "patch", "delete"]
_PATH = r"/{base:api/v1|apis/grit\.dev/v1alpha1}"


@dataclass(slots=True)
class Fault:
    """What happens to requests whose `METHOD path` matches, `times` times."""

    pattern: str
    status: int = 0
    """An answer with this status; 0: the connection is cut without one."""
    after: bool = False
    """Once the request was served: it is done, and nobody is told."""
    hang: float = 0
    times: int = 1


@dataclass(slots=True)
class ApiServer:
    """Serves on a port of 127.0.0.1; a context manager."""

    objects: dict[Key, Object] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query`, of all that was asked."""
    faults: list[Fault] = field(default_factory=list)
    roles: dict[str, list[Object]] = field(default_factory=dict)
    """Token to the rules of its ClusterRole; without a token everything is allowed."""
    port: int = 0
    graceful: bool = True
    """A deleted pod stays, until `kubelet_removes`."""
    _version: int = 100
    _oldest: int = 0
    _log: list[tuple[int, str, Key, Object]] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None
    _streams: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "ApiServer":
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def restart(self, *, down: float = 0.2) -> None:
        """Cut every connection, and be away for a while; what is stored stays."""
        await self._stop()
        await asyncio.sleep(down)
        await self._listen()

    async def compact(self) -> None:
        """Forget what was before: a watch from there is told `410 Gone`."""
        self._oldest = self._version
        for stream in self._streams:
            stream.cancel()

    async def _listen(self) -> None:
        application = web.Application(middlewares=[self._faulty])
        for path, answer in (("/api", {"versions": ["v1"]}), ("/apis", _GROUPS), ("/version", {"major": "1"})):
            application.router.add_get(path, _always(answer))
        application.router.add_get("/api/v1", _always(_resources("v1", _CORE)))
        application.router.add_get(f"/apis/{words.API_VERSION}", _always(_resources(words.API_VERSION, _OURS)))
        for scope in ("", "/namespaces/{namespace}"):
            application.router.add_get(f"{_PATH}{scope}/{{kind}}", self._list)
            application.router.add_post(f"{_PATH}{scope}/{{kind}}", self._create)
            one = f"{_PATH}{scope}/{{kind}}/{{name}}"
            application.router.add_get(one, self._get)
            application.router.add_patch(one, self._patch)
            application.router.add_patch(f"{one}/status", self._patch)
            application.router.add_delete(one, self._delete)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def _stop(self) -> None:
        for stream in list(self._streams):
            stream.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    # --- what tests do ------------------------------------------------------------------------------------------------

    async def put(self, kind: str, found: Object) -> Object:
        """Make or replace an object, as if somebody else had."""
        meta = found["metadata"]
        key = (kind, "" if kind in _CLUSTER else meta.setdefault("namespace", "default"), meta["name"])
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("generation", 1)
        meta.setdefault("creationTimestamp", _now())
        return await self._store(key, found, "MODIFIED" if key in self.objects else "ADDED")

    def find(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """An object as it is now."""
        return deepcopy(self.objects.get((kind, namespace, name)))

    async def change(
        self, kind: str, name: str, change: Callable[[Object], object], namespace: str = "default"
    ) -> None:
        """Change an object, as if somebody else had."""
        found = deepcopy(self.objects[kind, namespace, name])
        change(found)
        await self._store((kind, namespace, name), found, "MODIFIED")

    async def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """Take an object away for good, as kubelet does with a pod that has ended."""
        found = self.objects.pop((kind, namespace, name))
        self._version += 1
        await self._tell("DELETED", (kind, namespace, name), found)

    def events(self) -> list[tuple[str, str]]:
        """The reasons and messages of the events that were posted."""
        return [(found["reason"], found["message"]) for key, found in self.objects.items() if key[0] == "events"]

    # --- what it serves -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _faulty(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        asked = f"{request.method} {request.path_qs}"
        self.requests.append(asked)
        if not self._may(request):
            return _status(403, f"forbidden: {asked}")
        fault = next((one for one in self.faults if one.times and re.search(one.pattern, asked)), None)
        if fault is None:
            return await handler(request)
        fault.times -= 1
        if fault.after:
            await handler(request)
        if fault.hang:
            await asyncio.sleep(fault.hang)
        if fault.status:
            return _status(fault.status, "a fault that the test asked for")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _may(self, request: web.Request) -> bool:
        """What the authorizer of RBAC says."""
        kind, token = request.match_info.get("kind"), request.headers.get("Authorization", "").removeprefix("Bearer ")
        if kind is None or not token:
            return True
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "get")
        if verb == "get" and "name" not in request.match_info:
            verb = "watch" if request.query.get("watch") == "true" else "list"
        resource = f"{kind}/status" if request.path.endswith("/status") else kind
        group = words.GROUP if kind in _OURS else ""
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.roles[token]
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request)
        items = [found for key, found in sorted(self.objects.items()) if _seen(request, key, found)]
        head = {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": str(self._version)}}
        return web.json_response({**head, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", "0"))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            if since < self._oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            while True:
                for version, what, key, found in [entry for entry in self._log if entry[0] > since]:
                    since = version
                    if _seen(request, key, found):
                        await response.write(json.dumps({"type": what, "object": found}).encode() + b"\n")
                async with self._changed:
                    if not self._log or self._log[-1][0] <= since:
                        await self._changed.wait()
        except ConnectionResetError:
            return response
        finally:
            self._streams.discard(task)

    async def _get(self, request: web.Request) -> web.Response:
        found = self.objects.get(_key(request))
        return _status(404, "not found") if found is None else web.json_response(found)

    async def _create(self, request: web.Request) -> web.Response:
        found = await request.json()
        meta, kind = found["metadata"], request.match_info["kind"]
        if "name" not in meta:
            meta["name"] = f"{meta['generateName']}{uuid.uuid4().hex[:5]}"
        key = (kind, request.match_info.get("namespace", ""), meta["name"])
        if key in self.objects:
            return _status(409, "already exists")
        meta |= {"namespace": key[1], "uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": _now()}
        if kind in _OURS:
            found.pop("status", None)
            why = _invalid(kind, found)
            if why:
                return _status(422, why)
        return web.json_response(await self._store(key, found, "ADDED"), status=201)

    async def _patch(self, request: web.Request) -> web.Response:
        key, patch = _key(request), await request.json()
        old = self.objects.get(key)
        if old is None:
            return _status(404, "not found")
        version = (patch.get("metadata") or {}).get("resourceVersion")
        if version is not None and version != old["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified")
        part = request.path.endswith("/status")
        allowed = {"status"} if part else set(patch) - ({"status"} if key[0] in _OURS else set())
        found = _merged(deepcopy(old), {name: value for name, value in patch.items() if name in allowed})
        why = _invalid(key[0], found) if key[0] in _OURS else ""
        if why:
            return _status(422, why)
        if found == old:
            return web.json_response(old)  # as the real one: no new version
        return web.json_response(await self._store(key, found, "MODIFIED"))

    async def _delete(self, request: web.Request) -> web.Response:
        key = _key(request)
        found = deepcopy(self.objects.get(key))
        if found is None:
            return _status(404, "not found")
        body = await request.json() if request.can_read_body else {}
        wanted = (body.get("preconditions") or {}).get("uid")
        if wanted not in (None, found["metadata"]["uid"]):
            return _status(409, "the UID in the precondition is another")
        if found["metadata"].get("finalizers") or (key[0] == "pods" and self.graceful):
            found["metadata"].setdefault("deletionTimestamp", _now())
            return web.json_response(await self._store(key, found, "MODIFIED"))
        await self.remove(*key[:1], key[2], key[1])
        return web.json_response(found)

    async def _store(self, key: Key, found: Object, what: str) -> Object:
        self._version += 1
        found = deepcopy(found)
        found["metadata"]["resourceVersion"] = str(self._version)
        kinds = {**_CORE, **_OURS}
        found |= {"kind": kinds[key[0]], "apiVersion": words.API_VERSION if key[0] in _OURS else "v1"}
        if found["metadata"].get("deletionTimestamp") and not found["metadata"].get("finalizers") and key[0] in _OURS:
            self.objects.pop(key, None)
            await self._tell("DELETED", key, found)
            return found
        self.objects[key] = found
        await self._tell(what, key, found)
        return deepcopy(found)

    async def _tell(self, what: str, key: Key, found: Object) -> None:
        self._log.append((self._version, what, key, deepcopy(found)))
        async with self._changed:
            self._changed.notify_all()


_GROUPS = {
    "groups": [
        {
            "name": words.GROUP,
            "versions": [{"groupVersion": words.API_VERSION, "version": words.VERSION}],
            "preferredVersion": {"groupVersion": words.API_VERSION, "version": words.VERSION},
        }
    ]
}


def _resources(version: str, kinds: dict[str, str]) -> Object:
    listed = []
    for plural, kind in kinds.items():
        known = {"kind": kind, "namespaced": plural not in _CLUSTER, "verbs": _VERBS}
        listed.append({"name": plural, "singularName": kind.lower(), **known})
        listed.append({"name": f"{plural}/status", "singularName": "", **known})
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


def _always(answer: Object) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return handler


def _key(request: web.Request) -> Key:
    info = request.match_info
    return (info["kind"], info.get("namespace", ""), info["name"])


def _seen(request: web.Request, key: Key, found: Object) -> bool:
    """Whether an object is of those that a list or a watch asks for."""
    if key[0] != request.match_info["kind"] or request.match_info.get("namespace", key[1]) != key[1]:
        return False
    labels = found["metadata"].get("labels") or {}
    for word in filter(None, request.query.get("labelSelector", "").split(",")):
        name, equals, value = word.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    for word in filter(None, request.query.get("fieldSelector", "").split(",")):
        name, _, value = word.partition("=")
        part, _, field = name.partition(".")
        assert name in ("spec.nodeName", "status.phase"), name
        if (found.get(part) or {}).get(field, "") != value:
            return False
    return True


def _merged(found: Object, patch: Object) -> Object:
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict):
            found[name] = _merged(found[name] if isinstance(found.get(name), dict) else {}, value)
        else:
            found[name] = value
    return found


def schema(kind: str) -> Object:
    """The schema of one of our resources."""
    (version,) = next(one for one in crds.definitions() if one["spec"]["names"]["plural"] == kind)["spec"]["versions"]
    found: Object = version["schema"]["openAPIV3Schema"]
    return found


def _invalid(kind: str, found: Object) -> str:
    """Why an object isn't as its schema says; unknown fields are pruned, as the real one does, and defaults set."""
    _prune(schema(kind)["properties"]["spec"], found["spec"])
    if "status" in found:
        _prune(schema(kind)["properties"]["status"], found["status"])
    errors = sorted(jsonschema.Draft202012Validator(schema(kind)).iter_errors(found), key=str)
    return errors[0].message if errors else ""


def _prune(known: Object, value: Any) -> None:
    if isinstance(value, list):
        for inner in value:
            _prune(known.get("items", {}), inner)
    if not isinstance(value, dict) or "properties" not in known:
        return
    for name in set(value) - set(known["properties"]):
        del value[name]
    for name, inner in known["properties"].items():
        if "default" in inner:
            value.setdefault(name, inner["default"])
        if name in value:
            _prune(inner, value[name])


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "code": code, "message": message}, status=code)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
