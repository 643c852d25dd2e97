"""Files: written whole or not at all, read with a bound, removed without following links."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

_MAX_LINKS = 40  # the kernel's own limit (fs/namei.c, MAXSYMLINKS)


def write_atomically(path: str, data: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
    """Replace `path` by a file that holds `data`, in one rename; a reader sees the old content or the new.

    A kill on the way leaves the temporary file, which has one known name (`remove_temporary`).

    Args:
        sync: flush the file and its directory to disk, so that a power loss can't leave it empty.
    """
    temporary = _temporary(path)
    remove_temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, data)
        os.fchmod(fd, mode)
        if sync:
            os.fsync(fd)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if sync:
        sync_directory(os.path.dirname(path))


def remove_temporary(path: str) -> None:
    """Remove what a killed `write_atomically` of `path` left."""
    unlink_if_there(_temporary(path))


def unlink_if_there(path: str) -> None:
    """Remove a name that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def keep_newest(directory: str, is_ours: Callable[[str], bool], count: int) -> None:
    """Remove those files of a directory that are ours by their names and the oldest by these, beyond `count`.

    Nothing else is touched, and what can't be removed stays.
    """
    try:
        ours = sorted(name for name in os.listdir(directory) if is_ours(name))
    except OSError:
        return
    for name in ours[:-count]:
        try:
            os.unlink(os.path.join(directory, name))
        except OSError:
            continue


def sync_directory(path: str) -> None:
    """Flush the names in a directory to disk."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str) -> None:
    """Flush the content of a file to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_text(path: str, limit: int = 1 << 20) -> str:
    """The end of a text file, at most `limit` bytes; an empty string if it isn't there, or would keep us waiting."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - limit))
            return stream.read(limit).decode(errors="replace")
    except OSError:
        return ""


def read_bounded(path: str, limit: int) -> bytes | None:
    """The bytes of a regular file, or None if they are more than `limit`.

    Raises:
        OSError: it can't be read, or is something that could keep us waiting.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = stream.read(min(found.st_size, limit) + 1) or b""
        while 0 < len(data) <= limit and (more := stream.read(limit + 1 - len(data))):
            data += more  # it grew meanwhile, or has no size of its own, as in /proc
    return data if len(data) <= limit else None


def read_json(path: str, limit: int) -> Any:
    """Parse a JSON file of at most `limit` bytes.

    Raises:
        OSError: it can't be read.
        ValueError: it is larger, or isn't JSON.
    """
    data = read_bounded(path, limit)
    if data is None:
        raise ValueError(f"larger than {limit} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def open_beneath(root: str, inner: str, flags: int) -> int:
    """Open `inner` below directory `root` with no symbolic link on the way, nor at its end.

    Raises:
        FileNotFoundError: it isn't there, nor is anything in its place on the way.
        OSError: a link or a file is in the way.
    """
    words = _words(inner)
    if ".." in words:
        raise OSError(errno.EXDEV, f"{inner} leads out of {root}")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, word in enumerate(words):
        last = number == len(words) - 1
        how = flags if last else os.O_PATH | os.O_DIRECTORY
        try:
            below = os.open(word, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def lstat_beneath(root: str, inner: str) -> os.stat_result:
    """What is at `inner` below `root` (a directory, or a file for an `inner` of `.`); raises as `open_beneath`."""
    if inner in ("", "."):
        return os.stat(root)
    fd = open_beneath(root, inner, os.O_PATH)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def trusted_path(root: str, path: str) -> str:
    """Where `path` leads with `root` for `/`, by directories and links that only root or we could have made.

    What isn't there yet is taken as it stands.

    Raises:
        OSError: a link or directory on the way belongs to somebody else, or anybody may write to it.
    """
    pending, done, links = _words(path), list[str](), 0
    while pending:
        word = pending.pop(0)
        if word == "..":
            del done[-1:]
            continue
        place = os.path.join(root, *done, word)
        try:
            there = os.lstat(place)
        except FileNotFoundError:
            done.append(word)
            continue
        if there.st_uid not in (0, os.geteuid()) or (stat.S_ISDIR(there.st_mode) and there.st_mode & 0o002):
            raise OSError(errno.EPERM, "not root's alone", place)
        if not stat.S_ISLNK(there.st_mode):
            done.append(word)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), place)
        target = os.readlink(place)
        done = [] if target.startswith("/") else done
        pending = _words(target) + pending
    return os.path.join(root, *done)


def remove(path: str) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def remove_tree(path: str) -> None:
    """Remove a directory of ours and everything in it; nothing if it isn't there. Links are removed, not followed."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


def _words(path: str) -> list[str]:
    return [word for word in path.split("/") if word not in ("", ".")]


def _temporary(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.grit-tmp")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
