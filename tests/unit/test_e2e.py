"""What of `e2e` needs no container: which GPU is given and how, and what is a leftover."""

import os
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.e2e import gpu, node


def test_a_gpu_is_given_by_its_nodes_and_the_drivers_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_DIRECTORIES", ())
    monkeypatch.setattr(gpu, "_SHARED", ("/dev/null", "/dev/not-there"))
    monkeypatch.setattr(gpu.glob, "glob", lambda _: [])
    assert gpu.find() == (None, "there is no NVIDIA GPU")
    monkeypatch.setattr(gpu.glob, "glob", lambda _: ["/dev/nvidia0", "/dev/nvidia-uvm"])
    found, why = gpu.find((str(tmp_path),))
    assert (found, why) == (None, f"there is no libcuda.so.1 in {tmp_path}")
    elsewhere = tmp_path / "mount"
    elsewhere.mkdir()
    (elsewhere / "libcuda.so.1").touch()
    (tmp_path / "libcuda.so.1").symlink_to(elsewhere / "libcuda.so.1")
    monkeypatch.setattr(gpu.re, "fullmatch", lambda *_: True)
    monkeypatch.setattr(gpu.glob, "glob", lambda _: ["/dev/zero"])
    assert gpu.find((str(tmp_path),)) == (gpu.Gpu(nodes=("/dev/zero", "/dev/null"), libraries=str(elsewhere)), "")
    given = gpu.Gpu(nodes=("/dev/null",), libraries="/usr/lib64")
    config: dict[str, Any] = {
        "linux": {"resources": {"devices": [{"allow": False}]}},
        "process": {"env": ["A=b"]},
        "mounts": [],
    }
    given.give(config)
    assert config["process"]["env"] == ["A=b", "LD_LIBRARY_PATH=/driver"]
    assert [(each["source"], each["destination"]) for each in config["mounts"]] == [("/usr/lib64", "/driver")]
    (made,) = config["linux"]["devices"]
    assert (made["path"], made["major"], made["minor"]) == ("/dev/null", 1, 3)
    assert config["linux"]["resources"]["devices"][1] == {
        "allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm",
    }  # fmt: skip


def test_leftovers_are_our_own_directories_that_nobody_holds(tmp_path: Path) -> None:
    (tmp_path / "grit-e2e-link").symlink_to(tmp_path)
    (tmp_path / "grit-e2e-file").touch()
    (tmp_path / "other").mkdir()
    killed = tmp_path / "grit-e2e-killed"
    killed.mkdir()
    at_work = node.Node.make("/bin/false", str(tmp_path), 1)
    assert node.leftovers(str(tmp_path)) == [str(killed)]
    if os.geteuid() == 0:
        foreign = tmp_path / "grit-e2e-foreign"
        foreign.mkdir()
        os.chown(foreign, 1, 1)
        assert node.leftovers(str(tmp_path)) == [str(killed)]
    os.close(at_work._lock)
    assert node.leftovers(str(tmp_path)) == sorted([str(killed), at_work.base])
