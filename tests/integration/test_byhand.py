"""Capturing, listing, restoring and pruning by name: real runc, real CRIU."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.commands import progress
from tests.integration.machine import Bundle, Machine, tree

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def _pod(machine: Machine, name: str) -> Bundle:
    made = machine.bundle(name)
    made.annotate(type="container", name="app", namespace="ns")
    made.edit(lambda config: config["annotations"].update({"io.kubernetes.cri.sandbox-name": "web-0"}))
    return made


def _checkpoints(machine: Machine, *flags: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(machine.grit("checkpoints", "--json", *flags).ok().out)["checkpoints"]
    return found


def test_by_name_from_the_first_to_the_last(machine: Machine) -> None:
    machine.start("counter-abcdef", _pod(machine, "old"))
    said = json.loads(machine.grit("capture", "--json", "--name", "first", "counter-a").ok().out)
    images = machine.checkpoints / "ns/first/app/checkpoint"
    assert (said["container"], said["path"]) == ("counter-abcdef", str(images))
    manifest = json.loads((images / "grit.json").read_text())
    assert said["bytes"] == manifest["bytes"]
    assert machine.status("counter-abcdef") == "running"
    again = machine.grit("capture", "--name", "first", "counter-abcdef")
    assert (again.code, "there is a checkpoint at" in again.err) == (1, True)
    machine.grit("capture", "--name", "first", "--replace", "--stop", "counter-abcdef").ok()
    assert machine.status("counter-abcdef") == "gone"

    (entry,) = _checkpoints(machine, "--pod", "web-0")
    assert (entry["namespace"], entry["name"], entry["container"], entry["pod"], entry["state"]) == (
        "ns", "first", "app", "web-0", "complete",
    )  # fmt: skip
    assert _checkpoints(machine, "--namespace", "other") == []
    table = machine.grit("checkpoints").ok().out.splitlines()
    assert table[0].split() == ["NAMESPACE", "NAME", "CONTAINER", "POD", "MADE", "SIZE", "STATE"]
    assert table[-1].startswith("1 checkpoint, ")

    before = tree(images)
    new = _pod(machine, "new")
    ran = machine.grit("restore-into", "--name", "first", str(new.path)).ok()
    assert ran.out == f"new runs, from {images}\n"
    machine.counts(new)
    assert tree(images) == before
    other = machine.bundle("other")  # which says nothing of itself
    flags = ["--namespace", "ns", "--container-name", "app"]
    machine.grit("restore-into", "--name", "first", *flags, str(other.path), "another").ok()
    machine.counts(other)
    wrong = machine.grit("restore-into", "--name", "second", str(other.path), "third")
    assert (wrong.code, "no such checkpoint" in wrong.err) == (1, True)

    dry = machine.grit("prune", "--keep", "0", "--dry-run").ok()
    assert f"would remove {images.parent} (" in dry.out
    assert tree(images) == before
    machine.grit("prune", "--keep", "1").ok()
    assert tree(images) == before
    machine.grit("prune", "--keep", "0").ok()
    assert list(machine.checkpoints.iterdir()) == []
    assert machine.grit("prune").code == 2
    assert machine.grit("prune", "--older-than", "soon").code == 2


@pytest.mark.parametrize("wrong", ["nothing", "several", "sandbox", "name"])
def test_what_can_t_be_captured_by_name(machine: Machine, wrong: str) -> None:
    bundle = _pod(machine, "old")
    if wrong == "sandbox":
        bundle.annotate(type="sandbox")
    machine.start("counter-1", bundle)
    if wrong == "several":
        machine.start("counter-2", machine.bundle("other"))
    word, name, said = {
        "nothing": ("none", "n", "no container 'none'"),
        "several": ("counter-", "n", "counter-1, "),
        "sandbox": ("counter-1", "n", "is a pod's sandbox"),
        "name": ("counter-1", "../n", "cannot be part of a path"),
    }[wrong]
    ran = machine.grit("capture", "--name", name, word)
    assert (ran.code, said in ran.err) == (1, True), ran.err
    assert list(machine.checkpoints.iterdir()) == []
    assert machine.status("counter-1") == "running"


def _on_a_terminal(machine: Machine, *args: str, **env: str) -> "tuple[subprocess.Popen[bytes], int]":
    master, slave = pty.openpty()
    argv = [word for word in machine.argv(*args) if word not in ("--log", str(machine.path / "log.json"))]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env={**machine.environment(), **env}
    )
    os.close(slave)
    return process, master


def _read(master: int) -> str:
    data = b""
    try:
        while block := os.read(master, 65536):
            data += block
    except OSError:
        pass
    os.close(master)
    return data.decode()


def test_a_terminal_gets_a_bar_and_a_signal_ends_it_well(machine: Machine) -> None:
    # A CRIU that takes its time, so that there is something to be seen.
    slow = machine.path / "slow"
    slow.mkdir()
    (slow / "criu").write_text('#!/bin/sh\nsleep 1\nexec /usr/bin/env PATH="${PATH#*:}" criu "$@"\n')
    (slow / "criu").chmod(0o755)
    os.environ["PATH"] = f"{slow}:{os.environ['PATH']}"
    try:
        bundle = _pod(machine, "old")
        machine.start("old", bundle)
        process, master = _on_a_terminal(machine, "capture", "--name", "seen", "old")
        said = _read(master)
        assert process.wait() == 0, said
        assert re.search(r"\r\x1b\[Kwriting \[[#-]{24}\] .* of about .*/s", said)
        assert re.search(r"checkpoint: [0-9.]+ [KM]iB in [0-9.]+ s\r\n$", said)
        process, master = _on_a_terminal(machine, "capture", "--name", "cut", "old")
        machine.wait_for_effect("programs")
        process.send_signal(signal.SIGTERM)
        said = _read(master)
        assert (process.wait(), "interrupted by SIGTERM" in said) == (1, True), said
    finally:
        os.environ["PATH"] = os.environ["PATH"].partition(":")[2]
    assert not (machine.checkpoints / "ns/cut").exists()
    machine.counts(bundle)


@pytest.mark.parametrize("command", ["export", "sign", "inspect", "restore-into"])
def test_what_reads_or_writes_much_shows_it(machine: Machine, command: str) -> None:
    """On a terminal alone, on standard error, and gone at the end."""
    machine.start("old", _pod(machine, "old"))
    machine.grit("capture", "--stop", "--name", "n", "old").ok()
    images = machine.checkpoints / "ns/n/app/checkpoint"
    new = _pod(machine, "new")
    key = machine.path / "key.pem"
    machine.shell("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key))
    key.chmod(0o600)
    arguments, word = {
        "export": ([str(images), str(machine.path / "all.tar")], "writing"),
        "sign": (["--key", str(key), str(images)], "reading"),
        "inspect": (["--check", str(images)], "reading"),
        "restore-into": (["--name", "n", str(new.path)], "reading"),
    }[command]
    process, master = _on_a_terminal(machine, command, *arguments, GRIT_TEST_SLOW_PROGRESS="1")
    said = _read(master)
    assert process.wait() == 0, said
    assert re.search(rf"\r\x1b\[K{word} \[[#-]{{24}}\] .* of about .*/s", said), said
    assert "\r\x1b[K" in said[said.rindex(word) :], said
    if command == "restore-into":
        machine.counts(new)
    if command == "sign":
        (images / "grit.sig").unlink()


def test_a_line_of_progress() -> None:
    assert progress.line("writing", 1 << 30, 4 << 30, 2) == (
        "writing [######------------------] 1.0 GiB of about 4.0 GiB, 512.0 MiB/s, 6 s left"
    )
    assert progress.line("writing", 0, 0, 0) == f"writing [{'-' * 24}] 0 bytes of about 0 bytes, 0 bytes/s"
    assert progress.line("writing", 9, 3, 1).startswith(f"writing [{'#' * 24}] 9 bytes of about 3 bytes")


def test_the_containers_of_the_engines_are_found(machine: Machine) -> None:
    found = machine.grit("capture", "--name", "n", "no-such-container")
    assert f"in {machine.root}" in found.err, "a --root that is given is the only one"
    assert Path(machine.root).exists() is False


def _of_pod(machine: Machine, name: str, sandbox: str = "s1") -> Bundle:
    made = machine.bundle(f"{sandbox}-{name}")
    made.annotate(type="container", name=name, namespace="ns")
    made.edit(lambda config: config["annotations"].update({"io.kubernetes.cri.sandbox-id": sandbox}))
    return made


def test_the_containers_of_a_pod_are_one_set(machine: Machine) -> None:
    for name in ("front", "back"):
        machine.start(f"c-{name}", _of_pod(machine, name))
    said = json.loads(machine.grit("capture", "--json", "--name", "both", "c-front", "c-back").ok().out)
    both = machine.checkpoints / "ns/both"
    assert [entry["path"] for entry in said["containers"]] == [
        str(both / name / "checkpoint") for name in ("front", "back")
    ]
    assert [machine.status(f"c-{name}") for name in ("front", "back")] == ["running", "running"]
    assert [path.name for path in both.parent.iterdir()] == ["both"]
    again = machine.grit("capture", "--name", "both", "c-front", "c-back")
    assert (again.code, "there is a checkpoint at" in again.err) == (1, True)
    # This machine went down while one was made, and the journals with it; another one is making one.
    identity = Path("/etc/machine-id").read_text()[:12].strip()
    left, others = (both.parent / f".grit-set-older-{one}-00000000-1" for one in (identity, "ffffffffffff"))
    for path in (left, others):
        (path / "front/checkpoint").mkdir(parents=True)
    machine.grit("capture", "--name", "last", "--stop", "c-front", "c-back").ok()
    assert left.exists() == (not identity)  # one that isn't known removes nothing
    assert others.exists()
    for path in (left, others):
        shutil.rmtree(path, ignore_errors=True)
    assert sorted(path.name for path in both.parent.iterdir()) == ["both", "last"]
    assert [machine.status(f"c-{name}") for name in ("front", "back")] == ["gone", "gone"]
    for name in ("front", "back"):
        new = _of_pod(machine, name, sandbox="s2")
        machine.grit("restore-into", "--name", "last", str(new.path), f"n-{name}").ok()
        machine.counts(new)


@pytest.mark.parametrize("killed", [False, True])
def test_one_that_fails_frees_the_whole_set(machine: Machine, killed: bool) -> None:
    """The second can't be dumped, or we are killed at it: both run on, and there is no set, nor a part of one."""
    machine.start("c-good", _of_pod(machine, "good"))
    machine.start("c-bad", _of_pod(machine, "bad"))
    machine.start("c-far", _of_pod(machine, "far", sandbox="s2"))
    other = machine.grit("capture", "--name", "set", "c-good", "c-far")
    assert (other.code, "not of one pod" in other.err) == (1, True)
    runc = machine.path / "runc-that-fails"
    listed = machine.path / "listed"
    runc.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'*" checkpoint "*c-good) runc --root {machine.root} list >{listed};;\n'
        f'*" checkpoint "*c-bad) {"kill -9 $PPID; " if killed else ""}echo no >&2; exit 1;;\nesac\nexec runc "$@"\n'
    )
    runc.chmod(0o755)
    machine.configure(downstream=str(runc))
    failed = machine.grit("capture", "--name", "set", "c-good", "c-bad")
    if killed:
        assert failed.code == -signal.SIGKILL
        machine.grit("recover").ok()
    else:
        assert (failed.code, "cannot dump container c-bad" in failed.err) == (1, True)
    # Both were frozen before the first was dumped.
    states = {line.split()[0]: line.split()[2] for line in listed.read_text().splitlines()[1:]}
    assert states == {"c-good": "paused", "c-bad": "paused", "c-far": "running"}
    assert [machine.status(name) for name in ("c-good", "c-bad")] == ["running", "running"]
    assert not (machine.checkpoints / "ns/set").exists()
    machine.configure()
    machine.grit("capture", "--name", "set", "c-good", "c-bad").ok()
    assert [path.name for path in (machine.checkpoints / "ns").iterdir()] == ["set"]


@pytest.mark.parametrize(("answer", "status"), [("stop\n", "gone"), ("", "running")])
def test_whoever_asks_for_it_says_what_becomes_of_the_containers(machine: Machine, answer: str, status: str) -> None:
    machine.start("c-one", _of_pod(machine, "one"))
    argv = [str(part) for part in machine.argv("capture", "--name", "asked", "--ask", "c-one")]
    with subprocess.Popen(
        argv, env=machine.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "complete\n"
        assert machine.status("c-one") == "paused"
        assert (machine.checkpoints / "ns/asked/one/checkpoint/grit.json").exists()
        process.stdin.write(answer)
        process.stdin.close()
        assert process.wait(30) == 0
    assert machine.status("c-one") == status
