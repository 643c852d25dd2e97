"""What to do about an error that CRIU is known for (causes.py). Many are proven by a test on real CRIU
(tests/integration), whose name docs/processes.md gives.

A line is looked for in the whole log, because the cause often isn't among the first errors, or is said by CRIU's code
within the task (`pie:`), or as a warning.
"""

from grit_runtime.host import files

_MAX_BYTES = 8 << 20


def find(path: str) -> str:
    """What to do about the errors in a CRIU log; empty if they aren't known, or there is no log."""
    text = files.read_text(path, _MAX_BYTES)
    if not text:
        return ""
    from grit_runtime.criu import causes

    found = causes.first(text.splitlines())
    return found.todo if found else ""


def with_log(log: str, kept: str) -> str:
    """A hint for an error of CRIU's: what to do about what `log` says, if that is known, and where it is kept."""
    return "; ".join(
        text for text in (find(log), f"CRIU's log: {kept} (`grit-runtime diagnose` reads it)" if kept else "") if text
    )
