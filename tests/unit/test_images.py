"""The first entry of an image, read without pycriu's dictionaries."""

from pathlib import Path

import pytest
from pycriu import images as pycriu

from grit_runtime.criu import images
from grit_runtime.errors import CheckpointError


def _core(state: int) -> bytes:
    """A process in this state."""
    entry = pycriu.pb.core_entry()
    entry.mtype = 1
    entry.tc.task_state, entry.tc.exit_code, entry.tc.personality, entry.tc.flags = state, 0, 0, 0
    entry.tc.blk_sigset, entry.tc.comm = 0, "name"
    data: bytes = entry.SerializeToString()
    head = [pycriu.magic.by_name[name].to_bytes(4, "little") for name in ("IMG_COMMON", "CORE")]
    return b"".join([*head, len(data).to_bytes(4, "little"), data])


def _state(path: Path, data: bytes) -> int:
    (path / "core-1.img").write_bytes(data)
    return images._task_state(str(path), "core-1.img", frozenset(["core-1.img"]))


@pytest.mark.parametrize("state", [1, 2, 3])
def test_the_state_of_a_process_is_what_pycriu_reads(tmp_path: Path, state: int) -> None:
    data = _core(state)
    assert _state(tmp_path, data) == pycriu.loads(data)["entries"][0]["tc"]["task_state"] == state


def test_an_image_that_is_cut_or_another_one_is_named(tmp_path: Path) -> None:
    data = _core(1)
    for cut in range(len(data)):
        with pytest.raises(CheckpointError, match=r"core-1\.img"):
            _state(tmp_path, data[:cut])
    other = data[:4] + pycriu.magic.by_name["MM"].to_bytes(4, "little") + data[8:]
    with pytest.raises(CheckpointError, match="is not a CORE"):
        _state(tmp_path, other)


def test_dictionaries_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pycriu, "loads", lambda _: pytest.fail("pycriu.loads of a process"))
    assert _state(tmp_path, _core(3)) == 3
