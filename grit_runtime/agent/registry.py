"""A registry, as far as the agent asks it (OCI distribution spec, v1.1): six requests, streamed, side by side, each
with a time limit and a bounded number of tries.

By our own hands: PyPI's `oras` (0.2.43) is synchronous, uploads files, so that each piece of a memory image would have
to be one, and resumes nothing; `docker-registry-client-async` (1.0.3) has the requests on aiohttp, too, but no tries,
no reading by range, and four more dependencies.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from grit_runtime.agent import image
from grit_runtime.agent.answers import Answer, bounded, located, require
from grit_runtime.agent.errors import TransferError
from grit_runtime.agent.exchange import Body, Exchange

Sink = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Registry:
    """A repository."""

    exchange: Exchange

    async def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        return await self.exchange.tried(lambda: self._head(f"blobs/{digest}"))

    async def put_blob(self, digest: str, size: int, body: Body) -> None:
        """Upload a blob as a whole; a try that is cut short leaves nothing that counts.

        Raises:
            TransferError: the registry refuses it, or can't be reached.
        """

        async def once() -> None:
            async with self.exchange.asked("POST", "blobs/uploads/", headers={"Content-Length": "0"}) as answer:
                await require(answer, 202)
                url = located(answer, digest)
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            async with self.exchange.asked("PUT", url, size=size, headers=headers, body=body) as answer:
                await require(answer, 201, f"blob {digest}")

        await self.exchange.tried(once)

    async def get_blob(self, digest: str, size: int, sink: Sink) -> None:
        """Have `sink` take a blob's bytes, each once and in their order. After an interruption it goes on where it was
        (`Range`), if the registry can; else what was taken is read again and thrown away.

        Whoever calls compares the digest.

        Raises:
            TransferError: it isn't there, has another size, or can't be had.
        """
        taken = 0

        async def once() -> None:
            nonlocal taken
            headers = {"Range": f"bytes={taken}-"} if taken else {}
            async with self.exchange.asked("GET", f"blobs/{digest}", size=size, headers=headers) as answer:
                await require(answer, (200, 206), f"blob {digest}")
                skip = 0 if answer.status == 206 else taken
                _require_range(answer, digest, taken, size)
                async for data in answer.content.iter_any():
                    dropped = min(skip, len(data))
                    skip -= dropped
                    rest = data[dropped:] if dropped else data
                    if taken + len(rest) > size:
                        raise TransferError(f"blob {digest} has more than the {size} bytes that were announced", 200)
                    if rest:
                        await sink(rest)
                        taken += len(rest)
            if taken < size:
                raise TransferError(f"blob {digest} ended after {taken} of {size} bytes")

        await self.exchange.tried(once, lambda: taken)

    async def small_blob(self, digest: str, size: int) -> bytes:
        """A blob that fits into memory; whoever calls bounds `size`."""
        found = bytearray()

        async def sink(data: bytes) -> None:
            found.extend(data)

        await self.get_blob(digest, size, sink)
        return bytes(found)

    async def put_manifest(self, reference: str, data: bytes) -> None:
        """Give a manifest its tag. Raises TransferError: the registry refuses it."""

        async def body() -> AsyncIterator[bytes]:
            yield data

        async def once() -> None:
            headers = {"Content-Type": image.MANIFEST, "Content-Length": str(len(data))}
            async with self.exchange.asked("PUT", f"manifests/{reference}", headers=headers, body=body) as answer:
                await require(answer, 201, f"manifest {reference}")

        await self.exchange.tried(once)

    async def manifest(self, digest: str, most: int) -> bytes:
        """A manifest's bytes, `most` at most."""

        async def once() -> bytes:
            async with self.exchange.asked("GET", f"manifests/{digest}", headers={"Accept": image.MANIFEST}) as answer:
                await require(answer, 200, f"manifest {digest}")
                return await bounded(answer, most, f"manifest {digest}")

        return await self.exchange.tried(once)

    async def has_manifest(self, digest: str) -> bool:
        """Whether a manifest is there."""
        return await self.exchange.tried(lambda: self._head(f"manifests/{digest}"))

    async def delete_manifest(self, digest: str) -> None:
        """Delete a manifest, and its tags with it; nothing if it is gone.

        Raises TransferError: the registry doesn't (405: it never does), or can't be reached.
        """

        async def once() -> None:
            async with self.exchange.asked("DELETE", f"manifests/{digest}") as answer:
                if answer.status != 404:
                    await require(answer, (200, 202), f"manifest {digest}")

        await self.exchange.tried(once)

    async def _head(self, what: str) -> bool:
        async with self.exchange.asked("HEAD", what, headers={"Accept": image.MANIFEST}) as answer:
            if answer.status == 404:
                return False
            await require(answer, 200)
            return True


def _require_range(answer: Answer, digest: str, taken: int, size: int) -> None:
    """Have what comes be what was asked for; what doesn't say so is counted while it is read."""
    if answer.status == 206:
        begin, _, rest = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
        if begin != str(taken) or rest.partition("/")[2] not in (str(size), "*"):
            raise TransferError(f"blob {digest}: asked for its bytes from {taken} on, the registry sends others", 206)
    elif answer.content_length is not None and answer.content_length != size:
        said = f"blob {digest} has {answer.content_length} bytes, {size} were announced"
        raise TransferError(said, 200)
