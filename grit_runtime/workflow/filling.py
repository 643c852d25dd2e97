"""That a container's memory is being filled behind it (memorybehind.py) is known by a file, locked for as long."""

import contextlib
import fcntl
import os
import time

from grit_runtime.errors import CaptureError
from grit_runtime.host.workspace import escape_root
from grit_runtime.workflow.context import Context

_PREFIX = ".filling"  # in the state directory: no root is called so (host/workspace.py, escape_root)
_POLL = 0.02  # seconds


def path(context: Context) -> str:
    """Where it is known that a container's memory is being filled: a file that is locked for as long."""
    name = f"{_PREFIX}!{escape_root(context.invocation.root)}!{context.container}"
    return os.path.join(context.config.state_dir, name)


def wait(context: Context) -> None:
    """Wait until a container's memory is there: what is missing would be zeros in a checkpoint.

    Raises:
        CaptureError: it takes too long.
    """
    name = path(context)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        deadline = time.monotonic() + context.config.timeouts.checkpoint
        while not _locked(fd):
            if time.monotonic() > deadline:
                raise CaptureError(
                    f"cannot checkpoint container {context.container}: its memory is still being filled from the "
                    "checkpoint that it was restored from",
                    hint="try again when `grit-runtime report` shows that as done",
                )
            time.sleep(_POLL)
        forget(name)  # by whom, if not by us: they were killed
    finally:
        os.close(fd)


def lock(name: str) -> int:
    """The file, made and locked; a descriptor. Raises OSError: it can't be made, or is locked."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if not _locked(fd):
        os.close(fd)
        raise BlockingIOError("the memory of a container of this name is being filled")
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def forget(name: str) -> None:
    """Nothing is filled any more."""
    with contextlib.suppress(OSError):
        os.unlink(name)
