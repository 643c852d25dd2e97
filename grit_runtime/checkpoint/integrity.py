"""Checksums of a checkpoint's files, as its manifest lists them (docs/checkpoint-format.md)."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grit_runtime.errors import CheckpointError
from grit_runtime.host import digest, pool

ALGORITHM, CHUNK = digest.ALGORITHM, digest.CHUNK


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a checkpoint's file are: a file of their own, or a part of an archive."""

    path: str
    offset: int
    size: int


def of_files(
    directory: str, sizes: Mapping[str, int], known: Mapping[str, list[str]], workers: int
) -> dict[str, list[str]]:
    """The checksums of every file's chunks.

    Args:
        known: of files whose checksums were computed when they were written.

    Raises:
        OSError: a file can't be read.
    """
    missing = {name: size for name, size in sizes.items() if name not in known}
    return {**known, **_of(directory, missing, workers)}


def recorded(data: Mapping[str, Any], path: str) -> dict[str, tuple[str, ...]]:
    """What a manifest lists; empty if it lists none, or by another algorithm than ours.

    Raises:
        CheckpointError: it isn't as it should be.
    """
    section = data.get("checksums")
    if not isinstance(section, dict) or (section.get("algorithm"), section.get("chunk")) != (ALGORITHM, CHUNK):
        return {}
    found = {}
    for entry in data["files"]:
        values = entry.get("checksums")
        if not isinstance(values, list) or len(values) != -(-int(entry["bytes"]) // CHUNK):
            raise CheckpointError(f"manifest {path} is damaged: the checksums of {entry['name']} are not whole")
        found[str(entry["name"])] = tuple(str(value) for value in values)
    return found


def require(
    directory: str,
    names: Iterable[str],
    expected: Mapping[str, tuple[str, ...]],
    workers: int,
    look: Callable[[], None] = lambda: None,
) -> None:
    """Compare files with their checksums.

    Args:
        look: called before each chunk, wherever that is read; what it raises ends it.

    Raises:
        CheckpointError: one of them isn't what it was, or can't be read.
    """
    wanted = [name for name in names if name in expected]
    try:
        sizes = {name: os.stat(os.path.join(directory, name)).st_size for name in wanted}
        got = _of(directory, sizes, workers, look)
    except OSError as err:
        raise CheckpointError(f"cannot read {err.filename}: {err.strerror}") from None
    wrong = _differing(got, expected)
    if wrong:
        raise CheckpointError(
            f"checkpoint {directory} is damaged: {', '.join(wrong[:10])}: not what it was, by its checksum",
            hint="copy it again",
        )


def differing(places: Mapping[str, Place], expected: Mapping[str, tuple[str, ...]], workers: int) -> list[str]:
    """The files that aren't what they were.

    Raises:
        CheckpointError: one of them can't be read.
    """
    try:
        return _differing(_of_places({name: places[name] for name in expected if name in places}, workers), expected)
    except OSError as err:
        raise CheckpointError(f"cannot read {err.filename or 'a file'}: {err.strerror}") from None


def _differing(got: Mapping[str, list[str]], expected: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for name, values in got.items() if tuple(values) != expected[name]]


def _of(
    directory: str, sizes: Mapping[str, int], workers: int, look: Callable[[], None] = lambda: None
) -> dict[str, list[str]]:
    places = {name: Place(os.path.join(directory, name), 0, size) for name, size in sizes.items()}
    return _of_places(places, workers, look)


def _of_places(
    places: Mapping[str, Place], workers: int, look: Callable[[], None] = lambda: None
) -> dict[str, list[str]]:
    jobs = [(name, start, end) for name, place in places.items() for start, end in digest.chunks(place.size)]

    def one(job: tuple[str, int, int]) -> str:
        look()
        name, start, end = job
        fd = os.open(places[name].path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return digest.of_chunk(fd, start, end, places[name].offset)
        except EOFError:
            raise CheckpointError(f"{places[name].path} became shorter meanwhile") from None
        finally:
            os.close(fd)

    count = pool.fitting(workers, sum(place.size for place in places.values()))
    values = pool.each(one, jobs, count)
    found: dict[str, list[str]] = {name: [] for name in places}
    for (name, _, _), value in zip(jobs, values, strict=True):
        found[name].append(value)
    return found
