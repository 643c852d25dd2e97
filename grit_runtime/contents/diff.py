"""What a container changed in its rootfs: the upper directory of its overlay, as a layer of the OCI image spec
(layer.md, "Change Types").

How overlay keeps a change is told in the kernel's Documentation/filesystems/overlayfs.rst: a whiteout is a character
device 0:0 or, in a directory whose `opaque` attribute is `x`, an empty file with the attribute `whiteout`; a directory
that replaces one of the lower layers has `opaque` set to `y`. A file with `metacopy` has its content, and a directory
with `redirect` its entries, in a lower layer: these are read through the merged view. So is a layer's order of entries:
a directory, its opaque mark, what it holds.
"""

import os
import re
import stat
from dataclasses import dataclass

from grit_runtime.contents import walk
from grit_runtime.contents.archive import Writer
from grit_runtime.errors import CaptureError
from grit_runtime.host import mounts

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_OCTAL = re.compile(r"\\([0-7]{3})")
_ESCAPED = re.compile(r"\\(.)")
_PREFIXES = (b"trusted.overlay.", b"user.overlay.")


class NoDiffError(CaptureError):
    """There is nothing that holds the changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Where an overlay's changes lie, and where it is mounted."""

    upper: str
    merged: str


def overlay(rootfs: str, table: list[mounts.MountEntry]) -> Overlay:
    """Find the overlay that is mounted at a bundle's rootfs.

    Raises:
        NoDiffError: it is none, or one without an upper directory that we can find.
    """
    real = os.path.realpath(rootfs)
    found = [entry for entry in table if entry.mountpoint == real]
    if not found:
        raise NoDiffError("the rootfs is no mount of its own")
    if found[-1].fstype != "overlay":
        raise NoDiffError(f"the rootfs is on {found[-1].fstype}, not on overlay")
    words = _options(found[-1].super_options)
    if not words.get("upperdir"):
        raise NoDiffError("the overlay has no upper directory")
    return Overlay(upper=_upper(words), merged=real)


def write(writer: Writer, found: Overlay) -> None:
    """Write the whole diff."""
    with walk.opened(found.upper) as upper, walk.opened(found.merged) as merged:
        _Diff(writer).directory(upper, merged, b".", os.fstat(upper))


def _options(text: str) -> dict[str, str]:
    """Options of an overlay as mountinfo shows them: odd characters of a value as octal (fs/seq_file.c,
    seq_show_option), a comma among them.
    """
    words = (word.partition("=") for word in text.split(","))
    return {key: _OCTAL.sub(lambda match: chr(int(match[1], 8)), value) for key, _, value in words}


def _upper(words: dict[str, str]) -> str:
    """The upper directory. Depending on the kernel, the value still has the backslashes that mount(2) took off."""
    value = words.get("upperdir", "")
    for path in (value, _ESCAPED.sub(r"\1", value)):
        if path.startswith("/") and os.path.isdir(path):
            return path
    raise NoDiffError(f"the overlay's upper directory {value!r} cannot be found from here")


class _Diff:
    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def directory(self, upper: int, merged: int, name: bytes, found: os.stat_result, depth: int = 0) -> None:
        """Write an open directory of the upper layer, `merged` being the same in the merged view."""
        own = walk.xattrs(upper, b".")
        marks = overlay_marks(own)
        self.writer.add(upper, b".", name, found, plain(own))
        if b"redirect" in marks:
            self.writer.empty(_join(name, OPAQUE), found)
            self.merged(merged, name, depth)
            return
        if marks.get(b"opaque") == b"y":
            self.writer.empty(_join(name, OPAQUE), found)
        for entry in sorted(os.fsencode(word) for word in os.listdir(upper)):
            self._entry(upper, merged, name, entry, depth)

    def _entry(self, upper: int, merged: int, parent: bytes, base: bytes, depth: int) -> None:
        name = _join(parent, base)
        found = os.stat(base, dir_fd=upper, follow_symlinks=False)
        attributes = walk.xattrs(upper, base)
        if is_whiteout(found, attributes):
            self.writer.empty(_join(parent, WHITEOUT + base), found)
        elif base.startswith(WHITEOUT):
            self.writer.note(name, "a layer cannot hold this name")
        elif stat.S_ISDIR(found.st_mode):
            _check_depth(name, depth)
            with walk.opened(base, upper) as inner, walk.opened(base, merged) as same:
                self.directory(inner, same, name, found, depth + 1)
        elif b"metacopy" in overlay_marks(attributes):
            there = os.stat(base, dir_fd=merged, follow_symlinks=False)
            self.writer.add(merged, base, name, there, plain(walk.xattrs(merged, base)))
        else:
            self.writer.add(upper, base, name, found, plain(attributes))

    def merged(self, directory: int, parent: bytes, depth: int) -> None:
        """Write what an open directory of the merged view holds."""
        for base in sorted(os.fsencode(word) for word in os.listdir(directory)):
            name = _join(parent, base)
            found = os.stat(base, dir_fd=directory, follow_symlinks=False)
            if base.startswith(WHITEOUT):
                self.writer.note(name, "a layer cannot hold this name")
                continue
            self.writer.add(directory, base, name, found, plain(walk.xattrs(directory, base), escaped=False))
            if stat.S_ISDIR(found.st_mode):
                _check_depth(name, depth)
                with walk.opened(base, directory) as inner:
                    self.merged(inner, name, depth + 1)


def tree(writer: Writer, directory: int, parent: bytes = b".", depth: int = 0) -> None:
    """Write what an open directory holds that is no overlay's layer, as it is."""
    for base in sorted(os.fsencode(word) for word in os.listdir(directory)):
        name = _join(parent, base)
        found = os.stat(base, dir_fd=directory, follow_symlinks=False)
        writer.add(directory, base, name, found, walk.xattrs(directory, base))
        if stat.S_ISDIR(found.st_mode):
            _check_depth(name, depth)
            with walk.opened(base, directory) as inner:
                tree(writer, inner, name, depth + 1)


def overlay_marks(attributes: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Overlay's own attributes, by their short names."""
    return {
        key[len(prefix) :]: value
        for key, value in attributes.items()
        for prefix in _PREFIXES
        if key.startswith(prefix) and not key.startswith(prefix + b"overlay.")
    }


def plain(attributes: dict[bytes, bytes], *, escaped: bool = True) -> dict[bytes, bytes]:
    """The attributes that a container sees: without overlay's own, and those of an overlay within it, which are kept
    as `PREFIX.overlay.NAME`, under their names.
    """
    found = {}
    for key, value in attributes.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), b"")
        if not prefix or not escaped:
            found[key] = value
        elif key.startswith(prefix + b"overlay."):
            found[prefix + key[len(prefix) + len(b"overlay.") :]] = value
    return found


def is_whiteout(found: os.stat_result, attributes: dict[bytes, bytes]) -> bool:
    """Whether an entry of an upper directory says that there is nothing."""
    if stat.S_ISCHR(found.st_mode):
        return found.st_rdev == 0
    return stat.S_ISREG(found.st_mode) and found.st_size == 0 and b"whiteout" in overlay_marks(attributes)


def _check_depth(name: bytes, depth: int) -> None:
    if depth >= walk.MAX_DEPTH:
        raise NoDiffError(f"{os.fsdecode(name)[:60]!r}... is nested deeper than {walk.MAX_DEPTH} directories")


def _join(parent: bytes, base: bytes) -> bytes:
    return base if parent == b"." else parent + b"/" + base
