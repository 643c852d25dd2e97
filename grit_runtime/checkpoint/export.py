"""A checkpoint of ours as one tar file, in the layout that kubelet's checkpoint API, podman and checkpointctl share."""

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from typing import IO, Literal

from grit_runtime import names
from grit_runtime.checkpoint import archive, kinds, manifest
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files, proc, run

_LEVEL = 1  # zstd's own choice, 3, takes nearly twice as long for a tenth less (docs/checkpoint-kinds.md)


def export(images: str, target: str, *, compress: bool = False) -> None:
    """Write the checkpoint in directory `images` to `target`, which must not exist.

    The files go beside the archive's directory `checkpoint` that others look for there; grit.json lists what is left.

    Args:
        compress: with zstd, by as many threads as there are cores; podman reads and writes such archives, too.

    Raises:
        CheckpointError: it has no manifest or is damaged, `target` exists or can't be written, or there is no program
            zstd.
    """
    found = manifest.read(images)
    if found is None:
        raise CheckpointError(f"{images} has no {names.MANIFEST}: only a checkpoint of grit-runtime's is exported")
    temporary = f"{target}.grit-tmp-{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            if compress:
                with _compressed(stream) as pipe:
                    _write(images, found, pipe, mode="w|")
            else:
                _write(images, found, stream, mode="w")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, target)  # which, unlike rename(2), replaces nothing
        files.sync_directory(os.path.dirname(target))
    except OSError as err:
        raise CheckpointError(f"cannot write {target}: {err.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _compressed(target: IO[bytes]) -> Iterator[IO[bytes]]:
    """What is written here goes to `target` by the program zstd, which Python has had since 3.14 only."""
    program = run.find_program("zstd", run.caller_environment())
    if program is None:
        raise CheckpointError("there is no program zstd to compress an archive with", hint="install it")
    argv = [program, "--quiet", "--stdout", f"-T{len(os.sched_getaffinity(0))}", f"-{_LEVEL}"]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=target.fileno(),
        stderr=subprocess.DEVNULL,
        preexec_fn=proc.die_with_parent,
    )
    try:
        assert process.stdin is not None
        with process.stdin:
            yield process.stdin
    except BrokenPipeError:
        pass  # its exit code says more
    except BaseException:
        process.kill()
        raise
    finally:
        code = process.wait()
    if code:
        raise CheckpointError(f"zstd exited with {code}: the disk is full, perhaps")


def _write(images: str, found: manifest.Manifest, stream: IO[bytes], *, mode: Literal["w", "w|"]) -> None:
    outer = [name for name in found.sizes if name in archive.TOP and name != names.DESCRIPTORS]
    inner = [name for name in found.sizes if name not in outer]
    left = {"files": [entry for entry in found.entries("files") if entry["name"] not in outer]}
    with tarfile.open(fileobj=stream, mode=mode, format=tarfile.PAX_FORMAT) as tar:
        for name, data in kinds.dumps(found.data).items():
            _add(tar, name, data)
        directory = tarfile.TarInfo(names.IMAGES_DIR)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(directory)
        _add(tar, f"{names.IMAGES_DIR}/{names.MANIFEST}", manifest.encode({**found.data, **left}))
        for name in inner:
            tar.add(os.path.join(images, name), f"{names.IMAGES_DIR}/{name}", recursive=False)
        for name in outer:
            tar.add(os.path.join(images, name), name, recursive=False)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))
