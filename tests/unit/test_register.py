"""Writing and removing a registration below a root."""

import os
from pathlib import Path

import pytest

from grit_runtime.errors import ConfigError
from grit_runtime.host import files
from grit_runtime.workflow import register
from grit_runtime.workflow.register import Outcome

BINARY = "/usr/local/bin/grit-runtime"
DROP_IN = "etc/crio/crio.conf.d/90-grit.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    launcher = tmp_path / BINARY.lstrip("/")
    launcher.parent.mkdir(parents=True)
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    return tmp_path


def _install(root: Path, engine: str = "cri-o", *, binary: str = BINARY, dry_run: bool = False) -> Outcome:
    return register.install(engine, name="grit", binary=binary, root=str(root), dry_run=dry_run, copy_section=False)


def _uninstall(root: Path, engine: str = "cri-o", *, dry_run: bool = False) -> Outcome:
    return register.uninstall(engine, name="grit", root=str(root), dry_run=dry_run)


@pytest.mark.parametrize("engine", ["cri-o", "podman", "docker", "k3s"])
def test_install_twice_and_uninstall_leave_no_file(root: Path, engine: str) -> None:
    before = {path for path in root.rglob("*") if path.is_file()}
    first = _install(root, engine)
    assert first.code == 0
    (written,) = {path for path in root.rglob("*") if path.is_file()} - before
    assert (written.stat().st_mode & 0o777, first.diff.startswith("--- /dev/null\n")) == (0o644, True)
    again = _install(root, engine)
    assert (again.code, again.diff) == (0, "")
    assert again.lines[-1].endswith("already registered")
    removed = _uninstall(root, engine)
    assert (removed.code, "+++ /dev/null\n" in removed.diff) == (0, True)
    assert {path for path in root.rglob("*") if path.is_file()} == before
    assert _uninstall(root, engine).lines == ("nothing to remove",)


def test_a_dry_run_shows_and_touches_nothing(root: Path) -> None:
    shown = _install(root, dry_run=True)
    assert not (root / "etc").exists()
    assert _install(root).diff == shown.diff
    assert _uninstall(root, dry_run=True).lines[0].startswith("would remove")
    assert (root / DROP_IN).exists()


def test_a_new_path_of_the_launcher_is_an_update(root: Path) -> None:
    _install(root)
    (root / "usr/bin").mkdir()
    (root / "usr/bin/grit-runtime").symlink_to("/usr/local/bin/grit-runtime")
    updated = _install(root, binary="/usr/bin/grit-runtime")
    assert updated.code == 0
    assert '-runtime_path = "/usr/local/bin/grit-runtime"\n' in updated.diff


@pytest.mark.parametrize(("text", "why"), [("grit = 1\n", "not written by install"), (None, "changed by hand since")])
def test_what_is_not_ours_is_neither_replaced_nor_removed(root: Path, text: str | None, why: str) -> None:
    _install(root)
    file = root / DROP_IN
    text = file.read_text() + "monitor_path = '/x'\n" if text is None else text
    file.write_text(text)
    refused, left = _install(root), _uninstall(root)
    assert (refused.code, left.code, file.read_text()) == (1, 1, text)
    assert why in refused.lines[-1]
    assert why in left.lines[-1]


def test_a_launcher_that_is_not_there_is_not_registered(root: Path) -> None:
    refused = _install(root, binary="/nowhere")
    assert (refused.code, refused.lines) == (1, ("refused: /nowhere is not there, or not executable",))
    assert not (root / "etc").exists()


def test_containerd_without_the_import_is_an_error_that_says_the_line(root: Path) -> None:
    main = root / "etc/containerd/config.toml"
    main.parent.mkdir(parents=True)
    main.write_text("version = 2\n")
    said = _install(root, "containerd")
    assert said.code == 1
    assert (root / "etc/containerd/conf.d/zz-grit.toml").exists()
    assert 'imports = ["/etc/containerd/conf.d/*.toml"]' in said.lines[-1]
    main.write_text('version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    assert _install(root, "containerd").code == 0
    assert main.read_text() == 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n'


def test_links_of_root_s_are_followed_within_the_root(root: Path) -> None:
    (root / "var/etc").mkdir(parents=True)
    (root / "etc").symlink_to("/var/etc")
    assert _install(root).code == 0
    assert (root / "var" / DROP_IN).exists()
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many"):
        files.trusted_path(str(root), "/loop/x")
    assert files.trusted_path(str(root), "/a/../../b/./c") == f"{root}/b/c"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_or_a_folder_of_somebody_else_s_is_refused(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/crio").symlink_to("/var")
    os.lchown(root / "etc/crio", 1000, 1000)
    with pytest.raises(ConfigError, match="not root's alone"):
        _install(root)
    (root / "etc/crio").unlink()
    (root / "etc").chmod(0o777)
    with pytest.raises(ConfigError, match="not root's alone"):
        _install(root)


def test_a_file_that_is_no_text_or_too_large_is_an_error(root: Path) -> None:
    file = root / DROP_IN
    file.parent.mkdir(parents=True)
    for content, why in ((b"\xff", "no text"), (b"x" * (1 << 21), "larger than 1 MiB")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            _install(root)
