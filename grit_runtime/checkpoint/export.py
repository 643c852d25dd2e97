"""A checkpoint of ours as one tar file, in the layout that kubelet's checkpoint API, podman and checkpointctl share."""

import contextlib
import io
import os
import tarfile

from grit_runtime import names
from grit_runtime.checkpoint import archive, kinds, manifest
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files


def export(images: str, target: str) -> None:
    """Write the checkpoint in directory `images` to `target`, which must not exist.

    The files go beside the archive's directory `checkpoint` that others look for there; grit.json lists what is left.

    Raises:
        CheckpointError: it has no manifest or is damaged, or `target` exists or can't be written.
    """
    found = manifest.read(images)
    if found is None:
        raise CheckpointError(f"{images} has no {names.MANIFEST}: only a checkpoint of grit-runtime's is exported")
    temporary = f"{target}.grit-tmp-{os.getpid()}"
    try:
        _write(images, found, temporary)
        os.link(temporary, target)  # which, unlike rename(2), replaces nothing
        files.sync_directory(os.path.dirname(target))
    except OSError as err:
        raise CheckpointError(f"cannot write {target}: {err.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write(images: str, found: manifest.Manifest, target: str) -> None:
    outer = [name for name in found.sizes if name in archive.TOP and name != names.DESCRIPTORS]
    inner = [name for name in found.sizes if name not in outer]
    left = {"files": [entry for entry in found.entries("files") if entry["name"] not in outer]}
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
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
        stream.flush()
        os.fsync(stream.fileno())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))
