"""What kind of checkpoint lies at a path, and where its parts are (docs/checkpoint-kinds.md)."""

import enum
import json
import os
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files

_INVENTORY = "inventory.img"
_MAX_DUMP_BYTES = 16 << 20
_GRIT_SENTINEL = "download-state"


class Kind(enum.Enum):
    """Who wrote a checkpoint."""

    OWN = "grit-runtime's"
    RUNC = "plain images, as runc writes them"
    FOLDER = "a folder as GRIT writes it"
    ARCHIVE = "an archive of kubelet's, CRI-O's or podman's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint's parts, by their paths; empty for what it doesn't have."""

    kind: Kind
    images: str
    """The directory with CRIU's images."""
    rootfs_diff: str = ""
    deleted_files: str = ""
    """podman's and CRI-O's list of what was deleted from the rootfs."""
    devshm: str = ""
    log: str = ""
    own: bool = False
    """Whether a manifest of ours lists the parts."""
    complete: bool = False
    """Whether something says that it was written to its end."""
    container: str = ""
    """The container's name in its pod, where the checkpoint says so."""
    namespace: str = ""
    """Its pod's, where what isn't a manifest of ours says so."""


def find(path: str, shown: str = "") -> Found:
    """Look at the directory `path`: images, or what holds a directory `checkpoint` with images.

    Args:
        shown: what people know it by, if `path` is a descriptor's.

    Raises:
        CheckpointError: it is neither.
    """
    if os.path.exists(os.path.join(path, _INVENTORY)) or os.path.lexists(os.path.join(path, names.PARTIAL)):
        if os.path.exists(os.path.join(path, names.MANIFEST)):
            return Found(kind=Kind.OWN, images=path, own=True, complete=True)  # the manifest lists its parts
        above = os.path.join(path, os.pardir) if shown else os.path.dirname(path)
        name = os.path.basename(shown or path)
        if name == names.IMAGES_DIR and os.path.exists(os.path.join(above, names.ROOTFS_DIFF)):
            return _beside(above, path, Kind.FOLDER)
        return Found(kind=Kind.RUNC, images=path)
    images = os.path.join(path, names.IMAGES_DIR)
    if os.path.exists(os.path.join(images, _INVENTORY)):
        return _beside(path, images, Kind.FOLDER)
    raise CheckpointError(f"{path} holds no CRIU images: {_INVENTORY} is missing")


def unpacked(path: str) -> Found:
    """The parts of an archive that was unpacked into the directory `path`."""
    return _beside(path, os.path.join(path, names.IMAGES_DIR), Kind.ARCHIVE)


def _beside(base: str, images: str, kind: Kind) -> Found:
    def part(name: str) -> str:
        file = os.path.join(base, name)
        return file if os.path.isfile(file) and not os.path.islink(file) else ""

    described = bool(part(names.CONFIG_DUMP) and part(names.SPEC_DUMP))
    arrived = os.path.exists(os.path.join(base, os.pardir, _GRIT_SENTINEL))
    annotations = _annotations(part(names.SPEC_DUMP))
    return Found(
        kind=kind,
        images=images,
        rootfs_diff=part(names.ROOTFS_DIFF),
        deleted_files=part(names.DELETED_FILES),
        devshm=part(names.DEV_SHM),
        log=part(names.CONTAINER_LOG),
        complete=described if kind is Kind.ARCHIVE else arrived,
        container=names.first(annotations, names.CONTAINER_NAME) or "",
        namespace=names.first(annotations, names.POD_NAMESPACE) or "",
    )


def _annotations(spec: str) -> dict[str, str]:
    """Those of spec.dump (an OCI runtime spec) that are strings."""
    if not spec:
        return {}
    try:
        found = files.read_json(spec, _MAX_DUMP_BYTES).get("annotations") or {}
        return {key: value for key, value in found.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise CheckpointError(f"{spec} is damaged: {err}") from None


def dumps(manifest: dict[str, object]) -> dict[str, bytes]:
    """config.dump and spec.dump as checkpointctl reads them (its lib/metadata.go), made of a manifest of ours."""
    container, versions = manifest.get("container"), manifest.get("versions")
    described = container if isinstance(container, dict) else {}
    downstream = versions.get("downstream") if isinstance(versions, dict) else None
    config = {
        "id": described.get("id"),
        "name": described.get("name") or described.get("id"),
        "rootfsImageName": described.get("image") or "",
        "rootfsImageRef": described.get("imageDigest") or "",
        "runtime": os.path.basename(str(downstream.get("path", ""))) if isinstance(downstream, dict) else "",
        "createdTime": manifest.get("created"),
        "checkpointedTime": manifest.get("created"),
    }
    return {
        names.CONFIG_DUMP: json.dumps(config, indent=1).encode(),
        names.SPEC_DUMP: json.dumps(manifest.get("spec"), indent=1).encode(),
    }
