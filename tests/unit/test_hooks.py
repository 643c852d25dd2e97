"""The hooks as programs of their own: whatever they are given they end with 0, write nothing elsewhere, and say why."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime.downstream import State
from grit_runtime.errors import CaptureError
from grit_runtime.host import proc
from grit_runtime.workflow import recorded
from tests.requirements import ROOT

HOOKS = ROOT / "hooks"
CONFIG = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": {"a": "b"}}


def _call(name: str, stdin: bytes | dict[str, Any], *words: str, env: dict[str, str] | None = None) -> str:
    """Run a hook as a runtime does; what it said."""
    data = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
    argv = [sys.executable, "-IS", HOOKS / name, *words]
    done = subprocess.run(argv, input=data, capture_output=True, check=False, timeout=30, env=env)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.count(b"\n") <= 1
    return done.stderr.decode()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bundle; the state directory isn't there yet."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def _state(place: Path, **more: Any) -> dict[str, Any]:
    return {"ociVersion": "1.0.2", "id": "c", "pid": os.getpid(), "bundle": str(place / "bundle"), **more}


def _record(place: Path, state: bytes | dict[str, Any]) -> str:
    return _call("grit-record", state, "--state-dir", str(place / "state"))


def _files(place: Path) -> list[Path]:
    return [path for path in (place / "state").rglob("*") if path.is_file()]


def _ours(place: Path) -> Path:
    return place / "state/.recorded" / f"{os.getpid()}-{proc.start_time(os.getpid())}.json"


def test_a_record_holds_what_a_capture_needs(place: Path) -> None:
    assert _record(place, _state(place)) == ""
    assert _files(place) == [_ours(place)]
    found = json.loads(_ours(place).read_text())
    assert found.pop("mountinfo") == Path("/proc/self/mountinfo").read_text()
    assert found == {
        "version": 1,
        "id": "c",
        "bundle": str(place / "bundle"),
        "pid": os.getpid(),
        "start": proc.start_time(os.getpid()),
        "config": CONFIG,
    }
    assert _ours(place).stat().st_mode & 0o777 == 0o600
    assert _record(place, _state(place, id="other")) == ""
    assert json.loads(_ours(place).read_text())["id"] == "other"


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"id": ' + b"[" * 100_000,
        b'{"id": "c", "x": "' + b"x" * (1 << 20) + b'"}',
        {},
        {"id": "../../etc/passwd"},
        {"id": ".."},
        {"id": "."},
        {"id": ""},
        {"id": "a/b"},
        {"id": "a\nb"},
        {"id": "c\n"},
        {"id": "x" * 256},
        {"id": ["c"]},
        {"id": "ä"},
        {"bundle": "relative"},
        {"bundle": 1},
        {"bundle": "/nonexistent\0"},
        {"bundle": "/nonexistent"},
        {"pid": 0},
        {"pid": -1},
        {"pid": True},
        {"pid": "1"},
        {"pid": 1.0},
        {"pid": 1 << 40},
    ],
    ids=lambda state: repr(state)[:30],
)
def test_a_hostile_state_writes_nothing(place: Path, state: bytes | dict[str, Any]) -> None:
    given = state if isinstance(state, bytes) else _state(place, **state) if state else state
    assert _record(place, given).startswith("grit-record: ")
    assert _files(place) == []
    if isinstance(state, bytes) or "id" in state:
        assert _call("grit-cleanup", given, "--state-dir", str(place / "state")).startswith("grit-cleanup: ")


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "large", "no JSON", "list", "unreadable"])
def test_a_configuration_that_is_none_is_not_recorded(place: Path, what: str) -> None:
    config = place / "bundle/config.json"
    config.rename(place / "elsewhere")
    if what == "link":
        config.symlink_to(place / "elsewhere")
    elif what == "fifo":
        os.mkfifo(config)
    elif what == "directory":
        config.mkdir()
    elif what == "large":
        with config.open("wb") as stream:
            stream.truncate((16 << 20) + 1)
    elif what != "unreadable":
        config.write_text("{" if what == "no JSON" else "[]")
    assert _record(place, _state(place)).startswith("grit-record: ")
    assert _files(place) == []


@pytest.mark.parametrize("what", ["link", "file", "writable", "writable above", "leftover"])
def test_nothing_is_written_where_others_may_write(place: Path, what: str) -> None:
    records = place / "state/.recorded"
    (place / "state").mkdir(mode=0o700)
    (place / "target").mkdir()
    if what == "link":
        records.symlink_to(place / "target")
    elif what == "file":
        records.write_text("")
    elif what == "writable":
        records.mkdir()
        records.chmod(0o770)
    elif what == "writable above":
        (place / "state").chmod(0o777)
    else:
        records.mkdir(mode=0o700)
        _ours(place).with_suffix(".tmp").symlink_to(place / "target/x")
    said = _record(place, _state(place))
    assert said.startswith("grit-record: ")
    assert list((place / "target").iterdir()) == []
    assert not _ours(place).is_file()


def test_words_that_a_hook_does_not_know_are_said_and_cost_nothing(place: Path) -> None:
    for words in (("--state-dir",), ("--state-dir", "relative"), ("--nonsense", "/x"), ("x",)):
        for name in ("grit-record", "grit-cleanup"):
            assert f"usage: {name}" in _call(name, _state(place), *words)


def test_no_environment_chooses_the_code(place: Path) -> None:
    for name in ("json", "os", "re", "signal", "stat", "fcntl", "socket"):
        (place / f"{name}.py").write_text("raise SystemExit(3)")
    for name in ("grit-record", "grit-cleanup"):
        first = (HOOKS / name).read_text().splitlines()[0]
        assert first == "#!/usr/bin/python3 -IS"
        _call(name, _state(place), "--state-dir", str(place / "state"), env={"PYTHONPATH": str(place)})


@pytest.fixture
def cleaner(place: Path) -> Callable[[], tuple[str, str]]:
    """grit-cleanup with a launcher that writes down what it was called with."""
    launcher = place / "launcher"
    launcher.write_text(f'#!/bin/sh\necho "$* $GRIT_RUNTIME_CONFIG" >> {place}/called\nexit $(cat {place}/code)\n')
    launcher.chmod(0o755)
    (place / "code").write_text("0")
    words = ["--state-dir", f"{place}/state", "--launcher", str(launcher), "--config", "/c.yaml"]

    def clean() -> tuple[str, str]:
        said = _call("grit-cleanup", {"id": "c", "status": "stopped"}, *words)
        called = (place / "called").read_text() if (place / "called").exists() else ""
        return said, called

    return clean


def test_what_is_left_of_a_container_is_recovered(place: Path, cleaner: Callable[[], tuple[str, str]]) -> None:
    assert cleaner() == ("", "")
    for path in ("run-runc/other", "run-runc/c.d", ".recorded/c"):
        (place / "state" / path).mkdir(parents=True)
    (place / "state/stray").write_text("")
    assert cleaner() == ("", "")
    (place / "state/run-runc/c").mkdir()
    (place / "state/elsewhere/c").mkdir(parents=True)
    assert cleaner() == ("", "recover --container=c /c.yaml\n")
    (place / "code").write_text("1")
    assert "ended with 1" in cleaner()[0]


def test_a_workspace_that_somebody_works_on_is_not_touched(place: Path, cleaner: Callable[[], tuple[str, str]]) -> None:
    (place / "state/run-runc/c").mkdir(parents=True)
    fd = os.open(place / "state/run-runc/c", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert cleaner() == ("", "")
    os.close(fd)
    assert cleaner() == ("", "recover --container=c /c.yaml\n")


@pytest.mark.parametrize("by", ["hook", "recover"])
def test_records_go_with_their_processes(place: Path, cleaner: Callable[[], tuple[str, str]], by: str) -> None:
    records = place / "state/.recorded"

    def clean() -> None:
        if by == "hook":
            assert cleaner() == ("", "")
        else:
            recorded.prune(str(place / "state"))

    clean()
    _record(place, _state(place))
    start = proc.start_time(os.getpid())
    assert start
    kept = ("other", "1-2", f"{os.getpid()}-{start}.tmp")
    for name in (*kept, f"{os.getpid()}-{start + 1}.json", "4194305-1.json", f"4194305-{start}.tmp"):
        (records / name).write_text("{")
    clean()
    assert sorted(path.name for path in records.iterdir()) == sorted((*kept, _ours(place).name))
    for path in records.iterdir():
        path.rename(records / "4194305-1.json")
    clean()
    assert not records.exists()


def _bundle_of(place: Path) -> tuple[Any, list[str]]:
    said: list[str] = []
    log = SimpleNamespace(line=lambda _, text: said.append(text))
    context: Any = SimpleNamespace(config=SimpleNamespace(state_dir=str(place / "state")), container="c", log=log)
    state = State(status="running", pid=os.getpid(), bundle=str(place / "bundle"), raw={})
    return recorded.bundle_of(context, state), said


def test_a_record_counts_where_the_configuration_has_changed(place: Path) -> None:
    _record(place, _state(place))
    config = place / "bundle/config.json"
    config.write_text(json.dumps(CONFIG, indent=2))
    assert _bundle_of(place)[1] == []
    config.write_text("{}")
    bundle, said = _bundle_of(place)
    assert bundle.config == CONFIG
    assert bundle.path == str(place / "bundle")
    assert "config.json has changed since" in said[0]
    config.unlink()
    bundle, said = _bundle_of(place)
    assert bundle.config == CONFIG
    assert "not found in bundle" in said[0]


@pytest.mark.parametrize("what", ["none", "other id", "damaged", "link", "others may write", "directory", "no config"])
def test_a_record_that_may_be_anothers_does_not_count(place: Path, what: str) -> None:
    _record(place, _state(place, id="d" if what == "other id" else "c"))
    (place / "bundle/config.json").unlink()
    file = _ours(place)
    if what == "damaged":
        file.write_text("[" * 100_000)
    elif what == "no config":
        file.write_text(json.dumps({**json.loads(file.read_text()), "config": [1]}))
    elif what == "link":
        file.symlink_to(file.rename(place / "record"))
    elif what == "others may write":
        file.chmod(0o666)
    elif what == "directory":
        file.parent.chmod(0o777)
    elif what == "none":
        file.unlink()
    with pytest.raises(CaptureError, match="configuration is needed"):
        _bundle_of(place)
