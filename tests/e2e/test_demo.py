"""`make demo`, which the README begins with, holds what it says."""

import subprocess
import sys

import pytest

from tests.requirements import ROOT, RUNTIME


@pytest.mark.needs("root", "runc", "criu", "busybox", "containerd", "runtime")
def test_the_demo_shows_what_it_claims() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo/demo.py", "--runtime", RUNTIME],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("   ok: ") >= 6
    assert "A container came back in another pod, from where it was." in done.stdout
