"""Removing old checkpoints: which, pure; and how, so that none goes that is being written or read.

A restore writes down what it reads before it reads it, and a capture what it writes (their journals). So a checkpoint
is first given another name, under which nobody finds it; if somebody was quicker, it gets its own back.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from grit_runtime import names
from grit_runtime.checkpoint import catalogue
from grit_runtime.checkpoint.catalogue import INCOMPLETE, Entry
from grit_runtime.errors import BusyError, CheckpointError, GritError
from grit_runtime.host.transaction import read_journal
from grit_runtime.workflow import recover

_CONDEMNED = ".grit-pruned-"
_UNDER_WAY = 3600.0  # seconds; somebody else than we may be copying it
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def chosen(
    entries: Iterable[Entry], *, keep: int | None, before: float | None, incomplete: bool, now: float
) -> list[Entry]:
    """Those to remove.

    Args:
        keep: how many of each subject stay, the newest; None for no such rule.
        before: only those made before, in seconds since the epoch; None for no such rule.
        incomplete: also those that were cut short, and have not changed for an hour; they don't count among those that
            stay. What nothing is said of counts as complete.
    """
    subjects: dict[tuple[str, str, str], list[Entry]] = {}
    found = []
    for entry in sorted(entries, key=lambda one: (-one.made, one.path)):
        if entry.state == INCOMPLETE:
            beyond = incomplete and entry.made < now - _UNDER_WAY
        else:
            of_subject = subjects.setdefault(entry.subject, [])
            of_subject.append(entry)
            beyond = keep is None or len(of_subject) > keep
        if beyond and (before is None or entry.made < before):
            found.append(entry)
    return sorted(found, key=lambda one: (one.made, one.path))


def in_use(state_dir: str) -> list[str]:
    """The paths that journals name: what a capture writes, and what a restore reads or a killed one did.

    Raises:
        CheckpointError: a journal can't be read, and nobody knows what it names.
    """
    found = []
    for path, container in recover.workspaces(state_dir):
        try:
            record = read_journal(os.path.join(path, names.JOURNAL))
        except (GritError, OSError) as err:
            raise CheckpointError(
                f"nobody knows which checkpoint container {container} uses: {err}", hint="`grit-runtime recover` first"
            ) from None
        if record is not None and record.phase != recover.CREATED and record.header.get("images"):
            found.append(os.path.realpath(str(record.header["images"])))
    return found


def remove(entry: Entry, users: Callable[[], list[str]]) -> bool:
    """Remove one, with the directories above it that are empty then.

    Args:
        users: says what is in use, now.

    Returns:
        Whether it is gone; else it is in use.

    Raises:
        CheckpointError: it can't be removed.
    """
    if _is_used(entry, users()):
        return False
    try:
        return _remove(entry, users)
    except OSError as err:
        raise CheckpointError(f"cannot remove {entry.path}: {err.strerror}") from None


def _remove(entry: Entry, users: Callable[[], list[str]]) -> bool:
    folders = [os.open(entry.root, _DIRECTORY)]
    try:
        for name in (entry.namespace, entry.name):
            folders.append(os.open(name, _DIRECTORY, dir_fd=folders[-1]))
        inner = folders[-1]
        hidden = f"{_CONDEMNED}{secrets.token_hex(8)}"
        os.rename(entry.entry, hidden, src_dir_fd=inner, dst_dir_fd=inner)
        if _is_used(entry, users()):
            os.rename(hidden, entry.entry, src_dir_fd=inner, dst_dir_fd=inner)
            return False
        _delete(hidden, inner)
        for above, name in ((folders[1], entry.name), (folders[0], entry.namespace)):
            try:
                os.rmdir(name, dir_fd=above)
            except OSError:
                break  # there is more in it
    finally:
        for fd in folders:
            os.close(fd)
    return True


@contextmanager
def locked(roots: tuple[str, ...]) -> Iterator[None]:
    """Keep other calls of ours from removing checkpoints meanwhile: what one has given another name, and may give back,
    the other would take for what a killed one left.

    Raises:
        BusyError: another one is at it.
    """
    held: list[int] = []
    try:
        for root in sorted({os.path.realpath(root) for root in roots if os.path.isdir(root)}):
            held.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(f"another grit-runtime removes checkpoints from {root}") from None
        yield
    finally:
        for fd in held:
            os.close(fd)


def sweep(roots: tuple[str, ...]) -> None:
    """Remove what a killed call had given another name. Raises CheckpointError: it can't be removed."""
    for root in map(os.path.realpath, roots):
        for namespace, in_root in catalogue.directories(root, None):
            for name, in_namespace in catalogue.directories(namespace, in_root):
                with catalogue.opened(name, in_namespace) as folder:
                    condemned = [] if folder is None else os.listdir(folder)
                    for hidden in (word for word in condemned if word.startswith(_CONDEMNED)):
                        assert folder is not None
                        _swept(hidden, folder)


def _swept(hidden: str, folder: int) -> None:
    try:
        _delete(hidden, folder)
    except OSError as err:
        raise CheckpointError(f"cannot remove {hidden}: {err.strerror}") from None


def _delete(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=folder)  # by descriptors: no link in it is followed


def _is_used(entry: Entry, paths: list[str]) -> bool:
    return any((path + "/").startswith(entry.path + "/") for path in paths)
