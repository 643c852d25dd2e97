"""What recovery must know by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grit_runtime.host import proc
from grit_runtime.host.transaction import Record
from grit_runtime.workflow import recover
from grit_runtime.workflow.effects import RestoredContainer

SCRIPT = """
import importlib, pkgutil, grit_runtime
from grit_runtime.host import transaction
from grit_runtime.workflow import recover
for define in transaction._more:
    define()
known = set(transaction._KINDS)
for module in pkgutil.walk_packages(grit_runtime.__path__, "grit_runtime."):
    if not module.name.endswith((".__main__", ".helper")):
        importlib.import_module(module.name)
print(sorted(set(transaction._KINDS) - known))
"""


def test_every_effect_that_a_journal_may_hold_is_known_to_recovery() -> None:
    argv = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("does", "left"), [("exit 2", True), ('rm -r "$2/c"; exit 1', False)])
def test_a_container_that_could_not_be_deleted_is_not_undone(tmp_path: Path, does: str, left: bool) -> None:
    """A runtime that ends by itself, for want of threads, say, is called again by the next recovery."""
    program, root = tmp_path / "runc", tmp_path / "root"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    (root / "c").mkdir(parents=True)
    effect = RestoredContainer(
        program=str(program), options=["--root", str(root)], root=str(root), container="c", rootfs=str(tmp_path),
        mounted=[], cgroups_path=f"/grit-none-{os.getpid()}", systemd=False, timeout=5,
    )  # fmt: skip
    if left:
        with pytest.raises(OSError, match="delete left"):
            effect.undo()
    else:
        effect.undo()


@pytest.mark.parametrize(
    ("namespace", "there", "mounted", "given_up"),
    [
        ("ours", True, False, False),
        ("ours", False, False, True),
        ("ours", True, True, True),
        ("another", False, True, False),
        (None, False, True, False),
    ],
)
def test_a_container_that_waits_is_given_up_with_its_rootfs(
    tmp_path: Path, namespace: str | None, there: bool, mounted: bool, given_up: bool
) -> None:
    """Who sees other mounts than the restore did can't tell, and leaves it."""
    rootfs = tmp_path / "rootfs"
    if there:
        rootfs.mkdir()
    effect = RestoredContainer(
        program="", options=[], root="", container="c", rootfs=str(rootfs),
        mounted=[str(rootfs)] if mounted else [], cgroups_path="", systemd=False, timeout=5,
    )  # fmt: skip
    header = {"mount-namespace": proc.namespace("self", "mnt") if namespace == "ours" else namespace}
    record = Record(header=header, effects=((0, effect),), phase=recover.CREATED)
    assert recover.is_given_up(record) == given_up
