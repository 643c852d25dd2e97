"""Real dockerd with grit-runtime in its `runtimes`: a container's life, docker's checkpoints, restore by annotation."""

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pods import Containerd, Failed, wait

from tests import registered
from tests.requirements import RUNTIME, dockers

pytestmark = [pytest.mark.needs("root", "runc", "criu", "containerd", "busybox", "dockerd", "runtime")]

IMAGE = "busybox:test"
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
TRAP = f"trap 'exit 7' TERM; {COUNT}"
# dockerd makes these, whatever its flags say; 20.10 puts a key into the first.
OUTSIDE = (Path("/etc/docker"), Path("/run/docker"))


class Docker(Containerd):
    """A dockerd, on a containerd of its own, whose daemon.json is the one that our `install` writes."""

    namespace = "moby"

    def __init__(self, programs: Path) -> None:
        """The folder has dockerd and docker, and its containerd unless it goes with the system's."""
        super().__init__(RUNTIME, programs if (programs / "containerd").exists() else None)
        self.docker_programs = programs
        self.config = self.base / "host/etc/docker/daemon.json"
        self._outside = [path for path in OUTSIDE if not path.exists()]
        self._dockerd: subprocess.Popen[bytes] | None = None

    @property
    def runc_root(self) -> str:
        return f"{self.base}/exec/runtime-runc/moby"

    @property
    def netns(self) -> Path:
        """Where dockerd mounts network namespaces."""
        return self.base / "exec/netns"

    def environment(self) -> dict[str, str]:
        """What the client needs, too."""
        own = {"DOCKER_HOST": f"unix://{self.base}/docker.sock", "DOCKER_CONFIG": f"{self.base}/client"}
        own["TMPDIR"] = f"{self.base}/tmp"  # docker leaves every checkpoint there, too
        return {**super().environment(), **own}

    def serve(self) -> None:
        """Start containerd, then dockerd without the runtime: what registers it comes while it runs."""
        (self.base / "tmp").mkdir()
        super().serve()
        self.config.parent.mkdir(parents=True)
        self.config.write_text("{}")
        flags = {
            "config-file": self.config,
            "data-root": self.base / "data",
            "exec-root": self.base / "exec",
            "pidfile": self.base / "docker.pid",
            "host": f"unix://{self.base}/docker.sock",
            "containerd": self.base / "sock",
            "storage-driver": "overlay2",
            "cgroup-parent": f"/{self.base.name}",
            "exec-opt": "native.cgroupdriver=cgroupfs",
            "bridge": "none",
            "iptables": "false",
            "ip6tables": "false",
            "userland-proxy": "false",
            "experimental": "true",
        }
        # In a network namespace of its own: with --bridge=none it deletes a docker0, though it be another dockerd's
        # (daemon_unix.go, removeDefaultBridgeInterface), and it switches forwarding on.
        alone = ("unshare", "--net")
        with open(self.base / "dockerd.log", "ab") as log:
            self._dockerd = subprocess.Popen(
                [*alone, self.docker_programs / "dockerd", *(f"--{name}={value}" for name, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        try:
            wait("dockerd answers", lambda: self.try_docker("version").returncode == 0, 30)
        except Failed as err:
            raise Failed(f"{err}; its log ends with:\n{(self.base / 'dockerd.log').read_text()[-2000:]}") from None
        self.docker("import", str(self._image()), IMAGE)

    def stop_serving(self) -> None:
        """Stop dockerd, then containerd."""
        if self._dockerd is not None:
            self._dockerd.terminate()
            self._dockerd.wait(30)
        # dockerd leaves the one of the host, with runc as well.
        if (self.netns / "default").exists():
            subprocess.run(["umount", "--lazy", self.netns / "default"], stderr=subprocess.DEVNULL, check=False)
        super().stop_serving()

    def __exit__(self, *_: object) -> None:
        try:
            super().__exit__(*_)
        finally:
            for path in self._outside:
                shutil.rmtree(path, ignore_errors=True)
        cgroups = list(Path("/sys/fs/cgroup").glob(f"**/{self.base.name}"))
        assert cgroups
        for path in cgroups:
            path.rmdir()

    def remove_all(self) -> None:
        """Remove every container."""
        for container in self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", container)

    def reload(self) -> None:
        """What `systemctl reload docker` does."""
        assert self._dockerd is not None
        self._dockerd.send_signal(signal.SIGHUP)

    def try_docker(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """Run docker, however it ends."""
        argv = [self.docker_programs / "docker", *args]
        env = self.environment()
        return subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )

    def docker(self, *args: str) -> str:
        """Run docker; its output. Raises Failed with what it said."""
        done = self.try_docker(*args)
        if done.returncode:
            raise Failed(f"docker {' '.join(args[:2])}: {done.stderr.strip()}")
        return done.stdout.strip()

    def made(self, name: str, script: str = COUNT, *flags: str, verb: str = "run") -> str:
        """Run a container, or only create it; its id."""
        runs = ["--detach"] if verb == "run" else []
        network = () if "--network" in flags else ("--network", "none")
        argv = [*runs, "--runtime", "grit", *network, *flags, "--name", name, IMAGE, "/bin/sh", "-c", script]
        return self.docker(verb, *argv)

    def counting(self, name: str, *flags: str, script: str = COUNT) -> str:
        """Run a container and wait until it counts; its id."""
        made = self.made(name, script, *flags)
        self.goes_on(name, 5)
        return made

    def numbers(self, name: str) -> list[int]:
        """What the counter has said."""
        return [int(line) for line in self.docker("logs", name).split()]

    def goes_on(self, name: str, more: int = 3, last: int = 0) -> None:
        """The counter counts on from `last`, without a gap."""
        seen = len(self.numbers(name))
        wait("it counts on", lambda: len(self.numbers(name)) >= seen + more)
        numbers = self.numbers(name)
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))

    def status(self, container: str) -> str:
        """created, running, exited and so on."""
        return self.docker("inspect", "--format", "{{.State.Status}}", container)

    def stopped(self, name: str) -> int:
        """Wait for its end; the last number that it said."""
        wait("it ends", lambda: self.status(name) == "exited")
        return self.numbers(name)[-1]

    def checkpoint_of(self, container: str, name: str) -> Path:
        """Where dockerd keeps a container's checkpoint."""
        return self.base / "data/containers" / container / "checkpoints" / name

    def start_from(self, checkpoint: str, name: str) -> None:
        """`docker start --checkpoint`; skips the test where this docker can't, whatever the runtime."""
        deadline = time.monotonic() + 15
        while (done := self.try_docker("start", "--checkpoint", checkpoint, name)).returncode:
            if "bind-mount /proc/0/ns/net" in done.stderr:
                pytest.skip("it wants the network namespace of a task that isn't there yet: containerd issue 12141")
            # Since docker 26: until containerd has collected what `checkpoint create` left in its content store.
            assert "already exists" in done.stderr, done.stderr
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.2)

    def _image(self) -> Path:
        rootfs = self.base / "rootfs/bin"
        rootfs.mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "busybox", rootfs / "busybox")
        for name in ("sh", "sleep", "echo", "cat", "touch", "ls"):
            (rootfs / name).symlink_to("busybox")
        with tarfile.open(self.base / "rootfs.tar", "w") as archive:
            archive.add(rootfs.parent, ".")
        return self.base / "rootfs.tar"


def _runtimes(docker: Docker) -> dict[str, object]:
    found: dict[str, object] = json.loads(docker.docker("info", "--format", "{{json .Runtimes}}"))
    return found


def _registered(docker: Docker) -> None:
    docker.config.unlink()
    registered.install("docker", docker.base / "host")
    docker.reload()
    wait("dockerd knows the runtime", lambda: "grit" in _runtimes(docker))


@pytest.fixture(scope="module", params=dockers())
def containerd(request: pytest.FixtureRequest) -> Iterator[Docker]:
    """dockerd, in place of the containerd that other modules use, with the runtime registered while it runs."""
    with Docker(dockers()[request.param]) as made:
        assert "grit" not in _runtimes(made)
        _registered(made)
        yield made


@pytest.fixture
def docker(containerd: Docker) -> Docker:
    """The same by its name."""
    return containerd


@pytest.fixture(autouse=True)
def nothing_is_left(containerd: Docker) -> Iterator[None]:
    """After each test nothing of ours, no process and no network namespace is there."""
    yield
    containerd.remove_all()
    assert list(containerd.state.rglob("*/*")) == []
    names = [name for _, directories, files in os.walk(containerd.base) for name in (*directories, *files)]
    assert [name for name in names if name.startswith(".grit-")] == []
    wait("the shims end", lambda: not containerd.shims())
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    own = {f"{containerd.base}/data", f"{containerd.netns}/default"}  # dockerd's, for as long as it runs
    assert {path for path in mounted if path.startswith(str(containerd.base))} <= own


def test_a_container_lives(docker: Docker) -> None:
    docker.counting("app", script=TRAP)
    assert docker.docker("exec", "app", "/bin/echo", "within") == "within"
    assert docker.try_docker("exec", "app", "/bin/sh", "-c", "exit 9").returncode == 9
    assert docker.docker("inspect", "--format", "{{.HostConfig.Runtime}}", "app") == "grit"
    assert "trap" in docker.docker("top", "app")
    docker.docker("pause", "app")
    assert docker.status("app") == "paused"
    docker.docker("unpause", "app")
    docker.goes_on("app")
    docker.docker("stop", "app")
    assert docker.docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "app") == "exited 7"
    once = ["run", "--rm", "--runtime", "grit", "--network", "none", IMAGE, "/bin/sh", "-c", "echo once; exit 7"]
    done = docker.try_docker(*once)
    assert (done.stdout, done.returncode) == ("once\n", 7)


def test_a_checkpoint_leaves_the_container_running(docker: Docker) -> None:
    container = docker.counting("app")
    docker.docker("checkpoint", "create", "--leave-running", "app", "first")
    docker.goes_on("app")
    assert "first" in docker.docker("checkpoint", "ls", "app")
    assert (docker.checkpoint_of(container, "first") / "grit.json").exists()
    assert docker.state.is_dir(), "GRIT_RUNTIME_CONFIG has come through dockerd, containerd and the shim"
    assert docker.docker("exec", "app", "/bin/echo", "within") == "within"


@pytest.mark.parametrize("flags", [("--network", "none"), ("--network", "host", "--tty")], ids=["none", "host-tty"])
def test_a_container_starts_from_its_checkpoint(docker: Docker, flags: tuple[str, ...]) -> None:
    docker.counting("app", *flags, script=TRAP)
    docker.docker("checkpoint", "create", "app", "first")
    docker.stopped("app")
    docker.start_from("first", "app")
    docker.goes_on("app")
    assert docker.docker("exec", "app", "/bin/echo", "within") == "within"
    docker.docker("checkpoint", "create", "app", "second")
    docker.stopped("app")
    docker.start_from("second", "app")
    docker.goes_on("app")
    docker.docker("stop", "app")
    assert docker.docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "app") == "exited 7"


def test_another_container_goes_on_where_one_was(docker: Docker) -> None:
    old = docker.counting("old")
    docker.docker("exec", "old", "/bin/sh", "-c", "echo rootfs > /made; echo shm > /dev/shm/made")
    docker.docker("checkpoint", "create", "old", "first")
    last = docker.stopped("old")
    new = docker.made("new", verb="create")
    elsewhere = docker.try_docker(
        "start", "--checkpoint-dir", str(docker.checkpoint_of(old, "")), "--checkpoint", "first", "new"
    )
    assert "custom checkpointdir is not supported" in elsewhere.stderr, "docker's own, so the copy is needed"
    shutil.copytree(docker.checkpoint_of(old, "first"), docker.checkpoint_of(new, "first"))
    docker.docker("rm", "old")
    docker.start_from("first", "new")
    docker.goes_on("new", last=last)
    assert docker.docker("exec", "new", "/bin/cat", "/made", "/dev/shm/made") == "rootfs\nshm"
    assert docker.docker("exec", "new", "/bin/cat", "/etc/hostname") == new[:12]


def test_a_container_comes_back_by_annotation(docker: Docker) -> None:
    if "--annotation" not in docker.docker("run", "--help"):
        pytest.skip("this docker has no annotations (24 has)")
    base = docker.checkpoints / "default/first"
    base.mkdir(parents=True)
    docker.counting("old")
    docker.docker("checkpoint", "create", "--checkpoint-dir", str(base), "old", "checkpoint")
    last = docker.stopped("old")
    docker.docker("rm", "old")
    new = docker.made("new", COUNT, "--annotation", f"grit.dev/checkpoint={base}")
    docker.goes_on("new", last=last)
    assert docker.docker("exec", "new", "/bin/cat", "/etc/hostname") == new[:12]
    docker.docker("stop", "--time", "0", "new")
    seen = len(docker.numbers("new"))
    docker.docker("start", "new")
    wait("it is back where it was", lambda: docker.numbers("new")[seen : seen + 2] == [last + 1, last + 2])
    lost = f"grit.dev/checkpoint={base}-lost"
    with pytest.raises(Failed, match=r"no such checkpoint: .*-lost") as caught:
        docker.made("lost", COUNT, "--annotation", lost)
    assert "Are you trying to mount" not in str(caught.value), "dockerd's guess where errno's words are in the error"


def test_a_damaged_checkpoint_is_refused_and_the_container_can_start(docker: Docker) -> None:
    container = docker.counting("app", "--network", "host")
    docker.docker("checkpoint", "create", "app", "first")
    docker.stopped("app")
    (docker.checkpoint_of(container, "first") / "pages-1.img").unlink()
    done = docker.try_docker("start", "--checkpoint", "first", "app")
    assert done.returncode
    assert "is damaged: pages-1.img is missing" in done.stderr
    assert docker.status("app") == "exited"
    seen = len(docker.numbers("app"))
    docker.docker("start", "app")
    wait("it counts anew", lambda: docker.numbers("app")[seen : seen + 3] == [1, 2, 3])


def test_a_reload_bears_running_containers(docker: Docker) -> None:
    docker.counting("app")
    registered.uninstall("docker", docker.base / "host")
    docker.config.write_text("{}")
    docker.reload()
    _registered(docker)
    docker.goes_on("app")
    docker.docker("stop", "--time", "0", "app")
    docker.docker("start", "app")
    assert docker.status("app") == "running"
