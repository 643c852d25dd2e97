"""Small images in memory, as protobuf's own messages: quick enough to look at thousands of them."""

from collections.abc import Iterator
from typing import Any

from grit_runtime.criu import messages
from grit_runtime.errors import CheckpointError

MOST = 1 << 20  # messages of one image


def decode(data: bytes, file: str, magic: str) -> list[Any]:
    """The messages of an image in memory, with the fields of CRIU's .proto files; pycriu's own decoding takes a hundred
    times as long. Only for kinds of images that hold nothing but messages.

    Args:
        file: the image's name, for messages.

    Raises:
        CheckpointError: it is damaged, or not a `magic` image.
    """
    start = messages.header_size(data)
    try:
        pycriu = messages.pycriu()
        if int.from_bytes(data[start - 4 : start], "little") != pycriu.by_name[magic]:
            raise CheckpointError(f"image {file} is no {magic} image")
        payload, found = pycriu.handlers[magic].payload, []
        for begin, end in _frames(file, data, start):
            found.append(payload.FromString(data[begin:end]))
    except CheckpointError:
        raise
    except Exception as err:  # noqa: BLE001 - protobuf's own
        raise CheckpointError(f"image {file} is damaged: {type(err).__name__} {err}") from None
    return found


def _frames(file: str, data: bytes, offset: int) -> Iterator[tuple[int, int]]:
    count = 0
    while offset < len(data):
        begin = offset + 4
        offset = begin + int.from_bytes(data[offset:begin], "little")
        count += 1
        if begin > len(data) or offset > len(data) or count > MOST:
            raise CheckpointError(f"image {file} is damaged: it was cut short, or is no CRIU image")
        yield begin, offset


def word(value: str | bytes) -> str:
    """A string field's text: names in images may be no UTF-8, and are bytes then."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
