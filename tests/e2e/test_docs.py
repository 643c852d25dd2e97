"""The documentation's commands that are marked `<!-- run -->`, run as they stand; their output is what is shown."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from pods import Containerd

from grit_runtime.config import Config
from tests import docs
from tests.requirements import ROOT, RUNTIME

SHOWN = Config().checkpoint_roots[0]
RUN = [page for page in docs.PAGES if any(block.mark == "run" for block in docs.blocks(page))]


@pytest.mark.needs("root", "runc", "criu", "busybox", "containerd", "runtime")
@pytest.mark.parametrize("page", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown(containerd: Containerd, tmp_path: Path, page: Path) -> None:
    """In an empty directory, with a containerd and a checkpoint root that are not the machine's."""
    environment = {
        **containerd.environment(),
        "PATH": f"{RUNTIME.parent}:{os.environ['PATH']}",
        "CONTAINERD_ADDRESS": str(containerd.base / "sock"),
        "CONTAINERD_NAMESPACE": containerd.namespace,
    }
    before = _containers()
    said = ""
    try:
        for block in docs.blocks(page):
            if block.mark == "output":
                assert _as_shown(block.text, said), f"{block.where} shows\n{block.text}\nand this was said:\n{said}"
            if block.mark != "run":
                continue
            script = block.text.replace(SHOWN, str(containerd.checkpoints))
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
            )  # fmt: skip
            said = done.stdout.replace(str(containerd.checkpoints), SHOWN)
            assert done.returncode == 0, f"{block.where}: exit code {done.returncode}: {said}"
    finally:
        for name in _containers() - before:
            subprocess.run(["runc", "delete", "--force", name], check=False)
    assert list(tmp_path.iterdir()) == [], f"{page.name}: the last block should tidy up"


def _containers() -> set[str]:
    """Those below runc's own root."""
    return {path.name for path in Path("/run/runc").glob("*")}


def _as_shown(shown: str, said: str) -> bool:
    """Whether the output is that of the page: `…` is anything, and numbers of blanks don't count."""
    plain, output = (re.sub(r" *$", "", re.sub(" +", " ", text), flags=re.MULTILINE).strip() for text in (shown, said))
    return re.fullmatch(".*".join(map(re.escape, plain.split("…"))), output, re.DOTALL) is not None
