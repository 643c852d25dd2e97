"""Open files whose name was deleted while another one is left (remap-fpath.img, images/remap-file-path.proto).

CRIU gives such a file a name of its own beside the deleted one, `link_remap.N`, through which a restore opens it
(criu/files-reg.c, create_link_remap).
"""

import os
from dataclasses import dataclass

from grit_runtime.criu import images

_LINKED = ("LINKED", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remap:
    """A file by its deleted name and by CRIU's, both as paths within the container."""

    deleted: str
    name: str


def read(path: str) -> list[Remap]:
    """The files that the checkpoint at `path` reaches by names of CRIU's. Raises CheckpointError."""
    if not os.path.exists(os.path.join(path, "remap-fpath.img")):
        return []
    entries = images.load(path, "remap-fpath.img", "REMAP_FPATH")
    linked = [entry for entry in entries if entry.get("remap_type", "LINKED") in _LINKED]
    if not linked:
        return []
    regular = {
        entry["id"]: "/" + entry["reg"]["name"].lstrip("/")
        for entry in images.load(path, "files.img", "FILES")
        if "reg" in entry
    }
    return [
        Remap(deleted=regular[entry["orig_id"]], name=regular[entry["remap_id"]])
        for entry in linked
        if entry["orig_id"] in regular and entry["remap_id"] in regular
    ]
