"""Effects on files. Each is undone only as far as what is there is still ours."""

import errno
import glob
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime.errors import GritError
from grit_runtime.host import files, mounts, proc
from grit_runtime.host.transaction import Effect, read_journal


@dataclass(frozen=True)
class MakeDirectory(Effect):
    """Make one directory; undone by removing it if it is empty."""

    kind: ClassVar[str] = "make-directory"
    path: str
    mode: int = 0o700

    def describe(self) -> str:
        return f"make directory {self.path}"

    def apply(self) -> None:
        os.mkdir(self.path, self.mode)

    def undo(self) -> None:
        try:
            os.rmdir(self.path)
        except OSError:
            return  # not made, or somebody else put something there


@dataclass(frozen=True)
class MakeShared(Effect):
    """Make one directory, or find it made by another transaction that has this effect, too; undone by removing it if it
    is empty, so that the last one to be undone does.
    """

    kind: ClassVar[str] = "make-shared"
    path: str

    def describe(self) -> str:
        return f"make directory {self.path}"

    def apply(self) -> None:
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            return

    def undo(self) -> None:
        try:
            os.rmdir(self.path)
        except OSError:
            return  # not made, or others are still in it


def missing_directories(path: str) -> list[MakeDirectory]:
    """What has to be made for `path` to exist, outermost first.

    Raises:
        NotADirectoryError: something else stands in the way.
    """
    missing: list[MakeDirectory] = []
    while not os.path.isdir(path):
        if os.path.lexists(path):
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory", path)
        missing.insert(0, MakeDirectory(path))
        path = os.path.dirname(path)
    return missing


@dataclass(frozen=True)
class MakeMountpoint(Effect):
    """Make an empty directory or file to mount on, below a directory that holds somebody else's names: no link in it is
    followed. Undone by removing it if it is still empty, unless it was there before.
    """

    kind: ClassVar[str] = "make-mountpoint"
    base: str
    path: str
    directory: bool

    def describe(self) -> str:
        return f"make mountpoint {self.path} in {self.base}"

    def apply(self) -> None:
        parent, name = os.path.split(self.path)
        fd = files.open_beneath(self.base, parent, os.O_PATH | os.O_DIRECTORY)
        try:
            if self.directory:
                os.mkdir(name, 0o755, dir_fd=fd)
            else:
                how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, how, 0o644, dir_fd=fd))
        finally:
            os.close(fd)

    def undo(self) -> None:
        parent, name = os.path.split(self.path)
        try:
            fd = files.open_beneath(self.base, parent, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        try:
            if self.directory:
                os.rmdir(name, dir_fd=fd)
            elif os.stat(name, dir_fd=fd, follow_symlinks=False).st_size == 0:
                os.unlink(name, dir_fd=fd)
        except OSError:
            return  # not made, or somebody else put something there
        finally:
            os.close(fd)


def missing_mountpoints(base: str, path: str, *, directory: bool) -> list[MakeMountpoint]:
    """What has to be made for `path` below `base` to be a mountpoint, outermost first.

    Raises:
        OSError: a link, a file or a directory is in the way.
    """
    words = path.split("/")
    for count in range(len(words)):
        inner = "/".join(words[: count + 1])
        try:
            found = files.lstat_beneath(base, inner)
        except FileNotFoundError:
            rest = ["/".join(words[: number + 1]) for number in range(count, len(words))]
            return [MakeMountpoint(base, made, directory or made != path) for made in rest]
        if stat.S_ISDIR(found.st_mode) != (directory or inner != path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.path.join(base, inner))
    return []


@dataclass(frozen=True)
class MakeTree(Effect):
    """Make a directory of a name that is ours alone; undone with everything in it."""

    kind: ClassVar[str] = "make-tree"
    path: str

    def describe(self) -> str:
        return f"make directory {self.path} and what it holds"

    def apply(self) -> None:
        os.mkdir(self.path, 0o700)

    def undo(self) -> None:
        files.remove_tree(self.path)


@dataclass(frozen=True)
class ReplaceFile(Effect):
    """Give a file another content, from `replacement`, keeping the old in `backup`; undone if the content is still the
    new one.
    """

    kind: ClassVar[str] = "replace-file"
    path: str
    replacement: str
    backup: str
    digest: str

    def describe(self) -> str:
        return f"edit {self.path}"

    def apply(self) -> None:
        with open(self.replacement, "rb") as stream:
            files.write_atomically(self.path, stream.read(), os.stat(self.path).st_mode & 0o777)

    def undo(self) -> None:
        files.remove_temporary(self.path)
        try:
            with open(self.path, "rb") as stream:
                current = stream.read()
        except FileNotFoundError:
            return  # the caller removed the bundle meanwhile
        if hashlib.sha256(current).hexdigest() != self.digest:
            return
        with open(self.backup, "rb") as stream:
            files.write_atomically(self.path, stream.read(), os.stat(self.path).st_mode & 0o777)


def replace_file(path: str, old: bytes, new: bytes, directory: str) -> ReplaceFile:
    """Prepare a `ReplaceFile`, its two contents lying in `directory`."""
    name = os.path.basename(path)
    replacement, backup = os.path.join(directory, f"{name}.new"), os.path.join(directory, f"{name}.old")
    files.write_atomically(replacement, new)
    files.write_atomically(backup, old)
    return ReplaceFile(path, replacement, backup, hashlib.sha256(new).hexdigest())


@dataclass(frozen=True)
class WriteFile(Effect):
    """Write a small file that wasn't there, such as a pid file; undone if it still holds what we wrote."""

    kind: ClassVar[str] = "write-file"
    path: str
    content: str
    mode: int = 0o644

    def describe(self) -> str:
        return f"write {self.path}"

    def apply(self) -> None:
        files.write_atomically(self.path, self.content.encode(), self.mode)

    def undo(self) -> None:
        files.remove_temporary(self.path)
        if files.read_text(self.path) == self.content:
            os.unlink(self.path)


@dataclass(frozen=True)
class MountOptions(Effect):
    """Let programs run that change the options of a mount of the host; undone by setting them as they were.

    CRIU mounts cgroup2 for itself, in the host's cgroup namespace and without options (criu/cgroup.c, prepare_cgns and
    the yard): the kernel then takes `nsdelegate` and `memory_recursiveprot` from the whole node
    (kernel/cgroup/cgroup.c, cgroup_get_tree).
    """

    kind: ClassVar[str] = "mount-options"
    path: str
    options: str
    super_options: str

    def describe(self) -> str:
        return f"keep the options of {self.path}"

    def apply(self) -> None:
        return

    def undo(self) -> None:
        current = [entry for entry in mounts.own() if entry.mountpoint == self.path]
        if current and not _words(self.super_options) <= _words(current[-1].super_options):
            mounts.remount(self.path, self.options, _joined(self.super_options, current[-1].super_options))


def cgroup_options(state_dir: str = "") -> list[MountOptions]:
    """An effect for each cgroup2 mount of ours.

    Args:
        state_dir: where journals are. Another call that is under way may have lost the options just now, and its
            journal knows them.
    """
    options = {entry.mountpoint: entry for entry in mounts.own() if entry.fstype == "cgroup2"}
    known: dict[str, str] = {path: entry.super_options for path, entry in options.items()}
    for journal in glob.glob(os.path.join(glob.escape(state_dir), "*/*/journal")) if state_dir and options else ():
        for effect in _effects_of(journal):
            if isinstance(effect, MountOptions) and effect.path in known:
                known[effect.path] = _joined(known[effect.path], effect.super_options)
    return [MountOptions(path, entry.options, known[path]) for path, entry in options.items()]


def _effects_of(journal: str) -> list[Effect]:
    try:
        record = read_journal(journal)
    except (GritError, OSError):
        return []
    return [effect for _, effect in record.effects] if record else []


def _words(options: str) -> set[str]:
    return set(options.split(","))


def _joined(one: str, other: str) -> str:
    words = one.split(",")
    return ",".join([*words, *(word for word in other.split(",") if word not in words)])


@dataclass(frozen=True)
class Programs(Effect):
    """Run programs of the downstream, marked by an entry of their environment, and CRIU by the directory of its images,
    too; undone when none of them exists any more.

    They outlive us when we are killed: a dump or restore under way must be over before what it touched can be put back.
    """

    kind: ClassVar[str] = "programs"
    marker: str
    images: str = ""
    grace: float = 0.0
    timeout: float = 30.0

    def describe(self) -> str:
        return f"run programs with {self.marker}"

    def apply(self) -> None:
        return

    def undo(self) -> None:
        if not proc.end_all(self.marker, self.images, grace=self.grace, timeout=self.timeout):
            raise OSError("they do not end")
