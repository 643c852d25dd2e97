"""What to do about an error that CRIU is known for. Each is proven by a test on real CRIU (tests/integration), whose
name docs/processes.md gives.

A line is looked for in the whole log, because the cause often isn't among the first errors, or is said by CRIU's code
within the task (`pie:`), or as a warning.
"""

from grit_runtime.host import files

_MAX_BYTES = 8 << 20

_OUTSIDE = "a unix socket leads out of the container, which CRIU cannot dump: let the process close it"

# What CRIU 4.1.1 and 4.2 say, and what to do. The first that is found counts: the special stand before the general.
_KNOWN: dict[str, str] = {
    "Can't get 1:16 opt: Operation not supported": (
        "Linux 6.16 and newer need CRIU 4.2 for a process with a TCP or UDP socket"
    ),
    "Connected TCP socket": "set `tcp` to inside, close or established in the configuration",
    "In-flight connection": "set skip-in-flight: true for criu.dump in the configuration, or try again",
    "External socket is used": _OUTSIDE,
    "without peer": _OUTSIDE,
    "send_fds failed (-22)": (
        "a process has a descriptor that cannot be passed on, such as that of an io_uring, which CRIU cannot dump"
    ),
    "Can't lookup mount": (
        "a process has a file from outside of the container open, often its stdin, stdout or stderr: give it pipes, "
        "a terminal or /dev/null instead"
    ),
    "ghost file": "a deleted file that is open is too large: raise ghost-limit for criu.dump in the configuration",
    "file locks are hold": "set file-locks: true for criu.dump and criu.restore in the configuration",
    "inet socket back: Network is unreachable": (
        "the new container's network namespace has no way there: give it one by path, as a pod has, or set "
        "`tcp: close` in the configuration"
    ),
    "inet socket back: Cannot assign requested address": (
        "the new container's network namespace lacks the address: set `tcp` to inside or close in the configuration"
    ),
    "Can't bind inet socket": (
        "a socket is bound to an address that the new container's network namespace lacks: let the program listen on "
        "all addresses"
    ),
}


def find(path: str) -> str:
    """What to do about the errors in a CRIU log; empty if they aren't known, or there is no log."""
    text = files.read_text(path, _MAX_BYTES)
    lines = [line for line in text.splitlines() if "Error (" in line or "Warn  (" in line]
    return next((hint for known, hint in _KNOWN.items() if any(known in line for line in lines)), "")


def with_log(log: str, kept: str) -> str:
    """A hint for an error of CRIU's: what to do about what `log` says, if that is known, and where it is kept."""
    return "; ".join(text for text in (find(log), f"CRIU's log: {kept}" if kept else "") if text)
