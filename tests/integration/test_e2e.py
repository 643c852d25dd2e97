"""`e2e` for real: passes on a node that is able, fails on one that only says so, and leaves nothing in either case."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.e2e import node, pod
from tests.requirements import RUNTIME

pytestmark = pytest.mark.needs("root", "runc", "criu", "runtime")

# Says that all is well, and starts the container from scratch.
FROM_SCRATCH = f"""#!/bin/sh
for word; do
    [ -e "$word/config.json" ] && sed -i 's/"grit.dev.checkpoint"/"example.org"/' "$word/config.json"
done
exec {RUNTIME} "$@"
"""
NO_CRIU = "#!/bin/sh\necho 'Error (criu/cr-dump.c:1): it is broken' >&2\nexit 1\n"
NO_JSON = f'#!/bin/sh\ncase " $* " in *" state "*) echo "all is well"; exit 0;; esac\nexec {RUNTIME} "$@"\n'


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where the runs' directories are made; nothing may be left there, nor of their cgroups, mounts and processes."""
    made = tmp_path / "runs"
    made.mkdir()
    yield made
    assert list(made.iterdir()) == []
    assert node.cgroups_of(node.PREFIX) == []
    assert str(made) not in Path("/proc/self/mountinfo").read_text()
    assert _workloads() == []


def _workloads() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(entry.parent.name)] if b"/workload.py" in entry.read_bytes() else []
        except OSError:
            continue
    return found


def _argv(place: Path, *flags: str) -> list[str]:
    return [str(RUNTIME), "e2e", "--memory", "8", "--directory", str(place), *flags]


def _run(place: Path, *flags: str, **env: str) -> "subprocess.CompletedProcess[str]":
    argv, environment = _argv(place, *flags), {**os.environ, "GRIT_RUNTIME_CONFIG": "/nonexistent", **env}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=100)


def _program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_it_passes_twice_in_a_row(place: Path) -> None:
    ran = _run(place)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "its memory is what it was, to the last byte" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("passed: 14 checks, a checkpoint of ")

    ran = _run(place, "--json")
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    assert (said["passed"], said["problem"], said["left"]) == (True, "", [])
    assert len(said["checks"]) == 14
    assert all(check["holds"] for check in said["checks"])
    assert len(said["phases"]) == 6
    # The memory once, and not a copy of it in the child.
    assert 8 << 20 < said["checkpoint_bytes"] < 24 << 20


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FROM_SCRATCH, "not so: it goes on with "),
        (NO_JSON, "says what is no state: 'all is well"),
        ("#!/bin/sh\nexit 3\n", "`spec` failed: exit code 3, and no word"),
        ("#!/bin/sh\nexec sleep 1000\n", "`spec` did not end within "),
    ],
    ids=["from scratch", "no state", "failing", "hanging"],
)
def test_a_runtime_that_does_not_do_it_fails(place: Path, tmp_path: Path, text: str, says: str) -> None:
    stand_in = _program(tmp_path / "stand-in", text)
    ran = _run(place, "--runtime", stand_in, *(["--timeout", "1"] if "sleep" in text else []))
    assert ran.returncode == 1, ran.stdout
    assert says in ran.stderr.splitlines()[-1]


def test_a_criu_that_fails_is_named(place: Path, tmp_path: Path) -> None:
    _program(tmp_path / "criu", NO_CRIU)
    ran = _run(place, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert ran.returncode == 1
    assert "e2e failed: `checkpoint` failed: " in ran.stderr.splitlines()[-1]


def test_interrupted_it_takes_everything_away(place: Path) -> None:
    begun = subprocess.Popen(_argv(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert begun.stdout is not None
    begun.stdout.readline()  # the pod runs
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=60)
    assert begun.returncode == 130
    assert "interrupted by SIGINT" in err


def test_what_a_killed_one_left_is_named_and_removed(place: Path) -> None:
    begun = subprocess.Popen(_argv(place), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert begun.stdout is not None
    begun.stdout.readline()
    assert _run(place, "--clean").stdout == ""  # it is at work
    begun.kill()
    begun.wait()
    time.sleep(1)  # what it had called ends
    (left,) = place.iterdir()
    ran = _run(place)
    assert (ran.returncode, f"an earlier run left {left}" in ran.stderr) == (0, True)
    ran = _run(place, "--clean")
    assert (ran.returncode, ran.stdout) == (0, f"{left}: removed\n")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--directory", "/nonexistent"], "/nonexistent is no directory"),
        (["--memory", "1000000"], "1000000 MiB"),
        (["--memory", "0"], "0 is not in the range"),
    ],
)
def test_where_it_can_t_be_tried_it_says_so(place: Path, flags: list[str], says: str) -> None:
    ran = _run(place, *flags)
    assert (ran.returncode, says in ran.stderr) == (2, True), ran.stderr


def test_two_pods_share_no_name(tmp_path: Path) -> None:
    old, new = (pod.Pod(base=str(tmp_path), role=role) for role in ("old", "new"))
    sources = [set(each.sources().values()) for each in (old, new)]
    assert not sources[0] & sources[1]
    assert len({old.uid, new.uid, old.name, new.name, old.container, new.container, old.sandbox, new.sandbox}) == 8
