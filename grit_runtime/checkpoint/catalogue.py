"""The checkpoints below the configured roots: `<root>/<namespace>/<name>/<container>/checkpoint`, or `<container>.tar`.

A root may hold what others wrote. So everything is opened from its directory's descriptor, and no link is followed.
"""

import calendar
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint import manifest as manifests

MOST = 100_000  # names of one directory that are looked at
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ARCHIVES = (".tar", ".tar.gz", ".tar.zst")
_INVENTORY = "inventory.img"
COMPLETE, INCOMPLETE, UNSAID = "complete", "incomplete", "unsaid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One checkpoint of one container."""

    root: str
    namespace: str
    name: str
    """What a pod's annotation `grit.dev/restore-name` says."""
    entry: str
    """The name below that: a directory, or an archive; `checkpoint` for one of no container's."""
    container: str
    pod: str
    """The pod that it was taken of, where the checkpoint says so."""
    made: float
    """Seconds since the epoch."""
    bytes: int
    """What it takes on the disk."""
    state: str
    """COMPLETE; INCOMPLETE: being written, or cut short; UNSAID: nothing says which."""

    @property
    def path(self) -> str:
        """The whole path."""
        return os.path.join(self.root, self.namespace, self.name, self.entry)

    @property
    def subject(self) -> tuple[str, str, str]:
        """What it is a checkpoint of: namespace, pod and container."""
        return (self.namespace, self.pod or self.name, self.container)


def find(roots: tuple[str, ...]) -> list[Entry]:
    """All of them, by namespace and subject, the newest last."""
    found = [entry for root in dict.fromkeys(map(os.path.realpath, roots)) for entry in _of_root(root)]
    return sorted(found, key=lambda entry: (entry.subject, entry.made, entry.path))


def _of_root(root: str) -> Iterator[Entry]:
    for namespace, in_root in directories(root, None):
        for name, in_namespace in directories(namespace, in_root):
            with opened(name, in_namespace) as folder:
                if folder is None:
                    continue
                for entry in _listed(folder):
                    made = _entry(root, namespace, name, entry, folder)
                    if made is not None:
                        yield made


def unfinished(root: str) -> Iterator[tuple[str, int]]:
    """The directories of images in which a dump was begun and has not ended, by path and descriptor."""
    for namespace, in_root in directories(root, None):
        for name, in_namespace in directories(namespace, in_root):
            for entry, in_name in directories(name, in_namespace):
                with opened(entry, in_name) as directory:
                    if directory is not None:
                        yield from _unfinished(os.path.join(root, namespace, name, entry), directory)


def _unfinished(path: str, directory: int) -> Iterator[tuple[str, int]]:
    inner = "." if os.path.basename(path) == names.IMAGES_DIR else names.IMAGES_DIR
    with opened(inner, directory) as images:
        if images is not None and names.PARTIAL in os.listdir(images):
            yield os.path.normpath(os.path.join(path, inner)), images


def directories(path: str, above: int | None) -> Iterator[tuple[str, int]]:
    """The names in a directory below `above`, with its descriptor; what they are is found when they are opened."""
    with opened(path, above) as folder:
        if folder is not None:
            for name in _listed(folder):
                yield name, folder


@contextmanager
def opened(name: str, above: int | None) -> Iterator[int | None]:
    """A directory, or None if it is none."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _listed(folder: int) -> list[str]:
    return sorted(name for name in os.listdir(folder)[:MOST] if not name.startswith("."))


def _entry(root: str, namespace: str, name: str, entry: str, folder: int) -> Entry | None:
    """What lies under this name, if it is a checkpoint."""
    known: dict[str, Any] = {"root": root, "namespace": namespace, "name": name, "entry": entry}
    suffix = next((suffix for suffix in _ARCHIVES if entry.endswith(suffix)), "")
    try:
        there = os.stat(entry, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None  # it went meanwhile
    if suffix and stat.S_ISREG(there.st_mode):
        container = entry.removesuffix(suffix)
        size = there.st_blocks * 512
        return Entry(**known, container=container, pod="", made=there.st_mtime, bytes=size, state=UNSAID)
    with opened(entry, folder) as directory:
        if directory is None:
            return None
        if entry == names.IMAGES_DIR:
            return _of_images(known, "", directory, directory)
        with opened(names.IMAGES_DIR, directory) as images:
            return None if images is None else _of_images(known, entry, directory, images)


def _of_images(known: dict[str, Any], container: str, directory: int, images: int) -> Entry:
    """An entry with a directory of images.

    Args:
        directory: the descriptor of the entry.
        images: that of the images in it, or of the same.
    """
    document = _manifest(images)
    there = set(os.listdir(images))
    state = UNSAID if _INVENTORY in there else INCOMPLETE
    if names.PARTIAL in there:
        state = INCOMPLETE
    elif document is not None:
        state = COMPLETE
    about = (document or {}).get("container")
    pod = about.get("pod") if isinstance(about, dict) else None
    return Entry(
        **known,
        container=container,
        pod=str((pod.get("name") if isinstance(pod, dict) else None) or ""),
        made=_made(document, images),
        bytes=_size(directory),
        state=state,
    )


def _manifest(images: int) -> dict[str, Any] | None:
    try:
        fd = os.open(names.MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=images)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(manifests.MAX_BYTES + 1)
    try:
        document = json.loads(data) if len(data) <= manifests.MAX_BYTES else None
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _made(document: dict[str, Any] | None, images: int) -> float:
    try:
        return float(calendar.timegm(time.strptime(str((document or {}).get("created")), "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return os.fstat(images).st_mtime


def _size(directory: int) -> int:
    """What a tree takes on the disk."""
    total = 0
    for _, _, files, fd in os.fwalk(".", dir_fd=directory, follow_symlinks=False):
        for name in files:
            try:
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks
            except OSError:
                continue  # it went meanwhile
    return total * 512
