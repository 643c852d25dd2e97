"""The site's configuration: a YAML file whose every key has a working default (config.schema.json)."""

import os
from dataclasses import dataclass, field
from typing import Any

from grit_runtime import documents, names
from grit_runtime.errors import ConfigError

DEFAULT_PATH = "/etc/grit-runtime/config.yaml"
ENV = "GRIT_RUNTIME_CONFIG"
MAX_BYTES = 1 << 20

Option = bool | int | float | str | list[str]

# CRIU gives up after 10 s and refuses deleted files above 1 MiB; a container with a GPU goes beyond both (restore-time
# options are checked by CRIU against the dump's: file-locks must stand on both sides).
# TCP connections are dumped, and what becomes of them is decided at the restore.
DUMP_OPTIONS: dict[str, Option] = {
    "timeout": 30,
    "ghost-limit": "512M",
    "link-remap": True,
    "file-locks": True,
    "tcp-established": True,
}
RESTORE_OPTIONS: dict[str, Option] = {"timeout": 30, "ghost-limit": "512M", "file-locks": True}


_SECTIONS = frozenset({"criu", "cuda", "memory", "timeouts", "mounts", "contents", "archive", "trust"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds in seconds; see config.schema.json."""

    lock: float = 10
    command: float = 30
    checkpoint: float = 1800
    restore: float = 1800


# Where kubelet and the CRI runtimes keep what belongs to one pod: kubelet and containerd, k3s, rke2, CRI-O.
LINK_ROOTS = (
    "/var/lib/kubelet/pods",
    "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/var/lib/rancher/rke2/agent/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containers/storage/overlay-containers",
    "/var/run/containers/storage/overlay-containers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """How mounts that CRIU found by itself get their new source; see config.schema.json."""

    strategy: str = "auto"
    link_roots: tuple[str, ...] = LINK_ROOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxBytes:
    """Bounds of what is saved beside the images, in bytes; see config.schema.json."""

    rootfs_diff: int = 16 << 30
    dev_shm: int = 16 << 30
    log: int = 10 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is saved beside the images; see config.schema.json."""

    rootfs_diff: bool = True
    dev_shm: bool = True
    log: bool = True
    pod_logs: str = "/var/log/pods"
    max_bytes: MaxBytes = field(default_factory=MaxBytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Where checkpoints in one file are unpacked, and how large they may be; see config.schema.json."""

    unpack_dir: str = "/var/lib/grit-runtime/unpacked"
    max_bytes: int = 1 << 40
    max_entries: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuda:
    """How CUDA is brought into memory and back; times in seconds; see config.schema.json."""

    mode: str = names.CUDA_AUTO
    library_path: tuple[str, ...] = ()
    program: str = "cuda-checkpoint"
    plugin_dir: str = "/usr/lib/criu"
    ipc: str = names.CUDA_IPC_DETECT
    multi_gpu: str = names.CUDA_MULTI_GPU_REFUSE
    huge_pages: str = names.HUGE_AUTO
    staging: str = names.STAGING_AUTO
    lock_timeout: float = 10
    timeout: float = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """How a container's memory is moved; see config.schema.json."""

    transport: str = names.MEMORY_AUTO
    workers: int = 0
    direct_io: str = names.DIRECT_AUTO
    fill: str = names.FILL_BEFORE


# What NVIDIA's legacy hook binds from the host (libnvidia-container, src/nvc_mount.c): files read-only.
HOST_MOUNTS = (
    "/usr:ro", "/lib:ro", "/lib64:ro", "/run/nvidia/driver:ro", "/run/nvidia-persistenced/socket",
    "/run/nvidia-fabricmanager/socket", "/dev/nvidia*", "/proc/driver/nvidia:ro",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose checkpoints are restored, where, and what they may bring; see config.schema.json."""

    owners: tuple[int, ...] = (0,)
    namespaces: dict[str, list[str]] = field(default_factory=dict)
    privileges: str = names.REFUSE
    host_mounts: tuple[str, ...] = HOST_MOUNTS
    criu_config: str = names.REFUSE
    require_signature: bool = False
    keys: tuple[str, ...] = ()
    signing_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What config.schema.json describes, with its defaults."""

    downstream: str = "runc"
    state_dir: str = "/run/grit-runtime"
    log_dir: str = "/var/log/grit-runtime"
    checkpoint_roots: tuple[str, ...] = ("/var/lib/grit-runtime/checkpoints", "/mnt/grit-agent")
    require_manifest: bool = True
    fsync: bool = True
    tcp: str = names.TCP_INSIDE
    on_restore_failure: str = names.FAIL
    devices: str = names.DEVICES_AUTO
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    nvidia_hook: str = "nvidia-container-runtime-hook"
    timeouts: Timeouts = field(default_factory=Timeouts)
    mounts: Mounts = field(default_factory=Mounts)
    contents: Contents = field(default_factory=Contents)
    archive: Archive = field(default_factory=Archive)
    cuda: Cuda = field(default_factory=Cuda)
    memory: Memory = field(default_factory=Memory)
    trust: Trust = field(default_factory=Trust)
    criu_dump: dict[str, Option] = field(default_factory=lambda: dict(DUMP_OPTIONS))
    criu_restore: dict[str, Option] = field(default_factory=lambda: dict(RESTORE_OPTIONS))


def path() -> str:
    """The file that holds the configuration, whether or not it is there."""
    return os.environ.get(ENV) or DEFAULT_PATH


def load() -> Config:
    """Read the configuration; a missing file is the default.

    Raises:
        ConfigError: it can't be read, isn't YAML, or says something that the schema doesn't know.
    """
    file = path()
    try:
        with open(file, "rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Config()
    except OSError as err:
        raise ConfigError(f"cannot read configuration {file}: {err.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"configuration {file} is larger than {MAX_BYTES >> 20} MiB")
    return parse(text, file)


def parse(text: bytes, file: str) -> Config:
    """Make a configuration of YAML text; `file` is for the messages."""
    data = _read_yaml(text, file)
    _validate(data, file)
    criu = data.get("criu", {})
    return Config(
        **_python({key: value for key, value in data.items() if key not in _SECTIONS}),
        timeouts=Timeouts(**data.get("timeouts", {})),
        mounts=Mounts(**_python(data.get("mounts", {}))),
        contents=_contents(data.get("contents", {})),
        archive=Archive(**_python(data.get("archive", {}))),
        cuda=Cuda(**_python(data.get("cuda", {}))),
        memory=Memory(**data.get("memory", {})),
        trust=Trust(**_python(data.get("trust", {}))),
        criu_dump={**DUMP_OPTIONS, "tcp-established": data.get("tcp") != names.TCP_REFUSE, **criu.get("dump", {})},
        criu_restore={**RESTORE_OPTIONS, **criu.get("restore", {})},
    )


def _python(section: dict[str, Any]) -> dict[str, Any]:
    """A mapping of YAML as keyword arguments: names with underscores, lists as tuples."""
    return {key.replace("-", "_"): tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def _contents(section: dict[str, Any]) -> Contents:
    plain = {key.replace("-", "_"): value for key, value in section.items() if key != "max-bytes"}
    bounds = {key.replace("-", "_"): value for key, value in section.get("max-bytes", {}).items()}
    return Contents(**plain, max_bytes=MaxBytes(**bounds))


def _read_yaml(text: bytes, file: str) -> dict[str, Any]:
    try:
        data = documents.load_yaml(text)
    except ValueError as err:
        raise ConfigError(f"configuration {file} is not valid YAML: {err}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"configuration {file} holds no mapping")
    return data


def _validate(data: dict[str, Any], file: str) -> None:
    found = documents.violations(data, "config.schema.json")
    if found:
        raise ConfigError(f"configuration {file}: {'; '.join(found)}", hint="see the configuration reference")


def guess_downstream() -> str:
    """The downstream of a configuration that is broken elsewhere: a mistake in it must not keep other containers from
    being started or killed.
    """
    try:
        with open(path(), encoding="utf-8", errors="replace") as stream:
            for line in stream.read(MAX_BYTES).splitlines():
                name, _, value = line.partition(":")
                words = value.split()
                guess = words[0].strip("'\"") if words and not words[0].startswith("#") else ""
                if name == "downstream" and guess:
                    return guess
    except OSError:
        pass
    return Config().downstream
