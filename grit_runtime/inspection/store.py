"""The files of a checkpoint, read within bounds: of a directory as they are asked for, of an archive in one pass."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.checkpoint import kinds, scan
from grit_runtime.checkpoint.integrity import Place
from grit_runtime.config import Archive
from grit_runtime.criu.images import MAX_IMAGE_BYTES
from grit_runtime.errors import CheckpointError

MAX_READ = 512 << 20  # bytes of all small files together
_HEAD = 64 << 10
_LOG = "dump.log"
_DOCUMENTS = frozenset({names.CONFIG_DUMP, names.SPEC_DUMP, names.MANIFEST})


@dataclass(slots=True, kw_only=True)
class Store:
    """What a checkpoint consists of. `sizes` are those of what lies among the images, `beside` of the rest."""

    path: str
    kind: kinds.Kind
    complete: bool
    images: str = ""
    """The directory; empty for an archive."""
    above: str = ""
    """The directory of what lies beside the images, if there is any."""
    unfinished: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    _scanned: scan.Scanned | None = None
    _left: int = MAX_READ

    def read(self, name: str, *, beside: bool = False) -> bytes:
        """A small file; of a log only its beginning.

        Raises:
            CheckpointError: it isn't there, is no file or too large, or too much was read already.
        """
        if self._scanned:
            return self._kept(self._scanned, name if beside else f"{names.IMAGES_DIR}/{name}")
        data = _read(os.path.join(self.above if beside else self.images, name), _HEAD if name == _LOG else 0)
        self._left -= len(data)
        if self._left < 0:
            raise CheckpointError(f"checkpoint {self.path} holds more than {MAX_READ >> 20} MiB of small images")
        return data

    def place(self, name: str) -> Place | None:
        """Where a file among the images can be read, unless it is compressed."""
        size = self.sizes[name]
        if not self._scanned:
            return Place(os.path.join(self.images, name), 0, size)
        offset = self._scanned.offsets.get(f"{names.IMAGES_DIR}/{name}")
        return None if offset is None else Place(self.path, offset, size)

    def _kept(self, scanned: scan.Scanned, name: str) -> bytes:
        if name in scanned.kept:
            return scanned.kept[name]
        if name in scanned.sizes:
            raise CheckpointError(f"{name} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
        raise CheckpointError(f"{name} is missing")


def open_store(path: str, bounds: Archive) -> Store:
    """Find out what lies at `path`.

    Raises:
        CheckpointError: no checkpoint.
    """
    if os.path.isdir(path):
        return _directory(path, bounds)
    if not os.path.lexists(path):
        raise CheckpointError(f"no such checkpoint: {path}")
    return _archive(path, bounds)


def _archive(path: str, bounds: Archive) -> Store:
    found = scan.scan(path, _keep, max_bytes=bounds.max_bytes, max_entries=bounds.max_entries, max_kept=MAX_READ)
    within = f"{names.IMAGES_DIR}/"
    sizes = {name.removeprefix(within): size for name, size in found.sizes.items() if name.startswith(within)}
    beside = {name: size for name, size in found.sizes.items() if "/" not in name}
    if not sizes:
        raise CheckpointError(found.wrong or f"archive {path} is no checkpoint: it holds no {within}inventory.img")
    return Store(
        path=path,
        kind=kinds.Kind.ARCHIVE,
        complete=names.CONFIG_DUMP in beside and names.SPEC_DUMP in beside and not found.wrong,
        sizes=sizes,
        beside=beside,
        wrong=(found.wrong,) if found.wrong else (),
        _scanned=found,
    )


def _keep(name: str, size: int) -> int:
    directory, _, base = name.rpartition("/")
    if base == _LOG:
        return _HEAD
    small = size <= MAX_IMAGE_BYTES and not base.startswith(scan.LARGE)
    if directory == names.IMAGES_DIR:
        return size if small and (base.endswith(".img") or base in _DOCUMENTS) else 0
    return size if small and not directory and base in _DOCUMENTS else 0


def _directory(path: str, bounds: Archive) -> Store:
    images = next((place for place in (path, os.path.join(path, names.IMAGES_DIR)) if _holds_images(place)), "")
    if not images:
        raise CheckpointError(f"{path} holds no CRIU images: inventory.img is missing", hint=_containers(path))
    sizes = _sizes(images, bounds.max_entries)
    if names.MANIFEST in sizes or "inventory.img" not in sizes:
        own = names.MANIFEST in sizes
        unfinished = not own and os.path.lexists(os.path.join(images, names.PARTIAL))
        return Store(
            path=images,
            kind=kinds.Kind.OWN,
            complete=own,
            images=images,
            unfinished=unfinished,
            sizes=sizes,
        )
    wrong: tuple[str, ...] = ()
    try:
        found = kinds.find(path)
    except CheckpointError as err:  # what lies beside the images is damaged
        found, wrong = kinds.Found(kind=kinds.Kind.FOLDER, images=images), (str(err),)
    above = os.path.dirname(found.images) if found.kind is kinds.Kind.FOLDER else ""
    return Store(
        path=path,
        kind=found.kind,
        complete=found.complete,
        images=found.images,
        above=above,
        unfinished=os.path.lexists(os.path.join(images, names.PARTIAL)),
        sizes=sizes,
        beside=_sizes(above, bounds.max_entries) if above else {},
        wrong=wrong,
    )


def _holds_images(path: str) -> bool:
    return any(os.path.lexists(os.path.join(path, name)) for name in ("inventory.img", names.MANIFEST, names.PARTIAL))


def _containers(path: str) -> str:
    """What to name instead of the directory of a pod."""
    try:
        found = sorted(os.listdir(path))[:1000]
    except OSError:
        return ""
    inner = [name for name in found if name.endswith(".tar") or _holds_images(os.path.join(path, name, "checkpoint"))]
    return f"it holds {', '.join(inner[:10])}: name one of them" if inner else ""


def _sizes(path: str, most: int) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if len(found) >= most:
                    raise CheckpointError(f"{path} holds more than {most} files", hint="raise `archive.max-entries`")
                if entry.is_file(follow_symlinks=False):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
    except OSError as err:
        raise CheckpointError(f"cannot read {path}: {err.strerror}") from None
    return dict(sorted(found.items()))


def _read(path: str, head: int) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise CheckpointError(f"{path} is no file")
            data = stream.read(head or MAX_IMAGE_BYTES + 1)
    except OSError as err:
        raise CheckpointError(f"cannot read {path}: {err.strerror}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return data
