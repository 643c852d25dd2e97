"""`install`, as the engines themselves read it: `containerd config dump`, podman."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from grit_runtime import engines, registration
from tests import requirements

NVIDIA = """
  sandbox_image = "my/pause"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "nvidia"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
    BinaryName = "/usr/bin/nvidia-container-runtime"
    SystemdCgroup = true
"""


def _containerds() -> dict[str, Path]:
    found = dict(requirements.containerds())
    own = shutil.which("containerd")
    return {**found, "the system's": Path(own).parent} if own else found


def _version(program: Path) -> tuple[int, int]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" v?(\d+)\.(\d+)\.", said)
    assert found
    return int(found[1]), int(found[2])


def _dump(program: Path, config: Path) -> dict[str, Any]:
    done = subprocess.run([program, "--config", config, "config", "dump"], capture_output=True, text=True, check=True)
    text = done.stdout[done.stdout.index("version = ") :] if "disabled_plugins" not in done.stdout else done.stdout
    return tomllib.loads(text)


@pytest.mark.needs("containerd")
@pytest.mark.parametrize("main", ["none", "version 2", "version 3"])
@pytest.mark.parametrize("which", _containerds() or ["none"])
def test_containerd_has_our_runtime_and_all_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, main: str
) -> None:
    program = _containerds()[which] / "containerd"
    if not program.exists():
        program = _containerds()[which] / "bin/containerd"
    version = _version(program)
    if main == "version 3" and version < (2, 0):
        return  # no configuration of this containerd
    monkeypatch.setattr(engines, "CONTAINERD", str(tmp_path / "config.toml"))
    monkeypatch.setattr(engines, "CONTAINERD_DROP_IN", str(tmp_path / "conf.d/90-grit.toml"))
    monkeypatch.setattr(registration, "_version", lambda *_: version)
    if main != "none":
        text = (
            f'{main.replace(" ", " = ")}\nimports = ["{tmp_path}/conf.d/*.toml"]\n[plugins."io.containerd.grpc.v1.cri"]'
        )
        text += NVIDIA
        if main == "version 3":
            text = text.replace('  sandbox_image = "my/pause"\n', "").replace("grpc.v1.cri", "cri.v1.runtime")
        (tmp_path / "config.toml").write_text(text)
    said: list[str] = []
    assert (
        registration.install("containerd", "grit", "/opt/grit-runtime", root="/", dry_run=False, say=said.append) == 0
    )
    plugins = _dump(program, tmp_path / "config.toml")["plugins"]
    plugin = plugins.get("io.containerd.cri.v1.runtime") or plugins["io.containerd.grpc.v1.cri"]
    runtimes = plugin["containerd"]["runtimes"]
    assert runtimes["grit"]["options"]["BinaryName"] == "/opt/grit-runtime"
    assert runtimes["grit"]["pod_annotations"] == ["grit.dev/*"]
    assert runtimes["grit"]["container_annotations"] == ["grit.dev/*"]
    assert plugin.get("enable_cdi", version < (1, 7)) is True
    if main != "none":
        assert plugin["containerd"]["default_runtime_name"] == "nvidia"
        assert runtimes["nvidia"]["options"]["BinaryName"] == "/usr/bin/nvidia-container-runtime"
        assert runtimes["grit"]["options"]["SystemdCgroup"] is True
    if main == "version 2":
        assert "my/pause" in json.dumps(plugins)
    else:
        assert "runc" in runtimes
