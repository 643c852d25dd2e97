"""What a registry may answer, and what becomes of it: a simulated one, which answers badly."""

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from grit_runtime.agent.credentials import Credentials
from grit_runtime.agent.errors import TransferError
from grit_runtime.agent.exchange import Exchange, Patience
from grit_runtime.agent.reference import Repository
from grit_runtime.agent.registry import Registry

DATA = bytes(range(256)) * 16
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
PATIENCE = Patience(attempts=3, pause=0.01, longest=0.05, connect=2, silent=0.5)
KNOWN = Credentials(username="agent", password="secret")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Simulated:
    """Gives each request the next of its answers, the last one again and again."""

    answers: list[Answer]
    requests: list[web.Request] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


def _status(code: int, text: str = "", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=code, text=text, headers={key.replace("_", "-"): v for key, v in headers.items()})

    return answer


def _bytes(data: bytes, status: int = 200, *, cut: bool = False, length: int | None = None, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        made = web.StreamResponse(status=status, headers={key.replace("_", "-"): v for key, v in headers.items()})
        if length is not None:
            made.content_length = length
        await made.prepare(request)
        await made.write(data)
        if cut:
            assert request.transport
            request.transport.close()
            return made
        await made.write_eof()
        return made

    return answer


CUT = _bytes(DATA[:1000], cut=True, length=len(DATA))


def _ask(answers: list[Answer], do: Callable[[Registry], Awaitable[Any]], known: Credentials = KNOWN) -> Simulated:
    simulated = Simulated(answers)

    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", simulated.serve)
        async with TestServer(application) as server:
            repository = Repository(host=f"127.0.0.1:{server.port}", path="default/x", plain=True)
            async with Exchange(repository, known, PATIENCE) as exchange:
                await do(Registry(exchange))

    asyncio.run(run())
    return simulated


async def _blob(registry: Registry) -> None:
    assert await registry.small_blob(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(code: int) -> None:
    made = _ask([_status(code), _status(code, Retry_After="0"), _bytes(DATA)], _blob)
    assert len(made.requests) == 3


@pytest.mark.parametrize(("code", "tries"), [(503, 3), (404, 1), (403, 1), (400, 1)])
def test_and_not_for_ever(code: int, tries: int) -> None:
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=code)

    with pytest.raises(TransferError, match=r"GET http://127\.0\.0\.1"):
        _ask([answer], _blob)
    assert asked == tries


def test_a_registry_s_wish_to_be_asked_later_has_a_limit() -> None:
    begun = time.monotonic()
    _ask([_status(503, Retry_After="99999"), _status(429, Retry_After="tomorrow"), _bytes(DATA)], _blob)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("second", "asked"),
    [
        (_bytes(DATA[1000:], 206, Content_Range=f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"), "bytes=1000-"),
        (_bytes(DATA), "bytes=1000-"),
    ],
    ids=["by range", "from the beginning"],
)
def test_a_blob_that_was_cut_short_goes_on(second: Answer, asked: str) -> None:
    made = _ask([CUT, second], _blob)
    assert made.requests[1].headers["Range"] == asked


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([_bytes(DATA + b"x")], "more than the 4096 bytes"),
        ([_bytes(DATA + b"x", length=len(DATA) + 1)], "has 4097 bytes, 4096 were announced"),
        ([_bytes(DATA[:-1])], "ended after 4095 of 4096 bytes"),
        (
            [CUT, _bytes(DATA[999:], 206, Content_Range="bytes 999-4095/4096")],
            "the registry sends others",
        ),
        (
            [CUT, _bytes(DATA[1000:], 206, Content_Range="bytes 1000-4095/9999")],
            "the registry sends others",
        ),
        ([CUT, _bytes(DATA[1000:], 206)], "the registry sends others"),
    ],
    ids=["longer", "announced longer", "shorter", "another range", "another size", "no range"],
)  # fmt: skip
def test_other_bytes_than_were_announced_are_refused(answers: list[Answer], why: str) -> None:
    with pytest.raises(TransferError, match=why):
        _ask(answers, _blob)


def test_silence_has_an_end() -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(20)
        return web.Response()

    begun = time.monotonic()
    _ask([silent, _bytes(DATA)], _blob)
    assert time.monotonic() - begun < 5


def test_a_manifest_has_a_limit() -> None:
    async def manifest(registry: Registry) -> None:
        await registry.manifest(DIGEST, 100)

    with pytest.raises(TransferError, match="larger than 100 bytes"):
        _ask([_bytes(DATA)], manifest)


def test_a_redirect_takes_no_credentials_elsewhere() -> None:
    """As registries have it whose blobs are in an object store."""
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=DATA)

    async def run() -> None:
        other = web.Application()
        other.router.add_get("/store", elsewhere)
        async with TestServer(other) as store:
            target = f"http://127.0.0.1:{store.port}/store?signature=s"

            async def redirect(request: web.Request) -> web.Response:
                if "Authorization" not in request.headers:
                    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
                return web.Response(status=307, headers={"Location": target})

            application = web.Application()
            application.router.add_get("/{path:.*}", redirect)
            async with TestServer(application) as server:
                repository = Repository(host=f"127.0.0.1:{server.port}", path="default/x", plain=True)
                async with Exchange(repository, KNOWN, PATIENCE) as exchange:
                    await _blob(Registry(exchange))

    asyncio.run(run())
    assert seen == [None]


def test_a_redirect_that_goes_in_a_circle_ends() -> None:
    async def again(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": str(request.url)})

    with pytest.raises(TransferError, match="too many redirects"):
        _ask([again], _blob)


@pytest.mark.parametrize("where", ["http://[/", "mailto:x", "http:///x", "//", "ftp://host/x"])
def test_a_redirect_to_nowhere_is_an_error(where: str) -> None:
    with pytest.raises(TransferError):
        _ask([_status(302, Location=where)], _blob)


@pytest.mark.parametrize("where", ["http://127.0.0.1:1/x", "ftp://host/x", "file:///etc/shadow"])
def test_a_registry_by_https_leads_to_nothing_else(where: str) -> None:
    async def run() -> None:
        async with Exchange(Repository(host="registry.invalid", path="x"), KNOWN, PATIENCE) as exchange:
            with pytest.raises(TransferError, match="only https is asked"):
                await exchange.send("GET", URL(where), {}, None, 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="file:///etc/shadow"',
        'Bearer realm="ftp://host/token"',
        'Bearer realm="token"',
        'Bearer realm="http://[/"',
        "Bearer",
        "Digest realm=x",
        "",
    ],
)
def test_a_challenge_that_leads_nowhere_is_an_end(challenge: str) -> None:
    with pytest.raises(TransferError):
        _ask([_status(401, WWW_Authenticate=challenge)], _blob)


@pytest.mark.parametrize("data", ["", "[]", '{"token": 7}', '{"token": "a\\nb"}', "{" * 5000, "x" * (2 << 20)])
def test_a_token_that_is_none_is_refused(data: str) -> None:
    async def serve(request: web.Request) -> web.Response:
        if request.path == "/token":
            assert request.headers["Authorization"] == "Basic " + base64.b64encode(b"agent:secret").decode()
            return web.Response(text=data)
        realm = f'Bearer realm="http://{request.host}/token",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    with pytest.raises(TransferError, match=r"gives no token|larger than"):
        _ask([serve], _blob)


@pytest.mark.parametrize(
    "text",
    [
        '{"errors": [{"code": "X", "message": "a\\nb\\u001b[31m\\u202e"}]}',
        '{"errors": [7]}',
        "\x1b[31m\n",
        "x" * 100_000,
        '{"errors": {}}',
    ],
)
def test_a_registry_s_words_are_one_short_line(text: str) -> None:
    with pytest.raises(TransferError) as failed:
        _ask([_status(400, text)], _blob)
    assert len(str(failed.value)) < 700
    assert str(failed.value).isprintable()


def test_an_upload_that_another_host_takes_gets_no_credentials() -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        assert request.query["digest"] == DIGEST
        assert await request.read() == DATA
        return web.Response(status=201)

    async def run() -> None:
        other = web.Application()
        other.router.add_put("/upload", elsewhere)
        async with TestServer(other) as store:
            location = f"http://127.0.0.1:{store.port}/upload?state=s"

            async def serve(request: web.Request) -> web.Response:
                if "Authorization" not in request.headers:
                    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
                return web.Response(status=202, headers={"Location": location})

            application = web.Application()
            application.router.add_route("*", "/{path:.*}", serve)
            async with TestServer(application) as server:
                repository = Repository(host=f"127.0.0.1:{server.port}", path="default/x", plain=True)
                async with Exchange(repository, KNOWN, PATIENCE) as exchange:
                    await Registry(exchange).put_blob(DIGEST, len(DATA), _body)

    asyncio.run(run())
    assert seen == [None]


async def _body() -> Any:
    yield DATA


def test_only_refusals_that_may_pass_are_tried_again_in_an_upload() -> None:
    async def put(registry: Registry) -> None:
        await registry.put_blob(DIGEST, len(DATA), _body)

    posts, puts = _status(202, Location="/upload"), _status(400, '{"errors": [{"code": "DIGEST_INVALID"}]}')
    with pytest.raises(TransferError, match=f"blob {DIGEST}: 400 DIGEST_INVALID"):
        _ask([posts, puts], put)
    made = _ask([posts, _status(503), posts, _status(201)], put)
    assert [request.method for request in made.requests] == ["POST", "PUT", "POST", "PUT"]
