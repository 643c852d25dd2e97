"""A tar file to read, decompressed if it has to be: containerd writes its rootfs-diff.tar with gzip."""

import contextlib
import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

from grit_runtime.errors import CheckpointError

_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20
_MAX_TAIL = 64 << 20
MAX_HEADER = 16 << 20  # of one entry; an attribute has at most 64 KiB, a sparse file's table is read by blocks
# What tarfile raises for bad headers: chained ones make it call itself, and numbers in them are taken as they are.
DAMAGED = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError, EOFError, zlib.error)


class Source:
    """What tarfile reads headers from. Bounded, where tarfile isn't: it would read a header of any size into memory,
    and look for the end of a sparse file's table for ever.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at_end = 0

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise tarfile.ReadError("a header of more than 16 MiB")
        data = self._stream.read(size)
        self._at_end = 0 if data else self._at_end + 1
        if self._at_end > 2:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def seek(self, position: int) -> int:
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


def check_end(source: Source, offset: int) -> None:
    """See that an archive goes on at `offset`, where tarfile found nothing more, with the block of zeros that ends it.

    tarfile takes the end of the file between two entries, and a header that it can't read, for the archive's end
    (tarfile.py, TarFile.next). What follows is read too: at its end gzip compares the checksum.

    Raises:
        tarfile.ReadError: it doesn't, or far more follows than the zeros that fill a last record.
    """
    source.seek(offset)
    if source.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end mark where its entries end")
    left = _MAX_TAIL
    while block := source.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise tarfile.ReadError("too much follows its end mark")


@contextlib.contextmanager
def opened(path: str, scratch: str, limit: int) -> Iterator[BinaryIO]:
    """Open the file at `path`.

    Args:
        scratch: a directory for what is decompressed: a file without a name, gone with its descriptor.
        limit: the most bytes that it may become.

    Raises:
        CheckpointError: it is damaged, or becomes too large.
        OSError: it can't be read, or there is no room for it.
    """
    with open(path, "rb") as stream:
        compressed = stream.read(2) == _GZIP
        stream.seek(0)
        if not compressed:
            yield stream
            return
        made = not os.path.isdir(scratch)
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=scratch) as plain:
                _decompress(path, stream, plain, limit)
                yield plain
        finally:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(scratch)


def _decompress(path: str, source: BinaryIO, target: BinaryIO, limit: int) -> None:
    try:
        with gzip.GzipFile(fileobj=source) as stream:
            while block := stream.read(_BLOCK):
                target.write(block)
                if target.tell() > limit:
                    raise CheckpointError(f"archive {path} becomes larger than {limit} bytes when decompressed")
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise CheckpointError(f"archive {path} is damaged: {err}") from None
    target.flush()
    target.seek(0)
