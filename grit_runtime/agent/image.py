"""A set as an OCI image: which layers it has, and the two documents above them. Pure.

**Layers.** Each is a tar of its own (`application/vnd.oci.image.layer.v1.tar`, not compressed, so that a layer's digest
is that of its content) with parts of one container's files, at most `PIECE` bytes of them. A file that is larger goes
into several layers, each of which has a range of it, named `FILE.part-OFFSET`; the holes of a file are in none. So
memory images of any size travel side by side, nothing but the ranges is read, and no copy is made on the way.

**Config.** An image's, as docker and skopeo want it. Its member `grit`, which the image spec has others ignore
(config.md, "Any extra fields"), says which range of which file lies where in which layer: the restoring side goes by
that alone, and never looks at a tar's names.

**Annotations.** `org.criu.checkpoint.*` are those of checkpoint-restore/checkpointctl (lib/metadata.go), which
containerd looks for (internal/cri/server/container_checkpoint_linux.go, checkIfCheckpointOCIImage: in the manifest);
`io.kubernetes.cri-o.annotations.checkpoint.name` is CRI-O's (pkg/annotations, server/container_restore.go). Both take
an image that has the container's name there for a checkpoint, not for a program. A set of several containers has all
their names there, and each layer's descriptor that of its own.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from grit_runtime import __version__

PIECE = 128 << 20
MOST_LAYERS = 1 << 12
"""containers/image takes manifests of 4 MiB; a set that would need more has larger pieces."""
GAP = 256 << 10
"""A hole that is smaller than this travels as zeros."""
FORMAT = 1
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "grit"
CONTAINER = "org.criu.checkpoint.container.name"
_CRIO = "io.kubernetes.cri-o.annotations.checkpoint.name"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a file, and where in its layer that is."""

    path: str
    offset: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What of one container's files is in a layer, in its order."""

    parts: tuple[Part, ...]
    size: int
    """Bytes of the whole tar."""

    @property
    def data(self) -> int:
        """Bytes of files in it."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Index:
    """The files of a set, with their sizes, and the layers."""

    files: Mapping[str, int]
    """Path below the set's directory, `CONTAINER/checkpoint/NAME`."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is said of a set besides what is in it."""

    created: str
    """RFC 3339."""
    uid: str
    """The Checkpoint's."""
    namespace: str
    pod: str
    pod_uid: str
    containers: tuple[str, ...]
    architecture: str
    """As uname(2) says it."""
    kernel: str = ""
    criu: str = ""
    images: tuple[str, ...] = ()
    """What the containers were made from."""


def container(path: str) -> str:
    """Whose a file is."""
    return path.partition("/")[0]


def plan(sizes: Mapping[str, int], ranges: Mapping[str, Sequence[tuple[int, int]]], piece: int = PIECE) -> Index:
    """Lay files out. One that doesn't fit into what is left of a layer begins another, so that its layers are the same
    ones whatever lies beside it.

    Args:
        sizes: path to bytes.
        ranges: path to offset and size of what is no hole, in order.
        piece: bytes of files in a layer, at most; doubled until there are not too many of them.
    """
    total = sum(size for found in ranges.values() for _, size in found)
    # Any two that follow each other hold more than one piece, but for the last of a container.
    while total > piece * (MOST_LAYERS // 2 - len({container(path) for path in sizes})):
        piece *= 2
    layers: list[Layer] = []
    filling = _Filling()
    for path in sorted(sizes):
        data = sum(size for _, size in ranges[path])
        other = filling.parts and container(filling.parts[0].path) != container(path)
        if other or (filling.parts and filling.data + data > piece):
            layers.append(filling.done())
        for offset, size in ranges[path] or [(0, 0)]:
            end = offset + size
            while True:
                count = min(end - offset, piece - filling.data)
                filling.add(path, offset, count, whole=(offset, count) == (0, sizes[path]))
                offset += count
                if filling.data >= piece:
                    layers.append(filling.done())
                if offset >= end:
                    break
    if filling.parts:
        layers.append(filling.done())
    return Index(files=dict(sizes), layers=tuple(layers))


class _Filling:
    """A layer that is being filled."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.data = self.size = 0

    def add(self, path: str, offset: int, size: int, *, whole: bool) -> None:
        at = self.size + len(header(path, offset, size, whole=whole))
        self.parts.append(Part(path, offset, size, at))
        self.data += size
        self.size = at + size + -size % _BLOCK

    def done(self) -> Layer:
        made = Layer(tuple(self.parts), self.size + len(_END))
        self.parts, self.data, self.size = [], 0, 0
        return made


def header(path: str, offset: int, size: int, *, whole: bool) -> bytes:
    """What stands before a part in its tar."""
    name = path if whole else f"{path}.part-{offset:016x}"
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry.tobuf(tarfile.PAX_FORMAT)


def segments(index: Index, layer: Layer) -> Iterator[bytes | Part]:
    """A layer from its beginning to its end: bytes as they stand, and parts whose bytes are in their files."""
    for part in layer.parts:
        yield header(part.path, part.offset, part.size, whole=(part.offset, part.size) == (0, index.files[part.path]))
        if part.size:
            yield part
        if part.size % _BLOCK:
            yield bytes(-part.size % _BLOCK)
    yield _END


def config(index: Index, digests: Sequence[str], facts: Facts) -> bytes:
    """The image's config.

    Args:
        digests: of the layers.
    """
    numbers = {path: number for number, path in enumerate(index.files)}
    listed = [[[numbers[part.path], part.offset, part.size, part.at] for part in layer.parts] for layer in index.layers]
    made = {
        "created": facts.created,
        "architecture": _ARCHITECTURES.get(facts.architecture, facts.architecture),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": list(digests)},
        INDEX: {"format": FORMAT, "files": [[path, size] for path, size in index.files.items()], "layers": listed},
    }
    return json.dumps(made, separators=(",", ":")).encode()


def manifest(index: Index, digests: Sequence[str], described: tuple[str, int], facts: Facts) -> bytes:
    """The image's manifest.

    Args:
        digests: of the layers.
        described: digest and size of the config.
    """
    layers = [
        {
            "mediaType": LAYER,
            "digest": digest,
            "size": layer.size,
            "annotations": {CONTAINER: container(layer.parts[0].path)},
        }
        for digest, layer in zip(digests, index.layers, strict=True)
    ]
    made = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": described[0], "size": described[1]},
        "layers": layers,
        "annotations": annotations(facts),
    }
    return json.dumps(made, separators=(",", ":")).encode()


def annotations(facts: Facts) -> dict[str, str]:
    """What the manifest says of the set; what isn't known is left out."""
    listed = ",".join(facts.containers)
    said = {
        "org.opencontainers.image.created": facts.created,
        "org.criu.checkpoint.engine.name": "grit-runtime",
        "org.criu.checkpoint.engine.version": __version__,
        CONTAINER: listed,
        _CRIO: listed,
        "org.criu.checkpoint.pod.name": facts.pod,
        "org.criu.checkpoint.pod.id": facts.pod_uid,
        "org.criu.checkpoint.pod.namespace": facts.namespace,
        "org.criu.checkpoint.rootfsImageName": ",".join(facts.images),
        "org.criu.checkpoint.criu.version": facts.criu,
        "org.criu.checkpoint.host.arch": facts.architecture,
        "org.criu.checkpoint.host.kernel": facts.kernel,
        "grit.dev/checkpoint-uid": facts.uid,
    }
    return {key: value for key, value in said.items() if value}
