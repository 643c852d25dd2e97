"""`make install`, after `make deps`: what lies where, and that nothing but what was installed is ever executed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import ROOT, RUNTIME

pytestmark = [pytest.mark.needs("root", "cc", "runc", "runtime"), pytest.mark.timeout(300)]


def test_destdir_and_prefix_are_honoured_and_uninstall_leaves_nothing(tmp_path: Path) -> None:
    make = ["make", "-C", str(ROOT), f"DESTDIR={tmp_path}", "PREFIX=/opt/grit"]
    subprocess.run([*make, "install"], check=True, stdout=subprocess.DEVNULL)
    launcher = tmp_path / "opt/grit/bin/grit-runtime"
    assert launcher.stat().st_mode & 0o777 == 0o755
    assert b"/opt/grit/lib/grit-runtime/boot.py" in launcher.read_bytes()
    assert str(tmp_path).encode() not in launcher.read_bytes()
    library = tmp_path / "opt/grit/lib/grit-runtime"
    assert sorted(p.name for p in library.iterdir()) == ["boot.py", "grit_runtime", "hooks", "site"]
    assert (library / "site/pycriu").is_dir()
    assert sorted(p.name for p in (tmp_path / "opt/grit").iterdir()) == ["bin", "lib", "share"]
    hooks = {json.loads(file.read_text())["hook"]["path"] for file in (tmp_path / "opt/grit/share").rglob("*.json")}
    assert hooks == {f"/opt/grit/lib/grit-runtime/hooks/{name}" for name in ("grit-record", "grit-cleanup")}
    assert all(os.access(f"{tmp_path}{path}", os.X_OK) for path in hooks)
    pages = sorted(p.name for p in (tmp_path / "opt/grit/share/man/man1").iterdir())
    assert pages == sorted(p.name for p in (ROOT / "docs/man").glob("*.1"))
    writable = [p for p in tmp_path.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022]
    assert writable == []
    subprocess.run([*make, "uninstall"], check=True, stdout=subprocess.DEVNULL)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory whose every file, if it were imported, would leave a trace."""
    trace = f"open({str(tmp_path / 'hijacked')!r}, 'a').write(__name__)\n"
    for name in (
        "json",
        "os",
        "signal",
        "click",
        "yaml",
        "grit_runtime",
        "sitecustomize",
        "usercustomize",
        "encodings",
    ):
        (tmp_path / f"{name}.py").write_text(trace)
    user = tmp_path / f".local/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    user.mkdir(parents=True)
    (user / "usercustomize.py").write_text(trace)
    (user / "evil.pth").write_text(f"import sys; {trace}")
    return tmp_path


@pytest.mark.parametrize("empty", [True, False], ids=["empty-environment", "hostile-environment"])
def test_no_environment_and_no_directory_chooses_the_code(hostile: Path, empty: bool) -> None:
    place = str(hostile)
    bad = {
        "PYTHONPATH": place,
        "PYTHONHOME": place,
        "PYTHONSTARTUP": f"{place}/os.py",
        "HOME": place,
        "PYTHONINSPECT": "1",
    }
    done = subprocess.run(
        [str(RUNTIME), "config"], cwd=place, env={} if empty else {**bad, "PYTHONUSERBASE": f"{place}/.local"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["downstream"]
    assert not (hostile / "hijacked").exists()


def test_it_serves_from_a_directory_that_is_gone_with_no_environment(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec env -i {RUNTIME} --version"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.startswith("runc version"), done.stderr


def test_the_package_installs_with_pip(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv/lib").iterdir()) / "site-packages"
    argv = [sys.executable, "-m", "pip", "-qq", "install", "--no-deps", "--target", str(site), str(ROOT)]
    subprocess.run(argv, check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    script = site / "bin/grit-runtime"
    done = subprocess.run(
        [sys.executable, str(script), "--version"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.startswith("runc version"), done.stderr
    assert (site / "grit_runtime/config.schema.json").exists()
