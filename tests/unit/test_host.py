"""Files, mount tables, cgroup paths, the journal: what can be tested without root."""

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import BusyError, GritError, RecoveryError
from grit_runtime.host import cgroups, effects, files, links, mounts, proc, run, workspace
from grit_runtime.host.transaction import Effect, Transaction, read_journal


def test_a_file_is_replaced_whole_and_the_old_one_survives_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "f"
    files.write_atomically(str(file), b"old")
    (tmp_path / ".f.grit-tmp").symlink_to("/etc/passwd")  # what an attacker or a killed run may have left
    files.write_atomically(str(file), b"new", 0o640, sync=True)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o640)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


def test_json_is_read_with_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deeply|Expecting"):
        files.read_json(str(file), 1 << 20)
    with pytest.raises(ValueError, match="larger than 10"):
        files.read_json(str(file), 10)


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "kept")
    files.remove_tree(str(tmp_path / "tree"))
    files.remove_tree(str(tmp_path / "tree"))
    assert (tmp_path / "kept/file").exists()


def test_mountinfo_is_read_with_its_escapes() -> None:
    line = r"36 35 98:0 /a\040b /mnt/x\134y\011z rw,noatime shared:1 master:2 - ext3 /dev/root\043 rw,errors=continue"
    (entry,) = mounts.parse(f"nonsense\n{line}\n")
    assert (entry.root, entry.mountpoint, entry.fstype, entry.source) == ("/a b", "/mnt/x\\y\tz", "ext3", "/dev/root#")


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("/var/run/x", "/run/x"),
        ("/var/run/../../../etc", "/etc"),
        ("/loop/x", "/loop/x"),
        ("/up/etc", "/etc"),
        ("/missing/./y/", "/missing/y"),
        ("/rel/z", "/var/z"),
    ],
)
def test_a_path_is_resolved_within_its_root(tmp_path: Path, path: str, leads_to: str) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    (tmp_path / "rel").symlink_to("var")
    (tmp_path / "up").symlink_to("../../../..")
    (tmp_path / "loop").symlink_to("loop")
    assert mounts.resolve_in_root(str(tmp_path), path) == leads_to


@given(st.lists(st.sampled_from(["..", "a", "b", "link", "."]), max_size=8))
def test_no_path_leads_out_of_its_root(words: list[str]) -> None:
    assert mounts.resolve_in_root("/nonexistent", "/".join(words)).startswith("/")
    assert ".." not in mounts.resolve_in_root("/nonexistent", "/".join(words)).split("/")


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/run/runc", "run-runc"),
        ("/run/containerd/runc/k8s.io/", "run-containerd-runc-k8s.io"),
        ("//a//b", "a-b"),
        ("/a-b", r"a\x2db"),
        ("/", "-"),
        ("/ü", r"\xc3\xbc"),
    ],
)
def test_a_root_is_one_name(root: str, name: str) -> None:
    assert workspace.escape_root(root) == name


# No surrogates: an argument that isn't UTF-8 comes as others than those that stand for a byte.
_NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)


@given(_NAMES, _NAMES)
def test_two_roots_never_share_a_name(a: str, b: str) -> None:
    def canonical(text: str) -> list[str]:
        return [word for word in text.replace("\0", "").split("/") if word]

    one, two = workspace.escape_root("/" + a), workspace.escape_root("/" + b.replace("\0", ""))
    assert (one == two) == (canonical(a) == canonical(b))
    assert "/" not in one


def test_a_workspace_is_one_callers_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "state/root/c")
    first = workspace.open_workspace(path, timeout=0)
    with pytest.raises(BusyError, match="container c is busy"):
        workspace.open_workspace(path, timeout=0.05)
    first.close(remove=True)
    assert not (tmp_path / "state/root").exists()
    second = workspace.open_workspace(path, timeout=0)
    second.close()
    assert os.path.isdir(path)


def test_a_workspace_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root/c"
    path.mkdir(parents=True)
    path.chmod(0o777)
    with pytest.raises(GritError, match="writable by others"):
        workspace.open_workspace(str(path), timeout=0)


@dataclass(frozen=True)
class Note(Effect):
    """An effect that leaves a line in a file."""

    kind: ClassVar[str] = "test-note"
    path: str
    text: str
    fails: bool = False

    def describe(self) -> str:
        return f"note {self.text}"

    def apply(self) -> None:
        self._add(f"+{self.text}")
        if self.fails:
            raise OSError("apply failed")

    def undo(self) -> None:
        if self.fails:
            raise OSError("it cannot")
        self._add(f"-{self.text}")

    def _add(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(f"{text} ")


def _transaction(tmp_path: Path) -> Transaction:
    return Transaction(workspace.open_workspace(str(tmp_path / "s/r/c"), timeout=0), {"container": "c"})


def test_effects_are_undone_last_first_and_the_journal_goes(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    transaction = _transaction(tmp_path)
    for text in "abc":
        transaction.do(Note(str(file), text))
    transaction.rollback()
    assert file.read_text() == "+a +b +c -c -b -a "
    assert not (tmp_path / "s/r").exists()


def test_a_journal_holds_what_was_not_undone_and_survives_a_torn_last_line(tmp_path: Path) -> None:
    transaction = _transaction(tmp_path)
    effect = Note(str(tmp_path / "notes"), "a")
    transaction.do(effect)
    transaction.do(Note(str(tmp_path / "notes"), "b"))
    transaction.undo(effect)
    transaction.phase("there")
    journal = Path(transaction.workspace.journal)
    with journal.open("a") as stream:
        stream.write('{"effect":"test-note","n":9,"ar')
    record = read_journal(str(journal))
    assert record is not None
    assert [e.describe() for _, e in record.effects] == ["note b"]
    assert (record.phase, record.header) == ("there", {"container": "c"})


def test_an_undo_that_fails_keeps_the_journal_and_the_others_are_undone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    transaction = _transaction(tmp_path)
    transaction.do(Note(str(file), "a"))
    with pytest.raises(OSError, match="apply failed"):
        transaction.do(Note(str(file), "b", fails=True))
    error = GritError("the first failure")
    transaction.abort(error)
    assert str(error).startswith("the first failure; and could not undo: note b: it cannot")
    record = read_journal(transaction.workspace.journal)
    assert record is not None
    assert [e.describe() for _, e in record.effects] == ["note b"]
    assert file.read_text() == "+a +b -a "


def _note_all(tmp_path: Path, file: Path) -> None:
    transaction = _transaction(tmp_path)
    try:
        for text in "abcd":
            transaction.do(Note(str(file), text))
    except GritError as err:
        journal = Path(transaction.workspace.journal).read_text()
        assert all(json.loads(line) for line in journal.splitlines())
        transaction.abort(err)
        raise


@pytest.mark.parametrize("room", range(9))
@pytest.mark.parametrize("short", [False, True])
def test_a_journal_without_room_undoes_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, short: bool
) -> None:
    """A full tmpfs, from the journal's line of that number on; or room for a part of each line."""
    write, count = os.write, 0

    def full(fd: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count <= room:
            return write(fd, data)
        if short:
            return write(fd, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    file = tmp_path / "notes"
    with pytest.raises(GritError, match=r"cannot write the journal .*: No space left on device"):
        _note_all(tmp_path, file)
    notes = file.read_text().split() if file.exists() else []
    applied = [note[1:] for note in notes if note.startswith("+")]
    assert set(applied) <= {note[1:] for note in notes if note.startswith("-")}
    assert not (tmp_path / "s/r").exists()


@pytest.mark.parametrize(
    "line", ['{"effect":"no-such","n":0,"args":{}}', '{"effect":"make-tree","n":0,"args":{"x":1}}', "{"]
)
def test_a_journal_of_another_version_is_not_guessed_at(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "journal"
    journal.write_text(f'{{"header":{{"a":1}}}}\n{line}\n')
    with pytest.raises(RecoveryError):
        read_journal(str(journal))


def test_an_edited_file_is_put_back_only_if_it_is_still_ours(tmp_path: Path) -> None:
    file, work = tmp_path / "config.json", tmp_path / "work"
    work.mkdir()
    file.write_text("old")
    effect = effects.replace_file(str(file), b"old", b"new", str(work))
    effect.undo()
    assert file.read_text() == "old"
    effect.apply()
    assert file.read_text() == "new"
    effect.undo()
    assert file.read_text() == "old"
    effect.apply()
    file.write_text("somebody else's")
    effect.undo()
    assert file.read_text() == "somebody else's"
    file.unlink()
    effect.undo()


def test_directories_are_made_outermost_first_and_only_empty_ones_are_removed(tmp_path: Path) -> None:
    made = effects.missing_directories(str(tmp_path / "a/b/c"))
    for effect in made:
        effect.apply()
    (tmp_path / "a/file").write_text("a user's")
    for effect in reversed(made):
        effect.undo()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["file"]


def test_programs_are_found_by_their_environment_and_ended(tmp_path: Path) -> None:
    import subprocess

    value = str(tmp_path)
    marker = f"GRIT_TEST_MARKER={value}"
    child = subprocess.Popen(["sleep", "60"], env={"GRIT_TEST_MARKER": value})
    assert proc.with_environment(marker) == [child.pid]
    begin = time.monotonic()
    effects.Programs(marker, grace=0.1, timeout=5).undo()
    assert 0.1 <= time.monotonic() - begin < 5
    assert child.wait() == -9
    assert proc.with_environment(marker) == []


def test_a_criu_is_found_by_its_open_images(tmp_path: Path) -> None:
    import subprocess

    images, program = tmp_path / "images", tmp_path / "criu"
    images.mkdir()
    program.symlink_to("/bin/sleep")
    opened = os.open(images, os.O_RDONLY)
    child = subprocess.Popen([str(program), "60"], env={}, pass_fds=[opened])
    os.close(opened)
    while proc.thread_name(child.pid, child.pid) != "criu":  # execve(2) closes the pipe that Popen waits for first
        time.sleep(0.01)
    assert proc.criu_with_open(str(images)) == [child.pid]
    assert proc.criu_with_open(str(tmp_path)) == proc.criu_with_open(str(tmp_path / "absent")) == []
    effects.Programs("GRIT_TEST_MARKER=absent", str(images), grace=0.1, timeout=5).undo()
    assert child.wait() == -9


def test_a_program_that_does_not_end_is_killed() -> None:
    result = run.run(["sleep", "60"], timeout=0.1)
    assert (result.timed_out, result.ok) == (True, False)
    assert result.describe() == "`sleep 60` did not end in time"


def test_what_a_killed_program_started_is_not_waited_for() -> None:
    begin = time.monotonic()
    result = run.run(["sh", "-c", "echo said; sleep 20 & sleep 60"], timeout=0.5)
    assert time.monotonic() - begin < 15
    assert (result.timed_out, result.code, result.out) == (True, -9, "said")


def test_output_and_errors_are_kept_apart() -> None:
    result = run.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=5)
    assert (result.code, result.out, result.err) == (3, "out", "err")


def test_systemd_scopes_lie_in_their_slices() -> None:
    path = cgroups._systemd_path("kubepods-burstable-pod1.slice:cri-containerd:abc", "x")
    assert path == "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
    assert cgroups._systemd_path("", "x") == "/system.slice/runc-x.scope"


@pytest.mark.parametrize(
    ("inner", "own", "path"),
    [
        ("/a/b", "/x", "a/b"),
        ("a", "/x/y", "x/y/a"),
        ("/", "/x", ""),
        ("/../..", "/x", ""),
        ("..", "/x", ""),
        ("/a/../../b", "/", "b"),
    ],
)
def test_a_cgroup_path_never_leads_above_its_hierarchy(inner: str, own: str, path: str) -> None:
    assert cgroups._anchored(inner, own) == path


def test_journal_lines_are_json(tmp_path: Path) -> None:
    transaction = _transaction(tmp_path)
    transaction.do(Note(str(tmp_path / "n"), '\n"ü'))
    lines = Path(transaction.workspace.journal).read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["header"], ["args", "effect", "n"], ["applied"]]


def test_options_that_another_call_s_criu_just_took_are_known_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 {}"
    table = ["rw,nsdelegate"]
    monkeypatch.setattr(mounts, "own", lambda: mounts.parse(line.format(table[0])))
    set_to: list[str] = []
    monkeypatch.setattr(mounts, "remount", lambda _path, _options, words: set_to.append(words))
    space = workspace.open_workspace(str(tmp_path / "root/first"), timeout=1)
    first = Transaction(space, {"operation": "restore"})
    (option,) = effects.cgroup_options(str(tmp_path))
    first.do(option)
    table[0] = "rw"  # what CRIU leaves
    (second,) = effects.cgroup_options(str(tmp_path))
    assert effects.cgroup_options()[0].super_options == "rw"
    second.undo()
    assert [set(words.split(",")) for words in set_to] == [{"rw", "nsdelegate"}]
    table[0] = "rw,nsdelegate,memory_recursiveprot"
    second.undo()
    assert len(set_to) == 1, "nothing is ever taken away"
    first.rollback()


def test_a_fifo_is_no_text_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert files.read_text(str(tmp_path / "fifo")) == ""
    (tmp_path / "text").write_text("abc")
    assert files.read_text(str(tmp_path / "text"), 2) == "bc"


def test_the_lock_of_shared_links_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    effect = links.SharedLink(str(tmp_path / "link"), str(tmp_path), str(registry), "owner", 0.05)
    held = os.open(registry, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(BusyError, match="holds"):
        effect.apply()
    os.close(held)
    effect.apply()
    assert os.readlink(tmp_path / "link") == str(tmp_path)
    effect.undo()
    assert not registry.exists()


def test_cgroup_v2_beside_v1_is_a_container_s_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("devices", "unified", "systemd"):
        (tmp_path / name / "x").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "MOUNT", str(tmp_path))
    monkeypatch.setattr(proc, "cgroups", lambda _: {"devices": "/", "name=systemd": "/", "": "/"})
    found = cgroups.directories("/x", "c", systemd=False)
    assert sorted(found) == [f"{tmp_path}/{name}/x" for name in ("devices", "systemd", "unified")]
