"""Container edits, applied to a config.json (pkg/cdi/container-edits.go, Apply)."""

import copy
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grit_runtime.errors import CdiError

_FIFO = "p"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device node of the host: b, c or p; permissions without the file's type."""

    type: str
    major: int
    minor: int
    mode: int


def look(path: str) -> Node:
    """What is at a path of the host. Raises OSError if it is no device node (deviceInfoFromPath)."""
    there = os.lstat(path)
    kinds = ((stat.S_ISBLK, "b"), (stat.S_ISCHR, "c"), (stat.S_ISFIFO, _FIFO))
    for is_kind, letter in kinds:
        if is_kind(there.st_mode):
            major, minor = os.major(there.st_rdev), os.minor(there.st_rdev)
            return Node(type=letter, major=major, minor=minor, mode=stat.S_IMODE(there.st_mode))
    raise OSError(0, "not a device node", path)


def apply(config: dict[str, Any], edits: Sequence[dict[str, Any]], look_at: Callable[[str], Node]) -> dict[str, Any]:
    """A new config.json: all edits of one sort after another, in the order of the Go library.

    Raises:
        CdiError: a device node isn't on this host, or isn't what the spec says.
    """
    made = copy.deepcopy(config)

    def every(key: str) -> list[Any]:
        return [item for edit in edits for item in edit.get(key) or []]

    _add_env(made, every("env"))
    for node in every("deviceNodes"):
        _add_node(made, node, look_at)
    for device in every("netDevices"):
        _within(made, "linux", "netDevices")[device["hostInterfaceName"]] = {"name": device["name"]}
    _add_mounts(made, every("mounts"))
    for hook in every("hooks"):
        wanted = {key: hook[key] for key in ("path", "args", "env", "timeout") if key in hook}
        _listed(_within(made, "hooks"), hook["hookName"]).append(wanted)
    rdts = [edit["intelRdt"] for edit in edits if "intelRdt" in edit]
    if rdts:
        _within(made, "linux")["intelRdt"] = dict(rdts[-1])
    for gid in every("additionalGids"):
        groups = _listed(_within(made, "process", "user"), "additionalGids") if gid else [gid]
        if gid not in groups:
            groups.append(gid)
    return made


def _within(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        if not isinstance(config.get(key), dict):
            config[key] = {}
        config = config[key]
    return config


def _listed(owner: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(owner.get(key), list):
        owner[key] = []
    found: list[Any] = owner[key]
    return found


def _add_env(config: dict[str, Any], entries: list[str]) -> None:
    """A variable of the edits replaces one of earlier edits; it follows, and so overrides, the container's own: the Go
    library keeps what was there by whole entries (runtime-tools/generate, createEnvCacheMap).
    """
    if not entries:
        return
    env = _listed(_within(config, "process"), "env")
    places = {entry: index for index, entry in enumerate(env)}
    for entry in entries:
        name = entry.partition("=")[0]
        if name in places:
            env[places[name]] = entry
        else:
            env.append(entry)
            places[name] = len(env) - 1


def _add_node(config: dict[str, Any], node: dict[str, Any], look_at: Callable[[str], Node]) -> None:
    device = _filled(node, look_at)
    user = _within(config, "process", "user") if isinstance(config.get("process"), dict) else {}
    for key in ("uid", "gid"):
        own = node.get(key, user.get(key) or None)
        if own is not None:
            device[key] = own
    linux = _within(config, "linux")
    devices = _listed(linux, "devices")
    same = [
        index for index, other in enumerate(devices) if isinstance(other, dict) and other.get("path") == node["path"]
    ]
    if same:
        del devices[same[0]]
    devices.append(device)
    if device["type"] in ("b", "c"):
        numbers = {"major": device["major"], "minor": device["minor"]}
        access = node.get("permissions") or "rwm"
        rule = {"allow": True, "type": device["type"], **numbers, "access": access}
        _listed(_within(linux, "resources"), "devices").append(rule)


def _filled(node: dict[str, Any], look_at: Callable[[str], Node]) -> dict[str, Any]:
    """The node as config.json has it; what the spec leaves out is the host's (fillMissingInfo)."""
    path, kind = node["path"], node.get("type") or ""
    major, minor, mode = node.get("major") or 0, node.get("minor") or 0, node.get("fileMode")
    enough = bool(kind) and (major != 0 or kind == _FIFO)
    source = node.get("hostPath") or path
    try:
        there = look_at(source)
    except OSError as err:
        if not enough:
            raise CdiError(f"the CDI device node {source} can't be had from this host: {err.strerror}") from None
    else:
        mode = there.mode if mode is None else mode
        if not enough:
            kind = kind or there.type
            if kind != there.type:
                raise CdiError(f"the CDI device node {source} is of type {there.type} here, and {kind} in its spec")
            if kind != _FIFO and major == 0:
                major, minor = there.major, there.minor
    made = {"path": path, "type": kind, "major": major, "minor": minor}
    return made if mode is None else {**made, "fileMode": mode}


def _add_mounts(config: dict[str, Any], mounts: list[dict[str, Any]]) -> None:
    """A mount takes the place of one with its destination; outer ones come first."""
    if not mounts:
        return
    listed = _listed(config, "mounts")
    for mount in mounts:
        same = [i for i, other in enumerate(listed) if other.get("destination") == mount["containerPath"]]
        if same:
            del listed[same[0]]
        made = {"destination": mount["containerPath"], "type": mount.get("type"), "source": mount["hostPath"]}
        made["options"] = mount.get("options")
        listed.append({key: value for key, value in made.items() if value})
    listed.sort(key=lambda mount: _clean(str(mount.get("destination", ""))).count("/"))


def _clean(path: str) -> str:
    """As Go's filepath.Clean: normpath keeps two leading slashes."""
    found = os.path.normpath(path or ".")
    return found[1:] if found.startswith("//") else found
