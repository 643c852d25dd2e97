"""Applying an archive to a directory, trusting neither.

Each name is walked from the root by descriptors, one component at a time, and none may be a link: whatever the archive
or the directory holds, nothing outside is touched. Applying again gives the same result, so that a second attempt may
go over the first one's leavings.
"""

import errno
import os
import stat
import tarfile
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.contents import plain, walk
from grit_runtime.contents.archive import copy
from grit_runtime.contents.diff import OPAQUE, WHITEOUT
from grit_runtime.errors import CheckpointError, RestoreError

MAX_PATH = 1 << 16
_XATTR = "SCHILY.xattr."


@dataclass(kw_only=True)
class Unpacker:
    """Applies one archive below one open directory.

    Args:
        root: the directory.
        layer: whether the archive is a layer, with whiteouts.
        devices: whether it may hold device nodes.
    """

    root: int
    layer: bool = True
    devices: bool = False
    entries: int = 0
    _device: int = field(init=False)
    _made: set[bytes] = field(default_factory=set)
    _directories: dict[bytes, int] = field(default_factory=dict)
    """Path to time, set last: making things in a directory changes its own."""

    def __post_init__(self) -> None:
        self._device = os.fstat(self.root).st_dev

    def apply(self, path: str, *, scratch: str = "", limit: int = 1 << 40) -> int:
        """Apply the archive; the number of its entries is returned.

        Args:
            scratch: a directory for what has to be decompressed; without one, only a plain tar file is read.
            limit: the most bytes that it may have when decompressed.

        Raises:
            CheckpointError: it is damaged, or holds what it may not.
            RestoreError: the directory can't take it.
        """
        member = None
        try:
            with plain.opened(path, scratch, limit) if scratch else open(path, "rb") as stream:
                source: Any = plain.Source(stream)
                tar = tarfile.TarFile(fileobj=source, mode="r", encoding="utf-8", errors="surrogateescape")
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]
                    self.entries += 1
                    self._entry(member, stream.fileno())
                plain.check_end(source, tar.offset)
            self._set_times()
        except plain.DAMAGED as err:
            raise CheckpointError(f"archive {path} is damaged: {err}") from None
        except CheckpointError as err:
            raise CheckpointError(f"archive {path}: {err.args[0]}") from None
        except OSError as err:
            at = f" at {member.name!r}" if member else ""
            raise RestoreError(f"cannot apply archive {path}{at}: {err.strerror}") from None
        return self.entries

    def delete(self, names: list[str]) -> None:
        """Remove paths, as CRI-O and podman list them in `deleted.files`."""
        for name in names:
            parts = split(os.fsencode(name).lstrip(b"/"))
            parent = self._parent(parts, make=False) if parts else None
            if parent is not None:
                try:
                    walk.remove(parent, parts[-1])
                finally:
                    os.close(parent)

    def _entry(self, member: tarfile.TarInfo, source: int) -> None:
        parts = split(_bytes(member.name))
        if not parts:
            if member.isdir():
                self._attributes(self.root, b".", member)
                self._directories[b""] = _time(member)
            return
        parent = self._parent(parts, make=True)
        assert parent is not None
        try:
            if self.layer and parts[-1] == OPAQUE:
                self._clear(parent, b"/".join(parts[:-1]))
            elif self.layer and parts[-1].startswith(WHITEOUT):
                hidden = split(parts[-1][len(WHITEOUT) :])
                if hidden:
                    walk.remove(parent, hidden[0])
            else:
                if self.layer:
                    self._made.add(b"/".join(parts))
                self._make(parent, parts, member, source)
        finally:
            os.close(parent)

    def _make(self, parent: int, parts: list[bytes], member: tarfile.TarInfo, source: int) -> None:
        name = parts[-1]
        if member.isdir():
            found = walk.lstat(parent, name)
            if found is None or not stat.S_ISDIR(found.st_mode):
                walk.remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
            self._directories[b"/".join(parts)] = _time(member)
        elif member.islnk():
            self._link(parent, name, split(_bytes(member.linkname)))
            return
        else:
            walk.remove(parent, name)
            self._node(parent, name, member, source)
        self._attributes(parent, name, member)

    def _node(self, parent: int, name: bytes, member: tarfile.TarInfo, source: int) -> None:
        if member.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                _content(member, source, fd)
            finally:
                os.close(fd)
        elif member.issym():
            os.symlink(_bytes(member.linkname), name, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            if not self.devices:
                raise CheckpointError(f"it holds a device node, {member.name!r}, and is not our own")
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        else:
            raise CheckpointError(f"{member.name!r} is of an unknown type, {member.type!r}")

    def _link(self, parent: int, name: bytes, target: list[bytes]) -> None:
        if not target:
            raise CheckpointError("a hard link leads nowhere")
        there = self._parent(target, make=False)
        if there is None:
            raise CheckpointError(f"a hard link leads to {b'/'.join(target)!r}, which is not there")
        try:
            found, old = walk.lstat(there, target[-1]), walk.lstat(parent, name)
            if found is None or stat.S_ISDIR(found.st_mode):
                raise CheckpointError(f"a hard link leads to {b'/'.join(target)!r}, which is no file")
            if old is None or (old.st_dev, old.st_ino) != (found.st_dev, found.st_ino):
                walk.remove(parent, name)
                os.link(target[-1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(there)

    def _attributes(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        path = walk.path_at(parent, name)
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        for old in walk.xattrs(parent, name) if member.isdir() else ():
            if old.startswith(b"user."):
                os.removexattr(path, old, follow_symlinks=False)
        if not member.issym():
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(member.mode))  # chown took the set-id bits
            finally:
                os.close(fd)
        for key, value in _xattrs(member).items():  # chown took security.capability, too
            try:
                os.setxattr(path, key, value, follow_symlinks=False)
            except OSError as err:
                raise OSError(err.errno, f"extended attribute {key}: {err.strerror}") from None
        if not member.isdir():
            os.utime(path, ns=(_time(member), _time(member)), follow_symlinks=False)

    def _clear(self, directory: int, prefix: bytes) -> None:
        """Remove from an open directory what this archive didn't make: a layer's order isn't fixed."""
        for entry in os.listdir(directory):
            name = os.fsencode(entry)
            path = prefix + b"/" + name if prefix else name
            if path not in self._made:
                walk.remove(directory, name)
            elif (found := walk.lstat(directory, name)) and stat.S_ISDIR(found.st_mode):
                with walk.opened(name, directory) as inner:
                    self._clear(inner, path)

    def _parent(self, parts: list[bytes], *, make: bool) -> int | None:
        """Open the directory of a name; with `make`, what is missing is made, otherwise None is returned."""
        fd = os.dup(self.root)
        for part in parts[:-1]:
            try:
                inner = self._enter(fd, part, make)
            except FileNotFoundError:
                return None
            except NotADirectoryError:
                raise CheckpointError(f"{b'/'.join(parts)!r} leads through a link or a file") from None
            except OSError as err:
                if err.errno != errno.ELOOP:
                    raise
                raise CheckpointError(f"{b'/'.join(parts)!r} leads through a link") from None
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _enter(self, directory: int, name: bytes, make: bool) -> int:
        try:
            fd = os.open(name, walk.DIRECTORY, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(name, 0o755, dir_fd=directory)
            fd = os.open(name, walk.DIRECTORY, dir_fd=directory)
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            raise CheckpointError(f"it leads into another mount, at {name!r}")
        return fd

    def _set_times(self) -> None:
        for path, when in self._directories.items():
            parts = path.split(b"/") if path else []
            parent = self._parent([*parts, b"."], make=False)
            if parent is not None:
                os.utime(parent, ns=(when, when))
                os.close(parent)


def split(name: bytes) -> list[bytes]:
    """The components of a name within an archive; none for the root itself.

    Raises:
        CheckpointError: it is absolute, goes up, or can't be a path.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name or len(name) > MAX_PATH:
        raise CheckpointError(f"it holds the name {os.fsdecode(name[:200])!r}, which leads outside")
    return parts


def _content(member: tarfile.TarInfo, source: int, target: int) -> None:
    """Copy a file's data; what is between the parts of a sparse file stays a hole."""
    position = member.offset_data
    parts: Any = getattr(member, "sparse", None)
    for offset, length in [(0, member.size)] if parts is None else parts:
        if offset < 0 or length < 0 or offset + length > member.size:
            raise CheckpointError(f"{member.name!r} has data beyond its end")
        copy(source, target, position, length, at=offset)
        position += length
    os.ftruncate(target, member.size)


def _time(member: tarfile.TarInfo) -> int:
    """The time of a change in nanoseconds; tarfile makes a float of it, which is too coarse."""
    text = member.pax_headers.get("mtime", "")
    seconds, _, fraction = text.partition(".")
    if not text:
        return int(member.mtime) * 10**9
    nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
    whole = int(seconds)
    return whole * 10**9 + (-nanoseconds if seconds.startswith("-") else nanoseconds)


def _xattrs(member: tarfile.TarInfo) -> dict[str, bytes]:
    return {
        key[len(_XATTR) :]: _bytes(value)
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR) and len(key) > len(_XATTR)
    }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
