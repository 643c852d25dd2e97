"""The sets on a node's disk and in a volume: `<root>/<namespace>/<name>/<container>/checkpoint`.

Whose a set is stands beside it, in `<root>/<namespace>/.grit-agent-<name>.json`, which is written before the set is
made: the UID of its Checkpoint. A set of that UID in which every container's manifest is there is whole. A copy is made
beside its place and gets its name in one rename, when every byte of it was compared with the manifest's checksums; one
that was cut short leaves what it had, and the next one copies what is missing.
"""

import contextlib
import hashlib
import json
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.agent.checkpoints import Data
from grit_runtime.checkpoint import locate, manifest
from grit_runtime.errors import CheckpointError, GritError
from grit_runtime.host import files

_COPY = ".grit-copy-"
_OWNER = ".grit-agent-"
_MOST = 1 << 16  # bytes of the file that says whose a set is


class Stopped(GritError):
    """A copy was told to end."""


@dataclass(slots=True)
class Progress:
    """How far a copy is; another thread may look, and have it end."""

    total: int = 0
    done: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Raises Stopped: it was told to end."""
        if self.stop.is_set():
            raise Stopped("the copy was told to end")


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


def copying(target: Place) -> str:
    """The directory beside a set's place in which it is made."""
    return os.path.join(os.path.dirname(target.path), f"{_COPY}{target.name}")


def total(expected: Sequence[dict[str, object]]) -> int:
    """Bytes of all containers."""
    return sum(int(str(entry.get("bytes", 0))) for entry in expected)


def identity(expected: Sequence[dict[str, object]]) -> str:
    """What tells a set from any other: its containers, and the digests of their manifests."""
    words = json.dumps([[entry["name"], entry.get("digest", "")] for entry in expected])
    return f"sha256:{hashlib.sha256(words.encode()).hexdigest()}"


def known_as(images: str, entry: Mapping[str, object]) -> manifest.Manifest:
    """The manifest of a container's images, which are those that were captured.

    Raises:
        CheckpointError: they aren't, or a file of them is missing or of another size.
    """
    known, digest = manifest.read(images), str(entry.get("digest", ""))
    if known is None or (digest and _digest(images) != digest):
        raise CheckpointError(f"{images} is not what was captured: its manifest is another")
    return known


def listed(directory: str) -> list[tuple[str, bool]]:
    """The names in a directory, and whether each is a directory.

    Raises:
        CheckpointError: one is neither that nor a file.
    """
    found = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise CheckpointError(f"{entry.path} is neither a file nor a directory")
            found.append((entry.name, stat.S_ISDIR(mode)))
    return found


def remove(place: Place) -> None:
    """Remove a set, if it is this Checkpoint's; nothing if there is none. It loses its name first.

    Raises OSError: it can't be removed.
    """
    if not place.uid or _whose(place) != place.uid:
        return
    hidden = copying(place)
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
