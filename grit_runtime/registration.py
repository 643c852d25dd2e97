"""Doing what `engines` says: showing it, writing it, taking it away again."""

import difflib
import os
import re
import stat
from collections.abc import Callable

from grit_runtime import engines
from grit_runtime.engines import File
from grit_runtime.errors import ConfigError
from grit_runtime.host import files, run

_MAX_BYTES = 4 << 20


def launcher() -> str:
    """The launcher of the installation that this package is in (tools/install)."""
    prefix = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    return os.path.join(prefix, "bin/grit-runtime")


def install(engine: str, name: str, program: str, *, root: str, dry_run: bool, say: Callable[[str], None]) -> int:
    """Register the runtime.

    Args:
        root: where the host's files are; `/` on the host itself.

    Returns:
        0 if the engine knows the runtime, perhaps after a restart; 1 if something is left for the site to do.

    Raises:
        ConfigError: a configuration can't be read or written.
    """
    made = engines.register(engine, name, program, lambda path: _read(root, path), _version(engine, root))
    todo, changed = list(made.todo), False
    for file in made.files:
        there = _read(root, file.path)
        if there == file.content:
            say(f"{file.path}: is as it should be")
            continue
        if there is not None and not engines.is_ours(there):
            todo.append(f"{file.path} is there and isn't ours: move it away, or bring this into it:\n{file.text}")
            continue
        for line in difflib.unified_diff(
            (there or "").splitlines(), file.content.splitlines(), file.path, file.path, "", "", 3, ""
        ):
            say(line)
        changed = True
        if not dry_run:
            _write(root, file)
    for text in (*made.notes, *(f"left for you: {item}" for item in todo)):
        say(text)
    if made.restart and (changed or todo):
        say(f"then restart {made.restart}")
    return 1 if todo else 0


def uninstall(engine: str, *, root: str, dry_run: bool, say: Callable[[str], None]) -> int:
    """Take away what `install` wrote, if it is still as it was written; returns and raises as that."""
    left = 0
    for path in engines.paths(engine):
        there = _read(root, path)
        if there is None:
            continue
        if not engines.is_ours(there):
            if "grit" in there:
                say(f"left for you: {path} mentions grit and isn't, or is no longer, as we wrote it")
                left = 1
            continue
        say(f"{path}: removed")
        if not dry_run:
            os.unlink(_beneath(root, path))
    return left


def _version(engine: str, root: str) -> tuple[int, ...]:
    """containerd's, by its own word; none if another root's is asked for, or there is none."""
    program = (
        run.find_program("containerd", run.caller_environment()) if engine == "containerd" and root == "/" else None
    )
    said = run.run([program, "--version"], timeout=10).out if program else ""
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", said)
    return (int(found[1]), int(found[2])) if found else ()


def _beneath(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _read(root: str, path: str) -> str | None:
    try:
        with open(_beneath(root, path), "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_BYTES >> 20} MiB")
        return data.decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text") from None
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}") from None


def _write(root: str, file: File) -> None:
    target = _beneath(root, file.path)
    try:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        there = os.stat(target) if os.path.lexists(target) else None
        files.write_atomically(
            target, file.content.encode(), stat.S_IMODE(there.st_mode) if there else 0o644, sync=True
        )
    except OSError as err:
        raise ConfigError(f"cannot write {file.path}: {err.strerror}") from None
