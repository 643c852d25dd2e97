"""Where staging memory may be mapped from the images, and which chunks are compared meanwhile."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime import names
from grit_runtime.criu.memory import fill
from grit_runtime.criu.memory.split import Split
from grit_runtime.criu.pagemap import PRESENT, Pagemap, Run
from grit_runtime.errors import CheckpointError
from grit_runtime.host import digest, inject, proc, remap
from grit_runtime.workflow import memoryfill, staging
from grit_runtime.workflow.memoryplan import Prepared

SIZE = 32 << 20
BASE = 0x7F00_0000_0000


class Recorder:
    """Memory that notes what it is given."""

    def __init__(self, *, is_there: bool) -> None:
        self.is_there, self.given = is_there, dict[int, int]()

    def put(self, address: int, _: int, size: int) -> None:
        self.given[address] = size


def _image(path: Path, data: bytes) -> tuple[fill.Image, Recorder, Recorder]:
    """A pages image whose first MiB and last half chunk are filled, and the rest is there."""
    path.write_bytes(data)
    filled, there = Recorder(is_there=False), Recorder(is_there=True)
    edges = (1 << 20, len(data) - digest.CHUNK // 2, len(data))
    runs = (
        (Run(BASE, 0, edges[0]), filled),
        (Run(BASE + edges[0], edges[0], edges[1] - edges[0]), there),
        (Run(BASE + edges[1], edges[1], edges[2] - edges[1]), filled),
    )
    fd = os.open(path, os.O_RDONLY)
    checksums = tuple(digest.of_chunk(fd, start, end) for start, end in digest.chunks(len(data)))
    os.close(fd)
    return fill.Image(path=str(path), size=len(data), runs=runs, checksums=checksums), filled, there


def test_each_chunk_is_compared_once(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 64
    image, filled, there = _image(tmp_path / "pages-1.img", data)
    first = fill.fill([image], 1)
    assert sum(filled.given.values()) == (1 << 20) + digest.CHUNK // 2
    assert sum(there.given.values()) == digest.CHUNK - (1 << 20) + digest.CHUNK // 2
    second = fill.compare([image], 1)
    assert first + second == len(data)
    assert second == 2 * digest.CHUNK, "the chunks that hold nothing to fill"


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_damage_is_found_by_whoever_compares_the_chunk(tmp_path: Path, chunk: int) -> None:
    image, _, _ = _image(tmp_path / "pages-1.img", os.urandom(1 << 20) * 64)
    with open(image.path, "r+b") as stream:
        stream.seek(chunk * digest.CHUNK + (9 << 20))
        stream.write(b"!")
    compare = fill.compare if chunk == 1 else fill.fill
    other = fill.fill if chunk == 1 else fill.compare
    with pytest.raises(CheckpointError, match="another checksum"):
        compare([image], 1)
    other([image], 1)


class Case:
    """A stopped process of one mapping, as far as `map_images` looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.said: list[str] = []
        self.mapped: list[tuple[int, list[remap.Piece]]] = []
        monkeypatch.setattr(inject, "is_supported", lambda: True)
        monkeypatch.setattr(proc, "inner_pid", lambda pid: pid - 1000)
        monkeypatch.setattr(proc, "state", lambda _: "T")
        monkeypatch.setattr(remap, "map_file", self._map)
        (path / "pages-1.img").write_bytes(bytes(SIZE))
        pagemap = Pagemap(pages_id=1, entries=({1: BASE, 2: SIZE // 4096, 4: PRESENT},))
        split = Split(ranges=((BASE, BASE + SIZE),), runs=(Run(BASE, 0, SIZE),), pagemap=b"")
        self.prepared = Prepared(path=str(path), parts={7: (pagemap, split)})
        self.context: Any = SimpleNamespace(
            container="c",
            log=SimpleNamespace(line=lambda _, text: self.said.append(text)),
            config=SimpleNamespace(
                cuda=SimpleNamespace(staging=names.STAGING_AUTO), trust=SimpleNamespace(require_signature=False)
            ),
        )

    def _map(self, pid: int, _: int, pieces: list[remap.Piece]) -> remap.Mapped:
        self.mapped.append((pid, pieces))
        return remap.Mapped(pid, ("00:01", "1"))

    def map(self, *ranges: tuple[int, int], pid: int = 7) -> staging.Mapped:
        """Map these."""
        return staging.map_images(self.context, self.prepared, [1007], {pid: ranges})


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Case:
    return Case(monkeypatch, tmp_path)


def test_it_is_mapped_by_its_place_in_the_image(case: Case) -> None:
    made = case.map((BASE + (1 << 20), BASE + (20 << 20)))
    assert case.mapped == [(1007, [remap.Piece(BASE + (1 << 20), 19 << 20, 1 << 20)])]
    assert made.there[1007].runs == (Run(BASE + (1 << 20), 1 << 20, 19 << 20),)
    made.close()


def test_what_is_compared_is_the_file_that_is_mapped(case: Case) -> None:
    """Whoever may write the directory could have its name lead to another one by then."""
    path = os.path.join(case.prepared.path, "pages-1.img")
    made = case.map((BASE, BASE + SIZE))
    os.rename(path, f"{path}.mapped")
    Path(path).write_bytes(b"!" * SIZE)
    (image,) = memoryfill.images(case.context, case.prepared, [1007], {}, made.there)
    fd = os.open(f"{path}.mapped", os.O_RDONLY)
    image = replace(image, checksums=tuple(digest.of_chunk(fd, start, end) for start, end in digest.chunks(SIZE)))
    os.close(fd)
    assert fill.compare([image], 1) == 0  # zeros aren't counted
    with pytest.raises(CheckpointError, match="another checksum"):
        fill.compare([replace(image, fd=-1)], 1)
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        fill.compare([image], 1)


def test_not_where_a_signature_is_required(case: Case) -> None:
    """Whoever may write the image could change it between the comparison and its use."""
    case.context.config.trust.require_signature = True
    assert not case.map((BASE, BASE + SIZE)).files
    assert not case.mapped


@pytest.mark.parametrize(
    "ranges",
    [(), ((BASE, BASE + (15 << 20)),), ((BASE - SIZE, BASE),), tuple((BASE + i * 400_000, 0) for i in range(65))],
)
def test_not_what_is_small_or_elsewhere_or_in_many_pieces(case: Case, ranges: tuple[tuple[int, int], ...]) -> None:
    ranges = tuple((start // 4096 * 4096, end or start // 4096 * 4096 + 300 * 1024) for start, end in ranges)
    assert not case.map(*ranges).files
    assert not case.mapped


def test_not_of_a_process_that_nobody_knows(case: Case) -> None:
    assert not case.map((BASE, BASE + SIZE), pid=8).files


def test_not_what_others_may_write(case: Case) -> None:
    os.chmod(os.path.join(case.prepared.path, "pages-1.img"), 0o620)
    assert not case.map((BASE, BASE + SIZE)).files
    assert "others than root may write" in case.said[0]
