"""Pods without a Kubernetes: what kubelet and a CRI plugin make for one, on a private containerd with its stock shim.

Used by `demo.py` beside it and by tests/e2e. Standard library only. containerd is driven by its own `ctr`; the runtime
under test is the shim's BinaryName. Everything lies in one temporary directory and is gone at the end.
"""

import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

IMAGE = "grit.local/busybox:demo"
APPLETS = ("[", "sh", "sleep", "cat", "echo", "ls", "true", "hostname")
COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i >> /data/out; sleep 0.1; done"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


class Failed(Exception):
    """Something wasn't as it must be; the message says what."""


def wait(what: str, condition: Callable[[], bool], timeout: float = 15) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.02)


@dataclass(kw_only=True)
class Pod:
    """A pod's names and directories, new for each: UID, sandbox id, container id and hash, and what kubelet mounts."""

    base: Path
    name: str
    namespace: str = "default"
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    sandbox: str = field(default_factory=lambda: secrets.token_hex(32))
    container: str = field(default_factory=lambda: secrets.token_hex(32))
    hash: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def directory(self) -> Path:
        """kubelet's directory of the pod."""
        return self.base / "kubelet/pods" / self.uid

    @property
    def sandbox_directory(self) -> Path:
        """The CRI plugin's directory of the sandbox."""
        return self.base / "containerd/io.containerd.grpc.v1.cri/sandboxes" / self.sandbox

    @property
    def data(self) -> Path:
        """The emptyDir that is /data inside."""
        return self.directory / "volumes/kubernetes.io~empty-dir/data"

    @property
    def log(self) -> Path:
        """What the container writes to stdout, through the shim's pipes."""
        return self.base / f"log-{self.container[:12]}"

    def lines(self) -> list[int]:
        """The numbers in the container's log."""
        text = self.log.read_text() if self.log.exists() else ""
        return [int(line) for line in text.split("\n")[:-1]]

    def numbers(self) -> list[int]:
        """The numbers in /data/out."""
        file = self.data / "out"
        return [int(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def make(self) -> dict[str, Path]:
        """Make what kubelet and the CRI plugin would, and return destination to source."""
        token = self.directory / f"volumes/kubernetes.io~projected/kube-api-access-{secrets.token_hex(3)}"
        dated = token / f"..2026_{secrets.token_hex(4)}"
        for path in (self.data, dated, self.sandbox_directory / "shm"):
            path.mkdir(parents=True)
        # A dump may fall into the moment in which the counter has it open; then it must be there at the restore.
        (self.data / "out").touch()
        (dated / "token").write_text(f"token of pod {self.uid}\n")
        (token / "..data").symlink_to(dated.name)
        (token / "token").symlink_to("..data/token")
        written = {
            "/etc/hosts": (self.directory / "etc-hosts", f"127.0.0.1 localhost {self.name}\n"),
            "/dev/termination-log": (self.directory / "containers/app" / self.hash, ""),
            "/etc/hostname": (self.sandbox_directory / "hostname", f"{self.name}\n"),
            "/etc/resolv.conf": (self.sandbox_directory / "resolv.conf", "nameserver 127.0.0.1\n"),
        }
        for path, text in written.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {destination: path for destination, (path, _) in written.items()} | {"/data": self.data, TOKEN: token}

    def annotations(self, kind: str) -> dict[str, str]:
        """What containerd's CRI plugin writes into config.json."""
        cri = "io.kubernetes.cri."
        found = {
            f"{cri}container-type": kind,
            f"{cri}sandbox-id": self.sandbox,
            f"{cri}sandbox-uid": self.uid,
            f"{cri}sandbox-name": self.name,
            f"{cri}sandbox-namespace": self.namespace,
        }
        return found if kind == "sandbox" else {**found, f"{cri}container-name": "app", f"{cri}image-name": IMAGE}

    def remove_directories(self) -> None:
        """Remove the pod's directories, as kubelet does when it is gone."""
        shutil.rmtree(self.directory)
        shutil.rmtree(self.sandbox_directory)


class Containerd:
    """A containerd of one's own, with `runtime` as the BinaryName of its stock runc shim."""

    namespace = "k8s.io"

    def __init__(self, runtime: Path, programs: Path | None = None) -> None:
        self.runtime = runtime.resolve()
        self.programs = programs
        """The folder of containerd, its shim and ctr; None for those in PATH."""
        self.base = Path(tempfile.mkdtemp(prefix="grit-"))
        self.checkpoints = self.base / "checkpoints"
        self.state = self.base / "grit"
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[str] = set()

    def __enter__(self) -> "Containerd":
        self.checkpoints.mkdir()
        (self.base / "grit.yaml").write_text(json.dumps(self.settings()))  # JSON is YAML
        (self.base / "config.toml").write_text(self.configuration())
        image = self.base / "image.tar"
        image.write_bytes(_image())
        try:
            self.serve()
            self.ctr("images", "import", str(image))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.remove_all()
            wait("the shims end", lambda: not self.shims() and not self._bundles(), 60)
        finally:
            left = self._end()
        if left:
            raise Failed(f"this was left: {left}")

    def configuration(self) -> str:
        """containerd's config.toml."""
        return (
            f'version = 2\nroot = "{self.base}/root"\nstate = "{self.base}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f'[grpc]\naddress = "{self.base}/sock"\n[ttrpc]\naddress = "{self.base}/ttrpc"\n'
        )

    def settings(self) -> dict[str, object]:
        """grit-runtime's configuration."""
        return {
            "state-dir": str(self.state),
            "log-dir": str(self.base / "logs"),
            "checkpoint-roots": [str(self.checkpoints)],
            "archive": {"unpack-dir": str(self.base / "unpacked")},
            "contents": {"pod-logs": str(self.base / "pod-logs")},
        }

    def environment(self) -> dict[str, str]:
        """containerd's environment, which its shims and so the runtime have too."""
        path = os.environ["PATH"] if self.programs is None else f"{self.programs}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "GRIT_RUNTIME_CONFIG": str(self.base / "grit.yaml")}

    def program(self, name: str) -> str:
        """A program of this containerd."""
        return name if self.programs is None else str(self.programs / name)

    @property
    def runc_root(self) -> str:
        """Where the shim has runc keep its state."""
        return f"/run/containerd/runc/{self.namespace}"

    def serve(self) -> None:
        """Start containerd."""
        with open(self.base / "containerd.log", "ab") as log:
            self._process = subprocess.Popen(
                [self.program("containerd"), "--config", str(self.base / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        try:
            wait("containerd answers", lambda: self.attempt("version").returncode == 0)
        except Failed as err:
            raise Failed(f"{err}; its log ends with:\n{self.log()[-2000:]}") from None

    def stop_serving(self) -> None:
        """Stop containerd; its shims go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def crash(self, after: Callable[[], bool]) -> None:
        """Stop containerd where it is, and kill it once something is so that its shims go on to."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            wait("its shims go on", after)
        finally:
            self._process.kill()
            self._process.wait(10)

    def remove_all(self) -> None:
        """Remove every container."""
        for container in self.ctr("containers", "ls", "--quiet").split():
            self.delete(container)

    def shims(self) -> list[int]:
        """The pids of the shims of this containerd."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd-shim" in words[0] and f"{self.base}/sock".encode() in words:
                found.append(int(entry.name))
        return found

    def bundle(self, container: str) -> Path:
        """A container's bundle, while it has a task."""
        return self.base / "state/io.containerd.runtime.v2.task" / self.namespace / container

    def _bundles(self) -> list[str]:
        """The ids of the containers that have a bundle."""
        directory = self.bundle("")
        return os.listdir(directory) if directory.exists() else []

    def _end(self) -> list[str]:
        """End whatever still runs, and remove everything; what should have been gone before."""
        self.stop_serving()
        left = [f"shim {pid}" for pid in self.shims()]
        for pid in self.shims():
            os.kill(pid, signal.SIGKILL)
        for container in self._bundles():
            left.append(f"container {container}")
            argv = [str(self.runtime), "--root", self.runc_root, "delete", "--force", container]
            subprocess.run(argv, env=self.environment(), stderr=subprocess.DEVNULL, check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if str(self.base) in line:
                left.append(f"mount {line}")
                subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        # Other programs' cgroups may go meanwhile, which os.walk bears.
        left += [f"cgroup {path}" for path, _, _ in os.walk("/sys/fs/cgroup") if Path(path).name in self._seen]
        shutil.rmtree(self.base)
        return left

    def ctr(self, *args: str) -> str:
        """Run `ctr`; its output. Raises Failed with what it said."""
        done = self.attempt(*args)
        if done.returncode:
            raise Failed(f"ctr {' '.join(args[:2])}: {done.stderr.strip()}")
        return done.stdout

    def run_sandbox(self, pod: Pod, **annotations: str) -> None:
        """Start the pod's sandbox container; the pod's own annotations reach it as they do under CRI."""
        self._run_container(pod.sandbox, {**pod.annotations("sandbox"), **annotations}, [], "sleep 100000")

    def run_app(self, pod: Pod, script: str = COUNT, **annotations: str) -> None:
        """Start the pod's container in the namespaces of its sandbox."""
        pid = self.pid(pod.sandbox)
        options = [f"--log-uri=file://{pod.log}"]
        for word, kind in (("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
            options.append(f"--with-ns={word}:/proc/{pid}/ns/{kind}")
        for destination, source in pod.make().items():
            options.append(f"--mount=type=bind,src={source},dst={destination},options=rbind:rw")
        self._run_container(pod.container, {**pod.annotations("container"), **annotations}, options, script)

    def start_pod(self, pod: Pod, **annotations: str) -> None:
        """Both, as CRI does. Annotation names: `checkpoint` and `restore_name` of grit.dev."""
        words = {f"grit.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
        self.run_sandbox(pod, **words)
        self.run_app(pod, **words)

    def checkpoint(self, pod: Pod, name: str, *, stop: bool = False) -> Path:
        """Have containerd checkpoint the pod's container: it pauses, calls the runtime, and resumes."""
        images = self.checkpoints / pod.namespace / name / "app/checkpoint"
        flags = ["--exit"] if stop else []
        self.ctr(
            "task",
            "checkpoint",
            *flags,
            "--image-path",
            str(images),
            "--work-path",
            str(self.base / "work"),
            pod.container,
        )
        return images

    def remove_pod(self, pod: Pod) -> None:
        """Kill and remove the pod's containers and directories."""
        for container in (pod.container, pod.sandbox):
            self.delete(container)
        pod.remove_directories()

    def delete(self, container: str) -> None:
        """Kill a container if it runs, and remove it."""
        self._seen.add(container)
        self.attempt("task", "delete", "--force", container)
        self.ctr("container", "rm", container)

    def status(self, container: str) -> str:
        """RUNNING, STOPPED and so on, or an empty string where there is no such task."""
        for line in self.ctr("task", "ls").splitlines()[1:]:
            words = line.split()
            if words[0] == container:
                return words[2]
        return ""

    def pid(self, container: str) -> int:
        """The host pid of a task."""
        for line in self.ctr("task", "ls").splitlines()[1:]:
            if line.split()[0] == container:
                return int(line.split()[1])
        raise Failed(f"no task {container}")

    def log(self) -> str:
        """containerd's own log."""
        return (self.base / "containerd.log").read_text()

    def _run_container(self, container: str, annotations: dict[str, str], options: list[str], script: str) -> None:
        words = [word for key, value in annotations.items() for word in ("--annotation", f"{key}={value}")]
        self.ctr(
            "run",
            "--detach",
            "--runc-binary",
            str(self.runtime),
            *words,
            *options,
            IMAGE,
            container,
            "/bin/sh",
            "-c",
            script,
        )

    def attempt(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """Run `ctr`, however it ends."""
        argv = [self.program("ctr"), "--address", str(self.base / "sock"), "--namespace", self.namespace, *args]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def _image() -> bytes:
    """An OCI image archive with nothing but busybox."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    layer = _tar(
        {"bin/busybox": busybox},
        {f"bin/{name}": "busybox" for name in APPLETS},
        ("dev", "etc", "proc", "sys", "tmp", "data"),
    )
    blobs = {_digest(layer): layer}

    def add(kind: str, value: dict[str, object]) -> dict[str, object]:
        data = json.dumps(value).encode()
        blobs[_digest(data)] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}.v1+json", "digest": _digest(data), "size": len(data)}

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = add(
        "config",
        {
            "architecture": machine,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "100000"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        },
    )
    layers = [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _digest(layer), "size": len(layer)}]
    manifest = add("manifest", {"schemaVersion": 2, "config": config, "layers": layers})
    manifest["annotations"] = {"io.containerd.image.name": IMAGE}
    index = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    return _tar({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **files}, {}, ())


def _tar(files: dict[str, bytes], links: dict[str, str], directories: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in directories:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
