"""The names by which a restore reaches open files that have lost theirs.

At the end of a dump after which the tasks live on, CRIU removes the names that it made (criu/cr-dump.c, cr_dump_finish,
delete_link_remaps), and every dump of ours is one. While the container is frozen, they are made again: they belong to
what its rootfs and volumes have to bring along. As with a dump by plain runc, they stay there, unless the container
lives on.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime.criu import remaps
from grit_runtime.errors import CaptureError
from grit_runtime.host import proc
from grit_runtime.host.transaction import Effect, Transaction

_DELETED = " (deleted)"  # proc_pid_fd(5): what the kernel appends to the target of the link


@dataclass(frozen=True)
class KeepName(Effect):
    """Give an open file a name; undone by removing it, if it is still that file's."""

    kind: ClassVar[str] = "keep-name"
    container_pid: int
    started: int
    open_file: str
    """The open file as `/proc/PID/fd/N`."""
    inode: int
    name: str
    """The path within the container."""

    def describe(self) -> str:
        return f"make {self.name} in the container"

    def apply(self) -> None:
        directory = self._open_directory()
        try:
            os.link(self.open_file, os.path.basename(self.name), dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)

    def undo(self) -> None:
        if proc.start_time(self.container_pid) != self.started:
            return  # the container is gone, and with it the way to its files
        try:
            directory = self._open_directory()
        except OSError:
            return
        try:
            name = os.path.basename(self.name)
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino == self.inode:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return
        finally:
            os.close(directory)

    def _open_directory(self) -> int:
        """The name's directory, in the container's own mounts: a name can only be made within one mount. CRIU's paths
        hold no symbolic link, and none is followed.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        directory = os.open(f"/proc/{self.container_pid}/root", flags)
        for part in os.path.dirname(self.name).strip("/").split("/"):
            if not part:
                continue
            if part == "..":
                os.close(directory)
                raise FileNotFoundError(2, "no path of CRIU's", self.name)
            try:
                below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=directory)
            finally:
                os.close(directory)
            directory = below
        return directory


def keep(transaction: Transaction, images: str, pids: list[int], init: int) -> list[KeepName]:
    """Make the names again that the images at `images` need.

    Args:
        pids: the frozen container's processes.
        init: its first.

    Raises:
        CaptureError: one cannot be made.
    """
    made = []
    for remap in remaps.read(images):
        found = _open_file(remap.deleted, pids)
        started = proc.start_time(init)
        if found is None or started is None:
            raise CaptureError(f"cannot checkpoint: no process has {remap.deleted} open any more")
        effect = KeepName(init, started, found, os.stat(found).st_ino, remap.name)
        try:
            transaction.do(effect)
        except OSError as err:
            raise CaptureError(f"cannot keep the open file {remap.deleted} as {remap.name}: {err.strerror}") from None
        made.append(effect)
    return made


def _open_file(deleted: str, pids: list[int]) -> str | None:
    """A descriptor or mapping of the file that had this name and has another one."""
    for pid in pids:
        for kind in ("fd", "map_files"):
            directory = f"/proc/{pid}/{kind}"
            for name in _listed(directory):
                file = f"{directory}/{name}"
                try:
                    if os.readlink(file) == deleted + _DELETED and os.stat(file).st_nlink:
                        return file
                except OSError:
                    continue
    return None


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
