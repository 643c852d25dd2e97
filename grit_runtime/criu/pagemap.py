"""CRIU's pagemaps: which pages of a process stand where in its pages image (images/pagemap.proto).

A pagemap is a head that names `pages-N.img`, and entries in the order of their addresses. The pages of those that are
PRESENT stand in that file one after the other; the others take no room there. All fields are varints, so that they are
read and written here without pycriu, whose generated classes fit one version of CRIU only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grit_runtime.errors import CheckpointError

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4  # criu/include/image.h, PE_*
MAX_BYTES = 256 << 20
_MAX_ENTRIES = 1 << 23
# criu/include/magic.h: IMG_COMMON_MAGIC and PAGEMAP_MAGIC.
_MAGIC = (0x54564319).to_bytes(4, "little") + (0x56084025).to_bytes(4, "little")
_PAGES_ID, _ADDRESS, _PAGES, _IN_PARENT, _FLAGS, _PAGES_64 = 1, 1, 2, 3, 4, 5  # the fields' numbers
_MOST_PAGES = 1 << 40

Fields = dict[int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """Memory that stands in the pages image: bytes, page aligned; `offset` is its place there."""

    address: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Pagemap:
    """A pagemap; entries are fields by their numbers, as they stand in the image."""

    pages_id: int
    entries: tuple[Fields, ...]

    def runs(self) -> list[Run]:
        """What stands in the pages image; entries that continue each other are one run."""
        found: list[Run] = []
        offset = 0
        for entry in self.entries:
            if not flags(entry) & PRESENT:
                continue
            address, size = entry[_ADDRESS], pages(entry) * PAGE
            last = found[-1] if found else None
            if last and last.end == address:
                found[-1] = Run(last.address, last.offset, last.size + size)
            else:
                found.append(Run(address, offset, size))
            offset += size
        return found

    @property
    def size(self) -> int:
        """The bytes that the pages image must have."""
        return sum(pages(entry) for entry in self.entries if flags(entry) & PRESENT) * PAGE

    @property
    def has_parent(self) -> bool:
        """Whether some of it stands in the images of an earlier dump."""
        return any(flags(entry) & PARENT for entry in self.entries)


def flags(entry: Fields) -> int:
    """An entry's flags; before CRIU 3.4 there were none (criu/pagemap.c, init_compat_pagemap_entry)."""
    if entry.get(_IN_PARENT):
        return entry.get(_FLAGS, 0) | PARENT
    return entry.get(_FLAGS, PRESENT)


def pages(entry: Fields) -> int:
    """How many pages; CRIU 4.2 has a field of 64 bits for it."""
    return entry[_PAGES_64] if _PAGES_64 in entry else entry[_PAGES]


def address(entry: Fields) -> int:
    """Where it begins."""
    return entry[_ADDRESS]


def part(entry: Fields, begin: int, end: int) -> Fields:
    """A part of an entry, as one whose pages the images of an earlier dump hold."""
    count = _PAGES_64 if _PAGES_64 in entry else _PAGES
    return {**entry, _ADDRESS: begin, count: (end - begin) // PAGE, _FLAGS: PARENT}


def decode(data: bytes, name: str) -> Pagemap:
    """Parse a pagemap.

    Args:
        name: the image's, for messages.

    Raises:
        CheckpointError: it is damaged.
    """
    if data[:8] != _MAGIC:
        raise CheckpointError(f"image {name} is no pagemap")
    try:
        head, *entries = _messages(data)
        found = Pagemap(pages_id=head[_PAGES_ID], entries=tuple(entries))
        _check(found.entries)
    except (ValueError, IndexError, KeyError) as err:
        raise CheckpointError(f"image {name} is damaged: {type(err).__name__} {err}") from None
    return found


def pages_id(data: bytes, name: str) -> int:
    """The number of the pages image, from a pagemap's head alone.

    Raises:
        CheckpointError: it is damaged.
    """
    if data[:8] != _MAGIC:
        raise CheckpointError(f"image {name} is no pagemap")
    try:
        return next(_messages(data))[_PAGES_ID]
    except (ValueError, IndexError, KeyError, StopIteration) as err:
        raise CheckpointError(f"image {name} is damaged: {type(err).__name__} {err}") from None


def encode(pages_id: int, entries: Iterable[Fields]) -> bytes:
    """The bytes of a pagemap."""
    return _MAGIC + b"".join(
        len(message).to_bytes(4, "little") + message for message in map(_message, ({_PAGES_ID: pages_id}, *entries))
    )


def _check(entries: tuple[Fields, ...]) -> None:
    end = 0
    for entry in entries:
        count = pages(entry)
        if entry[_ADDRESS] % PAGE or entry[_ADDRESS] < end or not 0 < count < _MOST_PAGES:
            raise ValueError(f"its entry at {entry[_ADDRESS]:#x} is out of order")
        end = entry[_ADDRESS] + count * PAGE
        if end > 1 << 64:
            raise ValueError(f"its entry at {entry[_ADDRESS]:#x} is too long")


def _messages(data: bytes) -> Iterator[Fields]:
    offset, count = len(_MAGIC), 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 4], "little")
        offset += 4
        if offset + size > len(data):
            raise ValueError("it was cut short")
        count += 1
        if count > _MAX_ENTRIES:
            raise ValueError("it has too many entries")
        yield _fields(data, offset, offset + size)
        offset += size


def _fields(data: bytes, offset: int, end: int) -> Fields:
    found: Fields = {}
    while offset < end:
        key, offset = _varint(data, offset)
        if key & 7:
            raise ValueError(f"its field {key >> 3} is no number")
        found[key >> 3], offset = _varint(data, offset)
    if offset != end:
        raise ValueError("a message was cut short")
    return found


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    byte = data[offset]
    if byte < 0x80:
        return byte, offset + 1
    value, shift = byte & 0x7F, 7
    while shift < 70:
        offset += 1
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset + 1
        shift += 7
    raise ValueError("a number is too long")


def _message(fields: Fields) -> bytes:
    return b"".join(_number(key << 3) + _number(value) for key, value in sorted(fields.items()))


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
