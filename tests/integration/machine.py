"""A place for real containers: bundles with kubelet's kind of mounts, real runc and CRIU, and proof that nothing is
left.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grit_runtime.host import effects

BOOT = Path(__file__).with_name("boot.py")
COUNT = "i=0; while :; do i=$((i+1)); echo $i >> /data/out; sleep 0.02; done"
APPLETS = (
    "[",
    "sh",
    "sleep",
    "cat",
    "echo",
    "ls",
    "seq",
    "mkdir",
    "kill",
    "true",
    "trap",
    "ln",
    "rm",
    "touch",
    "mkfifo",
    "chmod",
    "mv",
    "rmdir",
    "dd",
)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def ok(self) -> "Ran":
        assert self.code == 0, f"exit code {self.code}\nstdout: {self.out}\nstderr: {self.err}"
        return self


@dataclass(kw_only=True)
class Bundle:
    """A bundle as a pod of its own has it: new UID, new hash, new sandbox, new rootfs."""

    path: Path
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    written: bytes = b""
    """config.json as the test wrote it last."""

    @property
    def data(self) -> Path:
        """The host directory that is /data inside."""
        return self.path / "pods" / self.uid / "volumes/kubernetes.io~empty-dir/data"

    def numbers(self) -> list[int]:
        """What the counter has written."""
        file = self.data / "out"
        return [int(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def config(self) -> dict[str, Any]:
        """config.json as it is now."""
        loaded: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        return loaded

    @property
    def cgroup(self) -> str:
        """`linux.cgroupsPath` that the bundle was made with."""
        return f"/grit-test-{self.uid}"

    def cgroups(self) -> list[Path]:
        """The cgroups of that path that exist, in cgroup v1's hierarchies or in v2's."""
        mount = Path("/sys/fs/cgroup")
        return [path for root in (mount, *mount.iterdir()) if (path := root / self.cgroup[1:]).is_dir()]

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change config.json."""
        config = self.config()
        change(config)
        self.written = json.dumps(config).encode()
        (self.path / "config.json").write_bytes(self.written)

    def annotate(self, **annotations: str) -> None:
        """Add annotations; `__` stands for what Python's names can't hold."""
        words = {"checkpoint": "grit.dev/checkpoint", "restore_name": "grit.dev/restore-name"}
        cri = "io.kubernetes.cri."
        known = {
            **words,
            "type": f"{cri}container-type",
            "name": f"{cri}container-name",
            "namespace": f"{cri}sandbox-namespace",
        }
        self.edit(lambda c: c.setdefault("annotations", {}).update({known[k]: v for k, v in annotations.items()}))


class Machine:
    """Runs runc and grit-runtime with state directories of the test's own."""

    patience = 60.0
    """Seconds that a call may take."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "runc"
        self.state = path / "state"
        self.checkpoints = path / "checkpoints"
        self.checkpoints.mkdir()
        self.logs = path / "logs"
        self.unpacked = path / "unpacked"
        self.config = path / "config.yaml"
        self.configure()
        self.bundles: list[Bundle] = []
        self._node = effects.cgroup_options()
        self.mounted: list[Path] = []
        """What the test mounted on the host."""

    def configure(self, **more: Any) -> None:
        """Write grit-runtime's configuration (JSON is YAML)."""
        base = {
            "state-dir": str(self.state),
            "log-dir": str(self.logs),
            "checkpoint-roots": [str(self.checkpoints)],
            "archive": {"unpack-dir": str(self.unpacked)},
            # A bundle of a test is in no namespace, and its hooks mount what the test made.
            "trust": {"host-mounts": [str(self.path)], "namespaces": {"": ["*"]}},
        }
        self.config.write_text(json.dumps({**base, **{k.replace("_", "-"): v for k, v in more.items()}}))

    def bundle(self, name: str, script: str = COUNT) -> Bundle:
        """Make a bundle whose container runs `script` in a shell."""
        made = Bundle(path=self.path / name)
        rootfs = made.path / "rootfs"
        for directory in ("bin", "proc", "dev", "sys", "tmp", "etc", "data", "var/run/secrets/token", "dev/shm"):
            (rootfs / directory).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "busybox", rootfs / "bin/busybox")
        for applet in APPLETS:
            (rootfs / "bin" / applet).symlink_to("busybox")
        made.data.mkdir(parents=True)
        # A dump may fall into the moment in which the counter has it open; then it must be there at the restore.
        (made.data / "out").touch()
        pod = made.path / "pods" / made.uid
        binds = {"/data": made.data}
        for destination, source in {
            "/etc/hosts": pod / "etc-hosts",
            "/dev/termination-log": pod / "containers/app" / uuid.uuid4().hex[:8],
            "/etc/hostname": made.path / "sandboxes" / uuid.uuid4().hex / "hostname",
        }.items():
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(f"{name}\n")
            binds[destination] = source
        token = pod / f"volumes/kubernetes.io~projected/kube-api-access-{uuid.uuid4().hex[:5]}"
        token.mkdir(parents=True)
        (token / "token").write_text(f"token of {name}\n")
        binds["/var/run/secrets/token"] = token
        subprocess.run(["runc", "spec"], cwd=made.path, check=True)
        made.edit(lambda config: _fill(config, script, binds, made.cgroup))
        self.bundles.append(made)
        return made

    def runc(self, *args: str, **env: str) -> Ran:
        """Run runc."""
        ran = self._run(["runc", "--root", str(self.root), *args], env)
        if args[0] in ("checkpoint", "restore"):
            self.put_node_back()
        return ran

    def put_node_back(self) -> None:
        """Undo what CRIU does to the node's cgroup2 mount when we don't call it."""
        for option in self._node:
            option.undo()

    def grit(self, *args: str, **env: str) -> Ran:
        """Run grit-runtime as containerd does; `err` is the last error of its log, as containerd reads it."""
        log = self.path / "log.json"
        log.unlink(missing_ok=True)
        ran = self._run(self.argv(*args), env)
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        errors = [entry["msg"] for entry in entries if entry["level"] == "error"]
        if errors:
            assert "\n" not in errors[-1]
            assert entries[-1]["level"] == "error", "the last line of the log is not the error"
        return Ran(code=ran.code, out=ran.out, err=errors[-1] if errors else ran.err)

    def argv(self, *args: str) -> list[str]:
        """grit-runtime's command line as containerd's."""
        options = ["--root", str(self.root), "--log", str(self.path / "log.json"), "--log-format", "json"]
        return [sys.executable, "-I", str(BOOT), *options, *args]

    def environment(self) -> dict[str, str]:
        """The environment of every call."""
        return {**os.environ, "GRIT_RUNTIME_CONFIG": str(self.config)}

    def wait_for_effect(self, kind: str) -> Path:
        """Wait until a journal holds an applied effect of this kind."""
        found: list[Path] = []

        def there() -> bool:
            found[:] = [j for j in self.state.rglob("journal") if f'"effect":"{kind}"' in j.read_text()]
            return bool(found)

        self.wait(there)
        return found[0]

    def start(self, name: str, bundle: Bundle) -> None:
        """Run a container with plain runc and wait until it counts."""
        self.runc("run", "-d", "--bundle", str(bundle.path), name).ok()
        self.wait(lambda: len(bundle.numbers()) >= 3)

    def status(self, name: str) -> str:
        """What runc says of a container."""
        ran = self.runc("state", name)
        return str(json.loads(ran.out)["status"]) if ran.code == 0 else "gone"

    def state_of(self, name: str) -> dict[str, Any]:
        """What runc says of a container, whole."""
        state: dict[str, Any] = json.loads(self.runc("state", name).ok().out)
        return state

    def shell(self, *argv: str) -> None:
        """Run a program of the host that must succeed."""
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=30)

    def counts(self, bundle: Bundle) -> None:
        """The counter goes on, with no number left out or twice."""
        seen = len(bundle.numbers())
        self.wait(lambda: len(bundle.numbers()) > seen)
        numbers = bundle.numbers()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    def wait(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    def containers(self) -> list[str]:
        """The ids that runc knows."""
        return sorted(os.listdir(self.root)) if self.root.exists() else []

    def leftovers(self) -> list[str]:
        """Everything of ours that is still there."""
        found = [str(p) for p in self.state.rglob("*")] if self.state.exists() else []
        found += [str(p) for p in self.path.rglob("*") if ".grit-" in p.name]
        for bundle in self.bundles:
            found += [str(path) for path in bundle.cgroups() if not self.containers()]
        mountinfo = Path("/proc/self/mountinfo").read_text()
        return found + [line for line in mountinfo.splitlines() if str(self.path) in line]

    def disturbed(self) -> list[str]:
        """Bundles and checkpoints that hold something that neither the test nor a complete dump put there."""
        found = []
        for bundle in self.bundles:
            names = {p.name for p in bundle.path.iterdir()} if bundle.path.exists() else set()
            found += [f"{bundle.path}/{name}" for name in names - {"config.json", "pods", "rootfs", "sandboxes"}]
            if "config.json" in names and (bundle.path / "config.json").read_bytes() != bundle.written:
                found.append(f"{bundle.path}/config.json was edited")
        for manifest in self.checkpoints.rglob("grit.json"):
            try:
                listed = {entry["name"] for entry in json.loads(manifest.read_text())["files"]}
            except (ValueError, KeyError):
                continue  # damaged by the test
            there = {p.name for p in manifest.parent.iterdir()}
            found += [f"{manifest.parent}/{name}" for name in there - listed - {"grit.json", "pages-99.img"}]
        return found

    def clean(self) -> None:
        """Delete every container."""
        for name in self.containers():
            self.runc("delete", "--force", name)
        for path in reversed(self.mounted):
            subprocess.run(["umount", "--lazy", str(path)], check=False, stderr=subprocess.DEVNULL)

    def _run(self, argv: list[str], env: dict[str, str]) -> Ran:
        # These verbs get the container's stdio, and a file outside the container is nothing that CRIU can dump.
        output = subprocess.DEVNULL if {"run", "create", "restore"} & set(argv) else subprocess.PIPE
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**self.environment(), **env},
            cwd=self.path,
            check=False,
            timeout=self.patience,
        )
        return Ran(code=done.returncode, out=(done.stdout or b"").decode(), err=(done.stderr or b"").decode())


def tree(path: Path) -> dict[str, bytes]:
    """A directory's files and links with their content, to compare."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            found[str(file)] = os.readlink(file).encode()
        elif file.is_file():
            found[str(file)] = file.read_bytes()
        else:
            found[str(file)] = b"a directory"
    return found


def _fill(config: dict[str, Any], script: str, binds: dict[str, Path], cgroup: str) -> None:
    config["process"].update(terminal=False, args=["/bin/sh", "-c", script], rlimits=[])
    config["root"]["readonly"] = False
    config["linux"]["cgroupsPath"] = cgroup  # two runs of the tests may use one id
    if os.environ.get("GRIT_TEST_HOST_NETWORK"):
        # CRIU locks a network namespace of the container's own with iptables, which not every machine has.
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [entry for entry in namespaces if entry["type"] != "network"]
    config["mounts"] += [
        {"destination": d, "type": "bind", "source": str(s), "options": ["rbind", "rw"]} for d, s in binds.items()
    ]
