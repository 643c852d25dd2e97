"""An archive of a checkpoint, looked at from its beginning to its end: nothing is unpacked, and only small files of it
are kept in memory.
"""

import contextlib
import gzip
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from grit_runtime.checkpoint import archive
from grit_runtime.contents import plain
from grit_runtime.errors import CheckpointError

# Images that hold the memory or the content of something (criu/image-desc.c).
LARGE = ("pages-", "ghost-file-", "pipes-data", "fifo-data", "sk-queues", "tcp-stream-", "ipcns-", "iptables-")
_BLOCK = 1 << 20


@dataclass(slots=True, kw_only=True)
class Scanned:
    """What an archive holds, by the names of its entries; as far as it could be read."""

    sizes: dict[str, int] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    """Where each file begins in it; empty for a compressed one."""
    wrong: str = ""
    """What ended it before its end."""


def scan(
    path: str, keep: Callable[[str, int], int], *, max_bytes: int, max_entries: int, max_kept: int, held: bool = False
) -> Scanned:
    """Look at every entry.

    Args:
        keep: of a file's name and size, how many of its first bytes are wanted.
        max_kept: the most bytes to keep of all files together.
        held: `path` is a descriptor's, which is a link.

    Raises:
        CheckpointError: the file can't be read.
    """
    found = Scanned()
    with archive.open_file(path, held=held) as stream:
        try:
            with _source(path, stream, max_bytes) as (source, compressed):
                _read(path, source, found, keep, (max_bytes, max_entries, max_kept))
            if compressed:
                found.offsets.clear()
        except CheckpointError as err:
            found.wrong = str(err)
        except (*plain.DAMAGED, OSError) as err:
            found.wrong = f"archive {path} is damaged: {err}"
    return found


def _read(
    path: str, source: Any, found: Scanned, keep: Callable[[str, int], int], bounds: tuple[int, int, int]
) -> None:
    max_bytes, max_entries, left = bounds
    total = 0
    for number, (tar, entry) in enumerate(archive.members(path, source)):
        name = archive.plain_name(path, entry)
        total += max(entry.size, 0)
        if number >= max_entries or total > max_bytes:
            raise archive.too_large(path, max_bytes, max_entries)
        if not entry.isreg():
            continue
        if name in found.sizes:
            raise CheckpointError(f"archive {path} holds {name!r} twice")
        found.sizes[name], found.offsets[name] = entry.size, entry.offset_data
        wanted = keep(name, entry.size)
        if wanted > left:
            raise CheckpointError(f"archive {path} holds more than {bounds[2] >> 20} MiB of small images")
        if wanted:
            content = tar.extractfile(entry)
            assert content is not None
            found.kept[name] = content.read(min(wanted, entry.size))
            left -= len(found.kept[name])


@contextlib.contextmanager
def _source(path: str, stream: IO[bytes], limit: int) -> Iterator[tuple[Any, bool]]:
    def forward(compressed: Any) -> Any:
        return plain.Source(cast(Any, _Forward(compressed, limit)))

    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == archive.GZIP:
        yield forward(gzip.GzipFile(fileobj=stream)), True
    elif magic != archive.ZSTD:
        yield plain.Source(stream), False
    else:
        with archive.zstd(path, stream) as process:
            try:
                yield forward(process.stdout), True
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise CheckpointError(f"archive {path} is damaged: zstd exited with {process.returncode}")


class _Forward:
    """A stream that is read once. tarfile goes back by no more than the block that it read last."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit + (limit >> 3) + _BLOCK  # headers and padding come on top of what the files hold
        self._at = 0
        self._last = b""
        self._again = b""

    def read(self, size: int) -> bytes:
        data = self._again[:size]
        self._again = self._again[size:]
        if len(data) < size:
            data += self._stream.read(size - len(data))
        self._at += len(data)
        if self._at > self._limit:
            raise tarfile.ReadError("it becomes too large when decompressed")
        if data:
            self._last = data
        return data

    def seek(self, position: int) -> int:
        back = self._at - position
        if back > len(self._last):
            raise tarfile.ReadError("its entries are out of order")
        if back > 0:
            self._again = self._last[len(self._last) - back :] + self._again
            self._last, self._at = self._last[: len(self._last) - back], position
        while self._at < position and self.read(min(_BLOCK, position - self._at)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at
