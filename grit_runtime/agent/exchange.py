"""Asking a registry over HTTP: who we are to it, how long and how often it is asked. With aiohttp, as kopf.

What a registry answers is not trusted: no redirect leads from https to http, nobody but the registry itself and the
token server that it names gets to know us, and no more is read than was announced.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from yarl import URL

from grit_runtime.agent.answers import Answer, bounded, joined, require, shown, token_of, words
from grit_runtime.agent.credentials import Credentials, challenges
from grit_runtime.agent.errors import TransferError
from grit_runtime.agent.reference import Repository

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_SLOWEST = 256 << 10  # bytes a second, below which a transfer is given up and made again
_REDIRECTS = 5
_PROGRESS = 1 << 20  # bytes that a try must have brought for the next one to be the first again
_TOKEN = 1 << 20
_READ = 1 << 20
Done = TypeVar("Done")
Body = Callable[[], AsyncIterator[bytes]]
"""Makes the body of a request, again for each try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how often."""

    attempts: int = 7
    """Tries in a row that bring nothing."""
    pause: float = 0.5
    """Seconds before the second one; doubled for each after it."""
    longest: float = 20.0
    """Seconds, at most; also what a registry may ask for by `Retry-After`."""
    connect: float = 10.0
    silent: float = 60.0
    """Seconds without a byte."""


@dataclass(slots=True)
class Exchange:
    """A repository; to be used as a context manager."""

    repository: Repository
    credentials: Credentials = field(default_factory=Credentials)
    patience: Patience = field(default_factory=Patience)
    _session: aiohttp.ClientSession | None = None
    _authorization: str = ""
    _actions: set[str] = field(default_factory=set)
    """What we have asked for in the repository: pull, push, delete."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __aenter__(self) -> "Exchange":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.patience.connect, sock_read=self.patience.silent)
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ,
            headers={"User-Agent": "grit-agent", "Accept-Encoding": "identity"},
        )
        self._authorization = f"Bearer {self.credentials.token}" if self.credentials.token else ""
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def tried(self, once: Callable[[], Awaitable[Done]], taken: Callable[[], int] = lambda: 0) -> Done:
        """Do it, again after a failure that may pass."""
        failures, before = 0, taken()
        while True:
            try:
                return await once()
            except TransferError as err:
                if err.status and err.status not in BUSY:
                    raise
                failures = 1 if taken() - before >= _PROGRESS else failures + 1
                before = taken()
                if failures >= self.patience.attempts:
                    raise
                pause = max(self.patience.pause * 2 ** (failures - 1) * random.uniform(0.5, 1), err.after)
            await asyncio.sleep(min(pause, self.patience.longest))

    def asked(
        self, method: str, where: str | URL, *, size: int = 0, headers: dict[str, str] | None = None,
        body: Body | None = None,
    ) -> "_Asked":  # fmt: skip
        """A request, as a context manager; what breaks while its answer is read is a TransferError, too.

        Args:
            where: below the repository's URL, or a URL that the registry has named.
            size: bytes that travel, for the time that they may take.
        """
        url = URL(f"{self.repository.url}/{where}") if isinstance(where, str) else where
        return _Asked(self, method, url, dict(headers or {}), body, 2 * self.patience.silent + size / _SLOWEST)

    async def send(self, method: str, url: URL, headers: dict[str, str], body: Body | None, limit: float) -> Answer:
        """One request; redirects are followed, and a challenge is answered once."""
        challenged = False
        for _ in range(_REDIRECTS + 2):
            known = self._authorization
            answer = await self._plainly(method, url, headers, body, limit)
            if answer.status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                answer.release()
                url = joined(answer)
                continue
            if answer.status != 401 or challenged or not self._is_own(url):
                return answer
            found = challenges(answer.headers.getall("WWW-Authenticate", []))
            if not await self._authorized(found, known):
                return answer
            answer.release()
            challenged = True
        raise TransferError(f"{method} {shown(url)}: too many redirects", 400)

    def _is_own(self, url: URL) -> bool:
        return url.is_absolute() and url.origin() == URL(self.repository.url).origin()

    async def _plainly(self, method: str, url: URL, headers: dict[str, str], body: Body | None, limit: float) -> Answer:
        assert self._session is not None
        if url.scheme != "https" and not (self.repository.plain and url.scheme == "http"):
            raise TransferError(f"{method} {shown(url)}: only https is asked, unless the configuration says so", 400)
        sent = dict(headers)
        if self._authorization and self._is_own(url):
            sent["Authorization"] = self._authorization
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=self.patience.connect, sock_read=self.patience.silent)
        try:
            return await self._session.request(
                method, url, headers=sent, data=body() if body else None, timeout=timeout, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise TransferError(f"{method} {shown(url)}: {words(err)}") from None
        except ValueError as err:
            raise TransferError(f"{method} {shown(url)}: {err}", 400) from None

    async def _authorized(self, found: list[tuple[str, dict[str, str]]], tried: str) -> bool:
        """Get to be known by the registry as it asks for; False if there is nothing more to show."""
        async with self._lock:
            if self._authorization != tried:
                return True  # another request has, meanwhile
            offered = dict(reversed(found))
            if "bearer" in offered and not self.credentials.token:
                self._authorization = f"Bearer {await self._token(offered['bearer'])}"
                return True
            basic = self.credentials.basic()
            if "basic" in offered and basic and basic != tried:
                self._authorization = basic
                return True
            return False

    async def _token(self, asked: dict[str, str]) -> str:
        """A bearer token (distribution's docs, spec/auth/token.md, and oauth.md for an identity token)."""
        try:
            url = URL(asked.get("realm", ""))
        except ValueError:
            url = URL()
        if not url.is_absolute():
            raise TransferError(f"registry {self.repository.host} names no token server", 401)
        asking = {"service": asked.get("service", ""), "scope": self._scope(asked.get("scope", ""))}
        if self.credentials.identity:
            form = aiohttp.FormData({
                **asking, "grant_type": "refresh_token", "client_id": "grit-agent",
                "refresh_token": self.credentials.identity,
            })  # fmt: skip
            return await self._token_once("POST", url, {}, form)
        basic = self.credentials.basic()
        headers = {"Authorization": basic} if basic else {}
        return await self._token_once("GET", url.update_query(asking), headers, None)

    def _scope(self, asked: str) -> str:
        """What the registry wants a token for, and what it wanted one for before: one token does for all."""
        name = f"repository:{self.repository.path}"
        scopes = asked.split() or [f"{name}:pull"]
        for word in scopes:
            if word.startswith(f"{name}:"):
                self._actions.update(word.removeprefix(f"{name}:").split(","))
        others = [word for word in scopes if not word.startswith(f"{name}:")]
        return " ".join([f"{name}:{','.join(sorted(self._actions))}", *others])

    async def _token_once(self, method: str, url: URL, headers: dict[str, str], form: aiohttp.FormData | None) -> str:
        assert self._session is not None
        if url.scheme != "https" and not (self.repository.plain and url.scheme == "http"):
            raise TransferError(f"registry {self.repository.host} names a token server by {url.scheme}: not asked", 401)
        try:
            async with self._session.request(
                method, url, headers=headers, data=form, allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.patience.silent),
            ) as answer:  # fmt: skip
                await require(answer, 200, "a token")
                data = await bounded(answer, _TOKEN, "a token")
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise TransferError(f"{method} {shown(url)}: {words(err)}") from None
        return token_of(data, url)


@dataclass(slots=True)
class _Asked:
    """What `asked` gives."""

    exchange: Exchange
    method: str
    url: URL
    headers: dict[str, str]
    body: Body | None
    limit: float
    _answer: Answer | None = None

    async def __aenter__(self) -> Answer:
        self._answer = await self.exchange.send(self.method, self.url, self.headers, self.body, self.limit)
        return self._answer

    async def __aexit__(self, kind: object, err: BaseException | None, _: object) -> None:
        assert self._answer is not None
        self._answer.release()
        if isinstance(err, (aiohttp.ClientError, TimeoutError)):
            raise TransferError(f"{self.method} {shown(self.url)}: {words(err)}") from None
