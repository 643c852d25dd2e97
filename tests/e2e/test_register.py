"""What `grit-runtime install` writes, as the engines themselves read it; and the examples are what it writes."""

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import ROOT, RUNTIME, every_containerd

pytestmark = [pytest.mark.needs("root", "runtime")]
EXAMPLES = ROOT / "examples"
BINARY = "/usr/local/bin/grit-runtime"
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
SECTION = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
NODE = """
[plugins."{0}"]
  max_container_log_line_size = 4242
[plugins."{0}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{0}".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """No containerd runs for these tests."""


Grit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def grit(tmp_path: Path) -> Grit:
    """The built runtime's commands, below a root that has a launcher."""
    launcher = tmp_path / BINARY.lstrip("/")
    launcher.parent.mkdir(parents=True)
    launcher.write_bytes(RUNTIME.read_bytes())
    launcher.chmod(0o755)

    def call(verb: str, engine: str, *more: str) -> subprocess.CompletedProcess[str]:
        argv = [str(RUNTIME), verb, "--engine", engine, "--root", str(tmp_path), *more]
        argv += ["--binary", BINARY] if verb == "install" else []
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    return call


def _write(root: Path, version: int, more: str = "", imports: str = IMPORTS) -> Path:
    main = root / "etc/containerd/config.toml"
    main.parent.mkdir(parents=True, exist_ok=True)
    main.write_text(f"version = {version}\n{imports}{more}")
    return main


def _dump(containerd: Path, root: Path, main: Path) -> dict[str, Any]:
    """What containerd makes of it; its `imports` are led below the root for that."""
    moved = main.with_name("moved.toml")
    moved.write_text(main.read_text().replace('"/etc', f'"{root}/etc'))
    argv = [str(containerd), "--config", str(moved), "config", "dump"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "Ignoring unknown key" not in done.stderr
    dumped = tomllib.loads(done.stdout)
    section: dict[str, Any] = dumped["plugins"][SECTION[dumped["version"]]]
    return section


def _said(table: dict[str, Any]) -> dict[str, Any]:
    """Less what containerd has by default: the runc that is there where none is named is written out in full."""
    found = {key: _said(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in found.items() if value and (key, value) != ("sandbox_mode", "podsandbox")}


@pytest.mark.needs("containerd")
@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for name in every_containerd() for version in (2, 3) if version == 2 or not name.startswith("1.")],
)
@pytest.mark.parametrize("node", ["plain", "configured"])
def test_containerd_has_the_handler_and_loses_nothing(
    grit: Grit, tmp_path: Path, name: str, version: int, node: str
) -> None:
    main = _write(tmp_path, version, NODE.format(SECTION[version]) if node == "configured" else "")
    text = main.read_text()
    containerd = every_containerd()[name]
    before = _dump(containerd, tmp_path, main)
    if node == "configured" and version == 2:
        refused = grit("install", "containerd")
        assert refused.returncode == 1
        assert "--copy-section" in refused.stderr
    done = grit("install", "containerd", "--copy-section")
    assert done.returncode == 0, done.stderr
    after = _dump(containerd, tmp_path, main)
    ours = after["containerd"]["runtimes"].pop("grit")
    assert ours["options"]["BinaryName"] == BINARY
    assert ours["options"].get("SystemdCgroup", False) is (node == "configured")
    assert ours["pod_annotations"] == ours["container_annotations"] == ["grit.dev/*"]
    assert after.pop("enable_cdi", True) is True
    before.pop("enable_cdi", None)
    assert _said(after) == _said(before), "nothing else has changed"
    assert grit("install", "containerd", "--copy-section").stdout == ""
    assert grit("uninstall", "containerd").returncode == 0
    assert main.read_text() == text
    assert _dump(containerd, tmp_path, main).items() >= before.items()


@pytest.mark.parametrize(
    ("example", "engine", "version"),
    [
        ("containerd/conf.d/v2.toml", "containerd", 2),
        ("containerd/conf.d/v3.toml", "containerd", 3),
        ("crio/90-grit.conf", "cri-o", 0),
        ("podman/90-grit.conf", "podman", 0),
        ("docker/daemon.json", "docker", 0),
        ("k3s/config-v3.toml.tmpl", "k3s", 0),
    ],
)
def test_an_example_is_what_a_dry_run_shows(
    grit: Grit, tmp_path: Path, example: str, engine: str, version: int
) -> None:
    if version:
        _write(tmp_path, version)
    shown = grit("install", engine, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("--- /dev/null\n")
    added = [line[1:] for line in shown.stdout.splitlines()[3:]]
    assert (EXAMPLES / example).read_text().splitlines() == added
