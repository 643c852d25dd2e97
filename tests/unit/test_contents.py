"""Archives of rootfs diffs on a real overlay: what is written and read back, and what hostile archives can't do."""

import io
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from grit_runtime.contents import diff, podlog, shm, unpack, walk
from grit_runtime.contents.archive import TooLargeError, Writer
from grit_runtime.errors import CheckpointError, RestoreError
from grit_runtime.host import mounts
from grit_runtime.oci.bundle import parse

pytestmark = pytest.mark.needs("root")


@dataclass(kw_only=True)
class Layers:
    """An overlay over a directory that two containers share."""

    path: Path
    lower: Path

    @property
    def root(self) -> Path:
        return self.path / "rootfs"

    @property
    def upper(self) -> Path:
        return self.path / "upper"

    def mount(self, options: str = "") -> "Layers":
        for name in ("rootfs", "upper", "work"):
            (self.path / name).mkdir(parents=True)
        words = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.path / 'work'}{options}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", words, str(self.root)], check=True)
        return self

    def save(self, limit: int = 1 << 30) -> tuple[Path, Writer]:
        archive = self.path / "diff.tar"
        with open(archive, "wb") as stream:
            writer = Writer(stream=stream, limit=limit)
            diff.write(writer, diff.overlay(str(self.root), mounts.own()))
            writer.close()
        return archive, writer

    def apply(self, archive: Path, *, devices: bool = True) -> None:
        apply(self.root, archive, devices=devices)


def apply(root: Path, archive: Path, *, devices: bool = True, layer: bool = True) -> None:
    with walk.opened(str(root)) as fd:
        unpack.Unpacker(root=fd, devices=devices, layer=layer).apply(str(archive))


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[tuple[Layers, Layers]]:
    """The overlay of the old container, mounted, and that of the new one, mounted too."""
    lower = tmp_path / "lower"
    for name in ("etc", "keep/deep", "gone/deep", "replaced", "opaque", "moved/inner"):
        (lower / name).mkdir(parents=True)
    for name in ("etc/passwd", "etc/removed", "keep/deep/file", "gone/deep/file", "replaced/old", "opaque/old"):
        (lower / name).write_text(f"lower {name}\n")
    (lower / "moved/inner/file").write_text("moved\n")
    (lower / "keep/link").symlink_to("deep")
    pair = Layers(path=tmp_path / "old", lower=lower).mount(), Layers(path=tmp_path / "new", lower=lower).mount()
    yield pair
    for one in pair:
        subprocess.run(["umount", "-l", str(one.root)], check=False)


def seen(root: Path) -> dict[bytes, object]:
    """Everything that a container can see of a tree, to compare."""
    found: dict[bytes, object] = {}
    inodes: dict[int, bytes] = {}
    for parent, directories, names in os.walk(os.fsencode(root)):
        for name in [*directories, *names, b"."]:
            path = os.path.join(parent, name)
            what = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(root))
            content: object = os.readlink(path) if stat.S_ISLNK(what.st_mode) else b""
            if stat.S_ISREG(what.st_mode):
                with open(path, "rb") as stream:
                    content = stream.read() if what.st_size < 1 << 20 else (what.st_size, stream.read(1 << 16))
            times = what.st_mtime_ns if not stat.S_ISDIR(what.st_mode) or relative else 0
            same = (
                inodes.setdefault(what.st_ino, relative) if what.st_nlink > 1 and not stat.S_ISDIR(what.st_mode) else 0
            )
            attributes = {
                k: os.getxattr(path, k, follow_symlinks=False) for k in os.listxattr(path, follow_symlinks=False)
            }
            found[relative] = (what.st_mode, what.st_uid, what.st_gid, times, what.st_rdev, content, same, attributes)
    return found


def change(root: Path) -> None:
    """What a container may do to its rootfs."""
    (root / "etc/passwd").write_text("changed\n")
    (root / "etc/removed").unlink()
    subprocess.run(["rm", "-r", str(root / "gone")], check=True)
    subprocess.run(["rm", "-r", str(root / "opaque")], check=True)
    (root / "opaque").mkdir(0o751)  # of the same name: opaque
    (root / "opaque/new").write_text("new\n")
    subprocess.run(["rm", "-r", str(root / "replaced")], check=True)
    (root / "replaced").write_text("a file now\n")
    made = root / "made"
    made.mkdir(0o2775)
    (made / "a").write_text("hard\n")
    os.link(made / "a", made / "b")
    os.link(made / "a", root / "etc/c")
    os.chown(made / "a", 1234, 3_000_000)
    (made / "a").chmod(0o4755)
    os.setxattr(made / "a", "user.grit", b"\0\xff=\n value")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    (made / "ping").write_text("x")
    os.setxattr(made / "ping", "security.capability", capability)
    os.setxattr(made, "user.of-directory", b"1")
    with open(made / "sparse", "wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(1 << 12)
        stream.write(b"d" * 4096)
        stream.seek((1 << 30) - 4096)
        stream.write(b"e" * 4096)
    with open(made / "hole", "wb") as stream:
        stream.truncate(1 << 21)
    os.mkfifo(made / "fifo", 0o622)
    os.mknod(made / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (made / "outside").symlink_to("/etc/shadow")
    os.lchown(made / "outside", 7, 8)
    os.utime(made / "outside", ns=(1, 1_500_000_000_123_456_789), follow_symlinks=False)
    for name in (b"with space", "caf\u00e9 \u2603".encode(), b"new\nline", b"bad\xff\xfeutf8", b"n" * 255):
        with open(os.path.join(os.fsencode(made), name), "wb") as stream:
            stream.write(name)
    long = made / ("d" * 200) / ("e" * 200)
    long.mkdir(parents=True)
    (long / "f").write_text("long\n")
    os.symlink("t" * 300, long / "link")
    os.utime(made / "a", ns=(1, -1_500_000_000))
    os.utime(made, ns=(1, 1_600_000_000_000_000_001))
    os.utime(root, ns=(1, 1_600_000_000_000_000_002))


def test_every_kind_of_change_comes_back_in_a_new_overlay_and_a_second_time_too(layers: tuple[Layers, Layers]) -> None:
    old, new = layers
    change(old.root)
    archive, writer = old.save()
    assert (writer.left_out, archive.stat().st_size < 1 << 20) == (0, True)
    expected = seen(old.root)
    for _ in range(2):
        new.apply(archive)
        assert seen(new.root) == expected
    assert (new.root / "made/sparse").stat().st_blocks * 512 < 1 << 16
    assert (new.root / "made/hole").stat().st_blocks == 0


def test_an_attempt_that_broke_off_anywhere_is_made_good_by_the_next(layers: tuple[Layers, Layers]) -> None:
    old, new = layers
    change(old.root)
    archive, _ = old.save()
    data = archive.read_bytes()
    cut = archive.with_name("cut.tar")
    for size in range(512, len(data), 512 * 7):
        cut.write_bytes(data[:size])
        try:
            new.apply(cut)
        except (CheckpointError, RestoreError):
            pass
    new.apply(archive)
    assert seen(new.root) == seen(old.root)


def test_python_and_gnu_tar_read_the_archive(layers: tuple[Layers, Layers], tmp_path: Path) -> None:
    old, _ = layers
    change(old.root)
    archive, writer = old.save()
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert len(members) == writer.entries
    named = {member.name: member for member in members}
    assert named["made/sparse"].size == 1 << 30
    assert "etc/.wh.removed" in named
    assert "opaque/.wh..wh..opq" in named
    assert ".wh.gone" in named
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "--extract", "--file", str(archive), "-C", str(out), "--no-same-owner"], check=True)
    with open(out / "made/sparse", "rb") as stream:
        stream.seek(1 << 12)
        assert stream.read(4097) == b"d" * 4096 + b"\0"


def test_renamed_directories_and_files_with_metadata_alone_are_read_through_the_merged_view(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "moved/inner").mkdir(parents=True)
    (lower / "moved/inner/file").write_text("moved\n")
    (lower / "data").write_text("data\n")
    old = Layers(path=tmp_path / "old", lower=lower).mount(",redirect_dir=on,metacopy=on")
    new = Layers(path=tmp_path / "new", lower=lower).mount()
    try:
        (old.root / "moved").rename(old.root / "here")
        (old.root / "here/added").write_text("added\n")
        os.chown(old.root / "data", 5, 6)
        archive, _ = old.save()
        new.apply(archive)
        assert (new.root / "here/inner/file").read_text() == "moved\n"
        assert (new.root / "data").read_text() == "data\n"
        assert seen(new.root) == seen(old.root)
    finally:
        subprocess.run(["umount", "-l", str(old.root)], check=True)
        subprocess.run(["umount", "-l", str(new.root)], check=True)


def test_whiteouts_by_attribute_are_whiteouts(layers: tuple[Layers, Layers], tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/w").touch()
    os.setxattr(tmp_path / "dir/w", "trusted.overlay.whiteout", b"y")
    with walk.opened(str(tmp_path / "dir")) as fd:
        assert diff.is_whiteout(os.stat(tmp_path / "dir/w"), walk.xattrs(fd, b"w"))
        assert diff.plain(walk.xattrs(fd, b"w")) == {}
    assert diff.plain({b"trusted.overlay.overlay.opaque": b"y"}) == {b"trusted.overlay.opaque": b"y"}


def test_sockets_and_reserved_names_are_noted_not_saved(layers: tuple[Layers, Layers]) -> None:
    old, _ = layers
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(old.root / "etc/sock"))
        (old.root / "etc/.wh.odd").touch()
        _, writer = old.save()
    assert writer.left_out == 2
    assert any(note.startswith("etc/sock: ") for note in writer.noted)


def test_a_diff_above_its_bound_is_refused(layers: tuple[Layers, Layers]) -> None:
    old, _ = layers
    (old.root / "big").write_bytes(os.urandom(1 << 20))
    with pytest.raises(TooLargeError, match="larger than 1000000 bytes"):
        old.save(limit=1_000_000)


def test_a_rootfs_that_is_no_overlay_has_no_diff(tmp_path: Path) -> None:
    with pytest.raises(diff.NoDiffError, match="no mount of its own"):
        diff.overlay(str(tmp_path), mounts.own())


def test_an_upper_directory_is_found_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a, b\\c d:e"
    lower = tmp_path / "lower"
    lower.mkdir()
    for name in ("upper", "work", "rootfs"):
        (path / name).mkdir(parents=True)
    escaped = str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
    words = f"lowerdir={lower},upperdir={escaped}/upper,workdir={escaped}/work"
    subprocess.run(["mount", "-i", "-t", "overlay", "overlay", "-o", words, str(path / "rootfs")], check=True)
    try:
        found = diff.overlay(str(path / "rootfs"), mounts.own())
        assert found.upper == str(path / "upper")
    finally:
        subprocess.run(["umount", str(path / "rootfs")], check=True)


def _member(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in more.items():
        setattr(member, key, value)
    return member


HOSTILE = {
    "absolute": [_member("/tmp/grit-hostile")],
    "up": [_member("../victim/new")],
    "up within": [_member("etc/../../victim/new")],
    "link then through": [_member("a", tarfile.SYMTYPE, linkname="../victim"), _member("a/new")],
    "whiteout up": [_member(".wh...")],
    "whiteout through": [_member("a", tarfile.SYMTYPE, linkname="../victim"), _member("a/.wh.file")],
    "opaque through": [_member("a", tarfile.SYMTYPE, linkname="../victim"), _member("a/.wh..wh..opq")],
    "hard link up": [_member("b", tarfile.LNKTYPE, linkname="../victim/file")],
    "hard link absolute": [_member("b", tarfile.LNKTYPE, linkname="/etc/passwd")],
    "hard link through": [
        _member("a", tarfile.SYMTYPE, linkname="../victim"), _member("b", tarfile.LNKTYPE, linkname="a/file"),
    ],
    "through a link of the rootfs": [_member("there/new")],
    "whiteout through a link of the rootfs": [_member("there/.wh.file")],
    "device": [_member("sda", tarfile.BLKTYPE, devmajor=8)],
    "unknown": [_member("odd", b"Z")],
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_changes_nothing_outside(tmp_path: Path, case: str) -> None:
    root, victim = tmp_path / "root", tmp_path / "victim"
    (root / "etc").mkdir(parents=True)
    victim.mkdir()
    (victim / "file").write_text("untouched")
    (root / "there").symlink_to(victim)
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        for member in HOSTILE[case]:
            tar.addfile(member, io.BytesIO())
    with pytest.raises(CheckpointError) as raised:
        apply(root, archive, devices=False)
    assert "\n" not in str(raised.value)
    assert [p.name for p in victim.iterdir()] == ["file"]
    assert ((victim / "file").read_text(), (victim / "file").stat().st_nlink) == ("untouched", 1)
    assert not Path("/tmp/grit-hostile").exists()


def test_an_archive_that_was_cut_between_two_entries_is_refused(tmp_path: Path) -> None:
    root, archive = tmp_path / "root", tmp_path / "a.tar"
    root.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.addfile(_member("first"))
        tar.addfile(_member("second"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:512])
    with pytest.raises(CheckpointError, match="damaged"):
        apply(root, archive)
    archive.write_bytes(whole)
    apply(root, archive)
    assert sorted(path.name for path in root.iterdir()) == ["first", "second"]


def test_a_link_in_the_archive_is_made_and_its_target_not_touched(tmp_path: Path) -> None:
    root, victim = tmp_path / "root", tmp_path / "victim"
    root.mkdir()
    victim.write_text("untouched")
    before = victim.stat()
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(_member("a", tarfile.SYMTYPE, linkname=str(victim), uid=5, gid=5, mode=0o777, mtime=1))
        tar.addfile(_member("a", mode=0o600), io.BytesIO())  # in its place, not through it
    apply(root, archive)
    assert victim.stat() == before
    assert (root / "a").is_symlink() is False


def test_deleted_files_are_deleted_within_the_root_only(tmp_path: Path) -> None:
    root, victim = tmp_path / "root", tmp_path / "victim"
    (root / "dir/deep").mkdir(parents=True)
    (root / "file").touch()
    victim.mkdir()
    (victim / "file").touch()
    (root / "there").symlink_to(victim)
    with walk.opened(str(root)) as fd:
        unpacker = unpack.Unpacker(root=fd)
        unpacker.delete(["/dir", "file", "missing/name", "there"])
        assert list(root.iterdir()) == []
        (root / "there").symlink_to(victim)
        with pytest.raises(CheckpointError, match="through a link"):
            unpacker.delete(["there/file"])
        with pytest.raises(CheckpointError, match="leads outside"):
            unpacker.delete(["../victim/file"])
    assert (victim / "file").exists()


def test_shm_is_unpacked_beside_what_is_there_and_undone_without_it(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "dir").mkdir(parents=True)
    (source / "dir/f").write_text("1")
    (source / "ours").write_text("ours")
    (source / "both").write_text("old")
    target.mkdir()
    (target / "both").write_text("new")
    archive = tmp_path / "shm.tar"
    with open(archive, "wb") as stream:
        writer = Writer(stream=stream, limit=1 << 20)
        shm.write(writer, str(source))
        writer.close()
    staging = shm.staging(str(target), str(archive), "m")
    staging.apply()
    placing, taken = staging.placing()
    assert taken == ["both"]
    placing.apply()
    staging.undo()
    assert sorted(p.name for p in target.iterdir()) == ["both", "dir", "ours"]
    assert ((target / "both").read_text(), (target / "dir/f").read_text()) == ("new", "1")
    (target / "ours").unlink()
    (target / "ours").write_text("somebody else's")
    for _ in range(2):
        placing.undo()
        staging.undo()
    assert sorted(p.name for p in target.iterdir()) == ["both", "ours"]


def test_only_a_mount_from_outside_is_saved_as_shm() -> None:
    own = b'{"mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]}'
    pods = b'{"mounts": [{"destination": "/dev/shm/", "type": "bind", "source": "/run/shm", "options": ["rbind"]}]}'
    assert shm.source(parse("/b", own)) == ""
    assert shm.source(parse("/b", pods)) == "/run/shm"


ANNOTATIONS = {
    "io.kubernetes.cri.sandbox-namespace": "ns",
    "io.kubernetes.cri.sandbox-name": "pod",
    "io.kubernetes.cri.sandbox-uid": "1-2",
    "io.kubernetes.cri.container-name": "app",
}


def _logs(tmp_path: Path) -> Path:
    directory = tmp_path / "logs/ns_pod_1-2/app"
    directory.mkdir(parents=True)
    for name in ("2.log", "10.log", "9.log.gz", "x.log"):
        (directory / name).write_text(f"{name}\n")
    return directory


def test_the_newest_log_is_saved_in_whole_lines_and_the_newest_of_a_long_one(tmp_path: Path) -> None:
    directory = _logs(tmp_path)
    place = podlog.find(str(tmp_path / "logs"), ANNOTATIONS)
    assert place.file == "10.log"
    lines = [f"2026-01-01T00:00:00Z stdout F line {n}\n" for n in range(100_000)]
    (directory / "10.log").write_text("".join(lines) + "2026-01-01T00:00:00Z stdout F half of a li")
    assert podlog.save(place, str(tmp_path / "all"), 1 << 30) == (sum(map(len, lines)), 0)
    assert (tmp_path / "all").read_text() == "".join(lines)
    for limit in (0, 10, 1000, 1043, 1 << 21):
        target = tmp_path / str(limit)
        size, before = podlog.save(place, str(target), limit)
        assert size == target.stat().st_size <= limit
        assert before + size == sum(map(len, lines))
        assert "".join(lines).endswith(target.read_text())
        assert limit - size < len(lines[-1])
        assert "".join(lines)[before - 1] == "\n"


def test_annotations_and_links_lead_to_no_other_log(tmp_path: Path) -> None:
    directory = _logs(tmp_path)
    root = str(tmp_path / "logs")
    for word in ("..", "../app", "a/b", "."):
        with pytest.raises(podlog.NoLogError):
            podlog.find(root, {**ANNOTATIONS, "io.kubernetes.cri.container-name": word})
    with pytest.raises(podlog.NoLogError):
        podlog.find(root, {})
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (directory / "11.log").symlink_to(victim)
    place = podlog.find(root, ANNOTATIONS)
    with pytest.raises(OSError, match="symbolic"):
        podlog.append(place, str(victim))
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(podlog.NoLogError):
        podlog.find(root, ANNOTATIONS)


def test_old_lines_are_appended_and_taken_back_only_if_nothing_followed(tmp_path: Path) -> None:
    directory = _logs(tmp_path)
    old = tmp_path / "container.log"
    old.write_text("old 1\nold 2\n")
    log = directory / "10.log"
    effect = podlog.append(podlog.find(str(tmp_path / "logs"), ANNOTATIONS), str(old))
    effect.undo()
    assert log.read_text() == "10.log\n"
    effect.apply()
    assert log.read_text() == "10.log\nold 1\nold 2\n"
    os.truncate(log, 12)  # half written when it was killed
    effect.undo()
    assert log.read_text() == "10.log\n"
    effect.apply()
    with open(log, "a") as stream:
        stream.write("new\n")
    effect.undo()
    assert log.read_text() == "10.log\nold 1\nold 2\nnew\n"
