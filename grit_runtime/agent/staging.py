"""A directory in which a set is made, beside its place: it gets its name in one rename, or is gone on with later."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from grit_runtime.errors import BusyError, CheckpointError
from grit_runtime.host import files

_JOURNAL = ".grit-copied"
_MOST = 1 << 20  # bytes of the journal that are read
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class Staging:
    """The directory, and what an earlier try has noted in it. A note is a hint: nothing is believed for it."""

    path: str
    noted: set[str] = field(default_factory=set)

    def note(self, word: str) -> None:
        """Note for a later try that something is there."""
        with open(os.path.join(self.path, _JOURNAL), "a", encoding="ascii") as stream:
            stream.write(f"{word}\n")

    def publish(self, target: str) -> None:
        """Flush the names, and give it its own, which must be free.

        Raises:
            CheckpointError: it isn't.
        """
        files.unlink_if_there(os.path.join(self.path, _JOURNAL))
        files.sync_directory(self.path)
        try:
            os.rename(self.path, target)
        except OSError as err:
            if err.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise CheckpointError(f"{target} has come into being meanwhile") from None
        files.sync_directory(os.path.dirname(target))


@contextlib.contextmanager
def staging(path: str, identity: str) -> Iterator[Staging]:
    """The directory, ours alone: empty, or as a copy of the same left it that was cut short.

    It stays if what is done with it fails, so that the next one goes on; not if what was to be copied is wrong, or the
    disk is full.

    Args:
        identity: of what is copied; what was left of something else is removed.

    Raises:
        BusyError: another process has it.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"another process copies to {path}") from None
        made = Staging(path)
        first, *noted = files.read_text(os.path.join(path, _JOURNAL), _MOST).splitlines() or [""]
        if first == identity:
            made.noted = set(noted)
        else:
            for name in os.listdir(fd):
                _remove(os.path.join(path, name))
            made.note(identity)
        try:
            yield made
        except (CheckpointError, OSError) as err:
            if isinstance(err, CheckpointError) or err.errno in _NO_ROOM:
                files.remove_tree(path)
            raise
        files.remove_tree(path)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
