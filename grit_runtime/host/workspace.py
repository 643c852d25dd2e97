"""The directory that we keep for a container while something of ours concerns it.

`<state-dir>/<escaped root>/<id>/`, on tmpfs. It exists from the first effect on the container until the last is undone
or committed, and holds the journal, staged images and CRIU's configuration. Whoever holds its lock (flock on the
directory itself) may work on the container. The launcher looks for `journal` in it to learn whether a call concerns us
(launcher/grit-runtime.c), so its place is a contract between the two.
"""

import errno
import fcntl
import os
import time

from grit_runtime import names
from grit_runtime.errors import BusyError, GritError
from grit_runtime.host import files

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")


def escape_root(root: str) -> str:
    """One file name for a downstream's `--root`, as systemd-escape --path makes it, so that two roots never share a
    workspace.
    """
    absolute = root if root.startswith("/") else os.path.join(os.getcwd(), root)
    words = [word for word in absolute.split("/") if word]
    raw = os.fsencode("/".join(words))
    name = "".join("-" if c == "/" else c if c in _PLAIN else f"\\x{ord(c):02x}" for c in raw.decode("latin-1")) or "-"
    return f"\\x2e{name[1:]}" if name.startswith(".") else name


class Workspace:
    """A container's directory, locked while this object is open."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @property
    def journal(self) -> str:
        """The journal's file; that it exists means that something is open."""
        return os.path.join(self.path, names.JOURNAL)

    def file(self, *parts: str) -> str:
        """A path within."""
        return os.path.join(self.path, *parts)

    def close(self, *, remove: bool = False) -> None:
        """Give up the lock; with `remove`, the directory goes first, while nobody else can be in it."""
        if self._fd < 0:
            return
        try:
            if remove:
                # The journal goes first: the launcher must not find one in a directory half removed.
                if os.path.exists(self.journal):
                    os.unlink(self.journal)
                files.remove_tree(self.path)
                remove_if_empty(os.path.dirname(self.path))
        finally:
            os.close(self._fd)
            self._fd = -1


def path_of(state_dir: str, root: str, container: str) -> str:
    """Where the workspace of a container would be."""
    return os.path.join(state_dir, escape_root(root), container)


def open_workspace(path: str, *, timeout: float) -> Workspace:
    """Make the directory if need be, and lock it.

    Args:
        timeout: seconds to wait for whoever holds the lock.

    Raises:
        BusyError: it was held all that time.
        GritError: the directory can't be made, or isn't root's own.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fd = _open_directory(path)
        except OSError as err:
            remove_if_empty(os.path.dirname(path))
            raise GritError(f"cannot make the state directory {path}: {err.strerror}") from None
        if fd is not None:
            if _lock(fd, path, deadline):
                return Workspace(path, fd)
            os.close(fd)


def open_existing(path: str, *, timeout: float) -> Workspace | None:
    """Lock a workspace, or return None if there is none. Raises as `open_workspace`."""
    return open_workspace(path, timeout=timeout) if os.path.isdir(path) else None


def is_held(path: str) -> bool:
    """Whether somebody works on the container of this workspace; looked at without waiting, and without keeping it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _open_directory(path: str) -> int | None:
    for directory in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path), path):
        try:
            os.makedirs(directory, mode=0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            return None  # whoever held it removed the parent just now
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.close(fd)
        raise GritError(f"the state directory {path} belongs to somebody else or is writable by others")
    return fd


def _lock(fd: int, path: str, deadline: float) -> bool:
    """Take the lock; False if the directory was removed meanwhile by whoever held it."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as err:
            if err.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
        if time.monotonic() >= deadline:
            os.close(fd)
            raise BusyError(
                f"container {os.path.basename(path)} is busy: another grit-runtime works on it",
                hint="try again when it has ended",
            )
        time.sleep(0.02)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def remove_if_empty(path: str) -> None:
    """Remove a root's directory when its last workspace is gone; whoever makes a workspace there meanwhile tries
    again.
    """
    try:
        os.rmdir(path)
    except OSError:
        return
