"""Mount tables (proc_pid_mountinfo(5)) and paths as they are seen from within a root."""

import ctypes
import os
import re
from dataclasses import dataclass

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MS_REMOUNT = 32
# mount(2), sys/mount.h
_MOUNT_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21,
}  # fmt: skip
_MAX_LINKS = 255  # filepath-securejoin's bound


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of a mountinfo file."""

    mnt_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str = ""
    propagation: tuple[str, ...] = ()
    """The optional fields, such as `shared:1` and `master:2`; none for a private mount."""


def parse(text: str) -> list[MountEntry]:
    """Read the text of a mountinfo file; lines of another form are left out."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if " - " not in line or len(fields) < 10:
            continue
        dash = fields.index("-")
        tail = fields[dash + 1 :]
        found.append(
            MountEntry(
                mnt_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                mountpoint=_unescape(fields[4]),
                options=fields[5],
                fstype=tail[0],
                source=_unescape(tail[1]),
                super_options=tail[2] if len(tail) > 2 else "",
                propagation=tuple(fields[6:dash]),
            )
        )
    return found


def own() -> list[MountEntry]:
    """The mounts of our own namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        return parse(stream.read())


def is_private(path: str, table: list[MountEntry]) -> bool:
    """Whether the mount of `table` that holds `path` takes part in no propagation."""
    real = os.path.realpath(path) + "/"
    holding = [entry for entry in table if real.startswith(entry.mountpoint.rstrip("/") + "/")]
    if not holding:
        return True
    deepest = max(len(entry.mountpoint) for entry in holding)
    top = [entry for entry in holding if len(entry.mountpoint) == deepest][-1]
    return not any(word.startswith(("shared:", "master:")) for word in top.propagation)


def at_or_below(path: str) -> list[str]:
    """The mountpoints of our own namespace at `path` or under it, in the order in which they were mounted."""
    real = os.path.realpath(path)
    return [
        entry.mountpoint
        for entry in own()
        if entry.mountpoint == real or entry.mountpoint.startswith(real.rstrip("/") + "/")
    ]


def unmount(path: str) -> None:
    """Detach the topmost mount at `path`, not following a link there.

    Raises:
        OSError: it isn't a mountpoint, or we may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def remount(path: str, options: str, super_options: str) -> None:
    """Set the options of a mount and of its file system, as mountinfo writes them.

    Raises:
        OSError: the kernel refuses.
    """
    flags = _MS_REMOUNT
    for option in options.split(","):
        flags |= _MOUNT_FLAGS.get(option, 0)
    data = ",".join(option for option in super_options.split(",") if option not in ("rw", "ro"))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def resolve_in_root(root: str, path: str) -> str:
    """Where `path` leads for a process whose root is `root`: its links are followed within, `..` stops at the root.

    runc keys external mounts by this (libcontainer/criu_linux.go, addCriuDumpMount, with filepath-securejoin). The last
    components may be missing.
    """
    todo = [word for word in path.split("/") if word not in ("", ".")]
    done: list[str] = []
    links = 0
    while todo:
        word = todo.pop(0)
        if word == "..":
            done = done[:-1]
            continue
        here = os.path.join(root, *done, word)
        if os.path.islink(here) and links < _MAX_LINKS:
            links += 1
            target = os.readlink(here)
            if target.startswith("/"):
                done = []
            todo = [part for part in target.split("/") if part not in ("", ".")] + todo
            continue
        done.append(word)
    return "/" + "/".join(done)


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal, byte by byte."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
