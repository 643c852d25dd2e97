"""A tar file to read, decompressed if it has to be: containerd writes its rootfs-diff.tar with gzip."""

import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from grit_runtime.errors import CheckpointError

_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20


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
