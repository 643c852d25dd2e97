"""What is known of a node before anything is judged. Plain data."""

from dataclasses import dataclass, field

from grit_runtime.config import Config
from grit_runtime.cuda.gpus import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel and what it lets us do."""

    release: str
    architecture: str
    page_size: int
    cgroup: str
    """`v1`, `v2`, `hybrid`, or empty where nothing is mounted."""
    map_files: bool
    """/proc/PID/map_files and ns_last_pid are there (CONFIG_CHECKPOINT_RESTORE)."""
    userfaultfd: str
    """Why we can't have a userfaultfd; empty if we can."""
    fault_device: bool
    """/dev/userfaultfd is there, by which one sees the kernel's own faults, too."""
    ptrace_scope: int | None
    """Yama's setting; None without Yama."""
    huge_pages: str
    """The setting of transparent huge pages; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program: where it was found, and what it said."""

    path: str = ""
    version: str = ""
    error: str = ""
    """Why it can't be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criu:
    """CRIU, as the engine finds it."""

    program: Program
    check_code: int | None = None
    """How `criu check` ended; None if it didn't, or wasn't run."""
    check_said: tuple[str, ...] = ()
    pycriu: str = ""
    """Why its Python package can't be used; empty if it can."""
    plugins: tuple[str, ...] = ()
    """The files of plugins that CRIU loads when nobody tells it otherwise."""
    defaults: tuple[str, ...] = ()
    """The lines of /etc/criu/default.conf and /etc/criu/runc.conf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A container engine on this node."""

    name: str
    pid: int | None
    path: str
    """PATH in the environment of its process; ours where it has no process."""
    registered: bool
    problems: tuple[str, ...] = ()
    """What `grit-runtime install --dry-run` finds missing, or wrong."""
    restart: bool = False
    """Its process is older than its configuration."""
    missing: tuple[str, ...] = ()
    """Programs that aren't in its PATH."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A directory that checkpoints are kept in, or unpacked into; sizes in bytes, rates in bytes a second."""

    path: str
    use: str
    exists: bool
    trusted: str = ""
    """Who besides root could change what is in it; empty if nobody."""
    free: int = 0
    write: float | None = None
    read: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """NVIDIA's part."""

    present: bool
    by: str = ""
    """The back end that answers: `driver` or `cuda-checkpoint`."""
    error: str = ""
    """Why none does."""
    node: Node | None = None
    """What NVML says; None where it says nothing."""
    program: str = ""
    """Where cuda-checkpoint is."""
    cdi: tuple[str, ...] = ()
    """The names of GPUs in CDI specifications."""
    cdi_errors: tuple[str, ...] = ()
    toolkit: tuple[str, ...] = ()
    """Which of NVIDIA's runtime and hook are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What calls left that were killed."""

    journals: tuple[str, ...] = ()
    """Ids of containers with an open journal that nobody works on."""
    damaged: tuple[str, ...] = ()
    unpacked: tuple[str, ...] = ()
    """Unpacked archives that no call uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it."""

    config: Config
    kernel: Kernel
    launcher: Program
    downstream: Program
    lacks: tuple[str, ...] = ()
    """Verbs that the downstream doesn't know."""
    criu: Criu
    engines: tuple[Engine, ...] = ()
    engines_wanted: bool = True
    """Whether engines were looked for at all."""
    folders: tuple[Folder, ...] = ()
    memory: int = 0
    """The node's, in bytes."""
    state_fs: str = ""
    """The type of the file system of the state directory."""
    gpus: Gpus = field(default_factory=lambda: Gpus(present=False))
    leftovers: Leftovers = field(default_factory=Leftovers)
