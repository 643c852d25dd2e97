"""The mappings of a process (mm-N.img, images/mm.proto)."""

import os
from typing import Any

from grit_runtime.criu import images, messages
from grit_runtime.errors import CheckpointError


def mappings(path: str, pid: int) -> list[Any]:
    """The mappings of a process, as messages with the fields of images/vma.proto. There may be a hundred thousand, for
    which pycriu's own decoding takes seconds.

    Raises:
        CheckpointError: the image can't be read.
    """
    file, data = os.path.join(path, f"mm-{pid}.img"), images.read_file(path, f"mm-{pid}.img")
    start = messages.header_size(data)
    size = int.from_bytes(data[start : start + 4], "little")
    if not 0 < size == len(data) - start - 4:
        raise CheckpointError(f"image {file} is damaged: it was cut short, or is no CRIU image")
    try:
        message = messages.message_class("MM").FromString(data[start + 4 :])
    except CheckpointError:
        raise
    except Exception as err:  # noqa: BLE001 - protobuf's own
        raise CheckpointError(f"image {file} is damaged: {type(err).__name__} {err}") from None
    return list(message.vmas)
