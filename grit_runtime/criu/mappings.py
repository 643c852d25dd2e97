"""The mappings of a process (mm-N.img, images/mm.proto)."""

from typing import Any

from grit_runtime.criu import images


def mappings(path: str, pid: int) -> list[Any]:
    """The mappings of a process, as messages with the fields of images/vma.proto. There may be a hundred thousand.

    Raises:
        CheckpointError: the image can't be read.
    """
    return list(images.first(path, f"mm-{pid}.img", "MM").vmas)
