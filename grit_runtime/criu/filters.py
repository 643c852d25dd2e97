"""The seccomp programs in the images (images/seccomp.proto): CRIU gives each thread back those that it had."""

import os
import struct
from dataclasses import dataclass

from grit_runtime.criu import images
from grit_runtime.errors import CheckpointError

_FILE = "seccomp.img"
_INSTRUCTION = struct.Struct("<HBBI")  # struct sock_filter
_MOST_INSTRUCTIONS = 4096  # linux/bpf_common.h, BPF_MAXINSNS
_MOST_IN_A_CHAIN = 32  # each may take a tenth of a second to be given up

Program = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Filters:
    """All of a checkpoint, by their numbers."""

    programs: tuple[bytes, ...] = ()
    before: tuple[int | None, ...] = ()

    def chain(self, number: int) -> list[Program]:
        """The programs of a thread whose last one has this number, the first one first.

        Raises:
            CheckpointError: there is no such one, or it isn't a program.
        """
        found: list[Program] = []
        at: int | None = number
        while at is not None:
            if not 0 <= at < len(self.programs) or len(found) == _MOST_IN_A_CHAIN:
                raise CheckpointError(f"image {_FILE} is damaged: a thread has a filter {at}, which is not there")
            found.append(_program(self.programs[at]))
            at = self.before[at]
        return found[::-1]


def read(path: str, files: tuple[str, ...]) -> Filters:
    """The filters of the checkpoint at `path`. Raises CheckpointError: the image is damaged."""
    if _FILE not in files:
        return Filters()
    found = images.first(path, _FILE, "SECCOMP").seccomp_filters
    if len(found) > images.MAX_ENTRIES:
        raise CheckpointError(f"image {os.path.join(path, _FILE)} holds more than {images.MAX_ENTRIES} filters")
    return Filters(
        programs=tuple(bytes(each.filter) for each in found),
        before=tuple(int(each.prev) if each.HasField("prev") else None for each in found),
    )


def _program(data: bytes) -> Program:
    if len(data) % _INSTRUCTION.size or not 0 < len(data) <= _MOST_INSTRUCTIONS * _INSTRUCTION.size:
        raise CheckpointError(f"image {_FILE} is damaged: a filter has {len(data)} bytes")
    return tuple(_INSTRUCTION.iter_unpack(data))
