"""Checkpoints in one tar file, as kubelet's checkpoint API, CRI-O and podman write them.

Whoever wrote it may be anybody: every entry is looked at before the first is written. A checkpoint is a flat directory
`checkpoint` with images and a few files beside it; nothing else is taken out, and a name that leads elsewhere, a link
or a device anywhere in the archive refuses all of it.
"""

import contextlib
import gzip
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Container, Iterator
from typing import IO, Any, cast

from grit_runtime import names
from grit_runtime.contents import plain
from grit_runtime.errors import CheckpointError
from grit_runtime.host import proc, run

# checkpointctl's lib/metadata.go; containerd's and CRI-O's own beside them.
TOP = frozenset({
    names.ROOTFS_DIFF, names.DEV_SHM, names.CONTAINER_LOG, names.DELETED_FILES, names.CONFIG_DUMP, names.SPEC_DUMP,
    "status.dump", "network.status", "bind.mounts", "dump.log", "stats-dump", "descriptors.json",
})  # fmt: skip
_BLOCK = 1 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def unpack(path: str, target: str, *, max_bytes: int, max_entries: int, held: bool = False) -> None:
    """Unpack the archive at `path` into the empty directory `target`.

    Args:
        held: `path` is a descriptor's, which is a link.
        max_bytes: the most that all its files together may have.
        max_entries: how many entries it may have.

    Raises:
        CheckpointError: it can't be read, is no checkpoint, holds what it may not, or there is no room for it.
    """
    with _opened(path, target, max_bytes, held) as stream:
        wanted = _check(path, stream, max_bytes, max_entries)
        require_room(path, sum(wanted.values()), target)
        try:
            _write(path, stream, target, wanted)
        except OSError as err:
            raise CheckpointError(f"cannot unpack {path} into {target}: {err.strerror or err}") from None


@contextlib.contextmanager
def _opened(path: str, scratch: str, limit: int, held: bool) -> Iterator[IO[bytes]]:
    with open_file(path, held=held) as stream:
        if stream.read(4) != ZSTD:
            yield stream
            return
        # A file without a name: what is written into it goes with its descriptor.
        with tempfile.TemporaryFile(dir=scratch) as decompressed:
            _decompress(path, stream, decompressed, limit)
            yield decompressed


def open_file(path: str, *, held: bool = False) -> IO[bytes]:
    """Open an archive, whatever it is. Raises CheckpointError: it can't be read, or is no file.

    Args:
        held: `path` is a descriptor's, which is a link.
    """
    try:
        fd = os.open(path, os.O_RDONLY | (0 if held else os.O_NOFOLLOW) | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise CheckpointError(f"cannot read the archive {path}: {err.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"no such checkpoint: {path} is neither a directory nor an archive")
    return os.fdopen(fd, "rb")


def _decompress(path: str, source: IO[bytes], target: IO[bytes], limit: int) -> None:
    """podman compresses with zstd unless it is told otherwise; Python reads that since 3.14."""
    with zstd(path, source) as process:
        assert process.stdout is not None
        while block := process.stdout.read(_BLOCK):
            target.write(block)
            if target.tell() > limit:
                process.kill()
                raise CheckpointError(
                    f"archive {path} is too large: more than {limit} bytes when decompressed",
                    hint="raise `archive.max-bytes`",
                )
    if process.returncode:
        raise CheckpointError(f"archive {path} is damaged: zstd exited with {process.returncode}")
    target.flush()


def zstd(path: str, source: IO[bytes]) -> subprocess.Popen[bytes]:
    """The program that decompresses it."""
    program = run.find_program("zstd", run.caller_environment())
    if program is None:
        raise CheckpointError(
            f"archive {path} is compressed with zstd, and there is no program zstd",
            hint="install it, or decompress the archive first",
        )
    os.lseek(source.fileno(), 0, os.SEEK_SET)  # the program reads the descriptor, not our buffer
    return subprocess.Popen(
        [program, "--decompress", "--stdout", "--quiet"],
        stdin=source.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=proc.die_with_parent,
    )


def _entries(path: str, stream: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    stream.seek(0)
    compressed = stream.read(2) == GZIP
    stream.seek(0)
    source: Any = plain.Source(cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if compressed else stream)
    return members(path, source)


def members(path: str, source: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """An archive's entries, to its very end.

    Args:
        source: what tarfile reads, bounded.

    Raises:
        CheckpointError: it is damaged, or cut short.
    """
    try:
        with tarfile.open(fileobj=source, mode="r:") as archive:
            for entry in archive:
                yield archive, entry
            plain.check_end(source, archive.offset)
    except (*plain.DAMAGED, OSError) as err:
        raise CheckpointError(f"archive {path} is damaged: {err}", hint="it was cut short, or is no tar file") from None


def _check(path: str, stream: IO[bytes], max_bytes: int, max_entries: int) -> dict[str, int]:
    """The files to take out, with their sizes."""
    wanted: dict[str, int] = {}
    seen: set[str] = set()
    total = 0
    for number, (_, entry) in enumerate(_entries(path, stream)):
        name = plain_name(path, entry)
        total += max(entry.size, 0)
        if number >= max_entries or total > max_bytes:
            raise too_large(path, max_bytes, max_entries)
        if not entry.isreg():
            continue
        if name in seen:
            raise CheckpointError(f"archive {path} holds {name!r} twice")
        seen.add(name)
        if is_part(name):
            wanted[name] = entry.size
    require_images(path, wanted)
    return wanted


def is_part(name: str) -> bool:
    """Whether an entry is taken out of an archive."""
    directory, _, rest = name.rpartition("/")
    return (not directory and name in TOP) or (directory == names.IMAGES_DIR and bool(rest))


def require_images(path: str, wanted: Container[str]) -> None:
    """Raises CheckpointError: an archive of these files is no checkpoint."""
    if f"{names.IMAGES_DIR}/inventory.img" not in wanted:
        raise CheckpointError(f"archive {path} is no checkpoint: it holds no {names.IMAGES_DIR}/inventory.img")


def require_room(path: str, total: int, target: str) -> None:
    """Raises CheckpointError: the file system of directory `target` has no room for `total` bytes."""
    free = os.statvfs(target)
    if total > free.f_bavail * free.f_frsize:
        raise CheckpointError(
            f"there is no room for the {total} bytes of archive {path} in {target}",
            hint="set `archive.unpack-dir` to a directory with more room",
        )


def too_large(path: str, max_bytes: int, max_entries: int) -> CheckpointError:
    """What is said of an archive beyond the bounds."""
    return CheckpointError(
        f"archive {path} is too large: more than {max_entries} entries or {max_bytes} bytes",
        hint="raise `archive.max-entries` or `archive.max-bytes`",
    )


def plain_name(path: str, entry: tarfile.TarInfo) -> str:
    """The entry's name less a leading `./`, if it is a directory or a file whose name leads nowhere else."""
    name = entry.name[2:] if entry.name.startswith("./") else entry.name
    if name in ("", ".") and entry.isdir():
        return ""
    if not entry.isreg() and not entry.isdir():
        raise CheckpointError(f"archive {path} holds {entry.name!r}, which is neither a file nor a directory")
    if any(word in ("", ".", "..") for word in name.rstrip("/").split("/")) or "\0" in name:
        raise CheckpointError(f"archive {path} holds the name {entry.name!r}, which leads out of it")
    return name.rstrip("/")


def _write(path: str, stream: IO[bytes], target: str, wanted: dict[str, int]) -> None:
    os.mkdir(os.path.join(target, names.IMAGES_DIR), 0o700)
    left = dict(wanted)
    for archive, entry in _entries(path, stream):
        name = plain_name(path, entry)
        if not entry.isreg() or name not in left:
            continue
        if left.pop(name) != entry.size:
            raise CheckpointError(f"archive {path} was changed while it was read")
        content = archive.extractfile(entry)
        assert content is not None
        how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with content, open(os.open(os.path.join(target, name), how, 0o600), "wb", buffering=0) as file:
            while block := content.read(_BLOCK):
                file.write(block)
    if left:
        raise CheckpointError(f"archive {path} was changed while it was read")
