"""What is written past CRIU, and what is refused."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grit_runtime.criu import pagemap
from grit_runtime.errors import CaptureError
from grit_runtime.host import pool
from grit_runtime.workflow import memorysave


def test_a_process_that_is_not_in_the_containers_cgroup_is_named(tmp_path: Path) -> None:
    (tmp_path / "pagemap-77.img").write_bytes(pagemap.encode(1, [{1: 0x2000, 2: 2, 4: pagemap.PRESENT}]))
    os.symlink("/dev/null", tmp_path / "pages-1.img")
    memory = SimpleNamespace(workers=pool.workers(0))
    context: Any = SimpleNamespace(container="c", config=SimpleNamespace(memory=memory))
    with pytest.raises(CaptureError, match="CRIU dumped process 77, which is not in its cgroup"):
        memorysave.finish(context, str(tmp_path), [os.getpid()])
