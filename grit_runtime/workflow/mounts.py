"""What happens to each mount of the images. Pure: no file is opened here.

runc registers every bind mount with CRIU under its destination, at dump and at restore (libcontainer/criu_linux.go,
addCriuDumpMount and addCriuRestoreMount). So an image's mount and the new config.json are joined on the destination,
which a new pod keeps, and the new source follows from it: new pod UID, sandbox and container hash need no translation.
Mounts that CRIU found by itself (`ext-mount-map auto`) hold old host paths; those with a destination in the new
config.json are given that key in a staged copy of the image. Mounts that a hook made in the old container were given
their mountpoint as key by our capture, and come from where the manifest says.
"""

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.criu.images import Changes, Fields, ImageMount, Images
from grit_runtime.oci.bundle import Bundle

ROOT = "/"


class Kind(enum.Enum):
    """What a host path is, as far as mounting it goes."""

    MISSING = "missing"
    DIRECTORY = "directory"
    FILE = "file"


class Action(enum.Enum):
    """What happens to a mount of the images."""

    ROOT = "is the new container's rootfs"
    NATIVE = "is made by CRIU from the images"
    REMAP = "comes from the new container's mount"
    REKEY = "is given the new container's mount of the same destination"
    LINK = "is led by a symbolic link to the new container's mount"
    KEEP = "comes from the same host path as before"
    RUNTIME = "is provided by the runtime"
    MISSING = "has no counterpart in the new container"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountStep:
    """One mount of the images and what will happen to it."""

    mount: ImageMount
    action: Action
    new_source: str = ""

    @property
    def destination(self) -> str:
        """Where it is in the container."""
        return self.mount.mountpoint

    @property
    def key(self) -> str:
        """CRIU's name for it, empty for a mount that CRIU makes by itself."""
        return self.mount.ext_key

    @property
    def old_source(self) -> str:
        """Where it came from, as the image says: a host path only of a mount that CRIU found by itself."""
        return self.mount.source

    @property
    def from_host(self) -> bool:
        """Whether its content is the new container's or the host's, not the images'."""
        return self.action in (Action.REMAP, Action.REKEY, Action.LINK, Action.KEEP)

    def describe(self) -> str:
        """One line for people."""
        arrow = f": {self.old_source or '?'} -> {self.new_source}" if self.new_source else ""
        return f"{self.destination} {self.action.value}{arrow}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OldMount:
    """What the manifest says of a mount of the old container."""

    directory: bool
    source: str = ""
    """The host path of one that is in no config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the new container and its machine have to offer for mounts."""

    provided: Mapping[str, str]
    """Key to host path of every mount that the downstream will give CRIU; an empty path is its own business."""
    sources: Mapping[str, Kind]
    """Host path to what it is."""
    old: Mapping[str, OldMount] = field(default_factory=dict)
    """Destination to what the manifest says of the old container's mount there."""
    private: frozenset[str] = frozenset()
    """Those of the host paths on which no mount is propagated."""
    options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Destination to the options of config.json's mount there."""
    links: bool = False
    """Lead mounts that CRIU found by itself to their new place by links on the host, not by rewriting images."""
    fixed: frozenset[str] = frozenset()
    """Images that cannot be written again without loss; their mounts are led by links."""

    def kind(self, path: str) -> Kind:
        """What a host path is; unknown is missing."""
        return self.sources.get(path, Kind.MISSING)


def bind_mounts(bundle: Bundle) -> dict[str, str]:
    """Destination to absolute source of the bind mounts in config.json.

    runc: a mount is a bind mount by its options, whatever its type says; a relative source starts at the bundle
        (specconv, createLibcontainerMount).
    """
    found = {}
    for mount in bundle.objects("mounts"):
        options = mount.get("options") or []
        if ("bind" in options or "rbind" in options) and isinstance(mount.get("destination"), str):
            found[mount["destination"]] = os.path.join(bundle.path, str(mount.get("source", "")))
    return found


def provided(bundle: Bundle, resolved: Mapping[str, str], v1_controllers: tuple[str, ...]) -> dict[str, str]:
    """The keys for which the downstream gives CRIU a source, with that source; empty where it is the runtime's own
    business.

    Args:
        resolved: a destination to where it leads within the rootfs.
        v1_controllers: the names below the cgroup mount of a machine with cgroup v1.
    """
    found = {resolved.get(path, path): source for path, source in bind_mounts(bundle).items()}
    for name in names.DEFAULT_DEVICES:  # masked paths are bound to null; a user namespace has all of them as binds
        found.setdefault(f"/dev/{name}", "")
    for device in bundle.objects("linux", "devices"):
        found.setdefault(str(device.get("path", "")), "")
    for mount in bundle.objects("mounts"):
        if mount.get("type") == "cgroup":
            # runc binds each v1 hierarchy below it and keys each of them (getCgroupMounts).
            base = str(mount.get("destination", ""))
            found.update({os.path.join(base, name): "" for name in v1_controllers})
    return found


def steps(images: Images, offer: Offer) -> tuple[MountStep, ...]:
    """What happens to each mount, in the order of the images."""
    return tuple(_step(mount, offer) for mount in images.mounts)


def _step(mount: ImageMount, offer: Offer) -> MountStep:
    def step(action: Action, new: str = "") -> MountStep:
        return MountStep(mount=mount, action=action, new_source=new)

    key = mount.ext_key
    if mount.mountpoint == ROOT:
        return step(Action.ROOT)
    if not key:
        return step(Action.NATIVE)
    if key in offer.provided:
        source = offer.provided[key]
        return step(Action.REMAP, source) if source else step(Action.RUNTIME)
    if key == names.AUTOGENERATED:
        if mount.mountpoint in offer.provided and not offer.provided[mount.mountpoint]:
            return step(Action.RUNTIME)
        if offer.provided.get(mount.mountpoint):
            by_link = offer.links or mount.file in offer.fixed
            return step(Action.LINK if by_link else Action.REKEY, offer.provided[mount.mountpoint])
        # CRIU 4.1.1 may write a slash behind a file that is itself a mountpoint (mount.c, resolve_external_mounts).
        former = mount.source.rstrip("/")
    else:
        former = offer.old[key].source if key in offer.old else ""
    if former and offer.kind(former) is not Kind.MISSING:
        return step(Action.KEEP, former)
    return step(Action.MISSING, former)


def rewrites(found: tuple[MountStep, ...], offer: Offer) -> dict[str, Changes]:
    """What has to change in the images for these steps, by image."""
    changes: dict[str, Changes] = {}
    for step in found:
        fields = _fields(step)
        if _loses_propagation(step, offer):
            # mount-v2 takes the group over from the source, and fails on a private one (restore_one_sharing).
            fields |= {"shared_id": 0, "master_id": 0}
        if fields:
            changes.setdefault(step.mount.file, {})[step.mount.index] = fields
    return changes


def _fields(step: MountStep) -> Fields:
    mount = step.mount
    fields: Fields = {}
    if mount.ext_key == names.AUTOGENERATED and step.action in (Action.REKEY, Action.RUNTIME):
        fields["ext_key"] = mount.mountpoint
    elif step.action is Action.KEEP and (mount.ext_key != names.AUTOGENERATED or mount.source != step.new_source):
        fields |= {"ext_key": names.AUTOGENERATED, "source": step.new_source}
    if (step.from_host or step.action is Action.RUNTIME) and mount.deleted and step.action is not Action.LINK:
        # `deleted` says that the old source was unlinked: CRIU would try to make it again at the new one.
        fields["deleted"] = None
    return fields


def _loses_propagation(step: MountStep, offer: Offer) -> bool:
    """Whether the old mount took part in the host's propagation, and the new source doesn't."""
    mount = step.mount
    return step.from_host and bool(mount.shared_id or mount.master_id) and step.new_source in offer.private


@dataclass(frozen=True, slots=True, kw_only=True)
class Mountpoint:
    """A name that must be there before CRIU mounts on it, and that runc doesn't make: `path` below host directory
    `base`.
    """

    base: str
    path: str
    directory: bool


def mountpoints(found: tuple[MountStep, ...], bundle: Bundle, offer: Offer) -> tuple[Mountpoint, ...]:
    """The mountpoints of mounts that are only in the images, on the rootfs or on a mount from the host; on what CRIU
    fills itself they come with its content.
    """
    by_id = {step.mount.mnt_id: step for step in found}
    made_by_runtime = {*offer.provided, *(str(mount.get("destination")) for mount in bundle.objects("mounts"))}
    needed = []
    for step in found:
        parent = by_id.get(step.mount.parent_id)
        if parent is None or step.destination in made_by_runtime or step.action is Action.ROOT:
            continue
        if parent.action is Action.ROOT:
            base = bundle.rootfs
        elif parent.from_host and offer.kind(parent.new_source) is Kind.DIRECTORY:
            base = parent.new_source
        else:
            continue
        inner = os.path.relpath(step.destination, parent.destination)
        if not inner.startswith(".."):
            needed.append(Mountpoint(base=base, path=inner, directory=_is_directory(step, offer)))
    return tuple(dict.fromkeys(needed))


def _is_directory(step: MountStep, offer: Offer) -> bool:
    if step.new_source:
        return offer.kind(step.new_source) is not Kind.FILE
    old = offer.old.get(step.destination)
    return old.directory if old else True


def problems(found: tuple[MountStep, ...], bundle: Bundle, offer: Offer) -> list[str]:
    """Everything that keeps the new container's mounts from taking the place of the old one's."""
    texts = []
    for step in found:
        if step.action is Action.MISSING:
            texts.append(_missing(step))
        elif step.from_host and step.action is not Action.KEEP:
            texts += _wrong_kind(step, offer)
    for destination, source in bind_mounts(bundle).items():
        if offer.kind(source) is Kind.MISSING:
            texts.append(f"the source {source} of mount {destination} does not exist")
    return list(dict.fromkeys(texts))


def _missing(step: MountStep) -> str:
    if step.new_source:
        return (
            f"mount {step.destination} came from {step.new_source}, which is gone, and the new container has none there"
        )
    return f"mount {step.key} is in the checkpoint and not in the new container's config.json"


def _wrong_kind(step: MountStep, offer: Offer) -> list[str]:
    old, new = offer.old.get(step.destination), offer.kind(step.new_source)
    if old is None or new is Kind.MISSING or old.directory == (new is Kind.DIRECTORY):
        return []
    was = "directory" if old.directory else "file"
    return [f"mount {step.destination} was a {was}, and its new source {step.new_source} is a {new.value}"]


def warnings(images: Images, found: tuple[MountStep, ...], offer: Offer) -> list[str]:
    """Mounts of the new container that the old one didn't have, and mounts that the host no longer propagates."""
    deaf = [
        f"mount {step.destination} was propagated in the old container; its new source {step.new_source} is private"
        for step in found
        if _loses_propagation(step, offer)
    ]
    present = {mount.ext_key for mount in images.mounts} | {mount.mountpoint for mount in images.mounts}
    return deaf + [
        f"mount {destination} of the new container is not in the checkpoint and will not be there"
        for destination, source in offer.provided.items()
        if source and destination not in present
    ]
