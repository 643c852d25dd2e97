"""The logs to be judged: which, and their lines, bounded. They are anybody's input."""

import os
import re
import stat
from dataclasses import dataclass

from grit_runtime.config import Config
from grit_runtime.errors import UsageError
from grit_runtime.inspection import words

_MOST = 4 << 20  # bytes of the begin, and of the end
_LONGEST = 2000  # characters of a line
_MOST_LINES = 200_000
_LOGS = ("restore.log", "dump.log")
_SHALLOW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A log's lines, fit for a terminal."""

    path: str
    lines: tuple[str, ...]
    whole: bool


def logs(config: Config, target: str) -> list[str]:
    """The logs that are meant, the newest first.

    Args:
        target: a log, a directory with some, a container's id (of its logs kept in `log-dir`), or empty for the newest
            kept log.

    Raises:
        UsageError: there is none.
    """
    found: list[str] = []
    if os.path.isdir(target):
        found = [os.path.join(here, name) for here, _, files in _walk(target) for name in files if name in _LOGS]
    elif os.path.lexists(target):
        found = [target]
    if not found and os.sep not in target:  # a directory here may have a container's name
        kept = _kept(config.log_dir)
        found = [path for path in kept if not target or f"-{target[:64]}" in os.path.basename(path)]
        found = found[:1] if not target else found
    if not found:
        where = f"of {target!r} " if target else ""
        raise UsageError(
            f"there is no log {where}in {config.log_dir}",
            hint="name a log, or a directory that holds one; a call that was refused before CRIU ran says why in its "
            "error line, which is in the pod's event and the engine's log",
        )
    return sorted(found, key=_age)


def named(line: str) -> list[str]:
    """The log of CRIU's that an error line of ours names, if it is there."""
    found = re.search(r"CRIU's log: (/\S+?\.log)\b", line)
    return [found[1]] if found and os.path.isfile(found[1]) else []


def read(path: str) -> Log:
    """Read one; of a long one, its begin and its end.

    Raises:
        OSError: it can't be read, or is no file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as stream:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no file", path)
        raw, whole = stream.read(_MOST), found.st_size <= 2 * _MOST
        if found.st_size > _MOST:
            stream.seek(max(_MOST, found.st_size - _MOST))
            raw += stream.read(_MOST)
    lines = raw.decode("utf-8", "replace").split("\n")
    cut = tuple(words.shown(line.rstrip("\r"), _LONGEST) for line in lines[:_MOST_LINES])
    return Log(path=path, lines=cut, whole=whole and len(lines) <= _MOST_LINES)


def _kept(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    paths = [os.path.join(directory, name) for name in names if name.endswith(".log")]
    return sorted((path for path in paths if os.path.isfile(path)), key=_age)


def _walk(top: str) -> list[tuple[str, list[str], list[str]]]:
    """As os.walk, not deep."""
    found = []
    for here, below, names in os.walk(top):
        found.append((here, below, names))
        if os.path.relpath(here, top).count("/") >= _SHALLOW - 1 or len(found) > _MOST_LINES:
            below.clear()
    return found


def written(path: str) -> float:
    """When a log was written last, in seconds since the epoch; 0 if it is gone."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _age(path: str) -> float:
    return -written(path)
