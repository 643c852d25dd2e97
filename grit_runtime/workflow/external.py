"""Mounts of a container that its config.json doesn't know: made by a hook, or by hand. Pure: no file is opened here.

runc gives CRIU a key only for the mounts of config.json (addCriuDumpMount). A bind of the host's without one fails the
dump ("doesn't have a proper root mount", criu/mount.c, validate_mounts). So each gets its mountpoint as key, and the
manifest remembers the host path that it came from.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from grit_runtime.host.mounts import MountEntry

# What CRIU mounts anew by itself (criu/filesystems.c, fstypes), less overlay: a layer of the host is nothing that could
# be mounted again in a pod.
_KNOWN = frozenset({
    "proc", "sysfs", "devtmpfs", "binfmt_misc", "tmpfs", "devpts", "pstore", "mqueue", "securityfs", "fusectl",
    "debugfs", "tracefs", "cgroup", "cgroup2", "autofs",
})  # fmt: skip
# File systems of which a machine, or a namespace, has one: that the host has it mounted too says nothing.
_SINGLE = _KNOWN - {"tmpfs"}
_CGROUPS = frozenset({"cgroup", "cgroup2"})
_NOT_IN_A_FILE = frozenset('"#\n\t\\ ]')


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A mount of the container that comes from the host, and the host paths at which the same may be found."""

    destination: str
    candidates: tuple[str, ...]


def find(container: list[MountEntry], host: list[MountEntry], keyed: Iterable[str]) -> list[External]:
    """The mounts that CRIU can't make by itself and runc doesn't know.

    Args:
        container: the mount table of the container's first process.
        host: ours.
        keyed: the destinations that runc gives a key.
    """
    known = frozenset(keyed)
    outside = {entry.device for entry in host}
    found = [
        External(destination=entry.mountpoint, candidates=_host_paths(entry, host))
        for entry in container
        if entry.mountpoint != "/" and entry.mountpoint not in known and _is_external(entry, container, outside)
    ]
    return list({mount.destination: mount for mount in found}.values())


def options(found: list[External]) -> list[str]:
    """CRIU's `external` options for these mounts; `mnt[]` lets CRIU find those whose name no configuration file can
    hold.
    """
    names = [mount.destination for mount in found]
    plain = [f"mnt[{name}]:{name}" for name in names if not _NOT_IN_A_FILE & set(name)]
    return plain if len(plain) == len(names) else [*plain, "mnt[]"]


def _is_external(entry: MountEntry, container: list[MountEntry], outside: set[str]) -> bool:
    if entry.fstype in _CGROUPS:
        # Read from outside of the container's cgroup namespace, its root is the container's own cgroup
        # (cgroup_namespaces(7)); CRIU mounts v2 anew, and runc keys v1's hierarchies.
        return False
    if entry.root == "/":
        return entry.fstype not in _KNOWN or (entry.fstype not in _SINGLE and entry.device in outside)
    return not any(_holds(other, entry, outside) for other in container if other is not entry)


def _holds(other: MountEntry, entry: MountEntry, outside: set[str]) -> bool:
    """Whether CRIU can bind `entry` from `other`: the same file system, mounted by CRIU, or the rootfs."""
    if other.device != entry.device:
        return False
    if other.mountpoint == "/":
        return (entry.root + "/").startswith(other.root.rstrip("/") + "/")
    return other.root == "/" and not _is_external(other, [], outside)


def _host_paths(entry: MountEntry, host: list[MountEntry]) -> tuple[str, ...]:
    """Where the host sees the same directory or file: the mounts of its file system that hold it, the closest first."""
    holding = [
        other
        for other in host
        if other.device == entry.device and (entry.root + "/").startswith(other.root.rstrip("/") + "/")
    ]
    holding.sort(key=lambda other: len(other.root), reverse=True)
    inner = (os.path.relpath(entry.root, other.root) for other in holding)
    return tuple(
        os.path.normpath(os.path.join(other.mountpoint, path)) for other, path in zip(holding, inner, strict=True)
    )
