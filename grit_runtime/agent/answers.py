"""Reading what a registry answers. It isn't trusted: no more is read than is wanted, its words are one short line."""

import json
from typing import Any

import aiohttp
from yarl import URL

from grit_runtime.agent.errors import TransferError

_ERROR = 4096  # bytes of an error that are read
Answer = aiohttp.ClientResponse


async def require(answer: Answer, wanted: int | tuple[int, ...], what: str = "") -> None:
    """Have an answer be one of those that are wanted. Raises TransferError: it isn't, in the registry's words."""
    if answer.status in (wanted if isinstance(wanted, tuple) else (wanted,)):
        return
    said = _said(await answer.content.read(_ERROR)) if answer.method != "HEAD" else ""
    about = f" {what}:" if what else ""
    text = f"{answer.method} {shown(answer.url)}:{about} {answer.status} {said or answer.reason or ''}"
    hint = "its credentials are those of REGISTRY_AUTH_FILE or DOCKER_CONFIG" if answer.status == 401 else ""
    raise TransferError(text, answer.status, _after(answer.headers.get("Retry-After", "")), hint=hint)


def located(answer: Answer, digest: str) -> URL:
    """Where a blob is to be uploaded, by the answer to a request for an upload."""
    return joined(answer).update_query({"digest": digest})


def joined(answer: Answer) -> URL:
    """Where its `Location` leads."""
    try:
        return answer.url.join(URL(answer.headers.get("Location", "")))
    except ValueError:
        raise TransferError(f"{answer.method} {shown(answer.url)} leads to no address", 400) from None


def _after(word: str) -> float:
    return float(word) if word.isascii() and word.isdigit() and len(word) < 6 else 0.0


async def bounded(answer: Answer, most: int, what: str) -> bytes:
    """All of an answer. Raises TransferError: it is more than `most` bytes."""
    found = bytearray()
    async for data in answer.content.iter_any():
        found += data
        if len(found) > most:
            raise TransferError(f"{what} is larger than {most} bytes", 200)
    return bytes(found)


def token_of(data: bytes, url: URL) -> str:
    """What a token server gave. Raises TransferError: no token."""
    try:
        found: Any = json.loads(data)
        token = found.get("token") or found.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise TransferError(f"{shown(url)} gives no token", 401)
    return token


def _said(data: bytes) -> str:
    """The registry's own words (distribution spec, "Error Codes")."""
    try:
        first = json.loads(data)["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"[:300]
        return "".join(one if one.isprintable() else " " for one in text)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ascii(data[:100].decode(errors="replace")) if data else ""


def shown(url: URL) -> str:
    """Without its query, which may have a signature in it."""
    return str(url.with_query(None).with_user(None) if url.is_absolute() else url)


def words(err: BaseException) -> str:
    """What went wrong with a connection."""
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
