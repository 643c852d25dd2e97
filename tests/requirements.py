"""What tests need of the machine: one table. A test says `@pytest.mark.needs("root", "runc", "criu")`.

In CI (`CI` is set) a missing requirement is a failure, not a skip; the GPU aside.
"""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = Path(os.environ.get("GRIT_RUNTIME_UNDER_TEST", ROOT / "build/prefix/bin/grit-runtime"))

DEPS = ROOT / "build/deps"
CRI_STUBS = DEPS / "cri"
APPLICATIONS = DEPS / "applications.tar"
CHECKPOINTCTL = DEPS / "checkpointctl"
DOCKER_REGISTRY = DEPS / "docker-registry"


def every_containerd() -> dict[str, Path]:
    """The containerds of this machine, the oldest first: version to the program; its others lie beside it."""
    found = {path.name: path / "containerd" for path in (DEPS / "containerd").glob("[0-9]*")}
    own = shutil.which("containerd")
    if own:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r" v?(\d+\.\d+\.\d+)", said)
        found |= {version[1]: Path(own)} if version else {}
    return dict(sorted(found.items(), key=lambda item: _numbers(item[0])))


def containerds() -> dict[str, Path]:
    """Those whose CRI is tested: version to the folder with their programs, the oldest first."""
    return {name: path.parent for name, path in every_containerd().items() if _numbers(name) >= (1, 7)}


def dockers() -> dict[str, Path]:
    """Version to the folder with dockerd and docker, the oldest first; what isn't the system's has its containerd."""
    found = {path.name: path for path in (DEPS / "docker").glob("[0-9]*")}
    return dict(sorted(found.items(), key=lambda item: _numbers(item[0])))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", version))


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not in PATH"


def _named(variable: str) -> Callable[[], str | None]:
    return lambda: None if os.environ.get(variable) else f"{variable} names none"


def _module(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"no Python package {name}: `make deps`"


def _library(name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"no {name}"
        return None

    return missing


def _criu() -> str | None:
    if shutil.which("criu") is None:
        return "criu is not in PATH"
    said = subprocess.run(["criu", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Version: (\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0,)
    return None if version >= (4, 1, 1) else f"criu is older than 4.1.1: {said.splitlines()[:1]}"


def _no_containerd() -> str | None:
    """Of this machine's own, which would be looked at in place of the test's."""
    found = [path for path in Path("/proc").glob("[0-9]*/comm") if path.exists() and path.read_text() == "containerd\n"]
    return f"a containerd runs here: {found[0].parent.name}" if found else None


def _gpus() -> int:
    return len(list(Path("/proc/driver/nvidia").glob("gpus/*")))


def _inet_dump() -> str | None:
    """Since 6.16 the kernel refuses SO_PASSCRED for a socket of the internet families; CRIU asks for it before 4.2."""
    said = subprocess.run(["criu", "--version"], capture_output=True, text=True, check=False).stdout
    criu = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    kernel = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return None if kernel < (6, 16) or criu >= (4, 2) else "this kernel needs criu 4.2 for TCP and UDP sockets"


# Name to a check that returns why it is missing, or None.
CHECKS: dict[str, Callable[[], str | None]] = {
    "nvidia-ctk": _program("nvidia-ctk"),
    "nvidia-container-runtime": _program("nvidia-container-runtime"),
    "root": lambda: None if os.geteuid() == 0 else "the tests must run as root",
    "runc": _program("runc"),
    "criu": _criu,
    "containerd": _program("containerd"),
    "no containerd": _no_containerd,
    "podman": _program("podman"),
    "kubernetes-validate": _module("kubernetes_validate"),
    "openssl": _program("openssl"),
    "mandoc": _program("mandoc"),
    "cc": _program("cc"),
    "strace": _program("strace"),
    "libseccomp": _library("libseccomp.so.2"),
    "zstd": _program("zstd"),
    "docker-registry": lambda: None if DOCKER_REGISTRY.exists() else "no docker-registry: `make deps`",
    "skopeo": _program("skopeo"),
    "busybox": _program("busybox"),
    "userfaultfd": lambda: None if os.path.exists("/dev/userfaultfd") else "no /dev/userfaultfd (Linux 6.1)",
    "runtime": lambda: None if RUNTIME.exists() else f"{RUNTIME} is not built: `make build`",
    "inet-dump": _inet_dump,
    "cri": lambda: None if (CRI_STUBS / "api_pb2_grpc.py").exists() else "no CRI stubs: `make deps`",
    "containerd 1.7": lambda: None if containerds() else "no containerd 1.7 or newer: `make deps`",
    "dockerd": lambda: None if dockers() else "no dockerd: `make deps`",
    "checkpointctl": lambda: None if CHECKPOINTCTL.exists() else "no checkpointctl: `make deps`",
    "applications": lambda: None if APPLICATIONS.exists() else "no file system of applications: `make deps`",
    "cuda-plugin": _named("GRIT_TEST_CRIU_PLUGINS"),
    "cuda-checkpoint": _named("GRIT_TEST_CUDA_CHECKPOINT"),
    "chromium": _program("chromium"),  # tools/deps installs it on Debian; Ubuntu 24.04 has it as a snap alone
    "gpu": lambda: None if _gpus() else "no NVIDIA GPU",
    "two GPUs": lambda: None if _gpus() > 1 else "not two NVIDIA GPUs",
}
MAY_BE_MISSING_IN_CI = frozenset(
    {"gpu", "two GPUs", "cuda-plugin", "cuda-checkpoint", "nvidia-ctk", "nvidia-container-runtime"}
    | ({"chromium"} if platform.freedesktop_os_release().get("ID") == "ubuntu" else set())
)


def missing(name: str) -> str | None:
    """Why the machine lacks `name`, or None. An unknown name is a mistake in the test."""
    if name not in CHECKS:
        raise ValueError(f"unknown requirement {name!r}: it is not in tests/requirements.py")
    return CHECKS[name]()
