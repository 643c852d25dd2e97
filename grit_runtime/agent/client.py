"""The API server, as far as the agent asks it. With aiohttp, which kopf has anyway.

Every request has a time limit; one that the server is too busy for, or that gets no answer, is made again a few times.
A status is changed by its version, so that of two who change it at once one is told.
"""

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from grit_runtime.agent import words
from grit_runtime.agent.errors import ApiError, ConflictError, NotFoundError
from grit_runtime.agent.model import Object

_ATTEMPTS = 4
_BUSY = frozenset({429, 500, 502, 503, 504})
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the API server is, and who we are."""

    url: str
    headers: Callable[[], Mapping[str, str]] = dict
    """Asked for each request: kubelet renews a service account's token."""
    context: ssl.SSLContext | None = None


class Api:
    """Asks the API server; to be used as a context manager."""

    def __init__(self, server: Server, *, timeout: float = 15, pause: float = 0.5) -> None:
        self._server = server
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._pause = pause
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Api":
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        try:
            return await self._ask("GET", _path(kind, namespace, name))
        except NotFoundError:
            return None

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        """The objects of a namespace; of all of them if it is empty.

        Args:
            labels: which they must have; of any value, where that is empty.
        """
        wanted = [f"{key}={value}" if value else key for key, value in (labels or {}).items()]
        query = {"labelSelector": ",".join(wanted)} if wanted else {}
        return list((await self._ask("GET", _path(kind, namespace), query=query))["items"])

    async def create(self, kind: str, namespace: str, body: Object) -> Object:
        """Make an object. Raises ConflictError: there is one of that name."""
        return await self._ask("POST", _path(kind, namespace), body=body)

    async def patch(self, kind: str, namespace: str, name: str, body: Object, *, part: str = "") -> Object:
        """Change an object (RFC 7386). With `metadata.resourceVersion` in it, only if it is still of that version.

        Args:
            part: `status` for that.

        Raises:
            ConflictError: it is of another version by now.
        """
        path = _path(kind, namespace, name) + (f"/{part}" if part else "")
        return await self._ask("PATCH", path, body=body, content=_MERGE)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete an object if it is that one; nothing if it is gone."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        try:
            await self._ask("DELETE", _path(kind, namespace, name), body=options)
        except (NotFoundError, ConflictError):
            return

    async def event(self, kind: str, about: Object, reason: str, message: str, now: str, *, warning: bool) -> None:
        """Post an event about an object of ours; one that can't be posted is no reason to fail."""
        meta = about["metadata"]
        reference = {
            "apiVersion": words.API_VERSION, "kind": kind,
            "name": meta["name"], "namespace": meta["namespace"], "uid": meta.get("uid", ""),
        }  # fmt: skip
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name'][:50]}-", "namespace": meta["namespace"]},
            "involvedObject": reference,
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:1000],
            "source": {"component": "grit-agent"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self.create("events", meta["namespace"], body)
        except ApiError:
            return

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                return await self._once(method, path, query or {}, body, content)
            except ApiError as err:
                # A POST may have been done though nobody said so: the next one is told that there is one already.
                if last or (err.status and err.status not in _BUSY):
                    raise
            await asyncio.sleep(self._pause * 2**attempt)
        raise AssertionError("the last attempt raises")

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content: str
    ) -> Object:
        assert self._session is not None
        headers = {"Accept": "application/json", **self._server.headers()}
        if body is not None:
            headers["Content-Type"] = content
        data = None if body is None else json.dumps(body)
        try:
            async with self._session.request(
                method,
                self._server.url + path,
                params=query,
                data=data,
                headers=headers,
                ssl=self._server.context or True,
            ) as answer:
                text = await answer.text()
                if answer.status < 400:
                    return _document(text)
                raise _error(method, path, answer.status, text)
        except (aiohttp.ClientError, TimeoutError) as err:
            raise ApiError(f"{method} {path}: no answer: {type(err).__name__}: {err}") from None


def _path(kind: str, namespace: str, name: str = "") -> str:
    base = f"/apis/{words.GROUP}/{words.VERSION}" if kind in (words.CHECKPOINTS, words.RESTORES) else "/api/v1"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{base}{inside}/{kind}" + (f"/{quote(name, safe='')}" if name else "")


def _document(text: str) -> Object:
    try:
        found = json.loads(text)
    except ValueError:
        raise ApiError(f"the API server's answer is no JSON: {text[:100]!r}") from None
    return found if isinstance(found, dict) else {}


def _error(method: str, path: str, status: int, text: str) -> ApiError:
    try:
        message: Any = json.loads(text).get("message", text)
    except (ValueError, AttributeError):
        message = text
    kind = {404: NotFoundError, 409: ConflictError}.get(status, ApiError)
    return kind(f"{method} {path}: {status}: {str(message)[:500]}", status)
