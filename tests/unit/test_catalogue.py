"""Checkpoints below roots: what is found, what goes, and that nothing outside of a root is touched."""

import json
import os
from pathlib import Path

import pytest

from grit_runtime.checkpoint import catalogue
from grit_runtime.checkpoint.catalogue import COMPLETE, INCOMPLETE, UNSAID, Entry
from grit_runtime.errors import BusyError, CheckpointError
from grit_runtime.host.workspace import path_of
from grit_runtime.workflow import prune

NOW = 1_800_000_000.0
DAY = 86400.0


def _make(images: Path, *, pod: str | None = "web-0", created: str = "2026-11-25T02:33:41Z") -> Path:
    images.mkdir(parents=True)
    (images / "inventory.img").write_bytes(b"x" * 5000)
    if pod is not None:
        manifest = {"format": 1, "created": created, "container": {"pod": {"name": pod}}}
        (images / "grit.json").write_text(json.dumps(manifest))
    return images


def test_what_is_found(tmp_path: Path) -> None:
    base = tmp_path / "default/web-1"
    _make(base / "app/checkpoint")
    _make(base / "sidecar/checkpoint", pod=None)
    _make(tmp_path / "default/plain/checkpoint")
    (_make(base / "begun/checkpoint", pod=None) / ".grit-partial").mkdir()
    (base / "kubelet.tar").write_bytes(b"tar")
    (base / "notes.txt").write_text("no checkpoint")
    (base / "empty").mkdir()
    found = {entry.path.removeprefix(f"{tmp_path}/"): entry for entry in catalogue.find((str(tmp_path),))}
    assert {path: (entry.container, entry.state) for path, entry in found.items()} == {
        "default/web-1/app": ("app", COMPLETE),
        "default/web-1/sidecar": ("sidecar", UNSAID),
        "default/web-1/begun": ("begun", INCOMPLETE),
        "default/web-1/kubelet.tar": ("kubelet", UNSAID),
        "default/plain/checkpoint": ("", COMPLETE),
    }
    app = found["default/web-1/app"]
    assert (app.subject, app.made) == (("default", "web-0", "app"), 1795574021.0)
    assert app.bytes >= 8192


@pytest.mark.parametrize("where", ["namespace", "name", "entry", "images", "manifest"])
def test_no_link_is_followed(tmp_path: Path, where: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    _make(outside / "name/app/checkpoint")
    (root / "ns/name/app").mkdir(parents=True)
    if where == "namespace":
        (root / "linked").symlink_to(outside)
    elif where == "name":
        (root / "ns/linked").symlink_to(outside / "name")
    elif where == "entry":
        (root / "ns/name/linked").symlink_to(outside / "name/app")
    elif where == "images":
        (root / "ns/name/app/checkpoint").symlink_to(outside / "name/app/checkpoint")
    else:
        images = _make(root / "ns/name/app/checkpoint", pod=None)
        (images / "grit.json").symlink_to(outside / "name/app/checkpoint/grit.json")
    found = catalogue.find((str(root),))
    assert [entry.state for entry in found] == ([UNSAID] if where == "manifest" else [])


def test_a_manifest_of_any_kind_is_no_failure(tmp_path: Path) -> None:
    for number, text in enumerate(["", "[]", "{", '{"container": 3, "created": []}', "[" * 100_000]):
        images = _make(tmp_path / f"ns/n{number}/app/checkpoint", pod=None)
        (images / "grit.json").write_text(text)
    os.mkfifo(_make(tmp_path / "ns/fifo/app/checkpoint", pod=None) / "grit.json")
    assert len(catalogue.find((str(tmp_path),))) == 6


def _entry(name: str, age: float, *, pod: str = "web-0", container: str = "app", state: str = COMPLETE) -> Entry:
    return Entry(
        root="/r", namespace="ns", name=name, entry=container, container=container, pod=pod, made=NOW - age * DAY,
        bytes=1, state=state,
    )  # fmt: skip


ENTRIES = [
    _entry("a", 9),
    _entry("b", 5),
    _entry("c", 1),
    _entry("other", 9, pod="db-0"),
    _entry("side", 9, container="sidecar"),
    _entry("cut", 2, state=INCOMPLETE),
    _entry("copied", 0.001, state=INCOMPLETE),
]


@pytest.mark.parametrize(
    ("keep", "days", "incomplete", "gone"),
    [
        (1, None, False, ["a", "b"]),
        (2, None, False, ["a"]),
        (0, None, False, ["a", "other", "side", "b", "c"]),
        (None, 4, False, ["a", "other", "side", "b"]),
        (1, 7, False, ["a"]),
        (3, None, False, []),
        (3, None, True, ["cut"]),
        (None, 3, True, ["a", "other", "side", "b"]),
    ],
)
def test_which_go(keep: int | None, days: float | None, incomplete: bool, gone: list[str]) -> None:
    before = None if days is None else NOW - days * DAY
    found = prune.chosen(ENTRIES, keep=keep, before=before, incomplete=incomplete, now=NOW)
    assert [entry.name for entry in found] == gone


def test_one_goes_and_what_is_empty_then(tmp_path: Path) -> None:
    _make(tmp_path / "ns/one/app/checkpoint")
    _make(tmp_path / "ns/two/app/checkpoint")
    one, two = catalogue.find((str(tmp_path),))
    assert prune.remove(one, list)
    assert sorted(path.name for path in (tmp_path / "ns").iterdir()) == ["two"]
    assert prune.remove(two, list)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_one_that_is_used_stays(tmp_path: Path, when: str) -> None:
    images = _make(tmp_path / "ns/one/app/checkpoint")
    (entry,) = catalogue.find((str(tmp_path),))
    answers = [[str(images)]] if when == "before" else [[], [str(images)]]
    assert not prune.remove(entry, lambda: answers.pop(0))
    assert answers == []
    assert (images / "grit.json").exists()
    assert catalogue.find((str(tmp_path),)) == [entry]


def test_two_do_not_remove_at_once(tmp_path: Path) -> None:
    roots = (str(tmp_path), str(tmp_path / "none"))
    with prune.locked(roots), pytest.raises(BusyError, match="another grit-runtime"), prune.locked(roots):
        pass
    with prune.locked(roots):
        pass


def test_links_within_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    root = tmp_path / "root"
    images = _make(root / "ns/one/app/checkpoint")
    (images / "link").symlink_to(outside)
    (entry,) = catalogue.find((str(root),))
    assert prune.remove(entry, list)
    assert (outside / "precious").exists()


def test_one_that_became_a_link_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    _make(root / "ns/one/app/checkpoint")
    precious = _make(outside / "app/checkpoint")
    (entry,) = catalogue.find((str(root),))
    (root / "ns/one").rename(root / "ns/moved")
    (root / "ns/one").symlink_to(outside)
    with pytest.raises(CheckpointError, match="cannot remove"):
        prune.remove(entry, list)
    assert (precious / "grit.json").exists()


def test_what_a_killed_call_had_renamed_is_swept(tmp_path: Path) -> None:
    _make(tmp_path / "ns/one/app/checkpoint")
    (tmp_path / "ns/one/app").rename(tmp_path / "ns/one/.grit-pruned-00")
    (tmp_path / "ns/one/.other").mkdir()
    assert catalogue.find((str(tmp_path),)) == []
    prune.sweep((str(tmp_path),))
    assert [path.name for path in (tmp_path / "ns/one").iterdir()] == [".other"]


@pytest.mark.parametrize(
    ("operation", "phase", "used"),
    [("restore", "", True), ("capture", "publishing", True), ("restore", "created", False)],
)
def test_journals_say_what_is_in_use(tmp_path: Path, operation: str, phase: str, used: bool) -> None:
    workspace = Path(path_of(str(tmp_path), "/run/runc", "c"))
    workspace.mkdir(parents=True)
    lines = [{"header": {"operation": operation, "images": "/r/ns/a/app/checkpoint"}}, {"phase": phase}]
    (workspace / "journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prune.in_use(str(tmp_path)) == (["/r/ns/a/app/checkpoint"] if used else [])
    (workspace / "journal").write_text('{"effect": "unknown", "n": 0, "args": {}}\n')
    with pytest.raises(CheckpointError, match="nobody knows"):
        prune.in_use(str(tmp_path))
