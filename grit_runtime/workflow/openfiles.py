"""Files that a task has open, or mapped, in a volume whose content isn't the images'. Pure: no file is opened here.

CRIU opens each by its old path in the new volume, and compares its size and mode (criu/files-reg.c, open_path).
kubelet writes projected, configMap, secret and downwardAPI volumes atomically (pkg/volume/util/atomic_writer.go): each
version lies in a directory `..<date>`, to which `..data` leads, and which the next version removes. Such a directory
has another name in every pod: a file in it is looked for in the one that the new volume has.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from grit_runtime.criu.images import FILES, REMAPS, Changes, OpenFile
from grit_runtime.workflow.mounts import Kind, MountStep

DATA = "..data"
_GHOST, _LINKED = "GHOST", "LINKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFile:
    """An open file and where it should be: `inner` below `source` on the host; `.` where the volume is one file."""

    file: OpenFile
    source: str
    inner: str
    dated: str = ""
    """What the rest of its path is within a version of an atomically written volume, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What lies at a path in a volume."""

    kind: Kind
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """What was found in the new volumes."""

    looks: Mapping[tuple[str, str], Look] = field(default_factory=dict)
    """A volume's host path and a path in it to what lies there; what couldn't be said isn't in here."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """An atomically written volume's host path to the directory that `..data` leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What follows for the restore."""

    rewrites: dict[str, Changes]
    problems: list[str]
    warnings: list[str]


def in_volumes(files: tuple[OpenFile, ...], steps: tuple[MountStep, ...], filled: frozenset[str]) -> list[VolumeFile]:
    """The open files that lie in volumes from the host.

    Args:
        filled: destinations whose content comes with the checkpoint after all.
    """
    by_id = {step.mount.mnt_id: step for step in steps if step.from_host and step.destination not in filled}
    found = []
    for file in files:
        step = by_id.get(file.mnt_id)
        if step is None or not (file.path + "/").startswith(step.destination.rstrip("/") + "/"):
            continue
        inner = os.path.relpath(file.path, step.destination)
        first, _, rest = inner.partition("/")
        dated = rest or "." if first.startswith("..") and first not in ("..", DATA) else ""
        found.append(VolumeFile(file=file, source=step.new_source, inner=inner, dated=dated))
    return found


def examine(found: list[VolumeFile], volumes: Volumes) -> Outcome:
    """Decide for each file: it is there, it is in another version of the volume, or it cannot be restored."""
    outcome = Outcome(rewrites={}, problems=[], warnings=[])
    links = {item.file.remap_id: item.file.path for item in found if item.file.remap == _LINKED}
    for item in found:
        if item.dated and _redate(item, volumes, outcome):
            continue
        look = volumes.looks.get((item.source, item.inner))
        if item.file.remap or look is None:
            continue  # CRIU brings the content, or nobody knows before it tries
        problem = _differs(item, look, links.get(item.file.id, ""))
        if problem and _is_a_pods_own(item, look, volumes):
            _change(outcome, item, {"size": None, "mode": None})
        elif problem and _has_grown(item, look):
            # Another container of the pod may write to it, and be restored first.
            _change(outcome, item, {"size": None})
            outcome.warnings.append(f"{problem}: it has grown since")
        elif problem:
            outcome.problems.append(problem)
    outcome.problems[:] = dict.fromkeys(outcome.problems)
    return outcome


def _redate(item: VolumeFile, volumes: Volumes, outcome: Outcome) -> bool:
    """Lead a file of a version that the new volume doesn't have to the version that it has."""
    old = volumes.looks.get((item.source, item.inner))
    version = volumes.versions.get(item.source, "")
    if not version or (old is not None and old.kind is not Kind.MISSING and not item.file.remap):
        return False
    inner = os.path.normpath(os.path.join(version, item.dated))
    look = volumes.looks.get((item.source, inner))
    if look is None or look.kind is not _kind(item.file):
        return False
    path = os.path.join(item.file.path[: -len(item.inner)], inner)
    _change(outcome, item, {"name": path, "size": None, "mode": None})
    if item.file.remap_index >= 0:
        outcome.rewrites.setdefault(REMAPS, {})[item.file.remap_index] = None
    return True


def _change(outcome: Outcome, item: VolumeFile, fields: dict[str, str | None]) -> None:
    outcome.rewrites.setdefault(FILES, {})[item.file.index] = {"reg": fields}


def _kind(file: OpenFile) -> Kind:
    return Kind.DIRECTORY if stat.S_ISDIR(file.mode) else Kind.FILE


def _differs(item: VolumeFile, look: Look, original: str) -> str:
    """Why CRIU would refuse the file, or an empty string."""
    file = item.file
    name = f"file {file.path}" if not original else f"file {original}, kept under the name {file.path},"
    place = f"the new container's volume {item.source}"
    if look.kind is Kind.MISSING:
        return f"{name} is open in the checkpoint and is not in {place}"
    if look.kind is not _kind(file):
        return f"{name} is open in the checkpoint as a {_kind(file).value} and is a {look.kind.value} in {place}"
    if look.kind is Kind.FILE and stat.S_ISREG(file.mode) and file.size is not None and file.size != look.size:
        return f"{name} is open in the checkpoint with {file.size} bytes and has {look.size} in {place}"
    return ""


def _has_grown(item: VolumeFile, look: Look) -> bool:
    return look.kind is _kind(item.file) is Kind.FILE and item.file.size is not None and look.size > item.file.size


def _is_a_pods_own(item: VolumeFile, look: Look, volumes: Volumes) -> bool:
    """Whether its content is expected to be another one in each pod: a version of an atomically written volume, or a
    volume that is one file (etc-hosts, resolv.conf).
    """
    return look.kind is _kind(item.file) and (item.source in volumes.versions or item.inner == ".")


def wanted(found: list[VolumeFile], versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """The places to look at: volume and path in it."""
    places = [(item.source, item.inner) for item in found]
    for item in found:
        if item.dated and item.source in versions:
            places.append((item.source, os.path.normpath(os.path.join(versions[item.source], item.dated))))
    return list(dict.fromkeys(places))
