"""Changing a mount of another mount namespace."""

import ctypes
import os

from grit_runtime.host import mounts, proc

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
# mount(2): a remount replaces all of a mount's own flags.
_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1 << 10, "nodiratime": 1 << 11, "relatime": 1 << 21}


def make_root_read_only(pid: int) -> None:
    """Make the root mount of a process' mount namespace read-only, if it isn't.

    Raises:
        OSError: the process is gone, or the kernel refuses.
    """
    roots = [entry for entry in mounts.parse(proc.mountinfo(pid)) if entry.mountpoint == "/"]
    options = roots[-1].options.split(",") if roots else []
    if "ro" in options:
        return
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | sum(_FLAGS.get(option, 0) for option in options)
    # In a child: a mount namespace is entered with root and working directory.
    child = os.fork()
    if child == 0:
        number = 1
        try:
            number = _remount(pid, flags)
        finally:
            os._exit(number)
    _, status = os.waitpid(child, 0)
    number = os.waitstatus_to_exitcode(status)
    if number:
        raise OSError(number, os.strerror(number), "/")


def _remount(pid: int, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
        failed = libc.setns(namespace.fileno(), _CLONE_NEWNS)
    failed = failed or libc.mount(None, b"/", None, ctypes.c_ulong(flags), None)
    return ctypes.get_errno() if failed else 0
