"""The record of an operation: how it is kept, and that it never costs a call anything."""

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime.report import model
from grit_runtime.workflow import describe, operations


def _context(path: Path, container: str = "abc") -> Any:
    log = SimpleNamespace(for_people=lambda message: message.replace("/proc/1/fd/2", "/cp"))
    site = SimpleNamespace(log_dir=str(path / "logs"))
    return SimpleNamespace(log=log, config=site, container=container, record=operations.Record())


def _only(path: Path) -> dict[str, Any]:
    (file,) = (path / "logs" / operations.FOLDER).iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations.proc, "finish_undisturbed", lambda: None)


def test_phases_follow_each_other_from_the_process_begin(tmp_path: Path) -> None:
    context = _context(tmp_path)
    with operations.recorded(context, "restore", "/cp"):
        context.record.mark("plan")
        context.record.mark("memory")
        context.record.add(5)
        span = context.record.begin("reading")
        context.record.end(span, 7)
        context.record.begin("huge pages", "from a to b")
    found = model.parse(_only(tmp_path), "r")
    assert [phase.name for phase in found.phases] == ["begin", "plan", "memory", "reading", "huge pages"]
    assert found.phases[0].begin == 0
    assert found.phases[0].end > 0
    assert found.added == pytest.approx(found.seconds, abs=1e-5)
    assert [phase.size for phase in found.phases] == [None, None, 5, 7, None]
    assert [phase.unended for phase in found.phases] == [False] * 4 + [True]
    assert found.ok


@pytest.mark.parametrize("error", [ValueError("on\ntwo lines of /proc/1/fd/2"), KeyboardInterrupt()])
def test_a_failure_is_recorded_once_and_raised(tmp_path: Path, error: BaseException) -> None:
    context = _context(tmp_path)
    with (
        pytest.raises(type(error)),
        operations.recorded(context, "create"),
        operations.recorded(context, "create", "/cp"),
    ):
        raise error
    found = model.parse(_only(tmp_path), "r")
    assert (found.outcome, found.images) == ("failed", "/cp")
    assert found.error == (" ".join(str(error).split()).replace("/proc/1/fd/2", "/cp") or "KeyboardInterrupt")


def test_a_record_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").write_text("a file")
    with operations.recorded(_context(tmp_path), "restore"):
        pass
    (tmp_path / "logs").unlink()

    with monkeypatch.context() as patched:
        patched.setattr(operations.os, "write", lambda *_: 7)  # a disk with room for so much
        with operations.recorded(_context(tmp_path), "restore"):
            pass
    assert list((tmp_path / "logs" / operations.FOLDER).iterdir()) == []


def test_the_newest_are_kept_and_nothing_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "KEPT", 3)
    folder = tmp_path / "logs" / operations.FOLDER
    folder.mkdir(parents=True)
    (folder / "00-mine.json").write_text("")
    (folder / "20200101T000000.000Z-restore-x.json").mkdir()  # can't be unlinked: it costs no call
    for number in range(1, 6):
        (folder / f"2020010{number}T000000.000Z-restore-x.log").write_text("")
        (folder / f"2020020{number}T000000.000Z-restore-x.json").write_text("")
    with operations.recorded(_context(tmp_path), "restore"):
        pass
    names = sorted(entry.name for entry in folder.iterdir())
    assert "00-mine.json" in names
    assert len([name for name in names if name.endswith(".log")]) == 5
    left = [name for name in names if operations.is_record(name) and (folder / name).is_file()]
    assert len(left) == 3
    assert left[0].startswith("20200204")


def test_steps_that_somebody_else_timed_end_one_after_another() -> None:
    record = operations.Record()
    record.mark("cuda")
    record.took({"lock": 0.25, "move": 0.5})
    move, lock = (phase for phase in record.phases() if phase["span"])
    assert (move["name"], lock["name"]) == ("move", "lock")
    assert move["begin"] == pytest.approx(lock["end"], abs=1e-5)
    assert lock["end"] - lock["begin"] == pytest.approx(0.25, abs=1e-5)


def test_phases_are_bounded() -> None:
    record = operations.Record()
    for number in range(1000):
        record.mark(str(number))
        record.begin("s")
    found = record.phases()
    assert len(found) == 400
    ends = [phase for phase in found if not phase["span"]]
    assert all(one["end"] == other["begin"] for one, other in itertools.pairwise(ends))


_MINE = ("operations", "20200101T000000Z-x-restore.log", "notes.txt", "journal.log")


def test_only_logs_of_ours_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else lies in `log-dir` is no log: a directory there cost the hint of a failure its path."""
    monkeypatch.setattr(describe, "KEPT_LOGS", 3)
    source, logs = tmp_path / "restore.log", tmp_path / "logs"
    source.write_text("text")
    for name in _MINE:
        (logs / name).mkdir(parents=True) if "." not in name or name.startswith("2020") else (logs / name).write_text(
            ""
        )
    for number in range(5):
        (logs / f"2021010{number}T000000Z-old-dump.log").write_text("")
    kept = describe.keep_log(str(logs), "abc", str(source))
    assert Path(kept).read_text() == "text"
    left = sorted(os.listdir(logs))
    assert set(_MINE) <= set(left)
    assert [name[:8] for name in left if name.endswith("dump.log") or name == Path(kept).name][:2] == [
        "20210103",
        "20210104",
    ]
    assert len(left) == len(_MINE) + 3


def test_a_log_is_kept_with_the_newest_where_the_directory_is_not_ours_to_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "restore.log"
    source.write_text("text")

    def denied(_: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(describe.files.os, "listdir", denied)
    assert Path(describe.keep_log(str(tmp_path / "logs"), "abc", str(source))).read_text() == "text"
    assert describe.keep_log(str(tmp_path / "logs"), "abc", str(tmp_path / "nix")) == ""


def test_the_directories_are_for_root_alone(tmp_path: Path) -> None:
    with operations.recorded(_context(tmp_path), "restore"):
        pass
    for folder in (tmp_path / "logs", tmp_path / "logs" / operations.FOLDER):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_an_unknown_start_of_the_process_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations.proc, "start_time", lambda _: None)
    record = operations.Record()
    record.mark("plan")
    assert record.phases()[0] == {"name": "begin", "begin": 0, "end": 0, "span": False}
