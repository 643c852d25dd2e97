"""What differs between two checkpoints. Pure. When each was made, where it lies and who wrote it are not compared, and
neither is what stands in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from grit_runtime.inspection.model import Inspection, Process
from grit_runtime.inspection.words import shown, size

_DEEPEST = 30  # levels of config.json that are compared apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference; None where one of the two has nothing."""

    section: str
    what: str
    before: Any
    after: Any


def compare(old: Inspection, new: Inspection) -> tuple[Change, ...]:
    """Every difference, in an order that is always the same."""
    return tuple(change for section, a, b in _sections(old, new) for change in _members(section, a, b))


def render(changes: tuple[Change, ...]) -> str:
    """One line for each, below its section."""
    lines, section = [], ""
    for change in changes:
        if change.section != section:
            section = change.section
            lines.append(section)
        lines.append(f"  {shown(change.what)}: {_value(change.before, change)} -> {_value(change.after, change)}")
    return "".join(f"{line}\n" for line in lines)


def document(changes: tuple[Change, ...]) -> dict[str, Any]:
    """For JSON."""
    return {"same": not changes, "differences": [asdict(change) for change in changes]}


def _sections(old: Inspection, new: Inspection) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    yield "container", old.container, new.container
    yield "machine", old.machine, new.machine
    yield "versions", old.versions, new.versions
    yield "processes", _processes(old), _processes(new)
    yield "memory", _memory(old), _memory(new)
    yield "GPU", _gpu(old), _gpu(new)
    yield "open files", _files(old), _files(new)
    yield "sockets", _sockets(old), _sockets(new)
    yield "mounts", _mounts(old), _mounts(new)
    yield "contents", _contents(old), _contents(new)
    yield "config.json", _flat(old.spec), _flat(new.spec)


def _members(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key), new.get(key)
        if before != after:
            yield Change(section=section, what=key, before=before, after=after)


def _processes(found: Inspection) -> dict[str, Any]:
    return {f"{process.pid}": _described(process) for process in found.processes}


def _described(process: Process) -> str:
    threads = "1 thread" if process.threads == 1 else f"{process.threads} threads"
    told = process.command or process.program or process.name
    return ", ".join(part for part in (told, f"child of {process.parent}", threads, process.state) if part)


def _memory(found: Inspection) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for process in found.processes:
        sizes[f"{process.pid} in the images"] = process.saved
        sizes[f"{process.pid} mapped"] = process.mapped
    return {**sizes, "shared": found.shared_memory}


def _gpu(found: Inspection) -> dict[str, Any]:
    devices = {gpu.uuid: f"{gpu.name}, {size(gpu.memory)}" for gpu in found.gpus}
    users = [process for process in found.processes if process.cuda]
    cuda = {f"{process.pid} uses CUDA": "yes" for process in users}
    used = {f"{process.pid} on {uuid}": amount for process in users for uuid, amount in (process.gpu or {}).items()}
    return {**found.gpu, **devices, **cuda, **used}


def _files(found: Inspection) -> dict[str, Any]:
    return {
        f"{','.join(str(pid) for pid in file.pids)}, descriptor {file.number}": f"{file.kind} {file.what}".strip()
        for file in found.open_files
    }


def _sockets(found: Inspection) -> dict[str, Any]:
    shapes: dict[str, int] = {}
    for one in found.sockets:
        parts = (one.kind, one.state, one.local, f"-> {one.remote}" if one.remote else "")
        name = " ".join(part for part in parts if part)
        shapes[name] = shapes.get(name, 0) + 1
    return shapes


def _mounts(found: Inspection) -> dict[str, Any]:
    stacks: dict[str, list[str]] = {}
    for mount in found.mounts:
        source = f" from {mount.source}" if mount.source else ""
        stacks.setdefault(mount.destination, []).append(f"{mount.kind}, {mount.type}{source}")
    return {destination: "; ".join(stack) for destination, stack in stacks.items()}


def _contents(found: Inspection) -> dict[str, Any]:
    return {
        part.name: part.left_out or f"{size(part.bytes)}, {part.entries} entries" if part.bytes else part.left_out
        for part in found.contents
    }


def _flat(value: Any, path: str = "", depth: int = 0) -> dict[str, Any]:
    """A document's leaves by their paths, such as `process.env[3]`."""
    if depth < _DEEPEST and value and isinstance(value, dict):
        members = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    elif depth < _DEEPEST and value and isinstance(value, list):
        members = [(f"{path}[{number}]", inner) for number, inner in enumerate(value)]
    else:
        return {path: value} if path else {}
    return {name: leaf for key, inner in members for name, leaf in _flat(inner, key, depth + 1).items()}


def _value(value: Any, change: Change) -> str:
    if value is None:
        return "(none)"
    if change.section in ("memory", "GPU") and isinstance(value, int):
        return size(value)
    return shown(str(value)) or '""'
