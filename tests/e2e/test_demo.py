"""`make demo`, which the README begins with, holds what it says."""

import re
import subprocess
import sys

import pytest

from tests.requirements import ROOT, RUNTIME
from tools.manual import recording


@pytest.mark.needs("root", "runc", "criu", "busybox", "containerd", "runtime")
def test_the_demo_shows_what_it_claims() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo/demo.py", "--runtime", RUNTIME],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("   ok: ") >= 6
    assert "A container came back in another pod, from where it was." in done.stdout
    drawn = _shape(recording.shown(recording.PICTURE.read_text()))
    assert drawn == _shape(["$ make demo", *done.stdout.splitlines()]), (
        "docs/demo.svg is of another demo: `make recording`"
    )


def _shape(lines: list[str]) -> list[str]:
    """What is the same in each run: without numbers, ids and blanks."""
    return [
        shape for line in lines if (shape := re.sub(r"/tmp/grit-\w+|\b[0-9a-f-]*\d[0-9a-f.-]*\b|[\[\], ]", "", line))
    ]


def test_a_picture_is_made_of_the_output_alone_and_fetches_nothing() -> None:
    output = "\n== A title: <&>\n   ok: it holds  [1, 2]\n"
    assert recording.draw(output) == recording.draw(output)
    assert recording.shown(recording.draw(output)) == ["$ make demo", "", "== A title: <&>", "   ok: it holds  [1, 2]"]
    assert not re.search(r"@import|@font-face|href=|url\((?!#)|<script", recording.PICTURE.read_text())
