"""The mounts and files in the images, against what the new config.json grants. Pure: no file is opened here.

CRIU mounts what the images say, with the flags that are there, and as root of the host. So a mount that neither
config.json has nor the container could make by itself is an excess, and so is one that is less closed.
"""

import fnmatch
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from grit_runtime import names
from grit_runtime.criu.images import FILES, ImageMount, Images, OpenFile
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow.mounts import Action, MountStep, Offer, bind_mounts
from grit_runtime.workflow.privileges import grants

# mount(2)
_READ_ONLY = 1
_FLAGS = {"ro": (_READ_ONLY, "read-only"), "nosuid": (2, "nosuid"), "nodev": (4, "nodev"), "noexec": (8, "noexec")}

_OF_THE_CONTAINER = frozenset({"tmpfs", "mqueue", "devpts"})  # of these, each container has its own
_CGROUPS = frozenset({"cgroup", "cgroup2"})
_DEVICES = tuple(f"/dev/{name}" for name in (*names.DEFAULT_DEVICES, "console", "ptmx", "pts/ptmx"))
_NULL = "/dev/null"


def problems(
    bundle: Bundle,
    images: Images,
    steps: tuple[MountStep, ...],
    offer: Offer,
    host_mounts: Iterable[str],
    unmasked: Iterable[str],
) -> list[str]:
    """Every excess, in words.

    Args:
        host_mounts: what the site lets a checkpoint take from the host by itself (`trust.host-mounts`).
        unmasked: those of config.json's masked and read-only paths that are on this machine.
    """
    texts = []
    for step in steps:
        if step.action is Action.KEEP:
            texts += _kept(step, host_mounts)
        elif step.action is Action.NATIVE:
            texts += _made(bundle, step.mount, steps)
        texts += _opened_up(step, offer)
    if FILES not in images.files:
        # Before 3.3 each kind of file had an image of its own, which CRIU still reads (files_collected).
        texts.append(f"the checkpoint has no {FILES}: its open files cannot be looked at")
    texts += _uncovered(bundle, images.mounts, unmasked)
    for file in images.open_files:
        texts += _open_file(bundle, file, images.mounts, steps)
    return list(dict.fromkeys(texts))


def options(bundle: Bundle, resolved: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Destination to the options of every mount in config.json; `resolved` as for `mounts.provided`."""
    found = {}
    for mount in bundle.objects("mounts"):
        path, listed = str(mount.get("destination", "")), mount.get("options")
        words = listed if isinstance(listed, list) else []
        found[resolved.get(path, path)] = frozenset(word for word in words if isinstance(word, str))
    return found


def covered_before(old: Mapping[str, Any] | None) -> frozenset[str]:
    """The masked and read-only paths of the config.json that a checkpoint was taken with: those of them that aren't in
    its images weren't on its machine.
    """
    linux = old.get("linux") if old else None
    found = [linux.get(key) for key in ("maskedPaths", "readonlyPaths")] if isinstance(linux, dict) else []
    return frozenset(path for listed in found if isinstance(listed, list) for path in listed if isinstance(path, str))


def _kept(step: MountStep, host_mounts: Iterable[str]) -> list[str]:
    """A host path that the images, or the manifest, bring along."""
    path = "/" + os.path.normpath(step.new_source).lstrip("/")
    read_only = bool(step.mount.flags & _READ_ONLY)
    for entry in host_mounts:
        pattern = entry.removesuffix(":ro")
        if (read_only or pattern == entry) and any(
            fnmatch.fnmatchcase(place, pattern) for place in _with_parents(path)
        ):
            return []
    how = "read-only" if read_only else "writable"
    return [f"mount {step.destination} of the checkpoint is the host's {path}, {how}: `trust.host-mounts` lacks that"]


def _with_parents(path: str) -> list[str]:
    words = path.split("/")
    return ["/".join(words[:count]) for count in range(2, len(words) + 1)]


def _made(bundle: Bundle, mount: ImageMount, steps: tuple[MountStep, ...]) -> list[str]:
    """A file system that CRIU will mount by itself."""
    if mount.fstype in _OF_THE_CONTAINER or grants(bundle, "CAP_SYS_ADMIN"):
        return []
    if mount.root != "/" and mount.fstype == "proc":
        return _part_of_proc(bundle, mount)
    wanted = {str(m.get("destination")): str(m.get("type")) for m in bundle.objects("mounts")}
    there = wanted.get(mount.mountpoint, "")
    if there == mount.fstype or {there, mount.fstype} <= _CGROUPS:
        return []
    if _is_hierarchy(bundle, mount, wanted.get(os.path.dirname(mount.mountpoint), "")):
        return []
    if any(_is_view_of(mount, step.mount) for step in steps if step.from_host or step.action is Action.ROOT):
        return []
    return [f"mount {mount.mountpoint} of the checkpoint ({mount.fstype}) is not in the new container's config.json"]


def _is_hierarchy(bundle: Bundle, mount: ImageMount, above: str) -> bool:
    """One of cgroup v1's, which runc mounts by itself below config.json's directory for them where the container has a
    cgroup namespace: it shows the container's own part there.
    """
    apart = any(namespace.get("type") == "cgroup" for namespace in bundle.objects("linux", "namespaces"))
    return apart and {mount.fstype, above} <= _CGROUPS


def _part_of_proc(bundle: Bundle, mount: ImageMount) -> list[str]:
    """As runc makes read-only paths; elsewhere it would be a way around what is masked."""
    inside = f"/proc{mount.root}"
    masked = [path for path in bundle.strings("linux", "maskedPaths") if _is_within(inside, path)]
    closed = [path for path in bundle.strings("linux", "readonlyPaths") if _is_within(inside, path)]
    if masked:
        return [f"mount {mount.mountpoint} of the checkpoint shows {inside}, which the new container has masked"]
    if closed and not mount.flags & _READ_ONLY:
        return [f"mount {mount.mountpoint} of the checkpoint makes {inside} writable, which the new container must not"]
    return []


def _is_view_of(mount: ImageMount, other: ImageMount) -> bool:
    """Whether CRIU binds it from another mount, or from a part of that."""
    return mount is not other and mount.device == other.device and _is_within(mount.root, other.root)


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _opened_up(step: MountStep, offer: Offer) -> list[str]:
    """What config.json closes and the images don't: CRIU takes the flags of the images."""
    if step.action in (Action.ROOT, Action.MISSING):
        return []  # the root mount is made read-only by us
    wanted = offer.options.get(step.destination, frozenset())
    if step.mount.fstype == "cgroup":  # of cgroup v1, config.json has the directory that holds the hierarchies
        wanted = wanted or offer.options.get(os.path.dirname(step.destination), frozenset())
    elif step.mount.fstype == "tmpfs":
        wanted = wanted - {"ro"}  # runc leaves that directory's own tmpfs writable; it is the container's alone
    lost = [word for name, (bit, word) in _FLAGS.items() if name in wanted and not step.mount.flags & bit]
    if not lost:
        return []
    return [f"mount {step.destination} is {' and '.join(lost)} in the new container, and not in the checkpoint"]


def _uncovered(bundle: Bundle, mounts: tuple[ImageMount, ...], unmasked: Iterable[str]) -> list[str]:
    """Paths that runc would mask or make read-only (linux.maskedPaths, linux.readonlyPaths): CRIU leaves them as the
    images have them.
    """
    looked = frozenset(unmasked)
    dev = {mount.device for mount in mounts if mount.mountpoint == "/dev"}
    masks = {mount.mountpoint for mount in mounts if _is_mask(mount, dev)}
    closed = {mount.mountpoint for mount in mounts if mount.flags & _READ_ONLY} | masks
    open_to_read = [p for p in bundle.strings("linux", "maskedPaths") if p in looked and p not in masks]
    open_to_write = [p for p in bundle.strings("linux", "readonlyPaths") if p in looked and not _has(closed, p)]
    return [
        *(f"{path} is masked in the new container, and not in the checkpoint" for path in open_to_read),
        *(f"{path} is read-only in the new container, and not in the checkpoint" for path in open_to_write),
    ]


def _is_mask(mount: ImageMount, dev: set[int]) -> bool:
    """As runc hides a directory, by a read-only tmpfs, and a file, by a bind of /dev/null: runc keys that one; without
    a key it is a part of the container's own /dev.
    """
    if mount.ext_key:
        return _NULL in (mount.ext_key, mount.source)
    if mount.root == "/null":
        return mount.device in dev
    return mount.fstype == "tmpfs" and mount.root == "/" and bool(mount.flags & _READ_ONLY)


def _has(paths: set[str], wanted: str) -> bool:
    return any(_is_within(wanted, path) for path in paths if path != "/")


def _open_file(
    bundle: Bundle, file: OpenFile, mounts: tuple[ImageMount, ...], steps: tuple[MountStep, ...]
) -> list[str]:
    """A descriptor, mapping, program or working directory that leads out of the container."""
    if ".." in file.path.split("/"):
        return [f"file {file.path!r} of the checkpoint leads out of the container"]
    if mounts and file.mnt_id > 0 and file.mnt_id not in {mount.mnt_id for mount in mounts}:
        return [f"file {file.path!r} of the checkpoint is on a mount that is not the container's"]
    if not (stat.S_ISBLK(file.mode) or stat.S_ISCHR(file.mode)) or grants(bundle, "CAP_MKNOD"):
        return []  # with CAP_MKNOD, the device cgroup of the new container decides alone
    if any(mount.mnt_id == file.mnt_id and mount.fstype == "devpts" for mount in mounts):
        return []
    granted = {*_DEVICES, *(str(device.get("path")) for device in bundle.objects("linux", "devices"))}
    given = [*bind_mounts(bundle), *(step.destination for step in steps if step.action is Action.KEEP)]
    if file.path in granted or any(_is_within(file.path, path) for path in given):
        return []
    return [f"the checkpoint has device {file.path} open, and the new container has no such device"]
