"""What registering with an engine writes, and what it leaves to the site."""

import json
import tomllib
from pathlib import Path

import pytest

from grit_runtime import engines, registration
from grit_runtime.errors import ConfigError

PROGRAM = "/usr/local/bin/grit-runtime"
NODE = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "my/pause"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "nvidia"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
    BinaryName = "/usr/bin/nvidia-container-runtime"
    SystemdCgroup = true
"""
IMPORTS = f'imports = ["{engines.CONTAINERD_DROP_IN}"]\n'


def _register(engine: str, version: tuple[int, ...] = (2, 1), **there: str) -> engines.Registration:
    known = {"main": engines.CONTAINERD, "docker": engines.DOCKER, "k3s": engines.K3S}
    content = {known[key]: text for key, text in there.items()}
    return engines.register(engine, "grit", PROGRAM, content.get, version)


def test_containerd_2_merges_so_the_drop_in_holds_the_runtime_alone() -> None:
    made = _register(
        "containerd", main=IMPORTS + NODE.replace("version = 2", "version = 3").replace("grpc.v1.cri", "cri.v1.runtime")
    )
    assert made.todo == ()
    (file,) = made.files
    options = {"BinaryName": PROGRAM, "SystemdCgroup": True}
    handler = {"runtime_type": "io.containerd.runc.v2", "options": options}
    handler |= {"pod_annotations": ["grit.dev/*"], "container_annotations": ["grit.dev/*"]}
    assert tomllib.loads(file.content) == {
        "version": 3,
        "plugins": {"io.containerd.cri.v1.runtime": {"containerd": {"runtimes": {"grit": handler}}}},
    }


def test_the_drop_in_is_of_the_main_files_version() -> None:
    """One of another takes the main file's own settings away, or isn't read (containerd 2.1)."""
    (file,) = _register("containerd", main=IMPORTS + NODE).files
    assert tomllib.loads(file.content)["version"] == 2


@pytest.mark.parametrize("version", [(1, 6), (1, 7)])
def test_containerd_1_takes_plugins_whole_so_the_drop_in_holds_all(version: tuple[int, int]) -> None:
    made = _register("containerd", version, main=IMPORTS + NODE)
    (file,) = made.files
    plugin = tomllib.loads(file.content)["plugins"]["io.containerd.grpc.v1.cri"]
    assert plugin["sandbox_image"] == "my/pause"
    assert plugin["containerd"]["default_runtime_name"] == "nvidia"
    assert set(plugin["containerd"]["runtimes"]) == {"nvidia", "grit"}
    assert plugin.get("enable_cdi") is (True if version == (1, 7) else None)
    assert "install again" in made.notes[0]


def test_a_node_without_a_configuration_gets_one_that_imports_the_drop_in() -> None:
    made = _register("containerd")
    assert [file.path for file in made.files] == [engines.CONTAINERD_DROP_IN, engines.CONTAINERD]
    assert tomllib.loads(made.files[1].content) == {"version": 3, "imports": [engines.CONTAINERD_DROP_IN]}
    assert made.todo == ()


@pytest.mark.parametrize("imports", ["", 'imports = ["/etc/other.toml"]\n'])
def test_a_main_file_that_imports_nothing_of_ours_is_left_alone(imports: str) -> None:
    made = _register("containerd", main=imports + NODE)
    assert [file.path for file in made.files] == [engines.CONTAINERD_DROP_IN]
    assert engines.CONTAINERD_DROP_IN in made.todo[0]
    assert ("/etc/other.toml" in made.todo[0]) is bool(imports)


@pytest.mark.parametrize("listed", ["/etc/containerd/conf.d/*.toml", engines.CONTAINERD_DROP_IN])
def test_one_that_imports_it_needs_nothing(listed: str) -> None:
    assert _register("containerd", main=f'imports = ["{listed}"]\n{NODE}').todo == ()


def test_a_configuration_of_version_1_has_to_be_migrated() -> None:
    with pytest.raises(ConfigError, match="config migrate"):
        _register("containerd", main='[plugins.cri]\nsandbox_image = "x"\n')
    with pytest.raises(ConfigError, match="not valid TOML"):
        _register("containerd", main="[")


def test_docker() -> None:
    (file,) = _register("docker").files
    assert json.loads(file.content) == {"runtimes": {"grit": {"path": PROGRAM}}}
    assert _register("docker", docker=file.content).todo == ()
    assert _register("docker", docker=file.content[:-2] + ', "debug": true}').todo == ()
    other = _register("docker", docker='{"debug": true}')
    assert other.files == ()
    assert f'"grit": {{"path": "{PROGRAM}"}}' in other.todo[0]


def test_k3s_adds_to_its_own_template() -> None:
    made = _register("k3s")
    for file, form in zip(made.files, ("grpc.v1.cri", "cri.v1.runtime"), strict=True):
        first, _, table = file.text.partition("\n")
        assert first == '{{ template "base" . }}'
        runtimes = tomllib.loads(table)["plugins"][f"io.containerd.{form}"]["containerd"]["runtimes"]
        assert runtimes["grit"]["options"]["BinaryName"] == PROGRAM
        assert table.lstrip().startswith(f'[plugins."io.containerd.{form}".containerd.runtimes.grit]\n')
    theirs = _register("k3s", k3s='{{ template "base" . }}\n')
    assert len(theirs.files) == 1
    assert engines.K3S in theirs.todo[0]


class _Host:
    def __init__(self, root: Path) -> None:
        self.root, self.said = root, list[str]()

    def install(self, engine: str, *, dry_run: bool = False) -> int:
        self.said.clear()
        return registration.install(engine, "grit", PROGRAM, root=str(self.root), dry_run=dry_run, say=self.said.append)

    def uninstall(self, engine: str) -> int:
        self.said.clear()
        return registration.uninstall(engine, root=str(self.root), dry_run=False, say=self.said.append)

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())


@pytest.fixture
def host(tmp_path: Path) -> _Host:
    return _Host(tmp_path)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_installed_twice_is_installed_once_and_goes_without_a_trace(host: _Host, engine: str) -> None:
    assert host.install(engine, dry_run=True) == 0
    assert host.files() == []
    shown = [line for line in host.said if line.startswith("+")]
    assert any(PROGRAM in line for line in shown)
    assert host.install(engine) == 0
    made = host.files()
    assert made
    assert host.install(engine) == 0
    assert all("is as it should be" in line for line in host.said)
    assert host.uninstall(engine) == 0
    assert host.files() == []


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_what_somebody_changed_is_neither_written_over_nor_removed(host: _Host, engine: str) -> None:
    host.install(engine)
    changed = [host.root / name for name in host.files()]
    for path in changed:
        path.write_text(path.read_text().replace("grit-runtime", "grit-runtime.mine"))
    before = [path.read_text() for path in changed]
    assert host.install(engine) == 1
    assert any("left for you" in line for line in host.said)
    assert host.uninstall(engine) == 1
    assert [path.read_text() for path in changed] == before


EXAMPLES = {
    "crio/90-grit.conf": ("cri-o", 0),
    "podman/90-grit.conf": ("podman", 0),
    "docker/daemon.json": ("docker", 0),
    "k3s/config.toml.tmpl": ("k3s", 0),
    "k3s/config-v3.toml.tmpl": ("k3s", 1),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_is_written(name: str) -> None:
    engine, number = EXAMPLES[name]
    example = Path(__file__).parent.parent.parent / "examples" / name
    assert example.read_text() == _register(engine).files[number].text
