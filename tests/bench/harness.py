"""Containers that are checkpointed and restored by plain runc and by grit-runtime, in turn, with the time of whole
processes; and figures of what that gave.
"""

import contextlib
import json
import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grit_runtime.host import effects

RUNC, GRIT = "runc", "grit-runtime"
TOOLS = (RUNC, GRIT)
VERBS = ("checkpoint", "restore")
TMPFS = Path("/dev/shm")
PATIENCE = 300.0  # seconds
WORTH_WARMING = 32 << 20
THREADS = min(16, len(os.sched_getaffinity(0)))
"""As many as grit-runtime takes."""
_SILENT: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_SUBJECT = Path(__file__).with_name("subject.c")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What runs in the container that is measured."""

    words: tuple[str, ...]
    """The arguments of subject.c."""
    mounts: int = 0
    """Bind mounts beside the usual ones."""
    needs: int = 0
    """Bytes of memory, without its images."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One call, and what its log says of memory."""

    seconds: float
    memory_seconds: float | None = None
    memory_bytes: int = 0


@dataclass(kw_only=True)
class Series:
    """The same call again and again."""

    verb: str
    tool: str
    runs: list[Ran] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """All of them."""
        return [ran.seconds for ran in self.runs]

    @property
    def median(self) -> float:
        """The seconds in the middle."""
        return statistics.median(self.seconds)

    def figures(self) -> dict[str, Any]:
        """What goes into the report."""
        low, middle, high = quartiles(self.seconds)
        found: dict[str, Any] = {
            "verb": self.verb, "tool": self.tool, "q1": low, "median": middle, "q3": high, "seconds": self.seconds,
        }  # fmt: skip
        phases = [ran.memory_seconds for ran in self.runs if ran.memory_seconds]
        if phases:
            found["memory_seconds"] = statistics.median(phases)
            found["memory_bytes"] = self.runs[0].memory_bytes
        return found


class Place:
    """Where the containers, their images and the state of both runtimes are: a directory, on tmpfs or a disk."""

    def __init__(self, path: Path, runtime: str, images: Path | None = None) -> None:
        self.path, self.runtime, self.runc = path, runtime, program("runc")
        self.root, self.bundle = path / "root", path / "bundle"
        self.images, self._on_a_disk = (images or path) / "images", images is not None
        self.log, self.container = path / "log.json", ""
        self.subject = path / "subject"
        subprocess.run(
            [program("cc"), "-O2", "-Wall", "-Wextra", "-static", "-pthread", "-o", self.subject, _SUBJECT], check=True
        )
        self.state = path / "state"
        self.configure()
        self._environment = {**os.environ, "GRIT_RUNTIME_CONFIG": str(path / "config.yaml")}
        self._node = effects.cgroup_options()

    @property
    def data(self) -> Path:
        """The host directory that is /data inside."""
        return self.path / "data"

    def configure(self, **memory: str) -> None:
        """Write grit-runtime's configuration."""
        config = {"state-dir": str(self.state), "log-dir": str(self.path / "logs"), "memory": memory}
        (self.path / "config.yaml").write_text(json.dumps(config))

    def wait_until_filled(self) -> None:
        """Wait until nothing is filled behind a container any more."""
        self._wait(lambda: not any(self.state.glob(".filling*")))

    def start(self, subject: Subject) -> None:
        """Run a container with plain runc until it is set up."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)
        for path in (self.data, *(self.bundle / "rootfs" / name for name in ("proc", "dev", "sys", "data"))):
            path.mkdir(parents=True)
        shutil.copy(self.subject, self.bundle / "rootfs/subject")
        self._configure(subject)
        self.container = f"source-{uuid.uuid4().hex[:8]}"
        self._call(self.runc, "run", "-d", "--bundle", str(self.bundle), self.container)
        self._wait_for("ready")

    @contextlib.contextmanager
    def warm(self, size: int) -> Iterator[None]:
        """Have the host of a virtual machine back memory that is about to be used, and keep it: the first touch is
        several times slower, and hosts take back what is free.
        """
        if size < WORTH_WARMING:
            yield
            return
        argv = [self.subject, "warm", str((size + size // 4) >> 20), str(THREADS)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()
            process.wait()

    def touch(self, size: int) -> None:
        """The same for huge pages, of which none could be kept without breaking it up: it wears off within seconds."""
        argv = [self.subject, "touch", str(size >> 20), str(THREADS)]
        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    def checkpoint(self, tool: str) -> Ran:
        """Checkpoint the container, which ends it; on a disk, until all is on it."""
        self._remove_images()
        ran = self._measured(tool, "checkpoint", "--image-path", str(self.images), self.container)
        if self._on_a_disk:
            begun = time.perf_counter()
            subprocess.run(["sync", "--file-system", self.images], check=True)
            ran = replace(ran, seconds=ran.seconds + time.perf_counter() - begun)
        self._wait(lambda: not (self.root / self.container).exists())
        return ran

    def restore(self, tool: str) -> Ran:
        """Restore it as another container."""
        self.container = f"restored-{uuid.uuid4().hex[:8]}"
        if self._on_a_disk:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1")
        argv = ["-d", "--image-path", str(self.images), "--work-path", str(self.path / "work")]
        return self._measured(tool, "restore", *argv, "--bundle", str(self.bundle), self.container)

    def look(self, *argv: str) -> Ran:
        """One of our commands that only look."""
        return Ran(seconds=self._call(self.runtime, *argv))

    def require_good(self) -> None:
        """Have the container compare all that it has."""
        (self.data / "go").touch()
        self._wait_for("answer")
        answer = (self.data / "answer").read_text()
        if answer != "good\n":
            raise SystemExit(f"bench: what was restored is {answer}")

    def clean(self) -> None:
        """End the container, and remove the images."""
        if self.container and (self.root / self.container).exists():
            subprocess.run([self.runc, "--root", self.root, "delete", "--force", self.container], check=True)
        self._remove_images()
        self.container = ""

    def helper(self, *words: object) -> float:
        """What subject.c measures of the machine, in seconds."""
        done = subprocess.run([self.subject, *map(str, words)], check=True, capture_output=True, text=True)
        return float(done.stdout)

    @contextlib.contextmanager
    def load(self, size: int) -> Iterator[None]:
        """Every core busy with so much memory."""
        argv = [self.subject, "load", str(size >> 20), str(THREADS)]
        process = subprocess.Popen(argv, **_SILENT)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _measured(self, tool: str, *argv: str) -> Ran:
        self.log.unlink(missing_ok=True)
        seconds = self._call(self.runtime if tool == GRIT else self.runc, *argv)
        for effect in self._node if tool == RUNC else ():
            effect.undo()  # CRIU mounts cgroup2 without the node's options
        text = self.log.read_text() if self.log.exists() else ""
        found = re.search(r"(\d+) MiB of memory (?:written|filled) in ([\d.]+) s", text)
        if not found:
            return Ran(seconds=seconds)
        return Ran(seconds=seconds, memory_seconds=float(found[2]), memory_bytes=int(found[1]) << 20)

    def _call(self, path: str, *argv: str) -> float:
        line = [path, "--root", str(self.root), "--log", str(self.log), "--log-format", "json", *argv]
        begun = time.perf_counter()
        code = _wait_for_end(subprocess.Popen(line, env=self._environment, **_SILENT))
        took = time.perf_counter() - begun
        if code:
            said = self.log.read_text() if self.log.exists() else ""
            raise SystemExit(f"bench: `{' '.join(line)}` failed\n{said}")
        return took

    def _configure(self, subject: Subject) -> None:
        subprocess.run([self.runc, "spec", "--bundle", self.bundle], check=True)
        config = json.loads((self.bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["/subject", *subject.words], rlimits=[])
        config["root"]["readonly"] = False
        config["linux"]["cgroupsPath"] = f"/grit-bench-{uuid.uuid4().hex[:8]}"
        if os.environ.get("GRIT_TEST_HOST_NETWORK"):  # as in tests/integration/machine.py
            namespaces = config["linux"]["namespaces"]
            config["linux"]["namespaces"] = [entry for entry in namespaces if entry["type"] != "network"]
        binds = {"/data": self.data}
        for number in range(subject.mounts):
            source = self.bundle / f"sources/{number}"
            for path in (source, self.bundle / f"rootfs/mounts/{number}"):
                path.mkdir(parents=True)
            binds[f"/mounts/{number}"] = source
        config["mounts"] += [
            {"destination": to, "type": "bind", "source": str(source), "options": ["rbind", "rw"]}
            for to, source in binds.items()
        ]
        (self.bundle / "config.json").write_text(json.dumps(config))

    def _wait_for(self, name: str) -> None:
        self._wait((self.data / name).exists)
        answer = self.data / "answer"
        if name == "ready" and answer.exists():
            raise SystemExit(f"bench: {answer.read_text()}")

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit("bench: it did not happen in time")
            time.sleep(0.005)

    def _remove_images(self) -> None:
        for path in (self.images, self.path / "work"):
            shutil.rmtree(path, ignore_errors=True)


def _wait_for_end(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code, at once: `subprocess.run` with a time limit looks every 50 ms."""
    fd = os.pidfd_open(process.pid)
    try:
        if not select.select([fd], [], [], PATIENCE)[0]:
            process.kill()
    finally:
        os.close(fd)
    return process.wait()


@contextlib.contextmanager
def place(runtime: str, disk: str = "") -> Iterator[Place]:
    """A place that is removed afterwards.

    Args:
        disk: a directory of a disk for the images, which aren't in the page cache then when they are restored.
    """
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="grit-bench-", dir=TMPFS))
        images = stack.enter_context(tempfile.TemporaryDirectory(prefix="grit-bench-", dir=disk)) if disk else ""
        made = Place(Path(name), os.path.abspath(runtime), Path(images) if images else None)
        try:
            yield made
        finally:
            made.clean()


def program(name: str) -> str:
    """A program that must be there."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"bench: {name} is not in PATH")
    return found


def cycles(at: Place, subject: Subject, rounds: int, load: int = 0) -> list[Series]:
    """Checkpoint and restore by both tools, alternating; all that was restored is compared.

    Args:
        load: bytes of a load that runs beside both.
    """
    found = {(verb, tool): Series(verb=verb, tool=tool) for verb in VERBS for tool in TOOLS}
    for number in range(rounds):
        for tool in TOOLS if number % 2 else reversed(TOOLS):
            at.start(subject)
            with at.load(load) if load else contextlib.nullcontext():
                for verb, call in (("checkpoint", at.checkpoint), ("restore", at.restore)):
                    with at.warm(subject.needs):
                        found[verb, tool].runs.append(call(tool))
            at.require_good()
            at.clean()
    return list(found.values())


def ratio(series: list[Series], verb: str) -> float:
    """How many times sooner grit-runtime is done."""
    runc, grit = (next(one.median for one in series if (one.verb, one.tool) == (verb, tool)) for tool in TOOLS)
    return runc / grit


def missing_memory(subject: Subject) -> str:
    """Why it doesn't fit this machine; empty if it does. Images and what is restored from them are there at once."""
    needed = 2 * subject.needs + subject.needs // 8
    available = min(_available(), os.statvfs(TMPFS).f_bavail * os.statvfs(TMPFS).f_frsize)
    if needed <= available:
        return ""
    return f"it needs {needed / 2**30:.0f} GiB, and {available / 2**30:.0f} GiB are free"


def _available() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The quartiles; of one value it is that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine() -> dict[str, Any]:
    """What was measured on."""

    def first_line(*argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return (done.stdout.splitlines() or [""])[0]

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "kernel": os.uname().release.split("-")[0],
        "runc": first_line("runc", "--version").removeprefix("runc version "),
        "criu": first_line("criu", "--version").removeprefix("Version: "),
    }


def figures(series: list[Series]) -> dict[str, Any]:
    """What goes into the report."""
    return {"series": [one.figures() for one in series], "sooner": {verb: ratio(series, verb) for verb in VERBS}}


def show(title: str, series: list[Series]) -> None:
    """A part of the table on the terminal: quartiles in seconds."""
    print(title)
    for verb in VERBS:
        for one in series:
            if one.verb == verb:
                low, middle, high = quartiles(one.seconds)
                print(f"  {verb:12}{one.tool:14}{low:9.3f}{middle:9.3f}{high:9.3f}")
        print(f"  {'':12}{'times sooner':14}{ratio(series, verb):18.2f}", flush=True)


def write(path: str, data: dict[str, Any]) -> None:
    """Write the figures as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"machine": machine(), **data}, indent=1) + "\n")
