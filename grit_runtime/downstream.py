"""The downstream runtime: the program that does what isn't ours."""

import functools
import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from grit_runtime.errors import DownstreamError
from grit_runtime.host import cgroups, files, proc, run
from grit_runtime.oci import log
from grit_runtime.oci.argv import Invocation

# The launcher carries this text, so that a copy of it is known for what it is (launcher/grit-runtime.c).
LAUNCHER_MARK = b"grit-runtime-launcher-4f6b1c"
_LAUNCHER_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What `state` says (OCI runtime spec, runtime.md, "State")."""

    status: str
    pid: int
    bundle: str
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Downstream:
    """The downstream's program with the caller's global flags, less where the caller logs.

    Its own log goes to a file of ours, for the caller must find nothing in its `--log` but what ends the call.
    """

    program: str
    options: tuple[str, ...]
    root: str

    @property
    def systemd_cgroup(self) -> bool:
        """Whether the caller has systemd make the cgroups."""
        return any(word.lstrip("-") == "systemd-cgroup" for word in self.options)

    def argv(self, log_file: str, verb: str, *args: str) -> list[str]:
        """A command line of ours."""
        return [self.program, *self.options, "--log", log_file, "--log-format", "json", verb, *args]

    def call(self, verb: str, *args: str, timeout: float, env: dict[str, str] | None = None) -> run.Result:
        """Run a short verb; its output and errors are in the result.

        Raises:
            DownstreamError: it can't be executed.
        """
        argv = [self.program, *self.options, verb, *args]
        try:
            return run.run(argv, timeout=timeout, env=env)
        except OSError as err:
            raise missing(self.program, err.strerror) from None

    def require(self, verb: str, *args: str, timeout: float) -> str:
        """Run a short verb that must succeed, and return its output.

        Raises:
            DownstreamError: it failed; the message is the downstream's own.
        """
        result = self.call(verb, *args, timeout=timeout)
        if not result.ok:
            raise DownstreamError(_reason(result))
        return result.out

    def state(self, container: str, *, timeout: float) -> State:
        """Ask for a container's state.

        Raises:
            DownstreamError: there is no such container, in the downstream's words ("container does not exist").
        """
        out = self.require("state", container, timeout=timeout)
        try:
            raw = json.loads(out)
            return State(status=raw["status"], pid=int(raw.get("pid", 0)), bundle=raw["bundle"], raw=raw)
        except (ValueError, KeyError, TypeError) as err:
            raise DownstreamError(
                f"{self.program} state {container} said something unexpected: {err}: {out[:200]}"
            ) from None

    def cgroup_paths(self, container: str) -> dict[str, str]:
        """The container's cgroups, as runc's state has them (`<root>/<id>/state.json`, libcontainer State.CgroupPaths):
        controller to directory, of v2 one without a name. Empty if there is no such state, as with another runtime.
        """
        try:
            return {str(name): str(path) for name, path in self._runc_state(container)["cgroup_paths"].items()}
        except (KeyError, AttributeError):
            return {}

    def init(self, container: str) -> int:
        """The container's first process, as runc's state has it; 0 if that is over, or there is no such state."""
        found = self._runc_state(container)
        pid = found.get("init_process_pid")
        if not isinstance(pid, int) or pid <= 0 or proc.start_time(pid) != found.get("init_process_start"):
            return 0
        return pid

    def _runc_state(self, container: str) -> dict[str, Any]:
        try:
            found = json.loads(files.read_text(os.path.join(self.root, container, "state.json")))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def processes(self, container: str, *, timeout: float) -> list[int]:
        """The host pids of everything in the container's cgroup: `ps`, or, sooner, what that looks at."""
        paths = self.cgroup_paths(container)
        directory = paths.get("") or paths.get("devices", "")  # libcontainer, Container.Processes
        if os.path.isdir(directory):
            return cgroups.processes(directory)
        out = self.require("ps", "--format", "json", container, timeout=timeout)
        try:
            return [int(pid) for pid in json.loads(out) or []]
        except (ValueError, TypeError) as err:
            raise DownstreamError(f"{self.program} ps {container} said something unexpected: {err}") from None

    def has(self, container: str) -> bool:
        """Whether the id is taken: runc and crun keep a container's state in `<root>/<id>` from create to delete."""
        return os.path.lexists(os.path.join(self.root, container))

    def version(self, *, timeout: float) -> str:
        """The first line of `--version`, such as `runc version 1.1.5`."""
        return _version(self, timeout)

    def has_flag(self, verb: str, flag: str, *, since: tuple[int, int], timeout: float) -> bool:
        """Whether a verb has a flag: runc's since a version, another runtime's if its help names it."""
        numbers = re.match(r"runc version (\d+)\.(\d+)", self.version(timeout=timeout))
        if numbers:
            return (int(numbers[1]), int(numbers[2])) >= since
        return flag in self.call(verb, "--help", timeout=timeout).out


@functools.cache
def _version(downstream: Downstream, timeout: float) -> str:
    result = downstream.call("--version", timeout=timeout)
    return result.out.splitlines()[0] if result.ok and result.out else "unknown"


def find(configured: str, invocation: Invocation) -> Downstream:
    """The downstream that the configuration names.

    Raises:
        DownstreamError: there is none, it isn't executable, or it is ourselves.
    """
    program = resolve(configured)
    return Downstream(program=program, options=tuple(invocation.inherited()), root=invocation.root)


def resolve(configured: str) -> str:
    """The executable file of the downstream. Raises as `find`."""
    program = run.find_program(configured, run.caller_environment())
    if program is None:
        raise missing(configured, "not found in PATH")
    try:
        found = os.stat(program)
    except OSError as err:
        raise missing(program, err.strerror) from None
    if not stat.S_ISREG(found.st_mode) or not os.access(program, os.X_OK):
        raise missing(program, "not an executable file")
    if _is_launcher(program, found):
        raise DownstreamError(
            f"the downstream runtime {program} is grit-runtime itself",
            hint="set `downstream` in the configuration to runc's path",
        )
    return program


def missing(program: str, why: str | None) -> DownstreamError:
    """The error for a downstream that can't be executed."""
    return DownstreamError(
        f"the downstream runtime {program} cannot be executed: {why}",
        hint="install it, or set `downstream` in the configuration",
    )


def relay(caller: log.Log, log_file: str) -> str:
    """Hand the downstream's log on to the caller, less its errors, and return the last of those: ours ends the
    stream.
    """
    text = files.read_text(log_file)
    for line in text.splitlines():
        if '"level":"error"' not in line and caller.json:
            caller.relay(line)
    return log.last_error(text)


def _reason(result: run.Result) -> str:
    """The downstream's own words: runc prints its last error on stderr too, as text when it logs there."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    if not lines:
        return result.describe()
    line = lines[-1]
    _, found, message = line.partition("level=error msg=")
    if found:
        try:
            return str(json.loads(message))
        except ValueError:
            return message
    return line


def _is_launcher(program: str, found: os.stat_result) -> bool:
    if found.st_size > _LAUNCHER_MAX_BYTES:
        return False
    try:
        with open(program, "rb") as stream:
            return LAUNCHER_MARK in stream.read(_LAUNCHER_MAX_BYTES)
    except OSError:
        return False  # one may be allowed to execute what one may not read
