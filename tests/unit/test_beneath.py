"""Opening below a directory: no link and no `..` on the way, with openat2(2) and without."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from grit_runtime.host import beneath


@pytest.fixture(params=["openat2", "openat"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a way in, and ways out."""
    if request.param == "openat":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, "not implemented")

        monkeypatch.setattr(beneath, "_openat2", missing)
    made = tmp_path / "root"
    (made / "a/b").mkdir(parents=True)
    (made / "a/file").write_text("inside")
    (tmp_path / "file").write_text("outside")
    for name, target in {"link": "a", "out": "..", "abs": "/", "end": "a/file", "self": "/proc/self/root"}.items():
        (made / name).symlink_to(target)
    return made


def _open(root: Path, inner: str, look: Callable[[beneath.Pin], None] = lambda _: None) -> beneath.Pin:
    return beneath.descend(str(root), inner, look)


@pytest.mark.parametrize("inner", ["a/b", "/a//b/", "./a/./b", "a/file", "", "."])
def test_what_is_there_is_opened_and_shown_step_by_step(root: Path, inner: str) -> None:
    seen: list[str] = []
    found = _open(root, inner, lambda pin: seen.append(pin.shown))
    assert os.path.samestat(found.stat(), (root / inner.lstrip("/")).stat())
    assert found.shown == seen[-1]
    assert len(seen) == 1 + len([word for word in inner.split("/") if word not in ("", ".")])
    os.close(found.fd)


@pytest.mark.parametrize(
    ("inner", "number"),
    [
        ("..", errno.EXDEV),
        ("a/../../file", errno.EXDEV),
        ("a/..", errno.EXDEV),
        ("a\0/b", errno.EXDEV),
        ("link/b", errno.ELOOP),
        ("out/file", errno.ELOOP),
        ("abs/etc", errno.ELOOP),
        ("self/etc", errno.ELOOP),
        ("end", errno.ELOOP),
        ("link", errno.ELOOP),
        ("a/file/x", errno.ENOTDIR),
        ("a/none", errno.ENOENT),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_what_leads_out_is_refused_and_no_descriptor_is_left(root: Path, inner: str, number: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is compared
        _open(root, inner)
    assert caught.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_held_stays_what_it_was(root: Path) -> None:
    found = _open(root, "a")
    (root / "a").rename(root / "moved")
    (root / "a").symlink_to("/etc")
    assert sorted(os.listdir(found.path)) == ["b", "file"]
    assert (Path(found.path) / "file").read_text() == "inside"
    os.close(found.fd)


def test_a_refusal_on_the_way_ends_it(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse(pin: beneath.Pin) -> None:
        if pin.shown.endswith("/a"):
            raise PermissionError

    with pytest.raises(PermissionError):
        _open(root, "a/b", refuse)
    assert len(os.listdir("/proc/self/fd")) == before
