"""Where a Checkpoint's data is kept for other nodes: a volume that is mounted here, or a registry."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from grit_runtime import names
from grit_runtime.agent import copies, credentials, pull, reference, sets, transfer
from grit_runtime.agent.errors import TransferError
from grit_runtime.agent.exchange import Patience
from grit_runtime.agent.image import Facts
from grit_runtime.agent.model import Object
from grit_runtime.agent.reference import Allowed, NoReferenceError
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.agent.transfer import Remote
from grit_runtime.checkpoint import manifest
from grit_runtime.errors import GritError

_LONGEST = 256  # characters of what a manifest says, in an annotation
_NEVER = frozenset({401, 403, 405})


class UnknownStoreError(GritError):
    """A Checkpoint names a place that this agent doesn't have, or may not use."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KeptError(GritError):
    """The data stays where it is, however often its removal is tried."""


class Store(Protocol):
    """A place for one Checkpoint's data."""

    @property
    def shown(self) -> str:
        """What people know it by."""

    def put(self, place: Place, progress: Progress) -> Object:
        """Bring a set there from the node's disk; what the status says of it from then on."""

    def get(self, place: Place, progress: Progress) -> None:
        """Bring it to the node's disk."""

    def remove(self, place: Place) -> None:
        """Remove it there. Raises KeptError: that will never do."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory."""

    root: str
    entries: Sequence[dict[str, object]]
    shown: str = "the volume"

    def put(self, place: Place, progress: Progress) -> Object:
        copies.copy(place, place.below(self.root), self.entries, progress)
        return {}

    def get(self, place: Place, progress: Progress) -> None:
        copies.copy(place.below(self.root), place, self.entries, progress)

    def remove(self, place: Place) -> None:
        sets.remove(place.below(self.root))


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a registry."""

    remote: Remote
    tag: str
    found: Object
    """The Checkpoint."""

    @property
    def shown(self) -> str:
        return f"registry {self.remote.repository.host}"

    @property
    def _entries(self) -> list[dict[str, object]]:
        return self.found["status"].get("containers") or []

    def put(self, place: Place, progress: Progress) -> Object:
        digest = transfer.push(place, self._entries, self.remote, self.tag, facts(place, self.found), progress)
        return {"image": f"{self.remote.repository}@{digest}"}

    def get(self, place: Place, progress: Progress) -> None:
        pull.pull(self.remote, self._digest(), place, self._entries, progress)

    def remove(self, place: Place) -> None:  # noqa: ARG002 - of a Store
        if not (self.found.get("status") or {}).get("image"):
            return
        try:
            transfer.remove(self.remote, self._digest())
        except TransferError as err:
            if err.status not in _NEVER:
                raise
            raise KeptError(f"{self.found['status']['image']} stays in its registry: {err}") from None

    def _digest(self) -> str:
        """By the status, which tenants can't write; of this repository."""
        name, digest = reference.pinned(str((self.found.get("status") or {}).get("image", "")))
        if name != str(self.remote.repository):
            raise NoReferenceError(f"the image {name} isn't in the repository {self.remote.repository} of the spec")
        return digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Those that an agent has."""

    volumes: Mapping[str, str] = field(default_factory=dict)
    """Claim name to the directory where the agent has it."""
    registries: Sequence[Allowed] = ()
    patience: Patience = field(default_factory=Patience)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def of(self, found: Object, node: str) -> Store:
        """Where a Checkpoint's data is kept.

        Raises:
            UnknownStoreError: nowhere that this agent has.
            ConfigError: the registries' credentials can't be read.
        """
        if found["spec"].get("registry"):
            return self._image(found, node)
        claim = (found["spec"].get("volumeClaim") or {}).get("claimName", "")
        if claim not in self.volumes:
            known = ", ".join(sorted(self.volumes)) or "none"
            message = f"the agent of node {node} has no volume {claim} (it has: {known})"
            raise UnknownStoreError("VolumeUnknown", message)
        return Volume(self.volumes[claim], (found.get("status") or {}).get("containers") or [])

    def _image(self, found: Object, node: str) -> Image:
        meta, said = found["metadata"], str(found["spec"]["registry"].get("reference", ""))
        try:
            repository = reference.repository(said, meta["namespace"], self.registries)
            tag = reference.split(said)[2] or meta["name"]
        except NoReferenceError as err:
            raise UnknownStoreError("RegistryUnknown", f"the agent of node {node}: {err}") from None
        known = credentials.of(repository, self.environment)
        return Image(Remote(repository=repository, credentials=known, patience=self.patience), tag, found)


def facts(place: Place, found: Object) -> Facts:
    """What the image says of a set, by its Checkpoint and its manifests."""
    status, meta = found["status"], found["metadata"]
    listed = tuple(str(entry["name"]) for entry in status.get("containers") or [])
    known = [manifest.read(os.path.join(place.path, name, names.IMAGES_DIR)) for name in listed]
    data = [entry.data for entry in known if entry is not None]
    first = data[0] if data else {}
    versions = _section(first, "versions")
    return Facts(
        created=str(status.get("completionTime", "")),
        uid=str(meta["uid"]),
        namespace=str(meta["namespace"]),
        pod=str(found["spec"]["podName"]),
        pod_uid=str(status.get("podUID", "")),
        containers=listed,
        architecture=_word(_section(first, "machine"), "architecture"),
        kernel=_word(versions, "kernel"),
        criu=_word(versions, "criu"),
        images=tuple(filter(None, (_word(_section(one, "container"), "image") for one in data))),
    )


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _word(section: Mapping[str, Any], name: str) -> str:
    found = section.get(name)
    return found[:_LONGEST] if isinstance(found, str) else ""
