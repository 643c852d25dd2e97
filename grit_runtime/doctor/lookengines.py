"""Looking at container engines: their processes, and whether their configuration names us. Nothing is changed."""

import os
import shutil
from collections.abc import Iterator

from grit_runtime import names
from grit_runtime.config import Config
from grit_runtime.doctor.facts import Engine
from grit_runtime.engines import ENGINES
from grit_runtime.errors import GritError
from grit_runtime.host import proc, run
from grit_runtime.workflow import register

# The names of their processes (proc_pid_comm(5)), and what in a command line says that it is another engine's.
_PROCESSES = {
    "containerd": ("containerd",),
    "cri-o": ("crio",),
    "docker": ("dockerd",),
    "k3s": ("k3s-server", "k3s-agent", "k3s"),
}
_OTHERS = {"containerd": ("docker", "rancher")}
_SIGNS = {
    "containerd": "/etc/containerd/config.toml",
    "cri-o": "/etc/crio",
    "podman": "/etc/containers/containers.conf.d",
    "docker": "/etc/docker/daemon.json",
    "k3s": "/var/lib/rancher/k3s",
}
_PROGRAMS = {"podman": "podman"}


def engines(config: Config, wanted: tuple[str, ...], runtime_name: str) -> tuple[Engine, ...]:
    """The engines that were asked for, or those that run or are configured on this node."""
    running = dict(_running())
    chosen = wanted or tuple(
        name
        for name in ENGINES
        if name in running or (name in _PROGRAMS and shutil.which(_PROGRAMS[name]) and os.path.exists(_SIGNS[name]))
    )
    return tuple(_engine(config, name, running.get(name), runtime_name) for name in chosen)


def environment(found: tuple[Engine, ...]) -> dict[str, str]:
    """The environment that a call by the first of the engines has, as far as programs are found by it; else ours."""
    env = run.caller_environment()
    first = next((engine for engine in found if engine.pid is not None), None)
    return {**env, "PATH": first.path} if first else env


def _running() -> Iterator[tuple[str, int]]:
    for word in sorted((word for word in os.listdir("/proc") if word.isdigit()), key=int, reverse=True):
        pid = int(word)
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
                name = stream.read().strip()
        except OSError:
            continue
        for engine, programs in _PROCESSES.items():
            if name in programs and not _is_anothers(engine, pid):
                yield engine, pid  # the oldest comes last, and stays in the dictionary


def _is_anothers(engine: str, pid: int) -> bool:
    line = " ".join(proc.command_line(pid)[1:])
    return any(word in line for word in _OTHERS.get(engine, ()))


def _engine(config: Config, name: str, pid: int | None, runtime_name: str) -> Engine:
    path = _path(pid)
    programs = ["criu", config.downstream, *([config.nvidia_hook] if config.devices == names.DEVICES_HOOK else [])]
    registered, problems = _registered(name, runtime_name)
    return Engine(
        name=name,
        pid=pid,
        path=path,
        registered=registered,
        problems=problems,
        restart=pid is not None and _is_older(pid, name, runtime_name),
        missing=tuple(p for p in dict.fromkeys(programs) if not _is_executable(run.find_program(p, {"PATH": path}))),
    )


def _is_executable(path: str | None) -> bool:
    return path is not None and os.path.isfile(path) and os.access(path, os.X_OK)


def _path(pid: int | None) -> str:
    """PATH as a process has it; what the runtime takes where there is none."""
    if pid is None:
        return run.caller_environment()["PATH"]
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            entries = stream.read().split(b"\0")
    except OSError:
        return run.DEFAULT_PATH
    found = [os.fsdecode(entry.partition(b"=")[2]) for entry in entries if entry.startswith(b"PATH=")]
    return (found[-1] if found else "") or run.DEFAULT_PATH


def _registered(name: str, runtime_name: str) -> tuple[bool, tuple[str, ...]]:
    """Whether `install` would change nothing, and what it says is missing."""
    said: tuple[str, ...] = ()
    for copy_section in (False, True):
        try:
            outcome = register.install(
                name, name=runtime_name, binary="", root="/", dry_run=True, copy_section=copy_section
            )
        except GritError as err:
            return False, (str(err),)
        wrong = tuple(line for line in outcome.lines if line.startswith(("refused: ", "missing: ")))
        said = said or wrong
        if not outcome.diff and not any(line.startswith("refused: ") for line in wrong):
            return True, tuple(line.partition(": ")[2] for line in wrong)
    return False, tuple(line.partition(": ")[2].partition("\n")[0] for line in said)


def _is_older(pid: int, name: str, runtime_name: str) -> bool:
    """Whether a process began before its configuration was changed."""
    began = proc.began(pid)
    try:
        places = ENGINES[name].places(register.Machine("/"), runtime_name)
    except GritError:
        return False
    changed = [os.stat(path).st_mtime for path in (*places, _SIGNS[name]) if os.path.isfile(path)]
    return began is not None and any(moment > began for moment in changed)
