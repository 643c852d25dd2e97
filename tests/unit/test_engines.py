"""What is written for each engine, of what is there: pure."""

import json
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.engines import ENGINES, containerd, docker, k3s, mark
from grit_runtime.engines.mark import Whose
from grit_runtime.engines.plan import Plan, Request, toml_table
from grit_runtime.errors import ConfigError, UsageError

BINARY = "/usr/local/bin/grit-runtime"
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
DROP_IN = "/etc/containerd/conf.d/zz-grit.toml"
NODE = f"""version = 2
{IMPORTS}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "mine/pause"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""
NODE3 = NODE.replace("version = 2", "version = 3").replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")


class Files(dict[str, str]):
    """A tree in memory."""

    def read(self, path: str) -> str | None:
        return self.get(path)

    def match(self, pattern: str) -> tuple[str, ...]:
        return tuple(sorted(path for path in self if fnmatch(path, pattern)))


def _plan(files: dict[str, str], engine: str = "containerd", **request: Any) -> Plan:
    return ENGINES[engine].plan(Files(files), Request(**{"name": "grit", "binary": BINARY, **request}))


def _section(plan: Plan, version: int) -> dict[str, Any]:
    section: dict[str, Any] = tomllib.loads(plan.text)["plugins"][containerd.SECTION[version]]
    return section


def test_a_plain_node_with_containerd_1_keeps_its_default_runtime() -> None:
    plan = _plan({containerd.MAIN: "version = 2\n" + IMPORTS})
    assert (plan.path, plan.refused, plan.missing) == (DROP_IN, "", ())
    assert tomllib.loads(plan.text)["version"] == 2
    section = _section(plan, 2)
    assert section["enable_cdi"] is True
    assert set(section["containerd"]["runtimes"]) == {"runc", "grit"}
    grit = section["containerd"]["runtimes"]["grit"]
    assert grit["pod_annotations"] == grit["container_annotations"] == ["grit.dev/*"]
    assert grit["options"] == {"BinaryName": BINARY}


@pytest.mark.parametrize(("text", "version"), [("", 1), ("version = 2\n", 2), ("version = 3\n", 3)])
def test_a_drop_in_has_the_version_of_the_main_file(text: str, version: int) -> None:
    plan = _plan({containerd.MAIN: text + IMPORTS})
    assert tomllib.loads(plan.text).get("version", 1) == version
    assert "grit" in _section(plan, version)["containerd"]["runtimes"]


def test_without_the_import_the_line_to_add_is_said() -> None:
    (missing,) = _plan({containerd.MAIN: "version = 2\n"}).missing
    assert '`imports = ["/etc/containerd/conf.d/*.toml"]`' in missing
    (missing,) = _plan({}, major=2).missing
    assert missing.endswith('version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]')


def test_a_folder_that_is_imported_already_is_taken() -> None:
    plan = _plan({containerd.MAIN: 'version = 3\nimports = ["/a/b.toml", "config.d/*.toml"]\n'})
    assert (plan.path, plan.missing) == ("/etc/containerd/config.d/zz-grit.toml", ())
    assert plan.path in containerd.places(Files({containerd.MAIN: 'imports = ["config.d/*.toml"]\n'}), "grit")


def test_a_section_that_containerd_1_would_replace_is_refused_or_copied() -> None:
    plan = _plan({containerd.MAIN: NODE})
    assert plan.text == ""
    assert 'runtimes.grit.options]\nSystemdCgroup = true\nBinaryName = "/usr/local/bin/grit-runtime"' in plan.refused
    plan = _plan({containerd.MAIN: NODE}, copy_section=True)
    section = _section(plan, 2)
    assert section["sandbox_image"] == "mine/pause"
    runtimes = section["containerd"]["runtimes"]
    assert runtimes["runc"]["options"] == {"SystemdCgroup": True}
    assert runtimes["grit"]["options"] == {"SystemdCgroup": True, "BinaryName": BINARY}
    assert "# Copied from /etc/containerd/config.toml" in plan.text
    again = _plan({containerd.MAIN: NODE, DROP_IN: plan.text}, copy_section=True)
    assert again.text == plan.text, "our own file is not what is copied"


def test_the_last_file_with_the_section_is_the_one_that_is_copied_and_none_may_come_behind() -> None:
    other = "version = 2\n" + NODE.split("\n", 2)[2].replace("mine/pause", "other/pause")
    place = "/etc/containerd/conf.d/99-nvidia.toml"
    plan = _plan({containerd.MAIN: NODE, place: other}, copy_section=True)
    assert _section(plan, 2)["sandbox_image"] == "other/pause"
    assert plan.missing == ()
    behind = "/etc/containerd/conf.d/zzz.toml"
    (missing,) = _plan({containerd.MAIN: NODE, behind: other}, copy_section=True).missing
    assert missing.startswith(behind)
    later = NODE.replace('conf.d/*.toml"]', 'conf.d/*.toml", "/etc/containerd/later.toml"]')
    (missing,) = _plan({containerd.MAIN: later, "/etc/containerd/later.toml": other}, copy_section=True).missing
    assert missing.startswith("/etc/containerd/later.toml")


@pytest.mark.parametrize(("text", "version", "major"), [(NODE3, 3, None), (NODE, 2, 2)])
def test_containerd_2_merges_so_nothing_is_copied(text: str, version: int, major: int | None) -> None:
    plan = _plan({containerd.MAIN: text}, major=major)
    section = _section(plan, version)
    assert "sandbox_image" not in section
    assert list(section["containerd"]["runtimes"]) == ["grit"]
    assert section["containerd"]["runtimes"]["grit"]["options"]["SystemdCgroup"] is True


def test_the_handler_is_as_the_default_runtime_and_a_foreign_program_is_named() -> None:
    nvidia = (
        '[plugins."io.containerd.cri.v1.runtime".containerd]\ndefault_runtime_name = "nvidia"\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'
        'pod_annotations = ["x/*"]\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]\nBinaryName = "/n"\nRoot = "/r"\n'
    )
    plan = _plan({containerd.MAIN: NODE3 + nvidia})
    grit = _section(plan, 3)["containerd"]["runtimes"]["grit"]
    assert grit["pod_annotations"] == ["x/*", "grit.dev/*"]
    assert grit["options"] == {"BinaryName": BINARY, "Root": "/r"}
    assert plan.notes == ("the node's default runtime is /n: name it as `downstream` in our configuration",)


def test_a_handler_that_is_there_by_another_s_hand() -> None:
    grit = (
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.grit]\npod_annotations = ["grit.dev/*"]\n'
        'container_annotations = ["grit.dev/*"]\n'
        f'[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.grit.options]\nBinaryName = "{BINARY}"\n'
    )
    plan = _plan({containerd.MAIN: NODE3 + grit})
    assert (plan.text, plan.refused, plan.missing) == ("", "", ())
    assert _plan({containerd.MAIN: NODE3 + grit.replace("grit.dev", "x")}).missing
    assert "choose another" in _plan({containerd.MAIN: NODE3 + grit}, binary="/other").refused


def test_what_else_would_keep_containerd_from_it() -> None:
    (missing,) = _plan({containerd.MAIN: f'version = 2\n{IMPORTS}disabled_plugins = ["cri"]\n'}).missing
    assert "disables the CRI plugin: take 'cri'" in missing
    assert "give it `version = 3`" in _plan({containerd.MAIN: IMPORTS}, major=2).refused
    with pytest.raises(ConfigError, match="not valid TOML"):
        _plan({containerd.MAIN: "version = "})


def test_k3s_gets_a_drop_in_or_a_template() -> None:
    etc = "/var/lib/rancher/k3s/agent/etc/containerd"
    newer = NODE3.replace("/etc/containerd/conf.d", f"{etc}/config-v3.toml.d")
    plan = _plan({k3s.MAIN: newer}, "k3s")
    assert plan.path == f"{etc}/config-v3.toml.d/zz-grit.toml"
    assert _section(plan, 3)["containerd"]["runtimes"]["grit"]["options"]["SystemdCgroup"] is True
    for text, path, version in (
        (NODE3, f"{etc}/config-v3.toml.tmpl", 3),
        (NODE, f"{etc}/config.toml.tmpl", 2),
        (None, f"{etc}/config-v3.toml.tmpl", 3),
    ):
        plan = _plan({} if text is None else {k3s.MAIN: text}, "k3s")
        assert plan.path == path
        rendered = plan.text.replace('{{ template "base" . }}', "").replace("{{ .SystemdCgroup }}", "true")
        grit = tomllib.loads(rendered)["plugins"][containerd.SECTION[version]]["containerd"]["runtimes"]["grit"]
        assert grit["options"] == {"BinaryName": BINARY, "SystemdCgroup": True}
        assert path in ENGINES["k3s"].places(Files(), "grit")


def test_docker_s_file_is_written_only_where_it_is_ours() -> None:
    plan = _plan({}, "docker")
    assert json.loads(plan.text) == {"runtimes": {"grit": {"path": BINARY}}}
    assert docker.whose(plan.text) is Whose.OURS
    assert _plan({docker.PATH: plan.text}, "docker", binary="/opt/g").text != plan.text
    mine = '{"log-driver": "none"}'
    assert docker.whose(mine) is Whose.FOREIGN
    refused = _plan({docker.PATH: mine}, "docker")
    assert (refused.text, json.loads(refused.refused.partition(":\n")[2])) == ("", json.loads(plan.text))
    merged = json.dumps({**json.loads(mine), **json.loads(plan.text)})
    there = _plan({docker.PATH: merged}, "docker")
    assert (there.text, there.refused) == ("", "")
    for bad in ("[]", "{", '{"runtimes": []}', '{"runtimes": {"a": 1}}', '{"runtimes": {"a": {}, "b": {}}}'):
        assert docker.whose(bad) is Whose.FOREIGN
    with pytest.raises(ConfigError, match="no JSON object"):
        _plan({docker.PATH: "["}, "docker")


def test_podman_and_cri_o() -> None:
    assert tomllib.loads(_plan({}, "podman").text) == {"engine": {"runtimes": {"grit": [BINARY]}}}
    handler = tomllib.loads(_plan({}, "cri-o").text)["crio"]["runtime"]["runtimes"]["grit"]
    assert handler == {"runtime_path": BINARY, "runtime_type": "oci", "runtime_root": "/run/grit"}


@pytest.mark.parametrize("name", ["", "Grit", "a b", "-a", "a" * 64, "a/b", 'a"'])
def test_a_name_that_is_no_dns_label_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Request(name=name, binary=BINARY)


@pytest.mark.parametrize("binary", ["", "relative", '/a"b', "/a\nb", "/a\\b"])
def test_a_binary_that_no_file_could_name_is_refused(binary: str) -> None:
    with pytest.raises(UsageError):
        Request(name="grit", binary=binary)


def test_the_mark_tells_ours_from_changed_and_foreign() -> None:
    text = mark.marked("a = 1\n")
    assert mark.whose(text) is Whose.OURS
    assert mark.whose(text + "b = 2\n") is Whose.CHANGED
    assert mark.whose("a = 1\n") is mark.whose("") is Whose.FOREIGN


_scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.floats(allow_nan=False))
_values = st.recursive(_scalars, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=12)


@given(st.dictionaries(st.text(), _values))
def test_what_is_written_as_toml_is_read_as_it_was(content: dict[str, Any]) -> None:
    assert tomllib.loads(toml_table(("a", "b.c"), content))["a"]["b.c"] == content
