"""Containers with a GPU: the machine of the integration tests, with a rootfs that is an overlay over the host's own.

Not part of `make test`: run on a machine with an NVIDIA GPU, runc, CRIU and PyTorch, as docs/gpu.md says.
"""

import glob
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import Bundle, Machine

WORK = Path(__file__).with_name("programs") / "work.py"
PYTHON = os.environ.get("GRIT_TEST_GPU_PYTHON", sys.executable)
FOREVER = 1_000_000


class GpuMachine(Machine):
    """Makes bundles that run `work.py`."""

    patience = 280.0

    def gpu_bundle(
        self, name: str, mode: str, *, devices: bool = True, driver: bool = True, gpus: Sequence[int] = (0,)
    ) -> Bundle:
        """A bundle with the GPUs of these numbers; without `devices`, only what NVIDIA_VISIBLE_DEVICES says of them;
        without `driver`, no library of it either.
        """
        made = self.bundle(name)
        upper, inner = made.path.parent / f"{name}.upper", made.path.parent / f"{name}.work"
        upper.mkdir(), inner.mkdir()
        options = f"lowerdir=/,upperdir={upper},workdir={inner}"
        self.shell("mount", "-t", "overlay", "overlay", "-o", options, str(made.path / "rootfs"))
        self.mounted.append(made.path / "rootfs")
        shutil.copy(WORK, made.data / "work.py")
        nodes = []
        for path in sorted(glob.glob("/dev/nvidia*")):
            there = os.stat(path)
            own = re.fullmatch(r"/dev/nvidia(\d+)", path)
            if stat.S_ISCHR(there.st_mode) and not (own and int(own[1]) not in gpus):
                number = {"major": os.major(there.st_rdev), "minor": os.minor(there.st_rdev)}
                nodes.append({"path": path, "type": "c", **number, "fileMode": 0o666, "uid": 0, "gid": 0})

        def fill(config):
            process = config["process"]
            process["args"] = [PYTHON, "/data/work.py", mode, "/data/out", str(FOREVER)]
            process["env"] = [
                "PATH=/usr/local/nvidia/bin:/usr/bin:/bin",
                "HOME=/tmp",
                f"NVIDIA_VISIBLE_DEVICES={','.join(map(str, gpus))}",
                f"LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH', '') if driver else ''}",
            ]
            process["cwd"] = "/"
            for mount in config["mounts"]:  # NCCL takes 34 MiB for each connection
                if mount["destination"] == "/dev/shm":
                    mount["options"] = [word for word in mount["options"] if not word.startswith("size=")]
            if driver and os.path.isdir("/usr/local/nvidia"):
                libraries = {"destination": "/usr/local/nvidia", "type": "bind", "source": "/usr/local/nvidia"}
                config["mounts"].append({**libraries, "options": ["rbind", "ro"]})
            if devices:
                config["linux"]["devices"] = nodes
                numbers = [{"major": n["major"], "minor": n["minor"]} for n in nodes]
                rules = [{"allow": True, "type": "c", **number, "access": "rwm"} for number in numbers]
                config["linux"]["resources"]["devices"] += rules

        made.edit(fill)
        return made

    def begin(self, name: str, mode: str, *, env: Sequence[str] = (), **more: Any) -> Bundle:
        """Run a container with plain runc until it has written three lines."""
        bundle = self.gpu_bundle(name, mode, **more)
        bundle.edit(lambda config: config["process"]["env"].extend(env))
        self.runc("run", "-d", "--bundle", str(bundle.path), name).ok()
        self.wait(lambda: len(lines(bundle)) >= 3, timeout=90)
        return bundle

    def create(self, name: str, bundle: Bundle, **env: str) -> None:
        """Run a container by grit-runtime until it has written three lines."""
        self.grit("create", "--bundle", str(bundle.path), name, **env).ok()
        self.grit("start", name).ok()
        self.wait(lambda: len(lines(bundle)) >= 3, timeout=90)

    def capture(self, name: str, *flags: str) -> Path:
        """Checkpoint a container."""
        images = self.checkpoints / f"of-{name}"
        self.grit("checkpoint", *flags, "--image-path", str(images), name).ok()
        return images

    def bring_back(
        self,
        images: Path,
        name: str,
        old: Bundle,
        *,
        env: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **more: Any,
    ) -> Bundle:
        """Restore as another container, whose data directory holds what the old one's did."""
        bundle = self.gpu_bundle(name, "none", **more)
        bundle.edit(lambda config: config.setdefault("annotations", {}).update(annotations or {}))
        for file in old.data.iterdir():
            shutil.copy(file, bundle.data)
        # No source of a mount of the old container may be needed.
        shutil.move(old.path / "pods", old.path.parent / f"{old.path.name}.gone")
        self.grit("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), name, **(env or {})).ok()
        return bundle

    def goes_on(self, bundle: Bundle, count: int = 5) -> None:
        """The program writes more lines."""
        seen = len(lines(bundle))
        self.wait(lambda: len(lines(bundle)) >= seen + count, timeout=60)

    def clean(self) -> None:
        """Containers, then what was mounted."""
        super().clean()
        # runc 1.1.5 itself leaves the empty cgroup of a container whose CUDA process takes its time to die.
        self.wait(lambda: not any(_remove(path) for bundle in self.bundles for path in bundle.cgroups()), 30)
        shutil.rmtree(self.checkpoints)  # tens of GiB
        subprocess.run(["sync", "-f", str(self.path)], check=False)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: time on such a machine is short, and may end before the summary."""
    if report.failed:
        print(f"\n{report.nodeid} {report.when}: {report.longreprtext[-1500:]}", flush=True)
    elif report.when == "call":
        print(f"{report.nodeid} {report.outcome} {report.duration:.1f} s", flush=True)


def lines(bundle: Bundle, name: str = "out") -> list[str]:
    """What the program has written."""
    file = bundle.data / name
    return file.read_text().split("\n")[:-1] if file.exists() else []


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[GpuMachine]:
    """A machine for containers with a GPU, which leaves nothing behind."""
    made = GpuMachine(tmp_path)
    yield made
    made.clean()
    assert made.leftovers() == []


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup; True if it is still in use."""
    try:
        cgroup.rmdir()
    except OSError:
        return True
    return False


class References:
    """Uninterrupted runs of the same programs, in the background."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, mode: str, steps: int) -> None:
        """Start one."""
        argv = [PYTHON, str(WORK), mode, str(self._path / mode), str(steps)]
        self._running[mode] = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def ended(self) -> None:
        """Wait for all: nobody but the test uses the GPU then."""
        for process in self._running.values():
            process.wait(300)

    def check(self, mode: str, got: list[str]) -> None:
        """Compare, line by line, as many as the uninterrupted run has."""
        assert self._running[mode].wait(300) == 0
        expected = (self._path / mode).read_text().split("\n")[:-1]
        assert len(got) >= 8
        assert got[: len(expected)] == expected[: len(got)]


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """The runs that all tests compare with."""
    made = References(tmp_path_factory.mktemp("references"))
    for mode in ("seeded", "training", "graphs", "tokens", "cupy", "jax"):
        made.begin(mode, 150)
    return made
