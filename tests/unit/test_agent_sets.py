"""Sets on a disk and in a volume: whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.agent import copies, sets, staging
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.checkpoint import integrity
from grit_runtime.errors import BusyError, CheckpointError
from tests.simulated import runtime

NAMES = ["front", "back"]


@pytest.fixture
def made(tmp_path: Path) -> Place:
    """A set of two containers, as captured."""
    place = Place(root=str(tmp_path / "node"), namespace="default", name="one", uid="u1")
    sets.claim(place)
    for name in NAMES:
        runtime.write(tmp_path / "node", "one", name)
    (tmp_path / "node/default/.grit-set-one").rename(place.path)
    return place


@pytest.fixture
def volume(tmp_path: Path) -> str:
    (tmp_path / "volume").mkdir()
    return str(tmp_path / "volume")


def _tree(path: str) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def test_a_copy_is_the_same_and_root_s_alone(made: Place, volume: str) -> None:
    progress = Progress()
    copies.copy(made, made.below(volume), sets.contents(made, NAMES), progress)
    assert _tree(made.below(volume).path) == _tree(made.path)
    assert sets.look(made.below(volume), NAMES) is Data.WHOLE
    assert progress.done >= progress.total == 2 * runtime.SIZE
    modes = {path.stat().st_mode & 0o777 for path in Path(made.below(volume).path).rglob("*")}
    assert modes == {0o600, 0o700}
    assert [path.name for path in (Path(volume) / "default").iterdir() if not path.name.startswith(".grit-agent")] == [
        "one"
    ]


@pytest.mark.parametrize("at", [0, 1, runtime.SIZE - 1, runtime.SIZE, runtime.SIZE + 1, 2 * runtime.SIZE])
def test_a_copy_that_is_cut_short_is_no_set_and_begins_again(
    made: Place, volume: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, expected, sendfile, left = made.below(volume), sets.contents(made, NAMES), os.sendfile, at

    def limited(out: int, into: int, offset: Any, count: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(5, "the disk is gone")
        done = sendfile(out, into, offset, min(count, left))
        left -= done
        return done

    # What a kill leaves: the file as far as it was, and nobody who cleans up.
    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", limited)
        patch.setattr(sets.files, "remove_tree", lambda _: None)
        with pytest.raises(OSError, match="the disk is gone"):
            copies.copy(made, target, expected, Progress())
    assert sets.look(target, NAMES) is Data.NONE
    assert not os.path.exists(target.path)
    assert os.listdir(os.path.join(volume, "default", ".grit-copy-one")) != []
    copies.copy(made, target, expected, Progress())
    assert _tree(target.path) == _tree(made.path)


@pytest.mark.parametrize("left", ["whole", "damaged", "another's"])
def test_a_file_that_is_there_whole_is_not_copied_again(
    made: Place, volume: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, expected, sendfile, sent = made.below(volume), sets.contents(made, NAMES), os.sendfile, 0

    def counting(out: int, into: int, offset: Any, count: int) -> int:
        nonlocal sent
        done = sendfile(out, into, offset, count)
        sent += done
        if sent > runtime.SIZE + (1 << 20) and failing:
            raise OSError(5, "the disk is gone")
        return done

    monkeypatch.setattr(os, "sendfile", counting)
    failing = True
    with pytest.raises(OSError, match="the disk is gone"):
        copies.copy(made, target, expected, Progress())
    there = Path(sets.copying(target)) / "front/checkpoint/pages-1.img"
    if left == "damaged":
        data = there.read_bytes()
        there.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif left == "another's":
        (Path(sets.copying(target)) / ".grit-copied").write_text("another\n")
    failing, sent, progress = False, 0, Progress()
    copies.copy(made, target, expected, progress)
    files = {"whole": 0, "damaged": 1, "another's": 2}[left]
    assert files * runtime.SIZE <= sent < files * runtime.SIZE + (1 << 20)
    assert progress.done >= progress.total
    assert _tree(target.path) == _tree(made.path)


def test_holes_stay_holes(made: Place, volume: str) -> None:
    images = Path(made.path) / "back/checkpoint"
    with (images / "pages-1.img").open("wb") as stream:
        stream.truncate(8 << 20)
        stream.seek(4 << 20)
        stream.write(b"x" * 4096)
    data = json.loads((images / "grit.json").read_text())
    sums = integrity.of_files(str(images), {"pages-1.img": 8 << 20}, {}, 1)
    data["files"][0] |= {"bytes": 8 << 20, "checksums": sums["pages-1.img"]}
    (images / "grit.json").write_text(json.dumps(data))
    target = made.below(volume)
    copies.copy(made, target, sets.contents(made, NAMES), Progress())
    assert _tree(target.path) == _tree(made.path)
    assert (Path(target.path) / "back/checkpoint/pages-1.img").stat().st_blocks * 512 < 1 << 20


def test_a_full_disk_is_left_as_it_was(made: Place, volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(OSError, match="No space left"):
        copies.copy(made, made.below(volume), sets.contents(made, NAMES), Progress())
    assert os.listdir(os.path.join(volume, "default")) == [".grit-agent-one.json"]


def test_a_copy_ends_when_it_is_told_to(made: Place, volume: str) -> None:
    progress = Progress()
    progress.stop.set()
    with pytest.raises(sets.Stopped):
        copies.copy(made, made.below(volume), sets.contents(made, NAMES), progress)
    assert sets.look(made.below(volume), NAMES) is Data.NONE


@pytest.mark.parametrize("what", ["damaged", "short", "link", "fifo", "manifest", "missing"])
def test_only_what_was_captured_is_copied(made: Place, volume: str, what: str) -> None:
    expected = sets.contents(made, NAMES)
    images = Path(made.path) / "back/checkpoint"
    pages = images / "pages-1.img"
    if what == "damaged":
        data = pages.read_bytes()
        pages.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif what == "short":
        os.truncate(pages, runtime.SIZE - 1)
    elif what == "manifest":
        (images / "grit.json").write_text((images / "grit.json").read_text() + "\n")
    elif what == "missing":
        pages.unlink()
    else:
        pages.unlink()
        pages.symlink_to("/etc/shadow") if what == "link" else os.mkfifo(pages)
    with pytest.raises(CheckpointError):
        copies.copy(made, made.below(volume), expected, Progress())
    assert sets.look(made.below(volume), NAMES) is Data.NONE
    assert list(Path(volume).rglob("checkpoint")) == []


def test_two_do_not_copy_one_set_at_once(made: Place, volume: str) -> None:
    target = made.below(volume)
    sets.claim(target)
    with (
        staging.staging(sets.copying(target), "another"),
        pytest.raises(BusyError, match="another process copies"),
    ):
        copies.copy(made, target, sets.contents(made, NAMES), Progress())


def test_a_checkpoint_that_somebody_made_by_hand_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    place = Place(root=str(tmp_path), namespace="default", name="one", uid="u1")
    (tmp_path / "default/one/app/checkpoint").mkdir(parents=True)
    assert sets.look(place, ["app"]) is Data.FOREIGN
    with pytest.raises(CheckpointError, match="has not made"):
        sets.claim(place)
    sets.remove(place)
    assert (tmp_path / "default/one/app/checkpoint").is_dir()


def test_one_is_whole_only_with_every_container_of_its_own(made: Place) -> None:
    assert sets.look(made, NAMES) is Data.WHOLE
    assert sets.look(made, [*NAMES, "third"]) is Data.NONE
    other = Place(root=made.root, namespace="default", name="one", uid="u2")
    assert sets.look(other, NAMES) is Data.FOREIGN
    sets.remove(other)
    assert sets.look(made, NAMES) is Data.WHOLE
    (known,) = sets.of_checkpoints(made.root)
    assert known == made
    sets.remove(made)
    assert sets.look(made, NAMES) is Data.NONE
    assert os.listdir(made.root) == []


@pytest.mark.parametrize(("namespace", "name"), [("..", "one"), ("default", ".."), ("a/b", "one"), ("default", "")])
def test_no_name_leads_out_of_the_root(namespace: str, name: str) -> None:
    with pytest.raises(CheckpointError):
        Place(root="/root", namespace=namespace, name=name, uid="u")


def test_a_torn_mark_is_nobody_s(made: Place) -> None:
    Path(made.owner).write_text(json.dumps({"uid": "u1"})[:-2])
    assert sets.look(made, NAMES) is Data.FOREIGN
