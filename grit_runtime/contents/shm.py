"""/dev/shm of a pod: a bind mount of the sandbox's tmpfs, whose files CRIU leaves to whoever mounts it.

CRIU keeps the content of a deleted file that is open or mapped (a ghost, criu/files-reg.c) in its images; a file with a
name must be there at the restore, with its size. The other containers of the new pod may have it in use already: what
stands there under a name that we bring is left as it is.
"""

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime import names
from grit_runtime.contents import diff, walk
from grit_runtime.contents.archive import Writer
from grit_runtime.errors import RestoreError
from grit_runtime.host import files
from grit_runtime.host.transaction import Effect
from grit_runtime.oci.bundle import Bundle

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def source(bundle: Bundle) -> str:
    """The host's directory that a container has at /dev/shm; empty if it has a tmpfs of its own, which CRIU saves."""
    found = ""
    for mount in bundle.objects("mounts"):
        if os.path.normpath(str(mount.get("destination", ""))) == names.SHM:
            options = mount.get("options") or []
            bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
            found = str(mount.get("source", "")) if bound else ""
    return os.path.join(bundle.path, found) if found else ""


def write(writer: Writer, directory: str) -> None:
    """Write what the directory holds."""
    with walk.opened(os.path.realpath(directory)) as opened:
        diff.tree(writer, opened)


def staging(directory: str, archive: str, marker: str) -> "Staging":
    """The effect that unpacks an archive beside where it belongs; `placing` then gives the second one."""
    return Staging(os.path.join(os.path.realpath(directory), f".grit-{marker}"), archive)


@dataclass(frozen=True)
class Staging(Effect):
    """Unpack an archive into a directory of a name that is ours alone; undone with everything in it."""

    kind: ClassVar[str] = "unpack-shm"
    path: str
    archive: str

    def describe(self) -> str:
        return f"unpack {self.archive} into {self.path}"

    def apply(self) -> None:
        from grit_runtime.contents import unpack

        os.mkdir(self.path, 0o700)
        with walk.opened(self.path) as opened:
            unpack.Unpacker(root=opened, layer=False).apply(self.archive)

    def undo(self) -> None:
        files.remove_tree(self.path)

    def placing(self) -> tuple["Placing", list[str]]:
        """What is to be moved where it belongs, and the names that somebody else has there already."""
        there = os.path.dirname(self.path)
        found, taken = {}, []
        for name in sorted(os.listdir(self.path)):
            if os.path.lexists(os.path.join(there, name)):
                taken.append(name)
            else:
                found[name] = os.lstat(os.path.join(self.path, name)).st_ino
        return Placing(self.path, found), taken


@dataclass(frozen=True)
class Placing(Effect):
    """Move entries of the directory `path` up into the one that holds it; undone by removing those that are still the
    same.
    """

    kind: ClassVar[str] = "place-shm"
    path: str
    inodes: dict[str, int]
    """Name to inode number, which tells ours from another of that name."""

    def describe(self) -> str:
        return f"move {len(self.inodes)} entries into {os.path.dirname(self.path)}"

    def apply(self) -> None:
        for name in self.inodes:
            rename_new(os.path.join(self.path, name), os.path.join(os.path.dirname(self.path), name))

    def undo(self) -> None:
        try:
            opened = os.open(os.path.dirname(self.path), walk.DIRECTORY)
        except FileNotFoundError:
            return
        try:
            for name, inode in self.inodes.items():
                found = walk.lstat(opened, os.fsencode(name))
                if found is not None and found.st_ino == inode:
                    walk.remove(opened, os.fsencode(name))
        finally:
            os.close(opened)


def rename_new(source_path: str, target: str) -> None:
    """Rename, replacing nothing (renameat2(2)).

    Raises:
        RestoreError: somebody else made the target just now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source_path), os.fsencode(target)
    if libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        if number == errno.EEXIST:
            raise RestoreError(f"cannot restore {target}: another container of the pod made it just now")
        raise OSError(number, os.strerror(number), target)
