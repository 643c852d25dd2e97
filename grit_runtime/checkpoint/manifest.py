"""grit.json: what a restore needs to know of a checkpoint. It is written last and by rename, so that its presence
means complete.
"""

import json
import os
from collections.abc import Mapping
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
    manifest = checked(path, data)
    _check_sizes(images, manifest.sizes)
    return manifest


def wrong_sizes(expected: Mapping[str, int], there: Mapping[str, int]) -> list[str]:
    """What is missing or of another size than the manifest lists, in words."""
    wrong = []
    for name, size in expected.items():
        if name not in there:
            wrong.append(f"{name} is missing")
        elif there[name] != size:
            wrong.append(f"{name} has {there[name]} bytes instead of {size}")
    return wrong


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


def checked(path: str, data: Any) -> Manifest:
    """The manifest that a JSON document is; the files that it lists are not looked at.

    Args:
        path: where it was read, for messages.

    Raises:
        CheckpointError: it is none, or of a newer format.
    """
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
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"manifest {path} is damaged: {type(err).__name__} {err}") from None
    return manifest


def _check_sizes(images: str, sizes: dict[str, int]) -> None:
    there = {}
    for name in sizes:
        if "/" in name:
            raise CheckpointError(f"the manifest in {images} lists a file outside: {name!r}")
        try:
            there[name] = os.lstat(os.path.join(images, name)).st_size
        except OSError:
            continue
    wrong = wrong_sizes(sizes, there)
    if wrong:
        raise CheckpointError(f"checkpoint {images} is damaged: {'; '.join(wrong[:10])}", hint="copy it again")
