"""Registering with an engine: look, show the difference, write one file of ours, or remove it."""

import difflib
import glob
import os
import re
import shutil
from dataclasses import dataclass

import grit_runtime
from grit_runtime.engines import ENGINES
from grit_runtime.engines.mark import Whose
from grit_runtime.engines.plan import Engine, Plan, Request
from grit_runtime.errors import ConfigError, UsageError
from grit_runtime.host import files, run

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done: the difference, what to say of it, and the exit code."""

    diff: str
    lines: tuple[str, ...]
    code: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The files below a root: an `engines.plan.Tree`."""

    root: str

    def read(self, path: str) -> str | None:
        """The text of a file, or None if it isn't there. Raises ConfigError: it can't be read."""
        try:
            with open(self.place(path), "rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise ConfigError(f"cannot read {path}: {err.strerror}") from None
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is no text") from None

    def match(self, pattern: str) -> tuple[str, ...]:
        """The files that a pattern names, as they are called below the root, in the order of Go's filepath.Glob."""
        folder, name = os.path.split(pattern)
        place = self.place(folder)
        return tuple(os.path.join(folder, found) for found in sorted(glob.glob(name, root_dir=place)))

    def place(self, path: str) -> str:
        """Where a file is for us. Raises ConfigError: somebody else than root could lead us there."""
        try:
            return files.trusted_path(self.root, path)
        except OSError as err:
            raise ConfigError(f"{path} below {self.root}: {err.strerror}: {err.filename}") from None

    def write(self, path: str, text: str) -> None:
        """Replace a file. Raises ConfigError: it can't be written."""
        place = self.place(path)
        try:
            os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
            files.write_atomically(place, text.encode(), 0o644, sync=True)
        except OSError as err:
            raise ConfigError(f"cannot write {path}: {err.strerror}") from None


def install(engine: str, *, name: str, binary: str, root: str, dry_run: bool, copy_section: bool) -> Outcome:
    """Register the runtime.

    Raises:
        UsageError: a name or path that can't be registered.
        ConfigError: the engine's configuration can't be read or written.
    """
    machine = Machine(os.path.abspath(root))
    request = Request(name=name, binary=binary or launcher(), copy_section=copy_section, major=_major(engine, machine))
    plan = ENGINES[engine].plan(machine, request)
    there = machine.read(plan.path)
    refusals = [*_foreign(plan, there, ENGINES[engine]), *_binary_problem(machine, request.binary)]
    if plan.refused:
        refusals.append(plan.refused)
    lines, diff = list(plan.notes), ""
    if plan.text and plan.text == there:
        lines.append(f"{plan.path} is as it should be: already registered")
    elif plan.text and (dry_run or not refusals):
        diff = _diff(plan.path, there, plan.text)
        if not dry_run:
            machine.write(plan.path, plan.text)
        lines += [f"{'would write' if dry_run else 'wrote'} {plan.path}", f"next: {plan.restart}"]
    lines += [f"refused: {problem}" for problem in refusals]
    lines += [f"missing: {problem}" for problem in plan.missing]
    return Outcome(diff=diff, lines=tuple(lines), code=1 if refusals or plan.missing else 0)


def uninstall(engine: str, *, name: str, root: str, dry_run: bool) -> Outcome:
    """Remove the registration; what somebody changed, or made by hand, is left and named.

    Raises:
        UsageError: a name that can't be registered.
        ConfigError: the engine's configuration can't be read or written.
    """
    machine = Machine(os.path.abspath(root))
    request = Request(name=name, binary="/")
    restart = ""
    diff, lines, left = "", list[str](), list[str]()
    for path in ENGINES[engine].places(machine, request.name):
        there = machine.read(path)
        if there is None or not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", there):
            continue
        whose = ENGINES[engine].whose(there)
        if whose is not Whose.OURS:
            left.append(f"left: {path} is {whose.value}: take the runtime {name!r} from it by hand")
            continue
        diff += _diff(path, there, None)
        restart = restart or ENGINES[engine].plan(machine, request).restart
        if not dry_run:
            os.unlink(machine.place(path))
        lines.append(f"{'would remove' if dry_run else 'removed'} {path}")
    if restart:
        lines.append(f"next: {restart}")
    return Outcome(diff=diff, lines=(*(lines or ([] if left else ["nothing to remove"])), *left), code=1 if left else 0)


def _diff(path: str, old: str | None, new: str | None) -> str:
    before, after = (path if text is not None else "/dev/null" for text in (old, new))
    removed, added = ((text or "").splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(removed, added, before, after))


def _foreign(plan: Plan, there: str | None, engine: Engine) -> list[str]:
    """Why the file that is in the plan's place may not be replaced."""
    if there is None or not plan.text or there == plan.text:
        return []
    whose = engine.whose(there)
    return [] if whose is Whose.OURS else [f"{plan.path} is {whose.value}: move it away first"]


def launcher(option: str = "--binary") -> str:
    """The launcher that lies beside this package (tools/install), or the one in PATH.

    Args:
        option: by which it can be named instead.
    """
    library = os.path.dirname(os.path.dirname(os.path.abspath(grit_runtime.__file__)))
    beside = os.path.normpath(os.path.join(library, "../../bin/grit-runtime"))
    found = beside if os.access(beside, os.X_OK) else shutil.which("grit-runtime")
    if found is None:
        raise UsageError("the launcher is not beside this package, nor in PATH", hint=f"name it by {option}")
    return os.path.abspath(found)


def _binary_problem(machine: Machine, binary: str) -> list[str]:
    place = os.path.realpath(machine.root + binary) if machine.root == "/" else machine.place(binary)
    return [] if os.access(place, os.X_OK) and os.path.isfile(place) else [f"{binary} is not there, or not executable"]


def _major(engine: str, machine: Machine) -> int | None:
    """containerd's major version, if it is this machine's own."""
    program = shutil.which("containerd")
    if engine != "containerd" or machine.root != "/" or program is None:
        return None
    found = re.search(r" v?(\d+)\.\d+", run.run([program, "--version"], timeout=30).out)
    return int(found[1]) if found else None
