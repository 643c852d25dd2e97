"""What is on a disk after a power loss, for every moment of a recorded run.

strace(1) records what a call does to names and data below one directory, and `Disk` replays it: a model of a file
system that keeps no more than it has to, of a file what was there at its last fsync, of a directory the names at its
last fsync. CRIU can't be traced, because it traces itself (criu/kerndat.c); what it writes counts as there, and as not
flushed, from the moment on that its directory is there. A kernel may also write back more than it was asked to, at any
time and in any order; so each moment has several outcomes: nothing but what was flushed; every name, and of the data
what was flushed, the rest missing or zeros; and one change of a name (a rename is one) there or not there against all
that aren't flushed yet.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,splice,copy_file_range,fallocate,"
    "truncate,ftruncate,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,"
    "fsync,fdatasync,sync_file_range,kill,pidfd_send_signal"
)
_LINE = re.compile(r"^(\d+) +(?:\[.*?\] )?(\w+)\((.*)\) += +(-?\d+|0x[0-9a-f]+)(?:<(.*?)>)?(?: .*)?$")
_WRITES = {"write": 0, "pwrite64": 0, "writev": 0, "pwritev": 0, "pwritev2": 0, "sendfile": 0, "splice": 2,
           "copy_file_range": 2, "fallocate": 0, "ftruncate": 0}  # fmt: skip
_NOTHING, _ZEROS = "nothing", "zeros"


@dataclass(eq=False)
class Node:
    """A file, or a directory with names."""

    directory: bool = False
    target: str = ""
    """Of a symbolic link."""
    version: int = 0
    flushed: int | None = None
    """The version that is on disk for sure."""
    names: dict[str, "Node"] = field(default_factory=dict)
    kept: dict[str, "Node"] = field(default_factory=dict)
    """The names that are on disk for sure."""
    content: Path | None = None


Names = dict[str, Node]
View = Callable[[Node], Names]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One system call that changed or flushed something; paths are absolute."""

    call: str
    paths: tuple[str, ...]
    flags: str = ""
    text: str = ""


def record(argv: list[str], env: dict[str, str], cwd: Path, log: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command and write its system calls to `log`."""
    traced = [
        "strace",
        "-f",
        "-b",
        "execve",
        "-y",
        "-s",
        "0",
        "-e",
        "signal=none",
        "-e",
        f"trace={_CALLS}",
        "-o",
        str(log),
        *argv,
    ]
    return subprocess.run(
        traced, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=cwd,
        check=False, timeout=100,
    )  # fmt: skip


def events(log: Path, below: Path) -> list[Event]:
    """What a recording says of names and files below a directory, in order, and each signal 9."""
    found, begun = list[Event](), dict[str, str]()
    for raw in log.read_text(errors="replace").splitlines():
        line = raw
        pid = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)$", line)
        if resumed:
            line = begun.pop(pid) + resumed[1]
        matched = _LINE.match(line)
        if matched and not matched[4].startswith("-"):
            event = _event(matched[2], matched[3], matched[5] or "", str(below))
            found += [event] if event else []
    return found


def with_untraced(traced: list[Event]) -> list[Event]:
    """The same, and what others made meanwhile: names that are moved or flushed and that nobody was seen to make."""
    there, made, foreign = set[str](), set[str](), dict[str, list[str]]()
    for event in traced:
        if event.call == "mkdir":
            made.add(event.paths[-1])
        elif event.call in ("rename", "fsync") and event.paths[0] not in there | made:
            foreign.setdefault(str(Path(event.paths[0]).parent), []).append(event.paths[0])
            there.add(event.paths[0])
        if event.call in ("open", "symlink", "link", "rename"):
            there.add(event.paths[-1])
    found = list[Event]()
    for event in traced:
        found.append(event)
        for path in foreign.get(event.paths[-1], ()) if event.call == "mkdir" else ():
            found += [Event(call="open", paths=(path,), flags="O_CREAT"), Event(call="write", paths=(path,))]
    return found


def _event(call: str, arguments: str, result: str, below: str) -> Event | None:
    if call in ("kill", "pidfd_send_signal"):
        return Event(call="kill", paths=()) if "SIGKILL" in arguments else None
    if call in _WRITES:
        at = _descriptors(arguments)
        paths = at[1:2] if _WRITES[call] and len(at) > 1 else at[:1]
        call = "write"
    elif call in ("fsync", "fdatasync"):
        paths, call = _descriptors(arguments)[:1], "fsync"
    elif call in ("open", "openat", "openat2", "creat"):
        if call != "creat" and "O_CREAT" not in arguments and "O_TRUNC" not in arguments:
            return None
        paths, flags = [result], arguments if call != "creat" else "O_CREAT|O_TRUNC"
        return Event(call="open", paths=tuple(paths), flags=flags) if _is_below(paths, below) else None
    else:
        paths = _names(arguments)
        if call.startswith("symlink"):
            strings = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
            return Event(call="symlink", paths=(paths[-1],), text=strings[0]) if _is_below(paths[-1:], below) else None
    call = {"unlinkat": "rmdir" if "AT_REMOVEDIR" in arguments else "unlink"}.get(call, call)
    call = "rename" if call.startswith("rename") else re.sub("at$", "", call)
    return Event(call=call, paths=tuple(paths)) if _is_below(paths, below) else None


def _is_below(paths: list[str], below: str) -> bool:
    return any(path == below or path.startswith(f"{below}/") for path in paths)


def _descriptors(arguments: str) -> list[str]:
    return re.findall(r"\b\d+<([^>]*)>", arguments)


def _names(arguments: str) -> list[str]:
    """The paths in the arguments, relative ones below the descriptor before them."""
    found = []
    for directory, name in re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', arguments):
        found.append(os.path.normpath(name if name.startswith("/") else f"{directory or '?'}/{name}"))
    return found


class Disk:
    """The model. `copies` gets what was there before, and what a run leaves: the content of files."""

    def __init__(self, top: Path, copies: Path) -> None:
        self.top, self.copies = top, copies
        self.root = self._scan(top)

    def _scan(self, path: Path) -> Node:
        node = Node(directory=True)
        for entry in sorted(path.iterdir()):
            if entry.is_symlink():
                node.names[entry.name] = Node(target=os.readlink(entry), flushed=0)
            elif entry.is_dir():
                node.names[entry.name] = self._scan(entry)
            else:
                node.names[entry.name] = made = Node(flushed=0)
                self._copy(entry, made)
        node.kept = dict(node.names)
        return node

    def _copy(self, file: Path, node: Node) -> None:
        node.content = self.copies / str(len(os.listdir(self.copies)))
        shutil.copyfile(file, node.content)

    def collect(self) -> None:
        """Take the content of what the run left; call it when all is applied."""
        self._collect(self.root, self.top)

    def _collect(self, node: Node, path: Path) -> None:
        for name, inner in node.names.items():
            if inner.directory:
                self._collect(inner, path / name)
            elif not inner.target and (inner.content is None or inner.version) and (path / name).is_file():
                self._copy(path / name, inner)

    def apply(self, event: Event) -> None:
        """Have one system call take its effect."""
        paths = [path for path in event.paths if path == str(self.top) or path.startswith(f"{self.top}/")]
        if not paths:
            return
        last = self._find(paths[-1])
        if event.call == "fsync" and last:
            last.flushed = last.version
            self._flush_names(last)
        elif event.call in ("write", "truncate") and last:
            last.version += 1
        elif event.call == "open":
            self._open(paths[0], last, event.flags)
        elif event.call in ("mkdir", "symlink"):
            self._names(paths[-1])[Path(paths[-1]).name] = Node(
                directory=event.call == "mkdir", target=event.text, flushed=0
            )
        elif event.call in ("unlink", "rmdir"):
            self._names(paths[0]).pop(Path(paths[0]).name)
        elif event.call in ("rename", "link"):
            self._move(event)

    def _open(self, path: str, there: Node | None, flags: str) -> None:
        if there is None:
            self._names(path)[Path(path).name] = Node()
        elif "O_TRUNC" in flags and not there.directory:
            there.version += 1

    def _move(self, event: Event) -> None:
        old, new = event.paths
        node = self._find(old)
        assert node is not None, event
        if event.call == "rename":
            self._names(old).pop(Path(old).name)
        self._names(new)[Path(new).name] = node

    def _names(self, path: str) -> dict[str, Node]:
        parent = self._find(str(Path(path).parent))
        assert parent is not None, path
        return parent.names

    def _find(self, path: str) -> Node | None:
        node = self.root
        for word in Path(path).relative_to(self.top).parts:
            if word not in node.names:
                return None
            node = node.names[word]
        return node

    def pending(self) -> list[tuple[Node, str]]:
        """The names whose change isn't on disk for sure."""
        return [
            (node, name)
            for node in self._directories(self.root)
            for name in sorted({*node.names, *node.kept})
            if node.names.get(name) is not node.kept.get(name)
        ]

    def _directories(self, node: Node) -> Iterator[Node]:
        yield node
        for inner in {id(each): each for each in (*node.names.values(), *node.kept.values())}.values():
            if inner.directory:
                yield from self._directories(inner)

    def outcomes(self) -> Iterator["Outcome"]:
        """What may be on disk if the power goes now."""
        yield Outcome.of("what was flushed", self.root, _kept, _NOTHING)
        for rest in (_NOTHING, _ZEROS):
            yield Outcome.of(f"all names, {rest} in place of data", self.root, _named, rest)
        for group in self._groups():
            for others, one in ((_named, _kept), (_kept, _named)):
                yield Outcome.of(f"{group[0][1]} unlike others", self.root, _mixed(group, others, one), _ZEROS)

    def _flush_names(self, directory: Node) -> None:
        for group in [group for group in self._groups() if group[0][0] is directory]:
            for node, name in group:
                node.kept.pop(name, None)
                node.kept.update({name: node.names[name]} if name in node.names else {})

    def _groups(self) -> Iterator[list[tuple[Node, str]]]:
        """Names that are there or not there together: a file system does rename(2) whole or not at all."""
        waiting = self.pending()
        for node, name in waiting:
            about = {id(each) for each in (node.names.get(name), node.kept.get(name)) if each}
            yield [(node, name), *(
                (other, word) for other, word in waiting
                if (other, word) != (node, name) and about & {id(other.names.get(word)), id(other.kept.get(word))}
            )]  # fmt: skip


def _mixed(group: list[tuple[Node, str]], others: View, one: View) -> View:
    mixed = {id(node): dict(others(node)) for node, _ in group}
    for node, name in group:
        mixed[id(node)].pop(name, None)
        mixed[id(node)].update({name: one(node)[name]} if name in one(node) else {})
    return lambda node: mixed[id(node)] if id(node) in mixed else others(node)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What may be on disk: each path with what it is, by which equal ones are known."""

    word: str
    entries: tuple[tuple[str, str], ...]
    nodes: tuple[Node, ...]

    @staticmethod
    def of(word: str, root: Node, names: View, rest: str) -> "Outcome":
        """The tree that these names make."""
        found = sorted(_walk(root, names, rest, ""), key=lambda entry: entry[0])
        entries = tuple((path, kind) for path, kind, _ in found)
        return Outcome(word=word, entries=entries, nodes=tuple(node for _, _, node in found))

    def make(self, place: Path) -> None:
        """Make these files in a directory. For an outcome of a `Disk` that has collected."""
        place.mkdir()
        for (path, kind), node in zip(self.entries, self.nodes, strict=True):
            made = place / path
            if kind == "directory":
                made.mkdir()
            elif kind == "link":
                made.symlink_to(node.target)
            elif kind.endswith(f" {node.version}") and node.content:
                os.link(node.content, made)
            else:
                made.touch()
                if kind.endswith(_ZEROS) and node.content:
                    os.truncate(made, node.content.stat().st_size)


def _walk(node: Node, names: View, rest: str, path: str) -> Iterator[tuple[str, str, Node]]:
    for name, inner in names(node).items():
        place = f"{path}/{name}" if path else name
        if inner.directory:
            yield place, "directory", inner
            yield from _walk(inner, names, rest, place)
        elif inner.target:
            yield place, "link", inner
        else:
            yield place, f"{id(inner)} {inner.version if inner.flushed == inner.version else rest}", inner


def _named(node: Node) -> Names:
    return node.names


def _kept(node: Node) -> Names:
    return node.kept
