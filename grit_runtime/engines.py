"""Registering grit-runtime with an engine: what to write where, and what is left for the site to do. Pure.

An engine's own configuration is never edited. Where it takes drop-ins one is written; where it doesn't, a file is
written only if there is none, and otherwise said what belongs into it. A file of ours begins with a line that holds a
digest of the rest: one that somebody has changed since isn't ours any more.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.documents import dump_toml
from grit_runtime.errors import ConfigError

ENGINES = ("containerd", "cri-o", "podman", "docker", "k3s")
ANNOTATIONS = ["grit.dev/*"]
CONTAINERD = "/etc/containerd/config.toml"
CONTAINERD_DROP_IN = "/etc/containerd/conf.d/90-grit.toml"
CRIO_DROP_IN = "/etc/crio/crio.conf.d/90-grit.conf"
PODMAN_DROP_IN = "/etc/containers/containers.conf.d/90-grit.conf"
DOCKER = "/etc/docker/daemon.json"
K3S = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl"
K3S_V3 = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl"
_MARK = "# Written by grit-runtime install; sha256 of what follows: "
_CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_SHIM = "io.containerd.runc.v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of ours as it should be; `marked` ones begin with the digest."""

    path: str
    text: str
    marked: bool = True

    @property
    def content(self) -> str:
        """All of the file."""
        return f"{_MARK}{_digest(self.text)}\n{self.text}" if self.marked else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What registering takes."""

    files: tuple[File, ...] = ()
    todo: tuple[str, ...] = ()
    """What only the site may do: until then the engine doesn't know the runtime."""
    restart: str = ""
    """What has to be restarted; empty if nothing."""
    notes: tuple[str, ...] = field(default=())


def is_ours(content: str) -> bool:
    """Whether a file is as it was written, by its digest; JSON: whether it holds one runtime, our launcher, alone."""
    first, _, rest = content.partition("\n")
    if first.startswith(_MARK):
        return first[len(_MARK) :] == _digest(rest)
    try:
        data = json.loads(content)
    except ValueError:
        return False
    entries = list(_table(data, "runtimes").values()) if isinstance(data, dict) and list(data) == ["runtimes"] else []
    return len(entries) == 1 and str(_table({"x": entries[0]}, "x").get("path")).endswith("/grit-runtime")


def register(
    engine: str, name: str, program: str, read: Callable[[str], str | None], version: tuple[int, ...]
) -> Registration:
    """What it takes to have `engine` know the runtime `program` as `name`.

    Args:
        read: the text of a file of the host, None if there is none.
        version: containerd's; of no meaning to the others.

    Raises:
        ConfigError: the engine's configuration can't be read.
    """
    if engine == "containerd":
        return _containerd(name, program, read(CONTAINERD), version)
    if engine == "cri-o":
        # CRI-O hands a pod's annotations to the runtime by itself.
        table = {"runtime_path": program, "runtime_type": "oci", "runtime_root": f"/run/{name}"}
        text = dump_toml({"crio": {"runtime": {"runtimes": {name: table}}}})
        return Registration(files=(File(path=CRIO_DROP_IN, text=text),), restart="crio")
    if engine == "podman":
        text = dump_toml({"engine": {"runtimes": {name: [program]}}})
        return Registration(files=(File(path=PODMAN_DROP_IN, text=text),))
    if engine == "docker":
        return _docker(name, program, read(DOCKER))
    return _k3s(name, program, read)


def paths(engine: str) -> tuple[str, ...]:
    """The files that registering may have written."""
    return {
        "containerd": (CONTAINERD_DROP_IN, CONTAINERD),
        "cri-o": (CRIO_DROP_IN,),
        "podman": (PODMAN_DROP_IN,),
        "docker": (DOCKER,),
        "k3s": (K3S, K3S_V3),
    }[engine]


def _containerd(name: str, program: str, main: str | None, version: tuple[int, ...]) -> Registration:
    """containerd 2 merges drop-ins into the main file if both have one `version`. containerd 1 takes each plugin whole
    from the last file that has it (services/server/config, mergeConfig), so that a drop-in with nothing but our runtime
    would take sandbox image, registries and all other runtimes away: there it holds all of the main file's CRI plugin.
    (Both seen with `containerd config dump` of 1.6, 1.7 and 2.1.)
    """
    data = _read_toml(main or "", CONTAINERD)
    major = version[0] if version else 2
    own = is_ours(main or "")
    form = data.get("version", 1) if main is not None and not own else min(major + 1, 3)
    if form not in _CRI:
        if "plugins" in data:
            raise ConfigError(
                f"{CONTAINERD} is of version {form}",
                hint="`containerd config migrate` makes it one of a version in use",
            )
        form = 2
    key = _CRI[form]
    plugin = _table(data, "plugins", key)
    runtime = _runtime(program, plugin)
    if major >= 2:
        section: dict[str, Any] = {"containerd": {"runtimes": {name: runtime}}}
    else:
        containerd = _table(plugin, "containerd")
        # Where no runtime is named runc is there by default, and no more once another is.
        runtimes = {**(_table(containerd, "runtimes") or {"runc": {"runtime_type": _SHIM}}), name: runtime}
        section = {**plugin, "containerd": {**containerd, "runtimes": runtimes}}
        if version >= (1, 7):
            section |= {"enable_cdi": True}
    text = dump_toml({"version": form, "plugins": {key: section}})
    files = [File(path=CONTAINERD_DROP_IN, text=text)]
    line = f'imports = ["{CONTAINERD_DROP_IN}"]'
    if main is None or own:
        files.append(File(path=CONTAINERD, text=f"version = {form}\n{line}\n"))
    elif not _imports(data):
        listed = data.get("imports")
        if listed:
            line = f"imports = {json.dumps([*listed, CONTAINERD_DROP_IN])}"
        where = "in place of the line that it has" if listed else "above its first table"
        return Registration(
            files=tuple(files), todo=(f"write `{line}` into {CONTAINERD}, {where}",), restart="containerd"
        )
    notes: tuple[str, ...] = ()
    if major < 2 and main is not None and not own:
        notes = (
            f"{CONTAINERD_DROP_IN} holds a copy of the CRI plugin in {CONTAINERD}: install again when that changes",
        )
    return Registration(files=tuple(files), restart="containerd", notes=notes)


def _runtime(program: str, plugin: dict[str, Any]) -> dict[str, Any]:
    """The handler; cgroups are made by whom the node's other runtimes have them made."""
    containerd = _table(plugin, "containerd")
    runtimes = _table(containerd, "runtimes")
    default = str(containerd.get("default_runtime_name") or "runc")
    options = {"BinaryName": program}
    for other in (default, "nvidia", "runc"):
        if "SystemdCgroup" in _table(runtimes, other, "options"):
            options |= {"SystemdCgroup": runtimes[other]["options"]["SystemdCgroup"]}
            break
    annotations = {"pod_annotations": ANNOTATIONS, "container_annotations": ANNOTATIONS}
    return {"runtime_type": _SHIM, **annotations, "options": options}


def _imports(data: dict[str, Any]) -> bool:
    listed = data.get("imports")
    directory = CONTAINERD_DROP_IN.rpartition("/")[0]
    known = {CONTAINERD_DROP_IN, f"{directory}/*.toml", f"{directory}/*"}
    return isinstance(listed, list) and any(str(item) in known for item in listed)


def _docker(name: str, program: str, main: str | None) -> Registration:
    """Docker has one file and no drop-ins."""
    wanted = {"runtimes": {name: {"path": program}}}
    text = json.dumps(wanted, indent=2) + "\n"
    if main is None or main == text:
        return Registration(files=(File(path=DOCKER, text=text, marked=False),), restart="docker")
    try:
        data = json.loads(main)
    except ValueError as err:
        raise ConfigError(f"{DOCKER} is not valid JSON: {err}") from None
    if _table(data if isinstance(data, dict) else {}, "runtimes", name).get("path") == program:
        return Registration()
    entry = f'"{name}": {json.dumps(wanted["runtimes"][name])}'
    return Registration(todo=(f'write {entry} into "runtimes" of {DOCKER}',), restart="docker")


def _k3s(name: str, program: str, read: Callable[[str], str | None]) -> Registration:
    """k3s makes containerd's configuration of a template, the one for its version of containerd; `base` is its own."""
    files, todo = [], []
    for path, form in ((K3S, 2), (K3S_V3, 3)):
        table = dump_toml({"plugins": {_CRI[form]: {"containerd": {"runtimes": {name: _runtime(program, {})}}}}})
        main = read(path)
        if main is None or is_ours(main):
            files.append(File(path=path, text=f'{{{{ template "base" . }}}}\n\n{table}'))
        elif f'containerd".runtimes.{name}' not in main.replace("'", '"') and table not in main:
            todo.append(f"append to {path}: {table}")
    return Registration(files=tuple(files), todo=tuple(todo), restart="k3s (or k3s-agent)")


def _table(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _read_toml(text: str, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path} is not valid TOML: {err}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
