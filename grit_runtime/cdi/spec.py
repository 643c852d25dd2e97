"""One CDI spec file: read with a bound, validated as the Go library does (pkg/cdi/spec.go, specs-go/version.go)."""

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from grit_runtime import documents
from grit_runtime.cdi import names
from grit_runtime.errors import CdiError

SUFFIXES = (".json", ".yaml")
_SCHEMA = "cdi/schema.json"
_MAX_BYTES = 16 << 20
_VERSIONS = (
    (0, 1, 0),
    (0, 2, 0),
    (0, 3, 0),
    (0, 4, 0),
    (0, 5, 0),
    (0, 6, 0),
    (0, 7, 0),
    (0, 8, 0),
    (1, 0, 0),
    (1, 1, 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A valid spec."""

    path: str
    kind: str
    edits: dict[str, Any]
    """What any device of it brings."""
    devices: dict[str, dict[str, Any]]
    """Name within the kind to its edits."""


def read(path: str) -> Spec:
    """Read a spec file.

    Raises:
        CdiError: it can't be read, or isn't valid; the message names it.
    """
    try:
        # A FIFO must not keep us waiting, and a device not be read.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _invalid(path, "it is no regular file")
            text = stream.read(_MAX_BYTES + 1)
    except OSError as err:
        raise _invalid(path, str(err.strerror)) from None
    if len(text) > _MAX_BYTES:
        raise _invalid(path, f"it is larger than {_MAX_BYTES >> 20} MiB")
    return parse(path, text)


def parse(path: str, text: bytes) -> Spec:
    """Make a spec of a file's bytes; raises as `read`."""
    try:
        data = _plain(documents.load_yaml(text) if not text.lstrip().startswith(b"{") else _load_json(text))
    except ValueError as err:
        raise _invalid(path, f"it can't be parsed: {' '.join(str(err).split())[:300]}") from None
    problems = documents.violations(data, _SCHEMA)
    if problems:
        raise _invalid(path, "; ".join(problems[:3])[:500])
    why = _problem(data)
    if why:
        raise _invalid(path, why)
    devices = {device["name"]: device.get("containerEdits") or {} for device in data["devices"]}
    return Spec(path=path, kind=data["kind"], edits=data.get("containerEdits") or {}, devices=devices)


def _load_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return documents.load_yaml(text)  # YAML may begin with a brace, too


def _plain(value: Any) -> Any:
    """Without what is null, which is as good as absent to Go; a device's name may be a number in YAML."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if item is not None}
        if isinstance(kept.get("name"), int) and not isinstance(kept["name"], bool):
            kept["name"] = str(kept["name"])
        return kept
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _problem(data: dict[str, Any]) -> str:
    """What the schema can't say, in the order of the Go library; empty if all is well."""
    version = str(data["cdiVersion"]).removeprefix("v")
    numbers = tuple(int(part) for part in version.split(".")) if re.fullmatch(r"\d\.\d\.\d", version) else ()
    if numbers not in _VERSIONS:
        return f"unknown cdiVersion {data['cdiVersion']!r}"
    needed = _required_version(data)
    if needed > numbers:
        return f"what it uses needs cdiVersion {'.'.join(str(part) for part in needed)}, and it says {version}"
    if not names.is_kind(data["kind"]):
        return f"kind {data['kind']!r} is not vendor/class"
    seen: set[str] = set()
    for device in data["devices"]:
        name = device["name"]
        if not names.is_device(name):
            return f"invalid name of a device {name!r}"
        if name in seen:
            return f"device {name} stands twice"
        seen.add(name)
        if not any(_all_edits(device)):
            return f"device {name} has no edits"
    return _net_devices_problem(data)


def _all_edits(owner: dict[str, Any]) -> list[Any]:
    edits = owner.get("containerEdits") or {}
    rdt = "intelRdt" in edits
    return [*(edits.get(key) for key in edits if key != "intelRdt"), rdt]


def _net_devices_problem(data: dict[str, Any]) -> str:
    for owner in (data, *data["devices"]):
        listed = (owner.get("containerEdits") or {}).get("netDevices") or []
        for key in ("hostInterfaceName", "name"):
            found = [device[key] for device in listed]
            if len(set(found)) != len(found):
                return f"two netDevices have one {key}"
    return ""


def _required_version(data: dict[str, Any]) -> tuple[int, ...]:
    """The lowest version that has all that the spec uses (specs-go/version.go, requiresV040 and on)."""
    owners = [data, *data["devices"]]
    edits = [owner.get("containerEdits") or {} for owner in owners]
    if any(e.get("netDevices") or _new_rdt(e.get("intelRdt")) for e in edits):
        return 1, 1, 0
    if any("intelRdt" in e or e.get("additionalGids") for e in edits):
        return 0, 7, 0
    if any(owner.get("annotations") for owner in owners) or "." in data["kind"].partition("/")[2]:
        return 0, 6, 0
    if any(device["name"][:1].isdigit() for device in data["devices"]) or any(
        node.get("hostPath") for e in edits for node in e.get("deviceNodes") or []
    ):
        return 0, 5, 0
    return (0, 4, 0) if any(mount.get("type") for e in edits for mount in e.get("mounts") or []) else (0, 3, 0)


def _new_rdt(rdt: Any) -> bool:
    return isinstance(rdt, dict) and ("schemata" in rdt or bool(rdt.get("enableMonitoring")))


def _invalid(path: str, why: str) -> CdiError:
    return CdiError(f"CDI spec {path} is not valid: {why}")
