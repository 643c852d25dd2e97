"""containerd: a drop-in that its configuration imports.

What `imports` means differs (seen by `containerd config dump`; containerd/containerd issue 5837, pull request 9982):
before 2.0 a file that has a section of a plugin replaces the whole section of the files before it, so a drop-in with
one runtime more loses the others, `SystemdCgroup` and the pause image. Since 2.0 sections are merged by their keys.
"""

import copy
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from grit_runtime.engines import mark
from grit_runtime.engines.plan import Plan, Request, Tree, read_toml, sub, toml_table

MAIN = "/etc/containerd/config.toml"
_DROP_INS = "/etc/containerd/conf.d/*.toml"
_RESTART = "systemctl restart containerd (running containers stay)"

# The CRI plugin's section, by the configuration's version; a drop-in must have the main file's version.
SECTION = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_DISABLED = frozenset({"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"})
_SHIM = "io.containerd.runc.v2"
_ANNOTATIONS = "grit.dev/*"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """What containerd reads, in its order; our drop-in, whether or not it is there, as an empty file."""

    main: str
    files: tuple[_File, ...]
    path: str
    imported: bool
    version: int
    merges: bool

    def sections(self) -> list[tuple[str, dict[str, Any]]]:
        """The files that configure the CRI plugin, with what they say."""
        found = ((file.path, sub(file.data, "plugins", SECTION[self.version])) for file in self.files)
        return [(path, section) for path, section in found if section]

    def section(self) -> dict[str, Any]:
        """What holds for the CRI plugin."""
        result: dict[str, Any] = {}
        for _, section in self.sections():
            result = _merged(result, section) if self.merges else section
        return result


def plan(tree: Tree, request: Request, *, main: str = MAIN, restart: str = _RESTART) -> Plan:
    """The drop-in for the version of the configuration that is there.

    Raises:
        ConfigError: a file isn't TOML.
    """
    node = _look(tree, request, main)
    runtimes = sub(node.section(), "containerd", "runtimes")
    if request.name in runtimes:
        return _there_already(node, request, sub(runtimes, request.name), restart)
    refused = _refused(node, request)
    text = "" if refused else mark.marked(_body(node, request))
    notes = _notes(node, request) if not refused else ()
    missing = tuple(_missing(node))
    return Plan(path=node.path, text=text, restart=restart, refused=refused, missing=missing, notes=notes)


def places(tree: Tree, name: str, *, main: str = MAIN) -> tuple[str, ...]:
    """The drop-in's place in each of the folders that are imported."""
    text = tree.read(main)
    patterns = _patterns(main, read_toml(text, main)) if text is not None else []
    found = [os.path.join(os.path.dirname(pattern), _name(name)) for pattern in [_folder(main), *patterns]]
    return tuple(dict.fromkeys(found))


def handler(base: dict[str, Any], request: Request) -> dict[str, Any]:
    """A runtime handler: as `base`, the node's default one, but with our binary, and told our annotations.

    A tenant's annotations reach the runtime only if they are listed.
    """
    lists = {}
    for name in ("pod_annotations", "container_annotations"):
        own = base.get(name, [])
        lists[name] = [*own, *({_ANNOTATIONS} - set(own))]
    options = {**sub(base, "options"), "BinaryName": request.binary}
    return {**base, "runtime_type": _SHIM, **lists, "options": options}


def _look(tree: Tree, request: Request, main: str) -> _Node:
    text = tree.read(main)
    patterns = _patterns(main, read_toml(text, main)) if text is not None else []
    path, imported = _place(request.name, patterns, _folder(main))
    files = _load(tree, main, path) if text is not None else []
    newer = request.major is not None and request.major >= 2
    version = files[0].data.get("version", 1) if files else (3 if newer else 2)
    return _Node(
        main=main,
        files=tuple(files),
        path=path,
        imported=imported,
        version=version if version in SECTION else 3,
        merges=newer or version == 3,
    )


def _load(tree: Tree, main: str, ours: str) -> list[_File]:
    """The files in containerd's order: breadth first, each once (cmd/containerd/server/config, LoadConfig)."""
    pending, loaded = [main], dict[str, _File]()
    while pending:
        path = pending.pop(0)
        text = "" if path == ours else tree.read(path)
        if path in loaded or text is None:
            continue
        loaded[path] = _File(path=path, data=read_toml(text, path))
        for pattern in _patterns(path, loaded[path].data):
            own = {ours} if PurePosixPath(ours).match(pattern) else set()
            pending += sorted({*tree.match(pattern), *own}) if "*" in pattern else [pattern]
    return list(loaded.values())


def _patterns(parent: str, data: dict[str, Any]) -> list[str]:
    listed = data.get("imports")
    patterns = [item for item in listed if isinstance(item, str)] if isinstance(listed, list) else []
    return [os.path.normpath(os.path.join(os.path.dirname(parent), pattern)) for pattern in patterns]


def _folder(main: str) -> str:
    return _DROP_INS if main == MAIN else os.path.join(os.path.dirname(main), "config-v3.toml.d/*.toml")


def _name(name: str) -> str:
    """Behind all others in its folder: before containerd 2 the last file with the section is the one that holds."""
    return f"zz-{name}.toml"


def _place(name: str, patterns: list[str], default: str) -> tuple[str, bool]:
    """Where the drop-in belongs, and whether it is imported there."""
    for pattern in sorted(patterns, key=lambda p: p != default):
        path = os.path.join(os.path.dirname(pattern), _name(name))
        if PurePosixPath(path).match(pattern) and "*" not in os.path.dirname(pattern):
            return path, True
    return os.path.join(os.path.dirname(default), _name(name)), False


def _base(node: _Node) -> dict[str, Any]:
    """The default runtime's entry if runc's shim runs it; else runc's."""
    containerd = sub(node.section(), "containerd")
    default = sub(containerd, "runtimes", str(containerd.get("default_runtime_name", "runc")))
    runc = sub(containerd, "runtimes", "runc")
    return default if default.get("runtime_type") == _SHIM else runc


def _body(node: _Node, request: Request) -> str:
    ours = handler(_base(node), request)
    kept: dict[str, Any] = {}
    if not node.merges:
        # The default runtime is gone as soon as another one is named, and the CRI plugin with it.
        kept = copy.deepcopy(node.section()) or {"containerd": {"runtimes": {"runc": {"runtime_type": _SHIM}}}}
        kept.setdefault("containerd", {}).setdefault("runtimes", {}).setdefault("runc", {"runtime_type": _SHIM})
    content = _merged(kept, {"enable_cdi": True, "containerd": {"runtimes": {request.name: ours}}})
    version = "" if node.version == 1 else f"version = {node.version}\n\n"
    return _explanation(node) + version + toml_table(("plugins", SECTION[node.version]), content)


def _explanation(node: _Node) -> str:
    sections = node.sections()
    if node.merges or not sections:
        return ""
    return (
        f"# Copied from {sections[-1][0]}, whose section of the CRI plugin this file replaces (containerd 1):\n"
        "# run `grit-runtime install` again after changing it there.\n"
    )


def _refused(node: _Node, request: Request) -> str:
    if node.version == 1 and node.merges:
        return f"{node.main} has no version, or version 1, which containerd 2 does not read: give it `version = 3`"
    sections = node.sections()
    if node.merges or not sections or request.copy_section:
        return ""
    ours = toml_table(
        ("plugins", SECTION[node.version], "containerd", "runtimes", request.name), handler(_base(node), request)
    )
    return (
        f"containerd before 2.0 would replace the CRI plugin's section of {sections[-1][0]} by a drop-in's: add this "
        f"there, or say --copy-section to have the section copied into the drop-in:\n{ours}"
    )


def _missing(node: _Node) -> Iterator[str]:
    if not node.imported:
        line = f'imports = ["{_folder(node.main)}"]'
        if node.files:
            yield f"{node.main} does not import {node.path}: add `{line}` at its top"
        else:
            yield (
                f"{node.main} is not there, without which containerd reads no drop-in: make it of these two lines:\n"
                f"version = {node.version}\n{line}"
            )
    for file in node.files:
        for found in _DISABLED & set(file.data.get("disabled_plugins", [])):
            yield f"{file.path} disables the CRI plugin: take {found!r} from its disabled_plugins"
    if not node.merges:
        order = [file.path for file in node.files]
        behind = [path for path, _ in node.sections() if node.imported and order.index(path) > order.index(node.path)]
        if behind:
            yield f"{behind[-1]} is read after our drop-in and replaces it (containerd before 2.0)"


def _notes(node: _Node, request: Request) -> tuple[str, ...]:
    notes = []
    program = sub(_base(node), "options").get("BinaryName", "")
    if program and program != request.binary:
        notes.append(f"the node's default runtime is {program}: name it as `downstream` in our configuration")
    if _explanation(node):
        notes.append(
            f"the CRI plugin's section was copied from {node.sections()[-1][0]}: install again when it changes"
        )
    return tuple(notes)


def _there_already(node: _Node, request: Request, there: dict[str, Any], restart: str) -> Plan:
    if sub(there, "options").get("BinaryName") == request.binary:
        told = all(_ANNOTATIONS in there.get(name, []) for name in ("pod_annotations", "container_annotations"))
        missing = (
            () if told else (f"the handler {request.name!r} that is there is not told the annotations {_ANNOTATIONS}",)
        )
        notes = (f"{node.sections()[-1][0]} has it already, by another's hand",)
        return Plan(path=node.path, text="", restart=restart, missing=missing, notes=notes)
    refused = f"a runtime {request.name!r} is there already: choose another --runtime-name"
    return Plan(path=node.path, text="", restart=restart, refused=refused)


def _merged(to: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Both, table by table; `what` wins."""
    result = dict(to)
    for key, value in what.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
