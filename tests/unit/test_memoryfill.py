"""A process that could not be made to give a userfaultfd is filled in the other way, if it is as it was before."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime.criu.memory.split import Split
from grit_runtime.errors import RestoreError
from grit_runtime.host import inject
from grit_runtime.workflow import memoryfill

SPLIT = Split(ranges=(), runs=(), pagemap=b"")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    def refuse(_: int) -> int:
        raise inject.InjectError(errno.ETIMEDOUT, "it did not come to a stop")

    monkeypatch.setattr(inject, "is_supported", lambda: True)
    monkeypatch.setattr(inject, "userfaultfd", refuse)
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def _userfault(pid: int) -> object:
    context: Any = SimpleNamespace(container="c", log=SimpleNamespace(line=lambda *_: None))
    return memoryfill._userfault(context, pid, SPLIT)


def test_a_stopped_process_is_filled_in_the_other_way(child: int) -> None:
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    assert _userfault(child) is None


def test_one_that_is_not_stopped_any_more_ends_the_restore(child: int) -> None:
    with pytest.raises(RestoreError, match="is not stopped any more"):
        _userfault(child)
