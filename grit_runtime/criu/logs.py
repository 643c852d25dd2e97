"""Reading CRIU's dump.log and restore.log for the lines that say why."""

import re

from grit_runtime.host import files

_LINE = re.compile(r"^\(\s*[0-9.]+\)\s*(?:\d+:\s*)?(Error \([^)]*\): .*)$")

_VERSION = re.compile(r"^\(\s*[0-9.]+\)\s*Version: (\S+)", re.MULTILINE)
_HEAD = 64 << 10  # bytes in which CRIU has said its version

# CRIU says so whenever CAP_SYS_RESOURCE is missing, and goes on.
_HARMLESS = ("Can't setup RLIMIT_NOFILE for self",)
_MAX_LINES = 3


def reason(path: str) -> str:
    """The first errors of a CRIU log, which are the cause; those after them are mostly consequences. Empty if there is
    none.
    """
    found = []
    for line in files.read_text(path, 8 << 20).splitlines():
        match = _LINE.match(line)
        if match and not any(text in line for text in _HARMLESS):
            found.append(match[1])
    return "; ".join(found[:_MAX_LINES])


def version(path: str) -> str:
    """Which CRIU wrote a log; empty where it didn't say, as it does at its third level of verbosity only."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = _VERSION.search(stream.read(_HEAD))
    except OSError:
        return ""
    return found[1] if found else ""
