"""A pod without an engine: what kubelet and a CRI plugin make for one, in a directory of our own.

A sandbox container holds the namespaces, as containerd's does; the workload's container joins them, and has a volume,
a secret and the files that kubelet and the sandbox give it. Names, ids and sources are new for each pod. Its program is
the node's Python, with the directories that it needs bound read-only: no image is needed, and no network.
"""

import json
import os
import secrets
import shutil
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.e2e.gpu import Gpu
from grit_runtime.host import files

NAMESPACE = "grit-e2e"
CONTAINER = "counter"
SECRET = "/var/run/secrets/token"
GPU_MEBIBYTES = 64
_CRI = "io.kubernetes.cri."
_EMPTY = ("proc", "dev", "dev/shm", "sys", "tmp", "etc", "data", "var/run/secrets/token", "root")
_JOINED = {"network": "net", "ipc": "ipc", "uts": "uts"}


@dataclass(kw_only=True)
class Pod:
    """A pod's names and directories.

    Args:
        base: the directory of the run; its name begins the names of containers and cgroups.
        role: `old` or `new`.
        gpu: what the workload's container is given.
    """

    base: str
    role: str
    gpu: Gpu | None = None
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox_hash: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def name(self) -> str:
        """The pod's name, which is its host name, too."""
        return f"counter-{self.role}-{self.uid[:8]}"

    @property
    def sandbox(self) -> str:
        """The sandbox container's id."""
        return f"{os.path.basename(self.base)}-{self.role}-sandbox"

    @property
    def container(self) -> str:
        """The workload container's id."""
        return f"{os.path.basename(self.base)}-{self.role}"

    @property
    def directory(self) -> str:
        """All that is the pod's."""
        return os.path.join(self.base, self.role)

    @property
    def data(self) -> str:
        """The volume that is /data inside."""
        return os.path.join(self.directory, "pods", self.uid, "volumes/kubernetes.io~empty-dir/data")

    def bundle(self, container: str) -> str:
        """The bundle of one of its containers."""
        return os.path.join(self.directory, container)

    def numbers(self) -> list[int]:
        """What the workload has counted."""
        try:
            with open(os.path.join(self.data, "out"), encoding="ascii") as stream:
                return [int(line) for line in stream.read().split("\n")[:-1]]
        except OSError:
            return []

    def failure(self) -> str:
        """Why the workload has ended by itself, if it has."""
        return files.read_text(os.path.join(self.data, "failed")).strip()

    def sources(self) -> dict[str, str]:
        """Make the files and directories that the pod is given: destination to source."""
        kubelet, sandbox = os.path.join(self.directory, "pods", self.uid), os.path.join(self.directory, "sandboxes")
        secret = os.path.join(kubelet, f"volumes/kubernetes.io~projected/kube-api-access-{secrets.token_hex(3)}")
        given = {
            "/etc/hosts": (os.path.join(kubelet, "etc-hosts"), f"127.0.0.1 localhost {self.name}\n"),
            "/etc/hostname": (os.path.join(sandbox, self.sandbox_hash, "hostname"), f"{self.name}\n"),
            "/etc/resolv.conf": (os.path.join(sandbox, self.sandbox_hash, "resolv.conf"), "nameserver 127.0.0.1\n"),
            "/dev/termination-log": (os.path.join(kubelet, "containers", CONTAINER, secrets.token_hex(4)), ""),
        }
        for path, text in (*given.values(), (os.path.join(secret, "token"), f"{self.uid}\n")):
            _write(path, text)
        # A dump may fall into the moment in which the counter has it open; then it must be there at the restore.
        _write(os.path.join(self.data, "out"), "")
        return {destination: path for destination, (path, _) in given.items()} | {"/data": self.data, SECRET: secret}

    def make_sandbox(self, spec: dict[str, Any]) -> None:
        """Make the sandbox's bundle."""
        arguments = [*_python(), "-c", "import signal; signal.pause()"]
        config = self._config(spec, "sandbox", arguments, {})
        config["hostname"] = self.name
        self._bundle(self.sandbox, config)

    def make_container(self, spec: dict[str, Any], *, sandbox_pid: int, mebibytes: int, checkpoint: str = "") -> None:
        """Make the workload's bundle.

        Args:
            sandbox_pid: the process whose namespaces it joins.
            mebibytes: how much memory it holds.
            checkpoint: the value of its annotation, if it is to come from one.
        """
        arguments = [*_python(), "/workload.py", str(mebibytes), str(GPU_MEBIBYTES if self.gpu else 0)]
        config = self._config(spec, "container", arguments, self.sources())
        for entry in config["linux"]["namespaces"]:
            if entry["type"] in _JOINED:
                entry["path"] = f"/proc/{sandbox_pid}/ns/{_JOINED[entry['type']]}"
        config.pop("hostname", None)
        if self.gpu:
            self.gpu.give(config)
        if checkpoint:
            config["annotations"]["grit.dev/checkpoint"] = checkpoint
        self._bundle(self.container, config)

    def _config(self, spec: dict[str, Any], kind: str, arguments: list[str], sources: dict[str, str]) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(json.dumps(spec))
        config["process"].update(terminal=False, args=arguments, cwd="/")
        config["root"] = {"path": "rootfs", "readonly": False}
        config["linux"]["cgroupsPath"] = f"/{self.sandbox if kind == 'sandbox' else self.container}"
        config["mounts"] += [_bind(path, path, "ro") for path in _program_directories()]
        config["mounts"] += [_bind(to, source, "ro" if to == SECRET else "rw") for to, source in sources.items()]
        config["annotations"] = {
            f"{_CRI}container-type": kind,
            f"{_CRI}sandbox-id": self.sandbox,
            f"{_CRI}sandbox-uid": self.uid,
            f"{_CRI}sandbox-name": self.name,
            f"{_CRI}sandbox-namespace": NAMESPACE,
            **({f"{_CRI}container-name": CONTAINER} if kind == "container" else {}),
        }
        return config

    def _bundle(self, container: str, config: dict[str, Any]) -> None:
        rootfs = os.path.join(self.bundle(container), "rootfs")
        for name in (*_EMPTY, *(path[1:] for path in _program_directories())):
            os.makedirs(os.path.join(rootfs, name), exist_ok=True)
        for link in ("bin", "lib", "lib64", "sbin"):
            if os.path.islink(f"/{link}"):
                os.symlink(os.readlink(f"/{link}"), os.path.join(rootfs, link))
        shutil.copyfile(os.path.join(os.path.dirname(__file__), "workload.py"), os.path.join(rootfs, "workload.py"))
        _write(os.path.join(self.bundle(container), "config.json"), json.dumps(config))


def _python() -> list[str]:
    """The node's Python that runs us, without its packages and its environment."""
    return [os.path.realpath(sys.executable), "-I", "-S"]


def _program_directories() -> list[str]:
    """What Python needs: /usr, /lib and /lib64 where they are no links, and Python's own if it is elsewhere."""
    found = [
        "/usr",
        *(f"/{name}" for name in ("lib", "lib64") if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")),
    ]
    prefix = os.path.realpath(sys.base_prefix)
    inside = any(prefix == path or prefix.startswith(f"{path}/") for path in found)
    return found if inside else [*found, prefix]


def _bind(destination: str, source: str, how: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", "rprivate", how]}


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
