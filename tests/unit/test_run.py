"""Waiting for a program; effects that are defined when a journal names them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from grit_runtime.criu import logs
from grit_runtime.host import run


def _no_pidfd(_: int) -> NoReturn:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_program_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch, *, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.setattr(os, "pidfd_open", _no_pidfd)
    assert run.wait(subprocess.Popen(["sh", "-c", "exit 7"]), 10) == 7
    with subprocess.Popen(["sleep", "60"]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(process, 0.05)
        process.kill()
        assert run.wait(process, 10) == -9
        assert run.wait(process, 10) == -9


@pytest.mark.parametrize("kind", ["cuda", "append-log", "place-shm", "keep-name", "shared-link", "pause"])
def test_a_journal_finds_every_effect_in_a_process_that_imported_none(tmp_path: Path, kind: str) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"header":{}}\n{"effect":"' + kind + '","n":0,"args":{}}\n')
    program = (
        f"import sys; sys.path.insert(0, {str(Path(run.__file__).parents[2])!r})\n"
        "from grit_runtime.errors import RecoveryError\n"
        "from grit_runtime.host import transaction\n"
        "from grit_runtime.workflow import recover\n"
        "try:\n"
        f"    transaction.read_journal({str(journal)!r})\n"
        "except RecoveryError:\n"  # for it has no arguments
        f"    print({kind!r} in transaction._KINDS)\n"
    )
    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "True\n"


def test_the_version_is_that_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    assert logs.version(str(log)) == ""
    log.write_text("(00.000000) CRIU run id = 1\n(00.000012) Version: 4.2.1 (gitid 0)\n(00.1) Version: 9\n")
    assert logs.version(str(log)) == "4.2.1"
    log.write_text("(00.000000) Error (x.c:1): Version: 3\n")
    assert logs.version(str(log)) == ""
