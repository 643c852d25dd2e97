"""A container's log as a CRI runtime writes it for kubelet.

`/var/log/pods/<namespace>_<pod>_<uid>/<container>/<restart>.log` (kubelet, pkg/kubelet/kuberuntime/helpers.go,
BuildContainerLogsDirectory), one line per record with time, stream and tag. The names come from annotations and the
directories may be anything: none is followed through a link.
"""

import os
import re
import stat
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime import names
from grit_runtime.contents import walk
from grit_runtime.contents.archive import copy
from grit_runtime.errors import CaptureError, GritError, RestoreError
from grit_runtime.host.transaction import Effect

_LOG = re.compile(r"([0-9]{1,9})\.log")
_CHUNK = 1 << 20


class NoLogError(CaptureError):
    """There is no log that we know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A log: the directory's names below the root, and the file's."""

    root: str
    directories: tuple[str, str]
    file: str

    @property
    def path(self) -> str:
        """For messages."""
        return os.path.join(self.root, *self.directories, self.file)

    def open(self, flags: int) -> int:
        """Open the file, following no link.

        Raises:
            NoLogError: it is no plain file.
        """
        directory = walk.below(self.root, *self.directories)
        try:
            fd = os.open(self.file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NoLogError(f"{self.path} is no plain file")
        return fd


def find(root: str, annotations: dict[str, str]) -> Place:
    """The newest log of the container that the annotations describe.

    Raises:
        NoLogError: there is none.
    """
    keys = (names.POD_NAMESPACE, names.POD_NAME, names.POD_UID, names.CONTAINER_NAME)
    words = [names.first(annotations, key) for key in keys]
    if not all(words):
        raise NoLogError("the container's annotations name no pod and container")
    namespace, pod, uid, container = (str(word) for word in words)
    directories = (f"{namespace}_{pod}_{uid}", container)
    try:
        directory = walk.below(root, *directories)
    except OSError as err:
        raise NoLogError(f"{os.path.join(root, *directories)}: {err.strerror}") from None
    except GritError as err:
        raise NoLogError(f"the container's annotations: {err}") from None
    try:
        found = [match for name in os.listdir(directory) if (match := _LOG.fullmatch(name))]
    finally:
        os.close(directory)
    if not found:
        raise NoLogError(f"{os.path.join(root, *directories)} holds no log")
    return Place(root=root, directories=directories, file=max(found, key=lambda match: int(match[1]))[0])


def save(place: Place, target: str, limit: int) -> tuple[int, int]:
    """Copy a log's whole lines, the newest if they are more than `limit` bytes, into a new file.

    Returns:
        How many bytes were copied, and how many are before them.
    """
    source = place.open(os.O_RDONLY)
    try:
        end = _after_last_newline(source, os.fstat(source).st_size)
        begin = 0 if end <= limit else _after_newline(source, end - limit - 1, end)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy(source, fd, begin, end - begin)
        finally:
            os.close(fd)
    finally:
        os.close(source)
    return end - begin, begin


def _after_newline(fd: int, position: int, end: int) -> int:
    while position < end and (data := os.pread(fd, _CHUNK, position)):
        index = data.find(b"\n")
        if index >= 0:
            return min(position + index + 1, end)
        position += len(data)
    return end


def _after_last_newline(fd: int, end: int) -> int:
    while end > 0:
        begin = max(0, end - _CHUNK)
        index = os.pread(fd, end - begin, begin).rfind(b"\n")
        if index >= 0:
            return begin + index + 1
        end = begin
    return 0


@dataclass(frozen=True)
class AppendLog(Effect):
    """Put the lines of `archive` at the end of a log, before the new container writes its first; undone if nothing
    came after them.
    """

    kind: ClassVar[str] = "append-log"
    root: str
    directories: list[str]
    file: str
    archive: str
    named: str
    """The archive's path for a later process: ours may be a descriptor's."""
    inode: int
    size: int
    """The log's, before."""
    length: int
    """The archive's."""

    def describe(self) -> str:
        return f"put the old lines into {self._place().path}"

    def apply(self) -> None:
        place = self._place()
        try:
            target = place.open(os.O_WRONLY)
            try:
                with open(self.archive, "rb") as stream:
                    copy(stream.fileno(), target, 0, self.length, at=self.size)
            finally:
                os.close(target)
        except OSError as err:
            raise RestoreError(f"cannot put the old lines into {place.path}: {err.strerror}") from None

    def undo(self) -> None:
        try:
            target = self._place().open(os.O_RDWR)
        except (FileNotFoundError, NoLogError):
            return  # the pod is gone
        try:
            found = os.fstat(target)
            same = found.st_ino == self.inode and self.size < found.st_size <= self.size + self.length
            if same and self._is_ours(target, found.st_size - self.size):
                os.ftruncate(target, self.size)
        finally:
            os.close(target)

    def _is_ours(self, target: int, length: int) -> bool:
        if not os.path.isfile(self.named):
            return False
        with open(self.named, "rb") as stream:
            for offset in range(0, length, _CHUNK):
                count = min(_CHUNK, length - offset)
                if os.pread(stream.fileno(), count, offset) != os.pread(target, count, self.size + offset):
                    return False
        return True

    def _place(self) -> Place:
        first, second = self.directories
        return Place(root=self.root, directories=(first, second), file=self.file)


def append(place: Place, archive: str, named: str = "") -> AppendLog:
    """An effect that appends `archive`; see `AppendLog`."""
    fd = place.open(os.O_RDONLY)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    length = os.stat(archive, follow_symlinks=False).st_size
    directories = list(place.directories)
    return AppendLog(
        place.root, directories, place.file, archive, named or archive, found.st_ino, found.st_size, length
    )
