"""One private containerd for the module, with the built runtime as its shim's BinaryName."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.requirements import ROOT, RUNTIME

sys.path.insert(0, str(ROOT / "examples/demo"))

from pods import Containerd


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    """containerd; at the end no shim and no mount of it may be left."""
    with Containerd(RUNTIME) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(containerd: Containerd) -> Iterator[None]:
    """After each test no workspace of ours and no container of the test's is there."""
    yield
    for container in containerd.ctr("containers", "ls", "--quiet").split():
        containerd.delete(container)
    assert list(containerd.state.rglob("*/*")) == []
    # os.walk, for containerd's garbage collection removes snapshots meanwhile, which Path.rglob stumbles over.
    names = [name for _, directories, files in os.walk(containerd.base) for name in (*directories, *files)]
    assert [name for name in names if name.startswith(".grit-")] == []
