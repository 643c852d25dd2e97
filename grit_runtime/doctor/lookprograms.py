"""Looking at the kernel, CRIU and the downstream. Nothing is changed."""

import os
import platform

from grit_runtime import downstream
from grit_runtime.config import Config
from grit_runtime.criu import messages
from grit_runtime.doctor.facts import Criu, Kernel, Program
from grit_runtime.errors import GritError
from grit_runtime.host import cgroups, faults, files, hugepages, inject, run
from grit_runtime.workflow import register

_QUICK = 30.0  # seconds
_PLUGINS = ("/usr/lib/criu", "/usr/lib/x86_64-linux-gnu/criu", "/usr/lib64/criu", "/usr/local/lib/criu")
_DEFAULTS = ("/etc/criu/default.conf", "/etc/criu/runc.conf")
_VERBS = ("checkpoint", "restore")


def kernel() -> Kernel:
    """The kernel."""
    scope = files.read_text("/proc/sys/kernel/yama/ptrace_scope").strip()
    there = os.path.exists("/proc/self/map_files") and os.path.exists("/proc/sys/kernel/ns_last_pid")
    return Kernel(
        release=platform.release(),
        architecture=platform.machine(),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cgroup=_cgroup(),
        map_files=there,
        userfaultfd=inject.why_no_userfaultfd() if inject.is_supported() else "",
        fault_device=os.path.exists(faults.DEVICE),
        ptrace_scope=int(scope) if scope.isdigit() else None,
        huge_pages=hugepages.setting(),
    )


def _cgroup() -> str:
    if cgroups.is_unified():
        return "v2"
    unified = os.path.join(cgroups.MOUNT, "unified", "cgroup.controllers")
    controllers = [name for name in ("memory", "pids") if os.path.isdir(os.path.join(cgroups.MOUNT, name))]
    return ("hybrid" if os.path.exists(unified) else "v1") if controllers else ""


def criu(config: Config, env: dict[str, str]) -> Criu:
    """CRIU, as a downstream with this environment finds it; `criu check` is run."""
    defaults = tuple(
        line.strip()
        for path in _DEFAULTS
        for line in files.read_text(path).splitlines()
        if line.strip() and not line.strip().startswith("#")
    )
    folders = dict.fromkeys((*_PLUGINS, config.cuda.plugin_dir))
    plugins = tuple(path for folder in folders for path in _libraries(folder))
    path = run.find_program("criu", env)
    if path is None:
        program = Program(error=f"criu is not in PATH ({env.get('PATH', run.DEFAULT_PATH)})")
        return Criu(program=program, pycriu=_pycriu(), plugins=plugins, defaults=defaults)
    version = _output([path, "--version"], env)
    try:
        checked = run.run([path, "check"], timeout=_QUICK, env=env)
        said = tuple(line for line in f"{checked.out}\n{checked.err}".splitlines() if line.strip())
        code = None if checked.timed_out else checked.code
    except OSError as err:
        said, code = (str(err.strerror),), 127
    return Criu(
        program=Program(path=path, version=(version.splitlines() or [""])[0].removeprefix("Version: ")),
        check_code=code,
        check_said=said[-20:],
        pycriu=_pycriu(),
        plugins=plugins,
        defaults=defaults,
    )


def _libraries(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".so")]
    except OSError:
        return []


def _pycriu() -> str:
    try:
        messages.message_class("INVENTORY")
    except Exception as err:  # noqa: BLE001 - protobuf raises what it likes where versions don't fit
        return f"{type(err).__name__}: {err}"
    return ""


def find_downstream(config: Config, env: dict[str, str]) -> tuple[Program, tuple[str, ...]]:
    """The downstream, and the verbs of checkpoints that it doesn't know."""
    try:
        path = downstream.resolve(config.downstream)
    except GritError as err:
        return Program(error=str(err)), ()
    version = (_output([path, "--version"], env).splitlines() or ["unknown"])[0]
    lacks = tuple(verb for verb in _VERBS if "image-path" not in _output([path, verb, "--help"], env))
    return Program(path=path, version=version), lacks


def find_launcher() -> Program:
    """The launcher that engines execute."""
    try:
        return Program(path=register.launcher())
    except GritError as err:
        return Program(error=str(err))


def _output(argv: list[str], env: dict[str, str]) -> str:
    try:
        result = run.run(argv, timeout=_QUICK, env=env)
    except OSError:
        return ""
    return result.out or result.err
