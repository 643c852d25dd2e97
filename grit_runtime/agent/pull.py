"""Bringing a set from a registry (transfer.py)."""

import asyncio
import contextlib
import hashlib
import os
import threading
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.agent import imagecheck, sets
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.exchange import Exchange
from grit_runtime.agent.image import Index, Layer
from grit_runtime.agent.registry import Registry
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.agent.staging import Staging, staging
from grit_runtime.agent.transfer import (
    Entries,
    Remote,
    content,
    digest_of,
    opened,
    side_by_side,
    together,
    without_travel,
)
from grit_runtime.checkpoint import locate
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files

_BATCH = 1 << 20
_TRIES = 3  # of a blob whose bytes aren't those of its digest


def pull(remote: Remote, digest: str, target: Place, expected: Entries, progress: Progress) -> None:
    """Pull a set, and have it appear when every byte of it is there and as its digests say.

    Args:
        digest: of the image's manifest.
        expected: what the set's containers are, by the digests of their own manifests.

    Raises:
        CheckpointError: what is there isn't that.
        TransferError: the registry doesn't have it, or can't be reached.
        BusyError: another process brings it.
        Stopped: `progress.stop` was set.
        OSError: something can't be written.
    """
    containers = [locate.component("container name", str(entry["name"])) for entry in expected]
    if sets.look(target, containers) is Data.WHOLE:
        return
    sets.claim(target)
    progress.total = sets.total(expected)
    with staging(sets.copying(target), digest) as stage:
        asyncio.run(_Pull(remote, stage, progress).all(digest, containers))
        for name, entry in zip(containers, expected, strict=True):
            sets.known_as(os.path.join(stage.path, name, names.IMAGES_DIR), entry)
        stage.publish(target.path)


@dataclass(slots=True)
class _Pull:
    remote: Remote
    stage: Staging
    progress: Progress

    async def all(self, digest: str, containers: list[str]) -> None:
        async with Exchange(self.remote.repository, self.remote.credentials, self.remote.patience) as exchange:
            registry = Registry(exchange)
            layers, index = await self._documents(registry, digest, containers)
            self.progress.done = without_travel(index)
            there = await asyncio.to_thread(self._prepare, index)
            _require_room(self.stage.path, sum(layer.data for layer in index.layers) - there)

            async def one(number: int) -> None:
                await self._layer(registry, index, index.layers[number], *layers[number])

            await together(side_by_side(self.remote.streams, range(len(layers)), one), self.progress)
        await asyncio.to_thread(self._flush, index)

    async def _documents(
        self, registry: Registry, digest: str, containers: list[str]
    ) -> tuple[list[tuple[str, int]], Index]:
        manifest = await registry.manifest(digest, imagecheck.MOST_BYTES)
        _require_digest(manifest, digest, "manifest")
        described, layers = imagecheck.manifest(manifest)
        config = await registry.small_blob(*described)
        _require_digest(config, described[0], "config")
        return layers, imagecheck.index(config, layers, containers)

    def _prepare(self, index: Index) -> int:
        """Have every file there, of its size, with nothing in it that isn't there already; the bytes that they take."""
        taken = 0
        for directory in sorted(_directories(index)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(self.stage.path, directory), 0o700)
        for path, size in index.files.items():
            fd = opened(os.path.join(self.stage.path, path), os.O_RDWR | os.O_CREAT)
            try:
                os.ftruncate(fd, size)
                taken += os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
        return taken

    async def _layer(self, registry: Registry, index: Index, layer: Layer, digest: str, size: int) -> None:
        if digest in self.stage.noted and await asyncio.to_thread(self._is_there, index, layer, digest):
            self.progress.done += layer.data
            return
        found = ""
        for _ in range(_TRIES):
            writing = _Writing(self.stage.path, layer, self.progress)
            try:
                await registry.get_blob(digest, size, writing.take)
                found = await writing.digest()
                if found == digest:
                    await asyncio.to_thread(writing.flush)
                    self.stage.note(digest)
                    return
            finally:
                writing.close()
            self.progress.done -= layer.data
        raise CheckpointError(f"layer {digest} of the image has other bytes: theirs is the digest {found}")

    def _is_there(self, index: Index, layer: Layer, digest: str) -> bool:
        """Whether an earlier try has left this layer whole: its digest is computed from what is on the disk."""
        made = hashlib.sha256()
        for data in content(self.stage.path, index, layer):
            self.progress.look()
            made.update(data)
        return f"sha256:{made.hexdigest()}" == digest

    def _flush(self, index: Index) -> None:
        for path in index.files:
            files.sync_file(os.path.join(self.stage.path, path))
        for path in _directories(index):
            files.sync_directory(os.path.join(self.stage.path, path))


def _directories(index: Index) -> set[str]:
    """All that the files lie in, those above them too."""
    found = set()
    for path in index.files:
        inner = os.path.dirname(path)
        while inner:
            found.add(inner)
            inner = os.path.dirname(inner)
    return found


class _Writing:
    """A layer that comes in: its digest is computed, and the ranges of files in it are written to their places.

    In a thread, a batch at a time: neither needs Python's lock, and other layers come in meanwhile.
    """

    def __init__(self, root: str, layer: Layer, progress: Progress) -> None:
        self._root, self._progress = root, progress
        self._parts, self._next = layer.parts, 0
        self._sum, self._at = hashlib.sha256(), 0
        self._batch: list[bytes] = []
        self._bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._lock, self._closed = threading.Lock(), False
        self._path, self._fd = "", -1

    async def take(self, data: bytes) -> None:
        """The next bytes of the tar."""
        self._batch.append(data)
        self._bytes += len(data)
        if self._bytes >= _BATCH:
            await self._hand_over()

    async def digest(self) -> str:
        """Of all that came, once it is written."""
        await self._hand_over()
        await self._hand_over()
        return f"sha256:{self._sum.hexdigest()}"

    async def _hand_over(self) -> None:
        """Have a thread take the batch; wait for the one before."""
        before, self._writing = self._writing, None
        if before is not None:
            await before
        batch, self._batch, self._bytes = self._batch, [], 0
        if batch:
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, batch)

    def _write(self, batch: list[bytes]) -> None:
        with self._lock:
            for data in batch:
                if not self._closed:
                    self._sum.update(data)
                    self._place(memoryview(data))

    def _place(self, data: memoryview) -> None:
        """Write what of these bytes is in files."""
        begin, end = self._at, self._at + len(data)
        self._at = end
        while self._next < len(self._parts):
            part = self._parts[self._next]
            first, last = max(part.at, begin), min(part.at + part.size, end)
            if first < last:
                self._open(part.path)
                _write_all(self._fd, data[first - begin : last - begin], part.offset + first - part.at)
                self._progress.done += last - first
            if part.at + part.size > end:
                return
            self._next += 1

    def _open(self, path: str) -> None:
        """A file stays open as long as its parts follow each other."""
        if path != self._path:
            self._shut()
            self._fd, self._path = opened(os.path.join(self._root, path), os.O_WRONLY), path

    def flush(self) -> None:
        """Begin to have the disk take what is large, while other layers come in."""
        with self._lock:
            if self._fd >= 0:
                os.fdatasync(self._fd)

    def close(self) -> None:
        """Take no more, also of what a thread has at hand."""
        with self._lock:
            self._closed = True
            self._shut()

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = "", -1


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _require_digest(data: bytes, digest: str, what: str) -> None:
    found = digest_of(data)
    if found != digest:
        raise CheckpointError(f"the {what} {digest} of the image has other bytes: theirs is the digest {found}")


def _require_room(path: str, size: int) -> None:
    found = os.statvfs(path)
    there = found.f_bavail * found.f_frsize
    if size > there:
        raise CheckpointError(
            f"the checkpoint has {size >> 20} MiB, {os.path.dirname(path)} has room for {there >> 20}"
        )
