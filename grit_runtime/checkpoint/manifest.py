"""grit.json: what a restore needs to know of a checkpoint. It is written last and by rename, so that its presence
means complete.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files

FORMAT = 1
MAX_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest as it was read; `data` is the whole document (docs/checkpoint-format.md)."""

    data: dict[str, Any]
    sizes: dict[str, int]

    @property
    def architecture(self) -> str:
        """The machine's, as uname(2) says it."""
        return str(self.data["machine"]["architecture"])

    def entries(self, section: str) -> list[dict[str, Any]]:
        """The objects of a list in the document, empty where there is none."""
        found = self.data.get(section)
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def encode(data: dict[str, Any]) -> bytes:
    """The bytes of a manifest."""
    return (json.dumps({"format": FORMAT, **data}, indent=1) + "\n").encode()


def read(images: str) -> Manifest | None:
    """Read the manifest beside the images; None if there is none.

    Raises:
        CheckpointError: it is damaged, of a newer format, or files that it lists are gone or of another size.
    """
    path = os.path.join(images, names.MANIFEST)
    try:
        data = files.read_json(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise CheckpointError(f"manifest {path} is damaged: {err}") from None
    manifest = _checked(path, data)
    _check_sizes(images, manifest.sizes)
    return manifest


def is_unfinished(images: str) -> bool:
    """Whether a dump into this directory was begun and has neither ended nor been recovered."""
    return os.path.lexists(os.path.join(images, names.PARTIAL))


def file_sizes(directory: str) -> dict[str, int]:
    """Name to size in bytes of every regular file, as the manifest lists them."""
    with os.scandir(directory) as entries:
        return {
            entry.name: entry.stat().st_size
            for entry in sorted(entries, key=lambda e: e.name)
            if entry.is_file(follow_symlinks=False)
        }


def _checked(path: str, data: Any) -> Manifest:
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise CheckpointError(f"manifest {path} is damaged: it has no format number")
    if data["format"] > FORMAT:
        raise CheckpointError(
            f"manifest {path} has format {data['format']}; this grit-runtime reads up to {FORMAT}",
            hint="upgrade grit-runtime on this node",
        )
    try:
        sizes = {str(entry["name"]): int(entry["bytes"]) for entry in data["files"]}
        manifest = Manifest(data=data, sizes=sizes)
        _ = manifest.architecture
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"manifest {path} is damaged: {type(err).__name__} {err}") from None
    return manifest


def _check_sizes(images: str, sizes: dict[str, int]) -> None:
    wrong = []
    for name, expected in sizes.items():
        if "/" in name:
            raise CheckpointError(f"the manifest in {images} lists a file outside: {name!r}")
        try:
            size = os.lstat(os.path.join(images, name)).st_size
        except OSError:
            wrong.append(f"{name} is missing")
            continue
        if size != expected:
            wrong.append(f"{name} has {size} bytes instead of {expected}")
    if wrong:
        raise CheckpointError(f"checkpoint {images} is damaged: {'; '.join(wrong[:10])}", hint="copy it again")
