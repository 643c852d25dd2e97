"""Sets that go to a registry and come from there (image.py says how one lies in an image).

Pushing reads each layer's ranges twice: once for its digest, by which the registry is asked whether it has it, and once
for sending it. The manifest comes last, so there is no image until every blob of it is there. Pulling begins with the
manifest's digest, which the Checkpoint's status has: everything below it is compared with the digests in it while it is
written, beside the set's place; the set gets its name in one rename.

Each call has an event loop of its own, in the thread that it is made from: it keeps a core busy.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grit_runtime import names
from grit_runtime.agent import image, imagecheck, sets
from grit_runtime.agent.credentials import Credentials
from grit_runtime.agent.exchange import Exchange, Patience
from grit_runtime.agent.image import Facts, Index, Layer, Part
from grit_runtime.agent.reference import Repository
from grit_runtime.agent.registry import Registry
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.checkpoint import integrity
from grit_runtime.contents import archive
from grit_runtime.errors import CheckpointError

_MOST_RANGES = 1 << 16
_READ = 1 << 20
Done = TypeVar("Done")
Entries = Sequence[dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository, and how it is asked."""

    repository: Repository
    credentials: Credentials = field(default_factory=Credentials)
    patience: Patience = field(default_factory=Patience)
    streams: int = 6
    """Blobs that travel at once."""
    piece: int = image.PIECE


def push(place: Place, expected: Entries, remote: Remote, tag: str, facts: Facts, progress: Progress) -> str:
    """Push a set; the digest of its manifest.

    Raises:
        CheckpointError: it isn't the one that is expected, or is damaged.
        TransferError: the registry refuses it, or can't be reached.
        Stopped: `progress.stop` was set.
        OSError: something can't be read.
    """
    return asyncio.run(_Push(place, expected, remote, progress).all(tag, facts))


def remove(remote: Remote, digest: str) -> None:
    """Delete a manifest; nothing if it is gone. The registry removes the blobs, when it collects its garbage.

    Raises TransferError: it doesn't.
    """

    async def run() -> None:
        async with Exchange(remote.repository, remote.credentials, remote.patience) as exchange:
            await Registry(exchange).delete_manifest(digest)

    asyncio.run(run())


class _Push:
    def __init__(self, place: Place, expected: Entries, remote: Remote, progress: Progress) -> None:
        self._place, self._expected, self._remote, self._progress = place, expected, remote, progress
        self._index = _laid_out(place, expected, remote.piece)
        progress.total, progress.done = sets.total(expected), without_travel(self._index)
        self._sent = [0] * len(self._index.layers)
        self._digests = [""] * len(self._index.layers)

    async def all(self, tag: str, facts: Facts) -> str:
        async with Exchange(self._remote.repository, self._remote.credentials, self._remote.patience) as exchange:
            registry = Registry(exchange)

            async def one(number: int) -> None:
                await self._layer(registry, number)

            numbers = range(len(self._index.layers))
            sending = side_by_side(self._remote.streams, numbers, one)
            await together([*sending, asyncio.to_thread(self._require_whole)], self._progress)
            config = image.config(self._index, self._digests, facts)
            described = digest_of(config), len(config)
            if not await registry.has(described[0]):
                await registry.put_blob(*described, lambda: _once(config))
            manifest = image.manifest(self._index, self._digests, described, facts)
            digest = digest_of(manifest)
            imagecheck.index(config, imagecheck.manifest(manifest)[1], facts.containers)  # or nobody could pull it
            if await registry.has_manifest(digest):
                return digest  # nobody was told of it; a tag that is immutable would not be taken twice
            await registry.put_manifest(tag, manifest)
            if not await registry.has_manifest(digest):
                raise CheckpointError(f"registry {self._remote.repository.host} has another manifest than it was given")
            return digest

    async def _layer(self, registry: Registry, number: int) -> None:
        layer = self._index.layers[number]
        digest = await asyncio.to_thread(self._hashed, layer)
        self._digests[number] = digest
        if await registry.has(digest):
            self._moved(number, layer.data)
        else:
            await registry.put_blob(digest, layer.size, lambda: self._body(number))

    def _hashed(self, layer: Layer) -> str:
        made = hashlib.sha256()
        for data in content(self._place.path, self._index, layer):
            self._progress.look()
            made.update(data)
        return f"sha256:{made.hexdigest()}"

    async def _body(self, number: int) -> AsyncIterator[bytes]:
        self._moved(number, 0)
        sent = 0
        layer = self._index.layers[number]
        for data in content(self._place.path, self._index, layer):
            yield data
            sent += len(data)
            self._moved(number, min(sent, layer.data))
        self._moved(number, layer.data)

    def _moved(self, number: int, count: int) -> None:
        self._progress.done += count - self._sent[number]
        self._sent[number] = count

    def _require_whole(self) -> None:
        """Have what is sent be what was captured."""
        for entry in self._expected:
            images = os.path.join(self._place.path, str(entry["name"]), names.IMAGES_DIR)
            known = sets.known_as(images, entry)
            checksums = integrity.recorded(known.data, images)
            integrity.require(images, known.sizes, checksums, 1, self._progress.look)


def _laid_out(place: Place, expected: Entries, piece: int) -> Index:
    sizes: dict[str, int] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for entry in expected:
        name = str(entry["name"])
        sets.known_as(os.path.join(place.path, name, names.IMAGES_DIR), entry)
        for path in _files(place.path, name):
            fd = opened(os.path.join(place.path, path))
            try:
                sizes[path] = os.fstat(fd).st_size
                ranges[path] = archive.segments(fd, sizes[path])
            finally:
                os.close(fd)
    gap = image.GAP
    while True:
        joined = {path: list(_joined(found, gap)) for path, found in ranges.items()}
        if sum(map(len, joined.values())) <= max(_MOST_RANGES, len(sizes)):
            return image.plan(sizes, joined, piece)
        gap *= 2


def _joined(ranges: Sequence[tuple[int, int]], gap: int) -> Iterator[tuple[int, int]]:
    """Ranges, with those in one that are less than `gap` apart."""
    begin = end = -1
    for offset, size in ranges:
        if begin >= 0 and offset - end < gap:
            end = offset + size
            continue
        if begin >= 0:
            yield begin, end - begin
        begin, end = offset, offset + size
    if begin >= 0:
        yield begin, end - begin


def _files(root: str, inner: str) -> Iterator[str]:
    for name, is_directory in sets.listed(os.path.join(root, inner)):
        path = f"{inner}/{name}"
        if is_directory:
            yield from _files(root, path)
        else:
            yield path


def opened(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file of ours; never of what a link leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def content(root: str, index: Index, layer: Layer) -> Iterator[bytes]:
    """A layer's bytes, in its order. Raises CheckpointError: a file is shorter by now."""
    for segment in image.segments(index, layer):
        if isinstance(segment, Part):
            yield from _range(os.path.join(root, segment.path), segment)
        else:
            yield segment


def _range(path: str, part: Part) -> Iterator[bytes]:
    fd, offset, end = opened(path), part.offset, part.offset + part.size
    try:
        while offset < end:
            data = os.pread(fd, min(_READ, end - offset), offset)
            if not data:
                raise CheckpointError(f"{path} became shorter meanwhile")
            offset += len(data)
            yield data
    finally:
        os.close(fd)


def without_travel(index: Index) -> int:
    """Bytes of holes."""
    return sum(index.files.values()) - sum(layer.data for layer in index.layers)


def digest_of(data: bytes) -> str:
    """As registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def side_by_side(
    count: int, jobs: Iterable[Done], do: Callable[[Done], Awaitable[None]]
) -> list[Coroutine[Any, Any, None]]:
    """So many coroutines that do all jobs between them."""
    left = iter(jobs)

    async def worker() -> None:
        for job in left:
            await do(job)

    return [worker() for _ in range(count)]


async def together(work: Sequence[Coroutine[Any, Any, None]], progress: Progress) -> None:
    """All of it; the first failure, or `progress.stop`, ends all."""

    async def watch() -> None:
        while True:
            progress.look()
            await asyncio.sleep(0.1)

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            tasks = [group.create_task(one) for one in work]
            await asyncio.gather(*tasks)
            watching.cancel()
    except BaseExceptionGroup as failed:
        progress.stop.set()  # what threads are at ends, too
        raise _first(failed) from None


def _first(failed: BaseExceptionGroup) -> BaseException:
    found = failed.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
