"""What is said of a checkpoint. Pure."""

import enum
from dataclasses import asdict, dataclass, field
from typing import Any


class State(enum.Enum):
    """Whether a checkpoint is whole."""

    COMPLETE = "complete"
    UNSAID = "nothing says whether it is complete"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One mapping of a process; `saved` of its bytes stand in the images."""

    start: int
    end: int
    access: str
    what: str
    saved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; what the checkpoint doesn't say is None, or empty."""

    pid: int
    parent: int
    name: str
    command: str
    """Its command line, which others than grit-runtime leave in its pages."""
    program: str
    threads: int
    state: str
    saved: int | None
    """Bytes of its memory in the images."""
    mapped: int | None
    gpu: dict[str, int] | None = None
    """Bytes by GPU, of a process that uses CUDA."""
    cuda: bool = False
    mappings: tuple[Mapping, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One descriptor; processes that share a table have it together."""

    pids: tuple[int, ...]
    number: int
    kind: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """A socket of the images, by the kernel's words."""

    kind: str
    state: str
    local: str
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount of the images; `source` is where config.json or the manifest says that it came from."""

    destination: str
    kind: str
    type: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU of the node that the checkpoint was made on."""

    index: int
    uuid: str
    name: str
    memory: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What comes beside the images; `left_out` says why it doesn't."""

    name: str
    bytes: int | None = None
    entries: int | None = None
    left_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A checkpoint as far as it can be read."""

    path: str
    kind: str
    state: State
    problems: tuple[str, ...] = ()
    created: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    size: int = 0
    files: int = 0
    checksums: bool = False
    """Whether it lists checksums of its files."""
    compared: bool = False
    """Whether they were compared."""
    plugins: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()
    shared_memory: int = 0
    """Bytes of memory in the images that isn't one process' alone."""
    gpu: dict[str, str] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    open_files: tuple[OpenFile, ...] = ()
    sockets: tuple[Socket, ...] = ()
    mounts: tuple[Mount, ...] = ()
    contents: tuple[Part, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict, repr=False)
    """The effective config.json, which holds the container's environment: compared, never shown whole."""

    @property
    def sound(self) -> bool:
        """Whether nothing is known to be missing or wrong."""
        return self.state in (State.COMPLETE, State.UNSAID)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        del found["spec"]
        return {**found, "state": self.state.name.lower()}
