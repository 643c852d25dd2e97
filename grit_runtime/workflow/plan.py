"""What a restore will do, decided before anything is touched. Pure: no file is opened here.

runc registers every bind mount with CRIU under its destination, at dump and at restore (libcontainer/criu_linux.go,
addCriuDumpMount and addCriuRestoreMount). So an image's mount and the new config.json are joined on the destination,
which a new pod keeps, and the new source follows from
it: new pod UID, sandbox and container hash need no translation. Mounts that CRIU found by itself (`ext-mount-map auto`)
hold old host paths; those with a destination in the new config.json are given that key in a staged copy of the image.
"""

import enum
import os
from dataclasses import dataclass, field
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu.images import ImageMount, Images
from grit_runtime.oci.bundle import Bundle


class Action(enum.Enum):
    """What happens to a mount of the images."""

    ROOT = "is the new container's rootfs"
    NATIVE = "is made by CRIU from the images"
    REMAP = "comes from the new container's mount"
    REKEY = "is given the new container's mount of the same destination"
    KEEP = "comes from the same host path as before"
    RUNTIME = "is provided by the runtime"
    MISSING = "has no counterpart in the new container"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountStep:
    """One mount of the images and what will happen to it."""

    destination: str
    action: Action
    key: str = ""
    old_source: str = ""
    new_source: str = ""

    def describe(self) -> str:
        """One line for people."""
        arrow = f": {self.old_source or '?'} -> {self.new_source}" if self.new_source else ""
        return f"{self.destination} {self.action.value}{arrow}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the plan needs to know of the machine, gathered before."""

    resolved: dict[str, str]
    """A mount's destination in config.json to where it leads within the new rootfs."""
    sources: dict[str, bool]
    """A host path that would be mounted to whether it exists."""
    architecture: str
    unified_cgroup: str = ""
    """The new container's cgroup where the machine has cgroup v2 alone, else empty."""
    v1_controllers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a restore does beyond what the downstream does by itself."""

    container: str
    images: str
    mounts: tuple[MountStep, ...]
    rewrites: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    criu: dict[str, bool | str] = field(default_factory=dict)
    stopped: tuple[int, ...] = ()
    """Processes that were stopped at the dump and stay so, by their pid within the container."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """The plan as lines for people."""
        return [
            f"restore {self.images} as container {self.container}",
            *(step.describe() for step in self.mounts),
            *(f"warning: {text}" for text in self.warnings),
            *(f"problem: {text}" for text in self.problems),
        ]


def make(
    container: str, images: Images, bundle: Bundle, manifest: Manifest | None, facts: Facts, *, hold: bool
) -> Plan:
    """Plan the restore of `images` as `container` with the config.json of `bundle`.

    Args:
        manifest: grit.json where there is one.
        hold: leave every task stopped, for `start` to continue.
    """
    provided = _provided(bundle, facts)
    steps = tuple(_step(mount, provided, facts) for mount in images.mounts)
    criu: dict[str, bool | str] = {"leave-stopped": True} if hold else {}
    if facts.unified_cgroup:
        # runc sends CRIU the new cgroup since 1.2; without it CRIU puts the tasks into the old container's.
        criu["cgroup-root"] = facts.unified_cgroup
    if any(step.action is Action.KEEP for step in steps):
        criu["ext-mount-map"] = "auto"
    return Plan(
        container=container,
        images=images.path,
        mounts=steps,
        rewrites=_rewrites(images.mounts, steps),
        criu=criu,
        stopped=tuple(process.pid for process in images.processes if process.stopped),
        problems=tuple(_problems(steps, bundle, manifest, facts)),
        warnings=tuple(_warnings(images, provided)),
    )


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


def _provided(bundle: Bundle, facts: Facts) -> dict[str, str]:
    """The keys for which the downstream gives CRIU a source, with that source; empty where it is the runtime's own
    business.
    """
    found = {facts.resolved.get(path, path): source for path, source in bind_mounts(bundle).items()}
    found.setdefault("/dev/null", "")  # what masked paths are bound to; also one of the default devices
    for device in bundle.objects("linux", "devices"):
        found.setdefault(str(device.get("path", "")), "")
    for mount in bundle.objects("mounts"):
        if mount.get("type") == "cgroup" and not facts.unified_cgroup:
            # runc binds each v1 hierarchy below it and keys each of them (getCgroupMounts).
            base = str(mount.get("destination", ""))
            found.update({os.path.join(base, name): "" for name in facts.v1_controllers})
    return found


def _step(mount: ImageMount, provided: dict[str, str], facts: Facts) -> MountStep:
    def step(action: Action, new: str = "") -> MountStep:
        return MountStep(
            destination=mount.mountpoint, action=action, key=mount.ext_key, old_source=mount.source, new_source=new
        )

    if mount.mountpoint == "/":
        return step(Action.ROOT)
    if not mount.ext_key:
        return step(Action.NATIVE)
    if mount.ext_key != names.AUTOGENERATED:
        if mount.ext_key not in provided:
            return step(Action.MISSING)
        source = provided[mount.ext_key]
        return step(Action.REMAP, source) if source else step(Action.RUNTIME)
    if provided.get(mount.mountpoint):
        return step(Action.REKEY, provided[mount.mountpoint])
    if facts.sources.get(mount.source, False):
        return step(Action.KEEP, mount.source)
    return step(Action.MISSING)


def _rewrites(mounts: tuple[ImageMount, ...], steps: tuple[MountStep, ...]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for mount, step in zip(mounts, steps, strict=True):
        if step.action is Action.REKEY:
            # `deleted` says that the old source was unlinked: CRIU would try to make it again at the new one.
            found.setdefault(mount.file, {})[mount.index] = {"ext_key": mount.mountpoint, "deleted": None}
    return found


def _problems(steps: tuple[MountStep, ...], bundle: Bundle, manifest: Manifest | None, facts: Facts) -> list[str]:
    found = []
    if manifest is not None and manifest.architecture != facts.architecture:
        found.append(f"the checkpoint was taken on {manifest.architecture}, this machine is {facts.architecture}")
    for step in steps:
        if step.action is Action.MISSING and step.key == names.AUTOGENERATED:
            found.append(
                f"mount {step.destination} came from {step.old_source}, which is gone, "
                "and the new container has none there"
            )
        elif step.action is Action.MISSING:
            found.append(f"mount {step.key} is in the checkpoint and not in the new container's config.json")
    for destination, source in bind_mounts(bundle).items():
        if not facts.sources.get(source, False):
            found.append(f"the source {source} of mount {destination} does not exist")
    return list(dict.fromkeys(found))


def _warnings(images: Images, provided: dict[str, str]) -> list[str]:
    present = {mount.ext_key for mount in images.mounts} | {mount.mountpoint for mount in images.mounts}
    return [
        f"mount {destination} of the new container is not in the checkpoint and will not be there"
        for destination, source in provided.items()
        if source and destination not in present
    ]
