"""`recover`, the command for people; tests/integration/test_kill.py has what it undoes."""

from pathlib import Path

import pytest

from grit_runtime.host import workspace
from tests.integration.machine import Machine

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def test_recover_of_one_container_leaves_the_others(machine: Machine) -> None:
    for name in ("a", "b"):
        left = workspace.open_workspace(workspace.path_of(str(machine.state), str(machine.root), name), timeout=0)
        Path(left.file("journal")).write_text("")
        left.close()
    assert machine.grit("recover", "--container", "a").ok().out == "a: recovered\n"
    assert [path.parent.name for path in machine.state.rglob("journal")] == ["b"]
    assert machine.grit("recover", "--container=../x").ok().out == ""
    assert machine.grit("recover").ok().out == "b: recovered\n"
    assert "--container ID" in machine.grit("recover", "--help").ok().out
