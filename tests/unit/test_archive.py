"""Archives of checkpoints from anywhere: what isn't a plain checkpoint is refused before a byte is written."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from grit_runtime.checkpoint import archive, kinds
from grit_runtime.contents import plain
from grit_runtime.errors import CheckpointError

GOOD = {
    "checkpoint/inventory.img": b"i",
    "checkpoint/pages-1.img": b"p" * 5000,
    "config.dump": b"{}",
    "spec.dump": b'{"annotations": {"io.kubernetes.cri.container-name": "app"}}',
    "rootfs-diff.tar": b"r",
    "deleted.files": b"[]",
    "devshm-checkpoint.tar": b"s",
    "container.log": b"l",
    "status": b"unknown to us",
}


def _tar(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for entry in more:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def _unpack(path: Path, target: Path, *, max_bytes: int = 1 << 20, max_entries: int = 100) -> None:
    target.mkdir()
    archive.unpack(str(path), str(target), max_bytes=max_bytes, max_entries=max_entries)


@pytest.mark.needs("zstd")
@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("compressed", ["", "gzip", "zstd"])
def test_a_checkpoint_and_what_belongs_to_it_is_unpacked(tmp_path: Path, prefix: str, compressed: str) -> None:
    directories = [_entry("./", tarfile.DIRTYPE), _entry(f"{prefix}checkpoint/", tarfile.DIRTYPE)]
    path = _tar(tmp_path / "a.tar", {f"{prefix}{name}": data for name, data in GOOD.items()}, *directories)
    if compressed:
        path.write_bytes(subprocess.run([compressed, "-c", path], check=True, capture_output=True).stdout)
    _unpack(path, tmp_path / "out")
    there = {str(f.relative_to(tmp_path / "out")): f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert there == {name: data for name, data in GOOD.items() if name != "status"}
    found = kinds.unpacked(str(tmp_path / "out"))
    assert (found.kind, found.complete, found.container) == (kinds.Kind.ARCHIVE, True, "app")
    parts = (found.rootfs_diff, found.deleted_files, found.devshm, found.log)
    assert [os.path.basename(part) for part in parts] == list(GOOD)[4:8]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (_entry("/etc/passwd"), "leads out"),
        (_entry("../x"), "leads out"),
        (_entry("checkpoint/../../x"), "leads out"),
        (_entry("checkpoint//x"), "leads out"),
        (_entry("checkpoint/a", tarfile.SYMTYPE, "/etc"), "neither a file nor a directory"),
        (_entry("checkpoint/a", tarfile.LNKTYPE, "config.dump"), "neither a file nor a directory"),
        (_entry("checkpoint", tarfile.SYMTYPE, "/etc"), "neither a file nor a directory"),
        (_entry("a", tarfile.CHRTYPE), "neither a file nor a directory"),
        (_entry("a", tarfile.BLKTYPE), "neither a file nor a directory"),
        (_entry("a", tarfile.FIFOTYPE), "neither a file nor a directory"),
        (_entry("checkpoint/inventory.img"), "twice"),
        (_entry("./config.dump"), "twice"),
    ],
)
def test_one_bad_entry_refuses_all_before_anything_is_written(
    tmp_path: Path, entry: tarfile.TarInfo, words: str
) -> None:
    path = _tar(tmp_path / "a.tar", GOOD, entry)
    with pytest.raises(CheckpointError, match=words):
        _unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("max_bytes", "max_entries"), [(100, 100), (1 << 20, 3)])
def test_a_bound_is_kept(tmp_path: Path, max_bytes: int, max_entries: int) -> None:
    path = _tar(tmp_path / "a.tar", GOOD)
    with pytest.raises(CheckpointError, match="too large"):
        _unpack(path, tmp_path / "out", max_bytes=max_bytes, max_entries=max_entries)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.needs("zstd")
def test_a_bound_is_kept_when_decompressing(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", GOOD)
    path.write_bytes(subprocess.run(["zstd", "-c", path], check=True, capture_output=True).stdout)
    with pytest.raises(CheckpointError, match="too large"):
        _unpack(path, tmp_path / "out", max_bytes=6000)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_size_that_no_disk_has_room_for_is_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", {"checkpoint/inventory.img": b""})
    data = path.read_bytes()[:512]
    huge = _entry("checkpoint/pages-1.img", size=1 << 60).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data + huge)
    with pytest.raises(CheckpointError):
        _unpack(path, tmp_path / "out", max_bytes=1 << 62)
    assert list((tmp_path / "out").iterdir()) == []


def _end(path: Path) -> int:
    """Where the entries of an archive end and its end mark begins."""
    with tarfile.open(path) as tar:
        tar.getmembers()
        return tar.offset


@pytest.mark.parametrize("compressed", ["", "gzip"])
@pytest.mark.parametrize("cut", ["1", "700", "3000", "before the last entry", "before the end mark", "in the end mark"])
def test_an_archive_that_was_cut_short_is_refused(tmp_path: Path, cut: str, compressed: str) -> None:
    path = _tar(tmp_path / "a.tar", GOOD)
    end = _end(path)
    places = {"before the last entry": end - 1024, "before the end mark": end, "in the end mark": end + 100}
    data = path.read_bytes()[: places.get(cut) or int(cut)]
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(CheckpointError, match="damaged"):
        _unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("wrong", ["cut", "checksum", "header"])
def test_an_archive_whose_end_is_damaged_is_refused(tmp_path: Path, wrong: str) -> None:
    path = _tar(tmp_path / "a.tar", GOOD)
    data, end = path.read_bytes(), _end(path)
    if wrong == "header":
        path.write_bytes(data[:end] + b"rest" * 256 + bytes(1024))
    else:
        packed = gzip.compress(data)
        path.write_bytes(packed[:-6] if wrong == "cut" else packed[:-6] + b"wrong!")
    with pytest.raises(CheckpointError, match="damaged"):
        _unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_archive_with_one_block_for_its_end_mark_is_taken(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", GOOD)
    path.write_bytes(path.read_bytes()[: _end(path) + 512])
    _unpack(path, tmp_path / "out")


@pytest.mark.parametrize("what", ["text", "link", "fifo", "broken zstd", "no images"])
def test_what_is_no_archive_of_a_checkpoint_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.tar"
    if what == "link":
        path.symlink_to(_tar(tmp_path / "b.tar", GOOD))
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "no images":
        _tar(path, {"config.dump": b"{}"})
    else:
        path.write_bytes(b"(\xb5/\xfd rest" if what == "broken zstd" else b"hello " * 200)
    with pytest.raises(CheckpointError):
        _unpack(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("bad", ["", "cut", "too large"])
def test_a_layer_compressed_with_gzip_is_decompressed_within_bounds(tmp_path: Path, bad: str) -> None:
    path, data = tmp_path / "layer.tar", b"x" * 5000
    packed = gzip.compress(data)
    path.write_bytes(packed[:-9] if bad == "cut" else packed)
    scratch = tmp_path / "scratch"
    if bad:
        with pytest.raises(CheckpointError), plain.opened(str(path), str(scratch), 100 if bad == "too large" else 9999):
            pytest.fail("it was opened")
    else:
        with plain.opened(str(path), str(scratch), 9999) as stream:
            assert stream.read() == data
    assert not scratch.exists()
