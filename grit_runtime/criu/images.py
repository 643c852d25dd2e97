"""CRIU's images, decoded.

An image file is a magic word and a list of protobuf messages (criu/include/magic.h, images/*.proto). Only the small
ones are read: never pages.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grit_runtime.criu import filesystems, messages
from grit_runtime.errors import CheckpointError
from grit_runtime.host.files import read_bounded

# Of a small image: a hundred thousand mounts fit. What becomes of them in memory is a hundred times as large.
MAX_IMAGE_BYTES = 16 << 20
MAX_ENTRIES = 1 << 17
MAX_PROCESSES = 1 << 16

FILES = "files.img"
REMAPS = "remap-fpath.img"

Fields = dict[str, Any]
"""What to set in an entry: a field of value None is removed, a dict goes into a message within."""
Changes = dict[int, Fields | None]
"""An entry's index to what changes in it; None takes the entry out."""

# compel/include/uapi/task-state.h; core.proto, task_state
_TASK_DEAD = 2
_TASK_STOPPED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMount:
    """One entry of mountpoints-N.img (images/mnt.proto), with the file and place where it stands."""

    file: str
    index: int
    mnt_id: int
    parent_id: int
    mountpoint: str
    source: str
    root: str
    fstype: str
    ext_key: str
    deleted: bool
    shared_id: int = 0
    master_id: int = 0
    flags: int = 0
    """Of the mount and of its file system, as mount(2) has them."""
    device: int = 0
    """Its file system's, by which CRIU takes two mounts for views of one (criu/mount.c, mounts_sb_equal)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One file or directory of files.img (images/regfile.proto) that a task has open, mapped, as its program or as its
    working directory.

    `remap` says how CRIU keeps one whose name was gone at the dump (images/remap-file-path.proto): GHOST with its
    content in the images, LINKED by a link of another name, PROCFS; empty for a file with a name.
    """

    id: int
    index: int
    path: str
    mnt_id: int
    size: int | None = None
    mode: int = 0
    remap: str = ""
    remap_id: int = 0
    remap_index: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcess:
    """One entry of pstree.img; `pid` is the one in the container's pid namespace."""

    pid: int
    ppid: int
    threads: int
    stopped: bool = False
    zombie: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What the small images of a checkpoint say."""

    path: str
    files: tuple[str, ...]
    mounts: tuple[ImageMount, ...]
    processes: tuple[ImageProcess, ...]
    version: int
    open_files: tuple[OpenFile, ...] = ()
    plugins: tuple[str, ...] = ()
    """CRIU's plugins that took part in the dump."""


def read(path: str) -> Images:
    """Decode the images in directory `path`.

    Raises:
        CheckpointError: a file is missing, truncated, too large, or not the image that its name says.
    """
    try:
        files = tuple(sorted(os.listdir(path)))
    except OSError as err:
        raise CheckpointError(f"cannot read the images in {path}: {err.strerror}") from None
    for needed in ("inventory.img", "pstree.img"):
        if needed not in files:
            raise CheckpointError(f"{path} holds no CRIU images: {needed} is missing")
    (inventory,) = load(path, "inventory.img", "INVENTORY")[:1] or ({},)
    mounts = [
        mount
        for name in files
        if name.startswith("mountpoints-") and name.endswith(".img")
        for mount in _mounts(path, name)
    ]
    return Images(
        path=path,
        files=files,
        mounts=tuple(mounts),
        processes=tuple(_processes(path, files)),
        version=int(inventory.get("img_version", 0)),
        open_files=tuple(_open_files(path, files)),
        plugins=tuple(inventory.get("plugins_entry", {}).get("plugins", ())),
    )


def rewrite(path: str, name: str, changes: Changes) -> bytes:
    """The bytes of image `name` with some entries changed."""
    magic, data = _magic(name), read_file(path, name)
    entries = _decode(os.path.join(path, name), data, magic)
    for index, fields in changes.items():
        if fields is not None:
            _set(entries[index], fields)
    kept = [entry for index, entry in enumerate(entries) if changes.get(index, {}) is not None]
    return messages.dumps(data[: messages.header_size(data)], magic, kept)


def is_rewritable(path: str, name: str) -> bool:
    """Whether the image can be written again without loss: one of a CRIU that knows fields which this pycriu doesn't
    know cannot.
    """
    return rewrite(path, name, {}) == read_file(path, name)


def _set(entry: dict[str, Any], fields: Fields) -> None:
    for field, value in fields.items():
        if value is None:
            entry.pop(field, None)
        elif isinstance(value, dict):
            _set(entry[field], value)
        else:
            entry[field] = value


def _magic(name: str) -> str:
    kinds = {
        "mountpoints": "MNTS",
        "utsns": "UTSNS",
        FILES: "FILES",
        REMAPS: "REMAP_FPATH",
        "inventory.img": "INVENTORY",
    }
    return kinds[name if name in kinds else name.partition("-")[0]]


def _mounts(path: str, name: str) -> list[ImageMount]:
    return [
        ImageMount(
            file=name,
            index=index,
            mnt_id=entry["mnt_id"],
            parent_id=entry["parent_mnt_id"],
            mountpoint=entry["mountpoint"],
            source=entry.get("source", ""),
            root=entry.get("root", ""),
            fstype=filesystems.name(int(entry["fstype"]), str(entry.get("fsname", ""))),
            ext_key=entry.get("ext_key", ""),
            deleted=bool(entry.get("deleted", False)),
            shared_id=int(entry.get("shared_id", 0)),
            master_id=int(entry.get("master_id", 0)),
            flags=int(entry["flags"]) | int(entry.get("sb_flags", 0)),
            device=int(entry["root_dev"]),
        )
        for index, entry in enumerate(load(path, name, "MNTS"))
    ]


def _open_files(path: str, files: tuple[str, ...]) -> list[OpenFile]:
    if FILES not in files:
        return []  # before CRIU 3.3 each kind of file had an image of its own
    remaps = load(path, REMAPS, "REMAP_FPATH") if REMAPS in files else []
    remapped = {entry["orig_id"]: (index, entry) for index, entry in enumerate(remaps)}
    found = []
    for index, entry in enumerate(load(path, FILES, "FILES")):
        regular = entry.get("reg")
        if regular is None or regular.get("ext"):
            continue
        remap_index, remap = remapped.get(regular["id"], (-1, {}))
        found.append(
            OpenFile(
                id=regular["id"],
                index=index,
                path=regular["name"],
                mnt_id=regular.get("mnt_id", -1),
                size=regular.get("size"),
                mode=regular.get("mode", 0),
                remap=str(remap.get("remap_type", "")),
                remap_id=int(remap.get("remap_id", 0)),
                remap_index=remap_index,
            )
        )
    return found


def _processes(path: str, files: tuple[str, ...]) -> list[ImageProcess]:
    entries = load(path, "pstree.img", "PSTREE")
    if not entries:
        raise CheckpointError(f"image {os.path.join(path, 'pstree.img')} holds no process")
    if len(entries) > MAX_PROCESSES:
        raise CheckpointError(f"image {os.path.join(path, 'pstree.img')} holds {len(entries)} processes")
    present = frozenset(files)
    states = {entry["pid"]: _task_state(path, f"core-{entry['pid']}.img", present) for entry in entries}
    return [
        ImageProcess(
            pid=entry["pid"],
            ppid=entry["ppid"],
            threads=len(entry.get("threads", ())),
            stopped=states[entry["pid"]] == _TASK_STOPPED,
            zombie=states[entry["pid"]] == _TASK_DEAD,
        )
        for entry in entries
    ]


def _task_state(path: str, name: str, present: frozenset[str]) -> int:
    if name not in present:
        return 0
    return int(first(path, name, "CORE").tc.task_state)


def first(path: str, name: str, magic: str) -> Any:
    """The first entry of a small image, as protobuf's message: there may be thousands of processes and a hundred
    thousand mappings, and pycriu takes a millisecond to make dictionaries of one process' registers.

    Raises:
        CheckpointError: it can't be read, or isn't a `magic` image.
    """
    file, data = os.path.join(path, name), read_file(path, name)
    with _damages(file):
        _check_framing(file, data)
        if not messages.is_a(data, magic):
            raise CheckpointError(f"image {file} is not a {magic} image")
        start = messages.header_size(data)
        size = int.from_bytes(data[start : start + 4], "little")
        if not size:
            raise ValueError("it holds nothing")
        return messages.whole(messages.message_class(magic).FromString(data[start + 4 : start + 4 + size]))


def load(path: str, name: str, magic: str) -> messages.Entries:
    """The entries of a small image, which are decoded once and not to be changed.

    Raises:
        CheckpointError: it can't be read, or isn't a `magic` image.
    """
    file = os.path.join(path, name)
    try:
        found = os.stat(file)
    except OSError as err:
        raise CheckpointError(f"cannot read image {file}: {err.strerror}") from None
    return _decoded(path, name, magic, (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _decoded(path: str, name: str, magic: str, _: tuple[int, int, int]) -> messages.Entries:
    return _decode(os.path.join(path, name), read_file(path, name), magic)


def read_file(path: str, name: str) -> bytes:
    """The bytes of a small image. Raises CheckpointError: it can't be read, or is too large."""
    file = os.path.join(path, name)
    try:
        data = read_bounded(file, MAX_IMAGE_BYTES)
    except OSError as err:
        raise CheckpointError(f"cannot read image {file}: {err.strerror}") from None
    if data is None:
        raise CheckpointError(f"image {file} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return data


def _decode(file: str, data: bytes, magic: str) -> messages.Entries:
    with _damages(file):
        _check_framing(file, data)
        found, entries = messages.loads(data, magic)
    if found != magic:
        raise CheckpointError(f"image {file} is a {found} image, not {magic}")
    return entries


@contextlib.contextmanager
def _damages(file: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as err:  # noqa: BLE001 - pycriu and protobuf raise a bare Exception, MagicException, struct.error and more
        raise CheckpointError(
            f"image {file} is damaged: {type(err).__name__} {err}", hint="it was cut short, or is no CRIU image"
        ) from None


def _check_framing(file: str, data: bytes) -> None:
    """Each message stands behind its size, and the last must end where the file does: pycriu takes what a cut left."""
    offset, count = messages.header_size(data), 0
    while offset + 4 <= len(data):
        offset += 4 + int.from_bytes(data[offset : offset + 4], "little")
        count += 1
    if count > MAX_ENTRIES:
        raise CheckpointError(f"image {file} holds more than {MAX_ENTRIES} entries")
    if offset != len(data):
        raise CheckpointError(f"image {file} is damaged: it was cut short, or is no CRIU image")
