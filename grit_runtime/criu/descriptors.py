"""descriptors.json, made up of the images where it is missing.

runc writes beside the images what stdin, stdout and stderr of the first process were, and its restore needs the file:
it hands its own pipe to CRIU for each that is called `pipe:[N]` (libcontainer/criu_linux.go, Restore). A dump by criu
itself has none.
"""

import json
import os
from typing import Any

from grit_runtime.criu import images
from grit_runtime.errors import CheckpointError

_STDIO = 3


def make(path: str, root_pid: int) -> bytes:
    """The content of descriptors.json for the images at `path`.

    Args:
        root_pid: the first process' pid within the container.

    Raises:
        CheckpointError: an image is missing or damaged.
    """
    ids = images.load(path, f"ids-{root_pid}.img", "IDS")
    name = f"fdinfo-{ids[0]['files_id'] if ids else 0}.img"
    if not os.path.exists(os.path.join(path, name)):
        raise CheckpointError(f"{path} has no descriptors.json, and {name} to make it of is missing")
    opened = {entry["fd"]: entry["id"] for entry in images.load(path, name, "FDINFO")}
    files = {entry["id"]: entry for entry in images.load(path, images.FILES, "FILES")}
    return json.dumps([_named(files.get(opened.get(number, -1), {})) for number in range(_STDIO)]).encode()


def _named(entry: dict[str, Any]) -> str:
    """As readlink(2) of /proc/PID/fd/N named it; only pipes matter."""
    if "pipe" in entry:
        return f"pipe:[{entry['pipe']['pipe_id']}]"
    if "reg" in entry:
        return str(entry["reg"]["name"])
    return "/dev/null"
