"""Symbolic links on the host that several restores may need at once.

Who needs a link says so in a directory of ours, one per link, before the link is made; whoever is the last to go
removes it, with the directories that were made for it. A link that isn't ours is never changed.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime.errors import BusyError
from grit_runtime.host import files
from grit_runtime.host.transaction import Effect

REGISTRY = ".links"  # below the state directory; no escaped root begins with a dot
_DIRECTORIES = "directories"  # what we made above links, a JSON list


@dataclass(frozen=True)
class SharedLink(Effect):
    """Have `path` lead to `target` for as long as `owner` needs it; undone by removing it with its last owner."""

    kind: ClassVar[str] = "shared-link"
    path: str
    target: str
    registry: str
    owner: str
    timeout: float = 10.0
    """Seconds to wait for another of ours that changes links."""

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def apply(self) -> None:
        with _locked(self.registry, self.timeout):
            owners = self._owners()
            if os.path.lexists(self.path) and not (os.path.isdir(owners) and self._is_ours()):
                raise FileExistsError(errno.EEXIST, "exists, and is not our link to the new place", self.path)
            os.makedirs(owners, mode=0o700, exist_ok=True)
            with open(os.path.join(owners, self.owner), "wb"):
                pass
            _make_parents(self.registry, os.path.dirname(self.path))
            if not os.path.lexists(self.path):
                os.symlink(self.target, self.path)

    def undo(self) -> None:
        if not os.path.isdir(self.registry):
            return
        with _locked(self.registry, self.timeout):
            owners = self._owners()
            files.unlink_if_there(os.path.join(owners, self.owner))
            if os.path.isdir(owners) and not os.listdir(owners):
                if self._is_ours():
                    os.unlink(self.path)
                os.rmdir(owners)
            _remove_parents(self.registry)

    def _owners(self) -> str:
        return os.path.join(self.registry, hashlib.sha256(os.fsencode(self.path)).hexdigest())

    def _is_ours(self) -> bool:
        try:
            return os.readlink(self.path) == self.target
        except OSError:
            return False


def _make_parents(registry: str, path: str) -> None:
    """Make the directories that are missing above a link, and remember them: several links may lie in one."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        _remember(registry, [*_made(registry), directory])
        os.mkdir(directory, 0o700)


def _remove_parents(registry: str) -> None:
    """Remove those of our directories that have become empty."""
    left: list[str] = []
    for directory in reversed(_made(registry)):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            left.insert(0, directory)
    _remember(registry, left)


def _made(registry: str) -> list[str]:
    text = files.read_text(os.path.join(registry, _DIRECTORIES))
    return [str(path) for path in json.loads(text)] if text else []


def _remember(registry: str, directories: list[str]) -> None:
    path = os.path.join(registry, _DIRECTORIES)
    if directories:
        files.write_atomically(path, json.dumps(directories).encode())
    else:
        files.remove_temporary(path)
        files.unlink_if_there(path)


@contextmanager
def _locked(registry: str, timeout: float) -> Iterator[None]:
    """Hold the registry's lock; an empty registry goes when it is given up.

    Raises:
        BusyError: somebody holds it for much longer than a few calls of the kernel take.
    """
    deadline = time.monotonic() + timeout
    while True:
        os.makedirs(registry, mode=0o700, exist_ok=True)
        fd = os.open(registry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if _is_locked(fd, deadline):
            if os.path.isdir(registry) and os.stat(registry).st_ino == os.fstat(fd).st_ino:
                break
        elif time.monotonic() >= deadline:
            os.close(fd)
            raise BusyError(f"another grit-runtime holds {registry}", hint="is one of them stopped?")
        os.close(fd)  # whoever held it removed it just now
    try:
        yield
    finally:
        if not os.listdir(registry):
            os.rmdir(registry)
        os.close(fd)


def _is_locked(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
