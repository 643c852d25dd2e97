"""Writing a tar archive (POSIX pax, pax(1)) of a directory tree that a tenant may have filled.

Standard library's tarfile can't write sparse files, and holds every member in memory: the headers are made here. What
is written is read back by tarfile, by Go's archive/tar (containerd, podman, checkpointctl) and by GNU tar. A sparse
file has GNU's form 1.0 (GNU tar manual, "Storing Sparse Files"), an extended attribute the key `SCHILY.xattr.NAME`.
"""

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import BinaryIO

from grit_runtime.errors import CaptureError
from grit_runtime.host import extents

BLOCK = 512
CHUNK = 1 << 20
MAX_NOTED = 20

_TYPES = {stat.S_IFIFO: b"6", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5"}
_XATTR = b"SCHILY.xattr."
_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL_SIZE = 0o77777777777


class TooLargeError(CaptureError):
    """The archive would be larger than it may be."""


@dataclass(kw_only=True)
class Writer:
    """An archive that is being written to a new file.

    Args:
        stream: the file, open for writing.
        limit: its largest size in bytes.
    """

    stream: BinaryIO
    limit: int
    entries: int = 0
    noted: list[str] = field(default_factory=list)
    """What could not be archived, at most `MAX_NOTED`."""
    left_out: int = 0
    _seen: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def note(self, name: bytes, reason: str) -> None:
        """Remember that something isn't in the archive."""
        self.left_out += 1
        if len(self.noted) < MAX_NOTED:
            self.noted.append(f"{os.fsdecode(name)}: {reason}")

    def close(self) -> int:
        """Write the end of the archive; its size is returned."""
        self.stream.write(bytes(2 * BLOCK))
        self.stream.flush()
        return self.stream.tell()

    def empty(self, name: bytes, like: os.stat_result) -> None:
        """Add an empty file: a whiteout."""
        self._header(name, b"0", like, mode=0o600)

    def add(self, directory: int, base: bytes, name: bytes, found: os.stat_result, xattrs: dict[bytes, bytes]) -> None:
        """Add what `base` is in an open directory, under `name`; a directory without what is in it."""
        kind = stat.S_IFMT(found.st_mode)
        for key in [key for key in xattrs if b"=" in key]:  # would end the key in a pax record
            self.note(name, f"its extended attribute {os.fsdecode(key)!r}")
            del xattrs[key]
        if kind == stat.S_IFSOCK:
            self.note(name, "a unix socket, which exists only while its owner has it open")
        elif kind == stat.S_IFREG:
            if not self._hard_link(name, found):
                self._regular(directory, base, name, found, xattrs)
        elif kind == stat.S_IFLNK:
            target = os.readlink(base, dir_fd=directory)
            self._header(name, b"2", found, xattrs=xattrs, link=target)
        elif kind == stat.S_IFDIR:
            self._header(name + b"/", b"5", found, xattrs=xattrs)
        elif not self._hard_link(name, found):
            self._header(name, _TYPES[kind], found, xattrs=xattrs)

    def _hard_link(self, name: bytes, found: os.stat_result) -> bool:
        if found.st_nlink < 2:
            return False
        first = self._seen.setdefault((found.st_dev, found.st_ino), name)
        if first == name:
            return False
        self._header(name, b"1", found, link=first)
        return True

    def _regular(
        self, directory: int, base: bytes, name: bytes, found: os.stat_result, xattrs: dict[bytes, bytes]
    ) -> None:
        fd = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC, dir_fd=directory)
        try:
            size = os.fstat(fd).st_size
            parts = segments(fd, size)
            stored = sum(length for _, length in parts)
            if stored == size:
                self._header(name, b"0", found, size=size, xattrs=xattrs)
            else:
                parts = [*parts, (size, 0)]
                table = "".join(f"{offset}\n{length}\n" for offset, length in parts)
                encoded = _padded(f"{len(parts)}\n{table}".encode())
                self._header(name, b"0", found, size=len(encoded) + stored, xattrs=xattrs, sparse=size)
                self.stream.write(encoded)
            self._reserve(stored)
            self.stream.flush()
            for offset, length in parts:
                copy(fd, self.stream.fileno(), offset, length)
            self.stream.seek(0, os.SEEK_END)
            self.stream.write(bytes(-stored % BLOCK))
        finally:
            os.close(fd)

    def _reserve(self, size: int) -> None:
        if self.stream.tell() + size > self.limit:
            raise TooLargeError(f"it is larger than {self.limit} bytes")

    def _header(
        self,
        name: bytes,
        kind: bytes,
        found: os.stat_result,
        *,
        mode: int | None = None,
        size: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
        link: bytes = b"",
        sparse: int | None = None,
    ) -> None:
        self.entries += 1
        sign = b"-" if found.st_mtime_ns < 0 else b""
        pax = {b"mtime": sign + b"%d.%09d" % divmod(abs(found.st_mtime_ns), 10**9)}
        pax |= {_XATTR + key: value for key, value in (xattrs or {}).items()}
        if sparse is not None:
            pax |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": name}
            pax[b"GNU.sparse.realsize"] = b"%d" % sparse
            name = b"GNUSparseFile.0"  # tarfile lets a record `path` win over GNU.sparse.name
        for key, value in ((b"path", name), (b"linkpath", link)):
            if len(value) > 100 or not value.isascii():
                pax[key] = value
        for key, number in ((b"uid", found.st_uid), (b"gid", found.st_gid)):
            if number > _MAX_OCTAL_ID:
                pax[key] = b"%d" % number
        if any(not _is_utf8(value) for value in pax.values()):
            pax = {b"hdrcharset": b"BINARY", **pax}
        records = b"".join(_record(key, value) for key, value in pax.items())
        self._reserve(len(records) + 4 * BLOCK)
        self.stream.write(_ustar(b"././@PaxHeader", b"x", 0o644, len(records), None, b""))
        self.stream.write(_padded(records))
        mode = stat.S_IMODE(found.st_mode) if mode is None else mode
        self.stream.write(_ustar(name, kind, mode, size, found, link))


def segments(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that hold data, as offset and length."""
    return [(begin, end - begin) for begin, end in extents.data(fd, 0, size)]


def copy(source: int, target: int, offset: int, length: int, *, at: int | None = None) -> None:
    """Copy bytes between files, in the kernel where it can.

    Args:
        at: where to in `target`; its end if None.

    Raises:
        OSError: the source is shorter, or the target can't hold it.
    """
    position = os.lseek(target, 0, os.SEEK_END) if at is None else at
    end = offset + length
    in_kernel = True
    while offset < end:
        count = min(end - offset, 64 * CHUNK)
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, count, offset, position)
            except OSError as err:
                if err.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ETXTBSY):
                    raise
                in_kernel = False
                continue
        else:
            done = _write_at(target, os.pread(source, min(count, CHUNK), offset), position)
        if not done:
            raise OSError(errno.EIO, "the file is shorter than it was")
        offset, position = offset + done, position + done


def _write_at(fd: int, data: bytes, position: int) -> int:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, position)
        view, position = view[done:], position + done
    return len(data)


def _record(key: bytes, value: bytes) -> bytes:
    """One record of a pax header: its own length, in decimal, comes first."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    while bare + len(str(length)) != length:
        length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(name: bytes, kind: bytes, mode: int, size: int, found: os.stat_result | None, link: bytes) -> bytes:
    uid, gid, seconds, device = (found.st_uid, found.st_gid, found.st_mtime_ns // 10**9, 0) if found else (0, 0, 0, 0)
    if found and kind in (b"3", b"4"):
        device = found.st_rdev
    fields = (
        _text(name, 100),
        b"%07o\0" % mode,
        b"%07o\0" % min(uid, _MAX_OCTAL_ID),
        b"%07o\0" % min(gid, _MAX_OCTAL_ID),
        b"%011o\0" % size if size <= _MAX_OCTAL_SIZE else b"\x80" + size.to_bytes(11, "big"),
        b"%011o\0" % min(max(seconds, 0), _MAX_OCTAL_SIZE),
        b" " * 8,
        kind,
        _text(link, 100),
        b"ustar\x0000",
        bytes(64),
        b"%07o\0" % os.major(device),
        b"%07o\0" % os.minor(device),
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _text(value: bytes, size: int) -> bytes:
    """A field of text; a longer one stands in the pax header, and only its beginning here."""
    return value[:size].ljust(size, b"\0")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
