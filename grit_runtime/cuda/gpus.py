"""GPUs: what NVML says of a node's, and which of them takes the place of which. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

COMPUTE_PROHIBITED = 2  # nvmlComputeMode_t
COMPUTE_EXCLUSIVE_PROCESS = 3
_TOLERANCE = 0.02
_TOLERATED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in bytes."""

    index: int
    uuid: str
    name: str
    minor: int = -1
    """N of /dev/nvidiaN."""
    memory: int = 0
    free: int = 0
    compute_mode: int = 0
    persistence: bool = True
    mig: bool = False
    used_by: tuple[tuple[int, int], ...] | None = None
    """Host pids and the bytes that each has here; None if the driver doesn't say (as in some virtual machines)."""
    mps_clients: tuple[int, ...] = ()

    def used(self, pid: int) -> int | None:
        """How much memory a process has here, in bytes; None if nobody can say."""
        return None if self.used_by is None else dict(self.used_by).get(pid, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The driver's version, such as `580.159.04`, and the GPUs in its order."""

    driver: str
    gpus: tuple[Gpu, ...]

    @property
    def branch(self) -> int:
        """The driver's branch, such as 580."""
        word = self.driver.partition(".")[0]
        return int(word) if word.isdigit() else 0

    def used(self, pid: int) -> dict[str, int] | None:
        """GPU UUID to the bytes that a process has there; None if the driver doesn't say."""
        found = {gpu.uuid: gpu.used(pid) for gpu in self.gpus}
        return None if None in found.values() else {uuid: used for uuid, used in found.items() if used}


def parse_node(data: dict[str, Any]) -> Node:
    """What the helper said (helper.py, `gpus`)."""
    return Node(
        driver=str(data["driver"]),
        gpus=tuple(
            Gpu(
                index=entry["index"],
                uuid=entry["uuid"],
                name=entry["name"],
                minor=entry["minor"],
                memory=entry["memory"],
                free=entry["free"],
                compute_mode=entry["computeMode"] or 0,
                persistence=entry["persistence"] != 0,
                mig=entry["mig"],
                used_by=_used_by(entry["processes"]),
                mps_clients=tuple(entry["mps"]),
            )
            for entry in data["gpus"]
        ),
    )


def _used_by(processes: dict[str, int | None] | None) -> tuple[tuple[int, int], ...] | None:
    if processes is None or None in processes.values():
        return None
    return tuple((int(pid), used or 0) for pid, used in processes.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A GPU of the checkpoint's node, as the manifest has it; bytes are what the container had there."""

    uuid: str
    name: str
    memory: int
    used: int = 0
    index: int = 0
    visible: bool = True
    """Whether the container could open it: its processes' driver knows of it then, used or not."""


def device_map(
    old: Sequence[Recorded],
    node: Sequence[Gpu],
    given: Sequence[str],
    wanted: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """Which GPU takes the place of which.

    What is wanted comes first. A GPU that is there again and is given to the container stays itself. The others get,
    by their position, those given GPUs of the same model and at least the same memory that are left; the ones in use
    choose first. The driver wants every GPU in the map that the container could open, whether or not a process used
    it, and no other; and it restores only where each has a counterpart (measured, driver 580).

    Args:
        old: every GPU of the checkpoint's node.
        node: every GPU of this node.
        given: the UUIDs that the new container may use, in its order.
        wanted: old to new UUID, of GPUs that somebody has decided about.

    Returns:
        Pairs of old and new UUID, empty if nothing changes; and what is missing.
    """
    by_uuid = {gpu.uuid: gpu for gpu in node}
    left = [uuid for uuid in dict.fromkeys(given) if uuid in by_uuid]
    seen = [gpu for gpu in old if gpu.visible or gpu.used]
    chosen, problems = _decided(seen, wanted, left, by_uuid)
    if problems:
        return (), problems
    for used in (True, False):
        undecided = [gpu for gpu in seen if bool(gpu.used) is used and gpu.uuid not in chosen]
        for gpu in sorted(undecided, key=lambda gpu: gpu.uuid not in left):  # those that stay themselves first
            fitting = gpu.uuid if gpu.uuid in left else _first_fitting(gpu, left, by_uuid)
            if fitting is None:
                problems.append(_no_place(gpu, [by_uuid[uuid] for uuid in left]))
                continue
            chosen[gpu.uuid] = fitting
            left.remove(fitting)
    if problems or all(a == b for a, b in chosen.items()):
        return (), problems
    return tuple((gpu.uuid, chosen[gpu.uuid]) for gpu in seen), problems


def _decided(
    seen: Sequence[Recorded], wanted: Mapping[str, str], left: list[str], by_uuid: Mapping[str, Gpu]
) -> tuple[dict[str, str], list[str]]:
    """What somebody has decided, taken out of what is left; and what is wrong with it."""
    chosen: dict[str, str] = {}
    problems = []
    for gpu in seen:
        place = wanted.get(gpu.uuid)
        if place is None:
            continue
        if place in left and _fits(gpu, by_uuid[place]):
            chosen[gpu.uuid] = place
            left.remove(place)
        else:
            problems.append(f"GPU {place}, which is to take the place of {gpu.uuid}, {_not_for(gpu, place, by_uuid)}")
    return chosen, problems


def _first_fitting(old: Recorded, left: Sequence[str], by_uuid: Mapping[str, Gpu]) -> str | None:
    return next((uuid for uuid in left if _fits(old, by_uuid[uuid])), None)


def _fits(old: Recorded, new: Gpu) -> bool:
    return old.name == new.name and new.memory >= old.memory


def _not_for(old: Recorded, place: str, by_uuid: Mapping[str, Gpu]) -> str:
    if place not in by_uuid:
        return "is not on this node"
    new = by_uuid[place]
    if not _fits(old, new):
        return f"is a {new.name} with {new.memory >> 20} MiB, not a {old.name} with {old.memory >> 20} MiB"
    return "is not the container's, or has its place already"


def _no_place(old: Recorded, left: list[Gpu]) -> str:
    offered = ", ".join(f"{gpu.name} with {gpu.memory >> 20} MiB" for gpu in left) or "none"
    why = "" if old.used else ", which the old container could open, and the driver wants each of those to have a place"
    return (
        f"no GPU for {old.uuid}, a {old.name} with {old.memory >> 20} MiB{why}: left of the container's are {offered}"
    )


def is_back(recorded: int, now: int) -> bool:
    """Whether memory on a GPU is what was recorded, give or take 2 % or 64 MiB, whichever is more."""
    return abs(now - recorded) <= max(_TOLERATED_BYTES, int(recorded * _TOLERANCE))
