"""A checkpoint for looking at it only: of an archive, the small images in a directory of ours, and of all else the
size.
"""

import os
import stat

from grit_runtime import names
from grit_runtime.checkpoint import archive, kinds, scan
from grit_runtime.config import Archive
from grit_runtime.criu.images import MAX_IMAGE_BYTES
from grit_runtime.errors import CheckpointError
from grit_runtime.host.beneath import Pin

_MAX_KEPT = 512 << 20  # bytes of all small files together
_DOCUMENTS = frozenset({names.CONFIG_DUMP, names.SPEC_DUMP, names.DELETED_FILES})


def find(pin: Pin, bounds: Archive, scratch: str) -> kinds.Found:
    """The parts of the checkpoint that is held open, as `source.open_source` finds them; files that hold memory or
    content are there by their size alone.

    Args:
        scratch: a directory that doesn't exist yet. It is made for an archive only, and the caller removes it.

    Raises:
        CheckpointError: there is nothing, or no checkpoint, or it couldn't be unpacked.
    """
    path = pin.path
    if stat.S_ISDIR(pin.stat().st_mode):
        return kinds.find(path, pin.shown)
    found = scan.scan(
        path, _keep, max_bytes=bounds.max_bytes, max_entries=bounds.max_entries, max_kept=_MAX_KEPT, held=True
    )
    if found.wrong:
        raise CheckpointError(found.wrong)
    wanted = {name: size for name, size in found.sizes.items() if archive.is_part(name)}
    archive.require_images(path, wanted)
    archive.require_room(path, sum(wanted.values()), _existing(bounds.unpack_dir))
    try:
        os.makedirs(os.path.join(scratch, names.IMAGES_DIR), mode=0o700)
        for name, size in wanted.items():
            with open(os.path.join(scratch, name), "xb") as stream:
                stream.write(found.kept.get(name, b""))
                stream.truncate(size)
    except OSError as err:
        raise CheckpointError(f"cannot look into {path}: {err.filename or scratch}: {err.strerror}") from None
    return kinds.unpacked(scratch)


def _keep(name: str, size: int) -> int:
    directory, _, base = name.rpartition("/")
    wanted = not base.startswith(scan.LARGE) if directory == names.IMAGES_DIR else base in _DOCUMENTS
    return size if wanted and archive.is_part(name) and size <= MAX_IMAGE_BYTES else 0


def _existing(path: str) -> str:
    while not os.path.isdir(path) and path not in ("/", ""):
        path = os.path.dirname(path)
    return path or "/"
