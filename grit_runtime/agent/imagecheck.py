"""Reading the documents of an image that is to become a set. Whoever wrote them is not trusted: nothing is taken that
could lead out of the set's directory, overlap, or be larger than it says.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from grit_runtime.agent import image
from grit_runtime.agent.image import Index, Layer, Part
from grit_runtime.errors import CheckpointError

MOST_BYTES = 4 << 20
"""Of a manifest; what registries take, and containers/image."""
MOST_CONFIG = 32 << 20
_MOST_FILES = 1 << 18  # CRIU has two and more for each process and thread
_MOST_LAYER = 1 << 40
_DEEPEST = 8
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def manifest(data: bytes) -> tuple[tuple[str, int], list[tuple[str, int]]]:
    """Digest and size of the config, and of each layer. Raises CheckpointError: it is no image of ours."""
    found = _document(data, "manifest")
    if found.get("schemaVersion") != 2 or found.get("mediaType") != image.MANIFEST:
        raise _wrong("the manifest is no OCI image's")
    config, layers = found.get("config"), found.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list) or len(layers) > image.MOST_LAYERS:
        raise _wrong("the manifest has no config, or no list of layers, or too many")
    return _descriptor(config, image.CONFIG, MOST_CONFIG), [
        _descriptor(layer, image.LAYER, _MOST_LAYER) for layer in layers
    ]


def _descriptor(found: Any, kind: str, most: int) -> tuple[str, int]:
    if not isinstance(found, dict) or found.get("mediaType") != kind:
        raise _wrong(f"a descriptor isn't one of {kind}")
    digest, size = found.get("digest"), found.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _wrong(f"a descriptor has the digest {str(digest)[:100]!r}")
    if type(size) is not int or not 0 <= size <= most:
        raise _wrong(f"{digest} is said to have {str(size)[:30]} bytes")
    return digest, size


def index(data: bytes, layers: Sequence[tuple[str, int]], containers: Collection[str]) -> Index:
    """The files and what of them is in which layer.

    Args:
        layers: as `manifest` gave them.
        containers: whose files there may be.

    Raises:
        CheckpointError: it isn't as it should be.
    """
    found = _document(data, "config").get(image.INDEX)
    if not isinstance(found, dict) or found.get("format") != image.FORMAT:
        raise _wrong(f"its config has no {image.INDEX!r} of format {image.FORMAT}: another program has made it")
    files, listed = found.get("files"), found.get("layers")
    if not isinstance(files, list) or not isinstance(listed, list) or len(listed) != len(layers):
        raise _wrong("its config lists no files, or other layers than the manifest")
    sizes = _files(files, containers)
    paths = list(sizes)
    made = tuple(
        _layer(entry, digest, size, paths, sizes) for entry, (digest, size) in zip(listed, layers, strict=True)
    )
    _require_apart(made)
    return Index(files=sizes, layers=made)


def _files(listed: list[Any], containers: Collection[str]) -> dict[str, int]:
    if len(listed) > _MOST_FILES:
        raise _wrong(f"it lists {len(listed)} files")
    sizes: dict[str, int] = {}
    for entry in listed:
        match entry:
            case [str(path), int(size)] if type(size) is int and 0 <= size <= _MOST_LAYER and path not in sizes:
                _require_path(path, containers)
                sizes[path] = size
            case _:
                raise _wrong(f"it lists a file as {str(entry)[:100]!r}")
    directories = {path.rpartition("/")[0] for path in sizes}
    above = {directory[:end] for directory in directories for end in _ends(directory)}
    both = above & sizes.keys()
    if both:
        raise _wrong(f"{min(both)!r} is a file and a directory")
    return sizes


def _ends(directory: str) -> list[int]:
    return [*(found.start() for found in re.finditer("/", directory)), len(directory)]


def _require_path(path: str, containers: Collection[str]) -> None:
    words = path.split("/")
    if not 2 <= len(words) <= _DEEPEST or words[0] not in containers or re.search(r"[\x00-\x1f\x7f]", path):
        raise _wrong(f"it lists the file {path[:200]!r}")
    for word in words:
        if word in ("", ".", "..") or len(word.encode(errors="surrogatepass")) > 255:
            raise _wrong(f"it lists the file {path[:200]!r}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise _wrong(f"it lists the file {path[:200]!a}") from None


def _layer(entry: Any, digest: str, size: int, paths: Sequence[str], sizes: Mapping[str, int]) -> Layer:
    if not isinstance(entry, list):
        raise _wrong(f"it lists no parts of layer {digest}")
    parts, end = [], 0
    for one in entry:
        if not isinstance(one, list) or len(one) != 4 or not all(type(value) is int and value >= 0 for value in one):
            raise _wrong(f"it lists a part of layer {digest} as {str(one)[:100]!r}")
        number, offset, count, at = one
        if number >= len(paths) or at < end or at + count > size:
            raise _wrong(f"it lists a part of layer {digest} that can't be in it: {one}")
        if offset + count > sizes[paths[number]]:
            raise _wrong(f"it lists a part of {paths[number]!r} beyond its end")
        parts.append(Part(paths[number], offset, count, at))
        end = at + count
    return Layer(tuple(parts), size)


def _require_apart(layers: Sequence[Layer]) -> None:
    """Have no byte of a file come from two places."""
    ends: dict[str, int] = {}
    for part in sorted((part for layer in layers for part in layer.parts), key=lambda part: (part.path, part.offset)):
        if part.offset < ends.get(part.path, 0):
            raise _wrong(f"it has bytes of {part.path!r} twice")
        ends[part.path] = part.offset + part.size


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise _wrong(f"its {what} is no JSON") from None
    if not isinstance(found, dict):
        raise _wrong(f"its {what} is no object")
    return found


def _wrong(why: str) -> CheckpointError:
    return CheckpointError(f"the image in the registry is no checkpoint that can be restored: {why}")
