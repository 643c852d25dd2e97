"""An inspection as an indented tree. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grit_runtime.inspection.model import Inspection, Mapping, OpenFile, Part, Process, Socket, State
from grit_runtime.inspection.words import count, shown, size

_COLUMN = 12
_DEEPEST = 20  # levels of the process tree that are indented
_SOCKETS = 20  # without --files


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which lists are shown whole."""

    files: bool = False
    mounts: bool = False
    memory: bool = False


def render(found: Inspection, wanted: Wanted) -> str:
    """The tree, with a line break at its end."""
    lines = [shown(found.path, 4096), *_head(found), *_processes(found, wanted), *_gpu(found)]
    lines += [*_files(found, wanted), *_mounts(found, wanted), *_contents(found), *_problems(found)]
    return "".join(f"{line}\n" for line in lines)


def _line(word: str, text: str) -> str:
    return f"  {word:<{_COLUMN}} {text}".rstrip()


def _head(found: Inspection) -> Iterator[str]:
    yield _line("kind", found.kind)
    yield _line("state", found.state.value)
    machine = ", ".join(shown(found.machine[key]) for key in ("node", "architecture", "cpu") if key in found.machine)
    yield _line("made", ", on ".join(part for part in (shown(found.created), machine) if part) or "nobody says when")
    if found.versions:
        yield _line("versions", ", ".join(f"{shown(k)} {shown(v)}" for k, v in sorted(found.versions.items())))
    yield from _container(found.container)
    sums = "; checksums compared" if found.compared else "; with checksums" if found.checksums else ""
    yield _line("size", f"{size(found.size)} in {count(found.files, 'file')}{sums}")
    if found.plugins:
        yield _line("plugins", ", ".join(shown(name) for name in found.plugins))


def _container(said: dict[str, str]) -> Iterator[str]:
    words = {key: shown(value) for key, value in said.items()}
    name = f" ({words['name']})" if words.get("name", words.get("id")) != words.get("id") else ""
    if "id" in words or "name" in words:
        yield _line("container", words["id"] + name if "id" in words else words["name"])
    if "pod" in words:
        uid = f", uid {words['uid']}" if "uid" in words else ""
        yield _line("pod", f"{words.get('namespace', '?')}/{words['pod']}{uid}")
    if "image" in words:
        yield _line("image", words["image"])
    if "command" in words:
        yield _line("command", words["command"])


def _processes(found: Inspection, wanted: Wanted) -> Iterator[str]:
    total = sum(process.saved or 0 for process in found.processes)
    shared = f", and {size(found.shared_memory)} shared" if found.shared_memory else ""
    yield _line("processes", f"{len(found.processes)}, with {size(total)} of memory in the images{shared}")
    for process, depth in _ordered(found.processes):
        indent = "  " * min(depth, _DEEPEST)
        yield f"    {indent}{process.pid:<6} {_named(process)}: {', '.join(_traits(process))}"
        if wanted.memory:
            yield from (f"      {indent}{_mapping(mapping)}" for mapping in process.mappings)


def _named(process: Process) -> str:
    told = process.command or process.program
    if not told:
        return shown(process.name) or "?"
    return shown(told) if process.command else f"{shown(process.name)} ({shown(told)})"


def _traits(process: Process) -> Iterator[str]:
    yield count(process.threads, "thread")
    if process.state:
        yield process.state
    if process.mapped is not None:
        yield f"{size(process.saved or 0)} of {size(process.mapped)} mapped"
    if process.cuda:
        sizes = [f"{size(used)} on {shown(gpu)}" for gpu, used in (process.gpu or {}).items()]
        yield f"CUDA: {', '.join(sizes) or 'nobody could say how much memory'}"


def _mapping(mapping: Mapping) -> str:
    place = f"{mapping.start:x}-{mapping.end:x}"
    sizes = f"{size(mapping.saved):>11} of {size(mapping.end - mapping.start):<11}"
    return f"{place:<29} {mapping.access} {sizes} {shown(mapping.what)}".rstrip()


def _ordered(processes: tuple[Process, ...]) -> Iterator[tuple[Process, int]]:
    """Each below its parent, and every one once, whatever the images say of parents."""
    children: dict[int, list[Process]] = {}
    pids = {process.pid for process in processes}
    for process in processes:
        children.setdefault(process.parent if process.parent in pids else 0, []).append(process)
    seen: set[int] = set()
    for root in (*children.get(0, ()), *processes):
        pending = [(root, 0)]
        while pending:
            process, depth = pending.pop()
            if process.pid in seen:
                continue
            seen.add(process.pid)
            yield process, depth
            pending += [(child, depth + 1) for child in reversed(children.get(process.pid, ()))]


def _gpu(found: Inspection) -> Iterator[str]:
    if not found.gpu and not found.gpus:
        return
    driver, mode = (shown(found.gpu.get(key, "?")) for key in ("driver", "mode"))
    yield _line("GPUs", f"{len(found.gpus)}, driver {driver}, by {mode}")
    for gpu in found.gpus:
        used = f", {size(gpu.used)} of it the container's" if gpu.used else ""
        yield f"    {gpu.index:<6} {shown(gpu.uuid)}: {shown(gpu.name)}, {size(gpu.memory)}{used}"


def _files(found: Inspection, wanted: Wanted) -> Iterator[str]:
    yield _line("open files", _by_kind(len(found.open_files), (file.kind for file in found.open_files)))
    if wanted.files:
        yield from (_file(file) for file in found.open_files)
    yield _line("sockets", _by_kind(len(found.sockets), (one.kind for one in found.sockets)))
    listed = found.sockets if wanted.files else found.sockets[:_SOCKETS]
    yield from (_socket(one) for one in listed)
    if len(listed) < len(found.sockets):
        yield f"    and {len(found.sockets) - len(listed)} more (--files)"


def _file(file: OpenFile) -> str:
    pids = ",".join(str(pid) for pid in file.pids[:10]) + (",..." if len(file.pids) > 10 else "")
    return f"    {pids:<6} {file.number:>4}  {shown(file.kind)}: {shown(file.what)}".rstrip(": ")


def _socket(one: Socket) -> str:
    ends = f"{shown(one.local)} -> {shown(one.remote)}" if one.remote else shown(one.local)
    return "    " + " ".join(part for part in (shown(one.kind), one.state, ends) if part)


def _mounts(found: Inspection, wanted: Wanted) -> Iterator[str]:
    yield _line("mounts", _by_kind(len(found.mounts), (mount.kind for mount in found.mounts)))
    if wanted.mounts:
        for mount in found.mounts:
            kind = ", ".join(shown(part) for part in (mount.kind, mount.type) if part)
            source = f" from {shown(mount.source)}" if mount.source else ""
            yield f"    {shown(mount.destination)}: {kind}{source}"


def _by_kind(number: int, words: Iterable[str]) -> str:
    kinds = ", ".join(f"{many} {shown(kind)}" for kind, many in sorted(Counter(words).items()))
    return f"{number}: {kinds}" if number else "none"


def _contents(found: Inspection) -> Iterator[str]:
    for part in found.contents:
        yield _line(shown(part.name), _part(part))


def _part(part: Part) -> str:
    if part.left_out:
        return f"left out: {shown(part.left_out)}"
    entries = f" in {count(part.entries, 'entry', 'entries')}" if part.entries is not None else ""
    return f"{size(part.bytes)}{entries}" if part.bytes is not None else "nothing"


def _problems(found: Inspection) -> Iterator[str]:
    if found.problems:
        word = "incomplete" if found.state is State.INCOMPLETE else "damaged"
        yield _line(word, count(len(found.problems), "problem"))
        yield from (f"    {shown(problem)}" for problem in found.problems)
