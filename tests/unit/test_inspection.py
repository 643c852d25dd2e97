"""What is said of a checkpoint: made-up images, hostile ones, rendering, differences. Real ones are in
tests/integration/test_inspect.py.
"""

import io
import json
import os
import random
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grit_runtime import names
from grit_runtime.config import Archive
from grit_runtime.criu import messages, pagemap, raw
from grit_runtime.errors import CheckpointError
from grit_runtime.inspection import difference, gather, text, words
from grit_runtime.inspection.model import Gpu, Inspection, Mount, OpenFile, Part, Process, Socket, State
from grit_runtime.inspection.text import Wanted

ALL = Wanted(files=True, mounts=True, memory=True)
_FOWN = dict.fromkeys(("uid", "euid", "signum", "pid_type", "pid"), 0)
_OPTS = dict.fromkeys(
    ("so_sndbuf", "so_rcvbuf", "so_snd_tmo_sec", "so_snd_tmo_usec", "so_rcv_tmo_sec", "so_rcv_tmo_usec"), 0
)
_TASK = {"task_state": 1, **dict.fromkeys(("exit_code", "personality", "flags", "blk_sigset"), 0)}
_MM_WORDS = (
    *("start_code", "end_code", "start_data", "end_data", "start_stack", "start_brk"),
    *("brk", "arg_start", "arg_end", "env_start", "env_end"),
)
_MM = dict.fromkeys((f"mm_{word}" for word in _MM_WORDS), 0)
_LOOPBACK = [int.from_bytes(bytes([127, 0, 0, 1]), "little")]


def _image(path: Path, name: str, magic: str, *entries: dict[str, Any]) -> None:
    pycriu = messages.pycriu()
    parts = [pycriu.handlers[magic].payload(**entry).SerializeToString() for entry in entries]
    framed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    (path / name).write_bytes(messages._COMMON_MAGIC[0] + pycriu.by_name[magic].to_bytes(4, "little") + framed)


def _regular(number: int, name: str) -> dict[str, Any]:
    return {"type": "REG", "id": number, "reg": {"id": number, "flags": 0, "pos": 0, "fown": _FOWN, "name": name}}


def _tcp(number: int) -> dict[str, Any]:
    shape = {"family": 2, "type": 1, "proto": 6, "state": 1, "flags": 0, "backlog": 0, "ino": 7, "id": number}
    ends = {"src_port": 80, "dst_port": 999, "src_addr": _LOOPBACK, "dst_addr": _LOOPBACK}
    return {"type": "INETSK", "id": number, "isk": {**shape, **ends, "fown": _FOWN, "opts": _OPTS}}


def _process(path: Path, pid: int) -> None:
    _image(path, f"core-{pid}.img", "CORE", {"mtype": "X86_64", "tc": {**_TASK, "comm": f"task{pid}"}})
    vma = {"start": 0x1000, "end": 0x5000, "pgoff": 0, "shmid": 0, "prot": 3, "flags": 0x22, "status": 0x221, "fd": -1}
    _image(path, f"mm-{pid}.img", "MM", {**_MM, "exe_file_id": 1, "vmas": [vma]})
    _image(path, f"ids-{pid}.img", "IDS", dict.fromkeys(("vm_id", "fs_id", "sighand_id", "files_id"), 1))
    (path / f"pagemap-{pid}.img").write_bytes(pagemap.encode(pid, [{1: 0x2000, 2: 2, 4: pagemap.PRESENT}]))
    (path / f"pages-{pid}.img").write_bytes(bytes(8192))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Images of two processes with one table of descriptors."""
    path = tmp_path / "c"
    path.mkdir()
    _image(path, "inventory.img", "INVENTORY", {"img_version": 2})
    tree = [{"pid": pid, "ppid": pid - 1, "pgid": 1, "sid": 1, "threads": [pid, pid + 100]} for pid in (1, 2)]
    _image(path, "pstree.img", "PSTREE", *tree)
    _image(path, "files.img", "FILES", _regular(1, "bin/app"), _regular(2, "data/out"), _tcp(3))
    opened = [{"id": number, "flags": 0, "type": "REG", "fd": number} for number in (2, 3)]
    _image(path, "fdinfo-1.img", "FDINFO", *opened)
    mount = {"fstype": 5, "mnt_id": 2, "root_dev": 0, "parent_mnt_id": 1, "flags": 0, "root": "/", "source": "x"}
    kinds = [{"mountpoint": "/"}, {"mountpoint": "/dev/shm"}, {"mountpoint": "/data", "ext_key": "/data"}]
    _image(path, "mountpoints-1.img", "MNTS", *({**mount, "options": "", **kind} for kind in kinds))
    for pid in (1, 2):
        _process(path, pid)
    return path


def _inspect(path: Path, **more: Any) -> Inspection:
    return gather.inspect(str(path), Archive(), **more)


def _manifest(path: Path, **more: Any) -> None:
    files = [{"name": file.name, "bytes": file.stat().st_size} for file in path.iterdir()]
    data = {"format": 1, "machine": {"architecture": "x86_64"}, "files": files, **more}
    (path / names.MANIFEST).write_text(json.dumps(data))


def test_images_say_this_much(checkpoint: Path) -> None:
    found = _inspect(checkpoint, mappings=True)
    assert (found.state, found.problems) == (State.UNSAID, ())
    first, second = found.processes
    assert (first.name, first.program, first.threads, second.parent) == ("task1", "/bin/app", 2, 1)
    assert (first.saved, first.mapped) == (8192, 16384)
    assert [(mapping.access, mapping.saved) for mapping in first.mappings] == [("rw-p", 8192)]
    assert [(file.pids, file.number, file.what) for file in found.open_files] == [
        ((1, 2), 2, "/data/out"),
        ((1, 2), 3, "tcp established 127.0.0.1:80 -> 127.0.0.1:999"),
    ]
    assert [(mount.destination, mount.kind) for mount in found.mounts] == [
        ("/", "rootfs"),
        ("/data", "bind"),
        ("/dev/shm", "file system"),
    ]


def test_a_manifest_says_more(checkpoint: Path) -> None:
    source = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/x"
    gpu = {"index": 0, "uuid": "GPU-1", "name": "H", "memory": 1 << 30}
    _manifest(
        checkpoint,
        created="2026-01-01T00:00:00Z",
        processes=[{"pid": 1, "command": ["/bin/app", "a b"]}],
        spec={"mounts": [{"destination": "/data", "source": source}]},
        cuda={"driver": "1", "mode": "driver", "gpus": [gpu], "processes": [{"pid": 2, "memory": {"GPU-1": 5 << 20}}]},
        contents={"rootfs-diff": {"bytes": 1024, "entries": 1}, "log": {"left-out": "no"}},
    )
    found = _inspect(checkpoint)
    assert (found.state, found.created) == (State.COMPLETE, "2026-01-01T00:00:00Z")
    shown = text.render(found, ALL)
    for line in (
        "1      /bin/app 'a b': 2 threads",
        "/data: configmap, tmpfs from " + source,
        "CUDA: 5.0 MiB on GPU-1",
        "GPU-1: H, 1.0 GiB, 5.0 MiB of it the container's",
        "1.0 KiB in 1 entry",
        "left out: no",
    ):
        assert line in shown


@pytest.mark.parametrize("which", ["pstree.img", "core-2.img", "mm-1.img", "pagemap-2.img", "pages-1.img"])
@pytest.mark.parametrize("listed", [False, True])
def test_what_is_missing_is_named_and_the_rest_is_shown(checkpoint: Path, which: str, listed: bool) -> None:
    if listed:
        _manifest(checkpoint)
    (checkpoint / which).unlink()
    found = _inspect(checkpoint)
    assert found.state is State.DAMAGED
    assert any(problem.startswith(which) and "is missing" in problem for problem in found.problems)
    assert len(found.mounts) == 3


def test_pages_that_are_too_short_are_named(checkpoint: Path) -> None:
    os.truncate(checkpoint / "pages-2.img", 4096)
    assert _inspect(checkpoint).problems == ("pages-2.img has 4096 bytes, and pagemap-2.img says 8192",)


def test_a_dump_that_has_not_ended_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / names.PARTIAL).mkdir()
    found = _inspect(tmp_path)
    assert (found.state, found.problems) == (State.INCOMPLETE, ("a dump into it was begun, and has not ended",))


def test_a_newer_format_is_said(checkpoint: Path) -> None:
    (checkpoint / names.MANIFEST).write_text('{"format": 99, "files": []}')
    found = _inspect(checkpoint)
    assert "upgrade grit-runtime" in found.problems[0]
    assert len(found.processes) == 2


@pytest.mark.parametrize("number", [-1, 10**400, 1.5, True, "1", None, [], {}])
def test_no_value_of_a_manifest_is_trusted(checkpoint: Path, number: Any) -> None:
    entry = dict.fromkeys(("pid", "command", "memory", "uuid", "index", "bytes", "destination", "hostPath"), number)
    sections = {word: [entry, number] for word in ("processes", "mounts")}
    _manifest(checkpoint, **sections, cuda={"gpus": [entry], "processes": [entry], "mode": number}, spec=number)
    for change in ({}, {"container": number, "versions": number, "contents": {"log": number, "dev-shm": entry}}):
        path = checkpoint / names.MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        found = _inspect(checkpoint)
        assert len(found.processes) == 2
        assert text.render(found, ALL)
        json.dumps(found.document())


def test_damage_anywhere_is_one_line_or_more_and_no_error_of_ours(checkpoint: Path) -> None:
    _manifest(checkpoint, spec={"a": [1]})
    good, chance = _inspect(checkpoint), random.Random(7)
    for file in sorted(checkpoint.iterdir()):
        if file.name.startswith("pages-"):
            continue
        data = file.read_bytes()
        for _ in range(25):
            damaged = bytearray(data)
            damaged[chance.randrange(len(data))] = chance.randrange(256)
            file.write_bytes(damaged[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.3 else damaged)
            found = _inspect(checkpoint, mappings=True)
            assert all(c.isprintable() or c == "\n" for c in text.render(found, ALL))
            difference.render(difference.compare(good, found))
        file.write_bytes(data)


def test_no_control_character_reaches_a_terminal() -> None:
    bad = "\x1b[31m\n\r\x9b\u202e\udcff"
    process = Process(pid=1, parent=0, name=bad, command=bad, program=bad, threads=1, state="", saved=1, mapped=1)
    found = Inspection(
        path=bad, kind="k", state=State.DAMAGED, problems=(bad,), created=bad,
        machine={"node": bad}, versions={bad: bad}, container={"id": bad, "pod": bad, "command": bad}, plugins=(bad,),
        processes=(replace(process, cuda=True, gpu={bad: 1}),), gpu={"driver": bad, "mode": bad},
        gpus=(Gpu(index=0, uuid=bad, name=bad, memory=1, used=0),),
        open_files=(OpenFile(pids=(1,), number=0, kind=bad, what=bad),),
        sockets=(Socket(kind=bad, state="", local=bad, remote=bad),),
        mounts=(Mount(destination=bad, kind=bad, type=bad, source=bad),),
        contents=(Part(name=bad, left_out=bad),), spec={bad: bad},
    )  # fmt: skip
    other = Inspection(path="", kind="k", state=State.COMPLETE)
    shown = text.render(found, ALL) + difference.render(difference.compare(found, other))
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_parents_that_go_in_a_circle_show_everybody_once() -> None:
    def process(pid: int, parent: int) -> Process:
        return Process(pid=pid, parent=parent, name="x", command="", program="", threads=1, state="", saved=1, mapped=1)

    deep = tuple(process(pid, pid - 1) for pid in range(10, 5000))
    found = Inspection(
        path="/", kind="k", state=State.UNSAID, processes=(process(1, 2), process(2, 1), process(3, 3), *deep)
    )
    assert text.render(found, ALL).count(" x: ") == 3 + len(deep)


def test_only_so_much_is_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(checkpoint / "files.img", 65 << 20)
    os.unlink(checkpoint / "mm-1.img")
    os.mkfifo(checkpoint / "mm-1.img")
    os.unlink(checkpoint / "core-1.img")
    (checkpoint / "core-1.img").symlink_to("/dev/zero")
    monkeypatch.setattr(raw, "MOST", 2)
    found = _inspect(checkpoint)
    assert any("is larger than 16 MiB" in problem for problem in found.problems)
    assert any("mountpoints-1.img" in problem for problem in found.problems), "three messages"
    assert {"core-1.img of process 1 is missing", "mm-1.img of process 1 is missing"} <= set(found.problems)


def test_pages_that_nobody_may_read_are_not_read(checkpoint: Path) -> None:
    for file in checkpoint.glob("pages-*"):
        file.unlink()
        file.symlink_to("nowhere")
    before = _inspect(checkpoint)
    assert len(before.processes) == 2
    for number, file in enumerate(checkpoint.glob("pages-*")):
        file.unlink()
        with file.open("wb") as stream:
            stream.truncate((15 << 30) + number)
    begun = time.monotonic()
    found = _inspect(checkpoint, mappings=True)
    assert time.monotonic() - begun < 1
    assert sum(process.saved or 0 for process in found.processes) > 30 << 30


def _tar(path: Path, checkpoint: Path, *more: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as written:
        written.add(checkpoint, "checkpoint")
        for name, data in more:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            written.addfile(entry, io.BytesIO(data))
    return path


def test_an_archive_says_what_its_directory_says(checkpoint: Path, tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", checkpoint, (names.CONFIG_DUMP, b"{}"), (names.SPEC_DUMP, b"{}"))
    found = _inspect(path, mappings=True)
    assert (found.state, found.processes) == (State.COMPLETE, _inspect(checkpoint, mappings=True).processes)
    assert _inspect(_tar(tmp_path / "b.tar", checkpoint)).state is State.INCOMPLETE


@pytest.mark.parametrize("name", ["../evil", "checkpoint/inventory.img"])
def test_a_hostile_archive_is_said_to_be_one(checkpoint: Path, tmp_path: Path, name: str) -> None:
    found = _inspect(_tar(tmp_path / "a.tar", checkpoint, (name, b"x")))
    assert found.state is State.DAMAGED
    assert "leads out of it" in found.problems[0] or "twice" in found.problems[0]


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 200)
    (tmp_path / "pod/app/checkpoint").mkdir(parents=True)
    (tmp_path / "pod/app/checkpoint/inventory.img").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, words_ in {"text": "damaged", "none": "no such", "fifo": "neither", "pod": "holds app: name one"}.items():
        with pytest.raises(CheckpointError, match=words_):
            _inspect(tmp_path / name)


def test_the_same_differs_in_nothing_and_all_else_is_told(checkpoint: Path) -> None:
    _manifest(checkpoint, spec={"process": {"env": ["A=1"]}}, versions={"criu": "4"})
    old = _inspect(checkpoint)
    assert difference.compare(old, replace(old, path="elsewhere", created="later", kind="another")) == ()
    process = replace(old.processes[0], command="other", saved=1)
    new = replace(
        old, processes=(process,), mounts=old.mounts[1:], open_files=(), sockets=(), versions={"criu": "5"},
        spec={"process": {"env": ["A=1", "B=2"]}}, gpu={"driver": "2"},
    )  # fmt: skip
    changes = difference.compare(old, new)
    assert {change.section for change in changes} == {
        "processes", "memory", "open files", "sockets", "mounts", "versions", "config.json", "GPU",
    }  # fmt: skip
    shown = difference.render(changes)
    assert "  process.env[1]: (none) -> B=2\n" in shown
    assert "  1 in the images: 8.0 KiB -> 1 bytes\n" in shown
    assert difference.document(changes)["same"] is False


@pytest.mark.parametrize(
    ("value", "said"), [(None, "?"), (0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (30 << 30, "30.0 GiB")]
)
def test_sizes(value: int | None, said: str) -> None:
    assert words.size(value) == said
