"""What a log says went wrong, and how sure that is: lines of CRIU's in logs that are made up, real ones where noted."""

import fcntl
import json
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime.criu import causes, hints
from grit_runtime.diagnosis import calls, output, read
from grit_runtime.diagnosis.judge import CERTAIN, LIKELY, NOTHING, UNKNOWN, judge
from grit_runtime.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs/diagnose.md"

# One line for each cause, as CRIU words it; `(real)` ones are from logs of CRIU 4.1.1 and 4.2.1.
LINES = {
    "socket-needs-criu-4.2": "Error (criu/sockets.c:80): sockets: Can't get 1:16 opt: Operation not supported",
    "tcp-connected": "Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.",
    "tcp-in-flight": "Error (criu/sk-inet.c:200): inet: In-flight connection (l) for 3",
    "unix-socket-outside": "Error (criu/sk-unix.c:860): unix: External socket is used. Consider using --ext-unix-sk",
    "io-uring": "pie: 1: Error (compel/plugins/std/infect.c:1): send_fds failed (-22)",
    "file-outside": "Error (criu/files-reg.c:1816): Can't lookup mount=29 for fd=0 path=/pipe",
    "ghost-file": "Error (criu/files-reg.c:973): Can't dump ghost file /tmp/x of 2097152 size, increase limit",
    "file-locks": "Error (criu/file-lock.c:120): Some file locks are hold by dumping tasks!",
    "network-unreachable": "Error (criu/sk-inet.c:1000): inet: Can't connect inet socket back: Network is unreachable",
    "address-missing": "Error (criu/sk-inet.c:1000): inet: connect inet socket back: Cannot assign requested address",
    "bind-missing": "Error (criu/sk-inet.c:1040): inet: Can't bind inet socket (id 10): Cannot assign address",
    "iptables": "Error (criu/net.c:3436): net: Locking network failed: iptables-restore returned -1.",  # (real)
    "mount-not-mapped": "Error (criu/mount.c:3141): mnt: No mapping for 2054:(null) mountpoint",  # the seed's
    "mount-source-missing": "Error (criu/mount.c:2511): mnt: Can't bind-mount at /tmp/.criu.x/etc/hosts: No such file",
    "mount-no-root": "Error (criu/mount.c:753): mnt: 2054:./proc/driver/nvidia doesn't have a proper root mount",
    "mount-sharing": "Error (criu/mount.c:1093): mnt: Mount 2055 ./sys has unreachable sharing. Try --enable-external",
    "link-remap": "Error (criu/files-reg.c:1122): Can't create link remap for /dev/shm/sem.x. Use link-remap option.",
    "inotify": "Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle",
    "freeze": "Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0",
    "gpu-not-brought-back": "cuda_plugin: No need to resume devices on pid 4711",  # the seed's
    "cuda-checkpoint-failed": "Error (cuda_plugin.c:397): cuda_plugin: CHECKPOINT_DEVICES failed with OS call failed",
    "cuda-checkpoint-missing": "Error (cuda_plugin.c:221): cuda_plugin: Failed to launch cuda-checkpoint to retrieve x",
    "plugin-missing": "Error (criu/image.c:198): Missing required plugin: cuda_plugin",
    "file-changed": "Error (criu/files-reg.c:2175): File usr/lib/libcuda.so.1 has bad size 7 (expect 9)",
    "file-missing": "Error (criu/files-reg.c:2258): Can't open file usr/lib/libEGL_nvidia.so.560.35.03 on restore: No",
    "file-type": "Error (criu/files-ext.c:94): Can't dump file 12 of that type [20666] (chr 195:255)",
    "lsm-profile": "pie: 1: Error (criu/pie/restorer.c:196): can't write lsm profile -2",
    "pid-taken": "Error (criu/cr-restore.c:1546): Pid 77 do not match expected 12",
    "cpu": "Error (criu/arch/x86/cpu.c:297): cpu: CPU capabilities do not match run time",
    "no-tmp-on-read-only-root": "1: Error (criu/mount.c:2955): mnt: Can't create a temporary "
    "directory: Read-only file system",  # (real)
    "no-space": "Error (criu/image.c:400): Can't write image: No space left on device",
}
HEAD = ["Version: 4.2.1 (gitid 0)", "Running on node", "Error (criu/util.c:1466): Can't setup RLIMIT_NOFILE for self"]


def _log(*said: str, end: str = "Error (criu/cr-restore.c:2331): Restoring FAILED.") -> list[str]:
    lines = [*HEAD, *said, "mnt: switching", "cuda_plugin: finished cuda_plugin stage 2 err -1", end]
    return [f"({number / 100:09.6f}) {line}" for number, line in enumerate(lines)]


def _ends(known: str) -> str:
    whole = "Restore finished successfully. Tasks resumed." if known == "gpu-not-brought-back" else ""
    return whole or "Error (criu/cr-restore.c:2331): Restoring FAILED."


def test_every_cause_has_a_line_and_stands_in_the_docs() -> None:
    assert [cause.id for cause in causes.TABLE] == list(LINES)
    listed = re.findall(r"^\| `[a-z0-9.-]+` \|.*$", DOCS.read_text(), re.MULTILINE)
    assert listed == [f"| `{cause.id}` | {cause.means} | {cause.todo} |" for cause in causes.TABLE]


@pytest.mark.parametrize("known", LINES)
def test_a_whole_log_with_one_cause_is_certain(known: str) -> None:
    found = judge(_log(LINES[known], end=_ends(known)))
    assert (found.verdict, [finding.cause.id for finding in found.findings]) == (CERTAIN, [known])
    assert found.findings[0].evidence[0].number == len(HEAD) + 1


@pytest.mark.parametrize("known", LINES)
def test_mutated_logs_name_no_wrong_cause_for_certain(known: str) -> None:
    chance = random.Random(known)
    other = chance.choice([name for name in LINES if name != known])
    log = _log("Error (criu/x.c:1): something else", LINES[known], end=_ends(known))
    two = _log(LINES[other])
    shuffled = chance.sample(log, len(log))
    mutated = [
        log[: len(log) // 2],
        log[len(log) // 2 :],
        shuffled,
        [line for pair in zip(log, two, strict=False) for line in pair],
        [*log, *two],
        [line for line in log if chance.random() > 0.3],
        [line.replace("Error", "\x1b[31mError\x00") for line in log],
        [line[:20] for line in log],
        [*log[:3], "x" * 5000, *log[3:]],
        [*log[:4], log[4] + log[5], *log[6:]],
    ]
    for lines in mutated:
        found = judge(lines)
        for finding in found.findings:
            assert finding.certainty == LIKELY or finding.cause.id == known
    assert judge([*log, *two]).verdict == LIKELY
    assert judge(_log(LINES[known], end=_ends(known)), whole=False).verdict == LIKELY


def test_what_is_not_known_is_said_with_the_first_errors() -> None:
    found = judge(_log("Error (criu/x.c:1): never heard of", "Error (criu/x.c:2): nor of that"))
    assert found.verdict == UNKNOWN
    assert found.errors[0].text.endswith("never heard of")
    assert "stage 2" not in str(found.errors)
    assert "RLIMIT" not in str(found.errors)
    assert "the restore has failed" in found.notes[0]


def test_a_success_is_no_failure_whatever_was_tried_in_vain() -> None:
    assert judge(_log("Warn  (criu/x.c:1): y", end="Restore finished successfully. Tasks resumed.")).verdict == NOTHING
    tried = _log(LINES["file-missing"], end="Dumping finished successfully")
    assert judge(tried).verdict == NOTHING


def test_a_dump_of_a_read_only_rootfs_only_warns_of_it() -> None:
    warns = "Warn  (criu/mount.c:1267): mnt: Can't create a temporary directory: Read-only file system"  # (real)
    found = judge(_log(warns, LINES["no-space"], end="Error (criu/cr-dump.c:1): Dumping FAILED."))
    assert [finding.cause.id for finding in found.findings] == ["no-space"]


def test_a_mount_is_named_by_its_path() -> None:
    found = judge(_log(LINES["mount-not-mapped"]), mounts={2054: "/usr/bin/nvidia-smi"})
    assert "mount 2054 is /usr/bin/nvidia-smi" in found.notes
    text = output.render([output.Judged("/w/restore.log", found)])
    assert "1. mount-not-mapped: " in text
    assert "restore.log:4: (" in text
    assert output.document([output.Judged("/w/restore.log", found)])["logs"][0]["verdict"] == CERTAIN


def test_hints_are_those_of_the_table(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    for cause in causes.TABLE:
        log.write_text("\n".join(_log(LINES[cause.id])))
        assert hints.find(str(log)) == ("" if cause.any_level else cause.todo)


def test_logs_are_found_and_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, work = tmp_path / "logs", tmp_path / "work"
    kept.mkdir(), work.mkdir()
    (kept / "20261125T000000Z-abc-restore.log").write_text("x")
    (work / "dump.log").write_bytes(b"\x1b[2J\xff" + b"y" * (9 << 20))
    config: Any = SimpleNamespace(log_dir=str(kept))
    assert read.logs(config, "") == read.logs(config, "abc") == [str(kept / "20261125T000000Z-abc-restore.log")]
    assert read.logs(config, str(work)) == [str(work / "dump.log")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abc").mkdir()
    assert read.logs(config, "abc") == [str(kept / "20261125T000000Z-abc-restore.log")]
    with pytest.raises(UsageError, match="no log of 'nobody'"):
        read.logs(config, "nobody")
    log = read.read(str(work / "dump.log"))
    assert not log.whole
    assert all(len(line) < 3000 for line in log.lines)
    assert "\x1b" not in log.lines[0]
    with pytest.raises(OSError, match="it is no file"):
        read.read("/dev/null")


def _config(tmp_path: Path) -> Any:
    return SimpleNamespace(log_dir=str(tmp_path / "logs"), state_dir=str(tmp_path / "state"))


def test_a_call_that_never_ran_criu_is_told_by_its_error_line(tmp_path: Path) -> None:
    records = tmp_path / "logs/operations"
    records.mkdir(parents=True)
    said = {
        "format": 1, "operation": "restore", "container": "abc", "images": "/x", "outcome": "failed", "began": 1.0,
        "error": "mount /data is \x1b[2J missing (nothing was touched)", "seconds": 0.1, "phases": [],
    }  # fmt: skip
    (records / "20261125T000002Z-abc-restore.json").write_text(json.dumps(said))
    (records / "20261125T000003Z-abc-restore.json").write_text(json.dumps({**said, "error": "", "outcome": "ok"}))
    for number, torn in enumerate(("{", "[]", "7", json.dumps({"error": ["x"]}), "\x00")):
        (records / f"20261125T00000{number}Z-torn.json").write_text(torn)
    (found,) = calls.left(_config(tmp_path), "ab")
    assert (found.id, found.container, found.operation) == (calls.REFUSED, "abc", "restore")
    assert "mount /data is" in calls.render([found])
    assert "\x1b" not in calls.render([found])
    assert calls.left(_config(tmp_path), "other") == []


@pytest.mark.parametrize("held", [True, False])
def test_a_killed_call_is_told_by_its_journal(tmp_path: Path, held: bool) -> None:
    place = tmp_path / "state/run-runc/abc"
    place.mkdir(parents=True)
    header = {"header": {"operation": "restore", "container": "abc"}}
    effect = {"effect": "make-tree", "n": 1, "args": {"path": "/x"}}
    (place / "journal").write_text("".join(f"{json.dumps(entry)}\n" for entry in (header, effect)))
    waits = tmp_path / "state/run-runc/abd"
    waits.mkdir()
    (waits / "journal").write_text(f'{json.dumps(header)}\n{{"phase":"created"}}\n')
    fd = os.open(place, os.O_RDONLY)
    if held:
        fcntl.flock(fd, fcntl.LOCK_EX)
    (found,) = calls.left(_config(tmp_path), "")
    os.close(fd)
    assert (found.id, found.container) == (calls.BUSY if held else calls.KILLED, "abc")
    (place / "journal").write_text("not JSON\n")
    assert "is damaged" in calls.left(_config(tmp_path), "abc")[0].said


@pytest.mark.parametrize(
    "line",
    ['{"level":"error","msg":"it is missing","time":"x"}', 'time="x" level=error msg="it is missing"'],
)
def test_the_runtimes_own_log_is_read(line: str) -> None:
    found = calls.of_lines("/run/log.json", ["something", line, ""])
    assert found is not None
    assert found.said.strip('"') == "it is missing"
    assert calls.of_lines("/x", ["nothing of the kind"]) is None


def test_an_error_line_leads_to_the_log_that_it_names(tmp_path: Path) -> None:
    log = tmp_path / "20261125T000000Z-abc-restore.log"
    line = f"cannot restore (CRIU's log: {log} (`grit-runtime diagnose` reads it))"
    assert read.named(line) == []
    log.touch()
    assert read.named(line) == [str(log)]
