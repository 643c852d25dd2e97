"""What a restore needs to decide about GPUs: what the checkpoint had, what the new container is given, which takes the
place of which, what is missing. Pure: no device is opened here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from grit_runtime import names
from grit_runtime.cuda.gpus import COMPUTE_EXCLUSIVE_PROCESS, COMPUTE_PROHIBITED, Gpu, Node, Recorded, device_map
from grit_runtime.errors import CheckpointError
from grit_runtime.oci.bundle import Bundle

_DEVICE = re.compile(r"/dev/nvidia(\d+)$")
_VISIBLE = "NVIDIA_VISIBLE_DEVICES"
_MAPS_DEVICES = 580  # the first driver whose restore takes a device map


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A CUDA process of the checkpoint, by its pid and its restore thread's id within the container."""

    pid: int
    thread: int
    memory: dict[str, int] | None
    """GPU UUID to bytes; None if nobody could say."""
    staging: tuple[tuple[int, int], ...] = ()
    """Start and end of the memory that the driver moves device memory through, if somebody saw it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The manifest's section `cuda`."""

    driver: str
    gpus: tuple[Recorded, ...]
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device node as the host has it."""

    path: str
    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaPlan:
    """What will happen to CUDA."""

    recording: Recording | None
    """None for a checkpoint that was made by others: its CUDA processes are found when they are there."""
    device_map: tuple[tuple[str, str], ...] = ()
    devices: tuple[Device, ...] = ()
    """Nodes that the new container must have, with rules in its device cgroup."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def recorded(section: Any, path: str) -> Recording | None:
    """The manifest's section; None if it names no process.

    Raises:
        CheckpointError: it isn't as it should be.
    """
    if not isinstance(section, dict) or not section.get("processes"):
        return None
    try:
        processes = tuple(
            Process(
                pid=int(entry["pid"]),
                thread=int(entry["restoreThread"]),
                memory=None if entry["memory"] is None else {str(k): int(v) for k, v in entry["memory"].items()},
                staging=tuple(sorted((int(start), int(end)) for start, end in entry.get("staging", ()))),
            )
            for entry in section["processes"]
        )
        used: dict[str, int] = {}
        for process in processes:
            for uuid, size in (process.memory or {}).items():
                used[uuid] = used.get(uuid, 0) + size
        gpus = tuple(
            Recorded(
                uuid=str(entry["uuid"]),
                name=str(entry["name"]),
                memory=int(entry["memory"]),
                index=int(entry["index"]),
                used=used.get(str(entry["uuid"]), 0),
                visible=bool(entry.get("visible", True)),
            )
            for entry in section["gpus"]
        )
        return Recording(driver=str(section["driver"] or ""), gpus=gpus, processes=processes)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise CheckpointError(f"the section cuda of {path} is damaged: {type(err).__name__} {err}") from None


def make(recording: Recording | None, bundle: Bundle, node: Node | None, devices: Mapping[str, Device]) -> CudaPlan:
    """Decide.

    Args:
        node: this node's GPUs; None if nobody can say, and nothing is compared then.
        devices: NVIDIA's device nodes of the host by their path.
    """
    if node is None:
        return CudaPlan(
            recording=recording,
            devices=tuple(devices.values()),
            warnings=("there is no NVML here: GPUs, free memory and what comes back cannot be checked",),
        )
    given = granted(bundle, node)
    if not given:
        nothing = f"config.json gives the container no GPU (no /dev/nvidiaN, and no {_VISIBLE})"
        problem = f"the checkpoint has CUDA processes, and {nothing}"
        return CudaPlan(recording=recording, problems=(problem,))
    shared = [path for path in devices if not _DEVICE.match(path)]
    own = [f"/dev/nvidia{gpu.minor}" for gpu in node.gpus if gpu.uuid in given]
    wanted = tuple(devices[path] for path in (*own, *shared) if path in devices)
    if recording is None:
        return CudaPlan(recording=None, devices=wanted)
    decided, odd = _decided(bundle.annotations.get(names.DEVICE_MAP, ""), recording)
    pairs, problems = device_map(recording.gpus, node.gpus, given, decided)
    problems = odd or problems
    places = dict(pairs)
    targets = {gpu.uuid: places.get(gpu.uuid, gpu.uuid) for gpu in recording.gpus if gpu.used}
    return CudaPlan(
        recording=recording,
        device_map=pairs,
        devices=wanted,
        problems=(
            *_driver(recording, node, moved=bool(pairs)),
            *problems,
            *(_gpu_problems(recording, targets, node) if not problems else ()),
            *_memory_limit(recording, bundle),
        ),
        warnings=tuple(_warnings(targets, node)),
    )


def granted(bundle: Bundle, node: Node) -> list[str]:
    """The UUIDs of the GPUs that config.json gives the container: by device nodes, by NVIDIA_VISIBLE_DEVICES, or by
    leave to use every device.
    """
    by_minor = {gpu.minor: gpu.uuid for gpu in node.gpus}
    listed = [match for item in bundle.objects("linux", "devices") if (match := _DEVICE.match(str(item.get("path"))))]
    found = [by_minor[int(match[1])] for match in listed if int(match[1]) in by_minor]
    if found:
        return found
    visible = [word for word in bundle.strings("process", "env") if word.startswith(f"{_VISIBLE}=")]
    if visible:
        return _visible(visible[-1].partition("=")[2], node)
    rules = bundle.objects("linux", "resources", "devices")
    everything = [rule for rule in rules if rule.get("type", "a") == "a" and rule.get("major", -1) in (-1, None)]
    return [gpu.uuid for gpu in node.gpus] if everything and everything[-1].get("allow") else []


def _visible(value: str, node: Node) -> list[str]:
    """NVIDIA_VISIBLE_DEVICES: `all`, or indices and UUIDs; `none`, `void` and nothing give none."""
    if value == "all":
        return [gpu.uuid for gpu in node.gpus]
    known = {**{str(gpu.index): gpu.uuid for gpu in node.gpus}, **{gpu.uuid: gpu.uuid for gpu in node.gpus}}
    return [known[word] for word in value.split(",") if word in known]


def _decided(said: str, recording: Recording) -> tuple[dict[str, str], list[str]]:
    """The annotation's map, and what is wrong with it. It chooses among the container's GPUs only (`device_map`)."""
    pairs = [word.strip().partition("=") for word in said.split(",") if word.strip()]
    wanted = {old: new for old, _, new in pairs}
    known = {gpu.uuid for gpu in recording.gpus}
    if any(old not in known or not new for old, new in wanted.items()) or len(wanted) < len(pairs):
        return {}, [
            f"{names.DEVICE_MAP}={said[:200]} is not a list of OLD=NEW with UUIDs of the checkpoint's GPUs first"
        ]
    return wanted, []


def _warnings(targets: dict[str, str], node: Node) -> Iterator[str]:
    for gpu in node.gpus:
        if gpu.uuid in targets.values() and not gpu.persistence:
            yield (
                f"GPU {gpu.index} ({gpu.uuid}) is not in persistence mode: where nobody else uses it, the driver is "
                "loaded anew for the restore, which takes seconds (nvidia-persistenced keeps it)"
            )


def edited(config: dict[str, Any], devices: tuple[Device, ...]) -> dict[str, Any]:
    """config.json with nodes and rules for `devices`; those that it has are left as they are."""
    if not devices:
        return config
    linux = {**config.get("linux", {})}
    resources = {**(linux.get("resources") or {})}
    nodes = list(linux.get("devices") or [])
    there = {str(node.get("path")) for node in nodes}
    for device in devices:
        if device.path not in there:
            numbers = {"major": device.major, "minor": device.minor}
            nodes.append({"path": device.path, "type": "c", **numbers, "fileMode": 0o666, "uid": 0, "gid": 0})
    rules = [
        {"allow": True, "type": "c", "major": device.major, "minor": device.minor, "access": "rw"} for device in devices
    ]
    resources["devices"] = [*(resources.get("devices") or []), *rules]
    return {**config, "linux": {**linux, "devices": nodes, "resources": resources}}


def _driver(recording: Recording, node: Node, *, moved: bool) -> list[str]:
    problems = []
    if recording.driver and recording.driver != node.driver:
        problems.append(
            f"the checkpoint was taken with driver {recording.driver}, and this node has {node.driver}: "
            "the driver's part in the processes' memory fits its own version only"
        )
    if moved and node.branch < _MAPS_DEVICES:
        problems.append(
            f"other GPUs than the checkpoint's need driver {_MAPS_DEVICES} or newer, and this is {node.driver}"
        )
    return problems


def _gpu_problems(recording: Recording, targets: dict[str, str], node: Node) -> list[str]:
    by_uuid: dict[str, Gpu] = {gpu.uuid: gpu for gpu in node.gpus}
    problems = []
    for old in recording.gpus:
        if old.uuid not in targets:
            continue
        gpu = by_uuid[targets[old.uuid]]
        if gpu.free < old.used:
            problems.append(
                f"GPU {gpu.index} ({gpu.uuid}) has {gpu.free >> 20} MiB free, and {old.used >> 20} MiB are needed"
            )
        if gpu.mig:
            problems.append(f"GPU {gpu.index} ({gpu.uuid}) is in MIG mode, into which nothing can be restored")
        if gpu.compute_mode == COMPUTE_PROHIBITED:
            problems.append(f"GPU {gpu.index} ({gpu.uuid}) is in compute mode Prohibited")
        users = sum(old.uuid in (process.memory or {}) for process in recording.processes)
        if gpu.compute_mode == COMPUTE_EXCLUSIVE_PROCESS and (users > 1 or gpu.used_by):
            problems.append(f"GPU {gpu.index} ({gpu.uuid}) is in compute mode Exclusive_Process and would have more")
        if gpu.mps_clients:
            problems.append(f"GPU {gpu.index} ({gpu.uuid}) is served by MPS, beside which nothing can be restored")
    return problems


def _memory_limit(recording: Recording, bundle: Bundle) -> list[str]:
    """CRIU fills the processes' memory, device memory included, within the new container's limit."""
    limit = bundle.section("linux", "resources", "memory").get("limit")
    needed = sum(gpu.used for gpu in recording.gpus)
    if isinstance(limit, int) and 0 < limit < needed:
        return [f"the memory limit of {limit >> 20} MiB is below the {needed >> 20} MiB that come from the GPU"]
    return []


def on_failure(annotations: dict[str, str], configured: str) -> str:
    """What becomes of a container whose restore fails: the annotation's word if it is one, else the site's."""
    said = annotations.get(names.ON_RESTORE_FAILURE, "")
    return said if said in (names.FAIL, names.COLD_START) else configured
