"""What mount ids of CRIU's log stand for, by the images that the log is about."""

import glob
import os

from grit_runtime.criu import raw
from grit_runtime.criu.images import MAX_IMAGE_BYTES
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files
from grit_runtime.inspection import words


def by_id(images: str) -> dict[int, str]:
    """Mount id to mountpoint within the container; empty where there are no images, or none that can be read."""
    found: dict[int, str] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(images), "mountpoints-*.img")))[:16]:
        try:
            data = files.read_bounded(path, MAX_IMAGE_BYTES)
            for entry in raw.decode(data or b"", os.path.basename(path), "MNTS"):
                found[entry.mnt_id] = words.shown(raw.word(entry.mountpoint))
        except (CheckpointError, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found
