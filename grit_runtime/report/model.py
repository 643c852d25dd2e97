"""A record of a checkpoint or a restore, as `workflow/operations.py` writes it, checked and summed up. Pure.

A checkpoint's manifest has some of it too, and a manifest may come from anybody: nothing in it is taken for granted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grit_runtime.errors import CheckpointError

FORMAT = 1
OK = "ok"
MAX_BYTES = 1 << 20  # of a record
_MOST_PHASES = 500
_LONGEST = 4000
_MOST_SECONDS = 1e8
_MOST_SIZE = 1 << 62

MEANINGS = {
    "begin": "the launcher, Python and its imports, configuration and bundle",
    "lock": "waiting for others on this container, undoing what killed calls left",
    "look": "the container's state and processes, its config.json",
    "cuda": "device memory into the processes' memory, or back",
    "freeze": "stopping every task",
    "wait": "for the other containers of a set to be held or dumped",
    "describe": "mounts, namespaces and versions for the manifest",
    "criu": "runc and CRIU",
    "memory": "memory written or filled past CRIU",
    "contents": "rootfs changes, /dev/shm, the log",
    "flush": "checksums, flushing to disk, the manifest, its signature",
    "publish": "moving the images up, ending or resuming the container",
    "open": "finding the checkpoint, its signature, unpacking an archive",
    "plan": "reading the images and config.json, deciding",
    "stage": "the copies of small images, CRIU's configuration",
    "mountpoints": "mountpoints and links in the new rootfs",
    "verify": "the processes, from outside",
    "release": "the pid file, letting the tasks run",
    "cuda lock": "waiting for work on the GPU to end, holding back more",
    "cuda checkpoint": "device memory into the processes' memory",
    "images compared": "images that the driver reads meanwhile, with their checksums",
    "huge pages": "transparent huge pages given to everybody, then as before",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of an operation, in seconds since the process began."""

    name: str
    begin: float
    end: float
    size: int | None = None
    """Bytes moved, where somebody counted them."""
    span: bool = False
    """Beside the phases, which follow each other."""
    unended: bool = False
    """The call failed within it."""
    detail: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin

    @property
    def rate(self) -> float | None:
        """Bytes in a second."""
        return self.size / self.seconds if self.size and self.seconds > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One checkpoint or restore."""

    operation: str
    container: str
    images: str
    outcome: str
    error: str
    began: float | None
    """Seconds since the epoch."""
    seconds: float
    """By the wall clock, from the process' begin."""
    phases: tuple[Phase, ...]
    version: str = ""
    source: str = ""
    """Where the record was."""
    complete: bool = True
    """Else it is a manifest's: up to the writing of that."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.outcome == OK

    @property
    def last(self) -> Phase | None:
        """The phase that the operation ended in."""
        return next((phase for phase in reversed(self.phases) if not phase.span), None)

    @property
    def added(self) -> float:
        """The seconds of all phases, of those that overlap both."""
        return sum(phase.seconds for phase in self.phases if not phase.span)

    @property
    def covered(self) -> float:
        """The seconds that are in at least one phase: what overlaps counts once."""
        return covered((phase.begin, phase.end) for phase in self.phases if not phase.span)

    @property
    def share(self) -> float:
        """How much of the wall clock the phases account for; 1 is all."""
        return self.covered / self.seconds if self.seconds else 1.0

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "operation": self.operation,
            "container": self.container,
            "images": self.images,
            "outcome": self.outcome,
            "error": self.error,
            "began": self.began,
            "seconds": self.seconds,
            "complete": self.complete,
            "version": self.version,
            "source": self.source,
            "phases": [_document(phase) for phase in self.phases],
            "sum": {
                "phases": round(self.added, 6),
                "covered": round(self.covered, 6),
                "wall": self.seconds,
                "share": round(self.share, 4),
            },
        }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def lanes(phases: tuple[Phase, ...]) -> list[list[Phase]]:
    """The phases in as few lanes as it takes for none to overlap another; phases first, then spans."""
    found: list[list[Phase]] = []
    for phase in sorted(phases, key=lambda each: (each.span, each.begin, each.end)):
        for lane in found:
            if lane[0].span == phase.span and lane[-1].end <= phase.begin:
                lane.append(phase)
                break
        else:
            found.append([phase])
    return found


def parse(data: Any, source: str) -> Operation:
    """A record as it lies in `log-dir`.

    Raises:
        CheckpointError: it is none, or of a newer format.
    """
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise CheckpointError(f"{source} is no record of an operation")
    if data["format"] > FORMAT:
        raise CheckpointError(
            f"record {source} has format {data['format']}; this grit-runtime reads up to {FORMAT}",
            hint="upgrade grit-runtime on this node",
        )
    try:
        versions = data.get("versions")
        return Operation(
            operation=_text(data["operation"]),
            container=_text(data["container"]),
            images=_text(data["images"]),
            outcome=_text(data["outcome"]),
            error=_text(data["error"]),
            began=_number(data["began"], 1e11),
            seconds=_number(data["seconds"]),
            phases=_phases(data["phases"]),
            version=_text(versions.get("grit-runtime", "")) if isinstance(versions, dict) else "",
            source=source,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"record {source} is damaged: {type(err).__name__} {err}") from None


def of_manifest(data: dict[str, Any], images: str) -> Operation | None:
    """What a checkpoint's manifest says of its own making; None if it says nothing, as older ones do.

    Raises:
        CheckpointError: what it says can't be.
    """
    if "phases" not in data:
        return None
    try:
        phases = _phases(data["phases"])
        container, versions = data.get("container"), data.get("versions")
        return Operation(
            operation="checkpoint",
            container=_text(container.get("id", "")) if isinstance(container, dict) else "",
            images=images,
            outcome=OK,
            error="",
            began=None,
            seconds=max((phase.end for phase in phases), default=0.0),
            phases=phases,
            version=_text(versions.get("grit-runtime", "")) if isinstance(versions, dict) else "",
            source=images,
            complete=False,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(
            f"the phases in the manifest of {images} are damaged: {type(err).__name__} {err}"
        ) from None


def _phases(data: Any) -> tuple[Phase, ...]:
    if not isinstance(data, list) or len(data) > _MOST_PHASES:
        raise ValueError(f"phases are no list of at most {_MOST_PHASES}")
    return tuple(_phase(each) for each in data)


def _phase(data: Any) -> Phase:
    begin, end = _number(data["begin"]), _number(data["end"])
    if end < begin:
        raise ValueError(f"a phase ends at {end} and begins at {begin}")
    size = data.get("bytes")
    return Phase(
        name=_text(data["name"])[:100],
        begin=begin,
        end=end,
        size=None if size is None else int(_number(size, _MOST_SIZE)),
        span=data.get("span") is True,
        unended=data.get("unended") is True,
        detail=_text(data.get("detail", "")),
    )


def _document(phase: Phase) -> dict[str, Any]:
    found = {
        "name": phase.name,
        "begin": phase.begin,
        "end": phase.end,
        "seconds": round(phase.seconds, 6),
        "bytes": phase.size,
        "span": phase.span,
    }
    more = {"unended": True} if phase.unended else {}
    return {**found, **more, **({"detail": phase.detail} if phase.detail else {})}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value[:_LONGEST]


def _number(value: Any, most: float = _MOST_SECONDS) -> float:
    """A number that isn't negative, infinite, or no number (which JSON may hold in Python)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError("a number is not what it should be")
    return float(value)
