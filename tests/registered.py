"""The built runtime registered with an engine by our own `install`, below a root of the test's own."""

import shutil
from pathlib import Path

from grit_runtime.workflow import register
from tests.requirements import RUNTIME


def install(engine: str, root: Path) -> None:
    """Write the engine's file below `root`, where `install` wants the launcher to be, too."""
    launcher = root / str(RUNTIME.resolve()).lstrip("/")
    launcher.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(RUNTIME, launcher)
    made = register.install(
        engine, name="grit", binary=str(RUNTIME.resolve()), root=str(root), dry_run=False, copy_section=False
    )
    assert made.code == 0, made.lines


def uninstall(engine: str, root: Path) -> None:
    """Take it away."""
    assert register.uninstall(engine, name="grit", root=str(root), dry_run=False).code == 0
