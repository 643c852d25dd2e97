"""Real podman with grit-runtime as its OCI runtime: a container's life, and its move to another name by an archive."""

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import registered

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "podman", "runtime"), pytest.mark.timeout(180)]

COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
# podman asks for more open files than a machine without CAP_SYS_RESOURCE may give.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


class Podman:
    """podman with storage, state and configuration of the test's own; the runtime is registered by our `install`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        registered.install("podman", path / "host")
        conf = path / "containers.conf"
        drop_in = (path / "host/etc/containers/containers.conf.d/90-grit.conf").read_text()
        conf.write_text(f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n{drop_in}')
        (path / "grit.yaml").write_text(f"state-dir: {path}/state\nlog-dir: {path}/logs\n")
        self.env = {**os.environ, "CONTAINERS_CONF": str(conf), "GRIT_RUNTIME_CONFIG": str(path / "grit.yaml")}

    def run(self, *args: str, code: int = 0) -> str:
        """Run podman; its output."""
        places = ["--root", str(self.path / "storage"), "--runroot", str(self.path / "run"), "--storage-driver", "vfs"]
        runtime = ["--runtime", "grit", "--runtime-flag", f"root={self.path}/runc"]
        done = subprocess.run(
            ["podman", *places, *runtime, *args],
            env=self.env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=90,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def numbers(self, name: str) -> list[int]:
        """What the counter has said."""
        return [int(line) for line in self.run("logs", name).split()]

    def wait(self, name: str, count: int) -> None:
        """Wait until it has said so many."""
        deadline = time.monotonic() + 30
        while len(self.numbers(name)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def podman() -> Iterator[Podman]:
    """podman with an image of busybox. It wants a short path: a socket is in it."""
    with tempfile.TemporaryDirectory(prefix="grit-podman-") as path:
        yield from _podman(Path(path))


def _podman(tmp_path: Path) -> Iterator[Podman]:
    made = Podman(tmp_path)
    rootfs = tmp_path / "rootfs/bin"
    rootfs.mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", rootfs / "busybox")
    for name in ("sh", "sleep", "echo", "cat", "touch"):
        (rootfs / name).symlink_to("busybox")
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(rootfs.parent, ".")
    made.run("import", str(tmp_path / "image.tar"), "busybox:test")
    yield made
    made.run("rm", "--force", "--all", "--time", "0")
    _wait_for_cleanups(str(tmp_path))
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if str(tmp_path) in line:
            subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
    assert list((tmp_path / "state").rglob("*/*")) == []
    # What podman leaves below --runtime-flag root=... it leaves with runc, too: its `cleanup` isn't told the flag.


def _wait_for_cleanups(path: str) -> None:
    """conmon starts `podman container cleanup`, which makes podman's directories anew, when a container ends; nobody
    waits for it.
    """
    deadline = time.monotonic() + 30
    while any(path.encode() in _command(entry) for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "podman or conmon is still there"
        time.sleep(0.05)


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has gone
        return b""


def test_a_container_lives(podman: Podman) -> None:
    podman.run("run", "-d", "--network", "none", *LIMITS, "--name", "c", "busybox:test", "/bin/sh", "-c", COUNT)
    podman.wait("c", 3)
    assert podman.run("exec", "c", "/bin/echo", "within") == "within\n"
    assert podman.run("inspect", "--format", "{{.State.Status}} {{.OCIRuntime}}", "c").split() == ["running", "grit"]
    podman.run("pause", "c")
    podman.run("unpause", "c")
    podman.run("stop", "--time", "0", "c")
    assert podman.run("inspect", "--format", "{{.State.Status}}", "c").strip() in ("exited", "stopped")
    out = podman.run(
        "run", "--rm", "--network", "none", *LIMITS, "busybox:test", "/bin/sh", "-c", "echo once; exit 7", code=7
    )
    assert out == "once\n"


def test_a_container_moves_to_another_name(podman: Podman, tmp_path: Path) -> None:
    podman.run("run", "-d", "--network", "none", *LIMITS, "--name", "old", "busybox:test", "/bin/sh", "-c", COUNT)
    podman.wait("old", 3)
    podman.run("exec", "old", "/bin/touch", "/made-before")
    archive = tmp_path / "checkpoint.tar"
    podman.run("container", "checkpoint", "--compress", "none", "--export", str(archive), "old")
    with tarfile.open(archive) as made:
        assert "checkpoint/grit.json" in made.getnames()
    last = podman.numbers("old")[-1]
    podman.run("rm", "old")
    podman.run("container", "restore", "--import", str(archive), "--name", "new")
    seen = len(podman.numbers("new"))
    podman.wait("new", seen + 3)
    numbers = podman.numbers("new")
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert last <= numbers[-4] or last in numbers
    podman.run("exec", "new", "/bin/cat", "/made-before")


def test_a_checkpoint_in_place_and_its_restore(podman: Podman) -> None:
    podman.run("run", "-d", "--network", "none", *LIMITS, "--name", "c", "busybox:test", "/bin/sh", "-c", COUNT)
    podman.wait("c", 3)
    podman.run("container", "checkpoint", "c")
    assert podman.run("inspect", "--format", "{{.State.Checkpointed}}", "c").strip() == "true"
    seen = len(podman.numbers("c"))
    podman.run("container", "restore", "c")
    podman.wait("c", seen + 3)
    numbers = podman.numbers("c")
    assert numbers == list(range(1, len(numbers) + 1))
