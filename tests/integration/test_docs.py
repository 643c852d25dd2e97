"""The documentation's commands that are marked `<!-- run -->`, run as they stand; their output is what is shown."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from grit_runtime.config import Config
from tests import docs
from tests.integration.machine import Machine
from tests.requirements import ROOT, RUNTIME

SHOWN = Config().checkpoint_roots[0]
RUN = [page for page in docs.PAGES if any(block.mark == "run" for block in docs.blocks(page))]


@pytest.mark.needs("root", "runc", "criu", "busybox", "runtime")
@pytest.mark.parametrize("page", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown(machine: Machine, page: Path) -> None:
    blocks = [block for block in docs.blocks(page) if block.mark in ("run", "output")]
    place = machine.path / "place"
    programs = machine.path / "bin"
    place.mkdir(), programs.mkdir()
    (programs / "grit-runtime").symlink_to(RUNTIME)
    environment = {**machine.environment(), "PATH": f"{programs}:{os.environ['PATH']}"}
    before = _containers()
    said = ""
    try:
        for block in blocks:
            if block.mark == "output":
                assert _as_shown(block.text, said), f"{block.where} shows\n{block.text}\nand this was said:\n{said}"
                continue
            script = block.text.replace(SHOWN, str(machine.checkpoints))
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], cwd=place, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
            )  # fmt: skip
            said = done.stdout.replace(str(machine.checkpoints), SHOWN)
            assert done.returncode == 0, f"{block.where}: exit code {done.returncode}: {said}"
    finally:
        for name in _containers() - before:
            subprocess.run(["runc", "delete", "--force", name], check=False)
    assert list(place.iterdir()) == [], f"{page.name}: the last block should tidy up"
    shutil.rmtree(place)


def _containers() -> set[str]:
    """Those below runc's own root."""
    return {path.name for path in Path("/run/runc").glob("*")}


def _as_shown(shown: str, said: str) -> bool:
    """Whether the output is that of the page: `…` is anything, and numbers of blanks don't count."""
    parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in re.sub(" +", " ", shown.strip()).split("…")]
    return re.fullmatch(".*".join(parts), said.strip(), re.DOTALL) is not None
