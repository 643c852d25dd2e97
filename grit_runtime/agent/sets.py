"""The sets on a node's disk and in a volume: `<root>/<namespace>/<name>/<container>/checkpoint`.

Whose a set is stands beside it, in `<root>/<namespace>/.grit-agent-<name>.json`, which is written before the set is
made: the UID of its Checkpoint. A set of that UID in which every container's manifest is there is whole. A copy is made
beside its place and gets its name in one rename, when every byte of it was compared with the manifest's checksums; one
that was cut short begins again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.agent.checkpoints import Data
from grit_runtime.checkpoint import integrity, locate, manifest
from grit_runtime.errors import BusyError, CheckpointError, GritError
from grit_runtime.host import files, pool

_COPY = ".grit-copy-"
_OWNER = ".grit-agent-"
_PIECE = 8 << 20
_MOST = 1 << 16  # bytes of the file that says whose a set is


class Stopped(GritError):
    """A copy was told to end."""


@dataclass(slots=True)
class Progress:
    """How far a copy is; another thread may look, and have it end."""

    total: int = 0
    done: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a Checkpoint's set is, below a root."""

    root: str
    namespace: str
    name: str
    uid: str
    """The Checkpoint's."""

    def __post_init__(self) -> None:
        locate.component("namespace", self.namespace)
        locate.component("name", self.name)

    @property
    def path(self) -> str:
        """The set's directory."""
        return os.path.join(self.root, self.namespace, self.name)

    def below(self, root: str) -> "Place":
        """The same set's place below another root."""
        return Place(root=root, namespace=self.namespace, name=self.name, uid=self.uid)

    @property
    def owner(self) -> str:
        """The file that says whose it is."""
        return os.path.join(self.root, self.namespace, f"{_OWNER}{self.name}.json")


def claim(place: Place) -> None:
    """Say that what will lie there is this Checkpoint's.

    Raises:
        CheckpointError: there is something of another.
        OSError: it can't be written.
    """
    if look(place, ()) is Data.FOREIGN:
        raise CheckpointError(f"there is a checkpoint at {place.path} that this Checkpoint has not made")
    os.makedirs(os.path.dirname(place.path), mode=0o700, exist_ok=True)
    document = {"uid": place.uid, "namespace": place.namespace, "name": place.name}
    files.write_atomically(place.owner, json.dumps(document).encode(), sync=True)


def look(place: Place, containers: Sequence[str]) -> Data:
    """What is there under this name."""
    there, whose = os.path.lexists(place.path), _whose(place)
    if there and whose != place.uid:
        return Data.FOREIGN
    manifests = [os.path.join(place.path, name, names.IMAGES_DIR, names.MANIFEST) for name in containers]
    return Data.WHOLE if there and manifests and all(map(os.path.isfile, manifests)) else Data.NONE


def _whose(place: Place) -> str:
    try:
        found = files.read_json(place.owner, _MOST)
    except (OSError, ValueError):
        return ""
    return str(found.get("uid", "")) if isinstance(found, dict) else ""


def contents(place: Place, containers: Sequence[str]) -> list[dict[str, object]]:
    """The containers of a set with their sizes, and what tells their manifests from others.

    Raises:
        CheckpointError: a manifest is damaged, or files that it lists are not there.
    """
    found: list[dict[str, object]] = []
    for name in containers:
        images = os.path.join(place.path, locate.component("container name", name), names.IMAGES_DIR)
        known = manifest.read(images)
        if known is None:
            raise CheckpointError(f"{images} has no manifest")
        size = sum(known.sizes.values())
        found.append({"name": name, "bytes": size, "digest": _digest(images)})
    return found


def _digest(images: str) -> str:
    with open(os.path.join(images, names.MANIFEST), "rb") as stream:
        return f"sha256:{hashlib.sha256(stream.read()).hexdigest()}"


def copy(source: Place, target: Place, expected: Sequence[dict[str, object]], progress: Progress) -> None:
    """Copy a set, and have it appear when every byte of it is there and as its manifests say.

    Args:
        expected: what `contents` said when it was captured: another set of that name is not taken for this one.

    Raises:
        CheckpointError: the source isn't that set, or is damaged.
        BusyError: another process copies it.
        Stopped: `progress.stop` was set.
        OSError: something can't be read or written.
    """
    if look(target, [str(entry["name"]) for entry in expected]) is Data.WHOLE:
        return
    claim(target)
    staging = os.path.join(os.path.dirname(target.path), f"{_COPY}{target.name}")
    progress.total, progress.done = sum(int(str(entry.get("bytes", 0))) for entry in expected), 0
    with _fresh(staging):
        for entry in expected:
            name = locate.component("container name", str(entry["name"]))
            inside = os.path.join(staging, name)
            _copy_tree(os.path.join(source.path, name), inside, progress)
            _require(os.path.join(inside, names.IMAGES_DIR), str(entry.get("digest", "")))
        files.sync_directory(staging)
        _rename(staging, target.path)
        files.sync_directory(os.path.dirname(target.path))


@contextlib.contextmanager
def _fresh(path: str) -> Iterator[None]:
    """An empty directory, ours alone, and gone afterwards if it still has this name."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"another process copies to {path}") from None
        for name in os.listdir(fd):  # of a copy that was cut short
            files.remove_tree(os.path.join(path, name))
        try:
            yield
        finally:
            files.remove_tree(path)
    finally:
        os.close(fd)


def _rename(staging: str, target: str) -> None:
    try:
        os.rename(staging, target)
    except OSError as err:
        if err.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise CheckpointError(f"{target} has come into being meanwhile") from None


def _copy_tree(source: str, target: str, progress: Progress) -> None:
    """Files and directories, with nobody else's rights; anything else is refused."""
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        mode = entry.stat(follow_symlinks=False).st_mode
        inner = os.path.join(target, entry.name)
        if stat.S_ISDIR(mode):
            _copy_tree(entry.path, inner, progress)
        elif stat.S_ISREG(mode):
            _copy_file(entry.path, inner, progress)
        else:
            raise CheckpointError(f"{entry.path} is neither a file nor a directory")
    files.sync_directory(target)


def _copy_file(source: str, target: str, progress: Progress) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while not progress.stop.is_set():
                done = os.sendfile(writing, reading, None, _PIECE)
                if not done:
                    break
                progress.done += done
            else:
                raise Stopped("the copy was told to end")
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _require(images: str, digest: str) -> None:
    """Have a copy be what was captured, byte by byte."""
    known = manifest.read(images)
    if known is None or (digest and _digest(images) != digest):
        raise CheckpointError(f"{images} is not what was captured: its manifest is another")
    integrity.require(images, known.sizes, integrity.recorded(known.data, images), pool.workers(0))


def remove(place: Place) -> None:
    """Remove a set, if it is this Checkpoint's; nothing if there is none. It loses its name first.

    Raises OSError: it can't be removed.
    """
    if not place.uid or _whose(place) != place.uid:
        return
    hidden = os.path.join(os.path.dirname(place.path), f"{_COPY}{place.name}")
    files.remove_tree(hidden)
    try:
        os.rename(place.path, hidden)
    except FileNotFoundError:
        pass
    files.remove_tree(hidden)
    files.unlink_if_there(place.owner)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(place.path))


def of_checkpoints(root: str) -> list[Place]:
    """The sets that Checkpoints have made or brought here: some may be gone by now."""
    found = []
    with contextlib.suppress(OSError):
        for namespace in os.listdir(root):
            with contextlib.suppress(OSError):
                for entry in os.listdir(os.path.join(root, namespace)):
                    if entry.startswith(_OWNER) and entry.endswith(".json"):
                        found.append(made_by(root, namespace, entry.removeprefix(_OWNER).removesuffix(".json")))
    return found


def made_by(root: str, namespace: str, name: str) -> Place:
    """The place of that name, with the UID of the Checkpoint whose set it is; empty for none's."""
    place = Place(root=root, namespace=namespace, name=name, uid="")
    return Place(root=root, namespace=namespace, name=name, uid=_whose(place))
