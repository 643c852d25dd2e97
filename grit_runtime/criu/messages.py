"""The entries of CRIU's images as dictionaries. The only user of pycriu, which comes with CRIU itself.

`pycriu.images` imports the generated modules of every kind of image, eighty of them. These modules find each other by
their bare names, in a directory that pycriu puts into `sys.path` (pycriu/images/__init__.py); so the few kinds that are
read here are imported from there one by one. Whatever that doesn't work for goes to pycriu as a whole, which also has
the words for what is wrong with an image.
"""

import functools
import importlib
import os
import sys
from importlib.machinery import PathFinder
from typing import Any

from grit_runtime.errors import CheckpointError

# criu/include/magic.h: IMG_COMMON_MAGIC and IMG_SERVICE_MAGIC stand before an image's own.
_COMMON_MAGIC = ((0x54564319).to_bytes(4, "little"), (0x55105940).to_bytes(4, "little"))

# pycriu/images/images.py, handlers: those whose entries are messages and nothing else.
_KINDS = {
    "INVENTORY": ("inventory_pb2", "inventory_entry"),
    "PSTREE": ("pstree_pb2", "pstree_entry"),
    "CORE": ("core_pb2", "core_entry"),
    "IDS": ("core_pb2", "task_kobj_ids_entry"),
    "MM": ("mm_pb2", "mm_entry"),
    "MNTS": ("mnt_pb2", "mnt_entry"),
    "UTSNS": ("utsns_pb2", "utsns_entry"),
    "FILES": ("fdinfo_pb2", "file_entry"),
    "FDINFO": ("fdinfo_pb2", "fdinfo_entry"),
    "SECCOMP": ("seccomp_pb2", "seccomp_entry"),
    "REMAP_FPATH": ("remap_file_path_pb2", "remap_file_path_entry"),
}

Entries = list[dict[str, Any]]


def header_size(data: bytes) -> int:
    """How many bytes stand before the first entry."""
    return 8 if data[:4] in _COMMON_MAGIC else 4


def is_a(data: bytes, magic: str) -> bool:
    """Whether the image says of itself to be of this kind."""
    start = header_size(data)
    known = pycriu().magic if _lean() is None else _module("magic")
    return bool(int.from_bytes(data[start - 4 : start], "little") == known.by_name.get(magic))


def loads(data: bytes, magic: str) -> tuple[str, Entries]:
    """Decode an image whose framing is whole: which it is, and its entries.

    Args:
        magic: which one it should be.

    Raises:
        Exception: pycriu's and protobuf's own, of many kinds.
    """
    start = header_size(data)
    lean = _lean()
    if lean is None or not is_a(data, magic):
        image: dict[str, Any] = pycriu().loads(data)
        return image["magic"], image["entries"]
    message, entries = message_class(magic), []
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        entries.append(lean.pb2dict(whole(message.FromString(data[start + 4 : end]))))
        start = end
    return magic, entries


def dumps(header: bytes, magic: str, entries: Entries) -> bytes:
    """The bytes of an image; `entries` are used up.

    Args:
        header: what stands before the first entry.
    """
    lean = _lean()
    if lean is None:
        encoded: bytes = pycriu().dumps({"magic": magic, "entries": entries})
        return encoded
    parts = [header]
    for entry in entries:
        message = message_class(magic)()
        lean.dict2pb(entry, message)
        encoded = message.SerializeToString()
        parts += [len(encoded).to_bytes(4, "little"), encoded]
    return b"".join(parts)


def whole(message: Any) -> Any:
    """The same message. Raises ValueError: a field that must be there isn't, which protobuf's decoder takes."""
    if not message.IsInitialized():
        raise ValueError("it lacks fields that must be there")
    return message


@functools.cache
def message_class(magic: str) -> Any:
    """The generated class of an image's entries."""
    module, name = _KINDS[magic]
    return getattr(pycriu().pb if _lean() is None else _module(module), name)


@functools.cache
def _lean() -> Any:
    """pycriu's module pb2dict, if its modules can be imported one by one; else None."""
    if sys.version_info >= (3, 14) or not _directory():
        return None  # from 3.14 on, pycriu chooses another implementation of protobuf first (pycriu/__init__.py)
    if _directory() not in sys.path:
        sys.path.append(_directory())
    try:
        _module("magic")
        return _module("pb2dict")
    except Exception:  # noqa: BLE001 - whatever is wrong with it, pycriu as a whole says it
        return None


@functools.cache
def _directory() -> str:
    found = PathFinder.find_spec("pycriu")
    places = found.submodule_search_locations if found else None
    return os.path.join(places[0], "images") if places else ""


def _module(name: str) -> Any:
    """One of pycriu's modules, and no other of that name."""
    module = importlib.import_module(name)
    if os.path.dirname(module.__file__ or "") != _directory():
        raise ImportError(f"{name} is {module.__file__}")
    return module


@functools.cache
def pycriu() -> Any:
    """CRIU's package as a whole. Raises CheckpointError: it isn't there."""
    try:
        from pycriu import images
    except ImportError as err:
        raise CheckpointError(
            f"cannot decode CRIU images: {err}", hint="install CRIU's Python package pycriu"
        ) from None
    return images
